"""Ratios, means and shares by hand."""

import numpy as np
import pytest

from mortm_hf.evaluation.intervals import bootstrap, mean, ratio, ratio_by_group, share, share_of


def test_ratio_is_a_ratio_of_sums_resampled_by_cluster():
    found = ratio([1, 3, 0], [2, 4, 0], ["a", "b", "c"])
    assert found["value"] == 4 / 6 and found["n"] == 2
    assert found["low"] == 0.5 and found["high"] == 0.75  # drawing a twice, or b twice
    assert ratio([1, 3], [2, 4], ["a", "a"])["low"] == ratio([1, 3], [2, 4], ["a", "a"])["high"] == 4 / 6


def test_nothing_measured_is_none_not_zero():
    assert ratio([0, 0], [0, 0]) == {"value": None, "low": None, "high": None, "n": 0}
    assert mean([np.nan, np.nan])["value"] is None
    assert share(0, 0)["value"] is None


def test_mean_leaves_out_what_is_not_defined():
    found = mean([1.0, np.nan, 3.0])
    assert found["value"] == 2.0 and found["n"] == 2 and found["low"] == 1.0 and found["high"] == 3.0


def test_wilson():
    found = share(8, 10)
    # (p + z2/2n +- z sqrt(p q / n + z2 / 4 n2)) / (1 + z2 / n) with z = 1.959964
    z2, n, p = 1.959964**2, 10, 0.8
    half = 1.959964 * (p * (1 - p) / n + z2 / (4 * n * n)) ** 0.5
    assert found["low"] == pytest.approx((p + z2 / (2 * n) - half) / (1 + z2 / n), abs=1e-6)
    assert found["high"] == pytest.approx((p + z2 / (2 * n) + half) / (1 + z2 / n), abs=1e-6)
    assert 0.9 < share(50, 50)["low"] < 1.0 == share(50, 50)["high"]


def test_share_of_counts_only_what_was_asked():
    assert share_of([True, None, False, None])["value"] == 0.5 and share_of([True, None])["n"] == 1


def test_groups_count_alike_whatever_their_size():
    groups, clusters = ["a"] * 6 + ["b"] * 2, [0, 0, 1, 1, 2, 2, 3, 4]
    found = ratio_by_group([1, 0, 1, 0, 1, 0, 4, 4], [2] * 8, groups, clusters)
    assert list(found) == ["a", "b", "macro"]
    assert found["a"]["value"] == 0.25 and found["b"]["value"] == 2.0
    assert found["macro"]["value"] == pytest.approx(1.125)
    assert found["a"]["low"] == found["a"]["high"] == 0.25  # every cluster says the same
    assert found["a"]["clusters"] == 3 and found["macro"]["n"] == 8 and found["macro"]["total"] == 16


def test_a_group_of_nothing_is_no_part_of_the_mean():
    found = ratio_by_group([1, 1, 0], [2, 2, 0], ["a", "a", "b"], [0, 1, 2])
    assert np.isnan(found["b"]["value"]) and found["macro"]["value"] == 0.5


def test_bootstrap_draws_whole_clusters():
    values, clusters = np.array([0.0, 10.0, 0.0, 10.0]), ["x", "x", "y", "y"]
    assert bootstrap(lambda rows: float(values[rows].mean()), clusters) == (5.0, 5.0)
    low, high = bootstrap(lambda rows: float(values[rows].mean()), [0, 1, 2, 3])
    assert low < 5.0 < high
