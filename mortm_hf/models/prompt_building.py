"""MetricPrompt: what a musician asks for, and its tokens. All ten tasks, chords and analysis, in one code path.

Design decisions
- The filled fields decide the blocks, in the order PAST, FUTURE, CONST_M, CONST_C; there is no list of task names.
- A request is resolved (`prompt_passage`) into a `Scene` of quantised music, which `prompt_writing` writes; training
  examples go through the same scene, so that models meet at inference what they were trained on.

Knows: `MetricScore`, the token table. Must not know: models, sampling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .errors_mortm import PromptError
from .music_grid import BarTable
from .music_score import ChordTable, MetricScore
from .music_splicing import append_bars, merge_infill
from .prompt_passage import DEFAULT_BARS, Request
from .prompt_words import parse_genres, parse_pitch_range, parse_scale, task_kind
from .prompt_writing import HEADER_FIELDS, PromptReport, Scene, describe, thin_header, window_chords, write_prompt
from .token_codec import Header, encode_chords, encode_header, encode_tracks, parse_segment, uses_velocity
from .token_grammar import GenerationPlan
from .token_vocabulary import GENRES, TEMPO_CENTRES, MetricVocabulary, TokenKind


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
            True for the song's own; or an annotation file of the song (`.chords.tsv`, `.txt`, `.lab`).
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
        chords: those asked for, from the first tick of the generated bars, or None.
    """

    ids: np.ndarray
    plan: GenerationPlan
    report: PromptReport = field(default_factory=PromptReport)
    song: MetricScore | None = None
    start: int = 0
    targets: tuple[int, ...] = ()
    appends: bool = True
    chords: ChordTable | None = None

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
# Prompts


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
    request = Request(prompt, dialect)
    tempo = request.tempo()
    velocity = prompt.velocity
    if velocity not in (None, False, True):
        raise PromptError(f"velocity must be True, False or None (as in the given music), got {velocity!r}")
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
    given = None if chords is None else chords.chords
    return PromptIds(ids, plan, scene.report, request.song, request.start, request.targets, not inside, given)


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
        start, bars: the generated bars. Instead of `start` a `MetricPrompt` whose `start`, `bars`, `past`, `future`
            (bar counts), `targets`, `tracks` (indices), `chords` (True), `task`, `velocity` and `genre` say the same.
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
        start, bars, task, targets = int(asked.start or 0), asked.bars, asked.task, asked.targets
        past_bars, future_bars = _bar_count(asked.past, score), _bar_count(asked.future, score)
        const = () if asked.tracks is None else asked.tracks
        chords, velocity = bool(asked.chords), bool(asked.velocity)
        if asked.genre is not None:
            genres = parse_genres(asked.genre)
    if bars is None or not (0 <= start and 0 < bars and start + bars <= score.n_bars):
        raise PromptError(f"{bars} bars from {start} on are not within the song's {score.n_bars}", "prompt.bars")
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
        if not given.n_notes:
            raise PromptError(f"no given track sounds in bars {start} to {start + bars}", "prompt.empty")
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
