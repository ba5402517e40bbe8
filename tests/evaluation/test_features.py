"""Bags of features: counted right, blind to what they should be blind to, and learnable."""

import numpy as np
import pytest

from mortm_hf.data.corruptions import tidy
from mortm_hf.evaluation.features import bag_of_features, fit_baseline, scores_of
from mortm_hf.models.inputs_bertm import bare_segment
from mortm_hf.models.music_grid import COMMON_TIME, BarTable
from mortm_hf.models.music_names import METERS
from mortm_hf.models.music_score import MetricScore
from mortm_hf.models.token_vocabulary import MetricVocabulary


def score_of(notes, meter=COMMON_TIME, bars=2, programs=(0,)) -> MetricScore:
    track, onset, pitch, duration = np.array(sorted(notes), dtype=np.int64).reshape(-1, 4).T
    table = BarTable.regular(meter, bars)
    plain = MetricScore(
        bars=table,
        track=track,
        onset=onset,
        pitch=pitch,
        duration=duration,
        velocity=np.full(len(track), 90),
        programs=np.array(programs, dtype=np.int16),
        tempo=np.full(bars, -1, dtype=np.int16),
    )
    return tidy(plain)


# C major triad, then E4 a quarter later, then in bar 2 the same again
TRIAD = [(0, 96 * b + t, p, 24) for b in (0, 1) for t, p in ((0, 60), (0, 64), (0, 67), (24, 64))]


def test_histograms_by_hand():
    bag = bag_of_features([score_of(TRIAD)])
    pitch = bag.of("pitch")[0]
    assert pitch[64] == pytest.approx(0.5) and pitch[60] == pytest.approx(0.25) and pitch.sum() == pytest.approx(1)
    classes = bag.of("pitch class")[0]
    assert classes[:12][[0, 4, 7]].tolist() == [0.25, 0.5, 0.25]
    assert classes[12:][[0, 3, 8]].tolist() == [0.5, 0.25, 0.25]  # from E, the commonest, upward
    melodic, harmonic = np.split(bag.of("interval")[0], [27])
    assert melodic[13 - 3] == pytest.approx(2 / 3) and melodic[13 + 3] == pytest.approx(1 / 3)  # G E | G E
    assert harmonic[4] == pytest.approx(0.5) and harmonic[3] == pytest.approx(0.5)
    assert bag.of("meter")[0].argmax() == COMMON_TIME and bag.of("meter").shape[1] == len(METERS)
    onset = bag.of("onset")[0]
    assert onset[0] == 1 and onset[24] == 0.75 and onset[25] == 0.25
    density = bag.of("density")[0]
    assert density[0] == pytest.approx(np.log1p(8 / 8)) and density[2] == pytest.approx(2) and density[3] == 1
    low, high, mean, _, distinct = bag.of("range")[0]
    assert (low, high, mean, distinct) == (60, 67, 63.75, 3)
    assert bag.of("repetition")[0][-1] == 0.5 and bag.of("repetition")[0][0] == pytest.approx(1)
    step = bag.of("step")[0]
    assert step[24] == pytest.approx(2 / 3)  # a quarter; column k counts k ticks


def test_windows_do_not_mix():
    other = score_of([(0, 12 * i, 50 + i, 12) for i in range(8)], meter=METERS.index((3, 4)))
    two_tracks = score_of([*TRIAD, (1, 0, 40, 96)], programs=(0, 32))
    together = bag_of_features([score_of(TRIAD), other, two_tracks])
    for i, alone in enumerate((score_of(TRIAD), other, two_tracks)):
        assert np.allclose(together.values[i], bag_of_features([alone]).values[0])
    assert together.of("density")[:, 3].tolist() == [1, 1, 2]


def test_an_empty_window_is_no_error():
    empty = score_of(TRIAD)
    empty = empty.take_tracks([])
    values = bag_of_features([empty, score_of(TRIAD)]).values
    assert np.isfinite(values).all()
    assert np.allclose(values[1], bag_of_features([score_of(TRIAD)]).values[0])


def test_repeated_bars_are_found_whatever_the_order_of_bars():
    def repeats(pattern):
        notes = [(0, 96 * b + 24 * k, 60 + 3 * p + k, 24) for b, p in enumerate(pattern) for k in range(4)]
        return bag_of_features([score_of(notes, bars=len(pattern))]).of("repetition")[0][-1]

    assert repeats([0, 1, 2, 3]) == 0 and repeats([0, 1, 0, 1]) == 0.5 and repeats([0, 0, 0, 0]) == 0.75


def test_ids_give_the_same_features():
    vocabulary, score = MetricVocabulary.default(), score_of(TRIAD)
    read = scores_of(vocabulary, [bare_segment(vocabulary, score)])
    assert np.allclose(bag_of_features(read).values, bag_of_features([score]).values)


def test_a_baseline_learns_a_style_and_says_what_won():
    rng = np.random.default_rng(0)

    def some(n):
        label = rng.integers(0, 2, n)
        steps = [rng.choice([1, 2] if k else [5, 7], 15) * rng.choice([-1, 1], 15) for k in label]
        notes = [[(0, 12 * i, int(p), 12) for i, p in enumerate(60 + np.append(0, np.cumsum(s) % 24))] for s in steps]
        return bag_of_features([score_of(x) for x in notes]), label

    (x, y), (vx, vy), (tx, ty) = some(80), some(30), some(60)
    fitted = fit_baseline(x, y, vx, vy, 3)
    scores = fitted.predict(tx)
    assert scores.shape == (60, 3) and (scores.argmax(1) == ty).mean() > 0.9
    assert (scores[:, 2] < -10).all()  # a label that was never seen
    assert "logistic" in fitted.chosen or "forest" in fitted.chosen
    blind = fit_baseline(x, y, vx, vy, 2, names=("meter",), forest=False)
    assert len(set(blind.predict(tx).argmax(1).tolist())) == 1
