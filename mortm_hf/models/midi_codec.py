"""Quantised music <-> token ids: the default dialect's codec.

Design decisions
- Everything is columns of numpy arrays: the tokens of a whole song are scattered into place by computed positions,
  and read back by positions; no Python loop runs over notes or bars.
- Windows, tasks and transposition work on `MetricScore`, before this module.

Knows: `MetricScore` and the token table. Must not know: MIDI files, torch, tokenizers, prompts, legality of sequences
(`metric_grammar`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from .metric_grid import COMMON_TIME, BarTable
from .metric_score import ChordTable, CodecReport, MetricScore
from .metric_vocabulary import (
    KEY_NAMES,
    LONG_DURATIONS,
    MAX_BAR_TICKS,
    MAX_DURATION,
    METER_TICKS,
    MetricVocabulary,
    TokenKind,
)
from .midi_files import Caps, load_score, quantize, read_midi, tempo_bin, to_midi_score


__all__ = [
    "Caps",
    "ChordTable",
    "CodecReport",
    "Header",
    "MetricScore",
    "Segment",
    "density_of",
    "encode_chords",
    "encode_header",
    "encode_tracks",
    "load_score",
    "parse_segment",
    "quantize",
    "read_midi",
    "tempo_bin",
    "to_midi_score",
    "uses_velocity",
    "velocity_bin",
]

DEFAULT_VELOCITY = 90
DENSITY_EDGES = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24])


# ---------------------------------------------------------------------------------------------------------------------
# MetricScore -> ids


@dataclass
class Header:
    """The description in front of a generated field (values of the token kinds; None or empty: not written)."""

    instruments: tuple[int, ...] = ()
    densities: tuple[int | None, ...] = ()
    bars: int | None = None
    genres: tuple[int, ...] = ()
    meter: int | None = None
    tempo: int | None = None
    key: str | None = None


def encode_header(vocabulary: MetricVocabulary, header: Header) -> np.ndarray:
    """`<SYSTEM> ... <TAG_END>` ids; a field without a token in this vocabulary raises `VocabularyError`."""
    ids = [vocabulary.id(TokenKind.SYSTEM)]
    densities = header.densities or (None,) * len(header.instruments)
    for instrument, density in zip(header.instruments, densities):
        ids.append(vocabulary.id(TokenKind.INSTRUMENT, instrument))
        if density is not None:
            ids.append(vocabulary.id(TokenKind.DENSITY, density))
    if header.bars is not None:
        ids.append(vocabulary.id(TokenKind.BAR_COUNT, header.bars))
    ids += [vocabulary.id(TokenKind.GENRE, genre) for genre in header.genres]
    if header.meter is not None:
        ids.append(vocabulary.id(TokenKind.METER, header.meter))
    if header.tempo is not None:
        ids.append(vocabulary.id(TokenKind.TEMPO, header.tempo))
    if header.key is not None:
        ids.append(vocabulary[f"k_{header.key}"])
    ids.append(vocabulary.id(TokenKind.TAG_END))
    return np.array(ids, dtype=np.int32)


def density_of(score: MetricScore) -> np.ndarray:
    """`[n_tracks]` `<NOTE_DENSE_n>` value of each track: distinct onsets per four quarters, in ten bins."""
    key = score.track * (score.bars.end + 1) + score.onset
    first = np.append(True, key[1:] != key[:-1])[: len(key)]
    onsets = np.bincount(score.track[first], minlength=score.n_tracks)
    return np.searchsorted(DENSITY_EDGES, onsets * 96 / max(score.bars.end, 1), side="right") + 1


def velocity_bin(velocity: np.ndarray) -> np.ndarray:
    """Velocities 1..127 -> the centre of their bin of four (2, 6, .. 126)."""
    return (np.asarray(velocity) & ~3) + 2


@lru_cache(maxsize=1)
def _duration_sums() -> tuple[np.ndarray, np.ndarray]:
    """`[2593, 4]` greedy decomposition of every duration into table values (-1 padded), and the `[2593]` counts."""
    table = np.array([0, *range(1, 289), *LONG_DURATIONS])
    rest = np.arange(MAX_DURATION + 1)
    parts = np.full((MAX_DURATION + 1, 4), -1, dtype=np.int64)
    for column in range(4):
        value = table[np.searchsorted(table, rest, side="right") - 1]
        parts[:, column] = np.where(rest > 0, value, -1)
        rest = rest - value
    return parts, (parts > 0).sum(axis=1)


@lru_cache(maxsize=8)
def _duration_ids(vocabulary: MetricVocabulary) -> tuple[np.ndarray, np.ndarray]:
    parts, counts = _duration_sums()
    ids = vocabulary.lookup(TokenKind.DURATION)[np.maximum(parts, 0)]
    return np.where(parts > 0, ids, -1).astype(np.int32), counts


def _bar_prefix(vocabulary, bars: BarTable, tempo: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """`[n_bars, 4]` ids of `<SME> [<TS> [d_len]] [<BPM>]` and a mask of those present (without the blank)."""
    n = bars.n_bars
    ids = np.zeros((n, 4), dtype=np.int32)
    mask = np.zeros((n, 4), dtype=bool)
    ids[:, 0], mask[:, 0] = vocabulary.id(TokenKind.BAR), True
    mask[:, 1] = bars.states_meter()
    ids[:, 1] = vocabulary.lookup(TokenKind.METER)[bars.meter]
    odd = bars.irregular
    if odd.any():
        mask[:, 2] = odd
        ids[odd, 2] = vocabulary.lookup(TokenKind.DURATION)[bars.length[odd]]
    if tempo is not None and len(tempo):
        changed = np.append(True, tempo[1:] != tempo[:-1])
        mask[:, 3] = changed & (tempo >= 0)
        ids[:, 3] = vocabulary.lookup(TokenKind.TEMPO)[np.maximum(tempo, 0)]
    return ids, mask


def encode_tracks(
    vocabulary, score: MetricScore, velocity: bool = False, tracks=None, state: bool = True
) -> np.ndarray:
    """`(<INST_x> bar* <ESEQ>)*` over all bars of `score` (cut it with `score.window` first).

    Args:
        velocity: write a `v_` with every note.
        tracks: which tracks, in this order; by default all. Tracks without notes are left out.
        state: the first track states meter and tempo (every block's does).

    Returns:
        int32 ids; empty when no track sounds.
    """
    if tracks is not None:
        score = score.take_tracks(tracks)
    sounding = score.sounding_tracks()
    if len(sounding) == 0:
        return np.empty(0, dtype=np.int32)
    n_bars, n_tracks = score.n_bars, len(sounding)
    dense = np.zeros(score.n_tracks, dtype=np.int64)
    dense[sounding] = np.arange(n_tracks)
    row = dense[score.track]
    bar = score.bar_of_notes()
    cell = row * n_bars + bar

    note_ids, note_counts = _duration_ids(vocabulary)
    pieces = note_counts[score.duration]
    size = pieces + (3 if velocity else 2)
    filled = np.bincount(cell, minlength=n_tracks * n_bars) > 0

    prefix_ids, prefix_mask = _bar_prefix(vocabulary, score.bars, score.tempo)
    prefix = np.ones((n_tracks, n_bars), dtype=np.int64)
    if state:
        prefix[0] = prefix_mask.sum(axis=1)
    prefix = prefix.reshape(-1) + ~filled  # <BLANK>
    prefix_end = np.cumsum(prefix)
    note_end = np.cumsum(size)
    note_start = note_end - size + prefix_end[cell] + 2 * row + 1
    before = np.zeros(n_tracks * n_bars + 1, dtype=np.int64)
    before[1:] = np.cumsum(np.bincount(cell, weights=size, minlength=n_tracks * n_bars))
    track_of_cell = np.repeat(np.arange(n_tracks), n_bars)
    cell_start = prefix_end - prefix + before[:-1] + 2 * track_of_cell + 1
    out = np.empty(int(prefix_end[-1] + note_end[-1]) + 2 * n_tracks, dtype=np.int32)

    # instruments and ends
    first_cell = np.arange(n_tracks) * n_bars
    heads = cell_start[first_cell] - 1
    out[heads] = vocabulary.lookup(TokenKind.INSTRUMENT)[score.programs[sounding]]
    out[np.append(heads[1:], len(out)) - 1] = vocabulary.id(TokenKind.TRACK_END)
    # bars
    out[cell_start] = vocabulary.id(TokenKind.BAR)
    if state:
        where = cell_start[:n_bars, None] + np.cumsum(prefix_mask, axis=1) - 1
        out[where[prefix_mask]] = prefix_ids[prefix_mask]
    empty = np.flatnonzero(~filled)
    out[cell_start[empty] + prefix[empty] - 1] = vocabulary.id(TokenKind.BLANK)
    # notes
    out[note_start] = vocabulary.lookup(TokenKind.ONSET)[score.onset - score.bars.start[bar]]
    out[note_start + 1] = vocabulary.lookup(TokenKind.PITCH)[score.pitch]
    out[note_start + 2] = note_ids[score.duration, 0]
    long = np.flatnonzero(pieces > 1)
    for piece in range(1, 4) if len(long) else ():
        rows = long[pieces[long] > piece]
        out[note_start[rows] + 2 + piece] = note_ids[score.duration[rows], piece]
    if velocity:
        out[note_start + 2 + pieces] = vocabulary.lookup(TokenKind.VELOCITY)[velocity_bin(score.velocity)]
    return out


def encode_chords(vocabulary, score: MetricScore) -> np.ndarray:
    """`chordbar* <ESEQ>` over all bars of `score`; bars in which no chord starts hold `<BLANK>`."""
    n_bars = score.n_bars
    chords = score.chords
    onset = np.empty(0, np.int64) if chords is None else chords.onset
    bar = score.bars.of(onset)
    prefix_ids, prefix_mask = _bar_prefix(vocabulary, score.bars, None)
    filled = np.bincount(bar, minlength=n_bars) > 0
    prefix = prefix_mask.sum(axis=1) + ~filled
    prefix_end = np.cumsum(prefix)
    start = 4 * np.arange(len(onset)) + prefix_end[bar]
    counts = np.bincount(bar, minlength=n_bars)
    cell_start = prefix_end - prefix + 4 * (np.cumsum(counts) - counts)
    out = np.empty(int(prefix_end[-1]) + 4 * len(onset) + 1, dtype=np.int32)
    where = cell_start[:, None] + np.cumsum(prefix_mask, axis=1) - 1
    out[where[prefix_mask]] = prefix_ids[prefix_mask]
    empty = np.flatnonzero(~filled)
    out[cell_start[empty] + prefix[empty] - 1] = vocabulary.id(TokenKind.BLANK)
    if len(onset):
        out[start] = vocabulary.lookup(TokenKind.ONSET)[onset - score.bars.start[bar]]
        out[start + 1] = vocabulary.lookup(TokenKind.CHORD_ROOT)[chords.root]
        out[start + 2] = vocabulary.lookup(TokenKind.CHORD_QUALITY)[chords.quality]
        out[start + 3] = vocabulary.lookup(TokenKind.CHORD_BASS)[chords.bass]
    out[-1] = vocabulary.id(TokenKind.TRACK_END)
    return out


def uses_velocity(score: MetricScore) -> bool:
    """Whether a segment of this music carries velocity by default: unless it is constant after binning."""
    if score.explicit_velocity is not None:
        return score.explicit_velocity
    bins = score.velocity >> 2
    return len(bins) > 0 and bool((bins != bins[0]).any())


# ---------------------------------------------------------------------------------------------------------------------
# ids -> MetricScore


@dataclass
class Segment:
    """A parsed segment: its header, the prompt's blocks (by `TokenKind`), the generated field, and META's header.
    Every block is a `MetricScore` of its own, from tick 0; chord blocks have `chords` and no notes."""

    header: Header | None = None
    blocks: dict[int, MetricScore] = field(default_factory=dict)
    generated_kind: int | None = None
    generated: MetricScore | None = None
    meta: Header | None = None


_BLOCKS = (
    TokenKind.PAST,
    TokenKind.FUTURE,
    TokenKind.CONST_M,
    TokenKind.CONST_C,
    TokenKind.MGEN,
    TokenKind.CGEN,
    TokenKind.META,
)


def parse_segment(vocabulary: MetricVocabulary, ids) -> Segment:
    """Ids -> `Segment`; lenient: malformed notes are dropped. Ids without a marker are a generated field."""
    ids = np.asarray(ids, dtype=np.int64).reshape(-1)
    ids = ids[(ids >= 0) & (ids < len(vocabulary))]
    kind, value = vocabulary.kind[ids].astype(np.int64), vocabulary.value[ids].astype(np.int64)
    keep = kind != TokenKind.PAD
    kind, value = kind[keep], value[keep]
    ends = np.flatnonzero(kind == TokenKind.END)
    segment = Segment()
    marks = np.flatnonzero(np.isin(kind, _BLOCKS))
    systems = np.flatnonzero(kind == TokenKind.SYSTEM)
    closes = np.flatnonzero(kind == TokenKind.TAG_END)
    body_from = 0
    for system in systems:
        later = closes[closes > system]
        stop = int(later[0]) if len(later) else len(kind)
        header = _parse_header(kind[system + 1 : stop], value[system + 1 : stop])
        if len(marks) and kind[max(system - 1, 0)] == TokenKind.META:
            segment.meta = header
        else:
            segment.header = header
        body_from = max(body_from, min(stop + 1, len(kind))) if not len(marks) else 0
    if not len(marks):
        stop = int(ends[0]) if len(ends) and kind[-1] == TokenKind.END else len(kind)
        has_notes = (kind[body_from:stop] == TokenKind.PITCH).any()
        segment.generated_kind = TokenKind.MGEN if has_notes or not len(systems) else None
        segment.generated = _parse_block(kind[body_from:stop], value[body_from:stop])
        return segment
    edges = np.append(marks, len(kind))
    for mark, edge in zip(edges, edges[1:]):
        name = int(kind[mark])
        if name == TokenKind.META:
            segment.generated_kind = name
            continue
        block = _parse_block(kind[mark + 1 : edge], value[mark + 1 : edge])
        if name in (TokenKind.MGEN, TokenKind.CGEN):
            segment.generated_kind, segment.generated = name, block
        else:
            segment.blocks[name] = block
    return segment


def _parse_header(kind: np.ndarray, value: np.ndarray) -> Header:
    instruments, densities = [], []
    header = Header()
    for k, v in zip(kind.tolist(), value.tolist()):  # a header has a dozen tokens
        if k == TokenKind.INSTRUMENT:
            instruments.append(v)
            densities.append(None)
        elif k == TokenKind.DENSITY and densities:
            densities[-1] = v
        elif k == TokenKind.BAR_COUNT:
            header.bars = v
        elif k == TokenKind.GENRE:
            header.genres += (v,)
        elif k == TokenKind.METER:
            header.meter = v
        elif k == TokenKind.TEMPO:
            header.tempo = v
        elif k == TokenKind.KEY:
            header.key = KEY_NAMES[v]
    header.instruments, header.densities = tuple(instruments), tuple(densities)
    return header


def _parse_block(kind: np.ndarray, value: np.ndarray) -> MetricScore:
    n = len(kind)
    track_of = np.cumsum(kind == TokenKind.INSTRUMENT) - 1
    heads = np.flatnonzero(kind == TokenKind.INSTRUMENT)
    bar_count = np.cumsum(kind == TokenKind.BAR)
    base = np.append(bar_count[heads], 0) if len(heads) else np.zeros(1, dtype=np.int64)
    bar_of = bar_count - base[np.maximum(track_of, 0)] - 1  # -1 before a track's first <SME>
    bar_of = np.maximum(bar_of, 0)  # the mortm dialect has no <SME> in front of bar 0

    here = np.flatnonzero(kind == TokenKind.BAR)
    n_bars = int(bar_of[here].max()) + 1 if len(here) else 1
    meter = np.full(n_bars, -1, dtype=np.int64)
    at = np.flatnonzero(kind == TokenKind.METER)
    meter[bar_of[at][::-1]] = value[at][::-1]  # the first track to state a bar's meter wins
    own_length = np.zeros(n_bars, dtype=np.int64)
    sized = at[at + 1 < n]
    sized = sized[kind[sized + 1] == TokenKind.DURATION]
    own_length[bar_of[sized][::-1]] = value[sized + 1][::-1]
    stated = np.maximum.accumulate(np.where(meter >= 0, np.arange(n_bars), -1))
    meter = np.where(stated >= 0, meter[np.maximum(stated, 0)], COMMON_TIME)
    length = np.where((own_length > 0) & (own_length <= MAX_BAR_TICKS), own_length, METER_TICKS[meter])
    bars = BarTable.from_lengths(length, meter)

    tempo = np.full(n_bars, -1, dtype=np.int64)
    at = np.flatnonzero(kind == TokenKind.TEMPO)
    tempo[bar_of[at][::-1]] = value[at][::-1]
    stated = np.maximum.accumulate(np.where(tempo >= 0, np.arange(n_bars), -1))
    tempo = np.where(stated >= 0, tempo[np.maximum(stated, 0)], -1).astype(np.int16)

    # notes: s p d+ [v]
    padded = np.append(kind, (0, 0))
    at = np.flatnonzero(kind == TokenKind.PITCH)
    at = at[(at > 0) & (padded[at - 1] == TokenKind.ONSET) & (padded[at + 1] == TokenKind.DURATION)]
    is_duration = kind == TokenKind.DURATION
    sums = np.append(0, np.cumsum(np.where(is_duration, value, 0)))
    run_end = np.minimum.accumulate(np.where(is_duration, n, np.arange(n))[::-1])[::-1] if n else np.empty(0, np.int64)
    ending = run_end[at + 1]
    duration = sums[ending] - sums[at + 1]
    loud = padded[ending] == TokenKind.VELOCITY
    velocity = np.where(loud, np.append(value, 0)[ending], DEFAULT_VELOCITY)
    onset = bars.start[bar_of[at]] + value[at - 1]
    track = np.maximum(track_of[at], 0)
    order = np.lexsort((duration, value[at], onset, track))
    good = duration[order] > 0
    order = order[good]

    chords = None
    at_chord = np.flatnonzero(kind == TokenKind.CHORD_ROOT)
    at_chord = at_chord[(at_chord > 0) & (padded[at_chord - 1] == TokenKind.ONSET)]
    at_chord = at_chord[
        (padded[at_chord + 1] == TokenKind.CHORD_QUALITY)
        & (np.append(padded, 0)[at_chord + 2] == TokenKind.CHORD_BASS)
    ]
    if len(at_chord):
        chords = ChordTable(
            bars.start[bar_of[at_chord]] + value[at_chord - 1],
            value[at_chord].astype(np.int16),
            value[at_chord + 1].astype(np.int16),
            value[at_chord + 2].astype(np.int16),
        )
    programs = value[heads] if len(heads) else np.zeros(1, dtype=np.int64)
    return MetricScore(
        bars=bars,
        track=track[order],
        onset=onset[order],
        pitch=value[at][order],
        duration=np.minimum(duration[order], MAX_DURATION),
        velocity=np.maximum(velocity[order], 1),
        programs=programs.astype(np.int16),
        tempo=tempo,
        chords=chords,
        names=(),
        explicit_velocity=bool(loud.any()) if len(at) else None,
    )
