"""Variety of passages by hand, and of samples of a model."""

import numpy as np
import pytest

from mortm_hf.evaluation.fixed_windows import Encoded, Window
from mortm_hf.evaluation.variety import human_variety, sample_variety, spread_windows, variety
from mortm_hf.models.music_names import DRUMS
from mortm_hf.models.tokenization_mortm import MortmTokenizer
from tests.evaluation.small_scores import melody, passage


def test_variety(model, windows):
    songs, encoded = windows
    score = songs.songs[0].score
    bar = score.window(2, 3)
    human = human_variety(songs, encoded, 4)
    assert human["copied_bars"] < 1 and 0 < human["pitch_class_entropy"] <= np.log2(12)
    assert variety([(bar, bar)])["copied_bars"] == 1.0
    sampled = sample_variety(model, MortmTokenizer(), songs, encoded[:1], 1)
    assert sampled["notes_per_bar"] > 0


def test_repeated_and_copied_bars_by_hand():
    past = passage((0, melody(60, 62, 64, 65)), bars=1)
    # bar 0 as in the past, bar 1 new, bar 2 as bar 1, bar 3 as the past in another rhythm
    answer = passage(
        (0, melody(60, 62, 64, 65) + melody(70, 72, start=96) + melody(70, 72, start=192)
         + melody(60, 62, 64, 65, step=12, start=288)), bars=4)  # fmt: skip
    found = variety([(answer, past)])
    assert found["distinct_bars"] == 0.75 and found["copied_bars"] == 0.25
    assert found["notes_per_bar"] == 3.0
    shares = np.array([4, 2, 2, 2, 2]) / 12  # C, D, E, F, Bb
    assert found["pitch_class_entropy"] == pytest.approx(-(shares * np.log2(shares)).sum())
    assert variety([(answer, None)])["copied_bars"] == 0.0


def test_drums_have_no_pitch_class_entropy_and_nothing_is_nothing():
    found = variety([(passage((DRUMS, melody(36, 38, 36, 38)), bars=1), None)])
    assert found["pitch_class_entropy"] == 0.0 and found["notes_per_bar"] == 4.0
    assert variety([])["distinct_bars"] == 0.0


def test_fourgrams_are_of_intervals_and_steps():
    up = melody(60, 62, 64, 66, 68)  # two fourgrams, both (+2, 24) three times
    assert variety([(passage((0, up), bars=2), None)])["distinct_4grams"] == 0.5
    assert variety([(passage((0, up[:3]), (1, up[:3]), bars=2), None)])["distinct_4grams"] == 0.0


def test_windows_are_spread_over_corpora():
    def window(corpus, start):
        return Encoded(Window(corpus, start), corpus, corpus, np.zeros(3, np.int32), 1, 1)

    many = [window("a", i) for i in range(10)] + [window("b", i) for i in range(2)]
    picked = spread_windows(many, 6)
    assert [(w.corpus, w.window.start) for w in picked] == [("a", 0), ("a", 4), ("a", 9), ("b", 0), ("b", 1)]
