"""Scenes: a resolved request as quantised music, and the token blocks written from it.

Design decisions
- Inference prompts and training examples are both written from a `Scene` by `write_prompt`: they cannot drift apart.
- The header describes the generated field. META has none; CGEN's holds nothing taken from the answer. What a training
  header says of the answer (density, and the key where no material is given) is what a musician would ask for.
- Tracks silent in a block are left out of it, and so is a block in which nothing sounds.
- Too long for the context: the oldest past bars go first, then the farthest future bars, never constant material.

Knows: `MetricScore`, chords, the token table. Must not know: requests (`prompt_building`), models, how MIDI is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from .errors_mortm import PromptError
from .music_harmony import (
    ESTIMATED_KEYS,
    NO_CHORD,
    QUALITY_NAMES,
    QUALITY_TONES,
    estimate_key,
    estimate_keys,
    key_twins,
    merge_repeats,
    nearest_quality,
    pitch_class_histogram,
)
from .music_score import ChordTable, MetricScore
from .token_codec import Header, density_of, encode_chords, encode_header, encode_tracks
from .token_vocabulary import MetricVocabulary, TokenKind


MAX_COUNTED_BARS = 16
HEADER_FIELDS = ("instruments", "density", "bars", "genre", "meter", "tempo", "key")


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
class Scene:
    """A resolved request: everything `write_prompt` needs, as quantised music.

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
    ids = ids[ids >= 0]  # its tables have no meter tokens
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


def _fit(vocabulary, scene: Scene, marker, score, room: int, oldest: bool, dialect: str):
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


def write_prompt(
    vocabulary: MetricVocabulary, scene: Scene, max_length: int | None, dialect: str = "metric"
) -> np.ndarray:
    """The prompt's ids, `<EOS>` to the marker of the generated field. Fills the scene's report."""
    head = [np.array([vocabulary.id(TokenKind.BOS)], dtype=np.int32)]
    if scene.header is not None:
        head.append(encode_header(vocabulary, _known(vocabulary, scene.header, dialect)))
    const = _music_block(vocabulary, TokenKind.CONST_M, scene.const, scene.velocity, dialect)
    tail = [] if const is None else [const]
    if scene.chords is not None:
        chords = encode_chords(vocabulary, _known_chords(vocabulary, scene.chords))
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
# Headers and chords


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


def window_chords(window: MetricScore) -> MetricScore | None:
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


def describe(window, described, given, past, future, genres) -> Header:
    """The header of a training window; `described` is the music it speaks of (None: chords)."""
    key = window.key
    if key is None:
        # what is given decides; where nothing is, the key is a wish about the answer
        known = [s for s in (given, past, future) if s is not None and s.n_notes]
        key = common_key(known) if known else None
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


def common_key(scores: Sequence[MetricScore]) -> str | None:
    """Key of several blocks together."""
    found = int(estimate_keys(sum(pitch_class_histogram(s) for s in scores))[0])
    return ESTIMATED_KEYS[found] if found >= 0 else None


def thin_header(header: Header, drop, rng: np.random.Generator | None, omit: Sequence[str] = ()) -> Header:
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
