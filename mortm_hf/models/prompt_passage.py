"""Passages: the music that is given and the bars that are asked for, as one frozen object.

Design decisions
- Prompts, plans and training examples are all written from a `Passage`: they cannot drift apart. `asked_passage` makes
  one from a request, `song_passage` from a window of a song.
- A request is settled in steps, each a function of the words and of what was settled before: where (start, bars,
  ranges), who (tracks), which blocks, which bar table, tempo, chords, header. Every contradiction is an error with its
  remedy.
- Past and future hold the generated tracks and the constant ones; constant tracks and chords hold the generated bars.
- Musicians name instruments, models generate tracks: the n-th entry of a program is the song's n-th track of it.
- The header describes the generated field. META has none; CGEN's holds nothing taken from the answer. What a training
  header states of the answer (density, and the key where no material is given) is what a musician would ask for.

Knows: `MetricScore`, words of a request, controls. Must not know: token ids, models, sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .errors_mortm import PromptError
from .music_grid import BarTable, continued_bars, is_pair
from .music_harmony import chord_table, with_chords
from .music_instruments import parse_instrument
from .music_names import DRUMS, METERS
from .music_score import ChordTable, MetricScore, is_chord_table, is_score, match_tracks
from .prompt_words import Words, bar_range, bars_of_meter, read_words, spread_chords
from .token_codec import uses_velocity
from .token_controls import Described
from .token_headers import Header, describe, without
from .token_vocabulary import CONTROLS, TokenKind


DEFAULT_BARS = 8


@dataclass(frozen=True)
class Passage:
    """Everything a prompt is written from. Blocks are scores of their own, from tick 0, holding the tracks to write.

    Attributes:
        kind: marker of the generated field.
        bars: `BarTable` of the generated bars.
        instruments: INSTRUMENT values of the generated tracks, in track order.
        tempo: `[n_bars]` tempo bins of the generated bars (-1: none known), or None: free.
        header: what is stated of the generated bars, or None (META).
        past: given bars before them, or None.
        future: given bars after them, or None.
        const: tracks that sound together with the generated ones, or None.
        chords: the generated bars with the chords that are given (no notes), or None.
        velocity: whether notes carry velocities.
        asked: names of the controls that the request states.
        pitch_range: lowest and highest pitch of generated notes, or None.
        scale: their pitch classes, or None.
        song: the music that the request speaks of, or None.
        start: first generated bar of it.
        targets: for each generated instrument its track in `song`, -1 where it is new.
        inside: the generated bars go into the song; else they follow its bars before `start`.
    """

    kind: TokenKind
    bars: BarTable
    instruments: tuple[int, ...] = ()
    tempo: np.ndarray | None = None
    header: Header | None = None
    past: MetricScore | None = None
    future: MetricScore | None = None
    const: MetricScore | None = None
    chords: MetricScore | None = None
    velocity: bool = False
    asked: frozenset[str] = frozenset()
    pitch_range: tuple[int, int] | None = None
    scale: tuple[int, ...] | None = None
    song: MetricScore | None = field(default=None, compare=False)
    start: int = 0
    targets: tuple[int, ...] = ()
    inside: bool = False


# ---------------------------------------------------------------------------------------------------------------------
# Of a request


class _Place(NamedTuple):
    """Where: the generated bars and the ranges of the song's bars that are given."""

    start: int
    bars: int
    past: tuple[int, int] | None
    future: tuple[int, int] | None

    @property
    def stop(self) -> int:
        return self.start + self.bars


class _Players(NamedTuple):
    """Who: song track (-1: new), INSTRUMENT value and place in the request of each generated track in writing order,
    and the constant tracks of the song."""

    targets: tuple[int, ...] = ()
    instruments: tuple[int, ...] = ()
    order: tuple[int, ...] = ()
    const: tuple[int, ...] = ()


class _Blocks(NamedTuple):
    past: MetricScore | None
    future: MetricScore | None
    const: MetricScore | None


def asked_passage(prompt, dialect: str) -> Passage:
    """The passage of a request.

    Args:
        prompt: a `MetricPrompt`.
        dialect: "metric" or "mortm".

    Raises:
        PromptError: impossible bars (`prompt.bars`), nothing to generate or to describe (`prompt.empty`), material
            that does not fit together (`prompt.material`), an unknown task (`prompt.task`).
        VocabularyError: an unknown instrument, key, chord, meter or genre.
        MidiError: music that cannot be read.
    """
    words = read_words(prompt, dialect)
    place = _place(words)
    players = _players(words, place)
    blocks = _blocks(words, place, players)
    bars = _generated_bars(words, place, blocks)
    tempo = _tempo(words, place, blocks)
    velocity = words.velocity
    if velocity is None:
        velocity = any(uses_velocity(s) for s in (blocks.past, blocks.future, blocks.const) if _sounds(s))
    return Passage(
        kind=words.kind,
        bars=bars,
        instruments=players.instruments,
        tempo=tempo,
        header=_asked_header(words, players, blocks, bars, tempo),
        past=blocks.past,
        future=blocks.future,
        const=blocks.const,
        chords=_given_chords(words, place, bars),
        velocity=velocity,
        asked=frozenset(words.controls),
        pitch_range=words.pitch_range,
        scale=words.scale,
        song=words.song,
        start=place.start,
        targets=players.targets,
        inside=place.future is not None or bool(players.const),
    )


def _own(value) -> MetricScore | None:
    """A field's own music, where it holds any."""
    return value if is_score(value) else None


def _sounds(score: MetricScore | None) -> bool:
    return score is not None and score.n_notes > 0


# --- where


def _place(words: Words) -> _Place:
    song, const, melody = words.song, _own(words.tracks), words.kind == TokenKind.MGEN
    if words.bars is not None:
        bars = words.bars
    elif const is not None:
        bars = const.n_bars
    elif not melody and song is not None:
        bars = song.n_bars - int(words.start or 0)
    else:
        bars = DEFAULT_BARS
    if words.start is not None:
        start = words.start
    elif is_pair(words.past):
        start = words.past[1]
    elif is_pair(words.future):
        start = words.future[0] - bars
    elif song is None or not melody:
        start = 0
    elif words.future is not None and _own(words.future) is None:
        raise PromptError("say which bars to generate: `start` is missing beside `future`", "prompt.bars")
    else:
        start = 0 if words.past is None else song.n_bars
    if song is not None and not 0 <= start <= song.n_bars:
        raise PromptError(f"start must be within the song's {song.n_bars} bars, got {start}", "prompt.bars")
    if const is not None and const.n_bars != bars:
        raise PromptError(
            f"the constant tracks have {const.n_bars} bars, but {bars} are to be generated: give as many, e.g. "
            "tracks=(music, (start, stop))",
            "prompt.bars",
        )
    past, future = _range(words, "past", start, bars), _range(words, "future", start, bars)
    return _Place(start, bars, past, future)


def _range(words: Words, name: str, start: int, bars: int) -> tuple[int, int] | None:
    """The song's bars of past or future."""
    value, before = getattr(words, name), name == "past"
    if value is None or _own(value) is not None:
        return None
    n, edge, stated = words.song.n_bars, start if before else start + bars, is_pair(value)
    if value is True:
        value = (0, edge) if before else (edge, n)
    elif not stated:
        value = (max(edge - value, 0), edge) if before else (edge, min(edge + value, n))
    if value[0] >= value[1] and not (before and stated):
        return None
    first, stop = bar_range(value, n, name)
    if (before and stop > edge) or (not before and first < edge):
        raise PromptError(
            f"{name} bars {first}:{stop} overlap the generated bars {start}:{start + bars}", "prompt.bars"
        )
    return first, stop


# --- who


def _players(words: Words, place: _Place) -> _Players:
    song, own = words.song, _own(words.tracks)
    const = words.tracks if isinstance(words.tracks, tuple) else ()
    if words.kind != TokenKind.MGEN:
        if own is None and song is None:
            raise PromptError(f"task {words.task!r} needs music: give `tracks` or `song`", "prompt.empty")
        everything = own is None and not isinstance(words.tracks, tuple)
        return _Players(const=tuple(range(song.n_tracks)) if everything else const)
    chosen = _generated_tracks(words, place, const)
    if not chosen:
        raise PromptError("say what to generate: name at least one instrument, e.g. ['piano']", "prompt.empty")
    # Tracks of the song keep its order, new ones follow, drums stay last.
    chosen.sort(key=lambda x: (x[2] == DRUMS, x[1] < 0, x[1] if x[1] >= 0 else x[0]))
    order, targets, instruments = (tuple(column) for column in zip(*chosen))
    if words.tracks is True and song is not None:
        const = tuple(t for t in range(song.n_tracks) if t not in targets)
    return _Players(targets, instruments, order, const)


def _generated_tracks(words: Words, place: _Place, const: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(place in the request, song track or -1, INSTRUMENT value) of each generated track."""
    song, wanted = words.song, words.instruments
    if words.targets is not None:
        if wanted is not None and len(wanted) != len(words.targets):
            raise PromptError(f"got {len(wanted)} instruments for {len(words.targets)} targets")
        if not words.targets:
            raise PromptError("targets is empty: name at least one track to generate", "prompt.empty")
        return [(i, t, int(song.programs[t])) for i, t in enumerate(dict.fromkeys(words.targets))]
    if wanted is not None:
        if not wanted:
            raise PromptError("instruments is empty: name at least one, e.g. ['piano']", "prompt.empty")
        free = [] if song is None else [t for t in _sounding(song, place) if t not in const]
        found = match_tracks(wanted, [song.programs[t] for t in free])
        return [(i, free[at] if at >= 0 else -1, value) for i, (at, value) in enumerate(zip(found, wanted))]
    if song is not None:
        if words.tracks is True:
            raise PromptError("say what to generate: name `instruments` or `targets` beside tracks=True")
        tracks = sorted(t for t in _sounding(song, place, only_given=True) if t not in const)
        return [(i, t, int(song.programs[t])) for i, t in enumerate(tracks)]
    source = _own(words.past) if _own(words.past) is not None else _own(words.future)
    programs = [] if source is None else source.programs[source.sounding_tracks()].tolist()
    if not programs and "instruments" in words.omit:  # nothing names an instrument: a piano
        programs = [parse_instrument("piano", words.dialect)]
    return [(i, -1, int(v)) for i, v in enumerate(programs)]


def _sounding(song: MetricScore, place: _Place, only_given: bool = False) -> list[int]:
    """The song's sounding tracks, those of the given past and future first (or only those)."""
    given = np.zeros(song.n_tracks, dtype=bool)
    for span in (place.past, place.future):
        if span is not None:
            given[song.window(*span).sounding_tracks()] = True
    if only_given and given.any():
        return np.flatnonzero(given).tolist()
    sounding = np.zeros(song.n_tracks, dtype=bool)
    sounding[song.sounding_tracks()] = True
    return np.flatnonzero(given).tolist() + np.flatnonzero(sounding & ~given).tolist()


# --- what


def _blocks(words: Words, place: _Place, players: _Players) -> _Blocks:
    song, const = words.song, _own(words.tracks)
    around = sorted({t for t in (*players.targets, *players.const) if t >= 0})

    def block(span, value):
        if _own(value) is not None:
            return value
        return None if span is None or not around else song.window(*span).take_tracks(around)

    if const is None and players.const:
        if place.stop > song.n_bars:
            raise PromptError(
                f"the constant tracks end with bar {song.n_bars}, before the generated bars "
                f"{place.start}:{place.stop}: generate fewer bars or give longer music",
                "prompt.bars",
            )
        const = song.window(place.start, place.stop).take_tracks(players.const)
    if words.kind != TokenKind.MGEN and not _sounds(const):
        raise PromptError(f"task {words.task!r}: nothing sounds in the given bars", "prompt.empty")
    return _Blocks(block(place.past, words.past), block(place.future, words.future), const)


def _generated_bars(words: Words, place: _Place, blocks: _Blocks) -> BarTable:
    """The generated bars, from constant material, the song, the request or what came before."""
    song, fixed = words.song, None
    covered = song is not None and place.stop <= song.n_bars
    if blocks.const is not None:
        fixed = blocks.const.bars
    elif covered and (place.future is not None or words.song_chords):
        fixed = song.bars.window(place.start, place.stop)
    if fixed is not None:
        if words.meter is not None and (bars_of_meter(words.meter, place.bars).length != fixed.length).any():
            meter = "{}/{}".format(*METERS[words.meter]) if isinstance(words.meter, int) else words.meter
            raise PromptError(
                f"meter {meter!r} does not fit the given music of bars {place.start}:{place.stop}: leave it out"
            )
        table = fixed
    elif words.meter is not None:
        table = bars_of_meter(words.meter, place.bars)
    elif covered and (place.past is not None or (_own(words.past) is None and _own(words.future) is None)):
        table = song.bars.window(place.start, place.stop)
    else:
        tail = None
        if song is not None and place.past is not None and place.start < song.n_bars:
            tail = song.bars.window(place.start, song.n_bars)
        rest = place.bars - (0 if tail is None else tail.n_bars)
        more = continued_bars(_tables_before(words, place, tail is not None), rest)
        table = more if tail is None else BarTable.concat(tail, more)
    if words.dialect == "mortm" and (table.length != 96).any():
        raise PromptError("the mortm dialect knows bars of 4/4 only: leave out the meter")
    return table


def _tables_before(words: Words, place: _Place, tail: bool) -> list[BarTable]:
    """Bars to continue, the nearest first: those before the generated ones, else the first given one."""
    song, tables = words.song, []
    if _own(words.past) is not None:
        tables.append(words.past.bars)
    elif song is not None and tail:
        tables.append(song.bars)
    elif song is not None and place.start > 0:
        tables.append(song.bars.window(0, place.start))
    for music in (_own(words.future), song):
        if music is not None:
            tables.append(BarTable(music.bars.start[:2], music.bars.meter[:1]))
    return tables


# --- how


def _tempo(words: Words, place: _Place, blocks: _Blocks) -> np.ndarray | None:
    """`[bars]` tempo bins of the generated bars (-1: none known); None: free."""
    song = words.song
    if "tempo" in words.controls:
        return np.full(place.bars, words.controls["tempo"], dtype=np.int16)
    if blocks.const is not None:
        return blocks.const.tempo
    if song is not None and place.stop <= song.n_bars and place.future is not None:
        return song.tempo[place.start : place.stop]
    if _own(words.past) is not None:
        before = words.past.tempo
    elif song is not None:
        first = place.past[0] if place.past is not None else max(place.start - DEFAULT_BARS, 0)
        before = song.tempo[first : place.start] if place.start else song.tempo[:1]
    elif _own(words.future) is not None:
        before = words.future.tempo[:1]
    else:
        return None
    # Songs end slower than they are: the median of the bars before leaves a final ritardando out.
    known = np.sort(before[before >= 0])
    return np.full(place.bars, known[len(known) // 2] if len(known) else -1, dtype=np.int16)


def _given_chords(words: Words, place: _Place, bars: BarTable) -> MetricScore | None:
    """The generated bars with the chords asked for."""
    if words.song_chords:
        song = words.song
        if song is None or song.chords is None or place.stop > song.n_bars:
            raise PromptError(
                "chords=True means the song's own chords, and there are none in these bars: give symbols instead"
            )
        found = with_chords(song.window(place.start, place.stop))
        if found is None:
            raise PromptError(f"the song has no chords in bars {place.start}:{place.stop}: give symbols")
        return found
    table = None if words.chords is None else place_chords(words.chords, bars, place.start)
    return None if table is None else with_chords(_silence(bars, table))


def _asked_header(words: Words, players: _Players, blocks: _Blocks, bars: BarTable, tempo) -> Header | None:
    if words.kind == TokenKind.META:
        return None
    stated, own = dict(words.controls), [_own(w) for w in (words.past, words.future, words.tracks)]
    for control in CONTROLS:
        if control.level == "track" and control.name in stated:
            value = stated.pop(control.name)
            if players.instruments:
                values = control.for_each(value, len(players.instruments))
                stated[control.name] = tuple(values[i] for i in players.order)
    described = Described(
        bars=bars,
        instruments=players.instruments,
        tempo=tempo,
        given=tuple(s for s in (blocks.const, blocks.past, blocks.future) if _sounds(s)),
        sources=tuple(s for s in (words.song, *own) if s is not None),
    )
    return without(describe(described, stated), words.omit)


def place_chords(chords, bars: BarTable, start: int) -> ChordTable | None:
    """Chords of a request in ticks of the generated bars.

    Args:
        chords: of `read_chords`: symbols, one a bar (fewer cycle); `(symbol, bar, beat)` entries in bars of the song,
            beats counting in the meter's denominator from 0; or a `ChordTable` from the first generated bar on, of
            which what lies beyond the bars is left out.
        bars: the generated bars.
        start: the first of them, in bars of the song.

    Returns:
        The table; None where no chord is left.

    Raises:
        PromptError: more chords than bars, a place outside the generated bars (`prompt.bars`).
    """
    if is_chord_table(chords):
        chords = chords.window(0, bars.end)
        return chords if len(chords) else None
    ticks, placed = [], spread_chords(chords, start, bars.n_bars)
    for symbol, bar, beat in placed:
        tick = round(beat * 96 / METERS[int(bars.meter[bar - start])][1])
        if not 0 <= tick < int(bars.length[bar - start]):
            raise PromptError(f"beat {float(beat):g} of the chord {symbol!r} is outside its bar {bar}", "prompt.bars")
        ticks.append(int(bars.start[bar - start]) + tick)
    return chord_table(ticks, [symbol for symbol, _, _ in placed])


def _silence(bars: BarTable, chords: ChordTable) -> MetricScore:
    """Chords over bars without notes."""
    none = np.empty(0, dtype=np.int64)
    columns = dict.fromkeys(("track", "onset", "pitch", "duration", "velocity"), none)
    programs, tempo = np.zeros(1, dtype=np.int16), np.full(bars.n_bars, -1, dtype=np.int16)
    return MetricScore(bars=bars, programs=programs, tempo=tempo, chords=chords, **columns)


# ---------------------------------------------------------------------------------------------------------------------
# Of a song


def song_passage(
    score: MetricScore,
    kind: TokenKind,
    start: int,
    bars: int,
    past_bars: int,
    future_bars: int,
    targets: Sequence[int] | None,
    const: Sequence[int],
    chords: bool,
    velocity: bool,
    genres: Sequence[int] | None,
) -> tuple[Passage, MetricScore | None]:
    """The passage of a window of a song, and its answer.

    Args:
        score: the song.
        kind: marker of the generated field.
        start: first generated bar.
        bars: how many.
        past_bars: given bars before them, clipped to the song.
        future_bars: given bars after them, clipped to the song.
        targets: tracks to generate (MGEN); None: all but `const`.
        const: tracks given over the generated bars; for the other tasks none means all.
        chords: give the song's chords of the generated bars (MGEN).
        velocity: notes carry velocities.
        genres: GENRE values; None: the score's.

    Returns:
        The passage, and the music of the answer: the generated tracks (MGEN), the window with its chords (CGEN), or
        None (META: the header of the passage is the answer).

    Raises:
        PromptError: the bars are not in the song (`prompt.bars`), no generated track sounds or there are no chords to
            learn (`prompt.empty`).
    """
    if not (0 <= start and 0 < bars and start + bars <= score.n_bars):
        raise PromptError(f"{bars} bars from {start} on are not within the song's {score.n_bars}", "prompt.bars")
    const, where = np.asarray(const, dtype=np.int64), f"in bars {start} to {start + bars}"
    if kind != TokenKind.MGEN:
        targets = np.empty(0, dtype=np.int64)
        const = const if len(const) else np.arange(score.n_tracks)
    elif targets is None:
        targets = np.setdiff1d(np.arange(score.n_tracks), const)
    targets = np.asarray(targets, dtype=np.int64)
    window, around = score.window(start, start + bars), np.unique(np.concatenate([targets, const]))
    stop = min(start + bars + future_bars, score.n_bars)
    past = score.window(max(start - past_bars, 0), start).take_tracks(around) if past_bars > 0 and start else None
    future = score.window(start + bars, stop).take_tracks(around) if stop > start + bars else None
    given = window.take_tracks(const) if len(const) else None
    if kind == TokenKind.MGEN:
        sounding = targets[np.isin(targets, window.sounding_tracks())]
        if not len(sounding):
            raise PromptError(f"no generated track sounds {where}", "prompt.empty")
        answer = described = window.take_tracks(sounding)
    elif kind == TokenKind.CGEN:
        answer, described = with_chords(window), None
        if answer is None:
            raise PromptError(f"there are no chords to learn {where}", "prompt.empty")
        if not given.n_notes:
            raise PromptError(f"no given track sounds {where}", "prompt.empty")
    else:
        answer, described = None, given.take_tracks(given.sounding_tracks())
        if not described.n_notes:
            raise PromptError(f"nothing sounds {where}", "prompt.empty")
    facts = Described(
        bars=window.bars,
        instruments=() if described is None else tuple(described.programs.tolist()),
        tempo=window.tempo,
        music=described,
        given=tuple(s for s in (given, past, future) if _sounds(s)),
        sources=(window,),
    )
    meta = kind == TokenKind.META
    passage = Passage(
        kind=kind,
        bars=window.bars,
        instruments=facts.instruments,
        tempo=window.tempo,
        header=describe(facts, None if genres is None else {"genre": tuple(genres)}),
        past=None if meta else past,
        future=None if meta else future,
        const=given,
        chords=with_chords(window) if chords and kind == TokenKind.MGEN else None,
        velocity=velocity,
        song=score,
        start=start,
    )
    return passage, answer
