"""One song as one row of an Arrow table, and back.

Design decisions
- A row holds a song bar by bar and note by note: the bar table (`bar_*`), the notes (`note_*`: track, bar, tick inside
  the bar, pitch, duration, velocity) and the chords (`chord_*`). Nothing in it is a token: the same data set serves
  every task, window, transposition and token table.
- Every integer column has the smallest type that holds it (8 bytes a note, 3 a bar); songs beyond these types
  (more than 65535 bars or 255 tracks) are refused.
- Rows are read back without copying: numpy views on the memory-mapped columns, widened song by song when a song is
  asked for, with the songs used last kept ready.

Knows: `MetricScore`, Arrow. Must not know: tokens, models, files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pyarrow as pa

from ..models.errors_mortm import DataError
from ..models.music_grid import BarTable
from ..models.music_score import ChordTable, CodecReport, MetricScore


FORMAT_VERSION = 2
LABELS = (
    "path",
    "corpus",
    "song_id",
    "cluster",
    "split",
    "genre",
    "variant",
    "licence",
    "key",
    "key_source",
    "chord_source",
)
LISTS = {
    "program": "uint8",
    "bar_length": "uint8",
    "bar_meter": "uint8",
    "bar_tempo": "int8",
    "note_track": "uint8",
    "note_bar": "uint16",
    "note_tick": "uint8",
    "note_pitch": "uint8",
    "note_duration": "uint16",
    "note_velocity": "uint8",
    "chord_bar": "uint16",
    "chord_tick": "uint8",
    "chord_root": "uint8",
    "chord_quality": "uint8",
    "chord_bass": "uint8",
}
MAX_BARS, MAX_TRACKS = 1 << 16, 1 << 8
CACHED_NOTES = 8_000_000  # notes of the songs kept widened (40 bytes each)


@dataclass(frozen=True)
class Song:
    """One song.

    Attributes:
        path: of its file.
        corpus: name of the collection.
        song_id: name of the song, shared by its variants.
        cluster: what must not cross splits (variants and duplicates of a song share it).
        split: "train", "validation", "test" or "".
        genre: genre name of the vocabulary or `None`.
        score: the quantised score; its `key` is the annotated or embedded one, or `None`.
        variant: which arrangement or version it is.
        licence: as the source states it.
        key_source: "annotation", "file" or `None`.
        chord_source: "annotation", "file", "estimate" or `None`.
    """

    path: str
    corpus: str
    song_id: str
    cluster: str
    split: str
    genre: str | None
    score: MetricScore
    variant: str = ""
    licence: str = ""
    key_source: str | None = None
    chord_source: str | None = None


def features():
    """The `datasets.Features` of a data set of songs."""
    from datasets import Features, List, Value

    columns = {name: Value("string") for name in LABELS}
    columns["names"] = List(Value("string"))
    columns |= {name: List(Value(kind)) for name, kind in LISTS.items()}
    return Features(columns)


def check_size(score: MetricScore, path: str) -> None:
    """Raise `DataError` (`data.too_large`) for a song whose bars or tracks do not fit the columns.

    Args:
        score: of the song.
        path: of its file, for the message.
    """
    if score.n_bars > MAX_BARS or score.n_tracks > MAX_TRACKS:
        raise DataError(
            f"{path} has {score.n_bars} bars and {score.n_tracks} tracks; {MAX_BARS} and {MAX_TRACKS} are the most a "
            "data set holds: cut the file into songs",
            "data.too_large",
        )


def table_of(songs: Sequence[Song]) -> pa.Table:
    """Songs -> Arrow table with the schema of `features()`."""
    scores = [song.score for song in songs]
    columns: dict[str, pa.Array] = {}
    for name in LABELS:
        values = [s.score.key if name == "key" else getattr(s, name) for s in songs]
        columns[name] = pa.array(values, pa.string())
    columns["names"] = pa.array([list(score.names) for score in scores], pa.list_(pa.string()))

    def put(name: str, parts: list[np.ndarray]) -> None:
        offsets = np.zeros(len(parts) + 1, dtype=np.int32)
        np.cumsum([len(p) for p in parts], out=offsets[1:])
        flat = np.concatenate(parts) if parts else np.zeros(0)
        values = pa.array(flat.astype(LISTS[name]))
        columns[name] = pa.ListArray.from_arrays(pa.array(offsets), values)

    put("program", [s.programs for s in scores])
    put("bar_length", [s.bars.length for s in scores])
    put("bar_meter", [s.bars.meter for s in scores])
    put("bar_tempo", [s.tempo for s in scores])
    bars = [s.bar_of_notes() for s in scores]
    put("note_track", [s.track for s in scores])
    put("note_bar", bars)
    put("note_tick", [s.onset - s.bars.start[b] for s, b in zip(scores, bars)])
    put("note_pitch", [s.pitch for s in scores])
    put("note_duration", [s.duration for s in scores])
    put("note_velocity", [s.velocity for s in scores])
    nothing = ChordTable(*(np.zeros(0, np.int64) for _ in range(4)))
    chords = [nothing if s.chords is None else s.chords for s in scores]
    bars = [s.bars.of(c.onset) if len(c) else c.onset for s, c in zip(scores, chords)]
    put("chord_bar", bars)
    put("chord_tick", [c.onset - s.bars.start[b] for s, c, b in zip(scores, chords, bars)])
    for name in ("root", "quality", "bass"):
        put(f"chord_{name}", [getattr(c, name) for c in chords])
    schema = features().arrow_schema
    return pa.table([columns[field.name].cast(field.type) for field in schema], schema=schema)


class _Batch:
    """The list columns of one record batch as numpy views: `values[name]`, `offsets[name]`."""

    def __init__(self, batch: pa.RecordBatch):
        self.labels = {name: batch.column(batch.schema.get_field_index(name)) for name in (*LABELS, "names")}
        self.values: dict[str, np.ndarray] = {}
        self.offsets: dict[str, np.ndarray] = {}
        for name in LISTS:
            column = batch.column(batch.schema.get_field_index(name))
            self.values[name] = column.values.to_numpy(zero_copy_only=True)
            self.offsets[name] = column.offsets.to_numpy(zero_copy_only=True)

    def column(self, name: str, row: int) -> np.ndarray:
        start, stop = self.offsets[name][row : row + 2]
        return self.values[name][start:stop]

    def song(self, row: int) -> Song:
        """One row widened to the types that the rest of the package computes with."""
        label = {name: column[row].as_py() for name, column in self.labels.items()}
        length, meter = self.column("bar_length", row).astype(np.int64), self.column("bar_meter", row)
        bars = BarTable.from_lengths(length, meter)
        wide = {
            name: self.column(f"note_{name}", row).astype(np.int64)
            for name in ("track", "pitch", "duration", "velocity")
        }
        onset = bars.start.take(self.column("note_bar", row)) + self.column("note_tick", row)
        chords = None
        if len(self.column("chord_bar", row)):
            at = bars.start.take(self.column("chord_bar", row)) + self.column("chord_tick", row)
            chords = ChordTable(
                at, *(self.column(f"chord_{k}", row).astype(np.int16) for k in ("root", "quality", "bass"))
            )
        score = MetricScore(
            bars=bars,
            onset=onset,
            **wide,
            programs=self.column("program", row).astype(np.int16),
            tempo=self.column("bar_tempo", row).astype(np.int16),
            key=label.pop("key"),
            chords=chords,
            names=tuple(label.pop("names") or ()),
            report=CodecReport(),
        )
        return Song(score=score, **label)


class SongRows(Sequence):
    """The rows of a `datasets.Dataset` as a sequence of `Song`; nothing is read before it is asked for.

    Args:
        dataset: with the columns of `features()`.
        estimates: keep the chords that a recogniser guessed.

    Raises:
        DataError: `data.column`, a column is missing.
    """

    def __init__(self, dataset, estimates: bool = True):
        self._estimates = estimates
        missing = [name for name in (*LABELS, "names", *LISTS) if name not in dataset.column_names]
        if missing:
            raise DataError(
                f"this is no data set of songs, it lacks the columns {', '.join(missing[:5])}: prepare it with "
                "`mortm data build`",
                "data.column",
            )
        self.dataset = dataset.flatten_indices() if dataset._indices is not None else dataset
        self._open()

    def _open(self) -> None:
        table = self.dataset.data.table
        self._batches = [batch for batch in table.to_batches() if batch.num_rows]
        self._views: list[_Batch | None] = [None] * len(self._batches)
        self._first = np.concatenate([[0], np.cumsum([b.num_rows for b in self._batches])]).astype(np.int64)
        notes = max(int(self.lengths("note_pitch").sum()), 1)
        keep = max(16, int(CACHED_NOTES * len(self) / notes)) if len(self) else 1
        self._song = lru_cache(maxsize=keep)(self._build)

    def __getstate__(self):
        return {
            "dataset": self.dataset,
            "estimates": self._estimates,
        }  # views and cache are made again where it is unpickled

    def __setstate__(self, state):
        self.dataset, self._estimates = state["dataset"], state["estimates"]
        self._open()

    def without_estimates(self) -> SongRows:
        """The same songs without the chords that a recogniser guessed."""
        return SongRows(self.dataset, estimates=False)

    def _view(self, number: int) -> _Batch:
        if self._views[number] is None:
            self._views[number] = _Batch(self._batches[number])
        return self._views[number]

    def _build(self, index: int) -> Song:
        number = int(np.searchsorted(self._first, index, side="right")) - 1
        song = self._view(number).song(index - int(self._first[number]))
        if not self._estimates and song.chord_source == "estimate":
            song = replace(song, score=replace(song.score, chords=None), chord_source=None)
        return song

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self._song(i) for i in range(*index.indices(len(self)))]
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"song {index} of {len(self)}")
        return self._song(index % len(self))

    def __iter__(self):
        return (self._song(i) for i in range(len(self)))

    def lengths(self, column: str) -> np.ndarray:
        """`[n]` number of values of a list column of each song, without reading the songs."""
        if not self._batches:
            return np.zeros(0, dtype=np.int64)
        offsets = [self._view(n).offsets[column] for n in range(len(self._batches))]
        return np.concatenate([np.diff(o) for o in offsets]).astype(np.int64)

    def values(self, column: str) -> np.ndarray:
        """All values of a list column, end to end (a copy of the narrow column)."""
        if not self._batches:
            return np.zeros(0, dtype=LISTS[column])
        parts = []
        for number in range(len(self._batches)):
            view = self._view(number)
            parts.append(view.values[column][view.offsets[column][0] : view.offsets[column][-1]])
        return np.concatenate(parts)

    def labels(self, column: str) -> list:
        """`[n]` values of a label column."""
        return [v for batch in self._batches for v in batch.column(batch.schema.get_field_index(column)).to_pylist()]
