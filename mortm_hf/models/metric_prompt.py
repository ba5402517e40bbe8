"""MetricPrompt: what a musician asks for, and its tokens. All ten tasks, chords and analysis, in one code path.

Design decisions
- The filled fields decide the blocks, in the order PAST, FUTURE, CONST_M, CONST_C; there is no list of task names.
- A request is first resolved into a `Scene` (quantised music); `metric_scene` writes scenes, training examples too.
- Past and future hold the generated tracks and the constant ones; constant tracks and chords hold the generated bars.
- Musicians name instruments, models generate tracks: the n-th entry of a program is the song's n-th track of it.

Knows: `MetricScore`, the words of a request, the token table. Must not know: models, sampling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from .errors_mortm import PromptError
from .metric_grammar import GenerationPlan
from .metric_grid import COMMON_TIME, BarTable
from .metric_harmony import parse_key
from .metric_instruments import category_of, instrument_name, match_programs, parse_instrument
from .metric_merge import append_bars, merge_infill
from .metric_request import (
    bar_range,
    is_range,
    meter_bars,
    parse_chords,
    parse_densities,
    parse_genres,
    parse_pitch_range,
    parse_scale,
    parse_tempo,
    task_kind,
    whole_number,
)
from .metric_scene import (
    HEADER_FIELDS,
    MAX_COUNTED_BARS,
    PromptReport,
    Scene,
    common_key,
    describe,
    thin_header,
    window_chords,
    write_prompt,
)
from .metric_score import MetricScore
from .metric_vocabulary import DRUMS, GENRES, TEMPO_CENTRES, MetricVocabulary, TokenKind
from .midi_codec import Header, encode_chords, encode_header, encode_tracks, parse_segment, read_midi, uses_velocity


__all__ = [
    "HEADER_FIELDS",
    "MetricPrompt",
    "PromptIds",
    "PromptReport",
    "TrainingExample",
    "append_bars",
    "build_prompt",
    "merge_infill",
    "parse_prompt",
    "training_example",
]

DEFAULT_BARS = 8
UPSTREAM_MAX_DURATION = 288


@dataclass(frozen=True)
class MetricPrompt:
    """One request. Bar ranges are 0-based and half-open, in bars of `song`; `start` is the first generated bar.

    Attributes:
        instruments: what to generate: General MIDI numbers, names or families ("violin", "piano", "drums"), one entry
            a track. By default the tracks of the song that sound in what is given and are not constant.
        bars: how many bars to generate (default 8; for "chords" and "meta" as many as are given).
        start: by default after the past, before the future, or the song's end.
        key: "C major", "Am", "CM", "k_AM"; by default the song's, else estimated from what is given.
        meter: "3/4", (3, 4) or one a bar; by default the song's. tempo: quarters a minute, by default the song's.
        genre: name(s) of the genre table. density: 1 to 10, one for all or one an instrument.
        past, future: how many bars of the song before / after the generated ones (True: all), or a range of its bars,
            or music of its own (path, MIDI bytes, `symusic.Score`, `MetricScore`), or (music, (start, stop)).
        tracks: constant tracks, which sound together with the generated ones: indices of the song's tracks or
            instrument names, True for all that are not generated; or music of its own, exactly the generated bars.
        chords: "C Am F G" or a list of symbols or Harte labels, one a bar, cycling; (symbol, bar) or (symbol, bar,
            beat) entries, in bars of the song and beats from 0; a `ChordTable` from the first generated bar's tick 0;
            True for the song's own.
        task: "melody", "chords" (estimate the chords of `tracks`) or "meta" (describe `tracks`).
        song: the music that bar ranges and track indices speak of. targets: indices of the song's tracks to generate,
            instead of `instruments`.
        velocity: whether notes carry velocities; by default as the given music does. pitch_range, scale: limits of the
            generated notes (lowest and highest pitch; pitch classes or a key name); they cost no tokens.
        omit: header fields not to write, of `HEADER_FIELDS`.
    """

    instruments: Any = None
    bars: int | None = None
    start: int | None = None
    key: str | None = None
    meter: Any = None
    tempo: float | None = None
    genre: Any = None
    density: Any = None
    past: Any = None
    future: Any = None
    tracks: Any = None
    chords: Any = None
    task: str = "melody"
    song: Any = None
    targets: Sequence[int] | None = None
    velocity: bool | None = None
    pitch_range: tuple[int, int] | None = None
    scale: Any = None
    omit: tuple[str, ...] = ()


@dataclass
class PromptIds:
    """A prompt ready for a model.

    Attributes:
        ids: `[n]` int32, up to and including `<MGEN>`, `<CGEN>` or `<META>`.
        plan: what the generated field must be. report: what was left out.
        song: the music that the request speaks of, or None. start: first generated bar of it.
        targets: for each generated instrument its track in `song`, -1 where it is new.
        appends: the generated bars follow the song's bars before `start`; else they go into the song.
    """

    ids: np.ndarray
    plan: GenerationPlan
    report: PromptReport = field(default_factory=PromptReport)
    song: MetricScore | None = None
    start: int = 0
    targets: tuple[int, ...] = ()
    appends: bool = True

    def merge(self, generated: MetricScore) -> MetricScore:
        """The song with the generated bars in their place (without a song: the generated bars)."""
        if self.song is None:
            return generated
        targets = self.targets if generated.n_tracks <= len(self.targets) else None
        if generated.n_tracks < len(self.targets):  # a track came out empty: match what is there by program
            targets = _match_by_program(generated.programs, self.plan.instruments, self.targets)
        if self.appends:
            return append_bars(self.song, generated, self.start, targets)
        return merge_infill(self.song, generated, self.start, targets)


class TrainingExample(NamedTuple):
    """`ids [n]` int32 (`<EOS> .. <TE>`) and `answer_start`, the index of the first token after the marker."""

    ids: np.ndarray
    answer_start: int


def _match_by_program(programs, instruments, targets) -> tuple[int, ...]:
    left = list(zip(instruments, targets))
    found = []
    for program in programs.tolist():
        pair = next((p for p in left if p[0] == program), (program, -1))
        if pair in left:
            left.remove(pair)
        found.append(pair[1])
    return tuple(found)


# ---------------------------------------------------------------------------------------------------------------------
# Requests


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


class _Request:
    """A `MetricPrompt` being resolved: song, bars, tracks of every block. Each step fills fields that later ones use."""

    def __init__(self, prompt: MetricPrompt, dialect: str):
        self.prompt, self.dialect = prompt, dialect
        self.kind = task_kind(prompt.task)
        self.song = None if prompt.song is None else _music(prompt.song, dialect)
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
                f"the constant tracks have {self.const_music.n_bars} bars, but {bars} are to be generated: give the same "
                "number, e.g. tracks=(music, (start, stop))",
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
        elif covered and (self.future_range is not None or p.chords is True):
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
            regular = BarTable.regular(self._meter_before(), rest)
            self.table = regular if tail is None else BarTable.concat(tail, regular)
        if self.dialect == "mortm" and (self.table.length != 96).any():
            raise PromptError("the mortm dialect knows bars of 4/4 only: leave out the meter", "prompt.material")

    def _meter_before(self) -> int:
        """The meter of the last full bar before the generated ones, else of the first given one."""
        tables = []
        if self.past_music is not None:
            tables.append(self.past_music.bars)
        elif self.song is not None and self.start > 0:
            tables.append(self.song.bars.window(0, self.start))
        for music in (self.future_music, self.song):
            if music is not None:
                tables.append(BarTable(music.bars.start[:2], music.bars.meter[:1]))
        for table in tables:
            regular = np.flatnonzero(~table.irregular)
            if len(regular):
                return int(table.meter[regular[-1]])
        return COMMON_TIME

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
        last = None
        if self.past_music is not None:
            last = self.past_music.tempo[-1]
        elif song is not None:
            last = song.tempo[self.start - 1] if self.start else song.tempo[0]
        elif self.future_music is not None:
            last = self.future_music.tempo[0]
        return None if last is None else np.full(self.bars, last, dtype=np.int16)

    def key(self) -> str | None:
        if self.prompt.key is not None:
            return parse_key(self.prompt.key)
        stated = next((s.key for s in self.materials if s.key is not None), None)
        if stated is not None:
            return stated
        known = [s for s in (self.given, self.past, self.future) if s is not None and s.n_notes]
        return common_key(known) if known else None

    def chords(self) -> MetricScore | None:
        """The generated bars with the chords asked for."""
        asked = self.prompt.chords
        if asked is None or asked is False:
            return None
        if asked is True:
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


def build_prompt(
    vocabulary: MetricVocabulary, prompt: MetricPrompt, max_length: int | None = None, dialect: str = "metric"
) -> PromptIds:
    """A request -> the tokens of its prompt and what the generated field must be.

    Args:
        max_length: most tokens the prompt may take; leave room for what is to be generated. The oldest past bars give
            way first, then the farthest future bars (`report` says how many).

    Raises:
        PromptError: impossible bars (`prompt.bars`), nothing to generate or to describe (`prompt.empty`), material
            that does not fit together (`prompt.material`), too long even without past and future (`prompt.too_long`),
            an unknown task (`prompt.task`).
        VocabularyError: an unknown instrument, key, chord, meter or genre.
        MidiError: music that cannot be read.
    """
    request = _Request(prompt, dialect)
    tempo = request.tempo()
    velocity = prompt.velocity
    if velocity is None:
        heard = [s for s in (request.past, request.future, request.given) if s is not None and s.n_notes]
        velocity = any(uses_velocity(s) for s in heard)
    velocity = bool(velocity) and vocabulary.has(TokenKind.VELOCITY, 2)
    chords = request.chords()
    scene = Scene(
        kind=request.kind,
        header=request.header(tempo),
        past=request.past,
        future=request.future,
        const=request.given,
        chords=chords,
        velocity=velocity,
    )
    ids = write_prompt(vocabulary, scene, max_length, dialect)
    melody = request.kind == TokenKind.MGEN
    plan = GenerationPlan(
        kind=request.kind,
        bars=request.table,
        instruments=request.instruments,
        tempo=tempo if melody else None,
        velocity=velocity if melody else None,
        pitch_range=parse_pitch_range(prompt.pitch_range),
        scale=parse_scale(prompt.scale),
    )
    inside = request.future_range is not None or bool(request.const)
    return PromptIds(ids, plan, scene.report, request.song, request.start, request.targets, not inside)


def parse_prompt(vocabulary: MetricVocabulary, ids) -> MetricPrompt:
    """The request that prompt ids stand for: blocks become music of their own. A generated field is left out.

    `build_prompt(vocabulary, parse_prompt(vocabulary, ids)).ids` gives the ids back, up to the marker.
    """
    segment = parse_segment(vocabulary, ids)
    header = segment.header if segment.header is not None else Header()
    blocks = segment.blocks
    chords = blocks.get(TokenKind.CONST_C)
    const = blocks.get(TokenKind.CONST_M)
    names = {TokenKind.CGEN: "chords", TokenKind.META: "meta"}
    missing = {
        "density": not any(d is not None for d in header.densities),
        "instruments": not header.instruments,
        "bars": header.bars is None,
        "genre": not header.genres,
        "meter": header.meter is None,
        "tempo": header.tempo is None,
        "key": header.key is None,
    }
    meter = None
    if const is None and chords is not None:
        meter = chords.bars
    bars = header.bars
    if bars is None:
        sized = const if const is not None else chords
        bars = sized.n_bars if sized is not None else None
    if meter is None and const is None and header.meter is not None:
        meter = BarTable.regular(header.meter, bars or DEFAULT_BARS)
    loud = [b.explicit_velocity for b in blocks.values() if b.explicit_velocity is not None]
    return MetricPrompt(
        instruments=header.instruments or None,
        bars=bars,
        key=header.key,
        meter=meter,
        tempo=None if header.tempo is None else float(TEMPO_CENTRES[header.tempo]),
        genre=tuple(GENRES[g] for g in header.genres) or None,
        density=None if missing["density"] else header.densities,
        past=blocks.get(TokenKind.PAST),
        future=blocks.get(TokenKind.FUTURE),
        tracks=const,
        chords=None if chords is None else chords.chords,
        task=names.get(segment.generated_kind, "melody"),
        velocity=any(loud) if loud else None,
        omit=tuple(name for name in HEADER_FIELDS if missing[name]),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Training examples


def training_example(
    vocabulary: MetricVocabulary,
    score: MetricScore,
    start: int | MetricPrompt,
    bars: int | None = None,
    *,
    past_bars: int = 0,
    future_bars: int = 0,
    task: str = "melody",
    targets: Sequence[int] | None = None,
    const: Sequence[int] = (),
    chords: bool = False,
    velocity: bool = False,
    genres: Sequence[int] | None = None,
    drop: float | Mapping[str, float] = 0.0,
    omit: Sequence[str] = (),
    rng: np.random.Generator | None = None,
    max_length: int | None = None,
) -> TrainingExample:
    """Prompt and answer of one window of a song.

    Args:
        start, bars: the generated bars. Instead of `start` a `MetricPrompt` whose `start`, `bars`, `past`, `future` (bar
            counts), `targets`, `tracks` (indices), `chords` (True), `task`, `velocity` and `genre` say the same.
            past_bars, future_bars: how many given bars before and after them; both are
            clipped to the song.
        task: "melody", "chords" or "meta". targets: tracks to generate (melody; by default all but `const`).
        const: tracks given over the generated bars; for "chords" and "meta" by default all.
        chords: give the song's chords of the generated bars (melody).
        genres: GENRE values, by default the score's.
        drop: probability with which each header field is left out (one number, or by name: `HEADER_FIELDS`); needs
            `rng`. With `rng` a key is also spelled as its enharmonic twin now and then. omit: fields always left out.
        max_length: the whole example has at most this many tokens; past and future give way.

    Returns:
        `(ids, answer_start)`; loss belongs on `ids[answer_start:]`.

    Raises:
        PromptError: no generated track sounds, or there are no chords to learn (`prompt.empty`); the answer and the
            constant material alone are too long (`prompt.too_long`); the bars are not in the song (`prompt.bars`).
    """
    if not isinstance(start, (int, np.integer)):
        asked = start
        start, bars, task, targets = int(asked.start or 0), int(asked.bars), asked.task, asked.targets
        past_bars, future_bars = _bar_count(asked.past, score), _bar_count(asked.future, score)
        const = () if asked.tracks is None else asked.tracks
        chords, velocity = bool(asked.chords), bool(asked.velocity)
        if asked.genre is not None:
            genres = parse_genres(asked.genre)
    if bars is None or not (0 <= start and 0 < bars and start + bars <= score.n_bars):
        raise PromptError(
            f"generated bars {start} to {start + bars} are not within the song's {score.n_bars}", "prompt.bars"
        )
    kind = task_kind(task)
    const = np.asarray(const, dtype=np.int64)
    if kind == TokenKind.MGEN:
        if targets is None:
            targets = np.setdiff1d(np.arange(score.n_tracks), const)
        targets = np.asarray(targets, dtype=np.int64)
    else:
        targets = np.empty(0, dtype=np.int64)
        if not len(const):
            const = np.arange(score.n_tracks)
    window = score.window(start, start + bars)
    around = np.unique(np.concatenate([targets, const]))
    past = score.window(max(start - past_bars, 0), start).take_tracks(around) if past_bars > 0 and start else None
    stop = min(start + bars + future_bars, score.n_bars)
    future = score.window(start + bars, stop).take_tracks(around) if stop > start + bars else None
    given = window.take_tracks(const) if len(const) else None

    answer_score = window.take_tracks(targets) if len(targets) else None
    if kind == TokenKind.MGEN:
        sounding = answer_score.sounding_tracks() if answer_score is not None else ()
        if not len(sounding):
            raise PromptError(f"no generated track sounds in bars {start} to {start + bars}", "prompt.empty")
        answer_score = answer_score.take_tracks(sounding)
        answer = encode_tracks(vocabulary, answer_score, velocity)
        described = answer_score
    elif kind == TokenKind.CGEN:
        told = window_chords(window)
        if told is None:
            raise PromptError(f"bars {start} to {start + bars} have no chords to learn", "prompt.empty")
        answer, described = encode_chords(vocabulary, told), None
    else:
        described = given.take_tracks(given.sounding_tracks())
        if not described.n_notes:
            raise PromptError(f"nothing sounds in bars {start} to {start + bars}", "prompt.empty")
    header = describe(window, described, given, past, future, genres)
    header = thin_header(header, drop, rng, omit)
    if kind == TokenKind.META:
        answer = encode_header(vocabulary, header)
        past = future = None
    scene = Scene(
        kind=kind,
        header=None if kind == TokenKind.META else header,
        past=past,
        future=future,
        const=given,
        chords=window_chords(window) if chords and kind == TokenKind.MGEN else None,
        velocity=velocity,
    )
    room = None if max_length is None else max_length - len(answer) - 1
    if room is not None and room <= 0:
        raise PromptError(f"the answer alone takes {len(answer)} of {max_length} tokens", "prompt.too_long")
    ids = write_prompt(vocabulary, scene, room)
    end = np.array([vocabulary.id(TokenKind.END)], dtype=np.int32)
    return TrainingExample(np.concatenate([ids, answer, end]).astype(np.int32), len(ids))


def _bar_count(given, score: MetricScore) -> int:
    if given is None or given is False:
        return 0
    if given is True:
        return score.n_bars
    if isinstance(given, (int, np.integer)):
        return int(given)
    return int(given[1]) - int(given[0])
