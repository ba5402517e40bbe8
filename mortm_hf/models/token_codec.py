"""Quantised music <-> token ids: the default dialect's codec.

Design decisions
- Everything is columns of numpy arrays: the tokens of a whole song are scattered into place by computed positions,
  and read back by positions; no Python loop runs over notes or bars.
- Windows, tasks and transposition work on `MetricScore`, before this module.

Knows: `MetricScore` and the token table. Must not know: MIDI files, torch, tokenizers, prompts, legality of sequences
(`token_grammar`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from .errors_mortm import VocabularyError
from .music_grid import COMMON_TIME, BarTable
from .music_names import MAX_BAR_TICKS, MAX_DURATION, METER_TICKS
from .music_score import ChordTable, MetricScore
from .token_headers import Header
from .token_vocabulary import (
    BLOCK_KINDS,
    CONTROL_KINDS,
    CONTROLS,
    GENERATED_KINDS,
    LONG_DURATIONS,
    MetricVocabulary,
    TokenKind,
)


DEFAULT_VELOCITY = 90


# ---------------------------------------------------------------------------------------------------------------------
# MetricScore -> ids


def encode_header(vocabulary: MetricVocabulary, header: Header) -> np.ndarray:
    """`<SYSTEM> ... <TAG_END>` ids.

    Args:
        vocabulary: the token table.
        header: what is stated.

    Raises:
        VocabularyError: the table has no token for a stated value (`vocabulary.token`).
    """
    for control in CONTROLS:
        for value in control.each(header.get(control.name)):
            if not vocabulary.has(CONTROL_KINDS[control.name], value):
                raise VocabularyError(
                    f"{control.name} {control.word(value)!r}: the checkpoint's table has no token for it, it is older "
                    "than that or of another kind; leave it out or take another checkpoint"
                )
    tracks = [c for c in CONTROLS if c.level == "track" and c.name in header]
    ids = [vocabulary.id(TokenKind.SYSTEM)]
    for track, instrument in enumerate(header.instruments):
        ids.append(vocabulary.id(TokenKind.INSTRUMENT, instrument))
        stated = ((CONTROL_KINDS[control.name], header[control.name][track]) for control in tracks)
        ids += [vocabulary.id(kind, value) for kind, value in stated if value is not None]
    for control in CONTROLS:
        if control.level != "track" and control.name != "instruments":
            values = control.each(header.get(control.name))
            ids += [vocabulary.id(CONTROL_KINDS[control.name], value) for value in values]
    ids.append(vocabulary.id(TokenKind.TAG_END))
    return np.array(ids, dtype=np.int32)


def known_header(
    vocabulary: MetricVocabulary, header: Header, asked: Collection[str] = (), dialect: str = "metric"
) -> Header:
    """The part of a header that a table can write: a checkpoint keeps the table it was trained with, which lacks
    controls that came later, and upstream's lack meter, tempo and some bar counts.

    Args:
        vocabulary: the token table.
        header: what is known.
        asked: names of controls that somebody asked for: they stay, so that `encode_header` refuses them by name.
        dialect: "metric" or "mortm" (which leaves out what upstream never states).
    """
    known = Header()
    for control in CONTROLS:
        value, kind = header.get(control.name), CONTROL_KINDS[control.name]
        if value is None or (dialect == "mortm" and not control.upstream):
            continue
        if control.name == "instruments" or (dialect == "metric" and control.name in asked):
            known[control.name] = value
        elif control.level == "track":
            known[control.name] = tuple(v if v is not None and vocabulary.has(kind, v) else None for v in value)
        elif control.repeats:
            known[control.name] = tuple(v for v in value if vocabulary.has(kind, v))
        elif vocabulary.has(kind, value):
            known[control.name] = value
    return known


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
    """`(<INST_x> bar* <ESEQ>)*` over all bars of some music.

    Args:
        vocabulary: the token table.
        score: the music; cut it with `score.window` first.
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
    row = score.track
    if n_tracks < score.n_tracks:
        row = np.searchsorted(sounding, row)
    bar = score.bar_of_notes()
    cell = row * n_bars + bar  # ascending: notes are sorted by (track, onset)
    n_cells = n_tracks * n_bars
    notes_before = np.searchsorted(cell, np.arange(n_cells + 1))  # of each cell, and in all

    # Tokens of every note as one row of a matrix, `width` of them in use.
    note_ids, note_counts = _duration_ids(vocabulary)
    longest = 4 if score.duration.max() > LONG_DURATIONS[0] - 24 else 1
    width = 2 + longest + velocity
    notes = np.empty((score.n_notes, width), dtype=np.int32)
    notes[:, 0] = vocabulary.lookup(TokenKind.ONSET).take(score.onset - score.bars.start.take(bar))
    notes[:, 1] = vocabulary.lookup(TokenKind.PITCH).take(score.pitch)
    notes[:, 2 : 2 + longest] = note_ids[:, :longest].take(score.duration, axis=0)
    if velocity:
        notes[:, -1] = vocabulary.lookup(TokenKind.VELOCITY).take(velocity_bin(score.velocity))
    if longest == 1:
        body, body_before = notes.reshape(-1), notes_before * width
    else:
        body = notes[notes >= 0]
        size = np.zeros(score.n_notes + 1, dtype=np.int64)
        np.cumsum(note_counts.take(score.duration) + (2 + velocity), out=size[1:])
        body_before = size.take(notes_before)

    # Everything that is not a note stands in front of its cell: where each cell's prefix begins in the output.
    filled = notes_before[1:] > notes_before[:-1]
    prefix_ids, prefix_mask = _bar_prefix(vocabulary, score.bars, score.tempo)
    prefix = np.ones(n_cells, dtype=np.int64)
    if state:
        prefix[:n_bars] = prefix_mask.sum(axis=1)
    prefix += ~filled  # <BLANK>
    start = np.cumsum(prefix) - prefix + body_before[:-1]
    start += np.repeat(np.arange(1, 2 * n_tracks, 2), n_bars)  # <INST_x> here, <ESEQ> and <INST_x> before
    total = int(prefix.sum()) + len(body) + 2 * n_tracks
    out = np.full(total, -1, dtype=np.int32)
    heads = start[::n_bars] - 1
    out[heads] = vocabulary.lookup(TokenKind.INSTRUMENT)[score.programs[sounding]]
    out[heads[1:] - 1] = out[-1] = vocabulary.id(TokenKind.TRACK_END)
    out[start] = vocabulary.id(TokenKind.BAR)
    if state:
        where = start[:n_bars, None] + np.cumsum(prefix_mask, axis=1) - 1
        out[where[prefix_mask]] = prefix_ids[prefix_mask]
    empty = np.flatnonzero(~filled)
    out[start[empty] + prefix[empty] - 1] = vocabulary.id(TokenKind.BLANK)
    out[out < 0] = body  # what is left are the notes' places, in order
    return out


def encode_chords(vocabulary, score: MetricScore) -> np.ndarray:
    """`chordbar* <ESEQ>` over all bars of some music; bars in which no chord starts hold `<BLANK>`.

    Args:
        vocabulary: the token table.
        score: the music; its notes are not looked at.

    Returns:
        int32 ids.
    """
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
    """A parsed segment. Blocks are `MetricScore`s, each from its own tick 0; chord blocks have `chords` and no notes.

    Attributes:
        header: of the prompt, or None.
        blocks: blocks of the prompt, by `TokenKind` of their markers.
        generated_kind: `TokenKind` of the generated field's marker, or None.
        generated: music of the generated field, or None.
        meta: header that a META field holds, or None.
    """

    header: Header | None = None
    blocks: dict[int, MetricScore] = field(default_factory=dict)
    generated_kind: int | None = None
    generated: MetricScore | None = None
    meta: Header | None = None


_CONTROL_OF = {int(kind): control for control, kind in zip(CONTROLS, CONTROL_KINDS.values())}
_IS_BLOCK = np.isin(np.arange(max(TokenKind) + 1), (*BLOCK_KINDS, *GENERATED_KINDS))
# plain integers: comparing an array with an enum member costs a conversion each time
_PAD, _BAR, _INSTRUMENT, _METER, _TEMPO = (
    int(k) for k in (TokenKind.PAD, TokenKind.BAR, TokenKind.INSTRUMENT, TokenKind.METER, TokenKind.TEMPO)
)
_ONSET, _PITCH, _DURATION, _VELOCITY, _ROOT = (
    int(k) for k in (TokenKind.ONSET, TokenKind.PITCH, TokenKind.DURATION, TokenKind.VELOCITY, TokenKind.CHORD_ROOT)
)


def parse_segment(vocabulary: MetricVocabulary, ids) -> Segment:
    """Ids -> `Segment`; lenient: malformed notes are dropped.

    Args:
        vocabulary: the token table.
        ids: `[n]` ids; without a marker they are a generated field.
    """
    ids = np.asarray(ids).reshape(-1)
    if len(ids) and (ids.min() < 0 or ids.max() >= len(vocabulary)):
        ids = ids[(ids >= 0) & (ids < len(vocabulary))]
    kind, value = vocabulary.kind.take(ids), vocabulary.value.take(ids)
    keep = kind != _PAD
    if not keep.all():
        kind, value = kind[keep], value[keep]
    ends = np.flatnonzero(kind == TokenKind.END)
    segment = Segment()
    marks = np.flatnonzero(_IS_BLOCK.take(kind))
    systems = np.flatnonzero(kind == TokenKind.SYSTEM)
    closes = np.flatnonzero(kind == TokenKind.TAG_END)
    body_from = 0
    for system in systems:
        later = closes[closes > system]
        stop = int(later[0]) if len(later) else len(kind)
        header = parse_header(kind[system + 1 : stop], value[system + 1 : stop])
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


def parse_header(kind: np.ndarray, value: np.ndarray) -> Header:
    """The tokens of a header -> `Header`; lenient: what cannot stand there is passed over.

    Args:
        kind: `[n]` kinds of the tokens.
        value: `[n]` their values.
    """
    header = Header()
    for k, v in zip(kind.tolist(), value.tolist()):  # a header has a dozen tokens
        control = _CONTROL_OF.get(k)
        if control is None:
            continue
        if control.level == "track":
            if header.instruments:
                before = header.get(control.name, ())[: len(header.instruments) - 1]
                header[control.name] = (*before, *([None] * (len(header.instruments) - len(before) - 1)), v)
        else:
            header[control.name] = (*header.get(control.name, ()), v) if control.repeats else v
    for control in _CONTROL_OF.values():  # one entry for each instrument
        if control.level == "track" and control.name in header:
            stated = header[control.name]
            header[control.name] = stated + (None,) * (len(header.instruments) - len(stated))
    return header


def _parse_block(kind: np.ndarray, value: np.ndarray) -> MetricScore:
    n = len(kind)
    kind = np.append(kind, np.zeros(3, dtype=kind.dtype))  # looking ahead needs no bounds
    value = np.append(value, np.zeros(3, dtype=value.dtype)).astype(np.int64)
    heads = np.flatnonzero(kind == _INSTRUMENT)
    lines = np.flatnonzero(kind == _BAR)
    lines_before = np.searchsorted(lines, heads)

    def track_and_bar(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Track and bar in which each place lies (the mortm dialect has no <SME> in front of bar 0)."""
        track = np.maximum(np.searchsorted(heads, at, side="right") - 1, 0)
        bar = np.searchsorted(lines, at, side="right") - 1
        return track, np.maximum(bar - lines_before.take(track) if len(heads) else bar, 0)

    n_bars = 1
    if len(lines):
        sizes = np.diff(np.append(lines_before, len(lines))) if len(heads) else np.array([len(lines)])
        n_bars = max(int(sizes.max()), 1)
    meter = np.full(n_bars, -1, dtype=np.int64)
    at = np.flatnonzero(kind == _METER)
    bar = track_and_bar(at)[1]
    meter[bar[::-1]] = value[at][::-1]  # the first track to state a bar's meter wins
    own_length = np.zeros(n_bars, dtype=np.int64)
    sized = kind[at + 1] == _DURATION
    own_length[bar[sized][::-1]] = value[at[sized] + 1][::-1]
    meter = _held(meter, COMMON_TIME)
    length = np.where((own_length > 0) & (own_length <= MAX_BAR_TICKS), own_length, METER_TICKS[meter])
    bars = BarTable.from_lengths(length, meter)

    tempo = np.full(n_bars, -1, dtype=np.int64)
    at = np.flatnonzero(kind == _TEMPO)
    tempo[track_and_bar(at)[1][::-1]] = value[at][::-1]
    tempo = _held(tempo, -1).astype(np.int16)

    # notes: s p d+ [v]
    at = np.flatnonzero(kind[:n] == _PITCH)
    whole = (kind.take(at - 1, mode="wrap") == _ONSET) & (kind.take(at + 1) == _DURATION)
    if not whole.all():
        at = at[whole]
    duration, ending = value.take(at + 1), at + 2
    longer = kind.take(ending) == _DURATION
    if longer.any():
        ending[longer] = _ends_of_runs(kind == _DURATION).take(ending[longer])
        sums = np.append(0, np.cumsum(value * (kind == _DURATION)))
        duration = sums.take(ending) - sums.take(at + 1)
    duration = np.minimum(duration, MAX_DURATION)
    loud = kind.take(ending) == _VELOCITY
    velocity = np.where(loud, value.take(ending), DEFAULT_VELOCITY)
    track, bar = track_and_bar(at)
    onset, pitch = bars.start.take(bar) + value.take(at - 1), value.take(at)
    key = ((track * (bars.end + MAX_BAR_TICKS) + onset) * 128 + pitch) * (MAX_DURATION + 1) + duration
    order = None
    if len(key) and ((key[1:] < key[:-1]).any() or not duration.all()):  # written by a model without the grammar
        order = np.argsort(key, kind="stable")
        order = order[duration[order] > 0]
        track, onset, pitch, duration, velocity = (x[order] for x in (track, onset, pitch, duration, velocity))

    chords = None
    at = np.flatnonzero(kind == _ROOT)
    if len(at):
        at = at[(kind.take(at - 1, mode="wrap") == _ONSET)]
        at = at[(kind[at + 1] == TokenKind.CHORD_QUALITY) & (kind[at + 2] == TokenKind.CHORD_BASS)]
        if len(at):
            onsets = bars.start[track_and_bar(at)[1]] + value[at - 1]
            chords = ChordTable(onsets, *(value[at + i].astype(np.int16) for i in range(3)))
    return MetricScore(
        bars=bars,
        track=track,
        onset=onset,
        pitch=pitch,
        duration=duration,
        velocity=np.maximum(velocity, 1),
        programs=(value[heads] if len(heads) else np.zeros(1)).astype(np.int16),
        tempo=tempo,
        chords=chords,
        names=(),
        explicit_velocity=bool(loud.any()) if len(loud) else None,
    )


def _held(values: np.ndarray, first: int) -> np.ndarray:
    """Each -1 replaced by the last value before it (`first` where there is none)."""
    stated = np.maximum.accumulate(np.where(values >= 0, np.arange(len(values)), -1))
    return np.where(stated >= 0, values[np.maximum(stated, 0)], first)


def _ends_of_runs(inside: np.ndarray) -> np.ndarray:
    """`[n]` for each place the first place from there on that is not `inside` (the last place never is)."""
    n = len(inside)
    return np.minimum.accumulate(np.where(inside, n, np.arange(n))[::-1])[::-1]
