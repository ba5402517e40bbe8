"""How far the distributions of two sets of passages lie apart, and how varied one set is.

Design decisions
- Jensen-Shannon *divergence* in bits (0: equal, 1: disjoint), scipy's distance squared, of pooled histograms of pitch
  class, duration, onset in the bar, and interval. Corpora differ more from each other than samples from music, so the
  distance is taken corpus by corpus and averaged: both sets then hold the same mixture.
- The Vendi score (Friedman & Dieng 2023) is the effective number of different passages: the exponential of the
  entropy of the eigenvalues of the similarity matrix divided by its size. Similarity is the mean of the cosines of the
  passages' histograms (`FEATURES`), so it needs no learnt embedding. A diversity has no right value: it is read beside
  that of human passages of the same number and corpora.

Knows: quantised music, scipy. Must not know: models, tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..models.music_names import DRUMS
from ..models.music_score import MetricScore


# upper edges in ticks: exact up to a dotted quarter's 36, then coarser
_DURATION_EDGES = np.array([*range(1, 37), 42, 48, 60, 72, 84, 96, 120, 144, 192, 288, 384])
LONGEST_BAR = 192
FEATURES = ("pitch_class", "duration", "onset", "interval")


def histograms(score: MetricScore) -> dict[str, np.ndarray]:
    """Counts of one passage: `pitch_class [12]` (drums left out), `duration [48]`, `onset [192]` (ticks in the bar),
    `interval [49]` (between successive distinct onsets' top notes of a track, -24 to 24 semitones, drums left out)."""
    pitched = (score.programs != DRUMS)[score.track] if score.n_notes else np.zeros(0, bool)
    bar = score.bar_of_notes()
    place = np.minimum(score.onset - score.bars.start[bar], LONGEST_BAR - 1)
    length = np.searchsorted(_DURATION_EDGES, score.duration, side="left")
    # rows are sorted by (track, onset, pitch): the last row of an onset is its top note
    top = np.ones(score.n_notes, dtype=bool)
    if score.n_notes > 1:
        top[:-1] = (score.track[1:] != score.track[:-1]) | (score.onset[1:] != score.onset[:-1])
    line = np.flatnonzero(top & pitched)
    step = np.diff(score.pitch[line])[np.diff(score.track[line]) == 0] if len(line) > 1 else np.zeros(0, np.int64)
    return {
        "pitch_class": np.bincount(score.pitch[pitched] % 12, minlength=12),
        "duration": np.bincount(length, minlength=len(_DURATION_EDGES) + 1),
        "onset": np.bincount(place, minlength=LONGEST_BAR),
        "interval": np.bincount(np.clip(step, -24, 24) + 24, minlength=49),
    }


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> float:
    """Jensen-Shannon divergence of two histograms in bits; nan if either is empty.

    Args:
        p: `[n]` counts.
        q: `[n]` counts.
    """
    from scipy.spatial.distance import jensenshannon

    if not p.sum() or not q.sum():
        return float("nan")
    return float(jensenshannon(p, q, base=2) ** 2)


def distribution_distances(
    passages: Sequence[MetricScore],
    corpora: Sequence[str],
    reference: Sequence[MetricScore],
    reference_corpora: Sequence[str],
) -> dict[str, dict[str, float]]:
    """Divergences between two sets of passages, over the corpora that both have.

    Args:
        passages: the music to measure.
        corpora: of these passages.
        reference: the music to measure against.
        reference_corpora: of these passages.

    Returns:
        `{feature: {corpus: divergence, "mean": their mean}}`.
    """
    found: dict[str, dict[str, float]] = {name: {} for name in FEATURES}
    ours, theirs = _pooled(passages, corpora), _pooled(reference, reference_corpora)
    for corpus in ours:
        if corpus in theirs:
            for name in FEATURES:
                value = jensen_shannon(ours[corpus][name], theirs[corpus][name])
                if np.isfinite(value):  # drums have no pitch classes
                    found[name][corpus] = value
    for values in found.values():
        if values:
            values["mean"] = float(np.mean(list(values.values())))
    return found


def _pooled(passages: Sequence[MetricScore], corpora: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    sums: dict[str, dict[str, np.ndarray]] = {}
    for score, corpus in zip(passages, corpora):
        counts = histograms(score)
        total = sums.setdefault(corpus, {name: np.zeros(len(counts[name])) for name in FEATURES})
        for name in FEATURES:
            total[name] += counts[name]
    return sums


# ---------------------------------------------------------------------------------------------------------------------
# Diversity


def similarities(passages: Sequence[MetricScore]) -> np.ndarray:
    """`[n, n]` mean over `FEATURES` of the cosine between the passages' histograms; 1 on the diagonal. A feature that
    a passage lacks (drums' pitch classes) is equal only to its lack."""
    tables = [histograms(score) for score in passages]
    total = np.zeros((len(passages), len(passages)))
    for name in FEATURES:
        rows = np.array([t[name] for t in tables], dtype=np.float64)
        rows = np.concatenate([rows, ~rows.any(axis=1, keepdims=True)], axis=1)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        total += rows @ rows.T
    return total / len(FEATURES)


def vendi_score(similarity: np.ndarray) -> float:
    """Vendi score of a `[n, n]` positive semi-definite similarity matrix with ones on its diagonal: 1 (all equal) to
    n (all orthogonal)."""
    values = np.linalg.eigvalsh(similarity / len(similarity))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def diversity(passages: Sequence[MetricScore]) -> dict[str, float]:
    """`vendi` (effective number of passages), `vendi_share` (of all), `pairwise_distance` (mean of 1 - similarity over
    pairs). Needs two passages."""
    if len(passages) < 2:
        return {"vendi": float("nan"), "vendi_share": float("nan"), "pairwise_distance": float("nan")}
    matrix = similarities(passages)
    count = len(matrix)
    vendi = vendi_score(matrix)
    return {
        "vendi": vendi,
        "vendi_share": vendi / count,
        "pairwise_distance": float(1.0 - (matrix.sum() - np.trace(matrix)) / (count * (count - 1))),
    }
