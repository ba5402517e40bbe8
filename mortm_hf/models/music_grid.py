"""Bars, meters and ticks: the metric grid.

Design decisions
- 24 ticks a quarter note in every meter: a 4/4 bar has 96 ticks (upstream's grid exactly), 3/4 and 6/8 have 72.
- Integer arithmetic on MIDI ticks, never on seconds. Notes and bar lines are rounded on the same absolute grid, so a
  bar's length is the difference of its rounded lines.
- A bar is written with a listed meter. A bar whose length no listed meter has is *irregular*: the shortest longer
  meter stands for it, and its true length is written beside it for that bar only.

Knows: integers, the meter table. Must not know: MIDI files, tokens, torch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from .errors_mortm import VocabularyError
from .music_names import MAX_BAR_TICKS, METER_TICKS, METERS


TICKS_PER_QUARTER = 24
COMMON_TIME = METERS.index((4, 4))
_DENOMINATORS = (4, 8, 16, 2)  # order of preference between meters of one length


def round_to_grid(tick: np.ndarray, ticks_per_quarter: int) -> np.ndarray:
    """MIDI ticks -> grid ticks, halves upward, in integers: `floor((48 tick + tpq) / (2 tpq))`.

    Args:
        tick: MIDI ticks of any shape.
        ticks_per_quarter: of the file.

    Returns:
        int64 grid ticks, 24 a quarter.
    """
    tick = np.asarray(tick, dtype=np.int64)
    if ticks_per_quarter % TICKS_PER_QUARTER == 0:
        step = ticks_per_quarter // TICKS_PER_QUARTER
        return tick if step == 1 else (2 * tick + step) // (2 * step)
    return (2 * TICKS_PER_QUARTER * tick + ticks_per_quarter) // (2 * ticks_per_quarter)


@lru_cache(maxsize=1)
def _meter_table() -> tuple[np.ndarray, dict[int, int]]:
    """`[denominator, length]` -> the listed meter written for a bar of that length (DESIGN 3)."""
    table = np.zeros((len(_DENOMINATORS) + 1, MAX_BAR_TICKS + 1), dtype=np.int16)
    for row in range(len(_DENOMINATORS) + 1):
        own = _DENOMINATORS[row] if row < len(_DENOMINATORS) else None
        order = sorted(
            range(len(METERS)),
            key=lambda m: (METER_TICKS[m], METERS[m][1] != own, _DENOMINATORS.index(METERS[m][1])),
        )
        ticks = METER_TICKS[order]
        for length in range(1, MAX_BAR_TICKS + 1):
            table[row, length] = order[int(np.searchsorted(ticks, length, side="left"))]
    return table, {d: i for i, d in enumerate(_DENOMINATORS)}


def meters_of_lengths(length: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The meter that each bar is written with: a listed one of exactly its length, else the shortest longer one.

    Args:
        length: `[n_bars]` ticks, 1 to 192.
        denominator: `[n_bars]` denominators stated in the file; among meters of one length theirs comes first.

    Returns:
        `[n_bars]` indices into `METERS`.
    """
    table, rows = _meter_table()
    if len(denominator) and (denominator == denominator[0]).all():
        return table[rows.get(int(denominator[0]), len(_DENOMINATORS)), length]
    row = np.full(len(length), len(_DENOMINATORS), dtype=np.int64)
    for value, index in rows.items():
        row[denominator == value] = index
    return table[row, length]


def is_pair(value) -> bool:
    """Whether a value is a pair of whole numbers: a range `(start, stop)` or a meter."""
    return (
        isinstance(value, (tuple, list, range))
        and len(value) == 2
        and all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in value)
    )


def parse_meter(meter) -> int:
    """A meter as a user writes it.

    Args:
        meter: `"3/4"`, `"common"`, `"cut"` or `(3, 4)`.

    Returns:
        Index into `METERS`.

    Raises:
        VocabularyError: `vocabulary.meter`, for anything else.
    """
    pair = None
    if isinstance(meter, str):
        text = {"c": "4/4", "common": "4/4", "cut": "2/2"}.get(meter.strip().lower(), meter)
        parts = text.split("/")
        if len(parts) == 2 and all(p.strip().isdigit() for p in parts):
            pair = int(parts[0]), int(parts[1])
    elif is_pair(meter):
        pair = int(meter[0]), int(meter[1])
    if pair not in METERS:
        raise VocabularyError(
            f"unknown meter {meter!r}: listed are 1/2 to 4/2, 1/4 to 8/4, 1/8 to 16/8 and 1/16 to 16/16",
            "vocabulary.meter",
        )
    return METERS.index(pair)


@dataclass(frozen=True)
class BarTable:
    """The bar lines of a passage.

    Attributes:
        start: `[n_bars + 1]` int64 grid ticks of the bar lines, the closing one included; `start[0] == 0`.
        meter: `[n_bars]` int16, index into `METERS` of the meter each bar is written with.
    """

    start: np.ndarray
    meter: np.ndarray

    @classmethod
    def from_lengths(cls, length: np.ndarray, meter: np.ndarray) -> BarTable:
        """Bars of given lengths.

        Args:
            length: `[n_bars]` ticks.
            meter: `[n_bars]` indices into `METERS`.
        """
        start = np.zeros(len(length) + 1, dtype=np.int64)
        np.cumsum(length, out=start[1:])
        return cls(start, np.asarray(meter, dtype=np.int16))

    @classmethod
    def regular(cls, meter: int, n_bars: int) -> BarTable:
        """Full bars of one meter.

        Args:
            meter: index into `METERS`.
            n_bars: how many.
        """
        return cls.from_lengths(np.full(n_bars, METER_TICKS[meter]), np.full(n_bars, meter))

    @classmethod
    def concat(cls, *tables: BarTable) -> BarTable:
        """Tables one after the other."""
        return cls.from_lengths(np.concatenate([t.length for t in tables]), np.concatenate([t.meter for t in tables]))

    @property
    def n_bars(self) -> int:
        """How many bars."""
        return len(self.meter)

    @property
    def end(self) -> int:
        """Tick of the closing bar line."""
        return int(self.start[-1])

    @cached_property
    def length(self) -> np.ndarray:
        """`[n_bars]` ticks of each bar."""
        return np.diff(self.start)

    @cached_property
    def irregular(self) -> np.ndarray:
        """`[n_bars]` bool: bars that write their true length beside the meter."""
        return self.length != METER_TICKS[self.meter]

    def of(self, tick: np.ndarray) -> np.ndarray:
        """Bar in which each tick falls (ticks past the end belong to the last bar)."""
        return np.searchsorted(self.start[1:-1], tick, side="right")

    def window(self, start: int, stop: int) -> BarTable:
        """Some bars, re-based to tick 0.

        Args:
            start: the first.
            stop: the one after the last.
        """
        return BarTable(self.start[start : stop + 1] - self.start[start], self.meter[start:stop])

    def states_meter(self) -> np.ndarray:
        """`[n_bars]` bool, which bars write their meter when this table opens a block: the first, changes, irregular
        bars and the bar after one."""
        states = np.ones(self.n_bars, dtype=bool)
        if self.n_bars > 1:
            odd = self.irregular
            states[1:] = (self.meter[1:] != self.meter[:-1]) | odd[1:] | odd[:-1]
        return states


def is_bar_table(value) -> bool:
    """Whether a value is a `BarTable`, of this copy of the code or of another one beside a checkpoint."""
    return hasattr(value, "start") and hasattr(value, "meter")


def _split_cycle(bars: BarTable) -> np.ndarray | None:
    """Rows of the last bars that one longer bar was split into, in the order in which they would repeat; None where
    the last bar is one of its own.

    A bar of more than 192 ticks is read as bars of 192 and a shorter rest (`bars_of_meters`), so 9/4 is 8/4 and 1/4
    alternating. One bar of 192 and a rest is taken for that; several and a rest only where they come twice, since
    music in 8/4 may continue in another meter.
    """
    length, n = bars.length, bars.n_bars
    for back in range(min(n, 4)):  # the passage may end inside of the split bar
        end = n - back
        if length[end - 1] == MAX_BAR_TICKS:
            continue
        run = end - 1
        while run and length[run - 1] == MAX_BAR_TICKS:
            run -= 1
        size = end - run
        twice = run >= size and np.array_equal(length[run - size : run], length[run:end])
        if back < size and (size == 2 or (size > 2 and twice)):
            return run + (back + np.arange(size)) % size
        return None
    return None


def continued_bars(tables: Sequence[BarTable], n_bars: int) -> BarTable:
    """Bars that continue a song.

    Args:
        tables: bars to continue, the nearest first; the first that has a full bar decides.
        n_bars: how many bars are wanted.

    Returns:
        Bars in the last meter of that table (a bar split for its length counts as one); 4/4 without any.
    """
    for bars in tables:
        cycle = _split_cycle(bars)
        if cycle is not None:
            rows = np.resize(cycle, n_bars)
            return BarTable.from_lengths(bars.length[rows], bars.meter[rows])
        regular = np.flatnonzero(~bars.irregular)
        if len(regular):
            return BarTable.regular(int(bars.meter[regular[-1]]), n_bars)
    return BarTable.regular(COMMON_TIME, n_bars)


def bars_of_meters(
    changes: Sequence[tuple[int, int, int]],
    ticks_per_quarter: int,
    lines: np.ndarray,
    until: int,
    at_least: int = 0,
    max_bars: int = 1 << 20,
) -> tuple[BarTable, int] | None:
    """Bar table of a piece from its meter events.

    Args:
        changes: (tick, numerator, denominator) of the real meter changes in MIDI ticks, ascending, the first at 0.
        ticks_per_quarter: of the file.
        lines: grid ticks of further bar lines (markers of an earlier decode).
        until: grid tick that the table must reach (the last offset).
        at_least: bars that it must have.
        max_bars: the cap on its bars.

    Returns:
        The table, and how many bars were cut short by a change or a line inside them; None where the table would have
        more than `max_bars`.
    """
    # Every segment [first, last) runs in one meter from an exact (rational) start; forced lines open one as well.
    # Starts are in units of 1 / (2 tpq) grid ticks.
    segments = [(tick * 2 * TICKS_PER_QUARTER, num, den) for tick, num, den in changes]
    if len(lines):
        starts = [start for start, _, _ in segments]
        for line in np.unique(lines).tolist():
            exact = line * 2 * ticks_per_quarter
            inside = bisect_right(starts, exact) - 1
            if exact != starts[inside]:
                segments.append((exact, *segments[inside][1:]))
        segments.sort()
    unit = 2 * ticks_per_quarter
    starts, denominators, sizes, cut, total = [], [], [], 0, 0
    for index, (first, num, den) in enumerate(segments):
        per_bar = num * 96 * unit  # / den, in units of 1 / unit grid tick
        begin = (first + ticks_per_quarter) // unit
        stop = (segments[index + 1][0] + ticks_per_quarter) // unit if index + 1 < len(segments) else None
        last = stop is None or stop > until
        # One line more than the bars that could be needed; what lies at or past `stop` is dropped below.
        span = max((until if last else stop) - begin, 0)
        count = max(-(-(span + 1) * unit * den // per_bar), at_least if last else 0) + 2
        total += count
        if total > max_bars:
            return None
        line = np.arange(count, dtype=np.int64) * (2 * per_bar)
        line += 2 * first * den + unit * den
        line //= 2 * unit * den
        if stop is not None:
            line = line[line < stop]
            ended = len(line) < count  # this segment runs into the next one
            cut += bool(ended and len(line) and (stop - line[-1]) * den < num * 96)
            if last and ended and sum(sizes) + len(line) > at_least:
                line = np.append(line, stop)
        starts.append(line)
        denominators.append(den)
        sizes.append(len(line))
        if last and sum(sizes) > at_least + 1:
            break
    start = starts[0] if len(starts) == 1 else np.concatenate(starts)
    denominator_of = np.repeat(np.array(denominators), sizes)[:-1]
    length = start[1:] - start[:-1]
    if not length.all():  # two changes on one grid tick
        keep = length > 0
        length, denominator_of = length[keep], denominator_of[keep]
    if len(length) and length.max() > MAX_BAR_TICKS:
        pieces = -(-length // MAX_BAR_TICKS)
        owner = np.repeat(np.arange(len(length)), pieces)
        nth = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        length = np.minimum(length[owner] - nth * MAX_BAR_TICKS, MAX_BAR_TICKS)
        denominator_of = denominator_of[owner]
    edges = np.zeros(len(length) + 1, dtype=np.int64)
    np.cumsum(length, out=edges[1:])
    n_bars = max(int(np.searchsorted(edges[1:], until, side="left")) + 1, at_least)
    length, denominator_of = length[:n_bars], denominator_of[:n_bars]
    return BarTable(edges[: n_bars + 1], meters_of_lengths(length, denominator_of)), cut
