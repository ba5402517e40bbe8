"""95 % intervals of shares, ratios and any other statistic, with the song as the unit.

Design decisions
- Samples that continue or imitate one song are not independent: everything is resampled by cluster.
- A share of yes and no has Wilson's interval (scipy), which stays inside [0, 1] and is not empty at 0 and 1, where
  the bootstrap is.

Knows: numbers. Must not know: music, models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


RESAMPLES = 2000
FEW = 5  # clusters; the bootstrap of fewer is far too narrow to be shown


def ratio(top, bottom, clusters: Sequence | None = None, seed: int = 0, resamples: int = RESAMPLES) -> dict:
    """`sum(top) / sum(bottom)` with a bootstrap interval over clusters.

    Args:
        top: `[n]` upper part of each sample.
        bottom: `[n]` lower part; samples with 0 do not count.
        clusters: `[n]` labels of what is resampled together; by default every sample is its own.
        seed: of the draws.
        resamples: draws of the bootstrap.

    Returns:
        `{"value", "low", "high", "n"}`; `value` is None where nothing was measured. `n` counts samples.
    """
    top, bottom = np.asarray(top, dtype=np.float64), np.asarray(bottom, dtype=np.float64)
    rows = np.flatnonzero(bottom > 0)
    if not len(rows):
        return {"value": None, "low": None, "high": None, "n": 0}
    labels = np.arange(len(top)) if clusters is None else np.asarray(clusters)
    value, draws, _ = _draws(top[rows], bottom[rows], labels[rows], np.random.default_rng(seed), resamples)
    return {"value": value, **_middle(draws), "n": len(rows)}


def ratio_by_group(
    top, bottom, groups, clusters, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, dict[str, float]]:
    """`sum(top) / sum(bottom)` of each group and the mean of the groups ("macro"), clusters drawn within each group. A
    group of which nothing was counted is NaN and no part of the mean.

    Args:
        top: `[n]` upper part of each sample.
        bottom: `[n]` lower part.
        groups: `[n]` labels.
        clusters: `[n]` labels of what is resampled together.
        seed: of the draws.
        resamples: draws of the bootstrap.

    Returns:
        `{group or "macro": {"value", "low", "high", "n", "clusters", "total"}}`, groups in order of appearance;
        `total` is the sum of `bottom`. Empty without samples.
    """
    top, bottom = np.asarray(top, dtype=np.float64), np.asarray(bottom, dtype=np.float64)
    groups, clusters = np.asarray(groups), np.asarray(clusters)
    rng = np.random.default_rng(seed)
    report, draws = {}, []
    for name in dict.fromkeys(groups.tolist()):
        rows = groups == name
        value, sample, units = _draws(top[rows], bottom[rows], clusters[rows], rng, resamples)
        counts = {"n": int(rows.sum()), "clusters": units, "total": float(bottom[rows].sum())}
        report[name] = {"value": value, **_middle(sample), **counts}
        draws.append(sample)
    if draws:
        value = float(np.nanmean([entry["value"] for entry in report.values()]))
        counts = {"n": len(top), "clusters": len(np.unique(clusters)), "total": float(bottom.sum())}
        report["macro"] = {"value": value, **_middle(np.nanmean(draws, axis=0)), **counts}
    return report


def bootstrap(
    statistic: Callable[[np.ndarray], float], clusters: Sequence, seed: int = 0, resamples: int = 500
) -> tuple[float, float]:
    """95 % interval of any statistic over draws of clusters; NaNs are ignored.

    Args:
        statistic: takes indices of rows, repeated as drawn.
        clusters: `[n]` labels of what is resampled together.
        seed: of the draws.
        resamples: how many draws.
    """
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    order = np.argsort(index, kind="stable")
    rows = np.split(order, np.cumsum(np.bincount(index))[:-1])
    rng = np.random.default_rng(seed)
    picks = (rng.integers(len(names), size=len(names)) for _ in range(resamples))
    values = np.array([statistic(np.concatenate([rows[i] for i in pick])) for pick in picks])
    return tuple(_middle(values).values())


def _draws(top, bottom, clusters, rng: np.random.Generator, resamples: int) -> tuple[float, np.ndarray, int]:
    """The ratio, `[resamples]` ratios of drawn clusters, and how many clusters there are."""
    units, index = np.unique(clusters, return_inverse=True)
    above, below = np.bincount(index, weights=top), np.bincount(index, weights=bottom)
    pick = rng.integers(len(units), size=(resamples, len(units)))
    with np.errstate(invalid="ignore"):  # nothing was counted, in a draw or at all
        sample = above[pick].sum(axis=1) / below[pick].sum(axis=1)
        return float(np.divide(above.sum(), below.sum())), sample, len(units)


def _middle(draws: np.ndarray) -> dict[str, float]:
    """The middle 95 % of draws; NaNs are ignored."""
    known = draws[~np.isnan(draws)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
    return {"low": float(low), "high": float(high)}


def mean(values, clusters: Sequence | None = None, seed: int = 0) -> dict:
    """Mean of the finite values with a bootstrap interval (see `ratio`).

    Args:
        values: `[n]`.
        clusters: `[n]` labels of what is resampled together.
        seed: of the draws.
    """
    values = np.asarray(values, dtype=np.float64)
    known = np.isfinite(values)
    return ratio(np.where(known, values, 0.0), known, clusters, seed)


def share(hits: int, total: int) -> dict:
    """`hits / total` with Wilson's score interval.

    Args:
        hits: how many.
        total: of how many; 0: nothing was measured.
    """
    from scipy.stats import binomtest

    if not total:
        return {"value": None, "low": None, "high": None, "n": 0}
    found = binomtest(int(hits), int(total)).proportion_ci(method="wilson")
    return {"value": hits / total, "low": float(found.low), "high": float(found.high), "n": int(total)}


def share_of(flags) -> dict:
    """`share` of a list of yes, no and None (not asked)."""
    known = [bool(flag) for flag in flags if flag is not None]
    return share(sum(known), len(known))
