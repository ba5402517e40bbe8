"""Quantised songs on disk: flat arrays, no pickle.

Design decisions
- One `scores.npz` holds the columns of every song end to end, with offsets; `songs.json` holds the labels and the
  files that were skipped with reasons. Windows, tasks and transpositions are drawn from it afresh every epoch.
- What is stored is the quantised score, not token ids: the same store serves every task and every token table.
- A store is written to a temporary folder and renamed, so that a killed preparation never leaves half a store.

Knows: the intermediate representation (`MetricScore`), the manifest, annotations. Must not know: tokens, models.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import defaultdict
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np

from ..models import midi_codec
from ..models.metric_chords import parse_chord_text
from ..models.metric_grid import BarTable
from ..models.midi_codec import ChordTable, MetricScore
from .annotations import CHORD_CLOCK, key_name, parse_key
from .genres import genre_of
from .manifest import Selection, SongFile, read_archive, read_manifest


STORE_VERSION = 1
_NOTE_COLUMNS = {"track": np.uint8, "onset": np.int32, "pitch": np.uint8, "duration": np.int32, "velocity": np.uint8}
_CHORD_COLUMNS = {"onset": np.int32, "root": np.int16, "quality": np.int16, "bass": np.int16}


@dataclass(frozen=True)
class Song:
    """One song of a store.

    Attributes:
        score: the quantised score; its `key` is the annotated or embedded one, or `None`.
        genre: genre name of the vocabulary or `None`.
    """

    path: str
    corpus: str
    song_id: str
    cluster: str
    split: str
    genre: str | None
    score: MetricScore


class ScoreStore:
    """Songs read back from disk (or built in memory); `store[i]` is a `Song`.

    Attributes:
        songs: list of `Song`.
        skipped: `[(path, reason)]` of files that could not be used.
    """

    def __init__(self, songs: list[Song], skipped: list[tuple[str, str]] | None = None):
        self.songs = songs
        self.skipped = list(skipped or [])

    def __len__(self) -> int:
        return len(self.songs)

    def __getitem__(self, index: int) -> Song:
        return self.songs[index]

    def corpora(self) -> dict[str, np.ndarray]:
        """`{corpus: indices of its songs}`, in the order of first appearance."""
        found: dict[str, list[int]] = defaultdict(list)
        for index, song in enumerate(self.songs):
            found[song.corpus].append(index)
        return {name: np.array(rows) for name, rows in found.items()}

    def save(self, folder: str | Path) -> None:
        """Write the store; an existing one is replaced in one rename."""
        folder = Path(folder)
        partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
        partial.mkdir(parents=True)
        np.savez_compressed(partial / "scores.npz", **_pack([song.score for song in self.songs]))
        labels = [{f.name: getattr(s, f.name) for f in fields(Song) if f.name != "score"} for s in self.songs]
        extra = [{"key": s.score.key, "names": list(s.score.names)} for s in self.songs]
        with open(partial / "songs.json", "w", encoding="utf-8") as handle:
            json.dump(
                {"version": STORE_VERSION, "songs": labels, "scores": extra, "skipped": self.skipped},
                handle,
                ensure_ascii=False,
            )
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)

    @classmethod
    def load(cls, folder: str | Path) -> ScoreStore:
        """Read a store that `save` wrote.

        Raises:
            ValueError: the store was written by another version of the format.
        """
        folder = Path(folder)
        with open(folder / "songs.json", encoding="utf-8") as handle:
            meta = json.load(handle)
        if meta["version"] != STORE_VERSION:
            raise ValueError(f"{folder} is a store of version {meta['version']}, not {STORE_VERSION}: build it again")
        with np.load(folder / "scores.npz", allow_pickle=False) as arrays:
            scores = _unpack(dict(arrays), meta["scores"])
        songs = [Song(score=score, **labels) for labels, score in zip(meta["songs"], scores)]
        return cls(songs, [tuple(x) for x in meta["skipped"]])


def build_store(root: str | Path, selection: Selection, split: str, cache: str | Path | None = None) -> ScoreStore:
    """Read the chosen songs of one split straight out of the archives of a training pack.

    Args:
        root: folder of the pack (`manifest.csv` and `.tar.xz` archives).
        selection: corpora, variants and licences.
        split: `"train"`, `"validation"` or `"test"`; taken from the manifest.
        cache: folder for finished stores; a store of the same choice and manifest is read back instead of built.

    Files that cannot be read are listed in `skipped` with the reason; they never end the build.
    """
    rows = [song for song in read_manifest(root) if selection.accepts(song, split)]
    target = None
    if cache is not None:
        name = f"{split}-{_fingerprint(rows)}"
        target = Path(cache) / name
        if target.is_dir():
            return ScoreStore.load(target)
    by_archive: dict[str, list[SongFile]] = defaultdict(list)
    for row in rows:
        by_archive[row.archive].append(row)
    songs, skipped = [], []
    for archive, members in sorted(by_archive.items()):
        wanted = {name for row in members for name in (row.path, *_chord_files(row))}
        content = dict(read_archive(Path(root) / archive, wanted))
        for row in members:
            try:
                songs.append(read_song(row, content[row.path], _chord_text(row, content)))
            except ValueError as error:
                skipped.append((row.path, str(error)))
    store = ScoreStore(songs, skipped)
    if target is not None:
        store.save(target)
    return store


def read_song(row: SongFile, midi: bytes, chords: str | None = None) -> Song:
    """One MIDI file with its labels -> `Song`.

    Args:
        chords: text of a chord annotation.

    Raises:
        MidiError: the file cannot be used (the message says why).
    """
    source = midi_codec.load_score(midi)
    score = midi_codec.quantize(source)
    key = parse_key(row.key)
    changes = {}
    if key is not None:
        changes["key"] = key_name(*key)
    if chords is not None and score.n_bars:
        table = parse_chord_text(chords, source, CHORD_CLOCK.get(row.corpus))
        if table is not None and table.onset[0] < score.bars.end:
            changes["chords"] = table.window(0, score.bars.end)
    if changes:
        score = replace(score, **changes)
    if not len(score.onset):
        raise ValueError("no notes")
    return Song(
        path=row.path,
        corpus=row.corpus,
        song_id=row.song_id,
        cluster=row.cluster,
        split=row.split,
        genre=genre_of(row.genre, row.subgenre),
        score=score,
    )


def _chord_files(row: SongFile) -> list[str]:
    """Chord annotations that fit the MIDI file of this row (an aligned file has chords in its own ticks)."""
    if row.variant == "aligned":
        return [name for name in row.annotations if name.endswith(".aligned.chords.tsv")]
    return [name for name in row.annotations if name.endswith("chord_midi.txt")]


def _chord_text(row: SongFile, content: dict[str, bytes]) -> str | None:
    for name in _chord_files(row):
        if name in content:
            return content[name].decode("utf-8", errors="replace")
    return None


def _fingerprint(rows: list[SongFile]) -> str:
    """Identity of a store: the rows themselves and the format version."""
    text = json.dumps([STORE_VERSION, [asdict(row) for row in rows]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _pack(scores: list[MetricScore]) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}

    def put(name: str, parts: list[np.ndarray], dtype) -> None:
        parts = [np.asarray(p) for p in parts]
        arrays[name] = np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)

    def offsets(name: str, sizes: list[int]) -> None:
        arrays[f"{name}_offset"] = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    for column, dtype in _NOTE_COLUMNS.items():
        put(f"note_{column}", [getattr(s, column) for s in scores], dtype)
    offsets("note", [len(s.onset) for s in scores])
    put("bar_length", [s.bars.length for s in scores], np.int16)
    put("bar_meter", [s.bars.meter for s in scores], np.int16)
    put("bar_tempo", [s.tempo for s in scores], np.int16)
    offsets("bar", [s.n_bars for s in scores])
    put("program", [s.programs for s in scores], np.int16)
    offsets("program", [len(s.programs) for s in scores])
    for column, dtype in _CHORD_COLUMNS.items():
        put(f"chord_{column}", [getattr(s.chords, column) for s in scores if s.chords is not None], dtype)
    offsets("chord", [0 if s.chords is None else len(s.chords.onset) for s in scores])
    return arrays


def _unpack(arrays: dict[str, np.ndarray], extra: list[dict]) -> list[MetricScore]:
    notes = {c: arrays[f"note_{c}"].astype(np.int64) for c in _NOTE_COLUMNS}
    scores = []
    for i, labels in enumerate(extra):
        n, b, p, c = (slice(*arrays[f"{x}_offset"][i : i + 2]) for x in ("note", "bar", "program", "chord"))
        chords = None
        if c.stop > c.start:
            columns = {k: arrays[f"chord_{k}"][c] for k in _CHORD_COLUMNS}
            columns["onset"] = columns["onset"].astype(np.int64)
            chords = ChordTable(**columns)
        scores.append(
            MetricScore(
                bars=BarTable.from_lengths(arrays["bar_length"][b].astype(np.int64), arrays["bar_meter"][b]),
                **{k: v[n] for k, v in notes.items()},
                programs=arrays["program"][p],
                tempo=arrays["bar_tempo"][b],
                key=labels["key"],
                chords=chords,
                names=tuple(labels["names"]),
                report=midi_codec.CodecReport(),
            )
        )
    return scores
