"""Histograms, Jensen-Shannon divergence and diversity by hand."""

import numpy as np
import pytest

from mortm_hf.evaluation.distances import (
    distribution_distances,
    diversity,
    histograms,
    jensen_shannon,
    similarities,
    vendi_score,
)
from mortm_hf.models.music_names import DRUMS
from tests.evaluation.small_scores import melody, passage


def test_histograms_by_hand():
    notes = [(0, 60, 12), (0, 64, 1), (24, 67, 96), (120, 72, 400)]
    found = histograms(passage((0, notes), (DRUMS, [(12, 38, 6)]), bars=2))
    assert np.flatnonzero(found["pitch_class"]).tolist() == [0, 4, 7] and found["pitch_class"][0] == 2
    assert found["duration"].sum() == 5 and found["duration"][[0, 5, 11]].tolist() == [1, 1, 1]
    assert found["duration"][-1] == 1  # longer than the last edge
    assert np.flatnonzero(found["onset"]).tolist() == [0, 12, 24] and found["onset"][24] == 2
    # top line 64, 67, 72: up three, up five
    assert np.flatnonzero(found["interval"]).tolist() == [24 + 3, 24 + 5]


def test_intervals_stay_inside_a_track_and_are_clipped():
    found = histograms(passage((0, melody(60)), (1, melody(90, 30, start=24)), bars=1))
    assert np.flatnonzero(found["interval"]).tolist() == [0] and found["interval"].sum() == 1


def test_jensen_shannon():
    assert jensen_shannon(np.array([1, 0]), np.array([0, 3])) == pytest.approx(1.0)
    assert jensen_shannon(np.array([2, 2]), np.array([5, 5])) == 0.0
    p, q = np.array([0.5, 0.5]), np.array([1.0, 0.0])
    m = (p + q) / 2
    by_hand = 0.5 * (0.5 * np.log2(0.5 / m[0]) + 0.5 * np.log2(0.5 / m[1])) + 0.5 * np.log2(1 / m[0])
    assert jensen_shannon(p, q) == pytest.approx(by_hand)
    assert np.isnan(jensen_shannon(np.zeros(3), np.ones(3)))


def test_distances_are_taken_corpus_by_corpus():
    low, high = passage((0, melody(60, 60)), bars=1), passage((0, melody(66, 66)), bars=1)
    same = distribution_distances([low, high], ["a", "b"], [low, high, high], ["a", "b", "b"])
    assert same["pitch_class"] == {"a": 0.0, "b": 0.0, "mean": 0.0}
    # one corpus against the other's music is disjoint, though the mixtures are alike
    crossed = distribution_distances([low, high], ["a", "b"], [high, low], ["a", "b"])
    assert crossed["pitch_class"]["mean"] == pytest.approx(1.0) and crossed["duration"]["mean"] == 0.0
    alone = distribution_distances([low], ["a"], [low, high], ["a", "c"])
    assert set(alone["pitch_class"]) == {"a", "mean"}
    drums = passage((DRUMS, melody(36, 36)), bars=1)
    assert distribution_distances([drums], ["a"], [drums], ["a"])["pitch_class"] == {}


def test_vendi():
    assert vendi_score(np.eye(5)) == pytest.approx(5.0)
    assert vendi_score(np.ones((5, 5))) == pytest.approx(1.0)
    two = np.kron(np.eye(2), np.ones((3, 3)))  # two kinds, three of each
    assert vendi_score(two) == pytest.approx(2.0)


def test_diversity_of_passages():
    one = passage((0, melody(60, 62, 64)), bars=1)
    assert similarities([one, one]) == pytest.approx(np.ones((2, 2)))
    alike = diversity([one] * 4)
    assert alike["vendi"] == pytest.approx(1.0) and alike["pairwise_distance"] == pytest.approx(0.0, abs=1e-9)
    other = passage((0, [(6, 61, 48), (54, 75, 48), (72, 66, 48)]), bars=1)
    assert diversity([one, other])["vendi_share"] > 0.7
    drums = passage((DRUMS, melody(36, 38, 36)), bars=1)
    matrix = similarities([one, drums])
    assert matrix[0, 1] == pytest.approx(0.5)  # duration and onset alike; pitch class and interval not
    assert np.isnan(diversity([one])["vendi"])
