"""MetricPrompt: what a musician asks for, and its tokens. All ten tasks, chords and analysis, in one code path.

Design decisions
- The filled fields decide the blocks, in the order PAST, FUTURE, CONST_M, CONST_C; there is no list of task names.
- A request is first resolved into a `Scene`: quantised music, the tracks of each block, the generated bars. Inference
  prompts and training examples are both written from a scene by `_write`, so they cannot drift apart.
- The header describes the generated field. META has none; CGEN's holds nothing taken from the answer. What a training
  header says of the answer (density, and the key where no material is given) is what a musician would ask for.
- Past and future hold the generated tracks and the constant ones; constant tracks and chords hold the generated bars.
  Tracks silent in a block are left out of it, and so is a block in which nothing sounds.
- Too long for the context: the oldest past bars go first, then the farthest future bars, never constant material.

Knows: `MetricScore`, instruments, keys, chords, the token table. Must not know: models, sampling, how MIDI is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from .errors_mortm import PromptError, VocabularyError
from .metric_grammar import GenerationPlan
from .metric_grid import COMMON_TIME, BarTable
from .metric_harmony import (
    NO_CHORD,
    chord_symbol,
    chord_table,
    estimate_key,
    key_twins,
    merge_repeats,
    parse_key,
    split_key,
)
from .metric_instruments import category_of, match_programs, parse_instrument
from .metric_score import ChordTable, MetricScore
from .metric_vocabulary import (
    DRUMS,
    GENRES,
    METER_TICKS,
    METERS,
    TEMPO_CENTRES,
    TEMPO_NAMES,
    MetricVocabulary,
    TokenKind,
)
from .midi_codec import (
    Header,
    density_of,
    encode_chords,
    encode_header,
    encode_tracks,
    parse_segment,
    read_midi,
    tempo_bin,
    uses_velocity,
)


TASKS = {"melody": TokenKind.MGEN, "chords": TokenKind.CGEN, "meta": TokenKind.META}
MAX_COUNTED_BARS = 16
UPSTREAM_MAX_DURATION = 288
HEADER_FIELDS = ("instruments", "density", "bars", "genre", "meter", "tempo", "key")


@dataclass(frozen=True)
class MetricPrompt:
    """One request. Bar ranges are 0-based and half-open, in bars of `song`; `start` is the first generated bar.

    Attributes:
        instruments: what to generate: General MIDI numbers, names or families ("violin", "piano", "drums"), one entry
            a track. The n-th entry of a program stands for the song's n-th track of it. By default all tracks of the
            song that are not constant.
        bars: how many bars to generate. start: by default after the past (or the song's end, or 0).
        key: "C major", "Am", "CM", "k_AM"; by default the song's, else estimated from what is given.
        meter: "3/4", (3, 4) or one a bar; by default the song's. tempo: quarters a minute.
        genre: name(s) of the genre table. density: 1 to 10, one for all or one an instrument.
        past, future: how many bars of the song before / after the generated ones (True: all), or a range of its bars,
            or music of its own (path, MIDI bytes, `symusic.Score`, `MetricScore`), or (music, (start, stop)).
        tracks: the constant tracks, which sound together with the generated ones: indices of the song's tracks or
            instrument names, True for all that are not generated, or music of its own, of exactly `bars` bars.
        chords: "C Am F G" or a list of symbols or Harte labels, one a bar, cycling; (symbol, bar) or (symbol, bar,
            beat) entries, bars of the song and beats from 0; a `ChordTable` from tick 0 of the generated bars; True for
            the song's own.
        task: "melody", "chords" (estimate the chords of `tracks`) or "meta" (describe `tracks`).
        song: the music that bar ranges and track indices speak of. targets: indices of the song's tracks to generate,
            instead of `instruments`.
        velocity: whether notes carry velocities; by default as the given music does. pitch_range, scale: limits of the
            generated notes (lowest and highest pitch, pitch classes or a key name); they cost no tokens.
    """

    instruments: Any = None
    bars: int = 8
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


@dataclass
class PromptReport:
    """What was left out of a prompt: bars of past and future that did not fit, blocks in which nothing sounds."""

    dropped_past_bars: int = 0
    dropped_future_bars: int = 0
    empty_blocks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = []
        if self.dropped_past_bars:
            parts.append(f"{self.dropped_past_bars} oldest past bars dropped to fit the context")
        if self.dropped_future_bars:
            parts.append(f"{self.dropped_future_bars} farthest future bars dropped to fit the context")
        parts += [f"{name} is silent and was left out" for name in self.empty_blocks]
        return "; ".join([*parts, *self.notes])


@dataclass
class PromptIds:
    """A prompt ready for a model.

    Attributes:
        ids: `[n]` int32, up to and including `<MGEN>`, `<CGEN>` or `<META>`.
        plan: what the generated field must be. report: what was left out.
        song: the music that the request speaks of, or None. start: first generated bar of it.
        targets: for each generated instrument its track in `song`, -1 where it is new.
    """

    ids: np.ndarray
    plan: GenerationPlan
    report: PromptReport
    song: MetricScore | None = None
    start: int = 0
    targets: tuple[int, ...] = ()


class TrainingExample(NamedTuple):
    """`ids [n]` int32 (`<EOS> .. <TE>`) and `answer_start`, the index of the first token after the marker."""

    ids: np.ndarray
    answer_start: int


@dataclass
class _Scene:
    """A resolved request: everything `_write` needs, as quantised music.

    Blocks are scores of their own, from tick 0, holding exactly the tracks to write.
    """

    kind: TokenKind
    header: Header | None
    past: MetricScore | None = None
    future: MetricScore | None = None
    const: MetricScore | None = None
    chords: MetricScore | None = None
    velocity: bool = False
    report: PromptReport = field(default_factory=PromptReport)


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def _upstream(ids: np.ndarray, vocabulary: MetricVocabulary) -> np.ndarray:
    """Without the meter statements of the default dialect (upstream's bars are all 4/4)."""
    kind = vocabulary.kind[ids]
    return ids[(kind != TokenKind.METER) & (kind != TokenKind.TEMPO)]


def _music_block(vocabulary, marker: TokenKind, score: MetricScore | None, velocity: bool, dialect: str):
    if score is None or score.n_bars == 0:
        return None
    tracks = encode_tracks(vocabulary, score, velocity, state=dialect == "metric")
    if not len(tracks):
        return None
    ends = (vocabulary.id(marker),), (vocabulary.id(TokenKind.TAG_END),)
    return np.concatenate([ends[0], tracks, ends[1]]).astype(np.int32)


def _fit(vocabulary, scene: _Scene, marker, score, room: int, oldest: bool, dialect: str):
    """(block, bars dropped): the longest stretch of `score` that takes at most `room` tokens, next to the generated
    bars. Lengths grow with the bars, so bisection finds it."""
    block = _music_block(vocabulary, marker, score, scene.velocity, dialect)
    if block is None or len(block) <= room:
        return block, 0
    n = score.n_bars
    low, high, best = 0, n - 1, None  # bars kept
    while low < high:
        keep = (low + high + 1) // 2
        part = score.window(n - keep, n) if oldest else score.window(0, keep)
        block = _music_block(vocabulary, marker, part, scene.velocity, dialect)
        if block is None or len(block) <= room:
            low, best = keep, block
        else:
            high = keep - 1
    return (best if low else None), n - low


def _write(vocabulary: MetricVocabulary, scene: _Scene, max_length: int | None, dialect: str = "metric") -> np.ndarray:
    """The prompt's ids, `<EOS>` to the marker of the generated field. Fills the scene's report."""
    head = [np.array([vocabulary.id(TokenKind.BOS)], dtype=np.int32)]
    if scene.header is not None:
        head.append(encode_header(vocabulary, _known(vocabulary, scene.header, dialect)))
    const = _music_block(vocabulary, TokenKind.CONST_M, scene.const, scene.velocity, dialect)
    tail = [] if const is None else [const]
    if scene.chords is not None:
        chords = encode_chords(vocabulary, scene.chords)
        if dialect == "mortm":
            chords = _upstream(chords, vocabulary)
        marks = vocabulary.id(TokenKind.CONST_C), vocabulary.id(TokenKind.TAG_END)
        tail.append(np.concatenate([marks[:1], chords, marks[1:]]).astype(np.int32))
    tail.append(np.array([vocabulary.id(scene.kind)], dtype=np.int32))
    room = 1 << 40 if max_length is None else max_length - sum(map(len, head)) - sum(map(len, tail))
    if room < 0:
        raise PromptError(
            f"the prompt needs {max_length - room} tokens without any past or future, but only {max_length} fit: give "
            "fewer constant tracks or generate fewer bars at a time",
            "prompt.too_long",
        )
    # The future is fitted first: past bars are the first to go.
    future, lost_future = _fit(vocabulary, scene, TokenKind.FUTURE, scene.future, room, False, dialect)
    room -= 0 if future is None else len(future)
    past, lost_past = _fit(vocabulary, scene, TokenKind.PAST, scene.past, room, True, dialect)
    report = scene.report
    report.dropped_past_bars, report.dropped_future_bars = lost_past, lost_future
    given = (("past", scene.past, past, lost_past), ("future", scene.future, future, lost_future))
    given += (("tracks", scene.const, const, 0),)
    report.empty_blocks = tuple(
        n for n, score, block, lost in given if score is not None and block is None and not lost
    )
    return np.concatenate([*head, *(b for b in (past, future) if b is not None), *tail])


def _known(vocabulary: MetricVocabulary, header: Header, dialect: str) -> Header:
    """Upstream's tables lack some header fields (meter, tempo, bar counts in `pro`): those are left out."""
    if dialect == "metric":
        return header

    def lacks(kind, value):
        return value is None or not vocabulary.has(kind, value)

    return replace(
        header,
        densities=tuple(None if lacks(TokenKind.DENSITY, d) else d for d in header.densities),
        bars=None if lacks(TokenKind.BAR_COUNT, header.bars) else header.bars,
        genres=tuple(g for g in header.genres if vocabulary.has(TokenKind.GENRE, g)),
        meter=None,
        tempo=None,
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
            genres = _parse_genres(asked.genre)
    if bars is None or not (0 <= start and 0 < bars and start + bars <= score.n_bars):
        raise PromptError(
            f"generated bars {start} to {start + bars} are not within the song's {score.n_bars}", "prompt.bars"
        )
    kind = _task_kind(task)
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
        told = _window_chords(window)
        if told is None:
            raise PromptError(f"bars {start} to {start + bars} have no chords to learn", "prompt.empty")
        answer, described = encode_chords(vocabulary, told), None
    else:
        described = given.take_tracks(given.sounding_tracks())
        if not described.n_notes:
            raise PromptError(f"nothing sounds in bars {start} to {start + bars}", "prompt.empty")
    header = _header_of(window, described, given, past, future, genres)
    header = _thin(header, drop, rng, omit)
    if kind == TokenKind.META:
        answer = encode_header(vocabulary, header)
        past = future = None
    scene = _Scene(
        kind=kind,
        header=None if kind == TokenKind.META else header,
        past=past,
        future=future,
        const=given,
        chords=_window_chords(window) if chords and kind == TokenKind.MGEN else None,
        velocity=velocity,
    )
    room = None if max_length is None else max_length - len(answer) - 1
    if room is not None and room <= 0:
        raise PromptError(f"the answer alone takes {len(answer)} of {max_length} tokens", "prompt.too_long")
    ids = _write(vocabulary, scene, room)
    end = np.array([vocabulary.id(TokenKind.END)], dtype=np.int32)
    return TrainingExample(np.concatenate([ids, answer, end]).astype(np.int32), len(ids))


def _window_chords(window: MetricScore) -> MetricScore | None:
    """A window with chords from its first tick on (no chord is stated where none sounds yet); None without any."""
    table = window.chords
    if table is None or not len(table):
        return None
    if table.onset[0] > 0:
        silence = (np.append(value, column).astype(np.int16) for value, column in zip(NO_CHORD, _columns(table)))
        table = ChordTable(np.append(0, table.onset), *silence)
    table = merge_repeats(table)
    if len(table) == 1 and int(table.root[0]) == NO_CHORD[0]:
        return None
    return replace(window, chords=table)


def _columns(table: ChordTable):
    return table.root, table.quality, table.bass


def _header_of(window, described, given, past, future, genres) -> Header:
    """The header of a training window; `described` is the music it speaks of (None: chords)."""
    key = window.key
    if key is None:
        # what is given decides; where nothing is, the key is a wish about the answer
        known = [s for s in (given, past, future) if s is not None and s.n_notes]
        key = _common_key(known) if known else None
        if key is None and not known and described is not None:
            key = estimate_key(described)
    return Header(
        instruments=tuple(described.programs.tolist()) if described is not None else (),
        densities=tuple(density_of(described).tolist()) if described is not None else (),
        bars=window.n_bars if window.n_bars <= MAX_COUNTED_BARS else None,
        genres=tuple(window.genres if genres is None else genres),
        meter=int(window.bars.meter[0]),
        tempo=int(window.tempo[0]) if len(window.tempo) and window.tempo[0] >= 0 else None,
        key=key,
    )


def _common_key(scores: Sequence[MetricScore]) -> str | None:
    """Key of several blocks together."""
    from .metric_harmony import ESTIMATED_KEYS, estimate_keys, pitch_class_histogram

    found = int(estimate_keys(sum(pitch_class_histogram(s) for s in scores))[0])
    return ESTIMATED_KEYS[found] if found >= 0 else None


def _thin(header: Header, drop, rng: np.random.Generator | None, omit: Sequence[str] = ()) -> Header:
    """Header fields left out, always (`omit`) or at random; density goes with the instruments."""
    gone, key = set(omit), header.key
    unknown = gone.union(drop if isinstance(drop, Mapping) else ()) - set(HEADER_FIELDS)
    if unknown:
        raise PromptError(f"no header field {', '.join(sorted(unknown))}: there are {', '.join(HEADER_FIELDS)}")
    if rng is not None:
        chance = [float(drop.get(name, 0.0) if isinstance(drop, Mapping) else drop) for name in HEADER_FIELDS]
        draw = rng.random(len(HEADER_FIELDS) + 1)
        gone.update(name for name, x, p in zip(HEADER_FIELDS, draw, chance) if x < p)
        if key is not None and draw[-1] < 0.15:
            key = key_twins(key)[-1]
    elif drop:
        raise PromptError("drop needs a random generator: pass rng (or name fixed fields in omit)")
    none = "instruments" in gone
    return Header(
        instruments=() if none else header.instruments,
        densities=() if none or "density" in gone else header.densities,
        bars=None if "bars" in gone else header.bars,
        genres=() if "genre" in gone else header.genres,
        meter=None if "meter" in gone else header.meter,
        tempo=None if "tempo" in gone else header.tempo,
        key=None if "key" in gone else key,
    )


def _bar_count(given, score: MetricScore) -> int:
    if given is None or given is False:
        return 0
    if given is True:
        return score.n_bars
    if isinstance(given, (int, np.integer)):
        return int(given)
    return int(given[1]) - int(given[0])


def _parse_genres(genre) -> tuple[int, ...]:
    """GENRE values of one or several names (or values)."""
    names = (genre,) if isinstance(genre, (str, int)) else tuple(genre)
    plain = {g.replace(" ", ""): i for i, g in enumerate(GENRES)}
    values = []
    for name in names:
        if isinstance(name, (int, np.integer)) and 0 <= name < len(GENRES):
            values.append(int(name))
            continue
        text = str(name).lower().replace(" ", "").replace("-", "").replace("&", "n").replace("_", "")
        if text not in plain:
            raise VocabularyError(f"unknown genre {name!r}: use one of {', '.join(GENRES)}", "vocabulary.genre")
        values.append(plain[text])
    return tuple(dict.fromkeys(values))


def _task_kind(task: str) -> TokenKind:
    try:
        return TASKS[task]
    except (KeyError, TypeError):
        raise PromptError(f"task must be one of {', '.join(TASKS)}, got {task!r}", "prompt.task") from None
