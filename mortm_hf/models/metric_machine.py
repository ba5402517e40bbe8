"""The state machine of `metric_grammar`: what may come next in a field, for a batch of rows.

Design decisions
- One machine over *batches of rows*: `step` and `allowed` are a fixed number of tensor operations, whatever the
  vocabulary, the batch or the piece. Nothing loops over tokens, kinds or rows.
- What may come next is a product of three look-ups: a table (phase x kind), an interval of values for every kind
  (onsets inside the bar and in order, durations that keep offsets in order, forced meters, tempi and instruments), and
  a pitch mask. A token is legal when its kind is open and its value lies in the interval.
- `closing_cost` is the exact minimum number of tokens that finish the field legally; with a budget a token is legal
  only if the field can still be finished after it. `closing_cost(s) == 1 + min over legal t of closing_cost(s t)`.
- There are no dead ends: the last bar of a silent track may not be blank, an onset is offered only if some pitch can
  still be written there, a pitch only if some writable duration keeps its offsets in order.

Knows: vocabulary, bar tables, tensors. Must not know: MIDI, models, tokenizers, prompts, whole segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from .errors_mortm import PromptError
from .metric_grid import BarTable
from .metric_vocabulary import (
    DRUMS,
    MAX_DURATION,
    MetricVocabulary,
    TokenKind,
)


K = TokenKind
N_KINDS = max(TokenKind) + 1
DIALECTS = ("metric", "mortm")
BLOCK_KINDS = (K.PAST, K.FUTURE, K.CONST_M, K.CONST_C)
GENERATED_KINDS = (K.MGEN, K.CGEN, K.META)

# Phases: the last thing written. BAR .. TEMPO are consecutive (columns of the prefix tables).
(
    START,
    TRACK,
    BAR,
    METER,
    LENGTH,
    TEMPO,
    BLANK,
    ONSET,
    PITCH,
    DURATION,
    VELOCITY,
    CLOSED,
    END,
    DEAD,
    ROOT,
    QUALITY,
    BASS,
) = range(17)
(H_START, H_SYSTEM, H_INST, H_DENSITY, H_COUNT, H_GENRE, H_METER, H_TEMPO, H_KEY, H_END) = range(17, 27)
N_PHASES = 27
_OPEN = 1 << 30  # "any value"
_FREE = 1 << 20  # "no budget"


@dataclass(frozen=True)
class GenerationPlan:
    """What a generated field must be.

    Attributes:
        kind: `TokenKind.MGEN`, `CGEN` or `META`.
        bars: the generated bars; lengths and meters are forced. Unused for META.
        instruments: INSTRUMENT values in track order (MGEN), drums last.
        tempo: `[n_bars]` forced tempo bins (-1: none), or None: free.
        velocity: True: every note carries one, False: none does, None: the first note decides.
        pitch_range: lowest and highest pitch of melodic tracks; scale: their pitch classes. Drums are never limited.
    """

    kind: TokenKind
    bars: BarTable | None = None
    instruments: tuple[int, ...] = ()
    tempo: np.ndarray | None = None
    velocity: bool | None = None
    pitch_range: tuple[int, int] | None = None
    scale: tuple[int, ...] | None = None


def _phase_tables(dialect: str) -> tuple[np.ndarray, np.ndarray]:
    """(`[phase, kind]` next phase, DEAD where impossible; `[phase, kind]` bool "possible at all")."""
    follow = np.full((N_PHASES, N_KINDS), DEAD, dtype=np.int64)

    def rule(sources, kind, target):
        follow[list(sources), kind] = target

    body, done = (BAR, METER, LENGTH, TEMPO), (BLANK, DURATION, VELOCITY, BASS)
    rule((START, CLOSED), K.INSTRUMENT, TRACK)
    rule((START, CLOSED, H_END), K.END, END)
    rule((TRACK, *done), K.BAR, BAR)
    rule(done, K.TRACK_END, CLOSED)
    rule((BAR,), K.METER, METER)
    rule((METER,), K.DURATION, LENGTH)
    rule((BAR, METER, LENGTH), K.TEMPO, TEMPO)
    rule(body, K.BLANK, BLANK)
    rule((*body, DURATION, VELOCITY, BASS), K.ONSET, ONSET)
    rule((ONSET,), K.PITCH, PITCH)
    rule((PITCH, DURATION), K.DURATION, DURATION)
    rule((DURATION,), K.VELOCITY, VELOCITY)
    rule((ONSET,), K.CHORD_ROOT, ROOT)
    rule((ROOT,), K.CHORD_QUALITY, QUALITY)
    rule((QUALITY,), K.CHORD_BASS, BASS)
    if dialect == "mortm":
        rule((BASS,), K.PITCH, PITCH)
    rule((END,), K.PAD, END)
    # The header: each field at most once and in this order, genres and instruments repeat.
    order = [(K.BAR_COUNT, H_COUNT), (K.GENRE, H_GENRE), (K.METER, H_METER), (K.TEMPO, H_TEMPO), (K.KEY, H_KEY)]
    rule((H_START,), K.SYSTEM, H_SYSTEM)
    rule((H_SYSTEM, H_INST, H_DENSITY), K.INSTRUMENT, H_INST)
    rule((H_INST,), K.DENSITY, H_DENSITY)
    earlier = [H_SYSTEM, H_INST, H_DENSITY]
    for kind, phase in order:
        rule([*earlier, phase] if kind == K.GENRE else earlier, kind, phase)
        earlier.append(phase)
    rule(earlier, K.TAG_END, H_END)
    return follow, follow != DEAD


class VocabularyTables:
    """Look-ups that depend only on vocabulary, dialect and device (shared by all plans).

    Args:
        vocab: the vocabulary. dialect: "metric" or "mortm". size: width of the masks (a model's `vocab_size`; ids past
            the vocabulary are never legal).
    """

    def __init__(self, vocab: MetricVocabulary, dialect: str = "metric", device=None, size: int | None = None):
        if dialect not in DIALECTS:
            raise PromptError(f"no dialect {dialect!r}; choose one of {', '.join(DIALECTS)}", code="prompt.dialect")
        self.vocab, self.dialect, self.device = vocab, dialect, torch.device(device or "cpu")
        size = max(size or len(vocab), len(vocab))
        kind = np.zeros(size, dtype=np.int64)
        value = np.zeros(size, dtype=np.int64)
        kind[: len(vocab)], value[: len(vocab)] = vocab.kind, np.maximum(vocab.value, 0)
        table = np.flatnonzero(vocab.lookup(K.DURATION) > 0)
        table = table[table > 0]
        self.size = size
        self.top = int(table[-1]) if len(table) else 1
        # Durations are sums, greatest first, each the largest that fits: `gap[z]` is what may still follow z.
        gap = np.zeros(MAX_DURATION + 2, dtype=np.int64)
        self.longest = self.top
        if dialect == "metric":
            self.longest = min(MAX_DURATION, 4 * self.top)
            gap[table[:-1]] = np.diff(table) - 1
            gap[self.top] = self.top
        # `floor[m]`, `ceil[m]`: neighbours of m in the table, for 0 <= m <= top.
        m = np.arange(self.top + 1)
        at = np.searchsorted(table, m, side="left").clip(0, len(table) - 1)
        ceil = table[at] if len(table) else m
        floor = np.where(ceil == m, m, table[np.maximum(at - 1, 0)]) if len(table) else m
        follow, possible = _phase_tables(dialect)
        possible = possible.copy()
        present = np.zeros(N_KINDS, dtype=bool)
        present[np.unique(vocab.kind)] = True
        possible[:, ~present] = False
        velocity = vocab.lookup(K.VELOCITY)
        blocked = np.ones(size, dtype=bool)  # ids never written although their kind and value exist
        blocked[kind == K.OTHER] = False
        if dialect == "metric":
            unused = velocity[(np.arange(len(velocity)) % 4) != 2]
            blocked[unused[unused >= 0]] = False
        blocked[len(vocab) :] = False

        def put(array):
            return torch.as_tensor(array, device=self.device)

        self.token = put(np.stack([kind, value], axis=1))
        self.kind, self.value = put(kind), put(value)
        self.usable = put(blocked)
        self.follow, self.possible = put(follow.reshape(-1)), put(possible)
        self.gap, self.floor, self.ceil = put(gap), put(floor), put(ceil)
        pitch = vocab.lookup(K.PITCH)
        self.pitch_of = put(np.where(kind == K.PITCH, value, 128))  # column of the pitch mask of every id
        self.tempo_id = put(np.maximum(vocab.lookup(K.TEMPO), 0).astype(np.int64))
        self.pitches = put(pitch >= 0)
        self.cr_none = _named_value(vocab, "CR_N")
        self.cq_none, self.cb_none = _named_value(vocab, "CQ_None"), _named_value(vocab, "CB_None")


def _named_value(vocab: MetricVocabulary, token: str) -> int:
    return int(vocab.value[vocab.ids[token]]) if token in vocab else -1


@dataclass
class GrammarState:
    """State of a batch of rows: `[B]` int64 tensors, and `ends` `[B, 128]`. Never changed in place."""

    phase: torch.Tensor  # what was written last
    track: torch.Tensor  # index of the current track, -1 before the first
    onset: torch.Tensor  # onset of the current note in its bar, -1 before the first
    pitch: torch.Tensor  # its pitch, -1 while none at this onset (chord rows: the root; headers: the last instrument)
    total: torch.Tensor  # ticks of its duration written so far
    room: torch.Tensor  # largest duration token that may follow
    need: torch.Tensor  # its smallest legal total
    sounding: torch.Tensor  # 1: the current track has a note
    velocity: torch.Tensor  # -1 undecided, 0 none, 1 every note
    tempo: torch.Tensor  # tempo bin in force, -1 none
    bar: torch.Tensor  # index of the current bar, -1 before the first
    ends: torch.Tensor  # last offset of every pitch in this track, ticks from its start
    bars: torch.Tensor  # [B, n] constants of the current bar, see `_BAR`
    tracks: torch.Tensor  # [B, n] constants of the current track, see `_TRACK`

    def select(self, index: torch.Tensor) -> GrammarState:
        """The state of the rows `index` (beams reorder rows)."""
        return GrammarState(*(getattr(self, f.name).index_select(0, index) for f in fields(self)))

    def where(self, rows: torch.Tensor, other: GrammarState) -> GrammarState:
        """`self` on the rows where the bool mask is set, `other` elsewhere."""
        pick = [
            torch.where(rows if (a := getattr(self, f.name)).dim() == 1 else rows[:, None], a, getattr(other, f.name))
            for f in fields(self)
        ]
        return GrammarState(*pick)


# Columns of the bar constants. CODE: what follows each prefix phase (see `_CODES`); LEFT: prefix tokens still due.
_START, _TICKS, _METER, _TEMPO, _LAST, _AFTER, _CODE, _LEFT, _N_BAR = 0, 1, 2, 3, 4, 5, 6, 10, 14
_TO_METER, _TO_LENGTH, _TO_TEMPO, _TO_BODY, _TO_BODY_OR_TEMPO = range(5)
# Columns of the track constants: next instrument, whether there is one, cost of later tracks and <TE>, their count.
_NEXT, _MORE, _LATER_COST, _LATER, _N_TRACK = 0, 1, 2, 3, 4


def _coefficients() -> np.ndarray:
    """`[2 * phases, 8]` closing cost of a phase as a sum over (1, prefix left, note of a silent track, duration tokens
    of the cheapest pitch, velocity, duration tokens left, all after this bar, later tracks); chord rows second."""
    table = np.zeros((2, N_PHASES, 8), dtype=np.int64)
    table[:, [START, CLOSED], 7] = 1
    table[:, TRACK] = (2, 1, 1, 0, 0, 0, 1, 0)
    table[:, BAR : TEMPO + 1] = (1, 1, 1, 0, 0, 0, 1, 0)
    table[:, BLANK] = (0, 0, 1, 0, 0, 0, 1, 0)
    table[:, ONSET] = (1, 0, 0, 1, 1, 0, 1, 0)
    table[:, [PITCH, DURATION]] = (0, 0, 0, 0, 1, 1, 1, 0)
    table[:, VELOCITY, 6] = 1
    for left, phase in ((3, ONSET), (2, ROOT), (1, QUALITY), (0, BASS)):
        table[1, phase] = (left, 0, 0, 0, 0, 0, 1, 0)
    table[:, H_START, 0], table[:, H_SYSTEM:H_END, 0], table[:, H_END, 0] = 3, 2, 1
    return table.reshape(-1, 8)


class Grammar:
    """The state machine of a batch of generated fields, one plan a row.

    Args:
        tables: `VocabularyTables`.
        plans: one `GenerationPlan` a row.
        states: `[B]` bool, whether the row's first track states meters and tempi (False: the other tracks of a block).
        loose: accept any order of onsets and offsets (checking upstream's own encodings).
    """

    def __init__(self, tables: VocabularyTables, plans: Sequence[GenerationPlan], states=None, loose: bool = False):
        self.tables, self.plans, self.loose = tables, list(plans), loose
        rows = len(self.plans)
        self.n_bars = max([1] + [p.bars.n_bars for p in self.plans if p.bars is not None])
        self.n_tracks = max([1] + [len(p.instruments) for p in self.plans])
        bars = np.zeros((rows, 2, self.n_bars, _N_BAR), dtype=np.int64)
        tracks = np.zeros((rows, self.n_tracks + 1, _N_TRACK), dtype=np.int64)
        pitches = np.zeros((rows, self.n_tracks + 1, 128), dtype=bool)
        start = np.zeros((rows, 4), dtype=np.int64)
        cache: dict[tuple[int, bool], int] = {}
        for row, plan in enumerate(self.plans):
            first = bool(states is None or states[row])
            seen = cache.setdefault((id(plan), first), row)
            if seen != row:
                bars[row], tracks[row], pitches[row], start[row] = bars[seen], tracks[seen], pitches[seen], start[seen]
            else:
                start[row] = self._compile(plan, first, bars[row], tracks[row], pitches[row])
        put = tables.token.new_tensor
        self._bars = put(bars.reshape(-1, _N_BAR))
        self._tracks = put(tracks.reshape(-1, _N_TRACK))
        self._pitches = torch.as_tensor(pitches.reshape(-1, 128), device=tables.device)
        self._start = put(start)
        self._row = torch.arange(rows, device=tables.device)
        self._bar_row, self._track_row = self._row * (2 * self.n_bars), self._row * (self.n_tracks + 1)
        self.is_chord, self.is_meta = self._start[:, 0] == int(K.CGEN), self._start[:, 0] == int(K.META)
        self._any_free = bool((start[:, 2] == 1).any())
        self._columns = torch.arange(128, device=tables.device)
        self._coefficients = put(_coefficients())
        self._chord_phase = self.is_chord * N_PHASES
        self._strict = int(tables.dialect == "mortm" and not loose)

    def _compile(self, plan, first, bars, tracks, pitches):
        """Fill one row's constants; returns (kind, velocity, free tempo, -)."""
        vocab, metric = self.tables.vocab, self.tables.dialect == "metric"
        if plan.kind not in GENERATED_KINDS:
            raise PromptError(f"a plan generates MGEN, CGEN or META, not {plan.kind!r}", code="prompt.task")
        velocity = -1 if plan.velocity is None else int(plan.velocity)
        if not vocab.has(K.VELOCITY, 2) or plan.kind != K.MGEN:
            velocity = 0
        if plan.kind == K.META:
            return int(plan.kind), velocity, 0, 0
        table = plan.bars
        n = table.n_bars if table is not None else 0
        chord = plan.kind == K.CGEN
        if n < 1 and (chord or plan.instruments):
            raise PromptError("a plan needs at least one bar to generate; ask for bars >= 1", code="prompt.bars")
        if n:
            states_meter, irregular = table.states_meter(), table.irregular
            if not metric:
                if (table.length != 96).any():
                    raise PromptError("the mortm dialect writes 4/4 bars only", code="prompt.bars")
                states_meter, irregular = np.zeros(n, bool), np.zeros(n, bool)
            free = plan.tempo is None and metric and not chord
            bins = (
                np.full(n, -1) if plan.tempo is None or chord or not metric else np.asarray(plan.tempo, dtype=np.int64)
            )
            if len(bins) != n:
                raise PromptError(f"the plan has {n} bars but {len(bins)} tempi", code="prompt.bars")
            known = np.maximum.accumulate(np.where(bins >= 0, np.arange(n), -1))
            before = np.where(known[:-1] >= 0, bins[np.maximum(known[:-1], 0)], -1)
            tempo = bins >= 0
            tempo[1:] &= bins[1:] != before
            for side in range(2):
                view = bars[side]
                flags = (states_meter, irregular, tempo) if side == 0 and first else (np.zeros(n, bool),) * 3
                has_meter, has_length, has_tempo = (f.astype(np.int64) for f in flags)
                view[:n, _START], view[:n, _TICKS] = table.start[:-1], table.length
                view[:n, _METER], view[:n, _TEMPO] = table.meter, np.maximum(bins, 0)
                view[:n, _LAST] = np.arange(n) == n - 1
                left = np.stack(
                    [has_meter + has_length + has_tempo, has_length + has_tempo, has_tempo, has_tempo * 0], 1
                )
                view[:n, _LEFT : _LEFT + 4] = left
                cost = 2 + left[:, 0]  # <SME> prefix <BLANK>
                view[:n, _AFTER] = np.append(np.cumsum(cost[::-1])[::-1], 0)[1:]
                body = _TO_BODY_OR_TEMPO if free and side == 0 and first else _TO_BODY
                to_tempo = np.where(has_tempo > 0, _TO_TEMPO, body)
                to_length = np.where(has_length > 0, _TO_LENGTH, to_tempo)
                view[:n, _CODE] = np.where(has_meter > 0, _TO_METER, to_length)
                view[:n, _CODE + 1], view[:n, _CODE + 2], view[:n, _CODE + 3] = to_length, to_tempo, _TO_BODY
        else:
            free = False
        if chord:
            tracks[:, _LATER_COST] = 1
            return int(plan.kind), velocity, 0, 0
        count = len(plan.instruments)
        missing = [i for i in plan.instruments if not vocab.has(K.INSTRUMENT, i)]
        if missing:
            raise PromptError(f"the vocabulary has no token for instrument {missing[0]}", code="prompt.material")
        # A track costs <INST> bars <ESEQ>, and two tokens more than blank bars because it must sound.
        body = [int(bars[s, 0, _AFTER] + bars[s, 0, _LEFT]) + 2 for s in range(2)] if n else [0, 0]
        costs = [4 + body[min(i, 1)] for i in range(count)]
        for i in range(count + 1):
            tracks[i, _NEXT] = plan.instruments[i] if i < count else 0
            tracks[i, _MORE] = i < count
            tracks[i, _LATER_COST] = sum(costs[i:]) + 1
            tracks[i, _LATER] = count - i
        melodic = self.tables.pitches.cpu().numpy().copy()
        if plan.scale is not None:
            melodic &= np.isin(np.arange(128) % 12, np.asarray(plan.scale, dtype=np.int64) % 12)
        if plan.pitch_range is not None:
            low, high = plan.pitch_range
            melodic &= (np.arange(128) >= low) & (np.arange(128) <= high)
        drums = self.tables.pitches.cpu().numpy()
        # Row i + 1 of `pitches` belongs to track i (row 0: before the first).
        for i, program in enumerate(plan.instruments):
            pitches[i + 1] = drums if program == DRUMS else melodic
        if any(p != DRUMS for p in plan.instruments) and not melodic.any():
            raise PromptError("no pitch lies in both the pitch range and the scale; widen one", code="prompt.material")
        return int(plan.kind), velocity, int(free), 0

    # ------------------------------------------------------------------ stepping

    def start(self) -> GrammarState:
        """State right after each row's `<MGEN>`, `<CGEN>` or `<META>`."""
        rows = len(self.plans)
        full = self._start.new_full
        phase = full((rows,), START)
        phase[self.is_chord] = TRACK
        phase[self.is_meta] = H_START
        none, zero = full((rows,), -1), full((rows,), 0)
        track = torch.where(self.is_chord, 0, -1)
        bars = self._bars.index_select(0, self._bar_row)
        tracks = self._tracks.index_select(0, self._track_row)
        sounding, ends = self.is_chord.long(), full((rows, 128), 0)
        return GrammarState(
            phase, track, none, none, zero, zero, zero, sounding, self._start[:, 1], none, none, ends, bars, tracks
        )

    def step(self, state: GrammarState, token: torch.Tensor, rows: GrammarState | None = None) -> GrammarState:
        """The state after one more token a row (`[B]` int64). A kind that cannot follow gives the phase DEAD."""
        t = self.tables
        s = state
        kind, value = t.token.index_select(0, token).unbind(1)
        phase = t.follow.take(s.phase * N_KINDS + kind)
        is_bar, is_onset = phase == BAR, phase == ONSET
        is_pitch, is_duration, is_track = phase == PITCH, phase == DURATION, phase == TRACK
        track = s.track + is_track
        bar = torch.where(is_track, -1, s.bar + is_bar)
        bars = self._bars.index_select(0, self._bar_row + (track > 0) * self.n_bars + bar.clamp(0, self.n_bars - 1))
        tracks = self._tracks.index_select(0, self._track_row + (track + 1).clamp(max=self.n_tracks))
        # A new onset forgets the pitch; the same onset keeps it, as the next pitch is bound by it.
        moved = is_bar | (is_onset & (value != s.onset))
        onset = torch.where(is_onset, value, torch.where(is_bar, -1, s.onset))
        keeps = is_pitch | (phase == ROOT) | (phase == H_INST)
        pitch = torch.where(keeps, value, torch.where(moved, -1, s.pitch))
        column = pitch.clamp(0, 127)[:, None]  # headers keep an instrument in `pitch`
        at = bars[:, _START] + onset
        end = s.ends.gather(1, column)[:, 0]
        again = 1 if self._strict else (is_pitch & (value == s.pitch)).long()
        need = torch.where(is_pitch, (end - at + again).clamp(min=1), s.need)
        if self.loose:
            need = torch.ones_like(need)
        total = torch.where(is_pitch, 0, torch.where(is_duration, s.total + value, s.total))
        after = torch.minimum(t.gap.index_select(0, value.clamp(max=MAX_DURATION)), t.longest - total)
        room = torch.where(is_pitch, t.top, torch.where(is_duration, after, s.room))
        ends = s.ends.scatter(1, column, torch.where(is_duration, at + total, end)[:, None])
        ends = ends * (~is_track)[:, None]
        sounding = torch.where(is_track, 0, s.sounding | is_pitch)
        left_open = (s.phase == DURATION) & ~is_duration  # a first note that ends without velocity decides "none"
        decided = left_open.long() + (phase == VELOCITY).long() - 1
        velocity = torch.where(s.velocity < 0, decided, s.velocity)
        tempo = torch.where(phase == TEMPO, value, s.tempo)
        return GrammarState(
            phase, track, onset, pitch, total, room, need, sounding, velocity, tempo, bar, ends, bars, tracks
        )

    # ------------------------------------------------------------------ what may follow

    def _reach(self, s: GrammarState) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """At the current onset: (`[B, 128]` smallest legal duration of every pitch that may stand next there, huge
        where none may; `[B]` the least of them; `[B]` the earliest last offset of any pitch of this track)."""
        usable = self._pitches.index_select(0, self._track_row + (s.track + 1).clamp(max=self.n_tracks))
        ends = torch.where(usable, s.ends, _OPEN)
        need = ends - (s.bars[:, _START] + s.onset)[:, None]
        if self._strict:
            need = need + 1
        elif not self.loose:
            pitch = s.pitch[:, None]
            need = torch.where(self._columns < pitch, _OPEN, need + (self._columns == pitch))
        else:
            need = torch.where(usable, 1, _OPEN)
        return need, need.amin(1), ends.amin(1)

    def _cost(self, s: GrammarState, least: torch.Tensor) -> torch.Tensor:
        """`closing_cost` given the least duration that a pitch at this onset needs."""
        top = self.tables.top
        carries = (s.velocity == 1).long()
        slot = (s.phase - BAR).clamp(0, 3) + _LEFT
        later = s.tracks[:, _LATER_COST] + carries * s.tracks[:, _LATER]
        parts = torch.stack(
            [
                torch.ones_like(later),
                s.bars.gather(1, slot[:, None])[:, 0],
                (1 - s.sounding) * (2 + carries),
                ((least + (top - 1)) // top).clamp(1, 4),
                carries,
                ((s.need - s.total + (top - 1)) // top).clamp(min=0),
                s.bars[:, _AFTER] + 1 + later,
                later,
            ],
            1,
        )
        return (parts * self._coefficients.index_select(0, self._chord_phase + s.phase)).sum(1)

    def closing_cost(self, state: GrammarState) -> torch.Tensor:
        """`[B]` the least number of further tokens that finish the field legally, `<TE>` included (0: finished)."""
        return self._cost(state, self._reach(state)[1])

    def allowed(self, state: GrammarState, remaining: torch.Tensor | int | None = None) -> torch.Tensor:
        """`[B, V]` bool, the tokens that may come next.

        Args:
            state: of `start` and `step`.
            remaining: tokens that may still be written (int or `[B]`), at least `closing_cost`; None: no limit.
        """
        t, s = self.tables, state
        phase, top = s.phase, t.top
        need, least, earliest = self._reach(s)
        if remaining is None:
            slack = torch.full_like(phase, _FREE)
        else:
            slack = (remaining - self._cost(s, least)).clamp(max=_FREE)
        spare = slack >= 1
        chord, header = self.is_chord, phase >= H_START
        melodic = ~chord
        slot = (phase - BAR).clamp(0, 3) + _CODE
        in_prefix = (phase >= BAR) & (phase <= TEMPO)
        code = torch.where(in_prefix, s.bars.gather(1, slot[:, None])[:, 0], -1)
        body = code >= _TO_BODY
        sounding, last = s.sounding == 1, s.bars[:, _LAST] == 1
        short = s.need - s.total
        complete = (phase == DURATION) & (short <= 0)
        note_done = (phase == VELOCITY) | (complete & (s.velocity != 1)) | ((phase == BASS) & chord)
        done = note_done | (phase == BLANK)
        more = s.tracks[:, _MORE] == 1
        carries = (s.velocity == 1).long()

        # Onsets: a note costs `price` tokens more than closing now; its duration may need more than one token.
        price = torch.where(note_done, 3, torch.where(sounding, 2, -9)) + torch.where(chord, 1, carries)
        extra = slack - price.clamp(min=0)
        longest = (top * (extra + 1)).clamp(max=t.longest)
        onset_low = torch.maximum(s.onset + 1, earliest + self._strict - longest - s.bars[:, _START])
        same = note_done & melodic & (least <= longest)
        onset_low = torch.where(chord, s.onset + 1, torch.where(same, s.onset, onset_low))
        if self.loose:
            onset_low = torch.where(chord, onset_low, 0)
        in_note = (phase == PITCH) | (phase == DURATION)
        near = short.clamp(0, top)
        duration_low = torch.where(spare, t.floor.index_select(0, near), t.ceil.index_select(0, near))
        no_chord = chord & (s.pitch == t.cr_none)
        velocity_price = torch.where(s.velocity < 0, 1 + s.tracks[:, _LATER], 0)
        optional = header & spare
        yes, zero, open_ = phase >= 0, torch.zeros_like(phase), torch.full_like(phase, _OPEN)
        ticks, is_header_drums = s.bars[:, _TICKS], header & (s.pitch == DRUMS)

        gate = dict.fromkeys(K, yes)
        low, high = dict.fromkeys(K, zero), dict.fromkeys(K, open_)
        gate[K.END] = header | ~more
        gate[K.BAR] = (phase == TRACK) | (done & ~last)
        gate[K.TRACK_END] = done & last
        gate[K.BLANK] = body & (sounding | ~last)
        gate[K.METER] = (code == _TO_METER) | optional
        low[K.METER] = torch.where(header, 0, s.bars[:, _METER])
        high[K.METER] = torch.where(header, _OPEN, s.bars[:, _METER])
        forced = code == _TO_TEMPO
        gate[K.TEMPO] = forced | ((code == _TO_BODY_OR_TEMPO) & spare) | optional
        low[K.TEMPO] = torch.where(forced, s.bars[:, _TEMPO], 0)
        high[K.TEMPO] = torch.where(forced, s.bars[:, _TEMPO], _OPEN)
        gate[K.DURATION] = torch.where(in_note, (short > 0) | spare, code == _TO_LENGTH)
        low[K.DURATION] = torch.where(in_note, duration_low, ticks)
        high[K.DURATION] = torch.where(in_note, s.room, ticks)
        gate[K.INSTRUMENT] = torch.where(header, spare, more)
        low[K.INSTRUMENT] = torch.where(header, is_header_drums * DRUMS, s.tracks[:, _NEXT])
        high[K.INSTRUMENT] = torch.where(header, torch.where(is_header_drums, DRUMS, _OPEN), s.tracks[:, _NEXT])
        gate[K.ONSET] = (body | note_done) & (extra >= 0)
        low[K.ONSET], high[K.ONSET] = onset_low, ticks - 1
        gate[K.PITCH] = melodic
        gate[K.VELOCITY] = complete & (s.velocity != 0) & (velocity_price <= slack)
        gate[K.CHORD_ROOT] = yes if self.loose else chord
        for kind, value in ((K.CHORD_QUALITY, t.cq_none), (K.CHORD_BASS, t.cb_none)):
            if t.cr_none >= 0:
                low[kind] = torch.where(no_chord, value, 0)
                high[kind] = torch.where(no_chord, value, _OPEN)
        for kind in (K.DENSITY, K.BAR_COUNT, K.GENRE, K.KEY):
            gate[kind] = optional

        opened = torch.stack(list(gate.values()), 1) & t.possible.index_select(0, phase)
        highs = torch.where(opened, torch.stack(list(high.values()), 1), -1).index_select(1, t.kind)
        lows = torch.stack(list(low.values()), 1).index_select(1, t.kind)
        mask = (lows <= t.value) & (t.value <= highs) & t.usable
        # Pitches: those whose offsets stay in order within the tokens that are left.
        budget = (top * (((least + (top - 1)) // top).clamp(1, 4) + slack)).clamp(max=t.longest)
        fits = torch.cat([need <= budget[:, None], yes[:, None]], 1)
        mask &= fits.index_select(1, t.pitch_of)
        if self._any_free:  # a tempo is stated only where it changes
            column = t.tempo_id.index_select(0, s.tempo.clamp(min=0))[:, None]
            stated = ((code == _TO_BODY_OR_TEMPO) & (s.tempo >= 0))[:, None]
            mask.scatter_(1, column, mask.gather(1, column) & ~stated)
        return mask | (phase == DEAD)[:, None]
