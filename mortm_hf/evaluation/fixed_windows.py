"""The fixed windows on which every model is measured.

Design decisions
- Of every song the consecutive windows of 16 bars (8 given, 8 generated) from bar 0; what is left at the end of a
  song is not used. They are listed in a file, so that another model, or this one a year later, is measured on the
  same music.
- A window becomes one document by the prompt builder: header, the past of all sounding tracks, the generated field.
  The header states instruments, bar count, genre, meter, tempo and key (the song's annotation, else an estimate from
  the given bars), never the density, which is derived from the answer.
- Notes are counted distinct (track, onset, pitch, duration); velocity is off.

Knows: songs, the prompt builder. Must not know: models, probabilities.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.schema import Song
from ..data.score_store import ScoreStore
from ..models.music_names import GENRES
from ..models.prompt_building import training_example
from ..models.token_headers import FROM_ANSWER
from ..models.token_vocabulary import MetricVocabulary


GIVEN, GENERATED = 8, 8


@dataclass(frozen=True)
class Window:
    """Bars `[start, start + 8)` are given and the eight after them are asked for.

    Attributes:
        path: of the song.
        start: first bar.
    """

    path: str
    start: int


@dataclass(frozen=True)
class Encoded:
    """A window as tokens.

    Attributes:
        window: which it is.
        corpus: of the song.
        cluster: of the song.
        ids: `[n]`.
        answer: first position of the generated field (its tokens, `<TE>` included, are scored).
        notes: distinct notes in the generated field.
    """

    window: Window
    corpus: str
    cluster: str
    ids: np.ndarray
    answer: int
    notes: int


def fixed_windows(store: ScoreStore, given: int = GIVEN, generated: int = GENERATED) -> list[Window]:
    """Consecutive whole windows from bar 0 of every song, in the order of the store.

    Args:
        store: the songs.
        given: bars given.
        generated: bars asked for.
    """
    size = given + generated
    return [Window(s.path, at) for s in store.songs for at in range(0, s.score.n_bars - size + 1, size)]


def window_bars(songs: Iterable[Song]) -> int:
    """Bars given and new in a window of these songs: 8 and 8, fewer where most of them are shorter than that."""
    bars = np.array([song.score.n_bars for song in songs])
    return next((n for n in (8, 4, 2) if (bars >= 2 * n).mean() > 0.5), 1) if len(bars) else GIVEN


def write_windows(path: str | Path, windows: Iterable[Window]) -> None:
    """Write a CSV of (path, start).

    Args:
        path: of the file.
        windows: the windows.
    """
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["path", "start"])
        writer.writerows([w.path, w.start] for w in windows)


def read_windows(path: str | Path) -> list[Window]:
    """The windows of a CSV that `write_windows` wrote."""
    with open(path, newline="", encoding="utf-8") as handle:
        return [Window(row["path"], int(row["start"])) for row in csv.DictReader(handle)]


def encode_windows(
    vocabulary: MetricVocabulary,
    store: ScoreStore,
    windows: list[Window],
    max_length: int,
    given: int = GIVEN,
    generated: int = GENERATED,
) -> tuple[list[Encoded], list[tuple[Window, str]]]:
    """Windows as tokens.

    Args:
        vocabulary: the token table.
        store: the songs.
        windows: of these songs.
        max_length: most tokens of a window.
        given: bars given.
        generated: bars asked for.

    Returns:
        The encoded windows, and `(window, reason)` of those left out (no notes to generate, too long).

    Raises:
        KeyError: a window names a song that the store does not hold.
    """
    songs = {song.path: song for song in store.songs}
    encoded, left_out = [], []
    for window in windows:
        song = songs[window.path]
        middle, stop = window.start + given, window.start + given + generated
        tracks = song.score.window(middle, stop).sounding_tracks()
        if not len(tracks):
            left_out.append((window, "no notes in the generated bars"))
            continue
        try:
            ids, answer = training_example(
                vocabulary,
                song.score,
                middle,
                generated,
                past_bars=given,
                targets=tracks,
                genres=(GENRES.index(song.genre),) if song.genre else (),
                omit=FROM_ANSWER,
                max_length=max_length,
            )
        except ValueError as error:
            left_out.append((window, str(error)))
            continue
        notes = song.score.window(middle, stop).n_notes
        encoded.append(Encoded(window, song.corpus, song.cluster, ids, answer, notes))
    return encoded, left_out
