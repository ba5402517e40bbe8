"""One's own songs for fine-tuning: split into those to train on and those held out.

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

import math
import os
from collections.abc import Sequence

import numpy as np

from ..data.midi_sources import SPLITS
from ..data.open import read_songs as songs_of
from ..data.schema import Song
from ..data.song_reading import fingerprint
from ..models.errors_mortm import DataError, TrainingError


LEAST_SONGS = 3


def read_songs(inputs: Sequence[str | os.PathLike]) -> tuple[list[Song], list[dict[str, str]]]:
    """Every song that can be used, once, and `{"file", "reason"}` of the others (see `data.open.read_songs`).

    Args:
        inputs: MIDI files, folders, archives and packs, or one prepared data set.

    Raises:
        TrainingError: a data set among other inputs, a folder without music, something that is not there.
    """
    try:
        return songs_of(inputs)
    except DataError as error:
        raise TrainingError(str(error), "training.data") from None


def split_songs(songs: Sequence[Song], held_out: float, seed: int) -> dict[str, list[Song]]:
    """`{"train", "validation", "test"}`: by the songs' labels where they have any, else drawn, half of what is held
    out (one song at least) for the test. Copies go together: with the one that is held out the farthest.

    Args:
        songs: to split.
        held_out: part of them that is not trained on, where the labels do not say it.
        seed: of the draw.

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
