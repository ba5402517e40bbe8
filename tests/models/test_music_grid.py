"""The grid against arithmetic written out with fractions."""

from fractions import Fraction

import numpy as np
import pytest

from mortm_hf.models.music_grid import BarTable, bars_of_meters, continued_bars, meters_of_lengths, round_to_grid
from mortm_hf.models.music_names import METER_TICKS, METERS


NO_LINES = np.empty(0, dtype=np.int64)


def half_up(x: Fraction) -> int:
    return (x + Fraction(1, 2)).__floor__()


def bars(events, tpq, until, lines=(), at_least=0):
    return bars_of_meters(events, tpq, np.array(lines, dtype=np.int64), until, at_least)


@pytest.mark.parametrize("tpq", [1, 7, 24, 96, 120, 384, 480, 1024, 15360, 32767])
def test_rounding_is_exact(tpq):
    ticks = np.random.default_rng(tpq).integers(0, 10_000 * tpq, 500)
    expected = [half_up(Fraction(int(t) * 24, tpq)) for t in ticks]
    assert round_to_grid(ticks, tpq).tolist() == expected


@pytest.mark.parametrize(("meter", "ticks"), [((4, 4), 96), ((3, 4), 72), ((6, 8), 72), ((5, 4), 120), ((7, 8), 84)])
def test_bar_lengths(meter, ticks):
    table, cut = bars([(0, *meter)], 480, 1000)
    assert set(table.length.tolist()) == {ticks} and cut == 0
    assert METERS[table.meter[0]] == meter and not table.irregular.any()


def test_song_ends_with_the_bar_of_the_last_offset():
    assert bars([(0, 4, 4)], 480, 96)[0].n_bars == 1
    assert bars([(0, 4, 4)], 480, 97)[0].n_bars == 2
    assert bars([(0, 4, 4)], 480, 96, at_least=5)[0].n_bars == 5


def test_change_inside_a_bar_ends_it_there():
    table, cut = bars([(0, 4, 4), (2400, 3, 4)], 480, 300)  # after 1 1/4 bars
    assert table.length.tolist() == [96, 24, 72, 72, 72] and cut == 1
    assert [METERS[m] for m in table.meter[:3]] == [(4, 4), (1, 4), (3, 4)]


def test_irregular_bar_takes_the_shortest_longer_meter():
    table, _ = bars([(0, 4, 4), (480 * 2 + 50, 3, 4)], 480, 200)
    first = int(table.length[0])
    assert first == half_up(Fraction(1010 * 24, 480)) and table.irregular[0]
    longer = [t for t in METER_TICKS if t >= first]
    assert METER_TICKS[table.meter[0]] == min(longer)
    assert table.states_meter()[:3].tolist() == [True, True, False]


def test_long_bars_are_split():
    table, _ = bars([(0, 9, 4)], 480, 420)
    assert table.length.tolist() == [192, 24, 192, 24]
    assert [METERS[m] for m in table.meter[:2]] == [(8, 4), (1, 4)]


def test_forced_lines():
    table, _ = bars([(0, 4, 4)], 480, 250, lines=[50])
    assert table.start.tolist()[:4] == [0, 50, 146, 242]


@pytest.mark.parametrize("tpq", [7, 480, 1024])
def test_odd_denominators_follow_the_exact_lines(tpq):
    table, _ = bars([(0, 13, 32)], tpq, 500)
    lines = [half_up(Fraction(13 * 96 * k, 32)) for k in range(table.n_bars + 1)]
    assert table.start.tolist() == lines


def test_exact_length_prefers_the_same_denominator():
    found = meters_of_lengths(np.array([72, 72, 72, 96, 96]), np.array([4, 8, 16, 2, 4]))
    assert [METERS[m] for m in found] == [(3, 4), (6, 8), (12, 16), (2, 2), (4, 4)]


def test_too_long_is_refused_without_allocating():
    assert bars_of_meters([(0, 1, 16)], 480, NO_LINES, 10**12, max_bars=1000) is None


def test_window_concat_and_of():
    table, _ = bars([(0, 4, 4), (1920 * 2, 3, 4)], 480, 400)
    window = table.window(1, 4)
    assert window.start.tolist() == [0, 96, 168, 240]
    assert BarTable.concat(table.window(0, 1), window).start.tolist() == table.start[:5].tolist()
    assert table.of(np.array([0, 95, 96, 191, 192, 10_000])).tolist() == [0, 0, 1, 1, 2, table.n_bars - 1]


def test_changes_in_every_bar():
    events = [(480 * 3 * k, 3, 4) if k % 2 else (480 * 3 * k, 6, 8) for k in range(40)]
    table, cut = bars(events, 480, 72 * 40)
    assert table.n_bars == 40 and cut == 0 and table.states_meter().all()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([96, 72, 72], [72, 72, 72]),
        ([192, 24], [192, 24, 192]),  # one bar of 9/4
        ([96, 192, 24], [192, 24, 192]),
        ([192, 24, 192, 24], [192, 24, 192]),
        ([192, 24, 192], [24, 192, 24]),  # the song ends inside of one
        ([192, 192], [192, 192, 192]),  # 8/4, or 16/4
        ([192, 192, 24, 192, 192, 24], [192, 192, 24]),  # 17/4
        ([192, 192, 24, 192, 192, 24, 192], [192, 24, 192]),
        ([192, 192, 96], [96, 96, 96]),  # 8/4 twice, then 4/4
        ([192, 192, 192, 192, 72, 72], [72, 72, 72]),
        ([], [96, 96, 96]),
    ],
)
def test_bars_go_on_in_their_meter(before, after):
    meters = meters_of_lengths(np.array(before, dtype=np.int64), np.full(len(before), 4))
    table = BarTable.from_lengths(np.array(before, dtype=np.int64), meters)
    more = continued_bars([table], 3)
    assert more.length.tolist() == after and not more.irregular.any()
    whole = BarTable.concat(table, more)
    assert np.array_equal(whole.meter, meters_of_lengths(whole.length, np.full(whole.n_bars, 4)))


def test_irregular_bars_are_not_gone_on_with():
    cut = BarTable.from_lengths([72, 40], [METERS.index((3, 4)), METERS.index((2, 4))])
    assert continued_bars([cut], 2).length.tolist() == [72, 72]
    pickup = BarTable.from_lengths([40], [METERS.index((2, 4))])
    assert continued_bars([pickup, cut], 2).length.tolist() == [72, 72]
