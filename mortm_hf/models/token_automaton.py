"""The state machine of `token_grammar`: what may come next in a field, for a batch of rows.

Design decisions
- One machine over *batches of rows*: `step` and `allowed` are a fixed number of array operations, whatever the
  vocabulary, the batch or the piece. Nothing loops over tokens, kinds or rows.
- What may come next is a product of three look-ups: the *price* of every kind in the row's situation (a table over
  phase, bar prefix, last bar, sounding track, ...: how many tokens it adds to the shortest way to finish), an interval
  of values for every kind (onsets inside the bar and in order, durations that keep offsets in order, forced meters,
  tempi and instruments), and a pitch mask. A token is legal when its kind's price fits the budget, its value lies in
  the interval and its pitch is open.
- `closing_cost` is the exact minimum number of tokens that finish the field legally; with a budget a token is legal
  only if the field can still be finished after it. `closing_cost(s) == 1 + min over legal t of closing_cost(s t)`.
- There are no dead ends: the last bar of a silent track may not be blank, an onset is offered only if some pitch can
  still be written there, a pitch only if some writable duration keeps its offsets in order.
- Numpy, whatever the device of the model: a step is some eighty operations on a few numbers a row, where a tensor
  library pays several times their worth in dispatch or kernel launches (0.85 ms against 0.2 ms at batch 8). Only the
  ids come to the host and only the mask goes back.

Knows: vocabulary, bar tables, arrays. Must not know: MIDI, models, tensors, tokenizers, prompts, whole segments.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from .errors_mortm import PromptError
from .music_names import DRUMS, MAX_DURATION
from .token_plan import GenerationPlan, GrammarState
from .token_vocabulary import CONTROLS, GENERATED_KINDS, MetricVocabulary, TokenKind


K = TokenKind
N_KINDS = max(TokenKind) + 1
DIALECTS = ("metric", "mortm")

# Phases: the last thing written. The prefix of a bar comes first: these are the columns of the prefix tables.
BAR, METER, LENGTH, TEMPO = range(4)
START, TRACK, BLANK, ONSET, PITCH, DURATION, VELOCITY, CLOSED, END, DEAD, ROOT, QUALITY, BASS = range(4, 17)
H_START, H_SYSTEM, H_INST = range(17, 20)
# one phase for each further control of a header
H_CONTROL = {control.name: H_INST + place for place, control in enumerate(CONTROLS) if control.name != "instruments"}
H_END = H_INST + len(CONTROLS)
N_PHASES = H_END + 1
_OPEN = 1 << 30  # "any value"
_FREE = 1 << 20  # "no budget"
_NEVER = 1 << 24  # price of what cannot follow


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
    follow[DEAD, K.PAD] = DEAD
    # The header: each control at most once and in the order of the rows, those of a track behind its instrument;
    # instruments and controls that repeat may follow themselves.
    known = [c for c in CONTROLS if c.name in H_CONTROL and (c.upstream or dialect == "metric")]
    rule((H_START,), K.SYSTEM, H_SYSTEM)
    earlier = [H_INST]
    for control in (c for c in known if c.level == "track"):
        rule(earlier, K[control.kind], H_CONTROL[control.name])
        earlier.append(H_CONTROL[control.name])
    earlier.insert(0, H_SYSTEM)
    rule(earlier, K.INSTRUMENT, H_INST)
    for control in (c for c in known if c.level != "track"):
        phase = H_CONTROL[control.name]
        rule([*earlier, phase] if control.repeats else earlier, K[control.kind], phase)
        earlier.append(phase)
    rule(earlier, K.TAG_END, H_END)
    possible = follow != DEAD
    possible[DEAD, K.PAD] = True  # an illegal row (a beam of no probability) keeps a finite score
    return follow, possible


# What follows the prefix written so far; 0: not in a prefix.
_TO_METER, _TO_LENGTH, _TO_TEMPO, _TO_BODY, _TO_BODY_OR_TEMPO = range(1, 6)
# A situation is (phase, what follows the prefix, last bar, sounding, duration long enough, velocity + 1, side, more
# tracks), side 0: MGEN, 1: CGEN, 2: META.
_SITUATION = (N_PHASES, 6, 2, 2, 2, 3, 3, 2)
_STRIDES = tuple(int(np.prod(_SITUATION[i + 1 :])) for i in range(len(_SITUATION)))
_S_PHASE, _S_CODE, _S_LAST, _S_SOUNDING, _S_ENOUGH, _S_VELOCITY, _S_SIDE, _S_MORE = _STRIDES
_FIXED, _SAME = N_KINDS, N_KINDS + 1  # further columns: constant part of the closing cost; same onset possible


@lru_cache(maxsize=8)
def _prices(dialect: str, loose: bool) -> np.ndarray:
    """`[situation, kind]` int64: tokens that a kind adds to the shortest way to finish, `_NEVER` if it cannot."""
    possible = _phase_tables(dialect)[1]
    phase, code, last, sounding, enough, velocity, side, more = (
        axis.reshape(-1) for axis in np.indices(_SITUATION, dtype=np.int16)
    )
    carries, last, sounding, enough = (velocity == 2).astype(np.int64), last == 1, sounding == 1, enough == 1
    chord, header, body = side == 1, phase >= H_START, code >= _TO_BODY
    written = (phase == VELOCITY) | ((phase == DURATION) & enough & (velocity != 2)) | ((phase == BASS) & chord)
    done = written | (phase == BLANK)
    extra = np.where(chord, 1, carries)

    table = np.full((len(phase), N_KINDS + 2), _NEVER, dtype=np.int32)

    def rule(kind, where, price=0):
        table[:, kind] = np.where(where & possible[phase, kind], price, _NEVER)

    anyhow = np.ones(len(phase), dtype=bool)
    for kind in (K.PAD, K.SYSTEM, K.TAG_END, K.CHORD_QUALITY, K.CHORD_BASS):
        rule(kind, anyhow)
    for control in CONTROLS:  # instruments, meters and tempi stand in tracks, too: their rules follow
        rule(K[control.kind], header, 1)
    rule(K.END, header | (more == 0))
    rule(K.BAR, (phase == TRACK) | (done & ~last))
    rule(K.TRACK_END, done & last)
    rule(K.BLANK, body & (sounding | ~last))
    rule(K.METER, header | (code == _TO_METER), header * 1)
    rule(K.TEMPO, header | (code == _TO_TEMPO) | (code == _TO_BODY_OR_TEMPO), (code != _TO_TEMPO) * 1)
    rule(K.DURATION, (phase != METER) | (code == _TO_LENGTH), (phase != METER) & enough)
    rule(K.INSTRUMENT, header | (more == 1), header * 1)
    rule(K.ONSET, body | written, np.where(written, 3 + extra, np.where(sounding, 2 + extra, 0)))
    rule(K.PITCH, ~chord)
    rule(K.VELOCITY, enough & (velocity != 1), (velocity == 0) * 1)
    rule(K.CHORD_ROOT, anyhow if loose else chord)

    # The closing cost: see `Grammar._cost`; this is the part that the situation alone decides.
    silent = np.where(sounding, 0, 2 + carries)
    fixed = np.zeros(len(phase), dtype=np.int64)
    fixed[phase == TRACK] = (2 + silent)[phase == TRACK]
    fixed[phase <= TEMPO] = (1 + silent)[phase <= TEMPO]
    fixed[phase == BLANK] = silent[phase == BLANK]
    fixed[phase == ONSET] = np.where(chord, 2, 1 + carries)[phase == ONSET]
    fixed[(phase == PITCH) | (phase == DURATION)] = carries[(phase == PITCH) | (phase == DURATION)]
    fixed[phase == ROOT], fixed[phase == QUALITY] = 2, 1
    fixed[header], fixed[phase == H_START], fixed[phase == H_END] = 2, 3, 1
    table[:, _FIXED], table[:, _SAME] = fixed, written & ~chord
    return table


def _coefficients() -> np.ndarray:
    """`[phase, 5]`: whether the closing cost counts (prefix left, duration tokens of the cheapest pitch, duration
    tokens left, all after this bar, the later tracks)."""
    table = np.zeros((N_PHASES, 5), dtype=np.int64)
    table[[START, CLOSED]] = (0, 0, 0, 0, 1)
    table[[TRACK, BAR, METER, LENGTH, TEMPO]] = (1, 0, 0, 1, 1)
    table[[BLANK, VELOCITY, ROOT, QUALITY, BASS]] = (0, 0, 0, 1, 1)
    table[ONSET] = (0, 1, 0, 1, 1)
    table[[PITCH, DURATION]] = (0, 0, 1, 1, 1)
    return table


class VocabularyTables:
    """Look-ups that depend only on vocabulary and dialect (shared by all plans).

    Args:
        vocab: the vocabulary.
        dialect: "metric" or "mortm".
        size: width of the masks (a model's `vocab_size`; ids past the vocabulary are never legal); the vocabulary's by
            default.

    Raises:
        PromptError: an unknown dialect (`prompt.dialect`).
    """

    def __init__(self, vocab: MetricVocabulary, dialect: str = "metric", size: int | None = None):
        if dialect not in DIALECTS:
            raise PromptError(f"no dialect {dialect!r}; choose one of {', '.join(DIALECTS)}", code="prompt.dialect")
        self.vocab, self.dialect = vocab, dialect
        size = max(size or len(vocab), len(vocab))
        kind = np.zeros(size, dtype=np.int64)
        value = np.zeros(size, dtype=np.int64)
        kind[: len(vocab)], value[: len(vocab)] = vocab.kind, np.maximum(vocab.value, 0)
        table = np.flatnonzero(vocab.lookup(K.DURATION) > 0)
        table = table[(table > 0) & ((dialect == "metric") | (table <= 288))]
        self.size = size
        self.top = int(table[-1]) if len(table) else 1
        # Durations are sums, greatest first, each the largest that fits: `gap[z]` is what may still follow z.
        gap = np.zeros(MAX_DURATION + 2, dtype=np.int64)
        self.longest = self.top
        if dialect == "metric":
            self.longest = min(MAX_DURATION, 4 * self.top)
            gap[table[:-1]] = np.diff(table) - 1
            gap[self.top] = self.top
        # Neighbours of m in the table, 0 <= m <= top: the next above, then the next below.
        m = np.arange(self.top + 1)
        at = np.searchsorted(table, m, side="left").clip(0, len(table) - 1)
        ceil = table[at] if len(table) else m
        floor = np.where(ceil == m, m, table[np.maximum(at - 1, 0)]) if len(table) else m
        masked = kind.copy()  # ids that are never written although their kind and value exist: kind OTHER
        if dialect == "metric":
            velocity = vocab.lookup(K.VELOCITY)
            unused = velocity[(np.arange(len(velocity)) % 4) != 2]
            masked[unused[unused >= 0]] = K.OTHER

        self.kind, self.value = kind, value
        self.mask_kind, self.mask_value = masked, value.astype(np.int32)
        self.follow = _phase_tables(dialect)[0].reshape(-1)
        self.gap, self.neighbour = gap, np.stack([ceil, floor]).reshape(-1)
        self.pitch_of = np.where(kind == K.PITCH, value, 128)  # column of the pitch mask of every id
        self.tempo_id = np.maximum(vocab.lookup(K.TEMPO), 0)
        self.pitches = vocab.lookup(K.PITCH) >= 0
        self.no_chord = tuple(_named_value(vocab, name) for name in ("CR_N", "CQ_None", "CB_None"))
        # Pitches below the last one at this onset are past; the same one needs a longer duration.
        pitch, column = np.arange(-1, 128)[:, None], np.arange(128)
        self.past = np.where(column < pitch, _OPEN, (column == pitch) * 1)
        self.bound = np.zeros(N_KINDS, dtype=np.int64)
        self.bound[list(_BOUND)] = np.arange(len(_BOUND)) + 1
        self.coefficients = _coefficients()


def _named_value(vocab: MetricVocabulary, token: str) -> int:
    return int(vocab.value[vocab.ids[token]]) if token in vocab else -1


# Columns of the bar constants. SITUATION (5 columns: the four prefix phases, any other): what the bar adds to the
# situation's number. LEFT (5): prefix tokens still due.
_START, _TICKS, _AFTER, _METER, _TEMPO, _SITU, _LEFT, _N_BAR = 0, 1, 2, 3, 5, 7, 12, 17
# Columns of the track constants: instrument of the next track (lowest, highest value), what the track adds to the
# situation's number, cost of the later tracks and <TE>, their count.
_NEXT, _MORE, _LATER_COST, _LATER, _N_TRACK = 0, 2, 3, 4, 5
# Kinds with an interval of values, in the order of the interval matrices; 0: any value.
_BOUND = (K.METER, K.TEMPO, K.DURATION, K.INSTRUMENT, K.ONSET, K.CHORD_BASS, K.CHORD_QUALITY)


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
        self.n_bars = max([1] + [p.bars.n_bars for p in self.plans if p.bars is not None])
        self.n_tracks = max([1] + [len(p.instruments) for p in self.plans])
        # Rows of one plan share its constants: `owner` is the entry of each row.
        entries: dict[tuple[int, bool], int] = {}
        keys = [(id(plan), bool(states is None or states[row])) for row, plan in enumerate(self.plans)]
        owner = np.array([entries.setdefault(key, len(entries)) for key in keys], dtype=np.int64)
        bars = np.zeros((len(entries), 2, self.n_bars, _N_BAR), dtype=np.int64)
        tracks = np.zeros((len(entries), self.n_tracks + 1, _N_TRACK), dtype=np.int64)
        ends = np.full((len(entries), self.n_tracks + 1, 128), _OPEN, dtype=np.int64)
        start = np.zeros((len(entries), 3), dtype=np.int64)
        plan_of = {id(plan): plan for plan in self.plans}
        for (plan, first), entry in entries.items():
            start[entry] = self._compile(plan_of[plan], first, bars[entry], tracks[entry], ends[entry])
        self._bars, self._tracks = bars.reshape(-1, _N_BAR), tracks.reshape(-1, _N_TRACK)
        self._ends, self._start = ends.reshape(-1, 128), start
        self._any_free, self._any_chord = bool(start[:, 2].any()), bool((start[:, 0] == 1).any()) or loose
        self._prices = _prices(tables.dialect, loose)
        self._strict = int(tables.dialect == "mortm" and not loose)
        self._assign(owner)

    def _assign(self, owner: np.ndarray) -> None:
        """The rows of the batch, each by its entry in the tables of constants."""
        self._owner = owner
        self._side, self._velocity = self._start[owner, 0], self._start[owner, 1]
        self._number = self._side * _S_SIDE + _S_VELOCITY
        self._row = np.arange(len(owner))
        self._bar_row, self._track_row = owner * (2 * self.n_bars), owner * (self.n_tracks + 1)
        self._pitch_row = self._row * 128

    def rows(self, index: np.ndarray) -> Grammar:
        """The grammar of a batch with these rows (any of them, any number of times); nothing is compiled again."""
        other = copy.copy(self)
        other.plans = [self.plans[i] for i in index.tolist()]
        other._assign(self._owner[index])
        return other

    def at_bars(self, bar: np.ndarray, sounding: np.ndarray, tempo: np.ndarray, ends: np.ndarray) -> GrammarState:
        """State in each row's first track (or chords) before the `<SME>` of a bar, as if all before it were legal.

        Args:
            bar: `[B]` index of the bar.
            sounding: `[B]` whether the track has sounded.
            tempo: `[B]` bin in force, -1 none.
            ends: `[B, 128]` last offset of every pitch, ticks from the track's start.
        """
        s = self.start()
        return s._replace(
            phase=np.full_like(s.phase, BLANK),
            track=np.zeros_like(s.track),
            bar=bar - 1,
            sounding=np.maximum(s.sounding, sounding),
            tempo=tempo,
            ends=np.maximum(self._ends.take(self._track_row + 1, 0), ends),
        )

    def _compile(self, plan: GenerationPlan, first: bool, bars, tracks, ends) -> tuple[int, int, bool]:
        """Fill one row's constants; returns (side, velocity, whether tempi are free)."""
        vocab, metric = self.tables.vocab, self.tables.dialect == "metric"
        if plan.kind not in GENERATED_KINDS:
            raise PromptError(f"a plan generates MGEN, CGEN or META, not {plan.kind!r}", code="prompt.task")
        velocity = -1 if plan.velocity is None else int(plan.velocity)
        if not vocab.has(K.VELOCITY, 2) or plan.kind != K.MGEN:
            velocity = 0
        bars[..., _METER + 1] = bars[..., _TEMPO + 1] = tracks[:, _NEXT + 1] = _OPEN
        if plan.kind == K.META:
            return 2, velocity, False
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
                view[:n, _METER] = view[:n, _METER + 1] = table.meter
                view[:n, _TEMPO] = np.where(has_tempo > 0, bins, 0)
                view[:n, _TEMPO + 1] = np.where(has_tempo > 0, bins, _OPEN)
                whole = has_meter + has_length + has_tempo
                left = np.stack([whole, has_length + has_tempo, has_tempo, has_tempo * 0, whole], axis=1)
                view[:n, _LEFT : _LEFT + 5] = left
                cost = 2 + whole  # <SME> prefix <BLANK>
                view[:n, _AFTER] = np.append(np.cumsum(cost[::-1])[::-1], 0)[1:]
                body = _TO_BODY_OR_TEMPO if free and side == 0 and first else _TO_BODY
                to_tempo = np.where(has_tempo > 0, _TO_TEMPO, body)
                to_length = np.where(has_length > 0, _TO_LENGTH, to_tempo)
                to_meter = np.where(has_meter > 0, _TO_METER, to_length)
                codes = [to_meter, to_length, to_tempo, np.full(n, _TO_BODY), np.zeros(n, dtype=np.int64)]
                last = (np.arange(n) == n - 1) * _S_LAST
                view[:n, _SITU : _SITU + 5] = np.stack(codes, axis=1) * _S_CODE + last[:, None]
        else:
            free = False
        if chord:
            tracks[:, _LATER_COST], ends[:] = 1, 0
            return 1, velocity, False
        count = len(plan.instruments)
        missing = [i for i in plan.instruments if not vocab.has(K.INSTRUMENT, i)]
        if missing:
            raise PromptError(f"the vocabulary has no token for instrument {missing[0]}", code="prompt.material")
        # A track costs <INST> bars <ESEQ>, and two tokens more than blank bars because it must sound.
        costs = [6 + int(bars[min(i, 1), 0, _AFTER] + bars[min(i, 1), 0, _LEFT]) for i in range(count)]
        melodic = self.tables.pitches.copy()
        if plan.scale is not None:
            melodic &= np.isin(np.arange(128) % 12, np.asarray(plan.scale, dtype=np.int64) % 12)
        if plan.pitch_range is not None:
            low, high = plan.pitch_range
            melodic &= (np.arange(128) >= low) & (np.arange(128) <= high)
        for i, program in enumerate((*plan.instruments, -1)):  # row i: before track i, whose pitches are in row i + 1
            tracks[i, _NEXT] = tracks[i, _NEXT + 1] = max(program, 0)
            tracks[i, _MORE] = (i < count) * _S_MORE
            tracks[i, _LATER_COST], tracks[i, _LATER] = sum(costs[i:]) + 1, count - i
            if i < count:
                ends[i + 1] = np.where(self.tables.pitches if program == DRUMS else melodic, 0, _OPEN)
        if any(p != DRUMS for p in plan.instruments) and not melodic.any():
            raise PromptError("no pitch lies in both the pitch range and the scale; widen one", code="prompt.material")
        return 0, velocity, free

    # ------------------------------------------------------------------ stepping

    def start(self) -> GrammarState:
        """State right after each row's `<MGEN>`, `<CGEN>` or `<META>`."""
        rows, chord = len(self.plans), (self._side == 1).astype(np.int64)
        phase = np.array([START, TRACK, H_START])[self._side]
        none, zero = np.full(rows, -1), np.zeros(rows, dtype=np.int64)
        bars, tracks, ends = self._bars[self._bar_row], self._tracks[self._track_row], self._ends[self._track_row]
        return GrammarState(
            phase, chord - 1, none, none, zero, zero, zero, chord, self._velocity, none, none, ends, bars, tracks
        )

    def step(self, state: GrammarState, token: np.ndarray) -> GrammarState:
        """The state after one more token.

        Args:
            state: of `start` or `step`.
            token: `[B]` id of each row's token; a kind that cannot follow gives the phase DEAD.
        """
        t, s = self.tables, state
        kind, value = t.kind[token], t.value[token]
        phase = t.follow[s.phase * N_KINDS + kind]
        is_bar, is_onset, is_pitch = phase == BAR, phase == ONSET, phase == PITCH
        is_duration, is_track = phase == DURATION, phase == TRACK
        track = s.track + is_track
        bar = np.where(is_track, -1, s.bar + is_bar)
        place = np.minimum(np.maximum(bar, 0), self.n_bars - 1) + self._bar_row + (track > 0) * self.n_bars
        bars = self._bars.take(place, 0)
        next_track = np.minimum(track + 1, self.n_tracks) + self._track_row
        tracks = self._tracks.take(next_track, 0)
        # A new onset forgets the pitch; the same onset keeps it, as the next pitch is bound by it.
        moved = is_bar | (is_onset & (value != s.onset))
        onset = np.where(is_bar, -1, np.where(is_onset, value, s.onset))
        keeps = is_pitch | (phase == ROOT) | (phase == H_INST)
        pitch = np.where(keeps, value, np.where(moved, -1, s.pitch))
        column = np.minimum(np.maximum(pitch, 0), 127) + self._pitch_row  # headers keep an instrument in `pitch`
        at = bars[:, _START] + onset
        end = s.ends.take(column)
        if self.loose:
            need = np.ones_like(onset)
        else:
            again = 1 if self._strict else (value == s.pitch)
            need = np.where(is_pitch, np.maximum(end - at + again, 1), s.need)
        total = np.where(is_pitch, 0, s.total + is_duration * value)
        after = np.minimum(t.gap[value], t.longest - total)
        room = np.where(is_pitch, t.top, np.where(is_duration, after, s.room))
        ends = np.where(is_track[:, None], self._ends.take(next_track, 0), s.ends)
        np.put(ends, column, np.where(is_duration, at + total, ends.take(column)))
        sounding = (s.sounding | is_pitch) & ~is_track
        # A first note that ends without a velocity decides "none".
        decided = ((s.phase == DURATION) & ~is_duration) * 1 + (phase == VELOCITY) - 1
        velocity = np.where(s.velocity < 0, decided, s.velocity)
        tempo = np.where(phase == TEMPO, value, s.tempo)
        return GrammarState(
            phase, track, onset, pitch, total, room, need, sounding, velocity, tempo, bar, ends, bars, tracks
        )

    # ------------------------------------------------------------------ what may follow

    def _reach(self, s: GrammarState) -> tuple[np.ndarray, np.ndarray]:
        """At the current onset: `[B, 128]` the smallest legal duration of every pitch that may stand next there (huge
        where none may), and `[B]` the least of them."""
        if self.loose:
            need = np.where(s.ends >= _OPEN, _OPEN, 1)
        else:
            need = s.ends - (s.bars[:, _START] + s.onset)[:, None]
            need += 1 if self._strict else self.tables.past.take(np.minimum(s.pitch + 1, 128), 0)
        return need, need.min(1)

    def _situation(self, s: GrammarState, short: np.ndarray) -> np.ndarray:
        """`[B, kinds + 2]` rows of the price table."""
        number = s.bars[self._row, np.minimum(s.phase, 4) + _SITU] + s.tracks[:, _MORE] + self._number
        number += s.phase * _S_PHASE + s.sounding * _S_SOUNDING + s.velocity * _S_VELOCITY + (short <= 0) * _S_ENOUGH
        return self._prices.take(number, 0)

    def _cost(self, s: GrammarState, fixed: np.ndarray, cheapest: np.ndarray, short: np.ndarray) -> np.ndarray:
        """`closing_cost` from its parts: constants of the situation, prefix left, duration tokens, later bars and
        tracks (each of these needs a velocity more where every note carries one)."""
        top = self.tables.top
        left = s.bars[self._row, np.minimum(s.phase, 4) + _LEFT]
        later = s.tracks[:, _LATER_COST] + (s.velocity == 1) * s.tracks[:, _LATER]
        tokens = np.maximum((short + (top - 1)) // top, 0)
        c = self.tables.coefficients.take(s.phase, 0)
        bars = (s.bars[:, _AFTER] + 1) * c[:, 3]
        return fixed + left * c[:, 0] + cheapest * c[:, 1] + tokens * c[:, 2] + bars + later * c[:, 4]

    def _tokens(self, duration: np.ndarray) -> np.ndarray:
        """Tokens that a duration takes at least."""
        top = self.tables.top
        return np.minimum(np.maximum((duration + (top - 1)) // top, 1), 4)

    def closing_cost(self, state: GrammarState) -> np.ndarray:
        """`[B]` the least number of further tokens that finish the field legally, `<TE>` included (0: finished)."""
        short = state.need - state.total
        least = self._reach(state)[1]
        fixed = self._situation(state, short)[:, _FIXED]
        return self._cost(state, fixed, self._tokens(least), short)

    def _bounds(self, state: GrammarState, remaining) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What may come next, before it is spread over the tokens: the lowest and highest value of every kind
        `[B, kinds]` (highest -1: closed), the open pitches `[B, 129]` (the last column: any other token), and the
        tempo that may not be stated `[B]` (-1: none)."""
        t, s, top = self.tables, state, self.tables.top
        short = s.need - s.total
        need, least = self._reach(s)
        cheapest = self._tokens(least)
        price = self._situation(s, short)
        if remaining is None:
            slack = np.full_like(short, _FREE)
        else:
            slack = np.minimum(remaining - self._cost(s, price[:, _FIXED], cheapest, short), _FREE)

        # Onsets: a note costs its price more than closing now, and its duration may need more than one token.
        longest = np.minimum((slack - price[:, K.ONSET] + 1) * top, t.longest)
        onset_low = s.onset + 1
        if self.loose:
            onset_low = np.where(self._side == 1, onset_low, 0)
        else:
            reached = s.ends.min(1) - s.bars[:, _START] + self._strict - longest
            same = (least <= longest) & (price[:, _SAME] == 1)
            onset_low = np.where(same, s.onset, np.maximum(onset_low, reached))
        ticks = s.bars[:, _TICKS]
        is_meter = s.phase == METER  # the duration after it is a bar length
        near = np.minimum(np.maximum(short, 0), top) + (slack >= 1) * (top + 1)
        # Columns 1 on: the kinds of `_BOUND`; column 0: any value.
        low, high = np.zeros((len(short), 8), dtype=np.int32), np.full((len(short), 8), _OPEN, dtype=np.int32)
        low[:, 1], high[:, 1] = s.bars[:, _METER], s.bars[:, _METER + 1]
        low[:, 2], high[:, 2] = s.bars[:, _TEMPO], s.bars[:, _TEMPO + 1]
        low[:, 3], high[:, 3] = np.where(is_meter, ticks, t.neighbour[near]), np.where(is_meter, ticks, s.room)
        low[:, 4] = np.maximum(s.tracks[:, _NEXT], (s.pitch == DRUMS) * DRUMS)  # headers: after drums, drums
        high[:, 4] = s.tracks[:, _NEXT + 1]
        low[:, 5], high[:, 5] = onset_low, ticks - 1
        if self._any_chord:
            root, quality, bass = t.no_chord
            none = (s.pitch == root) & (root >= 0)
            low[:, 6], high[:, 6] = none * bass, np.where(none, bass, _OPEN)
            low[:, 7], high[:, 7] = none * quality, np.where(none, quality, _OPEN)
        # Velocities, where they are still undecided, cost one token more for every track to come.
        price[:, K.VELOCITY] += (s.velocity < 0) * s.tracks[:, _LATER]
        upper = high.take(t.bound, 1)
        upper[price[:, :N_KINDS] > slack[:, None]] = -1
        # Pitches: those whose offsets stay in order within the tokens that are left.
        fits = np.ones((len(short), 129), dtype=bool)
        np.less_equal(need, np.minimum((cheapest + slack) * top, t.longest)[:, None], out=fits[:, :128])
        stated = np.where((s.phase <= LENGTH) & (s.bars[:, _TEMPO + 1] == _OPEN), s.tempo, -1)
        return low.take(t.bound, 1), upper, fits, stated

    def allowed(self, state: GrammarState, remaining: np.ndarray | int | None = None) -> np.ndarray:
        """The tokens that may come next.

        Args:
            state: of `start` or `step`.
            remaining: tokens that may still be written (int or `[B]`), at least `closing_cost`; None: no limit.

        Returns:
            `[B, V]` bool.
        """
        t = self.tables
        lower, upper, fits, stated = self._bounds(state, remaining)
        mask = lower.take(t.mask_kind, 1) <= t.mask_value
        mask &= t.mask_value <= upper.take(t.mask_kind, 1)
        mask &= fits.take(t.pitch_of, 1)
        if self._any_free:  # a tempo is stated only where it changes
            mask[self._row, t.tempo_id[np.maximum(stated, 0)]] &= stated < 0
        return mask

    def legal(self, state: GrammarState, token: np.ndarray) -> np.ndarray:
        """Whether a token may come next: `allowed(state)[row, token]`, at the cost of a step.

        Args:
            state: of `start` or `step`.
            token: `[B]` id of each row's token.

        Returns:
            `[B]` bool.
        """
        t = self.tables
        lower, upper, fits, stated = self._bounds(state, None)
        kind, value = t.mask_kind[token], t.mask_value[token]
        inside = (lower[self._row, kind] <= value) & (value <= upper[self._row, kind])
        return inside & fits[self._row, t.pitch_of[token]] & ((kind != K.TEMPO) | (value != stated))
