"""How good a classifier is, with intervals that respect where the windows come from.

Design decisions
- Windows of one tune, song or drummer are no independent trials: intervals are drawn over clusters (percentile
  bootstrap), never over windows.
- A song has one prediction, the mean of its windows' log-probabilities.
- Macro-F1 counts every class alike; a class that has no test example is left out of it, and named.
- The bootstrap of F1 runs on confusion counts by cluster, vectorised; an AUC is computed from ranks, anew each draw.

Knows: arrays of labels, scores and clusters. Must not know: models, tokens, music.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .intervals import bootstrap


RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval.

    Attributes:
        value: the figure.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def as_dict(self) -> dict[str, float]:
        """`{"value", "low", "high"}`."""
        return {"value": self.value, "low": self.low, "high": self.high}


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """`[n, labels]` logits or log-probabilities -> log-probabilities."""
    scores = np.asarray(scores, dtype=np.float64)
    top = scores.max(axis=1, keepdims=True)
    return scores - top - np.log(np.exp(scores - top).sum(axis=1, keepdims=True))


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
    names, first, index = np.unique(np.asarray(songs), return_index=True, return_inverse=True)
    labels, clusters = np.asarray(labels), np.asarray(clusters)
    if (labels[first][index] != labels).any():
        raise ValueError("windows of one song carry different labels: predictions cannot be joined by song")
    joined = np.zeros((len(names), np.shape(scores)[1]))
    np.add.at(joined, index, log_softmax(scores))
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


def _cluster_matrices(labels, predicted, clusters, n_labels: int) -> np.ndarray:
    """`[clusters, labels, labels]` confusion counts of each cluster."""
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    cell = (index * n_labels + np.asarray(labels)) * n_labels + np.asarray(predicted)
    counts = np.bincount(cell, minlength=len(names) * n_labels**2)
    return counts.reshape(len(names), n_labels, n_labels)


def _draws(n: int, resamples: int, seed: int) -> np.ndarray:
    """`[resamples, n]` how often each of n clusters is drawn."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)


def macro_f1_interval(
    labels,
    predicted,
    clusters,
    n_labels: int,
    classes: Sequence[int] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    against=None,
) -> Interval:
    """Macro-F1 with its interval over clusters.

    Args:
        labels: `[n]` true labels.
        predicted: `[n]` predicted labels.
        clusters: `[n]` what is drawn together.
        n_labels: how many labels there are.
        classes: labels that count; by default all that have examples.
        resamples: draws of the bootstrap.
        seed: of the draws.
        against: `[n]` predictions of another classifier: the figure is then the paired difference (this minus other).
    """
    mine = _cluster_matrices(labels, predicted, clusters, n_labels)
    if classes is None:
        classes = np.flatnonzero(mine.sum(axis=(0, 2)))
    draws = _draws(len(mine), resamples, seed)
    value, sample = macro_f1(mine.sum(0), classes), macro_f1(np.tensordot(draws, mine, 1), classes)
    if against is not None:
        other = _cluster_matrices(labels, against, clusters, n_labels)
        value = value - macro_f1(other.sum(0), classes)
        sample = sample - macro_f1(np.tensordot(draws, other, 1), classes)
    low, high = np.quantile(sample, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))


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


def auc_interval(
    scores, positive, clusters, resamples: int = 500, seed: int = 0, against: np.ndarray | None = None
) -> Interval:
    """AUC with its interval over clusters (human and machine windows of a song are drawn together).

    Args:
        scores: `[n]` higher for positives.
        positive: `[n]` bool.
        clusters: `[n]` what is drawn together.
        resamples: draws of the bootstrap.
        seed: of the draws.
        against: `[n]` other scores: the figure is then the paired difference (this minus other).
    """
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)

    def figure(rows) -> float:
        mine = auc(scores[rows], positive[rows])
        return mine if against is None else mine - auc(np.asarray(against)[rows], positive[rows])

    return Interval(figure(np.arange(len(scores))), *bootstrap(figure, clusters, resamples=resamples, seed=seed))


@dataclass(frozen=True)
class Calibration:
    """Reliability of a probability.

    Attributes:
        predicted: `[bins in use]` mean probability.
        observed: `[bins in use]` share of positives.
        count: `[bins in use]` weight of each bin.
        ece: expected calibration error, the mean distance weighted by windows.
        brier: mean squared error.
    """

    predicted: np.ndarray
    observed: np.ndarray
    count: np.ndarray
    ece: float
    brier: float


def calibration(probability, positive, bins: int = 10, balanced: bool = False) -> Calibration:
    """Calibration in bins of equal width (Guo et al. 2017, "On Calibration of Modern Neural Networks").

    Args:
        probability: `[n]` of being positive.
        positive: `[n]` bool.
        bins: how many.
        balanced: weigh positives and negatives so that each are half, whatever their numbers.

    Raises:
        ValueError: something outside 0 to 1 is no probability.
    """
    p, y = np.asarray(probability, dtype=np.float64), np.asarray(positive, dtype=np.float64)
    if len(p) and not (p.min() >= 0 and p.max() <= 1):
        raise ValueError("probabilities must lie between 0 and 1: give sigmoid(logit)")
    weight = np.ones(len(p))
    if balanced:
        weight = np.where(y > 0, 0.5 / max(y.sum(), 1), 0.5 / max((1 - y).sum(), 1)) * len(p)
    index = np.minimum((p * bins).astype(int), bins - 1)
    count = np.bincount(index, weight, minlength=bins)
    used = count > 0
    mean = np.bincount(index, weight * p, minlength=bins)[used] / count[used]
    share = np.bincount(index, weight * y, minlength=bins)[used] / count[used]
    total = max(weight.sum(), 1e-12)
    ece = float((np.abs(mean - share) * count[used]).sum() / total)
    return Calibration(mean, share, count[used], ece, float((weight * (p - y) ** 2).sum() / total))


def sigmoid(logit) -> np.ndarray:
    """Logit -> probability."""
    return 1 / (1 + np.exp(-np.clip(np.asarray(logit, dtype=np.float64), -700, 700)))


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def plot_confusion(path, matrices: dict[str, np.ndarray], names: Sequence[str], title: str = "") -> None:
    """Confusion matrices side by side, as shares of each true label.

    Args:
        path: the `.png` to write.
        matrices: `{name: counts}`.
        names: of the labels.
        title: of the picture.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(1, len(matrices), figsize=(4.2 * len(matrices), 4.4), squeeze=False)
    for axis, (name, matrix) in zip(axes[0], matrices.items()):
        share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        axis.imshow(share, vmin=0, vmax=1, cmap="Blues")
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axis.set_yticks(range(len(names)), [f"{n} ({int(k)})" for n, k in zip(names, matrix.sum(axis=1))])
        axis.set_title(name)
        axis.set_xlabel("predicted")
        for i, j in np.argwhere(matrix):
            axis.text(
                j, i, int(matrix[i, j]), ha="center", va="center", color="white" if share[i, j] > 0.5 else "black"
            )
    axes[0][0].set_ylabel("true (songs)")
    _finish(figure, path, title)


def plot_calibration(path, curves: dict[str, Calibration], title: str = "") -> None:
    """Reliability curves in one picture; the size of a point is the number of windows in its bin.

    Args:
        path: the `.png` to write.
        curves: `{name: Calibration}`.
        title: of the picture.
    """
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(5, 5))
    axis.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
    for name, curve in curves.items():
        (line,) = axis.plot(curve.predicted, curve.observed, label=f"{name} (ECE {curve.ece:.3f})")
        sizes = 20 + 180 * curve.count / curve.count.max()
        axis.scatter(curve.predicted, curve.observed, s=sizes, color=line.get_color(), alpha=0.5)
    axis.set_xlabel("predicted probability of machine")
    axis.set_ylabel("share of machine windows")
    axis.legend(loc="upper left")
    _finish(figure, path, title)


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _finish(figure, path, title: str) -> None:
    if title:
        figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    _pyplot().close(figure)
