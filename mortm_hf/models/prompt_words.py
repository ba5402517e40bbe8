"""The words of a request -> values: meters, genres, densities, tempi, bar ranges, chord lists, scales.

Design decisions
- Every parser names the input and the remedy in its error; nothing is guessed silently.
- Bars and beats count from 0; a range is half-open.

Knows: names and numbers of the token table, the grid. Must not know: token ids, models, files
(`prompt_building` reads).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from .errors_mortm import PromptError, VocabularyError
from .midi_files import tempo_bin
from .music_grid import BarTable
from .music_harmony import chord_table, split_key
from .music_score import ChordTable
from .token_vocabulary import GENRES, METERS, TokenKind


TASKS = {"melody": TokenKind.MGEN, "chords": TokenKind.CGEN, "meta": TokenKind.META}
_SCALES = {False: (0, 2, 4, 5, 7, 9, 11), True: (0, 2, 3, 5, 7, 8, 10)}


def task_kind(task: str) -> TokenKind:
    """The marker of a task's generated field."""
    try:
        return TASKS[task]
    except (KeyError, TypeError):
        raise PromptError(f"task must be one of {', '.join(TASKS)}, got {task!r}", "prompt.task") from None


def whole_number(value, name: str, least: int, remedy: str) -> int:
    """An integer argument of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise PromptError(f"{name} must be a whole number, got {value!r}: {remedy}", "prompt.bars")
    if value < least:
        raise PromptError(f"{name} must be at least {least}, got {value}: {remedy}", "prompt.bars")
    return int(value)


def is_range(value) -> bool:
    """Whether a value reads as a bar range `(start, stop)`."""
    return (
        isinstance(value, (tuple, list, range))
        and len(value) == 2
        and all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in value)
    )


def bar_range(value, n_bars: int, name: str) -> tuple[int, int]:
    """A checked range of song bars."""
    first, stop = int(value[0]), int(value[1])
    if not 0 <= first < stop <= n_bars:
        raise PromptError(
            f"{name} must satisfy 0 <= start < stop <= {n_bars} (the song's bars), got {first}:{stop}", "prompt.bars"
        )
    return first, stop


def parse_meter(meter) -> int:
    """`"3/4"` or `(3, 4)` -> index into `METERS`; raises `VocabularyError` (`vocabulary.meter`)."""
    pair = None
    if isinstance(meter, str):
        text = {"c": "4/4", "common": "4/4", "cut": "2/2"}.get(meter.strip().lower(), meter)
        parts = text.split("/")
        if len(parts) == 2 and all(p.strip().isdigit() for p in parts):
            pair = int(parts[0]), int(parts[1])
    elif is_range(meter):
        pair = int(meter[0]), int(meter[1])
    if pair not in METERS:
        raise VocabularyError(
            f"unknown meter {meter!r}: listed are 1/2 to 4/2, 1/4 to 8/4, 1/8 to 16/8 and 1/16 to 16/16",
            "vocabulary.meter",
        )
    return METERS.index(pair)


def meter_bars(meter, bars: int) -> BarTable:
    """The bar table that a `meter` argument asks for: one meter, or a list with one a bar."""
    if isinstance(meter, str) or is_range(meter):
        return BarTable.regular(parse_meter(meter), bars)
    if hasattr(meter, "start") and hasattr(meter, "meter"):
        if meter.n_bars != bars:
            raise PromptError(f"the bar table has {meter.n_bars} bars, but {bars} are asked for", "prompt.bars")
        return meter
    if not isinstance(meter, Sequence):
        parse_meter(meter)
    if len(meter) != bars:
        raise PromptError(f"got {len(meter)} meters for {bars} bars: give one, or one for each bar", "prompt.bars")
    return BarTable.concat(*(BarTable.regular(parse_meter(m), 1) for m in meter))


def parse_tempo(tempo) -> int:
    """Quarters a minute -> tempo bin; raises `PromptError` outside 10 to 500."""
    try:
        value = float(tempo)
    except (TypeError, ValueError):
        value = float("nan")
    if not 10.0 <= value <= 500.0:
        raise PromptError(
            f"tempo must be between 10 and 500 quarters a minute, got {tempo!r} (the nearest of 32 values from "
            "30 to 240 is used)",
            "prompt.tempo",
        )
    return int(tempo_bin(value))


def parse_genres(genre) -> tuple[int, ...]:
    """GENRE values of one or several names (or values)."""
    names = tuple(genre) if isinstance(genre, (list, tuple, set, frozenset, range, np.ndarray)) else (genre,)
    values = []
    for name in names:
        if isinstance(name, (int, np.integer)) and not isinstance(name, bool) and 0 <= name < len(GENRES):
            values.append(int(name))
            continue
        text = "".join(c for c in str(name).lower().replace("&", "n") if c.isalnum())
        if text not in GENRES:
            raise VocabularyError(f"unknown genre {name!r}: use one of {', '.join(GENRES)}", "vocabulary.genre")
        values.append(GENRES.index(text))
    return tuple(dict.fromkeys(values))


def parse_densities(density, count: int) -> tuple[int | None, ...]:
    """One density for all instruments, or one each (None: not stated)."""
    listed = isinstance(density, (list, tuple, np.ndarray))
    values = list(density) if listed else [density] * count
    if len(values) != count:
        raise PromptError(f"got {len(values)} densities for {count} instruments: give one, or one for each")
    for value in values:
        if value is not None and (isinstance(value, bool) or value not in range(1, 11)):
            raise PromptError(f"density must be 1 (sparse) to 10 (dense), got {value!r}")
    return tuple(None if v is None else int(v) for v in values)


def parse_scale(scale) -> tuple[int, ...] | None:
    """Pitch classes, or a key name (its major or natural minor scale) -> sorted pitch classes."""
    if scale is None:
        return None
    if isinstance(scale, str):
        tonic, minor = split_key(scale)
        return tuple(sorted((tonic + step) % 12 for step in _SCALES[minor]))
    listed = isinstance(scale, (list, tuple, set, frozenset, range, np.ndarray))
    if not listed or not all(isinstance(p, (int, np.integer)) for p in scale):
        raise PromptError(f"scale must be pitch classes from 0 (C) to 11 (B) or a key name, got {scale!r}")
    values = sorted({int(p) for p in scale})
    if not values or values[0] < 0 or values[-1] > 11:
        raise PromptError(f"scale must be pitch classes from 0 (C) to 11 (B) or a key name, got {scale!r}")
    return tuple(values)


def parse_pitch_range(limits) -> tuple[int, int] | None:
    """Lowest and highest pitch, 0 to 127."""
    if limits is None:
        return None
    if not is_range(limits) or not 0 <= limits[0] <= limits[1] <= 127:
        raise PromptError(f"pitch_range must be (lowest, highest) within 0 to 127, got {limits!r}")
    return int(limits[0]), int(limits[1])


def chord_entries(chords) -> list[str] | list[tuple[str, int, Fraction]]:
    """Chords of a request (see `parse_chords`, tables excepted) as symbols, or as (symbol, bar, beat) entries.

    Raises:
        PromptError: symbols and entries are mixed, or an entry cannot be read.
    """
    if isinstance(chords, str):
        return chords.replace("|", " ").split()
    if isinstance(chords, Mapping):
        chords = [(symbol, *(place if isinstance(place, tuple) else (place,))) for place, symbol in chords.items()]
    try:
        chords = list(chords)
    except TypeError:
        raise PromptError(f"cannot read the chords {chords!r}: write 'C Am F G' or a list of symbols") from None
    symbols = sum(isinstance(chord, str) for chord in chords)
    if symbols == len(chords):
        return chords
    if symbols:
        raise PromptError("chords are either all symbols (one a bar) or all (symbol, bar) or (symbol, bar, beat)")
    found = []
    for entry in chords:
        if not isinstance(entry, (tuple, list)) or len(entry) not in (2, 3):
            raise PromptError(f"cannot read the chord {entry!r}: write (symbol, bar) or (symbol, bar, beat)")
        symbol, bar, beat = (*entry, 0)[:3]
        bar = whole_number(bar, f"the bar of the chord {symbol!r}", 0, "bars count from 0")
        try:
            beat = Fraction(beat).limit_denominator(1000)
        except (TypeError, ValueError, OverflowError, ZeroDivisionError):
            raise PromptError(f"the beat of the chord {symbol!r} must be a number, got {beat!r}") from None
        found.append((symbol, bar, beat))
    return found


def parse_chords(chords, bars: BarTable, start: int) -> ChordTable | None:
    """Chords of the generated bars, from tick 0 of them.

    Args:
        chords: `"C Am F G"` (bar lines `|` may stand between) or a list of symbols: one a bar, fewer cycle; or entries
            `(symbol, bar)` and `(symbol, bar, beat)`; or `{(bar, beat): symbol}`; or a `ChordTable`. Bars are bars of
            the song, the first generated one being `start`; beats count in the meter's denominator from 0. A table
            starts with the generated bars; what lies beyond them is left out.

    Returns:
        None where nothing is given.

    Raises:
        VocabularyError: `vocabulary.chord`. PromptError: more chords than bars, a place outside the generated bars.
    """
    if hasattr(chords, "onset") and hasattr(chords, "root"):
        chords = chords.window(0, bars.end)
        return chords if len(chords) else None
    chords = chord_entries(chords)
    if not chords:
        return None
    if isinstance(chords[0], str):
        if len(chords) > bars.n_bars:
            raise PromptError(
                f"got {len(chords)} chords for {bars.n_bars} bars: give one a bar or (symbol, bar, beat)",
                "prompt.bars",
            )
        return chord_table(bars.start[:-1], [chords[i % len(chords)] for i in range(bars.n_bars)])
    ticks, labels = [], []
    for symbol, bar, beat in chords:
        index = bar - start
        if not 0 <= index < bars.n_bars:
            raise PromptError(
                f"the chord {symbol!r} in bar {bar} is outside the generated bars {start} to {start + bars.n_bars}",
                "prompt.bars",
            )
        ticks_a_beat = Fraction(96, METERS[int(bars.meter[index])][1])
        tick = round(beat * ticks_a_beat)
        if not 0 <= tick < int(bars.length[index]):
            raise PromptError(f"beat {float(beat):g} of the chord {symbol!r} is outside its bar {bar}", "prompt.bars")
        ticks.append(int(bars.start[index]) + tick)
        labels.append(symbol)
    return chord_table(ticks, labels)
