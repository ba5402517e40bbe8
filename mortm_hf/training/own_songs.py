"""One's own songs for fine-tuning: read once each, and parted into those to train on and those held out.

Design decisions
- Songs, not windows, are held out, and copies of a song (in another key, with other velocities) go where it goes, so
  that the figures are of music that nothing was fitted to. The very same notes under two names count once.
- Files bring what stands beside them (chord annotations, a `metadata.csv` with genres and keys); chords that nobody
  wrote down are estimated, as in every data set. A prepared data set brings all of that, and its own splits.

Knows: sources of songs. Must not know: tokens, models, runs.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..data.build import BuildOptions, read_entries
from ..data.sources import MIDI_SUFFIXES, FilesSource, FolderSource, is_saved_dataset
from ..data.store import Song, load_songs
from ..models.midi_codec import MetricScore
from .errors import TrainingError


CORPUS = "songs"
LEAST_SONGS = 3
SPLITS = ("train", "validation", "test")
_CHUNK = 32  # files between two steps of the progress bar


def read_songs(files: Sequence[str | os.PathLike]) -> tuple[list[Song], list[dict[str, str]]]:
    """Every song that can be used, once, and `{"file", "reason"}` of the others.

    Args:
        files: MIDI files, or one folder: of MIDI files with what stands beside them, or a prepared data set.
    """
    folder = Path(files[0]) if len(files) == 1 and Path(files[0]).is_dir() else None
    if folder is not None and is_saved_dataset(folder):
        store = load_songs(str(folder))
        return _once(list(store.songs), [{"file": name, "reason": reason} for name, reason in store.skipped])
    if folder is not None:
        source = FolderSource(folder, split_from_folders=False)
        return _once(*_read(source, {row.path: str(folder / row.path) for row in source.rows}, []))
    there = [Path(file) for file in files if Path(file).is_file() and str(file).lower().endswith(MIDI_SUFFIXES)]
    skipped = [
        {"file": os.fspath(file), "reason": "no MIDI file" if Path(file).exists() else "not there"}
        for file in files
        if Path(file) not in there
    ]
    if not there:
        return [], skipped
    source = FilesSource(there, split_from_folders=False)
    given = {file.resolve().relative_to(source.path).as_posix(): str(file) for file in there}
    return _once(*_read(source, given, skipped))


def _read(source, given: dict[str, str], skipped: list) -> tuple[list[Song], list[dict[str, str]]]:
    """The songs of a source under the names that were given for its files."""
    from tqdm import tqdm

    songs = []
    with tqdm(total=len(source), desc="reading", unit="file", disable=None, leave=False) as bar:
        for chunk in source.chunks(_CHUNK):
            found, problems = read_entries(chunk.load(), BuildOptions(chords="estimate"))
            songs += [replace(song, path=given[song.path], split="") for song in found]
            for problem in problems:
                name, note = problem["file"].removesuffix(" (chords)"), problem["message"]
                note = f"its chord annotation is left out: {note}" if name != problem["file"] else note
                skipped.append({"file": given[name], "reason": note})
            bar.update(chunk.size)
    return songs, skipped


def _once(songs: list[Song], skipped: list[dict[str, str]]) -> tuple[list[Song], list[dict[str, str]]]:
    kept, seen = [], {}
    for song in songs:
        mark = _mark(song.score)
        if mark in seen:
            skipped.append({"file": song.path, "reason": f"the same notes as {seen[mark]}"})
            continue
        seen[mark] = song.path
        kept.append(replace(song, corpus=CORPUS, song_id=mark[:16]))
    return kept, skipped


def _mark(score: MetricScore) -> str:
    """Identifies the notes of a score, instruments and lengths included."""
    columns = (score.programs[score.track], score.onset, score.pitch, score.duration)
    return hashlib.sha256(np.stack([np.asarray(c, np.int64) for c in columns]).tobytes()).hexdigest()


def part_songs(songs: Sequence[Song], held_out: float, seed: int) -> dict[str, list[Song]]:
    """`{"train", "validation", "test"}`: the songs' own splits where they name all three, else drawn by cluster; half
    of what is held out (one at least) is for the test.

    Raises:
        TrainingError: fewer than three songs.
    """
    ordered = sorted(songs, key=lambda song: song.song_id)  # by what is in them, not by the names of the files
    clusters = sorted({song.cluster for song in songs})
    if len(clusters) < LEAST_SONGS:
        copies = f", counting copies in other keys once: {len(clusters)}" if len(clusters) < len(songs) else ""
        raise TrainingError(
            f"{len(songs)} songs that can be used{copies}; fine-tuning needs {LEAST_SONGS} at least, 50 are a good "
            "start",
            "training.data",
        )
    if {song.split for song in songs} >= set(SPLITS):
        return {name: [song for song in ordered if song.split == name] for name in SPLITS}
    order = np.random.default_rng(seed).permutation(len(clusters))
    held = min(max(1, round(held_out * len(clusters))), len(clusters) - 2)
    test = math.ceil(held / 2)
    parts = np.split(order, [test, held])
    place = {clusters[i]: name for name, rows in zip(("test", "validation", "train"), parts) for i in rows}
    return {name: [song for song in ordered if place[song.cluster] == name] for name in SPLITS}
