"""Human bars made wrong in one known way each: what a judge of quality has to notice.

Design decisions
- Every corruption is a pure function of (score, generator) and keeps what a judge could count: bars, tracks, meter,
  number of notes (but for notes that fall together), and the result obeys the grammar.
- One thing is broken and the rest is kept: shuffled bars keep every bar, a transposed voice keeps its melody and
  rhythm, jitter keeps all pitches, a key clash keeps every bar in itself.
- A draw that changed nothing (bars that are all alike) gives `None`, so that no human window is labelled as machine.

Knows: `MetricScore`. Must not know: tokens, models, labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..models.music_names import DRUMS
from ..models.music_score import MetricScore


JITTER_TICKS = 3  # most an onset moves: a 32nd note
CLASH_STEPS = (-6, -1, 1, 6)  # semitones to keys that share few notes


def tidy(
    score: MetricScore, onset: np.ndarray | None = None, pitch: np.ndarray | None = None, cut: bool = True
) -> MetricScore:
    """A score brought back into one legal form: sorted, one note for each (track, onset, pitch), no note longer than
    to the next of its pitch. Velocity is 90, tempo and names are dropped.

    Args:
        score: quantised music.
        onset: `[n_notes]` other onsets in ticks.
        pitch: `[n_notes]` other pitches.
        cut: no note lasts past the closing bar line.
    """
    onset = score.onset if onset is None else onset
    pitch = score.pitch if pitch is None else pitch
    order = np.lexsort((-score.duration, onset, pitch, score.track))
    track, pitch, onset, duration = score.track[order], pitch[order], onset[order], score.duration[order]
    alike = (track[1:] == track[:-1]) & (pitch[1:] == pitch[:-1])
    first = np.append(True, ~alike | (onset[1:] != onset[:-1]))[: len(order)]
    track, pitch, onset, duration = track[first], pitch[first], onset[first], duration[first]
    alike = (track[1:] == track[:-1]) & (pitch[1:] == pitch[:-1])
    duration[:-1] = np.where(alike, np.minimum(duration[:-1], onset[1:] - onset[:-1]), duration[:-1])
    if cut:
        duration = np.minimum(duration, score.bars.end - onset)
    order = np.lexsort((duration, pitch, onset, track))
    return replace(
        score,
        track=track[order],
        onset=onset[order],
        pitch=pitch[order],
        duration=duration[order],
        velocity=np.full(len(order), 90, dtype=np.int64),
        tempo=np.full(score.n_bars, -1, dtype=np.int16),
        key=None,
        chords=None,
        names=(),
        genres=(),
        explicit_velocity=False,
    )


def same_notes(one: MetricScore, other: MetricScore) -> bool:
    """Whether two scores hold the same notes.

    Args:
        one: a tidied score.
        other: a tidied score.
    """
    columns = ("track", "onset", "pitch", "duration")
    return one.n_notes == other.n_notes and all((getattr(one, c) == getattr(other, c)).all() for c in columns)


def shuffle_bars(score: MetricScore, rng: np.random.Generator) -> MetricScore | None:
    """The bars in another order, the same for all tracks; `None` where they are not all of one length.

    Args:
        score: a tidied window.
        rng: decides the order.
    """
    length = score.bars.length
    if not score.n_bars or (length != length[0]).any():
        return None
    bar = score.bar_of_notes()
    place = rng.permutation(score.n_bars)
    return tidy(score, onset=score.onset + (place[bar] - bar) * int(length[0]))


def transpose_voice(score: MetricScore, rng: np.random.Generator) -> MetricScore | None:
    """One pitched track moved against the others by one to six semitones; where there is one track only, its notes
    from the median pitch upward; `None` where nothing is pitched, or the range would be left.

    Args:
        score: a tidied window.
        rng: decides track and interval.
    """
    pitched = np.flatnonzero(score.programs != DRUMS)
    pitched = pitched[np.isin(pitched, score.track)]
    if not len(pitched):
        return None
    voice = int(rng.choice(pitched))
    moved = score.track == voice
    if len(pitched) == 1:
        moved &= score.pitch > np.median(score.pitch[moved])
    return _moved(score, moved, int(rng.integers(1, 7)) * int(rng.choice((-1, 1))))


def jitter_onsets(score: MetricScore, rng: np.random.Generator) -> MetricScore | None:
    """Every onset moved by up to `JITTER_TICKS` ticks (chords stay together), inside its bar.

    Args:
        score: a tidied window.
        rng: decides the steps.
    """
    bar = score.bar_of_notes()
    _, chord = np.unique(score.track * (score.bars.end + 1) + score.onset, return_inverse=True)
    step = rng.integers(-JITTER_TICKS, JITTER_TICKS + 1, int(chord.max(initial=-1)) + 1)[chord]
    low, high = score.bars.start[bar], score.bars.start[bar + 1] - 1
    return tidy(score, onset=np.clip(score.onset + step, low, high))


def clash_keys(score: MetricScore, rng: np.random.Generator) -> MetricScore | None:
    """Half of the bars in another key: all pitched notes in them moved by a semitone or a tritone; `None` where the
    range would be left.

    Args:
        score: a tidied window.
        rng: decides bars and interval.
    """
    foreign = rng.permutation(score.n_bars) < score.n_bars // 2
    moved = foreign[score.bar_of_notes()] & (score.programs[score.track] != DRUMS)
    return _moved(score, moved, int(rng.choice(CLASH_STEPS)))


def _moved(score: MetricScore, moved: np.ndarray, semitones: int) -> MetricScore | None:
    pitch = np.where(moved, score.pitch + semitones, score.pitch)
    if len(pitch) and (pitch.min() < 0 or pitch.max() > 127):
        pitch = np.where(moved, score.pitch - semitones, score.pitch)
    if len(pitch) and (pitch.min() < 0 or pitch.max() > 127):
        return None
    return tidy(score, pitch=pitch)


CORRUPTIONS: dict[str, Callable[[MetricScore, np.random.Generator], MetricScore | None]] = {
    "shuffled bars": shuffle_bars,
    "transposed voice": transpose_voice,
    "jittered onsets": jitter_onsets,
    "key clash": clash_keys,
}


def corrupt(kind: str, score: MetricScore, rng: np.random.Generator, tries: int = 8) -> MetricScore | None:
    """A score corrupted in one way, certain to differ from `tidy(score)`; `None` where this music cannot be.

    Args:
        kind: a key of `CORRUPTIONS`.
        score: a window.
        rng: decides how.
        tries: draws before it is given up.

    Raises:
        KeyError: no corruption of this name.
    """
    clean = tidy(score)
    for _ in range(tries):
        broken = CORRUPTIONS[kind](clean, rng)
        if broken is not None and not same_notes(broken, clean):
            return broken
    return None
