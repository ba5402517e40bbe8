"""Compiled grammar and sampling: the state machine's own states and masks, and the tokens of transformers' filters."""

import numpy as np
import pytest
import torch
from transformers import TopPLogitsWarper

from mortm_hf import MetricGrammarLogitsProcessor, MortmTokenizer
from mortm_hf.models import token_automaton
from mortm_hf.models.generation_compiled import missing
from mortm_hf.models.generation_fused import FusedChoice, machine_tables, read_chain, state_arrays
from mortm_hf.models.generation_sampling import FiniteLogits, SeededChoice, sampling_filters
from mortm_hf.models.token_automaton import END, Grammar, VocabularyTables
from mortm_hf.models.token_plan import GrammarState
from mortm_hf.models.token_vocabulary import TokenKind
from tests.models.test_token_grammar import VOCAB, plans_of


pytestmark = pytest.mark.skipif(missing() is not None, reason="numba is not installed")


@pytest.fixture(scope="module")
def compiled():
    from mortm_hf.models.generation_compiled import load_compiled

    return load_compiled("generation_choice")


def test_constants_are_the_state_machines(compiled):
    a = token_automaton
    for name in (
        *("BAR", "METER", "LENGTH", "TEMPO", "START", "TRACK", "BLANK", "ONSET", "PITCH", "DURATION", "VELOCITY"),
        *("CLOSED", "END", "DEAD", "ROOT", "QUALITY", "BASS", "H_INST"),
    ):
        assert getattr(compiled, name) == getattr(a, name), name
    for prefix, names in (
        ("B", ("START", "TICKS", "AFTER", "METER", "TEMPO", "SITU", "LEFT")),
        ("T", ("NEXT", "MORE", "LATER_COST", "LATER")),
    ):
        for name in names:
            assert getattr(compiled, f"{prefix}_{name}") == getattr(a, f"_{name}"), name
    assert (compiled.OPEN, compiled.FREE) == (a._OPEN, a._FREE)
    bound = TokenKind.METER, TokenKind.TEMPO, TokenKind.DURATION, TokenKind.INSTRUMENT, TokenKind.ONSET
    assert a._BOUND == (*bound, TokenKind.CHORD_BASS, TokenKind.CHORD_QUALITY)
    assert (a._FIXED, a._SAME) == (a.N_KINDS, a.N_KINDS + 1)
    fields = ("phase", "track", "onset", "pitch", "total", "room", "need", "sounding", "velocity", "tempo", "bar")
    assert GrammarState._fields == (*fields, "ends", "bars", "tracks")
    assert [getattr(compiled, f"P_{name.upper()}") for name in fields] == [*range(len(fields))]


@pytest.mark.parametrize("loose", [False, True])
@pytest.mark.parametrize("dialect", ["metric", "mortm"])
@pytest.mark.parametrize("budget", [None, 3, 60])
def test_states_and_masks_are_the_state_machines(compiled, dialect, loose, budget):
    """Random legal walks: numpy's state machine and the compiled one, side by side, in every state."""
    rng = np.random.default_rng(0 if budget is None else budget)
    tables = VocabularyTables(VOCAB, dialect, len(VOCAB) + 3)
    # short durations and few ends: long answers
    weight = np.where(tables.kind == TokenKind.DURATION, 1.0 / np.maximum(tables.value, 1), 1.0)
    machine = Grammar(tables, [plan for plan in plans_of(dialect) for _ in range(8)], loose=loose)
    vocabulary, plan, owners = machine_tables(machine, compiled)
    state = machine.start()
    columns, ends, bars, tracks = state_arrays(state)
    remaining = None if budget is None else machine.closing_cost(state) + budget
    need, found = np.empty(128, dtype=np.int64), np.empty(tables.size, dtype=np.int64)
    lower, upper = np.empty(token_automaton.N_KINDS, dtype=np.int64), np.empty(token_automaton.N_KINDS, dtype=np.int64)
    seen = 0
    for _ in range(250):
        mask = machine.allowed(state, remaining)
        for row in range(len(owners)):
            own = owners[row], columns[row], ends[row], bars[row], tracks[row]
            left = -1 if remaining is None else remaining[row]
            n = compiled.legal(vocabulary, plan, *own, left, need, lower, upper, found)
            np.testing.assert_array_equal(found[:n], np.flatnonzero(mask[row]))
            seen += n
        lost = ~mask.any(1)
        mask[lost, 0] = True
        token = (mask * weight * rng.exponential(size=mask.shape)).argmax(1)
        state = machine.step(state, token)
        remaining = None if remaining is None else np.maximum(remaining - 1, 0)
        for row in range(len(owners)):
            own = owners[row], columns[row], ends[row], bars[row], tracks[row]
            compiled.advance(vocabulary, plan, *own, token[row])
        for mine, theirs in zip((columns, ends, bars, tracks), state_arrays(state)):
            np.testing.assert_array_equal(mine, theirs)
        if (state.phase == END).all():
            break
    assert seen > 10_000


CHAINS = [
    {},
    dict(top_p=0.95),
    dict(temperature=0.8, top_p=0.9),
    dict(top_k=7),
    dict(temperature=1.3, top_k=40, top_p=0.8),
    dict(min_p=0.05),
    dict(top_k=5000, top_p=0.99, min_p=0.02),
    dict(top_p=0.01),
]


@pytest.mark.parametrize("parameters", CHAINS, ids=str)
@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_tokens_are_those_of_the_processors(parameters, spread):
    """Every token of thousands: the same as by transformers' own processors and the arg max of the scores."""
    tokenizer, rows, steps = MortmTokenizer(), 12, 60
    prompts = [tokenizer.prompt(bars=3, instruments=names) for names in (["piano"], ["violin", "drums"])]
    rows_ids = [tokenizer.encode_prompt(prompt) for prompt in prompts for _ in range(rows // 2)]
    width = max(map(len, rows_ids))
    ids = torch.zeros(rows, width + steps, dtype=torch.long)
    for row, prompt in enumerate(rows_ids):
        ids[row, width - len(prompt) : width] = torch.tensor(prompt)

    def chain():
        grammar = MetricGrammarLogitsProcessor(tokenizer, prompts, max_new_tokens=80)
        return [FiniteLogits(), grammar, *sampling_filters(parameters), SeededChoice(range(rows), 0, width)]

    generator, size = torch.Generator().manual_seed(0), len(tokenizer.vocabulary) + 2
    theirs = chain()
    ours = FusedChoice(read_chain(chain()), ids[:, :width], size)
    token = torch.zeros(rows, dtype=torch.long)
    for at in range(width, width + steps):
        logits = torch.randn(rows, size, generator=generator) * spread
        logits[0, 5:9] = torch.tensor([torch.nan, torch.inf, -torch.inf, 3e4])
        scores = logits
        for processor in theirs:
            scores = processor(ids[:, :at], scores)
        ours(logits.numpy(), at, np.arange(rows), token.numpy())
        assert torch.equal(token, scores.argmax(-1))
        ids[:, at] = token


def test_without_grammar_and_noise():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    ids, token = torch.zeros(3, 4, dtype=torch.long), torch.zeros(3, dtype=torch.long)
    FusedChoice(read_chain([]), ids, 50)(logits.numpy(), 4, np.array([0, 2]), token.numpy())
    assert token.tolist() == [int(logits[0].argmax()), 0, int(logits[2].argmax())]


def test_other_chains_are_left_alone():
    filters = sampling_filters(dict(temperature=0.5, top_p=0.9))
    noise = SeededChoice([0], 0, 1)
    assert read_chain([*filters, noise]) is not None
    assert read_chain([noise, *filters]) is None  # another order
    assert read_chain([*filters, *filters]) is None
    assert read_chain([lambda ids, scores: scores]) is None
    assert read_chain([TopPLogitsWarper(0.9, min_tokens_to_keep=2)]) is None
    assert read_chain([TopPLogitsWarper(0.9, filter_value=-1.0)]) is None
    assert read_chain(sampling_filters(dict(typical_p=0.5))) is None
