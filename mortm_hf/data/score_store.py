"""Songs for training and evaluation: a sequence with its corpora, from a data set on disk or from memory.

Design decisions
- On disk is the Arrow data set of `build_dataset`; a `ScoreStore` is a view of it (or of songs in memory) that hands
  out songs by index. Windows, tasks and transpositions are drawn from it afresh every epoch.

Knows: songs, prepared data sets. Must not know: tokens, models, how MIDI is prepared.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .dataset import read_report, save_splits, song_rows, write_report
from .manifest import Selection
from .schema import Song, SongRows, table_of


class ScoreStore:
    """Songs, on disk or in memory; `store[i]` is a `Song`.

    Attributes:
        songs: sequence of `Song`.
        skipped: `[(path, reason)]` of files that could not be used.
    """

    def __init__(self, songs: Sequence[Song], skipped: list[tuple[str, str]] | None = None):
        self.songs = songs
        self.skipped = list(skipped or [])

    def __len__(self) -> int:
        return len(self.songs)

    def __getitem__(self, index: int) -> Song:
        return self.songs[index]

    def corpora(self) -> dict[str, np.ndarray]:
        """`{corpus: indices of its songs}`, in the order of first appearance."""
        found: dict[str, list[int]] = defaultdict(list)
        for index, corpus in enumerate(self.labels("corpus")):
            found[corpus].append(index)
        return {name: np.array(rows) for name, rows in found.items()}

    def labels(self, name: str) -> list:
        """`[n]` one label of every song, without reading the songs.

        Args:
            name: a label of `Song`: "corpus", "genre", "path", ...
        """
        return self.songs.labels(name) if isinstance(self.songs, SongRows) else [getattr(s, name) for s in self.songs]

    def n_bars(self) -> np.ndarray:
        """`[n]` int64 bars of every song, without reading the songs."""
        if isinstance(self.songs, SongRows):
            return self.songs.lengths("bar_length")
        return np.array([song.score.n_bars for song in self.songs], dtype=np.int64)

    def save(self, folder: str | Path) -> None:
        """Write the store as a data set of songs.

        Args:
            folder: the folder to make; an existing one is replaced in one rename.
        """
        from datasets import Dataset

        folder = Path(folder)
        partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
        by_split = {s: [x for x in self.songs if x.split == s] for s in dict.fromkeys(self.labels("split"))}
        splits = {name or "train": Dataset(table_of(songs)) for name, songs in by_split.items()}
        save_splits(splits, partial)
        skipped = [{"file": f, "code": "", "message": m} for f, m in self.skipped]
        write_report(partial, {"digest": ""}, len(self) + len(skipped), splits, skipped)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)


def load_songs(
    source,
    split: str | None = None,
    selection: Selection | None = None,
    estimated_chords: bool = True,
    revision: str | None = None,
) -> ScoreStore:
    """The songs of a prepared data set.

    Args:
        source: the folder that `build_dataset` made, `owner/name` on the Hub, or a `datasets` object.
        split: "train", "validation" or "test"; by default all songs.
        selection: only these corpora, variants and licences (its splits do not matter); all where it names none.
        estimated_chords: keep the chords that are a guess of the recogniser.
        revision: branch, tag or commit of a data set on the Hub.

    Returns:
        `ScoreStore`: `store[i].score` holds notes, bars, chords and key of song `i`.

    Raises:
        DataError: no such data set or split.
    """
    rows = song_rows(source, split, revision)
    if selection is not None and selection.corpora:
        labels = [rows.labels(name) for name in ("corpus", "variant", "licence")]
        kept = [i for i, one in enumerate(zip(*labels)) if selection.takes(*one)]
        if len(kept) < len(rows):
            rows = SongRows(rows.dataset.select(kept))
    if not estimated_chords:
        rows = rows.without_estimates()
    return ScoreStore(rows, [(p["file"], p["message"]) for p in read_report(source).get("skipped", ())])
