"""95 % intervals of shares and ratios, with the song as the unit.

Design decisions
- Samples that continue or imitate one song are not independent: everything is resampled by cluster.
- A share of yes and no has Wilson's interval (scipy), which stays inside [0, 1] and is not empty at 0 and 1, where
  the bootstrap is.

Knows: numbers. Must not know: music, models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


RESAMPLES = 2000


def ratio(top, bottom, clusters: Sequence | None = None, seed: int = 0, resamples: int = RESAMPLES) -> dict:
    """`sum(top) / sum(bottom)` with a bootstrap interval over clusters.

    Args:
        top, bottom: `[n]` parts of each sample; samples with `bottom` 0 say nothing. clusters: `[n]` labels of what is
            resampled together; by default every sample is its own.

    Returns:
        `{"value", "low", "high", "n"}`; `value` is None where nothing was measured. `n` counts samples.
    """
    top, bottom = np.asarray(top, dtype=np.float64), np.asarray(bottom, dtype=np.float64)
    rows = np.flatnonzero(bottom > 0)
    if not len(rows):
        return {"value": None, "low": None, "high": None, "n": 0}
    labels = np.arange(len(top)) if clusters is None else np.asarray(clusters)
    units, index = np.unique(labels[rows], return_inverse=True)
    above = np.bincount(index, weights=top[rows])
    below = np.bincount(index, weights=bottom[rows])
    pick = np.random.default_rng(seed).integers(len(units), size=(resamples, len(units)))
    low, high = np.quantile(above[pick].sum(axis=1) / below[pick].sum(axis=1), [0.025, 0.975])
    return {"value": float(above.sum() / below.sum()), "low": float(low), "high": float(high), "n": len(rows)}


def mean(values, clusters: Sequence | None = None, seed: int = 0) -> dict:
    """Mean of the finite values with a bootstrap interval (see `ratio`)."""
    values = np.asarray(values, dtype=np.float64)
    known = np.isfinite(values)
    return ratio(np.where(known, values, 0.0), known, clusters, seed)


def share(hits: int, total: int) -> dict:
    """`hits / total` with Wilson's score interval."""
    from scipy.stats import binomtest

    if not total:
        return {"value": None, "low": None, "high": None, "n": 0}
    found = binomtest(int(hits), int(total)).proportion_ci(method="wilson")
    return {"value": hits / total, "low": float(found.low), "high": float(found.high), "n": int(total)}


def share_of(flags) -> dict:
    """`share` of a list of yes, no and None (not asked)."""
    known = [bool(flag) for flag in flags if flag is not None]
    return share(sum(known), len(known))
