"""MetricPrompt: what a musician asks for, and its tokens. All ten tasks, chords and analysis, in one code path.

Design decisions
- The filled fields decide the blocks, in the order PAST, FUTURE, CONST_M, CONST_C; there is no list of task names.
- A request becomes a `Passage`, from which prompt and plan are written; a training example is a passage of a song,
  written by the same function, so that models meet at inference what they were trained on.
- Tracks silent in a block are left out of it, and so is a block in which nothing sounds.
- Too long for the context: the oldest past bars go first, then the farthest future bars, never constant material.

Knows: passages, the token table. Must not know: models, sampling.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np

from .errors_mortm import PromptError
from .music_grid import BarTable
from .music_harmony import NO_CHORD, QUALITY_TONES, nearest_quality
from .music_names import QUALITY_NAMES
from .music_score import ChordTable, MetricScore, append_bars, match_tracks, merge_infill
from .prompt_passage import DEFAULT_BARS, Passage, asked_passage, song_passage
from .prompt_words import TASKS, read_task, words_of_header
from .token_codec import encode_chords, encode_header, encode_tracks, known_header, parse_segment
from .token_headers import HEADER_FIELDS, Header, thinned
from .token_plan import GenerationPlan
from .token_vocabulary import CONTROLS, MetricVocabulary, TokenKind


# a path, MIDI bytes, a score of symusic, or quantised music
Music = "str | os.PathLike[str] | bytes | symusic.Score | MetricScore"
# bars of the song: how many, all (True), or a range; or music of its own, or a part of it
GivenBars = f"int | bool | tuple[int, int] | {Music} | tuple[{Music}, tuple[int, int]]"


@dataclass(frozen=True)
class MetricPrompt:
    """One request. Bar ranges are 0-based and half-open, in bars of `song`; `start` is the first generated bar.

    Attributes:
        instruments: what to generate: General MIDI numbers, names or families ("violin", "piano", "drums"), one entry
            a track. By default the tracks of the song that sound in what is given and are not constant.
        bars: how many bars to generate (default 8; for "chords" and "meta" as many as are given).
        start: first generated bar; by default after the past, before the future, or the song's end.
        key: "C major", "Am", "CM", "k_AM"; by default the song's, else estimated from what is given.
        meter: "3/4", (3, 4), or a list with one a bar; by default the song's.
        tempo: quarters a minute, 10 to 500; by default the song's.
        genre: name or names of the genre table.
        density: 1 to 10, one for all or one an instrument.
        past: how many bars of the song before the generated ones (True: all), or a range of its bars, or music of its
            own (path, MIDI bytes, `symusic.Score`, `MetricScore`), or (music, (start, stop)).
        future: the same after the generated bars.
        tracks: constant tracks, which sound together with the generated ones: indices of the song's tracks or
            instrument names, True for all that are not generated; or music of its own, exactly the generated bars.
        chords: "C Am F G" or a list of symbols or Harte labels, one a bar, cycling; (symbol, bar) or (symbol, bar,
            beat) entries, in bars of the song and beats from 0; a `ChordTable` from the first generated bar's tick 0;
            True for the song's own; or an annotation file of the song (`.chords.tsv`, `.txt`, `.lab`).
        task: "melody", "chords" (estimate the chords of `tracks`) or "meta" (describe `tracks`).
        song: the music that bar ranges and track indices speak of.
        targets: indices of the song's tracks to generate, instead of `instruments`.
        velocity: whether notes carry velocities; by default as the given music does.
        pitch_range: lowest and highest generated pitch, MIDI numbers; costs no tokens.
        scale: pitch classes of the generated notes, or a key name; costs no tokens.
        omit: controls not to write (`HEADER_FIELDS`).
        controls: words of controls that have no field of their own, by name; they are keyword arguments, too.
    """

    instruments: int | str | Sequence[int | str] | None = None
    bars: int | None = None
    start: int | None = None
    key: str | None = None
    meter: str | tuple[int, int] | Sequence | BarTable | None = None
    tempo: float | None = None
    genre: str | int | Sequence[str | int] | None = None
    density: int | Sequence[int | None] | None = None
    past: GivenBars | None = None
    future: GivenBars | None = None
    tracks: int | str | bool | Sequence[int | str] | Music | None = None
    chords: str | bool | Sequence | Mapping | ChordTable | os.PathLike | None = None
    task: str = "melody"
    song: Music | None = None
    targets: Sequence[int] | None = None
    velocity: bool | None = None
    pitch_range: tuple[int, int] | None = None
    scale: str | Sequence[int] | None = None
    omit: Sequence[str] = ()
    controls: Mapping[str, Any] = field(default_factory=dict)

    def word(self, control: str):
        """What is asked of a control; None: nothing.

        Args:
            control: its name.
        """
        return getattr(self, control) if control in _FIELDS else self.controls.get(control)


_FIELDS = frozenset(f.name for f in fields(MetricPrompt))
_NEW_CONTROLS = frozenset(HEADER_FIELDS) - _FIELDS
_plain_init = MetricPrompt.__init__


def _init(self, *args, **words):
    extra = {name: words.pop(name) for name in _NEW_CONTROLS & words.keys()}
    _plain_init(self, *args, **(words | {"controls": {**words.get("controls", {}), **extra}} if extra else words))


_init.__doc__, _init.__wrapped__ = _plain_init.__doc__, _plain_init
MetricPrompt.__init__ = _init


@dataclass
class PromptReport:
    """What was left out of a prompt.

    Attributes:
        dropped_past_bars: oldest bars of the past that did not fit.
        dropped_future_bars: farthest bars of the future that did not fit.
        empty_blocks: names of the blocks in which nothing sounds.
        notes: further sentences.
    """

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
        plan: what the generated field must be.
        passage: what it was written from.
        report: what was left out.
    """

    ids: np.ndarray
    plan: GenerationPlan
    passage: Passage
    report: PromptReport = field(default_factory=PromptReport)

    @property
    def chords(self) -> ChordTable | None:
        """The chords asked for, from the first tick of the generated bars."""
        return None if self.passage.chords is None else self.passage.chords.chords

    def merge(self, generated: MetricScore, inside: bool | None = None) -> MetricScore:
        """The song with the generated bars in their place (without a song: the generated bars).

        Args:
            generated: their music.
            inside: they go into the song; False: what the song has after them is dropped; None: as in the passage.
        """
        passage = self.passage
        if passage.song is None:
            return generated
        targets = passage.targets if generated.n_tracks <= len(passage.targets) else None
        if generated.n_tracks < len(passage.targets):  # a track came out empty: match what is there by program
            places = match_tracks(generated.programs, passage.instruments)
            targets = tuple(passage.targets[place] if place >= 0 else -1 for place in places)
        write = merge_infill if (passage.inside if inside is None else inside) else append_bars
        return write(passage.song, generated, passage.start, targets)


class TrainingExample(NamedTuple):
    """One example to train on.

    Attributes:
        ids: `[n]` int32, `<EOS>` to `<TE>`.
        answer_start: index of the first token after the marker of the generated field; loss belongs on what follows.
    """

    ids: np.ndarray
    answer_start: int


# ---------------------------------------------------------------------------------------------------------------------
# Passage -> ids


def _upstream(ids: np.ndarray, vocabulary: MetricVocabulary) -> np.ndarray:
    """Without the meter statements of the default dialect (upstream's bars are all 4/4)."""
    ids = ids[ids >= 0]  # its tables have no meter tokens
    kind = vocabulary.kind[ids]
    return ids[(kind != TokenKind.METER) & (kind != TokenKind.TEMPO)]


def _music_block(vocabulary, marker: TokenKind, score: MetricScore | None, velocity: bool, dialect: str):
    if score is None or score.n_bars == 0:
        return None
    tracks = encode_tracks(vocabulary, score, velocity, state=dialect == "metric")
    if not len(tracks):
        return None
    return _field(vocabulary, marker, tracks)


def _field(vocabulary: MetricVocabulary, marker: TokenKind, content: np.ndarray) -> np.ndarray:
    return np.concatenate([[vocabulary.id(marker)], content, [vocabulary.id(TokenKind.TAG_END)]]).astype(np.int32)


def _fit(vocabulary, marker: TokenKind, score, velocity: bool, room: int, oldest: bool, dialect: str):
    """(block, bars dropped): the longest stretch of `score` that takes at most `room` tokens, next to the generated
    bars. Lengths grow with the bars, so bisection finds it."""
    block = _music_block(vocabulary, marker, score, velocity, dialect)
    if block is None or len(block) <= room:
        return block, 0
    n = score.n_bars
    low, high, best = 0, n - 1, None  # bars kept
    while low < high:
        keep = (low + high + 1) // 2
        part = score.window(n - keep, n) if oldest else score.window(0, keep)
        block = _music_block(vocabulary, marker, part, velocity, dialect)
        if block is None or len(block) <= room:
            low, best = keep, block
        else:
            high = keep - 1
    return (best if low else None), n - low


def write_prompt(
    vocabulary: MetricVocabulary, passage: Passage, max_length: int | None = None, dialect: str = "metric"
) -> tuple[np.ndarray, PromptReport]:
    """The prompt of a passage.

    Args:
        vocabulary: the token table.
        passage: what is given and asked for.
        max_length: most tokens it may take; None: no limit.
        dialect: "metric" or "mortm".

    Returns:
        `[n]` int32 ids, `<EOS>` to the marker of the generated field; what was left out.

    Raises:
        PromptError: too long even without past and future (`prompt.too_long`).
    """
    velocity = passage.velocity
    head = [[vocabulary.id(TokenKind.BOS)]]
    if passage.header is not None:
        head.append(encode_header(vocabulary, known_header(vocabulary, passage.header, passage.asked, dialect)))
    const = _music_block(vocabulary, TokenKind.CONST_M, passage.const, velocity, dialect)
    tail = [] if const is None else [const]
    if passage.chords is not None:
        chords = encode_chords(vocabulary, _known_chords(vocabulary, passage.chords))
        if dialect == "mortm":
            chords = _upstream(chords, vocabulary)
        tail.append(_field(vocabulary, TokenKind.CONST_C, chords))
    tail.append([vocabulary.id(passage.kind)])
    room = 1 << 40 if max_length is None else max_length - sum(map(len, head)) - sum(map(len, tail))
    if room < 0:
        raise PromptError(
            f"the prompt needs {max_length - room} tokens without any past or future, but only {max_length} fit: give "
            "fewer constant tracks or generate fewer bars at a time",
            "prompt.too_long",
        )
    # The future is fitted first: past bars are the first to go.
    future, lost_future = _fit(vocabulary, TokenKind.FUTURE, passage.future, velocity, room, False, dialect)
    room -= 0 if future is None else len(future)
    past, lost_past = _fit(vocabulary, TokenKind.PAST, passage.past, velocity, room, True, dialect)
    given = (("past", passage.past, past, lost_past), ("future", passage.future, future, lost_future))
    given += (("tracks", passage.const, const, 0),)
    empty = tuple(name for name, score, block, lost in given if score is not None and block is None and not lost)
    ids = np.concatenate([*head, *(b for b in (past, future) if b is not None), *tail]).astype(np.int32)
    return ids, PromptReport(lost_past, lost_future, empty)


def _known_chords(vocabulary: MetricVocabulary, score: MetricScore) -> MetricScore:
    """Chords as this table can write them: upstream's lack "no chord" (left out) and some qualities (the nearest)."""
    table = score.chords
    if vocabulary.has(TokenKind.CHORD_ROOT, NO_CHORD[0]):
        return score
    rows = np.flatnonzero(table.root != NO_CHORD[0])
    known = [vocabulary.has(TokenKind.CHORD_QUALITY, q) for q in range(len(QUALITY_NAMES))]
    swap = [nearest_quality(QUALITY_TONES[name], known) for name in QUALITY_NAMES]
    quality = np.array(swap, dtype=np.int16)[table.quality[rows]]
    return replace(score, chords=ChordTable(table.onset[rows], table.root[rows], quality, table.bass[rows]))


# ---------------------------------------------------------------------------------------------------------------------
# Prompts


def build_prompt(
    vocabulary: MetricVocabulary, prompt: MetricPrompt, max_length: int | None = None, dialect: str = "metric"
) -> PromptIds:
    """A request -> the tokens of its prompt and what the generated field must be.

    Args:
        vocabulary: the token table.
        prompt: the request.
        max_length: most tokens the prompt may take; leave room for what is to be generated. The oldest past bars give
            way first, then the farthest future bars (`report` says how many).
        dialect: "metric" or "mortm".

    Raises:
        PromptError: impossible bars (`prompt.bars`), nothing to generate or to describe (`prompt.empty`), material
            that does not fit together (`prompt.material`), too long even without past and future (`prompt.too_long`),
            an unknown task (`prompt.task`).
        VocabularyError: an unknown instrument, key, chord, meter or genre.
        MidiError: music that cannot be read.
    """
    passage = asked_passage(prompt, dialect)
    passage = replace(passage, velocity=passage.velocity and vocabulary.has(TokenKind.VELOCITY, 2))
    ids, report = write_prompt(vocabulary, passage, max_length, dialect)
    melody = passage.kind == TokenKind.MGEN
    plan = GenerationPlan(
        kind=passage.kind,
        bars=passage.bars,
        instruments=passage.instruments,
        tempo=passage.tempo if melody else None,
        velocity=passage.velocity if melody else None,
        pitch_range=passage.pitch_range,
        scale=passage.scale,
    )
    return PromptIds(ids, plan, passage, report)


def parse_prompt(vocabulary: MetricVocabulary, ids) -> MetricPrompt:
    """The request that prompt ids stand for: blocks become music of their own. A generated field is left out.

    `build_prompt(vocabulary, parse_prompt(vocabulary, ids)).ids` gives the ids back, up to the marker.

    Args:
        vocabulary: the token table.
        ids: `[n]` ids of a prompt, with or without its answer.
    """
    segment = parse_segment(vocabulary, ids)
    header = segment.header if segment.header is not None else Header()
    blocks = segment.blocks
    chords, const = blocks.get(TokenKind.CONST_C), blocks.get(TokenKind.CONST_M)
    sized = const if const is not None else chords
    bars = header.get("bars", None if sized is None else sized.n_bars)
    meter = None
    if const is None and chords is not None:
        meter = chords.bars
    elif const is None and "meter" in header:
        meter = BarTable.regular(header["meter"], bars or DEFAULT_BARS)
    velocities = [b.explicit_velocity for b in blocks.values() if b.explicit_velocity is not None]
    names = {kind: name for name, kind in TASKS.items()}
    return MetricPrompt(
        instruments=header.instruments or None,
        bars=bars,
        meter=meter,
        past=blocks.get(TokenKind.PAST),
        future=blocks.get(TokenKind.FUTURE),
        tracks=const,
        chords=None if chords is None else chords.chords,
        task=names.get(segment.generated_kind, "melody"),
        velocity=any(velocities) if velocities else None,
        omit=tuple(name for name in HEADER_FIELDS if name not in header),
        **words_of_header(header),
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
        vocabulary: the token table.
        score: the song.
        start: first generated bar; or a `MetricPrompt` whose `start`, `bars`, `past`, `future` (bar counts),
            `targets`, `tracks` (indices), `chords` (True), `task`, `velocity` and `genre` say the same.
        bars: how many bars are generated.
        past_bars: given bars before them, clipped to the song.
        future_bars: given bars after them, clipped to the song.
        task: "melody", "chords" or "meta".
        targets: tracks to generate (melody; by default all but `const`).
        const: tracks given over the generated bars; for "chords" and "meta" by default all.
        chords: give the song's chords of the generated bars (melody).
        velocity: notes carry velocities.
        genres: GENRE values, by default the score's.
        drop: chance with which each control is left out (one number, or by name: `HEADER_FIELDS`); needs `rng`.
        omit: controls always left out.
        rng: random generator; with it a key is also spelled as its enharmonic twin now and then.
        max_length: most tokens of the whole example; past and future give way.

    Returns:
        `(ids, answer_start)`; loss belongs on `ids[answer_start:]`.

    Raises:
        PromptError: no generated track sounds, or there are no chords to learn (`prompt.empty`); the answer and the
            constant material alone are too long (`prompt.too_long`); the bars are not in the song (`prompt.bars`).
    """
    if not isinstance(start, (int, np.integer)):
        asked = start
        start, bars, task, targets = int(asked.start or 0), asked.bars, asked.task, asked.targets
        past_bars, future_bars = _bar_count(asked.past, score), _bar_count(asked.future, score)
        const = () if asked.tracks is None else asked.tracks
        chords, velocity = bool(asked.chords), bool(asked.velocity)
        if asked.genre is not None:
            genres = next(c for c in CONTROLS if c.name == "genre").read(asked.genre)
    kind = read_task(task)
    passage, music = song_passage(
        score, kind, start, bars or 0, past_bars, future_bars, targets, const, chords, velocity, genres
    )
    header = thinned(passage.header, drop, omit, rng)
    if kind == TokenKind.MGEN:
        answer = encode_tracks(vocabulary, music, velocity)
    elif kind == TokenKind.CGEN:
        answer = encode_chords(vocabulary, music)
    else:
        answer = encode_header(vocabulary, known_header(vocabulary, header))
    room = None if max_length is None else max_length - len(answer) - 1
    if room is not None and room <= 0:
        raise PromptError(f"the answer alone takes {len(answer)} of {max_length} tokens", "prompt.too_long")
    ids, _ = write_prompt(vocabulary, replace(passage, header=None if kind == TokenKind.META else header), room)
    ids, begins = np.concatenate([ids, answer, [vocabulary.id(TokenKind.END)]]).astype(np.int32), len(ids)
    return TrainingExample(ids, begins)


def _bar_count(given, score: MetricScore) -> int:
    if given is None or given is False:
        return 0
    if given is True:
        return score.n_bars
    if isinstance(given, (int, np.integer)):
        return int(given)
    return int(given[1]) - int(given[0])
