"""What can be read off token ids without a model: notes, bars, and rules about them.

Design decisions
- Rules read ids, not scores: a reward is asked for every sampled sequence of every update, so the notes of the whole
  batch are found by a fixed number of tensor operations, with no loop over rows, bars or notes.
- Every rule gives one number in [0, 1] for a row, about its generated field alone; what a rule does not apply to (no
  chords given, no bars to compare) gets its neutral value, which says so instead of rewarding or punishing.
- Rules are crude by design. They are what a learned reward is checked against, and they can be gamed; `guards` are
  the rules that name the two ways in which sampled music collapses (silence or noise, and endless repetition).

Knows: the token table, tensors. Must not know: models, prompts' making, TRL.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ...models.music_harmony import NO_CHORD, chord_tones, split_key
from ...models.music_names import DRUMS, KEY_NAMES, QUALITY_NAMES, ROOT_NAMES
from ...models.token_vocabulary import MetricVocabulary, TokenKind


K = TokenKind
FIELDS = (K.SYSTEM, K.PAST, K.FUTURE, K.CONST_M, K.CONST_C, K.MGEN, K.CGEN, K.META)
_MAJOR, _MINOR = (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10, 11)  # minor with the raised leading tone beside b7


def _key_tables() -> tuple[np.ndarray, np.ndarray]:
    """(`[keys, 12]` bool scale of every key token, none of "Unknown"; `[24, 12]` the scales there are)."""
    scales = np.array([[(pc - t) % 12 in s for pc in range(12)] for s in (_MAJOR, _MINOR) for t in range(12)])
    rows = np.zeros((len(KEY_NAMES), 12), dtype=bool)
    for index, name in enumerate(KEY_NAMES):
        if name != "Unknown":
            tonic, minor = split_key(name)
            rows[index] = scales[12 * minor + tonic]
    return rows, scales


def _chord_table() -> np.ndarray:
    """`[roots * qualities, 12]` bool tones of every chord."""
    table = np.zeros((len(ROOT_NAMES), len(QUALITY_NAMES), 12), dtype=bool)
    for root in range(len(ROOT_NAMES)):
        if root != NO_CHORD[0]:
            for quality in range(len(QUALITY_NAMES)):
                table[root, quality, list(chord_tones(root, quality))] = True
    return table.reshape(-1, 12)


@dataclass
class Notes:
    """The notes of a batch, in the order they stand in, and what is stated beside them.

    Attributes:
        row: `[n]` row of the batch.
        track: `[n]` number of the track, a different one for every track of the batch.
        bar: `[n]` bar of the track, from 0.
        onset: `[n]` ticks from the start of the bar.
        pitch: `[n]` MIDI pitch, or drum.
        duration: `[n]` ticks.
        program: `[n]` program of the track.
        new: `[n]` bool, in the generated field.
        key: `[B]` value of the header's key, -1: none.
        bars: `[B]` bars of the generated field (of its first track).
        track_bars: `[B]` bars of the generated field, summed over its tracks.
        finished: `[B]` bool, ends with `<TE>`.
        chords: row, bar, onset, root, quality of every chord of CONST_C, each `[m]`.
    """

    row: torch.Tensor
    track: torch.Tensor
    bar: torch.Tensor
    onset: torch.Tensor
    pitch: torch.Tensor
    duration: torch.Tensor
    program: torch.Tensor
    new: torch.Tensor
    key: torch.Tensor
    bars: torch.Tensor
    track_bars: torch.Tensor
    finished: torch.Tensor
    chords: tuple[torch.Tensor, ...]

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return len(self.key)

    @property
    def asked(self) -> torch.Tensor:
        """`[n]` bool, generated and pitched."""
        return self.new & (self.program != DRUMS)


class NoteReader:
    """Reads ids into `Notes`; its tables are moved to the ids' device when it changes.

    Args:
        vocabulary: the token table.
    """

    def __init__(self, vocabulary: MetricVocabulary):
        self.kind = torch.from_numpy(vocabulary.kind.astype(np.int64))
        self.value = torch.from_numpy(vocabulary.value.astype(np.int64))
        self.is_field = torch.zeros(max(K) + 1, dtype=torch.bool)
        self.is_field[[int(k) for k in FIELDS]] = True

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor) -> Notes:
        """`[B, T]` ids and bool mask of real tokens -> `Notes`."""
        device = ids.device
        if self.kind.device != device:
            self.kind, self.value, self.is_field = (x.to(device) for x in (self.kind, self.value, self.is_field))
        kind = torch.where(mask, self.kind[ids], int(K.PAD))
        value = self.value[ids]
        rows, length = ids.shape
        place = torch.arange(length, device=device).expand(rows, -1)

        def latest(where: torch.Tensor) -> torch.Tensor:
            """`[B, T]` position of the last token where `where` holds, at or before each position; -1: none."""
            return torch.where(where, place, -1).cummax(1).values

        def at(positions: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
            return of.gather(1, positions.clamp(min=0))

        field_at = latest(self.is_field[kind])
        field = torch.where(field_at >= 0, at(field_at, kind), int(K.OTHER))
        new = (field == K.MGEN) | (field == K.CGEN) | (field == K.META)
        is_track = (kind == K.INSTRUMENT) & (field != K.SYSTEM)
        # chord rows have no instrument: their bars are counted from the field's marker
        head = torch.maximum(latest(is_track), field_at)
        program = torch.where(at(head, kind) == K.INSTRUMENT, at(head, value), -1)
        is_bar = kind == K.BAR
        bars = is_bar.long().cumsum(1)
        bar = bars - at(head, bars) - 1
        onset = at(latest(kind == K.ONSET), value)
        after_meter = torch.zeros_like(is_bar)
        after_meter[:, 1:] = kind[:, :-1] == K.METER
        lasts = (kind == K.DURATION) & ~after_meter
        ticks = torch.where(lasts, value, 0).cumsum(1)

        note = kind == K.PITCH
        row = torch.arange(rows, device=device)[:, None].expand(-1, length)
        # a note's duration: all ticks before the next note of its row, less those before it
        following = torch.where(note, place, length).flip(1).cummin(1).values.flip(1)
        until = torch.full_like(following, length)
        until[:, :-1] = following[:, 1:]
        stop = ticks.gather(1, (until - 1).clamp(max=length - 1))
        duration = stop - ticks

        chord = (kind == K.CHORD_ROOT) & (field == K.CONST_C)
        quality = torch.zeros_like(value)
        quality[:, :-1] = value[:, 1:]
        stated = (kind == K.KEY) & (field == K.SYSTEM)
        key_at = torch.where(stated, place, -1).amax(1)
        key = torch.where(key_at >= 0, value.gather(1, key_at.clamp(min=0)[:, None])[:, 0], -1)
        first_track = torch.where(is_track & new, place, length).amin(1)
        in_first = new & (at(head, place) == first_track[:, None])
        return Notes(
            row=row[note],
            track=(row * length + head)[note],
            bar=bar[note],
            onset=onset[note],
            pitch=value[note],
            duration=duration[note],
            program=program[note],
            new=new[note],
            key=key,
            bars=(is_bar & in_first).sum(1),
            track_bars=(is_bar & new).sum(1),
            finished=(kind == K.END).any(1),
            chords=tuple(x[chord] for x in (row, bar, onset, value, quality)),
        )


def _share(yes: torch.Tensor, row: torch.Tensor, rows: int, neutral: float) -> torch.Tensor:
    """`[rows]` mean of `yes` [n] over the entries of each row, `neutral` where there are none."""
    count, total = torch.bincount(row, minlength=rows), torch.bincount(row, yes.float(), rows)
    return torch.where(count > 0, total / count.clamp(min=1), neutral)


class ScaleAdherence:
    """Share of the generated pitched notes whose pitch class belongs to the header's key; without a key, to the scale
    that fits the row best. A row without such notes gets 0: silence adheres to nothing."""

    def __init__(self):
        keys, scales = _key_tables()
        self.keys, self.scales = torch.from_numpy(keys), torch.from_numpy(scales).float()

    def __call__(self, notes: Notes) -> torch.Tensor:
        device = notes.row.device
        keys, scales = self.keys.to(device), self.scales.to(device)
        place = (notes.row * 12 + notes.pitch % 12)[notes.asked]
        counts = torch.bincount(place, minlength=notes.rows * 12).view(-1, 12).float()
        known = (notes.key >= 0) & keys[notes.key.clamp(min=0)].any(1)
        inside = (counts * keys[notes.key.clamp(min=0)]).sum(1)
        best = (counts @ scales.T).amax(1)
        return torch.where(known, inside, best) / counts.sum(1).clamp(min=1)


class ChordFit:
    """Share of the generated pitched notes that are tones of the chord given at their onset. Notes under no chord do
    not count.

    Args:
        neutral: what a row without chords gets.
    """

    def __init__(self, neutral: float = 0.5):
        self.neutral, self.tones = neutral, torch.from_numpy(_chord_table())

    def __call__(self, notes: Notes) -> torch.Tensor:
        device = notes.row.device
        row, bar, onset, root, quality = notes.chords
        use = notes.asked
        if not len(row):
            return torch.full((notes.rows,), self.neutral, device=device)
        span = 1 << 20  # more than the ticks and bars of any row
        chord_at = row * span + bar * 256 + onset
        note_at = notes.row[use] * span + notes.bar[use] * 256 + notes.onset[use]
        found = torch.searchsorted(chord_at, note_at, right=True) - 1
        under = (found >= 0) & (row[found.clamp(min=0)] == notes.row[use])
        chord = (root * len(QUALITY_NAMES) + quality)[found.clamp(min=0)]
        tones = self.tones.to(device)[chord]
        under &= tones.any(1)
        fits = tones.gather(1, (notes.pitch[use] % 12)[:, None])[:, 0]
        return _share(fits[under], notes.row[use][under], notes.rows, self.neutral)


class Consonance:
    """Share of the neighbouring generated pitched notes of one onset, over all tracks, that are no semitone apart
    (modulo the octave).

    Args:
        neutral: what a row gets in which no notes begin together.
    """

    def __init__(self, neutral: float = 1.0):
        self.neutral = neutral

    def __call__(self, notes: Notes) -> torch.Tensor:
        place = (notes.row * 1024 + notes.bar) * 256 + notes.onset
        sounds = torch.unique((place * 128 + notes.pitch)[notes.asked])  # sorted: by row, onset, pitch
        place, pitch = sounds // 128, sounds % 128
        together = place[1:] == place[:-1]
        step = (pitch[1:] - pitch[:-1])[together] % 12
        return _share((step != 1) & (step != 11), place[1:][together] // (1024 * 256), notes.rows, self.neutral)


def _hash(values: torch.Tensor) -> torch.Tensor:
    """A well mixed int64 of each int64 (splitmix64's finaliser), so that sums of them tell sets apart."""
    x = values * -7046029254386353131
    x = (x ^ (x >> 30)) * -4658895280553007687
    x = (x ^ (x >> 27)) * -7723592293110705685
    return x ^ (x >> 31)


def _seen_before(keys: torch.Tensor) -> torch.Tensor:
    """`[n]` bool, whether an equal key stands earlier."""
    if not len(keys):
        return torch.zeros(0, dtype=torch.bool, device=keys.device)
    _, index = torch.unique(keys, return_inverse=True)
    order = torch.arange(len(keys), device=keys.device)
    first = torch.full((int(index.max()) + 1,), len(keys), device=keys.device)
    return first.scatter_reduce_(0, index, order, "amin")[index] < order


def _track_bars(notes: Notes, content: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """All sounding track bars in their order: (row, program, sum of the notes' `content`, new), each `[bars]`."""
    cells, index = torch.unique(notes.track * 1024 + notes.bar, return_inverse=True)
    empty = torch.zeros_like(cells)
    total = empty.index_add(0, index, content)
    row, program, new = (empty.index_copy(0, index, x) for x in (notes.row, notes.program + 1, notes.new.long()))
    return row, program, total, new.bool()


class BarPattern:
    """How near the share of generated bars whose rhythm repeats an earlier bar of the row comes to `target`: 1 at the
    target, falling linearly to 0 at the farther end. Bars are compared by the set of their onsets, within instruments;
    given bars count as earlier ones.

    Args:
        target: share that gets 1.
        neutral: what a row gets with no two bars to compare.
    """

    def __init__(self, target: float = 0.6, neutral: float = 0.5):
        self.target, self.neutral = target, neutral

    def __call__(self, notes: Notes) -> torch.Tensor:
        # an onset written for several pitches is one onset: count it at its first note
        chord = _seen_before((notes.track * 1024 + notes.bar) * 256 + notes.onset)
        row, program, pattern, new = _track_bars(notes, torch.where(chord, 0, _hash(notes.onset + 1)))
        player = row * 512 + program
        comparable = new & _seen_before(player)
        again = _seen_before(_hash(pattern) + _hash(player + 1))
        share = _share(again[comparable], row[comparable], notes.rows, -1.0)
        near = 1 - (share - self.target).abs() / max(self.target, 1 - self.target)
        return torch.where(share >= 0, near.clamp(min=0), self.neutral)


class DensityGuard:
    """1 while the generated notes a track bar stay between `low` and `high`, falling to 0 at none and at twice `high`;
    0 where the field is unfinished.

    Args:
        low: notes a track bar.
        high: notes a track bar.
    """

    def __init__(self, low: float = 1.0, high: float = 16.0):
        self.low, self.high = low, high

    def __call__(self, notes: Notes) -> torch.Tensor:
        dense = torch.bincount(notes.row, notes.new.float(), notes.rows) / notes.track_bars.clamp(min=1)
        value = torch.minimum(dense / self.low, (2 * self.high - dense) / self.high).clamp(0, 1)
        return torch.where(notes.finished, value, 0.0)


class RepetitionGuard:
    """1 while at most `allowed` of the generated track bars copy an earlier bar of the row note for note, falling to 0
    where all do. A row without bars to compare gets 1.

    Args:
        allowed: share of the track bars.
    """

    def __init__(self, allowed: float = 0.5):
        self.allowed = allowed

    def __call__(self, notes: Notes) -> torch.Tensor:
        content = _hash((notes.onset * 128 + notes.pitch) * 4096 + notes.duration + 1)
        row, _, total, new = _track_bars(notes, content)
        copied = _share(_seen_before(_hash(total) + _hash(row + 1))[new], row[new], notes.rows, 0.0)
        return 1 - ((copied - self.allowed) / (1 - self.allowed)).clamp(0, 1)


RULES = {
    "scale": ScaleAdherence,
    "chords": ChordFit,
    "consonance": Consonance,
    "bar_pattern": BarPattern,
    "density_guard": DensityGuard,
    "repetition_guard": RepetitionGuard,
}
