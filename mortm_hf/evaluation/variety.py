"""How varied generated bars are, beside what a human wrote on the same windows.

Design decisions
- Figures are taken from quantised notes, never from tokens, so that any model can be measured.
- A figure is read as a difference to that of human passages, since neither more nor less is better by itself.

Knows: quantised music, windows. Must not know: models, tokens, training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..data.labelled_windows import evenly
from ..models.music_names import DRUMS
from ..models.music_score import MetricScore
from .fixed_windows import Encoded


def spread_windows(windows: Sequence[Encoded], count: int) -> list[Encoded]:
    """Windows taken from the corpora in turn, evenly over each.

    Args:
        windows: encoded windows.
        count: how many.
    """
    groups: dict[str, list[Encoded]] = {}
    for window in windows:
        groups.setdefault(window.corpus, []).append(window)
    share = max(1, -(-count // max(len(groups), 1)))
    return [window for group in groups.values() for window in evenly(group, share)][:count]


def variety(passages: Sequence[tuple[MetricScore, MetricScore | None]]) -> dict[str, float]:
    """Figures of (answer, past) passages.

    Returns:
        `notes_per_bar`; `pitch_class_entropy` (bits, mean over passages, drums left out); `distinct_bars` (share of
        track bars with notes that differ from every earlier bar of their passage); `copied_bars` (share that equals a
        bar of the same place in the past's tracks); `distinct_4grams` (share of distinct among all successions of
        four (interval, onset step) in a track, pooled).
    """
    entropy, bars, notes, fresh, copied, total = [], 0, 0, 0, 0, 0
    grams: list[np.ndarray] = []
    for answer, past in passages:
        bars += answer.n_bars
        notes += answer.n_notes
        pitched = answer.programs[answer.track] != DRUMS if answer.n_notes else np.zeros(0, bool)
        if pitched.any():
            share = np.bincount(answer.pitch[pitched] % 12, minlength=12) / pitched.sum()
            share = share[share > 0]
            entropy.append(float(-(share * np.log2(share)).sum()))
        before = set() if past is None else {content for _, content in _bars(past)}
        seen: set[bytes] = set()
        for _, content in _bars(answer):
            total += 1
            fresh += content not in seen
            copied += content in before
            seen.add(content)
        grams.append(_fourgrams(answer))
    pooled = np.concatenate(grams) if grams else np.zeros((0, 6), np.int64)
    return {
        "notes_per_bar": notes / max(bars, 1),
        "pitch_class_entropy": float(np.mean(entropy)) if entropy else 0.0,
        "distinct_bars": fresh / max(total, 1),
        "copied_bars": copied / max(total, 1),
        "distinct_4grams": len(np.unique(pooled, axis=0)) / max(len(pooled), 1),
    }


def _bars(score: MetricScore):
    """(cell, content) of every track bar with notes; equal contents are equal bars, whatever the track."""
    bar = score.bar_of_notes()
    cell = score.track * score.n_bars + bar
    columns = np.stack([score.onset - score.bars.start[bar], score.pitch, score.duration], axis=1)
    edges = np.flatnonzero(np.append(True, cell[1:] != cell[:-1])) if len(cell) else []
    for first, last in zip(edges, np.append(edges[1:], len(cell)) if len(cell) else []):
        yield int(cell[first]), columns[first:last].tobytes()


def _fourgrams(score: MetricScore) -> np.ndarray:
    """`[n, 6]` three successive (interval, onset step) pairs inside each track."""
    if score.n_notes < 4:
        return np.zeros((0, 6), np.int64)
    steps = np.stack([np.diff(score.pitch), np.diff(score.onset)], axis=1)
    same = score.track[3:] == score.track[:-3]
    return np.concatenate([steps[:-2], steps[1:-1], steps[2:]], axis=1)[same]
