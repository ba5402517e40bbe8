"""Metrics of classifiers against figures worked out by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from benchmarks import classifier_figures as f
from mortm_hf.evaluation import classification as c


def test_songs_have_one_prediction():
    scores = np.log([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.3, 0.7]])
    joined = c.song_scores(scores, [0, 0, 1, 1], ["b", "b", "a", "a"], ["x", "x", "y", "y"])
    assert joined.songs.tolist() == ["a", "b"] and joined.label.tolist() == [1, 0]
    assert joined.cluster.tolist() == ["y", "x"] and joined.predicted.tolist() == [1, 0]
    assert np.allclose(joined.scores[1], np.log([0.9 * 0.2, 0.1 * 0.8]) / 2)
    shifted = c.song_scores(scores + 7, [0, 0, 1, 1], ["b", "b", "a", "a"], ["x", "x", "y", "y"])
    assert np.allclose(joined.scores, shifted.scores)  # logits will do
    with pytest.raises(ValueError, match="different labels"):
        c.song_scores(scores, [0, 1, 1, 1], ["b", "b", "a", "a"], ["x", "x", "y", "y"])


def test_macro_f1_is_scikit_learns():
    rng = np.random.default_rng(0)
    true, said = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    matrix = c.confusion(true, said, 4)
    assert matrix.sum() == 200 and matrix[2, 1] == ((true == 2) & (said == 1)).sum()
    assert c.macro_f1(matrix) == pytest.approx(f1_score(true, said, average="macro"))
    assert np.allclose(c.f1_of(matrix), f1_score(true, said, average=None))
    some = f1_score(true, said, average="macro", labels=[0, 3])
    assert c.macro_f1(matrix, [0, 3]) == pytest.approx(some)


def test_a_label_without_examples_does_not_count_but_wrong_predictions_do():
    matrix = c.confusion([0, 0, 1, 1], [0, 2, 1, 1], 3)
    assert np.isnan(c.f1_of(matrix)[2])
    assert c.macro_f1(matrix) == pytest.approx((2 / 3 + 1) / 2)


def test_intervals_are_over_clusters_not_windows():
    rng = np.random.default_rng(1)
    true = rng.integers(0, 2, 60)
    said = np.where(rng.random(60) < 0.8, true, 1 - true)
    alone = f.macro_f1_interval(true, said, np.arange(60), 2)
    # every window ten times over adds nothing: the interval must not shrink
    many = f.macro_f1_interval(np.repeat(true, 10), np.repeat(said, 10), np.repeat(np.arange(60), 10), 2)
    assert many.value == pytest.approx(alone.value)
    assert (many.low, many.high) == pytest.approx((alone.low, alone.high))
    windows = f.macro_f1_interval(np.repeat(true, 10), np.repeat(said, 10), np.arange(600), 2)
    assert windows.high - windows.low < 0.5 * (alone.high - alone.low)
    assert alone.low < alone.value < alone.high


def test_paired_differences():
    true = np.tile([0, 1], 30)
    good, bad = true, np.zeros(60, int)
    gap = f.macro_f1_interval(true, good, np.arange(60), 2, against=bad)
    assert gap.value == pytest.approx(1 - 1 / 3) and gap.low > 0
    none = f.macro_f1_interval(true, good, np.arange(60), 2, against=good)
    assert (none.value, none.low, none.high) == (0, 0, 0)


def test_auc_and_its_interval():
    rng = np.random.default_rng(2)
    positive = rng.random(300) < 0.4
    scores = rng.normal(size=300) + positive
    assert c.auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))
    tied = np.round(scores)
    assert c.auc(tied, positive) == pytest.approx(roc_auc_score(positive, tied))
    assert np.isnan(c.auc(scores, np.ones(300, bool)))
    clusters = np.arange(300) // 3
    found = f.auc_interval(scores, positive, clusters, resamples=200)
    assert found.low < found.value < found.high and found.high - found.low < 0.2
    worse = f.auc_interval(scores, positive, clusters, resamples=100, against=rng.normal(size=300))
    assert worse.value > 0.1 and worse.low > 0


def test_calibration():
    rng = np.random.default_rng(3)
    p = rng.random(20000)
    y = rng.random(20000) < p
    good = f.calibration(p, y)
    assert good.ece < 0.02 and len(good.count) == 10 and good.count.sum() == 20000
    sure = f.calibration(np.where(p > 0.5, 0.99, 0.01), rng.random(20000) < p)
    assert sure.ece == pytest.approx(0.24, abs=0.02)  # says 0.99 where three quarters are positive
    assert sure.brier > good.brier
    few = np.concatenate([np.flatnonzero(y), np.flatnonzero(~y)[:4000]])  # most negatives gone: the odds move
    assert f.calibration(p[few], y[few]).ece > 0.1 > 0.03 > f.calibration(p[few], y[few], balanced=True).ece
    with pytest.raises(ValueError, match="between 0 and 1"):
        f.calibration([1.2], [True])


def test_sigmoid_does_not_overflow():
    assert c.sigmoid([-1e4, 0, 1e4]).tolist() == pytest.approx([0, 0.5, 1])


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    matrix = c.confusion([0, 1, 1], [0, 1, 0], 2)
    f.plot_confusion(tmp_path / "confusion.png", {"a": matrix, "b": matrix.T}, ["reel", "jig"], "title")
    curve = f.calibration(np.linspace(0, 1, 50), np.linspace(0, 1, 50) > 0.5)
    f.plot_calibration(tmp_path / "curve.png", {"judge": curve})
    for name in ("confusion.png", "curve.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG") and (tmp_path / name).stat().st_size > 5000
