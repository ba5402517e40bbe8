"""The grammar of the token language, once, for both dialects.

Design decisions
- Rules live in one place: `token_automaton` holds the state machine (what may come next, what it costs to finish); the
  logits processor, the strict decoder, the validator and a reinforcement learner's mask all run that machine.
- A whole segment is checked as a batch: every track, chord row and header is one row of the machine, and every bar of
  it a batch row of its own. A block's bar table is read from its first track, the other tracks must fit it.
- The rules between fields (order of fields, header against generated field, CONST against generated field) are here.

The dialect `metric`::

    segment   := <EOS> [header] block* generated
    header    := <SYSTEM> (<INST_x> [<NOTE_DENSE_n>])* [<GEN_MEASURE_COUNT_n>] [<GENRE_g>*] [<TS_n/d>] [<BPM_x>]
                 [k_<key>] <TAG_END>
    block     := (<PAST_M> | <FUTURE_M> | <CONST_M>) track* <TAG_END>  |  <CONST_C> chordbar* <ESEQ> <TAG_END>
    generated := (<MGEN> track* | <CGEN> chordbar* <ESEQ> | <META> header) <TE>
    track     := <INST_x> bar* <ESEQ>
    bar       := <SME> [<TS_n/d> [d_len]] [<BPM_x>] (<BLANK> | note+)
    note      := s_x p_y d_z+ [v_w]
    chordbar  := <SME> [<TS_n/d> [d_len]] (<BLANK> | (s_x CR_r CQ_q CB_b)+)

with notes strictly increasing in (onset, pitch, duration), offsets of a pitch never decreasing, every track sounding,
all notes with velocity or none, drums last, each block at most once and in the order above.

The dialect `mortm` (upstream; every bar is 4/4 with 96 ticks) differs so::

    track     := <INST_x> (note* bar* [<TE>] | bar*) <ESEQ>   (raw songs: bar 0 has no <SME>, <TE> after the last note)
    bar       := <SME> (<BLANK> | note+)
    note      := s_x [CR_r CQ_q CB_b] p_y d_z [v_w]           (z from 1 to 288)
    chordbar  := <SME> (<BLANK> | (s_x CR_r CQ_q CB_b)+)

Upstream writes simultaneous notes in the order of their note-offs, so within one onset pitches come in any order, and
its floor arithmetic moves onsets across bar lines: a *check* of the `mortm` dialect asks neither for ordered onsets
nor for ordered offsets. What is *generated* in it has ordered onsets, and offsets of one pitch strictly increase.

Knows: vocabulary, bar tables, the machine. Must not know: MIDI, models, tokenizers, prompts' musical meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .errors_mortm import GrammarError
from .music_grid import COMMON_TIME, BarTable
from .music_names import CATEGORY_PIANO, DRUMS, MAX_BAR_TICKS, METER_TICKS
from .token_automaton import CLOSED, DIALECTS, H_END, Grammar, VocabularyTables
from .token_plan import GenerationPlan, GrammarState
from .token_vocabulary import BLOCK_KINDS, GENERATED_KINDS, MetricVocabulary, TokenKind


__all__ = [
    "DIALECTS",
    "GENERATED_KINDS",
    "GenerationPlan",
    "Grammar",
    "GrammarState",
    "VocabularyTables",
    "allowed",
    "check",
    "find_errors",
    "infer_plan",
]

K = TokenKind
ROWS_AT_ONCE, PIECES_AT_ONCE = 256, 1024


def _bar_table(kind: np.ndarray, value: np.ndarray, dialect: str) -> BarTable:
    """The bar table that the bars of one track (or chord row) state, 4/4 until a meter is stated."""
    bar = np.flatnonzero(kind == K.BAR)
    if dialect == "mortm" or not len(bar):
        return BarTable.regular(COMMON_TIME, max(len(bar), 1))
    pad_kind, pad_value = np.append(kind, [0, 0]), np.append(value, [0, 0])
    stated = pad_kind[bar + 1] == K.METER
    given = stated & (pad_kind[bar + 2] == K.DURATION)
    latest = np.maximum.accumulate(np.where(stated, np.arange(len(bar)), -1))
    meter = np.where(latest >= 0, pad_value[bar[np.maximum(latest, 0)] + 1], COMMON_TIME)
    length = np.where(given, np.clip(pad_value[bar + 2], 1, MAX_BAR_TICKS), METER_TICKS[meter])
    return BarTable.from_lengths(length, meter)


def infer_plan(vocab: MetricVocabulary, ids, dialect: str = "metric", bars: int = 8) -> GenerationPlan:
    """The plan that prompt ids imply, where none was built with them.

    Instruments, bar count, meter and tempo are the header's. What it leaves out comes from the context: bars and
    meters of CONST, instruments and last meter of PAST; failing that 4/4 for a piano.

    Args:
        vocab: the token table.
        ids: `[n]` ids of a prompt, ending with `<MGEN>`, `<CGEN>` or `<META>`.
        dialect: "metric" or "mortm".
        bars: how many bars, where the prompt leaves their number open.
    """
    ids = np.asarray(ids, dtype=np.int64)
    kind, value = vocab.kind[ids], vocab.value[ids].astype(np.int64)
    target = TokenKind(int(kind[-1]))
    if target == K.META:
        return GenerationPlan(target)
    header = np.zeros(len(ids), dtype=bool)
    system, tags = np.flatnonzero(kind == K.SYSTEM), np.flatnonzero(kind == K.TAG_END)
    if len(system) and len(tags):
        header[system[0] : tags[0]] = True

    def in_header(wanted):
        return value[header & (kind == wanted)]

    tables, players = {}, {}
    for wanted in BLOCK_KINDS:
        at = np.flatnonzero(kind == wanted)
        if not len(at):
            continue
        stop = int(np.append(tags, len(ids))[np.searchsorted(tags, at[0])])
        inside, numbers = kind[at[0] : stop], value[at[0] : stop]
        close = np.flatnonzero(inside == K.TRACK_END)
        players[wanted] = tuple(int(i) for i in numbers[inside == K.INSTRUMENT])
        if len(close):
            tables[wanted] = _bar_table(inside[: close[0]], numbers[: close[0]], dialect)
    table = tables.get(K.CONST_M, tables.get(K.CONST_C))
    tempo = in_header(K.TEMPO)
    if table is None:
        count, meter = in_header(K.BAR_COUNT), in_header(K.METER)
        near = COMMON_TIME
        if K.PAST in tables:
            near = tables[K.PAST].meter[-1]
        elif K.FUTURE in tables:
            near = tables[K.FUTURE].meter[0]
        table = BarTable.regular(int(meter[0]) if len(meter) else int(near), int(count[0]) if len(count) else bars)
    piano = 0 if vocab.has(K.INSTRUMENT, 0) else CATEGORY_PIANO
    instruments = tuple(int(i) for i in in_header(K.INSTRUMENT)) or players.get(K.PAST) or (piano,)
    return GenerationPlan(
        target,
        table,
        instruments if target == K.MGEN else (),
        np.full(table.n_bars, tempo[0]) if len(tempo) else None,
        velocity=bool((kind == K.VELOCITY).any()) if (kind == K.PITCH).any() else None,  # as in the given music
    )


def allowed(
    tables: VocabularyTables,
    plans: Sequence[GenerationPlan],
    ids: np.ndarray,
    mask: np.ndarray | None = None,
    budget: int | None = None,
) -> np.ndarray:
    """The tokens that may follow each position: the grammar as a function (`Grammar.step` is its incremental form).

    Args:
        tables: of the vocabulary.
        plans: one a row.
        ids: `[B, T]` prompts (ending with the marker of the generated field) with their answers, padded anywhere.
        mask: `[B, T]`, 0 at padding; by default at the ids of `<PAD>`.
        budget: tokens that an answer may take, `<TE>` included; None: no limit.

    Returns:
        `[B, T, V]` bool; padding and prompt positions allow everything, the marker itself what may open the field.
    """
    ids = np.asarray(ids)
    kinds = tables.kind[ids]
    valid = kinds != K.PAD if mask is None else np.asarray(mask).astype(bool)
    marker = np.where(np.isin(kinds, GENERATED_KINDS) & valid, np.arange(ids.shape[1]), -1).max(1)
    grammar = Grammar(tables, plans)
    state = grammar.start()
    written = np.zeros(len(ids), dtype=np.int64)
    out = np.ones((*ids.shape, tables.size), dtype=bool)
    begun = marker[marker >= 0]
    for column in range(begun.min() if len(begun) else ids.shape[1], ids.shape[1]):
        inside = (marker >= 0) & (column >= marker) & valid[:, column]
        answered = inside & (column > marker)
        state = grammar.step(state, ids[:, column]).where(answered, state)
        written += answered
        remaining = None if budget is None else np.maximum(budget - written, 0)
        out[:, column] = grammar.allowed(state, remaining) | ~inside[:, None]
    return out


@dataclass
class _Row:
    """One track, chord row or header of a segment: its tokens' positions, and what it must be."""

    positions: np.ndarray  # indices into the ids; -1: a token that the raw encoding leaves out
    plan: GenerationPlan
    states: bool
    name: str
    end: int  # index where the row's text ends, for "unfinished" errors


class _Segment:
    """The fields of one sequence, split into rows. `errors`: what is wrong between the fields, and (later) in rows."""

    def __init__(self, vocab: MetricVocabulary, ids: np.ndarray, dialect: str, complete: bool):
        self.vocab, self.ids, self.dialect = vocab, ids, dialect
        self.rows: list[_Row] = []
        self.errors: list[GrammarError] = []
        outside = np.flatnonzero((ids < 0) | (ids >= len(vocab)))
        if len(outside):
            at = int(outside[0])
            self.errors.append(
                GrammarError(f"position {at}: id {ids[at]} is outside the vocabulary of {len(vocab)}", at, None)
            )
            return
        self.kind, self.value = vocab.kind[ids], vocab.value[ids].astype(np.int64)
        self._split(complete)

    def fail(self, at: int, why: str) -> None:
        token = self.vocab.tokens[int(self.ids[at])] if at < len(self.ids) else None
        here = f"`{token}`" if token is not None else "the end of the sequence"
        self.errors.append(GrammarError(f"position {at}: {here} {why}", at, token))

    def _split(self, complete: bool) -> None:
        kind, n = self.kind, len(self.ids)
        content = np.flatnonzero(kind != K.PAD)
        at, stop = (int(content[0]), int(content[-1]) + 1) if len(content) else (0, 0)
        if at == stop:
            return self.fail(min(at, n), "cannot stand here: the sequence is empty")
        self.velocity = bool((kind == K.VELOCITY).any())
        if kind[at] == K.BOS:
            at += 1
        elif complete:
            return self.fail(at, "cannot begin a segment: it begins with <EOS>")
        allowed = [K.SYSTEM, *BLOCK_KINDS, *GENERATED_KINDS]
        header, tables, has_generated = None, {}, False
        while at < stop:
            here = TokenKind(int(kind[at]))
            if here == K.INSTRUMENT and not complete:  # tracks without any marker
                here, first = K.MGEN, at
            elif here not in allowed:
                names = ", ".join(k.name for k in allowed)
                return self.fail(at, f"cannot stand here: expected a field ({names})")
            else:
                first = at + 1
            if here in GENERATED_KINDS:
                has_generated = True
                close = stop - 1 if kind[stop - 1] == K.END else stop
                if close == stop and complete:
                    return self.fail(stop, "ends the segment without <TE>")
                if here == K.META:
                    self._header(first, close)
                else:
                    self._music(here, first, close, header, tables)
                at = stop
            else:
                tags = np.flatnonzero(kind[at:stop] == K.TAG_END)
                if not len(tags):
                    return self.fail(at, "opens a field that no <TAG_END> closes")
                close = at + int(tags[0])
                if here == K.SYSTEM:
                    header = (at, close)
                    self._header(at, close + 1)
                else:
                    tables[here] = self._music(here, first, close, None, {})
                at = close + 1
                allowed = allowed[allowed.index(here) + 1 :]
        if complete and not has_generated:
            self.fail(stop, "ends the segment without a generated field")

    def _header(self, first: int, stop: int) -> None:
        self.rows.append(_Row(np.arange(first, stop), GenerationPlan(K.META), True, "the header", stop))

    def _music(self, here, first: int, stop: int, header, tables) -> BarTable | None:
        """The rows of a block or generated field in `[first, stop)`; returns its bar table."""
        kind, value, metric = self.kind, self.value, self.dialect == "metric"
        if here in (K.CONST_C, K.CGEN):
            table = _bar_table(kind[first:stop], value[first:stop], self.dialect)
            empty = stop == first + 1 and kind[first] == K.TRACK_END  # chordbar*: no bars at all
            if not empty:
                plan = GenerationPlan(K.CGEN, table)
                self.rows.append(_Row(np.arange(first, stop), plan, True, "the chords", stop))
            players, starts = (), np.array([first])
        else:
            starts = first + np.flatnonzero(kind[first:stop] == K.INSTRUMENT)
            if stop > first and (not len(starts) or starts[0] != first):
                self.fail(first, "cannot stand here: expected <INST_x>")
                return None
            edges = np.append(starts, stop)
            table, players = None, value[starts]
            for index, (begin, end) in enumerate(zip(edges, edges[1:])):
                positions = np.arange(begin, end)
                if not metric:  # raw songs: bar 0 without <SME>, <TE> after the last note
                    if end - begin > 1 and kind[begin + 1] != K.BAR:
                        positions = np.insert(positions, 1, -1)
                    if end - begin > 2 and kind[end - 2] == K.END:
                        positions = np.delete(positions, -2)
                if table is None or not metric:
                    inside = np.where(positions < 0, int(K.BAR), kind[positions])
                    table = _bar_table(inside, value[positions], self.dialect)
                plan = GenerationPlan(K.MGEN, table, (int(value[begin]),), velocity=self.velocity)
                name = f"track {index + 1} ({self.vocab.tokens[int(self.ids[begin])]})"
                self.rows.append(_Row(positions, plan, index == 0, name, end))
            late = np.flatnonzero((players[:-1] == DRUMS) & (players[1:] != DRUMS))
            if metric and len(late):
                self.fail(int(starts[late[0] + 1]), "cannot follow the drums: drums are the last tracks")
        if metric and table is not None:
            self._lengths(first, stop, starts[1] if len(starts) > 1 else stop)
            if header is not None:
                self._described(header, here, first, table, players)
            for block in (K.CONST_M, K.CONST_C):
                const = tables.get(block)
                if const is not None and not np.array_equal(const.start, table.start):
                    self.fail(first, f"opens bars other than those of <{block.name}>")
        return table

    def _lengths(self, first: int, stop: int, until: int) -> None:
        """`d_len` beside a meter: only for lengths no listed meter has, beside the shortest longer meter."""
        kind, value = self.kind, self.value
        at = first + np.flatnonzero((kind[first : until - 1] == K.METER) & (kind[first + 1 : until] == K.DURATION))
        length, written = value[at + 1], METER_TICKS[value[at]]
        listed = np.sort(METER_TICKS)
        place = np.searchsorted(listed, length)
        right = (length < MAX_BAR_TICKS) & (length > 0) & (listed[place.clip(0, len(listed) - 1)] == written)
        wrong = np.flatnonzero(~right | (length == written))
        if len(wrong):
            self.fail(int(at[wrong[0]]) + 1, "is not a bar length that this meter is written with")

    def _described(self, header, here, first: int, table: BarTable, players) -> None:
        """The header describes the generated field: instruments, bar count, first meter, first tempo."""
        begin, close = header
        kind, value = self.kind[begin:close], self.value[begin:close]
        named = value[kind == K.INSTRUMENT]
        if here == K.MGEN and len(named) and not np.array_equal(named, players):
            self.fail(first, "opens tracks other than the header's instruments")
        count = value[kind == K.BAR_COUNT]
        if len(count) and count[0] != table.n_bars:
            self.fail(first, f"opens {table.n_bars} bars, but the header says {count[0]}")
        meter = value[kind == K.METER]
        if len(meter) and meter[0] != table.meter[0]:
            self.fail(first, "opens with a meter other than the header's")
        tempo = value[kind == K.TEMPO]
        body = np.flatnonzero(np.isin(self.kind[first:], (K.BLANK, K.ONSET, K.TEMPO)))
        stated = first + int(body[0]) if len(body) else None
        if len(tempo) and stated is not None and self.kind[stated] == K.TEMPO and self.value[stated] != tempo[0]:
            self.fail(stated, "is not the header's tempo")


def find_errors(
    vocab: MetricVocabulary,
    sequences: Sequence,
    dialect: str = "metric",
    complete: bool = False,
) -> list[GrammarError | None]:
    """The first error of every sequence, None where it is grammatical.

    Args:
        vocab: the token table.
        sequences: sequences of ids (padding on either side is ignored).
        dialect: "metric" or "mortm".
        complete: demand `<EOS>`, a generated field and `<TE>`; otherwise prompts and bare tracks pass too.
    """
    segments = [_Segment(vocab, np.asarray(ids, dtype=np.int64).reshape(-1), dialect, complete) for ids in sequences]
    rows = [(segment, row) for segment in segments for row in segment.rows]
    rows.sort(key=lambda pair: -len(pair[1].positions))
    if rows:
        tables = VocabularyTables(vocab, dialect)
        for first in range(0, len(rows), ROWS_AT_ONCE):  # rows of about one length together
            _run_rows(tables, rows[first : first + ROWS_AT_ONCE])
    return [min(s.errors, key=lambda e: e.position) if s.errors else None for s in segments]


def _run_rows(tables: VocabularyTables, rows: list[tuple[_Segment, _Row]]) -> None:
    """Run the machine over rows and note each row's first illegal token in its segment.

    Every bar is a batch row of its own, from its `<SME>` to the next one: its state at the start is computed as if all
    before it were legal, which holds up to the first error, the only one that is reported.
    """
    vocab, plans, states = tables.vocab, [row.plan for _, row in rows], [row.states for _, row in rows]
    grammar = Grammar(tables, plans, states=states, loose=tables.dialect == "mortm")
    bar = vocab.id(K.BAR) if vocab.has(K.BAR) else 0
    ids = [np.where(row.positions < 0, bar, segment.ids[row.positions]) for segment, row in rows]
    pieces = [_pieces(tables, tokens, row) for tokens, (_, row) in zip(ids, rows)]
    counts = [len(begin) for begin, *_ in pieces]
    owner = np.repeat(np.arange(len(rows)), counts)
    base = np.cumsum([0, *map(len, ids)])[:-1]
    flat, shift = np.append(np.concatenate(ids), 0), np.repeat(base, counts)
    begin, end, number, sounding, tempo, ends = (np.concatenate(column) for column in zip(*pieces))
    later, length = number > 0, end - begin  # later: pieces that do not open their row
    order = np.argsort(-length, kind="stable")  # pieces of about one length together
    first_bad = np.full(len(owner), -1)
    expected: dict[int, np.ndarray] = {}
    phase = np.zeros(len(owner), dtype=np.int64)
    for at in range(0, len(order), PIECES_AT_ONCE):
        chosen = order[at : at + PIECES_AT_ONCE]
        batch, size = grammar.rows(owner[chosen]), length[chosen]
        column = np.arange(int(size[0]))
        place = np.where(column < size[:, None], (shift + begin)[chosen, None] + column, len(flat) - 1)
        padded, inner = flat[place], later[chosen]
        state = batch.start()
        if inner.any():
            middle = batch.at_bars(number[chosen], sounding[chosen], tempo[chosen], ends[chosen])
            state = middle.where(inner, state)
        bad = np.full(len(chosen), -1)
        for step in range(padded.shape[1]):
            token = padded[:, step]
            # the piece before has judged the <SME> that opens a piece
            wrong = np.flatnonzero(~batch.legal(state, token) & (size > step) & (bad < 0) & ~(inner & (step == 0)))
            if len(wrong):  # once a piece at most
                bad[wrong] = step
                expected |= zip(chosen[wrong].tolist(), batch.allowed(state)[wrong, : len(vocab)])
            state = batch.step(state, token)
            done = np.flatnonzero(size == step + 1)
            phase[chosen[done]] = state.phase[done]
        first_bad[chosen] = bad
    last = np.append(owner[1:] != owner[:-1], True)
    reported: set[int] = set()
    for piece in np.flatnonzero((first_bad >= 0) | (last & ~np.isin(phase, (CLOSED, H_END)))).tolist():
        index = int(owner[piece])
        if index in reported:
            continue
        reported.add(index)
        segment, row = rows[index]
        if first_bad[piece] >= 0:
            at = int(row.positions[begin[piece] + first_bad[piece]])
            names = " or ".join(TokenKind(int(k)).name for k in np.unique(vocab.kind[expected[piece]]))
            segment.fail(at, f"cannot stand here in {row.name}: expected {names or 'its end'}")
        else:
            segment.fail(row.end, f"comes before the end of {row.name}")


def _pieces(tables: VocabularyTables, ids: np.ndarray, row: _Row) -> tuple[np.ndarray, ...]:
    """A row cut at its bar lines: `[n]` first and last index of each piece (past it: the next `<SME>` is the last),
    the bar it begins in, whether the track sounded before, the tempo in force; `[n, 128]` last offsets so far."""
    kind, value = tables.kind[ids], tables.value[ids]
    line = np.flatnonzero(kind == K.BAR)
    table = row.plan.bars
    if row.plan.kind == K.META or len(line) < 2 or table is None:
        one = np.zeros(1, dtype=np.int64)
        return one, one + len(ids), one, one, one - 1, np.zeros((1, 128), dtype=np.int32)
    begin, end = np.append(0, line[1:]), np.append(line[1:] + 1, len(ids))
    index, count = np.arange(len(ids)), len(begin)
    bar = np.maximum(np.cumsum(kind == K.BAR) - 1, 0)

    def before(wanted):
        """`[n]` index of the last token of a kind before each piece, -1: none."""
        return np.append(-1, np.maximum.accumulate(np.where(kind == wanted, index, -1))[begin[1:] - 1])

    sounding, tempo = before(K.PITCH), before(K.TEMPO)
    note = np.flatnonzero(kind == K.PITCH)
    stop = np.append(np.minimum.accumulate(np.where(kind == K.DURATION, len(ids), index)[::-1])[::-1], len(ids))
    sums = np.append(0, np.cumsum(np.where(kind == K.DURATION, value, 0)))
    duration = sums[np.minimum(stop[note + 1], len(ids))] - sums[note + 1]
    onset = value[np.maximum(np.maximum.accumulate(np.where(kind == K.ONSET, index, 0))[note], 0)]
    ends = np.zeros((count + 1, 128), dtype=np.int32)
    begins = table.start[np.minimum(bar[note], table.n_bars - 1)]
    np.maximum.at(ends, (bar[note] + 1, value[note]), begins + onset + duration)
    ends = np.maximum.accumulate(ends, axis=0)[:count]
    return begin, end, np.arange(count), (sounding >= 0) * 1, np.where(tempo >= 0, value[tempo], -1), ends


def check(vocab: MetricVocabulary, ids, dialect: str = "metric", complete: bool = False) -> None:
    """Raise at the first id that breaks the grammar.

    Args:
        vocab: the token table.
        ids: one sequence (padding on either side is ignored).
        dialect: "metric" or "mortm".
        complete: demand `<EOS>`, a generated field and `<TE>`; otherwise prompts and bare tracks pass too.

    Raises:
        GrammarError: with `position` and `token`.
    """
    error = find_errors(vocab, [ids], dialect, complete)[0]
    if error is not None:
        raise error
