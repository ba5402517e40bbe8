"""Figures of passages by hand, and against muspy where it measures the same thing."""

import numpy as np
import pytest

from mortm_hf.evaluation.music_figures import (
    FIGURES,
    bar_rolls,
    figures,
    groove_consistency,
    groove_overlap,
    self_similarity,
    table_of_figures,
    to_muspy,
)
from mortm_hf.models.music_names import DRUMS
from tests.evaluation.small_scores import melody, passage


muspy = pytest.importorskip("muspy")


def test_groove_by_hand():
    score = passage((0, melody(60, 62, 64, 65) + melody(60, 62, start=96)), bars=2)
    # four onsets, then two of them: two of 96 places differ; two of four are shared
    assert groove_consistency(score) == pytest.approx(1 - 2 / 96)
    assert groove_overlap(score) == pytest.approx(2 / 4)


def test_groove_skips_pairs_of_unlike_length_and_is_nan_without_any():
    score = passage((0, melody(60, 62, 64, 65) + [(96, 60, 12), (144, 60, 12)]), lengths=[96, 48, 96])
    assert np.isnan(groove_consistency(score)) and np.isnan(groove_overlap(score))
    odd = passage((0, [(0, 60, 12), (48, 60, 12), (96, 60, 12), (120, 60, 12)]), lengths=[48, 48, 96])
    assert groove_consistency(odd) == 1.0 and groove_overlap(odd) == 1.0


def test_groove_agrees_with_muspy_where_bars_are_alike():
    rng = np.random.default_rng(0)
    for _ in range(5):
        notes = [(int(o), int(p), 6) for o, p in zip(rng.integers(0, 90, 20), rng.integers(40, 80, 20))]
        notes += [(96 + int(o), int(p), 6) for o, p in zip(rng.integers(0, 90, 20), rng.integers(40, 80, 20))]
        notes += [(192 + 80, 60, 6)]
        score = passage((0, notes), (DRUMS, melody(36, 38, 36, 38)), bars=3)
        assert groove_consistency(score) == pytest.approx(muspy.groove_consistency(to_muspy(score), 96))


def test_muspy_counts_a_bar_too_many_where_the_last_note_ends_on_the_bar_line():
    score = passage((0, melody(60, 62, 64, 65, 60, 62, 64, 65, length=24)), bars=2)
    assert groove_consistency(score) == 1.0
    assert muspy.groove_consistency(to_muspy(score), 96) == pytest.approx(1 - 4 / (2 * 96))  # hence our own


def test_self_similarity():
    same = passage((0, melody(60, 62, 64, 65) + melody(60, 62, 64, 65, start=96)), bars=2)
    half = passage((0, melody(60, 62, 64, 65) + melody(60, 62, 67, 69, start=96)), bars=2)
    none = passage((0, melody(60, 62) + melody(70, 72, start=96)), bars=2)
    assert self_similarity(same) == pytest.approx(1.0)
    assert self_similarity(half) == pytest.approx(0.5)
    assert self_similarity(none) == pytest.approx(0.0)
    assert np.isnan(self_similarity(passage((0, melody(60)), bars=1)))
    # a drum is not the piano's note of the same number
    kit = passage((0, melody(36)), (DRUMS, melody(36, start=96)), bars=2)
    assert self_similarity(kit) == 0.0 and bar_rolls(kit).shape[0] == 2


def test_figures_by_hand():
    score = passage((0, melody(60, 60, 62, 62, 64, 64, 65, 65, length=24)), (DRUMS, melody(36, 38)), bars=2)
    found = figures(score)
    assert tuple(found) == FIGURES
    assert found["pitch_class_entropy"] == pytest.approx(2.0)  # four pitch classes alike; drums do not count
    assert found["scale_consistency"] == 1.0 and found["empty_beat_rate"] == 0.0
    assert found["notes_per_bar"] == 5.0
    chromatic = figures(passage((0, melody(60, 61, 62, 63)), bars=1))
    assert chromatic["scale_consistency"] == 0.75  # C Db Eb lie in Ab major
    rolled = figures(passage((0, [(0, 60, 96), (0, 64, 96), (0, 67, 48)]), bars=1))  # three at once for half the bar
    assert rolled["polyphony_rate"] == pytest.approx(0.5)


def test_what_is_not_defined_is_nan():
    drums = figures(passage((DRUMS, melody(36, 38)), bars=1))
    assert np.isnan(drums["pitch_class_entropy"]) and np.isnan(drums["scale_consistency"])
    empty = figures(passage((0, []), bars=2))
    assert np.isnan(empty["polyphony_rate"]) and empty["notes_per_bar"] == 0.0
    table = table_of_figures([passage((DRUMS, melody(36)), bars=1), passage((0, melody(60)), bars=1)])
    assert np.isnan(table["pitch_class_entropy"]).tolist() == [True, False]
