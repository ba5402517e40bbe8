"""The grammar: exact closing costs, no dead ends, agreement with an independent validator, both dialects."""

import json
from pathlib import Path

import numpy as np
import pytest

from mortm_hf.models.errors_mortm import GrammarError, PromptError
from mortm_hf.models.midi_files import read_midi
from mortm_hf.models.music_grid import COMMON_TIME, BarTable
from mortm_hf.models.music_names import DRUMS, METERS
from mortm_hf.models.token_automaton import END, Grammar, VocabularyTables
from mortm_hf.models.token_codec import encode_chords, encode_tracks
from mortm_hf.models.token_grammar import allowed, check, find_errors, infer_plan
from mortm_hf.models.token_plan import GenerationPlan
from mortm_hf.models.token_vocabulary import MetricVocabulary, TokenKind
from mortm_hf.models.tokenization_mortm import MortmTokenizer
from tests.grammar_validator import Invalid, validate


K = TokenKind
FIXTURES = Path(__file__).parents[1] / "fixtures"
VOCAB = MetricVocabulary.default()
METRIC = VocabularyTables(VOCAB)


def meter(n, d):
    return METERS.index((n, d))


# A bar table with a change of meter, an irregular bar and the restatement after it.
MIXED = BarTable.from_lengths(
    np.array([96, 96, 72, 50, 72]), np.array([meter(4, 4), meter(4, 4), meter(3, 4), meter(9, 16), meter(3, 4)])
)
FOUR = BarTable.regular(COMMON_TIME, 4)


def ids_of(text):
    return [VOCAB[token] for token in text.split()]


def names_of(ids):
    return [VOCAB.tokens[i] for i in ids]


def plans_of(dialect):
    table = MIXED if dialect == "metric" else BarTable.regular(COMMON_TIME, 4)
    tempo = np.array([3, 3, 4, 4, -1])[: table.n_bars]
    return [
        GenerationPlan(K.MGEN, table, (0, 25, DRUMS)),
        GenerationPlan(K.MGEN, table, (0,), tempo=tempo, velocity=True, pitch_range=(60, 62)),
        GenerationPlan(K.MGEN, table, (0, 1), velocity=False, scale=(0, 4, 7), pitch_range=(60, 65)),
        GenerationPlan(K.MGEN, table, (7,), tempo=np.full(table.n_bars, -1), pitch_range=(60, 60)),
        GenerationPlan(K.CGEN, table),
        GenerationPlan(K.META),
    ]


def sample(grammar, rng, budget=None, favour=None, steps=4000):
    """Random legal ids of every row, up to and including <TE>; asserts that something is always legal."""
    state, rows = grammar.start(), len(grammar.plans)
    weight = np.ones(grammar.tables.size) if favour is None else favour
    columns = []
    for step in range(steps):
        remaining = None if budget is None else np.maximum(budget - step, 0)
        mask = grammar.allowed(state, remaining)
        assert mask.any(1).all(), f"dead end at step {step}: {state.phase}"
        token = (mask * weight * rng.exponential(size=mask.shape)).argmax(1)
        columns.append(token)
        state = grammar.step(state, token)
        if (state.phase == END).all():
            break
    assert (state.phase == END).all()
    sequences = np.stack(columns, 1)
    return [row[: int(np.argmax(VOCAB.kind[row] == K.END)) + 1].tolist() for row in sequences[:rows]]


# ---------------------------------------------------------------------- the machine


@pytest.mark.parametrize("dialect", ["metric", "mortm"])
@pytest.mark.parametrize("seed", [0, 1])
def test_closing_cost_is_exact_and_the_budget_mask_is_its_consequence(dialect, seed):
    """cost(s) == 1 + min over legal t of cost(s t): by induction the true minimum. With a budget exactly the tokens
    whose cost still fits are legal."""
    tables, plans = VocabularyTables(VOCAB, dialect), plans_of(dialect)
    grammar, rng = Grammar(tables, plans), np.random.default_rng(seed)
    state = grammar.start()
    remaining = grammar.closing_cost(state) + rng.integers(0, 60, len(plans))
    seen = 0
    while not (state.phase == END).all():
        cost, free, mask = (
            grammar.closing_cost(state),
            grammar.allowed(state),
            grammar.allowed(state, remaining),
        )
        assert (cost <= remaining).all()
        for row in np.flatnonzero(state.phase != END):
            tokens = np.flatnonzero(free[row])
            copies = Grammar(tables, [plans[row]] * len(tokens))
            after = copies.closing_cost(copies.step(state.select(np.full(len(tokens), row)), tokens))
            assert after.min() + 1 == cost[row], (VOCAB.tokens[tokens[after.argmin()]], state.phase[row])
            np.testing.assert_array_equal(tokens[after < remaining[row]], np.flatnonzero(mask[row]))
            np.testing.assert_array_equal(
                copies.legal(state.select(np.full(len(tokens), row)), tokens), np.ones(len(tokens), bool)
            )
            seen += 1
        token = (mask * rng.exponential(size=mask.shape)).argmax(1)
        state, remaining = grammar.step(state, token), np.maximum(remaining - 1, 0)
    assert seen > 100


@pytest.mark.parametrize("slack", [0, 1, 2, 3, 7, 40])
def test_every_budget_closes_in_time(slack):
    rng = np.random.default_rng(slack)
    # Long durations are favoured: they are what makes later pitches of the same key expensive.
    favour = np.where((VOCAB.kind == K.DURATION) & (VOCAB.value > 288), 20.0, 1.0)
    plans = [p for p in plans_of("metric") for _ in range(4)]
    grammar = Grammar(METRIC, plans)
    budget = grammar.closing_cost(grammar.start()) + slack
    for row, ids in enumerate(sample(grammar, rng, budget, favour)):
        assert len(ids) <= budget[row]
        if slack == 0:
            assert len(ids) == budget[row]
        marker = f"<{plans[row].kind.name}>"
        parsed = validate(["<EOS>", marker, *names_of(ids)])
        if plans[row].kind == K.MGEN:
            assert [b.length for b in parsed.tracks[0].bars] == MIXED.length.tolist()
            assert len(parsed.tracks) == len(plans[row].instruments)


@pytest.mark.parametrize("pitches", [1, 2, 128])
def test_one_pitch_and_longest_notes_have_no_dead_end(pitches):
    """The hardest case: few pitches, only the longest durations, so that later notes need up to four tokens each."""
    rng = np.random.default_rng(pitches)
    favour = np.where(np.isin(VOCAB.kind, (K.DURATION, K.ONSET)), 1e3, 1.0) * np.where(VOCAB.value == 768, 1e4, 1.0)
    plan = GenerationPlan(K.MGEN, MIXED, (0, 1), pitch_range=(60, 59 + pitches) if pitches < 128 else None)
    grammar = Grammar(METRIC, [plan] * 8)
    for ids in sample(grammar, rng, budget=np.full(8, 900), favour=favour):
        validate(["<EOS>", "<MGEN>", *names_of(ids)])
    loose = Grammar(VocabularyTables(VOCAB, "mortm"), [GenerationPlan(K.MGEN, FOUR, (0,), pitch_range=(60, 60))] * 4)
    favour = np.where(VOCAB.value == 288, 1e5, 1.0)
    for ids in sample(loose, rng, budget=np.full(4, 300), favour=favour):
        validate(["<EOS>", "<MGEN>", *names_of(ids)], "mortm", ordered=True)


def test_pure_and_incremental_forms_agree():
    rng = np.random.default_rng(0)
    plans = plans_of("metric")
    grammar = Grammar(METRIC, plans)
    answers = sample(grammar, rng, grammar.closing_cost(grammar.start()) + 40)
    rows = [ids_of("<EOS> <MGEN>")[: 1 + (i % 2)] for i in range(len(plans))]  # prompts of two lengths
    rows = [[*row[:1], VOCAB.id(plan.kind), *answer] for row, plan, answer in zip(rows, plans, answers)]
    length = max(map(len, rows))
    ids = np.zeros((len(rows), length), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, length - len(row) :] = row
    pure = allowed(METRIC, plans, ids)
    for i, row in enumerate(rows):
        single = Grammar(METRIC, [plans[i]])
        state, offset = single.start(), length - len(row)
        assert pure[i, : offset + 1].all()  # padding and prompt: no constraint
        for place in range(1, len(row)):
            if place > 1:
                state = single.step(state, np.array([row[place]]))
            np.testing.assert_array_equal(pure[i, offset + place], single.allowed(state)[0])
    attended = (ids != 0).astype(int)
    np.testing.assert_array_equal(pure, allowed(METRIC, plans, ids, attended))


def test_forced_values_follow_the_plan():
    plan = GenerationPlan(K.MGEN, MIXED, (40, 3), tempo=np.array([5, 5, 9, 9, 9]))
    grammar = Grammar(METRIC, [plan])
    state = grammar.start()
    for token in ids_of("<INST_40> <SME> <TS_4/4>") + [VOCAB.id(K.TEMPO, 5)]:
        assert np.flatnonzero(grammar.allowed(state)[0]).tolist() == [token]
        state = grammar.step(state, np.array([token]))
    body = set(names_of(np.flatnonzero(grammar.allowed(state)[0])))
    assert body == {"<BLANK>", *(f"s_{i}" for i in range(96))}
    for token in ids_of("<BLANK> <SME> <BLANK> <SME>"):
        state = grammar.step(state, np.array([token]))
    assert names_of(np.flatnonzero(grammar.allowed(state)[0])) == ["<TS_3/4>"]
    tail = [
        "<TS_3/4>",
        VOCAB.tokens[VOCAB.id(K.TEMPO, 9)],
        "<BLANK>",
        "<SME>",
        "<TS_9/16>",
        "d_50",
        "<BLANK>",
        "<SME>",
    ]
    for token in ids_of(" ".join([*tail, "<TS_3/4>"])):
        assert grammar.allowed(state)[0, token]
        state = grammar.step(state, np.array([token]))
    # The last bar of a track that is still silent may not be blank.
    assert VOCAB["<BLANK>"] not in np.flatnonzero(grammar.allowed(state)[0])


def test_range_and_scale_bind_melodic_tracks_only():
    plan = GenerationPlan(K.MGEN, FOUR, (0, DRUMS), pitch_range=(60, 71), scale=(0, 2, 4))
    parsed = []
    grammar = Grammar(METRIC, [plan] * 6)
    for ids in sample(grammar, np.random.default_rng(0), np.full(6, 400)):
        parsed.append(validate(["<EOS>", "<MGEN>", *names_of(ids)]))
    melodic = {n[1] for p in parsed for b in p.tracks[0].bars for n in b.notes}
    drums = {n[1] for p in parsed for b in p.tracks[1].bars for n in b.notes}
    assert melodic <= {60, 62, 64}
    assert drums - {60, 62, 64}


@pytest.mark.parametrize(
    "plan, code",
    [
        (GenerationPlan(K.PAST, FOUR, (0,)), "prompt.task"),
        (GenerationPlan(K.MGEN, None, (0,)), "prompt.bars"),
        (GenerationPlan(K.CGEN), "prompt.bars"),
        (GenerationPlan(K.MGEN, FOUR, (200,)), "prompt.material"),
        (GenerationPlan(K.MGEN, FOUR, (0,), tempo=np.zeros(3, int)), "prompt.bars"),
        (GenerationPlan(K.MGEN, FOUR, (0,), pitch_range=(60, 60), scale=(1,)), "prompt.material"),
    ],
)
def test_impossible_plans_are_refused(plan, code):
    with pytest.raises(PromptError) as error:
        Grammar(METRIC, [plan])
    assert error.value.code == code


def test_unknown_dialect_and_long_bars_of_upstream_are_refused():
    with pytest.raises(PromptError):
        VocabularyTables(VOCAB, "tango")
    with pytest.raises(PromptError):
        Grammar(VocabularyTables(VOCAB, "mortm"), [GenerationPlan(K.MGEN, MIXED, (0,))])


def test_infer_plan_reads_header_and_context():
    prompt = "<EOS> <SYSTEM> <INST_40> <INST_DRUMS> <GEN_MEASURE_COUNT_6> <TS_3/4> <BPM_63> k_CM <TAG_END> <MGEN>"
    plan = infer_plan(VOCAB, ids_of(prompt))
    assert plan.instruments == (40, DRUMS)
    assert plan.bars.n_bars == 6
    assert plan.bars.meter.tolist() == [meter(3, 4)] * 6
    assert plan.tempo.tolist() == [VOCAB.value[VOCAB["<BPM_63>"]]] * 6
    track = "<INST_5> <SME> <TS_3/4> s_0 p_60 d_6 <SME> <TS_4/4> d_80 <BLANK> <SME> <TS_2/4> <BLANK> <ESEQ>"
    plan = infer_plan(VOCAB, ids_of(f"<EOS> <PAST_M> {track} <TAG_END> <MGEN>"))
    assert plan.instruments == (5,)
    assert plan.bars.n_bars == 8
    assert set(plan.bars.meter) == {meter(2, 4)}
    plan = infer_plan(VOCAB, ids_of(f"<EOS> <SYSTEM> <INST_9> <TAG_END> <CONST_M> {track} <TAG_END> <MGEN>"))
    assert plan.bars.length.tolist() == [72, 80, 48]
    assert plan.instruments == (9,)
    assert infer_plan(VOCAB, ids_of("<EOS> <MGEN>")).instruments == (0,)
    assert infer_plan(VOCAB, ids_of(f"<EOS> <FUTURE_M> {track} <MGEN>")).bars.meter[0] == meter(3, 4)  # unclosed
    assert infer_plan(VOCAB, ids_of("<EOS> <META>")).kind == K.META


# ---------------------------------------------------------------------- whole segments


@pytest.fixture(scope="module")
def songs():
    """Short segments of real files, with and without velocities, and a prompt with every block."""
    tokenizer = MortmTokenizer()
    out = []
    for number, path in enumerate(sorted((FIXTURES / "midi").glob("*.mid"))):
        score = read_midi(path)
        for start in range(0, min(score.n_bars, 12), 4):
            stop = min(start + 3, score.n_bars)
            if score.window(start, stop).n_notes:
                bars = (start, stop)
                out.append(tokenizer.encode_midi(path, bars=bars, velocity=(number + start // 4) % 2 == 0))
    return out


def full_segment():
    score = read_midi(FIXTURES / "midi" / "bwv45.7.mid")
    past, now, after = score.window(0, 2), score.window(2, 4), score.window(4, 6)
    chords = ids_of("<SME> <TS_4/4> s_0 CR_C CQ_None CB_None s_48 CR_N CQ_None CB_None <SME> <BLANK> <ESEQ>")
    if now.bars.meter.tolist() != [COMMON_TIME] * 2:
        chords = encode_chords(VOCAB, now).tolist()
    first = now.take_tracks(np.array([0]))
    rest = now.take_tracks(np.arange(1, now.n_tracks))
    parts = [
        ids_of(f"<EOS> <SYSTEM> <INST_{first.programs[0]}> <GEN_MEASURE_COUNT_2> k_CM <TAG_END> <PAST_M>"),
        encode_tracks(VOCAB, past).tolist(),
        ids_of("<TAG_END> <FUTURE_M>"),
        encode_tracks(VOCAB, after).tolist(),
        ids_of("<TAG_END> <CONST_M>"),
        encode_tracks(VOCAB, rest).tolist(),
        ids_of("<TAG_END> <CONST_C>"),
        chords,
        ids_of("<TAG_END> <MGEN>"),
        encode_tracks(VOCAB, first).tolist(),
        ids_of("<TE>"),
    ]
    return [i for part in parts for i in part]


def test_real_segments_pass_both_validators(songs):
    everything = [*songs, full_segment()]
    assert len(songs) >= 12
    assert find_errors(VOCAB, everything, complete=True) == [None] * len(everything)
    for ids in everything:
        parsed = validate(names_of(ids))
        assert parsed.tracks
    assert set(parsed.blocks) == {"<PAST_M>", "<FUTURE_M>", "<CONST_M>", "<CONST_C>"}


def mutate(ids, rng):
    """One random edit: delete, insert, same-kind swap, exchange, cut, nudge of a value."""
    ids, place = list(ids), int(rng.integers(len(ids)))
    kind, value = VOCAB.kind[ids[place]], int(VOCAB.value[ids[place]])
    match int(rng.integers(7)):
        case 0:
            del ids[place]
        case 1:
            ids.insert(place, int(rng.integers(1, len(VOCAB))))
        case 2:
            ids[place] = int(rng.choice(np.flatnonzero(VOCAB.kind == kind)))
        case 3:
            ids.insert(place, ids[int(rng.integers(len(ids)))])
        case 4:
            other = int(rng.integers(len(ids)))
            ids[place], ids[other] = ids[other], ids[place]
        case 5:
            del ids[place : place + int(rng.integers(2, 6))]
        case _:
            moved = value + int(rng.choice([-2, -1, 1, 2]))
            if value >= 0 and VOCAB.has(TokenKind(int(kind)), moved):
                ids[place] = VOCAB.id(TokenKind(int(kind)), moved)
    return ids


def verdict(ids, dialect="metric", vocab=VOCAB):
    try:
        validate([vocab.tokens[i] for i in ids], dialect)
    except Invalid as error:
        return error
    return None


def test_mutations_are_judged_alike_by_both_validators(songs):
    """Differential test: 500 edits of valid segments, accepted or rejected by both; most are rejected."""
    rng = np.random.default_rng(7)
    base = [ids for ids in songs if len(ids) < 400] + [full_segment()]
    edits = [mutate(base[int(rng.integers(len(base)))], rng) for _ in range(500)]
    ours = find_errors(VOCAB, edits, complete=True)
    theirs = [verdict(ids) for ids in edits]
    for ids, mine, other in zip(edits, ours, theirs):
        assert (mine is None) == (other is None), (mine, other, names_of(ids))
    rejected = sum(error is not None for error in ours)
    assert 300 < rejected < 500
    same = sum(a.position == b.position for a, b in zip(ours, theirs) if a is not None)
    assert same > rejected / 2


T = "<INST_0> <SME> <TS_4/4>"
NEGATIVE = [
    # (segment, index of the first token that breaks it)
    ("", 0),
    (f"<MGEN> {T} s_0 p_60 d_6 <ESEQ> <TE>", 0),  # no <EOS>
    ("<EOS> <TE>", 1),  # no generated field
    (f"<EOS> <MGEN> {T} s_0 p_60 d_6 <ESEQ>", 9),  # no <TE>
    (f"<EOS> <MGEN> {T} s_0 p_60 d_6 <TE>", 8),  # no <ESEQ>
    (f"<EOS> <MGEN> {T} s_0 p_60 d_6 <ESEQ> <TE> <TE>", 10),
    ("<EOS> <MGEN> <SME> <TS_4/4> s_0 p_60 d_6 <ESEQ> <TE>", 2),  # no instrument
    ("<EOS> <MGEN> <INST_0> <ESEQ> <TE>", 3),  # no bars
    ("<EOS> <MGEN> <INST_0> <SME> s_0 p_60 d_6 <ESEQ> <TE>", 4),  # no meter
    (f"<EOS> <MGEN> {T} <BLANK> <ESEQ> <TE>", 5),  # a silent track
    (f"<EOS> <MGEN> {T} <ESEQ> <TE>", 5),  # an empty bar without <BLANK>
    (f"<EOS> <MGEN> {T} <BLANK> s_0 p_60 d_6 <SME> <BLANK> <ESEQ> <TE>", 6),  # <BLANK> and notes
    (f"<EOS> <MGEN> {T} s_96 p_60 d_6 <ESEQ> <TE>", 5),  # onset outside the bar
    (f"<EOS> <MGEN> {T} s_6 p_60 d_6 s_5 p_60 d_6 <ESEQ> <TE>", 8),  # onsets out of order
    (f"<EOS> <MGEN> {T} s_6 p_60 d_6 s_6 p_59 d_6 <ESEQ> <TE>", 9),  # pitches out of order
    (f"<EOS> <MGEN> {T} s_6 p_60 d_6 s_6 p_60 d_6 <ESEQ> <TE>", 10),  # a duplicate
    (f"<EOS> <MGEN> {T} s_6 p_60 d_6 s_6 p_60 d_5 <ESEQ> <TE>", 10),
    (f"<EOS> <MGEN> {T} s_6 p_60 d_20 s_8 p_60 d_6 <ESEQ> <TE>", 10),  # nested
    (f"<EOS> <MGEN> {T} s_90 p_60 d_20 <SME> s_3 p_60 d_10 <ESEQ> <TE>", 11),  # nested across the bar line
    (f"<EOS> <MGEN> {T} s_0 p_60 d_6 d_288 <ESEQ> <TE>", 8),  # not greatest first
    (f"<EOS> <MGEN> {T} s_0 p_60 d_288 d_24 <ESEQ> <TE>", 8),  # d_312 exists
    (f"<EOS> <MGEN> {T} s_0 p_60 d_312 d_24 <ESEQ> <TE>", 8),
    (f"<EOS> <MGEN> {T} s_0 p_60 d_768 d_768 d_768 d_312 <ESEQ> <TE>", 10),  # longer than 2592
    (f"<EOS> <MGEN> {T} s_0 p_60 d_0 <ESEQ> <TE>", 7),
    (f"<EOS> <MGEN> {T} s_0 d_6 <ESEQ> <TE>", 6),
    (f"<EOS> <MGEN> {T} s_0 p_60 <ESEQ> <TE>", 7),
    (f"<EOS> <MGEN> {T} s_0 p_60 d_6 v_62 s_1 p_60 d_6 <ESEQ> <TE>", 12),  # velocity on some
    (f"<EOS> <MGEN> {T} s_0 p_60 d_6 v_61 <ESEQ> <TE>", 8),  # not a bin's centre
    (f"<EOS> <MGEN> {T} s_0 p_60 d_6 <SME> <TS_4/4> <BLANK> <ESEQ> <TE>", 9),  # meter restated
    (f"<EOS> <MGEN> {T} d_96 s_0 p_60 d_6 <ESEQ> <TE>", 5),  # d_len of a regular bar
    (f"<EOS> <MGEN> {T} d_90 s_0 p_60 d_6 <ESEQ> <TE>", 5),  # 90 is 15/16
    (f"<EOS> <MGEN> {T} d_70 s_0 p_60 d_6 <ESEQ> <TE>", 5),  # 72 would do
    ("<EOS> <MGEN> <INST_0> <SME> <TS_3/4> d_70 s_0 p_60 d_6 <SME> <BLANK> <ESEQ> <TE>", 10),  # not restated after it
    (f"<EOS> <MGEN> {T} s_0 p_60 d_6 <ESEQ> <INST_1> <SME> <TS_4/4> s_0 p_60 d_6 <ESEQ> <TE>", 11),  # second track
    (f"<EOS> <MGEN> {T} s_0 p_60 d_6 <ESEQ> <INST_1> <SME> <BPM_63> s_0 p_60 d_6 <ESEQ> <TE>", 11),
    (f"<EOS> <MGEN> {T} s_0 p_60 d_6 <ESEQ> <INST_1> <SME> s_0 p_60 d_6 <SME> <BLANK> <ESEQ> <TE>", 14),  # more bars
    (f"<EOS> <MGEN> {T} <BPM_63> s_0 p_60 d_6 <SME> <BPM_63> <BLANK> <ESEQ> <TE>", 10),  # tempo restated
    (f"<EOS> <MGEN> <INST_DRUMS> <SME> <TS_4/4> s_0 p_60 d_6 <ESEQ> {T[:8]} <SME> s_0 p_60 d_6 <ESEQ> <TE>", 9),
    (f"<EOS> <SYSTEM> <INST_1> <TAG_END> <MGEN> {T} s_0 p_60 d_6 <ESEQ> <TE>", 5),  # another instrument
    (f"<EOS> <SYSTEM> <GEN_MEASURE_COUNT_2> <TAG_END> <MGEN> {T} s_0 p_60 d_6 <ESEQ> <TE>", 5),
    (f"<EOS> <SYSTEM> <TS_3/4> <TAG_END> <MGEN> {T} s_0 p_60 d_6 <ESEQ> <TE>", 5),
    (f"<EOS> <SYSTEM> <BPM_63> <TAG_END> <MGEN> {T} <BPM_67> s_0 p_60 d_6 <ESEQ> <TE>", 8),
    (f"<EOS> <SYSTEM> k_CM <TS_4/4> <TAG_END> <MGEN> {T} s_0 p_60 d_6 <ESEQ> <TE>", 3),  # header out of order
    (f"<EOS> <SYSTEM> <NOTE_DENSE_3> <TAG_END> <MGEN> {T} s_0 p_60 d_6 <ESEQ> <TE>", 2),  # density without instrument
    (f"<EOS> <SYSTEM> <INST_DRUMS> <INST_0> <TAG_END> <MGEN> {T} s_0 p_60 d_6 <ESEQ> <TE>", 3),
    (f"<EOS> <FUTURE_M> <TAG_END> <PAST_M> <TAG_END> <MGEN> {T} s_0 p_60 d_6 <ESEQ> <TE>", 3),  # block order
    (f"<EOS> <PAST_M> <TAG_END> <PAST_M> <TAG_END> <MGEN> {T} s_0 p_60 d_6 <ESEQ> <TE>", 3),
    (f"<EOS> <PAST_M> <MGEN> {T} s_0 p_60 d_6 <ESEQ> <TE>", 1),  # no <TAG_END>
    (f"<EOS> <CONST_C> <SME> <TS_3/4> <BLANK> <ESEQ> <TAG_END> <MGEN> {T} s_0 p_60 d_6 <ESEQ> <TE>", 8),  # other bars
    ("<EOS> <CGEN> <SME> <TS_4/4> s_0 CR_C CQ_m <ESEQ> <TE>", 7),
    ("<EOS> <CGEN> <SME> <TS_4/4> s_0 CR_C CQ_m CB_None s_0 CR_C CQ_m CB_None <ESEQ> <TE>", 8),
    ("<EOS> <CGEN> <SME> <TS_4/4> s_0 CR_N CQ_m CB_None <ESEQ> <TE>", 6),
    ("<EOS> <CGEN> <SME> <TS_4/4> <BPM_63> s_0 CR_C CQ_m CB_None <ESEQ> <TE>", 4),
    ("<EOS> <CGEN> <SME> <TS_4/4> s_0 p_60 d_6 <ESEQ> <TE>", 5),
    ("<EOS> <META> <SYSTEM> k_CM <TE>", 4),
]


@pytest.mark.parametrize("text, position", NEGATIVE, ids=lambda value: str(value)[-40:])
def test_each_rule_is_enforced(text, position):
    ids = ids_of(text)
    with pytest.raises(GrammarError) as error:
        check(VOCAB, ids, complete=True)
    assert verdict(ids) is not None
    assert error.value.position == position, str(error.value)
    assert error.value.token == (names_of(ids)[position] if position < len(ids) else None)
    assert f"position {position}" in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        f"<EOS> <MGEN> {T} s_0 p_60 d_288 d_23 s_0 p_60 d_312 s_1 p_60 d_768 d_768 d_768 d_288 <ESEQ> <TE>",
        f"<EOS> <MGEN> {T} s_0 p_60 d_24 s_12 p_60 d_12 <ESEQ> <TE>",  # equal offsets
        "<EOS> <MGEN> <INST_0> <SME> <TS_3/4> d_70 <BLANK> <SME> <TS_3/4> s_71 p_60 d_6 <ESEQ> <TE>",
        "<EOS> <MGEN> <TE>",
        "<EOS> <PAST_M> <TAG_END> <CONST_C> <ESEQ> <TAG_END> <MGEN> <TE>",
        "<EOS> <CGEN> <SME> <TS_4/4> <BLANK> <SME> s_95 CR_N CQ_None CB_None <ESEQ> <TE>",
        "<EOS> <CGEN> <ESEQ> <TE>",
        "<EOS> <CONST_M> <TAG_END> <META> <SYSTEM> <INST_0> <NOTE_DENSE_1> <GENRE_jazz> <GENRE_funk> <TAG_END> <TE>",
        f"<PAD> <PAD> <EOS> <MGEN> {T} s_0 p_60 d_6 v_2 <ESEQ> <TE> <PAD>",
    ],
)
def test_what_the_rules_allow(text):
    check(VOCAB, ids_of(text), complete=True)
    assert verdict(ids_of(text)) is None


def test_incomplete_segments_pass_unless_asked():
    """Prompts, answers without <EOS>, bare tracks: what `decode_midi(strict=True)` takes."""
    track = f"{T} s_0 p_60 d_6 <ESEQ>"
    for text in (f"<MGEN> {track} <TE>", track, f"<EOS> <PAST_M> {track} <TAG_END>", f"<EOS> <MGEN> {track}"):
        check(VOCAB, ids_of(text))
        with pytest.raises(GrammarError):
            check(VOCAB, ids_of(text), complete=True)
    with pytest.raises(GrammarError) as error:
        check(VOCAB, [1, 99999])
    assert error.value.position == 1


# ---------------------------------------------------------------------- upstream's dialect


def upstream_cases():
    return sorted((FIXTURES / "upstream_tokenizer").glob("*/expected.json"))


@pytest.mark.parametrize("flavour", ["pro", "pro2"])
def test_upstream_sequences_are_grammatical_in_their_dialect(flavour):
    vocab = MortmTokenizer(preset=f"{flavour}@4.6.18", dialect="mortm").vocabulary
    sequences = []
    for path in upstream_cases():
        case = json.loads(path.read_text())
        ids = (case.get(flavour) or {}).get("full_sequence_ids")
        if ids:
            sequences.append(ids)
    assert len(sequences) >= 5
    assert find_errors(vocab, sequences, "mortm", complete=True) == [None] * len(sequences)
    assert [verdict(ids, "mortm", vocab) for ids in sequences] == [None] * len(sequences)
    # Upstream's sequences state no meters: they are no `metric` text.
    assert all(find_errors(vocab, sequences, "metric", complete=True))
    rng = np.random.default_rng(1)
    edits = []
    for _ in range(150):
        ids = list(sequences[int(rng.integers(len(sequences)))])[:-1]
        ids[int(rng.integers(len(ids)))] = int(rng.integers(1, len(vocab)))
        edits.append([*ids, vocab["<TE>"]])
    ours = [error is None for error in find_errors(vocab, edits, "mortm", complete=True)]
    assert ours == [verdict(ids, "mortm", vocab) is None for ids in edits]
    assert 5 < sum(ours) < 145


@pytest.mark.parametrize("flavour", ["pro", "pro2"])
def test_generation_in_upstreams_dialect(flavour):
    vocab = MortmTokenizer(preset=f"{flavour}@4.6.18", dialect="mortm").vocabulary
    tables = VocabularyTables(vocab, "mortm", size=len(vocab) + 21)  # published models have padded tables
    piano, sax = vocab.value[vocab["<INST_PIANO>"]], vocab.value[vocab["<INST_SAX>"]]
    plan = GenerationPlan(K.MGEN, BarTable.regular(COMMON_TIME, 3), (int(piano), int(sax)))
    grammar, rng = Grammar(tables, [plan] * 6), np.random.default_rng(0)
    state, columns = grammar.start(), []
    budget = grammar.closing_cost(state) + 60
    while not (state.phase == END).all():
        mask = grammar.allowed(state, np.maximum(budget - len(columns), 0))
        assert not mask[:, len(vocab) :].any()
        token = (mask * rng.exponential(size=mask.shape)).argmax(1)
        columns.append(token)
        state = grammar.step(state, token)
    prompt = ["<EOS>", "<SYSTEM>", "<INST_PIANO>", "<INST_SAX>", "k_CM", "<TAG_END>", "<MGEN>"]
    for row in np.stack(columns, 1):
        names = prompt + [vocab.tokens[i] for i in row]
        parsed = validate(names, "mortm", ordered=True)
        assert [t.instrument for t in parsed.tracks] == ["<INST_PIANO>", "<INST_SAX>"]
        assert [len(t.bars) for t in parsed.tracks] == [3, 3]
        check(vocab, [vocab[n] for n in names], "mortm", complete=True)
