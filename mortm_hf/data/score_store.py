"""Songs for training and evaluation: a sequence with its corpora, from a data set on disk or from memory.

Design decisions
- On disk is the Arrow data set of `build_dataset`; a `ScoreStore` is a view of it (or of songs in memory) that hands
  out songs by index. Windows, tasks and transpositions are drawn from it afresh every epoch.
- `build_store` takes whatever a recipe names: a prepared data set, a training pack, or MIDI to be prepared first.

Knows: songs, data sets of songs. Must not know: tokens, models.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from .build import BuildOptions, build_dataset, build_from, read_entries, save_splits, write_report
from .data_errors import DataError
from .dataset import read_report, song_rows
from .manifest import Selection, read_manifest
from .schema import FORMAT_VERSION, Song, SongRows, table_of
from .song_reading import read_song
from .sources import PackSource, is_hub_name, is_pack, is_saved_dataset


__all__ = ["ScoreStore", "Song", "build_store", "load_songs", "read_song"]


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
        """`[n]` one label of every song (`corpus`, `genre`, ...), without reading the songs."""
        return self.songs.labels(name) if isinstance(self.songs, SongRows) else [getattr(s, name) for s in self.songs]

    def n_bars(self) -> np.ndarray:
        """`[n]` int64 bars of every song, without reading the songs."""
        if isinstance(self.songs, SongRows):
            return self.songs.lengths("bar_length")
        return np.array([song.score.n_bars for song in self.songs], dtype=np.int64)

    def save(self, folder: str | Path) -> None:
        """Write the store as a data set of songs; an existing one is replaced in one rename."""
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

    @classmethod
    def load(cls, folder: str | Path, split: str | None = None) -> ScoreStore:
        """Open a data set of songs; all splits one after the other without `split`.

        Raises:
            DataError: it is not there, or was written by another version of the format.
        """
        report = read_report(folder) if not isinstance(folder, str) or os.path.isdir(folder) else {}
        skipped = [(p["file"], p["message"]) for p in report.get("skipped", ())]
        return cls(song_rows(folder, split), skipped)


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
    report = read_report(source) if isinstance(source, (str, os.PathLike)) and os.path.isdir(source) else {}
    return ScoreStore(rows, [(p["file"], p["message"]) for p in report.get("skipped", ())])


def build_store(
    root: str | Path, selection: Selection, split: str, cache: str | Path | None = None, num_proc: int | None = None
) -> ScoreStore:
    """The chosen songs of one split, whatever `root` is.

    Args:
        root: a prepared data set (folder or `owner/name`), a training pack, or any source of `build_dataset`.
        selection: corpora, variants and licences; one that names no corpus takes everything.
        split: `"train"`, `"validation"` or `"test"`.
        cache: folder for what is prepared here; the same choice of the same pack is opened again instead of built.
            Without it a pack is read into memory; other sources need it.

    Files that cannot be read are listed in `skipped` with the reason; they never end the build. Packs keep only
    annotated chords here (as every run of a recipe on a pack had them).

    Raises:
        DataError: no songs there, or no place to prepare them.
        FileNotFoundError: no pack there (the message names the folder).
    """
    path = Path(root)
    if is_pack(path) or (path.is_dir() and selection.corpora and not is_saved_dataset(path)):
        return _from_pack(path, selection, split, cache, num_proc)
    if is_saved_dataset(path) or is_hub_name(str(root)):
        return load_songs(str(root), split, selection)
    if not path.exists():
        read_manifest(root)  # says what is expected there
    if cache is None:
        raise DataError(f"{root} must be prepared first: `mortm data build {root} -o FOLDER`, or give a cache folder")
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    target = Path(cache) / f"songs-{name}"
    data = build_dataset(str(root), target, num_proc=num_proc, overwrite=True)
    if split not in data and split != "train":
        return ScoreStore([])
    return load_songs(str(target), split, selection)


def _from_pack(root: Path, selection: Selection, split: str, cache, num_proc) -> ScoreStore:
    source = PackSource.select(root, selection, split)
    options = BuildOptions(chords="annotated")
    if cache is None or not len(source):
        songs, skipped = [], []
        for chunk in source.chunks(options.chunk_files):
            more, problems = read_entries(chunk.load(), options)
            songs += more
            skipped += [(p["file"], p["message"]) for p in problems]
        return ScoreStore(songs, skipped)
    text = json.dumps([FORMAT_VERSION, [asdict(row) for row in source.rows]], sort_keys=True)
    target = Path(cache) / f"{split}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if not is_saved_dataset(target):
        build_from([source], target, options, num_proc=num_proc or 1)
    return ScoreStore.load(target)
