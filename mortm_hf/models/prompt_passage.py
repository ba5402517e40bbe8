"""Resolving a request: which music, which bars and which tracks a `MetricPrompt` speaks of.

Design decisions
- One object, filled step by step: place (start, bars, ranges), tracks (targets, instruments, constant ones), blocks,
  the generated bars. Later steps use what earlier ones settled; every contradiction is an error with its remedy.
- Past and future hold the generated tracks and the constant ones; constant tracks and chords hold the generated bars.
- Musicians name instruments, models generate tracks: the n-th entry of a program is the song's n-th track of it.

Knows: `MetricScore`, the words of a request. Must not know: token ids, models, sampling.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .errors_mortm import PromptError
from .midi_chords import is_chord_file, read_chord_file
from .music_grid import BarTable, going_on
from .music_harmony import parse_key
from .music_instruments import category_of, instrument_name, match_programs, parse_instrument
from .music_score import MetricScore
from .prompt_words import (
    bar_range,
    is_range,
    meter_bars,
    parse_chords,
    parse_densities,
    parse_genres,
    parse_tempo,
    task_kind,
    whole_number,
)
from .prompt_writing import MAX_COUNTED_BARS, common_key, thin_header, window_chords
from .token_codec import Header, load_score, read_midi
from .token_vocabulary import DRUMS, TokenKind


DEFAULT_BARS = 8
UPSTREAM_MAX_DURATION = 288


def _is_music(value) -> bool:
    return (
        hasattr(value, "programs")
        or hasattr(value, "tracks")
        or hasattr(value, "__fspath__")
        or isinstance(value, (str, bytes, bytearray))
    )


def _music(value, dialect: str) -> MetricScore:
    """Path, bytes, Score or `MetricScore` -> `MetricScore`, in the dialect's instruments."""
    score = value if hasattr(value, "programs") and hasattr(value, "bars") else read_midi(value)
    return score if dialect == "metric" else _upstream_score(score)


def _upstream_score(score: MetricScore) -> MetricScore:
    """Music as the `mortm` dialect can write it: piano and saxophone, 4/4, notes of at most three bars."""
    if (score.bars.length != 96).any():
        raise PromptError("the mortm dialect knows bars of 4/4 only: give 4/4 music or use the metric dialect")
    categories = [category_of(p) for p in score.programs.tolist()]
    tracks = [t for t, category in enumerate(categories) if category is not None]
    if not tracks:
        raise PromptError("the mortm dialect knows PIANO and SAX only, and the music has neither", "prompt.material")
    score = score.take_tracks(tracks)
    return replace(
        score,
        programs=np.array([categories[t] for t in tracks], dtype=np.int16),
        duration=np.minimum(score.duration, UPSTREAM_MAX_DURATION),
        tempo=np.full(score.n_bars, -1, dtype=np.int16),
    )


class Request:
    """A `MetricPrompt` being resolved.

    Attributes:
        kind: the marker of the generated field. song: the music bar ranges speak of, or None. start, bars: generated
            bars. targets: song track of each generated one (-1: new). instruments: their INSTRUMENT values. const:
            constant tracks of the song. past, future, given: the blocks' music. table: the generated bars' `BarTable`.
    """

    def __init__(self, prompt, dialect: str):
        self.prompt, self.dialect = prompt, dialect
        self.kind = task_kind(prompt.task)
        self.song = None if prompt.song is None else _music(prompt.song, dialect)
        self.own_chords = prompt.chords is True
        if is_chord_file(prompt.chords):
            self._annotate(prompt.chords)
        self.past_music = self._own_music(prompt.past, "past")
        self.future_music = self._own_music(prompt.future, "future")
        self.const_music = self._own_music(prompt.tracks, "tracks")
        self.materials = [
            s for s in (self.song, self.past_music, self.future_music, self.const_music) if s is not None
        ]
        if self.kind == TokenKind.META and (prompt.past or prompt.future or prompt.chords):
            raise PromptError("task 'meta' describes `tracks` only: leave out past, future and chords")
        if self.kind == TokenKind.CGEN and prompt.chords is not None and prompt.chords is not False:
            raise PromptError("task 'chords' asks for the chords: leave out `chords`")
        self._place()
        self._tracks()
        self._blocks()
        self._bar_table()

    def _own_music(self, value, name: str) -> MetricScore | None:
        """The block's own music, where the field holds any."""
        part = None
        if isinstance(value, tuple) and len(value) == 2 and _is_music(value[0]) and is_range(value[1]):
            value, part = value
        elif not _is_music(value) or (name == "tracks" and isinstance(value, str) and not _looks_like_path(value)):
            return None
        music = _music(value, self.dialect)
        return music if part is None else music.window(*bar_range(part, music.n_bars, name))

    def _annotate(self, path) -> None:
        """The song with the chords of an annotation file."""
        if self.song is None:
            raise PromptError(f"the chord file {path} speaks of a song's bars: give `song` too")
        source = self.prompt.song
        midi = None if hasattr(source, "programs") else load_score(source)
        table = read_chord_file(path, midi)
        if table is None:
            raise PromptError(f"the chord file {path} holds no chords")
        self.song, self.own_chords = replace(self.song, chords=table), True

    # --- where

    def _place(self) -> None:
        """`start` and `bars`."""
        p, song = self.prompt, self.song
        for name, music in (("past", self.past_music), ("future", self.future_music), ("tracks", self.const_music)):
            value = getattr(p, name)
            if music is None and value is not None and value is not False and song is None:
                raise PromptError(f"{name}={value!r} speaks of bars or tracks of a song: give `song` too")
        if p.bars is not None:
            bars = whole_number(p.bars, "bars", 1, "ask for at least one bar")
        elif self.const_music is not None:
            bars = self.const_music.n_bars
        elif self.kind != TokenKind.MGEN and song is not None:
            bars = song.n_bars - int(p.start or 0)
        else:
            bars = DEFAULT_BARS
        if p.start is not None:
            start = whole_number(p.start, "start", 0, "bars count from 0")
        elif is_range(p.past):
            start = int(p.past[1])
        elif is_range(p.future):
            start = int(p.future[0]) - bars
        elif song is None or self.kind != TokenKind.MGEN:
            start = 0
        elif p.future is not None and p.future is not False and self.future_music is None:
            raise PromptError("say which bars to generate: `start` is missing beside `future`", "prompt.bars")
        elif p.past is not None and p.past is not False:
            start = song.n_bars
        else:
            start = 0
        if song is not None and not 0 <= start <= song.n_bars:
            raise PromptError(f"start must be within the song's {song.n_bars} bars, got {start}", "prompt.bars")
        if self.const_music is not None and self.const_music.n_bars != bars:
            raise PromptError(
                f"the constant tracks have {self.const_music.n_bars} bars, but {bars} are to be generated: give as "
                "many, e.g. tracks=(music, (start, stop))",
                "prompt.bars",
            )
        self.start, self.bars = start, bars
        self.past_range = self._range(p.past, True) if self.past_music is None else None
        self.future_range = self._range(p.future, False) if self.future_music is None else None

    def _range(self, value, before: bool) -> tuple[int, int] | None:
        """The song's bars of past or future."""
        if value is None or value is False:
            return None
        n, edge = self.song.n_bars, self.start if before else self.start + self.bars
        name = "past" if before else "future"
        if value is not True and not is_range(value):
            count = whole_number(value, name, 0, "give a number of bars, a range, True or music")
            value = (max(edge - count, 0), edge) if before else (edge, min(edge + count, n))
        elif value is True:
            value = (0, edge) if before else (edge, n)
        if value[0] >= value[1] and not (before and is_range(self.prompt.past)):
            return None
        first, stop = bar_range(value, n, name)
        if (before and stop > edge) or (not before and first < edge):
            raise PromptError(
                f"{name} bars {first}:{stop} overlap the generated bars {self.start}:{self.start + self.bars}",
                "prompt.bars",
            )
        return first, stop

    # --- who

    def _tracks(self) -> None:
        """`targets` (song tracks, -1: new), `instruments` (values), `const` (song tracks)."""
        p, song = self.prompt, self.song
        wants_all = p.tracks is True or (p.tracks is None and self.const_music is None and self.kind != TokenKind.MGEN)
        const: list[int] = []
        if song is not None and self.const_music is None and not wants_all and p.tracks is not None:
            const = self._named_tracks(p.tracks)
        if self.kind != TokenKind.MGEN:
            self.targets, self.instruments = (), ()
            if self.const_music is None and song is None:
                raise PromptError(f"task {p.task!r} needs music: give `tracks` or `song`", "prompt.empty")
            self.const = tuple(range(song.n_tracks)) if wants_all else tuple(const)
            return
        pairs = self._targets(const)
        self.order = [i for i, _, _ in pairs]
        self.targets = tuple(t for _, t, _ in pairs)
        self.instruments = tuple(v for _, _, v in pairs)
        if wants_all and song is not None:
            const = [t for t in range(song.n_tracks) if t not in self.targets]
        self.const = tuple(const)

    def _named_tracks(self, value) -> list[int]:
        """Indices of song tracks, from indices or instrument names."""
        song, found = self.song, set()
        values = [value] if isinstance(value, (str, int, np.integer)) else value
        for item in values:
            if isinstance(item, str) and not item.strip().isdigit():
                if self.dialect == "mortm":
                    programs = (parse_instrument(item, "mortm"),)
                else:
                    programs = match_programs(item)
                tracks = np.flatnonzero(np.isin(song.programs, programs)).tolist()
                if not tracks:
                    raise PromptError(f"the song has no track of {item!r}; it has {_roll(song)}")
                found.update(tracks)
            else:
                found.add(self._track_index(item, "tracks"))
        if self.prompt.targets is not None:
            found -= {int(t) for t in self.prompt.targets}
        return sorted(found)

    def _track_index(self, item, name: str) -> int:
        if isinstance(item, bool) or not str(item).strip().isdigit() or int(item) >= self.song.n_tracks:
            raise PromptError(
                f"{name}: the song has tracks 0 to {self.song.n_tracks - 1} ({_roll(self.song)}), got {item!r}"
            )
        return int(item)

    def _targets(self, const: list[int]) -> list[tuple[int, int, int]]:
        """(place in the request, song track or -1, INSTRUMENT value) of each generated track, in writing order."""
        p, song = self.prompt, self.song
        if p.targets is not None:
            if song is None:
                raise PromptError("targets are tracks of a song: give `song` too")
            chosen = [self._track_index(t, "targets") for t in p.targets]
            if p.instruments is not None and len(_listed(p.instruments)) != len(chosen):
                raise PromptError(f"got {len(_listed(p.instruments))} instruments for {len(chosen)} targets")
            if not chosen:
                raise PromptError("targets is empty: name at least one track to generate", "prompt.empty")
            if set(chosen) & set(const):
                raise PromptError(
                    f"tracks {sorted(set(chosen) & set(const))} cannot be constant and generated at once"
                )
            pairs = [(i, t, int(song.programs[t])) for i, t in enumerate(dict.fromkeys(chosen))]
        elif p.instruments is not None:
            values = [parse_instrument(i, self.dialect) for i in _listed(p.instruments)]
            if not values:
                raise PromptError("instruments is empty: name at least one, e.g. ['piano']", "prompt.empty")
            heard = self._heard() if song is not None else []
            free = [t for t in heard if t not in const]
            pairs = []
            for i, value in enumerate(values):
                track = next((t for t in free if song.programs[t] == value), -1)
                if track >= 0:
                    free.remove(track)
                pairs.append((i, track, value))
        elif song is not None:
            heard = [t for t in self._heard(only_given=True) if t not in const]
            if p.tracks is True and self.const_music is None:
                raise PromptError("say what to generate: name `instruments` or `targets` beside tracks=True")
            pairs = [(i, t, int(song.programs[t])) for i, t in enumerate(sorted(heard))]
        else:
            source = self.past_music if self.past_music is not None else self.future_music
            programs = [] if source is None else source.programs[source.sounding_tracks()].tolist()
            if not programs and "instruments" in p.omit:  # nobody said: a piano
                programs = [parse_instrument("piano", self.dialect)]
            pairs = [(i, -1, int(v)) for i, v in enumerate(programs)]
        if not pairs:
            raise PromptError("say what to generate: name at least one instrument, e.g. ['piano']", "prompt.empty")
        # Tracks of the song keep its order, new ones follow, drums stay last.
        return sorted(pairs, key=lambda x: (x[2] == DRUMS, x[1] < 0, x[1] if x[1] >= 0 else x[0]))

    def _heard(self, only_given: bool = False) -> list[int]:
        """The song's tracks, those that sound in the given past and future first (or only those)."""
        song = self.song
        spans = [r for r in (self.past_range, self.future_range) if r is not None]
        given = np.zeros(song.n_tracks, dtype=bool)
        for first, stop in spans:
            given[song.window(first, stop).sounding_tracks()] = True
        sounding = np.zeros(song.n_tracks, dtype=bool)
        sounding[song.sounding_tracks()] = True
        if only_given and given.any():
            return np.flatnonzero(given).tolist()
        return np.flatnonzero(given).tolist() + np.flatnonzero(sounding & ~given).tolist()

    # --- what

    def _blocks(self) -> None:
        song = self.song
        around = sorted({t for t in (*self.targets, *self.const) if t >= 0})

        def block(span, own):
            if own is not None:
                return own
            return None if span is None or not around else song.window(*span).take_tracks(around)

        self.past = block(self.past_range, self.past_music)
        self.future = block(self.future_range, self.future_music)
        self.given = self.const_music
        if self.given is None and self.const:
            stop = self.start + self.bars
            if stop > song.n_bars:
                raise PromptError(
                    f"the constant tracks end with bar {song.n_bars}, before the generated bars {self.start}:{stop}: "
                    "generate fewer bars or give longer music",
                    "prompt.bars",
                )
            self.given = song.window(self.start, stop).take_tracks(self.const)
        if self.kind != TokenKind.MGEN and (self.given is None or not self.given.n_notes):
            raise PromptError(f"task {self.prompt.task!r}: nothing sounds in the given bars", "prompt.empty")

    def _bar_table(self) -> None:
        """`table`: the generated bars, from constant material, the song, the prompt or what came before."""
        p, song, stop = self.prompt, self.song, self.start + self.bars
        covered = song is not None and stop <= song.n_bars
        fixed = None
        if self.given is not None:
            fixed = self.given.bars
        elif covered and (self.future_range is not None or self.own_chords):
            fixed = song.bars.window(self.start, stop)
        if fixed is not None:
            if p.meter is not None and (meter_bars(p.meter, self.bars).length != fixed.length).any():
                raise PromptError(
                    f"meter {p.meter!r} does not fit the given music of bars {self.start}:{stop}: leave it out",
                    "prompt.material",
                )
            self.table = fixed
        elif p.meter is not None:
            self.table = meter_bars(p.meter, self.bars)
        elif covered and (self.past_range is not None or (self.future_music is None and self.past_music is None)):
            self.table = song.bars.window(self.start, stop)
        else:
            tail = None
            if song is not None and self.past_range is not None and self.start < song.n_bars:
                tail = song.bars.window(self.start, song.n_bars)
            rest = self.bars - (0 if tail is None else tail.n_bars)
            more = going_on(self._bars_before(tail is not None), rest)
            self.table = more if tail is None else BarTable.concat(tail, more)
        if self.dialect == "mortm" and (self.table.length != 96).any():
            raise PromptError("the mortm dialect knows bars of 4/4 only: leave out the meter", "prompt.material")

    def _bars_before(self, tail: bool) -> list[BarTable]:
        """Bars to go on from, the nearest first: those before the generated ones, else the first given one."""
        tables = []
        if self.past_music is not None:
            tables.append(self.past_music.bars)
        elif self.song is not None and tail:
            tables.append(self.song.bars)
        elif self.song is not None and self.start > 0:
            tables.append(self.song.bars.window(0, self.start))
        for music in (self.future_music, self.song):
            if music is not None:
                tables.append(BarTable(music.bars.start[:2], music.bars.meter[:1]))
        return tables

    # --- how

    def tempo(self) -> np.ndarray | None:
        """`[bars]` tempo bins of the generated bars (-1: none known); None: free."""
        p, song, stop = self.prompt, self.song, self.start + self.bars
        if p.tempo is not None:
            return np.full(self.bars, parse_tempo(p.tempo), dtype=np.int16)
        if self.given is not None:
            return self.given.tempo
        covered = song is not None and stop <= song.n_bars
        if covered and self.future_range is not None:
            return song.tempo[self.start : stop]
        if self.past_music is not None:
            heard = self.past_music.tempo
        elif song is not None:
            first = self.past_range[0] if self.past_range is not None else max(self.start - DEFAULT_BARS, 0)
            heard = song.tempo[first : self.start] if self.start else song.tempo[:1]
        elif self.future_music is not None:
            heard = self.future_music.tempo[:1]
        else:
            return None
        # Songs end slower than they are: the median of the bars heard leaves a final ritardando behind.
        known = np.sort(heard[heard >= 0])
        return np.full(self.bars, known[len(known) // 2] if len(known) else -1, dtype=np.int16)

    def key(self) -> str | None:
        if self.prompt.key is not None:
            return parse_key(self.prompt.key)
        stated = next((s.key for s in self.materials if s.key is not None), None)
        if stated is not None:
            return stated
        known = [s for s in (self.given, self.past, self.future) if s is not None and s.n_notes]
        return common_key(known or self.materials) if self.materials else None

    def chords(self) -> MetricScore | None:
        """The generated bars with the chords asked for."""
        asked = self.prompt.chords
        if asked is None or asked is False:
            return None
        if self.own_chords:
            stop = self.start + self.bars
            if self.song is None or self.song.chords is None or stop > self.song.n_bars:
                raise PromptError(
                    "chords=True means the song's own chords, and there are none in these bars: give symbols instead",
                    "prompt.material",
                )
            found = window_chords(self.song.window(self.start, stop))
            if found is None:
                raise PromptError(
                    f"the song has no chords in bars {self.start}:{stop}: give symbols", "prompt.material"
                )
            return found
        table = parse_chords(asked, self.table, self.start)
        return None if table is None else window_chords(_silence(self.table, table))

    def header(self, tempo: np.ndarray | None) -> Header | None:
        if self.kind == TokenKind.META:
            return None
        p = self.prompt
        densities = ()
        if p.density is not None and self.instruments:
            listed = parse_densities(p.density, len(self.instruments))
            densities = tuple(listed[i] for i in self.order)
        genres = parse_genres(p.genre) if p.genre is not None else ()
        if p.genre is None and self.materials:
            genres = next((s.genres for s in self.materials if s.genres), ())
        header = Header(
            instruments=self.instruments,
            densities=densities,
            bars=self.bars if self.bars <= MAX_COUNTED_BARS else None,
            genres=tuple(genres),
            meter=int(self.table.meter[0]),
            tempo=int(tempo[0]) if tempo is not None and tempo[0] >= 0 else None,
            key=self.key(),
        )
        return thin_header(header, 0.0, None, p.omit)


def _looks_like_path(text: str) -> bool:
    return text.lower().endswith((".mid", ".midi", ".kar", ".smf"))


def _listed(value) -> list:
    return [value] if isinstance(value, (str, int, np.integer)) else list(value)


def _roll(song: MetricScore) -> str:
    return ", ".join(f"{i}: {instrument_name(int(p))}" for i, p in enumerate(song.programs))


def _silence(bars: BarTable, chords) -> MetricScore:
    """A score without notes."""
    none = np.empty(0, dtype=np.int64)
    return MetricScore(
        bars=bars,
        track=none,
        onset=none,
        pitch=none,
        duration=none,
        velocity=none,
        programs=np.zeros(1, dtype=np.int16),
        tempo=np.full(bars.n_bars, -1, dtype=np.int16),
        chords=chords,
    )
