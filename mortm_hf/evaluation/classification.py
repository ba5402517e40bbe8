"""How good a classifier is.

Design decisions
- A song has one prediction, the mean of its windows' log-probabilities.
- Macro-F1 counts every class alike; a class that has no test example is left out of it, and named.

Knows: arrays of labels, scores and clusters. Must not know: models, tokens, music.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SongScores:
    """Predictions by song.

    Attributes:
        songs: `[s]` names.
        label: `[s]` true labels.
        cluster: `[s]` what is drawn together.
        scores: `[s, labels]` mean log-probabilities.
    """

    songs: np.ndarray
    label: np.ndarray
    cluster: np.ndarray
    scores: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """`[s]` likeliest label."""
        return self.scores.argmax(axis=1)


def song_scores(scores, labels, songs, clusters) -> SongScores:
    """Predictions of windows joined by song.

    Args:
        scores: `[n, labels]` logits or log-probabilities of the windows.
        labels: `[n]` true labels.
        songs: `[n]` names.
        clusters: `[n]` what is drawn together.

    Raises:
        ValueError: windows of one song carry different labels.
    """
    from scipy.special import log_softmax

    names, first, index = np.unique(np.asarray(songs), return_index=True, return_inverse=True)
    labels, clusters = np.asarray(labels), np.asarray(clusters)
    if (labels[first][index] != labels).any():
        raise ValueError("windows of one song carry different labels: predictions cannot be joined by song")
    joined = np.zeros((len(names), np.shape(scores)[1]))
    np.add.at(joined, index, log_softmax(np.asarray(scores, dtype=np.float64), axis=1))
    return SongScores(names, labels[first], clusters[first], joined / np.bincount(index)[:, None])


def confusion(labels, predicted, n_labels: int) -> np.ndarray:
    """`[n_labels, n_labels]` counts, rows are the true labels.

    Args:
        labels: `[n]` true labels.
        predicted: `[n]` predicted labels.
        n_labels: how many labels there are.
    """
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(labels, predicted, labels=np.arange(n_labels))


def f1_of(matrix: np.ndarray) -> np.ndarray:
    """`[..., labels]` F1 of every label of confusion matrices `[..., labels, labels]`; NaN where a label has no
    example, 0 where it has and is never right."""
    hits = np.diagonal(matrix, axis1=-2, axis2=-1).astype(np.float64)
    true, predicted = matrix.sum(axis=-1), matrix.sum(axis=-2)
    with np.errstate(invalid="ignore"):
        return np.where(true > 0, 2 * hits / (true + predicted), np.nan)


def macro_f1(matrix: np.ndarray, classes: Sequence[int] | None = None) -> np.ndarray:
    """`[...]` mean F1 over the labels that have examples.

    Args:
        matrix: `[..., labels, labels]` confusion counts.
        classes: labels that count; by default all.
    """
    values = f1_of(matrix)
    if classes is not None:
        values = values[..., list(classes)]
    with np.errstate(invalid="ignore"):
        return np.nansum(values, axis=-1) / np.maximum((~np.isnan(values)).sum(axis=-1), 1)


def auc(scores, positive) -> float:
    """Area under the ROC curve: chance that a positive scores higher than a negative (ties count half; the
    Mann-Whitney statistic); NaN without both.

    Args:
        scores: `[n]` higher for positives.
        positive: `[n]` bool.
    """
    from scipy.stats import rankdata

    positive = np.asarray(positive, dtype=bool)
    n = int(positive.sum())
    if n in (0, len(positive)):
        return float("nan")
    return float((rankdata(scores)[positive].sum() - n * (n + 1) / 2) / (n * (len(positive) - n)))


def sigmoid(logit) -> np.ndarray:
    """Logit -> probability."""
    return 1 / (1 + np.exp(-np.clip(np.asarray(logit, dtype=np.float64), -700, 700)))
