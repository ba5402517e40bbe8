"""Requests cut into windows. Generated windows: `test_pipeline_mortm`."""

from mortm_hf.models.window_mortm import spread_chords


def test_spread_chords():
    assert spread_chords("C | Am", 4, 3) == [("C", 4, 0), ("Am", 5, 0), ("C", 6, 0)]
    assert spread_chords({0: "C", (1, 2): "G"}, 0, 2) == [("C", 0, 0), ("G", 1, 2)]
    assert spread_chords([], 0, 2) is None and spread_chords(True, 0, 2) is True and spread_chords(False, 0, 2) is None
