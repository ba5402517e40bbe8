"""The words of a request -> values: read once, at the door.

Design decisions
- `read_words` opens all music that a request names and reads every word of it; what comes after works on values.
- Every reader names the input and the remedy in its error; nothing is guessed silently.
- Bars and beats count from 0; a range is half-open.

Knows: names of the field, controls, MIDI and chord files. Must not know: token ids, models; which music goes into
which block (`prompt_passage`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from .errors_mortm import PromptError
from .midi_chords import is_chord_file, read_chord_file
from .midi_files import is_symusic, load_score, read_midi
from .music_grid import BarTable, is_bar_table, is_pair, parse_meter
from .music_harmony import parse_chord, split_key
from .music_instruments import category_of, instrument_name, match_programs, parse_instrument
from .music_score import ChordTable, MetricScore, is_chord_table, is_score
from .token_headers import Header
from .token_vocabulary import CONTROLS, TokenKind


TASKS = {"melody": TokenKind.MGEN, "chords": TokenKind.CGEN, "meta": TokenKind.META}
UPSTREAM_MAX_DURATION = 288
_SCALES = {False: (0, 2, 4, 5, 7, 9, 11), True: (0, 2, 3, 5, 7, 8, 10)}
# Controls that state what is generated, not how: they have readers of their own below.
_STRUCTURE = ("instruments", "bars", "meter")


@dataclass(frozen=True)
class Words:
    """A request with all of its words read.

    Attributes:
        kind: marker of the generated field.
        task: its name.
        dialect: "metric" or "mortm".
        song: the music that bar ranges and track indices speak of, or None.
        past: music of its own, a range of the song's bars, a number of bars, True (all), or None.
        future: likewise.
        tracks: music of its own, indices of the song's tracks, True (all that are not generated), or None.
        start: first generated bar, or None.
        bars: how many bars, or None.
        instruments: INSTRUMENT values, or None.
        targets: indices of the song's tracks to generate, or None.
        meter: one meter, one for each bar, a `BarTable`, or None.
        controls: what was asked of the other controls, by name (of `Control.read`).
        chords: `(symbol, bar, beat)` entries, symbols one a bar, a `ChordTable`, or None.
        song_chords: the song's own chords are given.
        velocity: whether notes carry velocities, or None (as the given music does).
        pitch_range: lowest and highest pitch, or None.
        scale: pitch classes, or None.
        omit: controls that are not written.
    """

    kind: TokenKind
    task: str
    dialect: str
    song: MetricScore | None
    past: MetricScore | tuple[int, int] | int | bool | None
    future: MetricScore | tuple[int, int] | int | bool | None
    tracks: MetricScore | tuple[int, ...] | bool | None
    start: int | None
    bars: int | None
    instruments: tuple[int, ...] | None
    targets: tuple[int, ...] | None
    meter: int | tuple[int, ...] | BarTable | None
    controls: Mapping[str, Any]
    chords: list | ChordTable | None
    song_chords: bool
    velocity: bool | None
    pitch_range: tuple[int, int] | None
    scale: tuple[int, ...] | None
    omit: tuple[str, ...]


def read_words(prompt, dialect: str) -> Words:
    """Read a request.

    Args:
        prompt: a `MetricPrompt`.
        dialect: "metric" or "mortm".

    Raises:
        PromptError: a word that cannot be read.
        VocabularyError: a name that the token table does not have.
        MidiError: music that cannot be read.
    """
    kind = read_task(prompt.task)
    song = None if prompt.song is None else read_music(prompt.song, dialect)
    song_chords = prompt.chords is True
    if is_chord_file(prompt.chords):
        song, song_chords = _annotated(song, prompt), True
    past, future = (_given_bars(getattr(prompt, name), name, song, dialect) for name in ("past", "future"))
    tracks = _given_tracks(prompt.tracks, song, dialect)
    if kind == TokenKind.META and (prompt.past or prompt.future or prompt.chords):
        raise PromptError("task 'meta' describes `tracks` only: leave out past, future and chords")
    if kind == TokenKind.CGEN and prompt.chords is not None and prompt.chords is not False:
        raise PromptError("task 'chords' asks for the chords: leave out `chords`")
    if prompt.velocity not in (None, False, True):
        raise PromptError(f"velocity must be True, False or None (as in the given music), got {prompt.velocity!r}")
    instruments = None
    if prompt.instruments is not None and kind == TokenKind.MGEN:
        instruments = tuple(parse_instrument(i, dialect) for i in _listed(prompt.instruments))
    targets = prompt.targets
    if targets is not None:
        if song is None:
            raise PromptError("targets are tracks of a song: give `song` too")
        targets = tuple(_track_index(t, song, "targets") for t in targets)
        if isinstance(tracks, tuple):
            tracks = tuple(t for t in tracks if t not in targets)
    asked = {c.name: prompt.word(c.name) for c in CONTROLS if c.name not in _STRUCTURE}
    by_name = {control.name: control for control in CONTROLS}
    unknown = set(prompt.omit) - set(by_name)
    if unknown:
        raise PromptError(f"no header field {', '.join(sorted(unknown))}: there are {', '.join(by_name)}")
    return Words(
        kind=kind,
        task=prompt.task,
        dialect=dialect,
        song=song,
        past=past,
        future=future,
        tracks=tracks,
        start=None if prompt.start is None else whole_number(prompt.start, "start", 0, "bars count from 0"),
        bars=None if prompt.bars is None else whole_number(prompt.bars, "bars", 1, "ask for at least one bar"),
        instruments=instruments,
        targets=targets,
        meter=None if prompt.meter is None else read_meters(prompt.meter),
        controls={name: by_name[name].read(word) for name, word in asked.items() if word is not None},
        chords=None if song_chords else read_chords(prompt.chords),
        song_chords=song_chords,
        velocity=None if prompt.velocity is None else bool(prompt.velocity),
        pitch_range=read_pitch_range(prompt.pitch_range),
        scale=read_scale(prompt.scale),
        omit=tuple(prompt.omit),
    )


def check_words(**words) -> None:
    """Read the words of a request that stand for themselves, without any music: what is wrong is refused at once.

    Args:
        words: of a request, by name; what speaks of a song, and names that are no words, are passed over.

    Raises:
        PromptError, VocabularyError: a word that cannot be read.
    """
    readers = {control.name: control.read for control in CONTROLS if control.name not in ("bars", "meter")}
    readers |= {"meter": read_meters, "scale": read_scale, "pitch_range": read_pitch_range}
    for name, word in words.items():
        if name in readers and word is not None:
            readers[name](word)
    if not is_chord_file(words.get("chords")) and words.get("chords") is not True:
        read_chords(words.get("chords"))


def read_task(task: str) -> TokenKind:
    """The marker of a task's generated field.

    Args:
        task: "melody", "chords" or "meta".

    Raises:
        PromptError: `prompt.task`.
    """
    try:
        return TASKS[task]
    except (KeyError, TypeError):
        raise PromptError(f"task must be one of {', '.join(TASKS)}, got {task!r}", "prompt.task") from None


# ---------------------------------------------------------------------------------------------------------------------
# Music


def is_file(value) -> bool:
    """Whether a value is a MIDI file: a path (a string only by its ending), MIDI bytes or a `symusic.Score`."""
    if isinstance(value, str):
        return value.lower().endswith((".mid", ".midi", ".kar", ".smf"))
    return is_symusic(value) or isinstance(value, (os.PathLike, bytes, bytearray))


def is_music(value) -> bool:
    """Whether a value stands for music: a path, MIDI bytes, a `symusic.Score` or a `MetricScore`."""
    return isinstance(value, str) or is_score(value) or is_file(value)


def read_music(value, dialect: str) -> MetricScore:
    """Music of a request on the grid, in the dialect's instruments.

    Args:
        value: a path, MIDI bytes, a `symusic.Score` or a `MetricScore`.
        dialect: "metric" or "mortm".

    Raises:
        MidiError: it cannot be read.
        PromptError: the `mortm` dialect cannot write it.
    """
    score = value if is_score(value) else read_midi(value)
    return score if dialect == "metric" else _upstream_score(score)


def _upstream_score(score: MetricScore) -> MetricScore:
    """Music as the `mortm` dialect can write it: piano and saxophone, 4/4, notes of at most three bars."""
    if (score.bars.length != 96).any():
        raise PromptError("the mortm dialect knows bars of 4/4 only: give 4/4 music or use the metric dialect")
    categories = [category_of(p) for p in score.programs.tolist()]
    tracks = [t for t, category in enumerate(categories) if category is not None]
    if not tracks:
        raise PromptError("the mortm dialect knows PIANO and SAX only, and the music has neither")
    score = score.take_tracks(tracks)
    return replace(
        score,
        programs=np.array([categories[t] for t in tracks], dtype=np.int16),
        duration=np.minimum(score.duration, UPSTREAM_MAX_DURATION),
        tempo=np.full(score.n_bars, -1, dtype=np.int16),
    )


def _annotated(song: MetricScore | None, prompt) -> MetricScore:
    """The song with the chords of the annotation file that `prompt.chords` names."""
    if song is None:
        raise PromptError(f"the chord file {prompt.chords} speaks of a song's bars: give `song` too")
    table = read_chord_file(prompt.chords, None if is_score(prompt.song) else load_score(prompt.song))
    if table is None:
        raise PromptError(f"the chord file {prompt.chords} holds no chords")
    return replace(song, chords=table)


def _own_music(value, name: str, dialect: str) -> MetricScore | None:
    """Music, or (music, (start, stop)); None for anything else."""
    part = None
    if isinstance(value, tuple) and len(value) == 2 and is_music(value[0]) and is_pair(value[1]):
        value, part = value
    elif not is_music(value):
        return None
    music = read_music(value, dialect)
    return music if part is None else music.window(*bar_range(part, music.n_bars, name))


def _without_song(name: str, value) -> PromptError:
    return PromptError(f"{name}={value!r} speaks of bars or tracks of a song: give `song` too")


def _given_bars(value, name: str, song: MetricScore | None, dialect: str):
    """The past or future of a request, as `Words` holds it."""
    music = _own_music(value, name, dialect)
    if music is not None:
        return music
    if value is None or value is False:
        return None
    if song is None:
        raise _without_song(name, value)
    if value is True:
        return True
    if is_pair(value):
        return int(value[0]), int(value[1])
    return whole_number(value, name, 0, "give a number of bars, a range, True or music")


def _given_tracks(value, song: MetricScore | None, dialect: str):
    """The constant tracks of a request, as `Words` holds them."""
    if not isinstance(value, str) or is_file(value):  # any other string names an instrument
        music = _own_music(value, "tracks", dialect)
        if music is not None:
            return music
    if value is None or value is False:
        return None
    if song is None:
        raise _without_song("tracks", value)
    if value is True:
        return True
    found = set()
    for item in _listed(value):
        if isinstance(item, str) and not item.strip().isdigit():
            programs = (parse_instrument(item, dialect),) if dialect == "mortm" else match_programs(item)
            tracks = np.flatnonzero(np.isin(song.programs, programs)).tolist()
            if not tracks:
                raise PromptError(f"the song has no track of {item!r}; it has {_track_names(song)}")
            found.update(tracks)
        else:
            found.add(_track_index(item, song, "tracks"))
    return tuple(sorted(found))


def _track_index(item, song: MetricScore, name: str) -> int:
    if isinstance(item, bool) or not str(item).strip().isdigit() or int(item) >= song.n_tracks:
        raise PromptError(f"{name}: the song has tracks 0 to {song.n_tracks - 1} ({_track_names(song)}), got {item!r}")
    return int(item)


def _track_names(song: MetricScore) -> str:
    return ", ".join(f"{i}: {instrument_name(int(p))}" for i, p in enumerate(song.programs))


def _listed(value) -> list:
    return [value] if isinstance(value, (str, int, np.integer)) else list(value)


# ---------------------------------------------------------------------------------------------------------------------
# Numbers and ranges


def whole_number(value, name: str, least: int, remedy: str = "") -> int:
    """An integer argument.

    Args:
        value: what was given.
        name: the argument, for the error.
        least: the smallest value allowed.
        remedy: what to do, for the error.

    Raises:
        PromptError: it is no integer or too small (`prompt.bars`).
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        wanted = f"{name} must be a whole number of at least {least}, got {value!r}"
        raise PromptError(f"{wanted}: {remedy}" if remedy else wanted, "prompt.bars")
    return int(value)


def bar_range(value, n_bars: int, name: str) -> tuple[int, int]:
    """A range of bars.

    Args:
        value: (first bar, bar after the last).
        n_bars: how many bars the song has.
        name: the argument, for the error.

    Raises:
        PromptError: it is no range, or not within the song (`prompt.bars`).
    """
    try:
        first, stop = (int(v) for v in value)
    except (TypeError, ValueError):
        raise PromptError(
            f"{name} must be a pair (first bar, bar after the last), got {value!r}", "prompt.bars"
        ) from None
    if not 0 <= first < stop <= n_bars:
        raise PromptError(
            f"{name} must satisfy 0 <= start < stop <= {n_bars} (the song's bars), got {first}:{stop}", "prompt.bars"
        )
    return first, stop


def read_meters(meter) -> int | tuple[int, ...] | BarTable:
    """The `meter` of a request.

    Args:
        meter: `"3/4"`, `(3, 4)`, a list with one for each bar, or a `BarTable`.

    Returns:
        An index into `METERS`, a tuple of them, or the table.

    Raises:
        VocabularyError: `vocabulary.meter`.
    """
    if isinstance(meter, str) or is_pair(meter):
        return parse_meter(meter)
    if is_bar_table(meter):
        return meter
    if not isinstance(meter, Sequence):
        parse_meter(meter)
    return tuple(parse_meter(m) for m in meter)


def bars_of_meter(meter: int | tuple[int, ...] | BarTable, bars: int) -> BarTable:
    """The generated bars that a `meter` asks for.

    Args:
        meter: of `read_meters`.
        bars: how many bars are generated.

    Raises:
        PromptError: it is meant for another number of bars (`prompt.bars`).
    """
    if isinstance(meter, int):
        return BarTable.regular(meter, bars)
    if not isinstance(meter, tuple):
        if meter.n_bars != bars:
            raise PromptError(f"the bar table has {meter.n_bars} bars, but {bars} are asked for", "prompt.bars")
        return meter
    if len(meter) != bars:
        raise PromptError(f"got {len(meter)} meters for {bars} bars: give one, or one for each bar", "prompt.bars")
    return BarTable.concat(*(BarTable.regular(m, 1) for m in meter))


def read_scale(scale) -> tuple[int, ...] | None:
    """Sorted pitch classes of a scale.

    Args:
        scale: pitch classes, a key name (its major or natural minor scale), or None.

    Raises:
        PromptError: no pitch classes.
        VocabularyError: an unknown key.
    """
    if scale is None:
        return None
    if isinstance(scale, str):
        tonic, minor = split_key(scale)
        return tuple(sorted((tonic + step) % 12 for step in _SCALES[minor]))
    listed = isinstance(scale, (list, tuple, set, frozenset, range, np.ndarray))
    values = set(scale) if listed else set()
    if not values or not all(isinstance(p, (int, np.integer)) and 0 <= p <= 11 for p in values):
        raise PromptError(f"scale must be pitch classes from 0 (C) to 11 (B) or a key name, got {scale!r}")
    return tuple(sorted(int(p) for p in values))


def read_pitch_range(limits) -> tuple[int, int] | None:
    """Lowest and highest pitch.

    Args:
        limits: a pair within 0 to 127, or None.

    Raises:
        PromptError: anything else.
    """
    if limits is None:
        return None
    if not is_pair(limits) or not 0 <= limits[0] <= limits[1] <= 127:
        raise PromptError(f"pitch_range must be (lowest, highest) within 0 to 127, got {limits!r}")
    return int(limits[0]), int(limits[1])


# ---------------------------------------------------------------------------------------------------------------------
# Chords


def read_chords(chords) -> list[str] | list[tuple[str, int, Fraction]] | ChordTable | None:
    """The chords of a request.

    Args:
        chords: `"C Am F G"` (bar lines `|` may stand between) or a list of symbols, one a bar; entries `(symbol, bar)`
            or `(symbol, bar, beat)`; `{(bar, beat): symbol}`; a `ChordTable`; None.

    Returns:
        Symbols, or (symbol, bar, beat) entries, or the table; None where there are none.

    Raises:
        PromptError: symbols and entries are mixed, or an entry cannot be read.
        VocabularyError: `vocabulary.chord`.
    """
    if chords is None or chords is False or is_chord_table(chords):
        return None if chords is False else chords
    if isinstance(chords, str):
        chords = chords.replace("|", " ").split()
    elif isinstance(chords, Mapping):
        chords = [(symbol, *(place if isinstance(place, tuple) else (place,))) for place, symbol in chords.items()]
    try:
        chords = list(chords)
    except TypeError:
        raise PromptError(f"cannot read the chords {chords!r}: write 'C Am F G' or a list of symbols") from None
    symbols = sum(isinstance(chord, str) for chord in chords)
    if 0 < symbols < len(chords):
        raise PromptError("chords are either all symbols (one a bar) or all (symbol, bar) or (symbol, bar, beat)")
    entries = chords if symbols else [_chord_entry(entry) for entry in chords]
    for entry in entries:
        parse_chord(entry if isinstance(entry, str) else entry[0])
    return entries or None


def _chord_entry(entry) -> tuple[str, int, Fraction]:
    if not isinstance(entry, (tuple, list)) or len(entry) not in (2, 3):
        raise PromptError(f"cannot read the chord {entry!r}: write (symbol, bar) or (symbol, bar, beat)")
    symbol, bar, beat = (*entry, 0)[:3]
    bar = whole_number(bar, f"the bar of the chord {symbol!r}", 0, "bars count from 0")
    try:
        beat = Fraction(beat).limit_denominator(1000)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        raise PromptError(f"the beat of the chord {symbol!r} must be a number, got {beat!r}") from None
    return symbol, bar, beat


def spread_chords(chords, start: int, bars: int):
    """Chords of a request as (symbol, bar, beat) entries in bars of the song, all of them generated ones.

    Args:
        chords: what `read_chords` takes (fewer symbols than bars cycle), or True.
        start: first generated bar.
        bars: how many bars are generated.

    Returns:
        The entries; a `ChordTable`, True and None as they are.

    Raises:
        PromptError: more symbols than bars, a place outside the bars (`prompt.bars`), unreadable entries.
    """
    chords = chords if chords is True else read_chords(chords)
    if chords is None or chords is True or is_chord_table(chords):
        return chords
    if isinstance(chords[0], str):
        if len(chords) > bars:
            raise PromptError(
                f"got {len(chords)} chords for {bars} bars: give one a bar or (symbol, bar, beat)", "prompt.bars"
            )
        return [(chords[i % len(chords)], start + i, 0) for i in range(bars)]
    for symbol, bar, _ in chords:
        if not start <= bar < start + bars:
            raise PromptError(
                f"the chord {symbol!r} in bar {bar} is outside the generated bars {start} to {start + bars}",
                "prompt.bars",
            )
    return chords


# ---------------------------------------------------------------------------------------------------------------------
# Values -> words


def words_of_header(header: Header) -> dict[str, Any]:
    """The words of a request that a header stands for.

    Args:
        header: what was stated.

    Returns:
        Words by name of the control, without those that state what is generated (instruments, bars, meter).
    """
    words = {}
    for control in CONTROLS:
        if control.name in header and control.name not in _STRUCTURE:
            value = header[control.name]
            listed = control.repeats or control.level == "track"
            word = tuple(None if v is None else control.word(v) for v in value) if listed else control.word(value)
            words[control.name] = word
    return words
