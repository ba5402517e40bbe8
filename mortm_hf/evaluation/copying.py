"""How much of a passage stands note for note in the training set.

Design decisions
- A note of a track is compared by its interval and onset step from the note before it and by its duration: copies in
  another key, at another place or on another instrument are found. Drums keep their pitches (a kit does not
  transpose).
- Matching is exact and of any length. Hashes (64 bit) of all runs of n notes are rolled from those of n - 1; a place
  of the training set stays in the race only while a run that begins there occurs in the passages, and the other way
  round, so every further length costs less. No Python loop runs over notes.
- A small model repeats clichés as composers do: figures are read beside those of the human test passages.

Knows: quantised music. Must not know: models, tokens, files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..models.music_names import DRUMS
from ..models.music_score import MetricScore
from .ngrams import rolled


LENGTHS = (4, 8, 16)  # notes of the n-grams whose share is reported


@dataclass(frozen=True)
class Lines:
    """Tracks end to end.

    Attributes:
        step: `[n]` uint64 hash of (interval, onset step, duration) of each note from the one before; of the first note
            of a run only the duration counts, see `first`.
        first: `[n]` uint64 hash of the duration (drums: and the pitch) alone.
        stop: `[n]` index after the last note of the same track.
        owner: `[n]` index of the passage.
    """

    step: np.ndarray
    first: np.ndarray
    stop: np.ndarray
    owner: np.ndarray

    @classmethod
    def of(cls, passages: Iterable[MetricScore]) -> Lines:
        """Join passages."""
        columns: list[list[np.ndarray]] = [[], [], [], [], [], []]
        tracks = 0
        for number, score in enumerate(passages):
            drum = (score.programs == DRUMS)[score.track] if score.n_notes else np.zeros(0, bool)
            parts = (score.pitch, score.onset, score.duration, score.track + tracks, drum)
            for column, part in zip(columns, (*parts, np.full(score.n_notes, number))):
                column.append(part)
            tracks += score.n_tracks
        if not columns[0]:
            empty = np.zeros(0, np.uint64)
            return cls(empty, empty, np.zeros(0, np.int64), np.zeros(0, np.int64))
        pitch, onset, duration, track, drum, owner = (np.concatenate(c) for c in columns)
        # how a note is named: its duration, on drums with its pitch; runs of drums and of pitches never meet
        name = np.where(drum, (pitch + 1) * 100_000 + duration, duration)
        seed = np.full(len(pitch), 0x51ED, dtype=np.uint64)
        first = rolled(seed, name)
        step = np.zeros(len(pitch), dtype=np.uint64)
        if len(pitch):
            interval = np.where(drum[1:], 0, np.diff(pitch) + 200)
            step[1:] = rolled(rolled(first[1:], interval), np.diff(onset) + (1 << 20))
        ends = np.flatnonzero(np.append(track[1:] != track[:-1], True)) + 1 if len(track) else np.zeros(0, np.int64)
        stop = ends[np.searchsorted(ends, np.arange(len(track)), side="right")] if len(track) else ends
        return cls(step, first, stop, owner)


@dataclass
class CopyReport:
    """What of each passage stands in the training set.

    Attributes:
        longest: `[passages]` notes of the longest run found there.
        shared: `{n: ([passages] n-grams found, [passages] n-grams)}` for `LENGTHS`.
    """

    longest: np.ndarray
    shared: dict[int, tuple[np.ndarray, np.ndarray]]

    def summary(self) -> dict:
        """Mean, median and greatest longest run; share of n-grams found, pooled."""
        if not len(self.longest):
            return {}
        found = {
            "longest_run_mean": float(self.longest.mean()),
            "longest_run_median": float(np.median(self.longest)),
            "longest_run_max": int(self.longest.max()),
        }
        for n, (hits, total) in self.shared.items():
            found[f"{n}_note_runs_in_train"] = float(hits.sum() / total.sum()) if total.sum() else None
        return found


def copied_from(train: Iterable[MetricScore], passages: Sequence[MetricScore]) -> CopyReport:
    """Look up every run of notes of the passages in the training songs.

    Args:
        train: songs.
        passages: generated or human music.
    """
    theirs, ours = Lines.of(train), Lines.of(passages)
    count = len(passages)
    longest = np.zeros(count, dtype=np.int64)
    shared = {n: (np.zeros(count, np.int64), np.zeros(count, np.int64)) for n in LENGTHS}
    for n in LENGTHS:
        fits = ours.stop - np.arange(len(ours.stop)) >= n
        shared[n] = (shared[n][0], np.bincount(ours.owner[fits], minlength=count))
    # places where a run of `n` notes may begin, and the hashes of these runs
    place, other = np.arange(len(ours.first)), np.arange(len(theirs.first))
    state, known = ours.first, theirs.first
    n = 1
    while len(place) and len(other):
        common = np.intersect1d(state, known)
        kept, left = np.isin(state, common), np.isin(known, common)
        place, state, other, known = place[kept], state[kept], other[left], known[left]
        owners = np.unique(ours.owner[place])
        longest[owners] = n
        if n in shared:
            shared[n] = (np.bincount(ours.owner[place], minlength=count), shared[n][1])
        # one note more, where the track has one
        kept, left = place + n < ours.stop[place], other + n < theirs.stop[other]
        place, state, other, known = place[kept], state[kept], other[left], known[left]
        state, known = rolled(state, ours.step[place + n]), rolled(known, theirs.step[other + n])
        n += 1
    return CopyReport(longest, shared)
