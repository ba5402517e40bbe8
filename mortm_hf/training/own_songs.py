"""One's own songs for fine-tuning: read once each, and split into those to train on and those held out.

Design decisions
- Songs, not windows, are held out, and copies of a song (in another key, with other velocities, or of one cluster by
  its label) go where it goes, so that the figures are of music that nothing was fitted to. The very same notes under
  two names count once.
- A folder brings what stands beside its files (chord annotations, a `metadata.csv` with genres, keys and splits);
  chords that nobody wrote down are estimated, as in every data set. A prepared data set brings all of that.
- A song that is labelled as held out is never trained on; what the labels leave open is drawn.

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
from ..data.midi_sources import MIDI_SUFFIXES, FilesSource, FolderSource
from ..data.schema import Song
from ..data.score_store import load_songs
from ..data.song_reading import fingerprint
from ..data.sources import is_saved_dataset
from ..models.errors_mortm import TrainingError
from ..models.music_score import MetricScore


CORPUS = "songs"
LEAST_SONGS = 3
SPLITS = ("train", "validation", "test")
_CHUNK = 32  # files between two steps of the progress bar


def read_songs(
    inputs: Sequence[str | os.PathLike], chords: str = "estimate"
) -> tuple[list[Song], list[dict[str, str]]]:
    """Every song that can be used, once, and `{"file", "reason"}` of the others.

    Args:
        inputs: MIDI files and folders of them, or one prepared data set.
        chords: "estimate" where nobody wrote them down, or "annotated": only those that somebody did.

    Raises:
        TrainingError: a data set among other inputs, a folder without music, something that is not there.
    """
    paths = [Path(one) for one in inputs]
    prepared = next((path for path in paths if is_saved_dataset(path)), None)
    if prepared is not None:
        if len(paths) > 1:
            raise TrainingError(f"{prepared} is a prepared data set: it can only be read alone", "training.data")
        store = load_songs(str(prepared), estimated_chords=chords == "estimate")
        return _once(list(store.songs), [{"file": name, "reason": reason} for name, reason in store.skipped])
    songs, skipped, files = [], [], []
    for path in paths:
        if not path.exists():
            raise TrainingError(f"{path} is not there", "training.data")
        if path.is_dir():
            source = FolderSource(path, split_from_folders=False)
            if not len(source):
                raise TrainingError(f"no MIDI file in the folder {path}", "training.data")
            _read(source, {row.path: str(path / row.path) for row in source.rows}, chords, songs, skipped)
        elif path.name.lower().endswith(MIDI_SUFFIXES):
            files.append(path)
        else:
            skipped.append({"file": str(path), "reason": "no MIDI file"})
    if files:
        source = FilesSource(files, split_from_folders=False)
        given = {file.resolve().relative_to(source.path).as_posix(): str(file) for file in files}
        _read(source, given, chords, songs, skipped)
    return _once(songs, skipped)


def _read(source, given: dict[str, str], chords: str, songs: list[Song], skipped: list[dict[str, str]]) -> None:
    """Adds the songs of a source under the names that were `given` for its files, with the splits of their labels."""
    from tqdm import tqdm

    labelled = {row.path: row.split for row in source.rows}
    skipped += [{"file": name, "reason": "the metadata names it, but it is no MIDI file"} for name in source.unmatched]
    with tqdm(total=len(source), desc="reading", unit="file", disable=None, leave=False) as bar:
        for chunk in source.chunks(_CHUNK):
            found, problems = read_entries(chunk.load(), BuildOptions(chords=chords))
            songs += [replace(song, path=given[song.path], split=labelled[song.path]) for song in found]
            for problem in problems:
                name, note = problem["file"].removesuffix(" (chords)"), problem["message"]
                note = f"its chord annotation is left out: {note}" if name != problem["file"] else note
                skipped.append({"file": given[name], "reason": note})
            bar.update(chunk.size)


def _once(songs: list[Song], skipped: list[dict[str, str]]) -> tuple[list[Song], list[dict[str, str]]]:
    """The first of songs with the very same notes, held out as far as any of them is."""
    kept: dict[str, Song] = {}
    for song in songs:
        digest = _digest(song.score)
        first = kept.get(digest)
        if first is None:
            kept[digest] = replace(song, corpus=CORPUS, song_id=digest[:16])
            continue
        skipped.append({"file": song.path, "reason": f"the same notes as {first.path}"})
        farthest = max(first.split, song.split, key=("", *SPLITS).index)
        kept[digest] = replace(first, split=farthest, genre=first.genre or song.genre)
    return list(kept.values()), skipped


def _digest(score: MetricScore) -> str:
    """Identifies the notes of a score, instruments and lengths included."""
    columns = (score.programs[score.track], score.onset, score.pitch, score.duration)
    return hashlib.sha256(np.stack([np.asarray(c, np.int64) for c in columns]).tobytes()).hexdigest()


def split_songs(songs: Sequence[Song], held_out: float, seed: int) -> dict[str, list[Song]]:
    """`{"train", "validation", "test"}`: by the songs' labels where they have any, else drawn, half of what is held
    out (one song at least) for the test. Copies go together: with the one that is held out the farthest.

    Raises:
        TrainingError: fewer than three songs, or all of them are labelled as held out.
    """
    ordered = sorted(songs, key=lambda song: song.song_id)  # by what is in them, not by the names of the files
    groups = _groups(ordered)
    names = sorted(set(groups))
    if len(names) < LEAST_SONGS:
        copies = f", {len(names)} without copies in other keys" if len(names) < len(songs) else ""
        raise TrainingError(
            f"{len(songs)} songs that can be used{copies}: fine-tuning needs {LEAST_SONGS} at least, 50 are a good "
            "start",
            "training.data",
        )
    place: dict[str, str] = {}
    for song, group in zip(ordered, groups):
        if song.split in SPLITS[1:] and place.get(group) != "test":
            place[group] = song.split
    free = [name for name in names if name not in place]
    if not free:
        raise TrainingError("every song is labelled as held out: none is left to train on", "training.data")
    held = min(max(1, round(held_out * len(names))), len(names) - 2)
    wanted = {"test": math.ceil(held / 2), "validation": held // 2}
    order = [free[i] for i in np.random.default_rng(seed).permutation(len(free))]
    for name, count in wanted.items():
        if name not in place.values():
            count = min(count, len(order) - 1)
            place |= dict.fromkeys(order[:count], name)
            order = order[count:]
    return {name: [s for s, g in zip(ordered, groups) if place.get(g, "train") == name] for name in SPLITS}


def _groups(songs: Sequence[Song]) -> list[str]:
    """`[n]` name of the group of each song: songs of one cluster or of the same notes in any key, and what hangs
    together by both."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    pairs = [(f"cluster {song.cluster}", f"notes {fingerprint(song.score)}") for song in songs]
    for a, b in pairs:
        parent[max(root(a), root(b))] = min(root(a), root(b))
    return [root(a) for a, _ in pairs]
