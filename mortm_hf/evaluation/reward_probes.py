"""What a reward can be tricked with: windows changed in length, density or repetition alone.

Design decisions
- A policy that is paid by a model looks for what that model mistakes for quality. So human windows are changed along
  one simple axis at a time and scored again: a reward that rises where the music gets worse can be hacked there.
- Every change starts from the same human windows and draws from a given generator, so that figures are paired.

Knows: `MetricScore`. Must not know: models, tokens, rewards.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..data.corruptions import tidy
from ..models.music_names import DRUMS
from ..models.music_score import MetricScore


DENSITIES = (0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
LENGTHS = (1, 2, 4, 8)
LOOPS = (8, 4, 2, 1)  # bars of the pattern that is repeated; 8: as written


def with_density(score: MetricScore, factor: float, rng: np.random.Generator) -> MetricScore:
    """About `factor` times the notes: below 1 random notes go (every track keeps one), above 1 random notes are
    doubled an octave away (drums: on another onset of their bar).

    Args:
        score: a window.
        factor: of the number of notes.
        rng: decides which notes.
    """
    n = score.n_notes
    if factor <= 1:
        rank = rng.permutation(n)
        kept = rank < round(factor * n)
        first = np.unique(score.track, return_index=True)[1]
        kept[first] = True
        rows = np.flatnonzero(kept)
        return _rows(score, rows, score.onset[rows], score.pitch[rows])
    extra = rng.permutation(n)[: round((factor - 1) * n)]
    onset, pitch = score.onset[extra].copy(), score.pitch[extra].copy()
    drum = score.programs[score.track[extra]] == DRUMS
    pitch[~drum] += np.where(pitch[~drum] > 64, -12, 12)
    bar = score.bars.of(onset)
    places = score.bars.start[bar] + (rng.random(len(extra)) * score.bars.length[bar]).astype(np.int64) // 6 * 6
    onset[drum] = places[drum]
    rows = np.concatenate([np.arange(n), extra])
    return _rows(score, rows, np.concatenate([score.onset, onset]), np.concatenate([score.pitch, pitch]))


def _rows(score: MetricScore, rows: np.ndarray, onset: np.ndarray, pitch: np.ndarray) -> MetricScore:
    columns = {name: getattr(score, name)[rows] for name in ("track", "duration", "velocity")}
    return tidy(replace(score, onset=onset, pitch=pitch, **columns))


def looped(score: MetricScore, bars: int) -> MetricScore:
    """The first bars over and over, as long as the window.

    Args:
        score: a window of bars of one length.
        bars: of the pattern.
    """
    length = int(score.bars.length[0])
    head = score.window(0, bars)
    times = -(-score.n_bars // bars)
    turn = np.repeat(np.arange(times), head.n_notes)
    rows = np.tile(np.arange(head.n_notes), times)
    onset = head.onset[rows] + turn * bars * length
    inside = onset < score.bars.end
    columns = {name: getattr(head, name)[rows][inside] for name in ("track", "pitch", "duration", "velocity")}
    return tidy(replace(score, onset=onset[inside], **columns))


def shortened(score: MetricScore, bars: int) -> MetricScore:
    """The first bars of a window, tidied; tracks that are silent there go.

    Args:
        score: a window.
        bars: how many.
    """
    head = score.window(0, bars)
    return tidy(head.take_tracks(head.sounding_tracks()))


def held_notes(score: MetricScore) -> MetricScore:
    """The cheapest grammatical answer: in every bar the first note of each track, held to the bar line."""
    cell = score.track * score.n_bars + score.bar_of_notes()
    first = np.unique(cell, return_index=True)[1]
    bar = score.bar_of_notes()[first]
    onset = score.bars.start[bar]
    held = replace(score, duration=score.bars.length[score.bar_of_notes()])
    return _rows(held, first, onset, score.pitch[first])


def one_pitch(score: MetricScore) -> MetricScore:
    """The rhythm as written, every track on its commonest pitch."""
    table = np.bincount(score.track * 128 + score.pitch, minlength=score.n_tracks * 128).reshape(-1, 128)
    return tidy(score, pitch=table.argmax(axis=1)[score.track])
