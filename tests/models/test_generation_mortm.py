"""The logits processor in every mode of `generate()`, with random weights; the streamer of finished bars."""

import copy
import itertools
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList

import mortm_hf
from benchmarks.grammar import Songs, faults, from_nothing, run
from mortm_hf.models.configuration_mortm import MortmConfig
from mortm_hf.models.errors_mortm import PromptError
from mortm_hf.models.generation_mortm import BarStreamer, MetricGrammarLogitsProcessor
from mortm_hf.models.modeling_mortm import MortmForCausalLM
from mortm_hf.models.music_grid import COMMON_TIME, BarTable
from mortm_hf.models.music_names import DRUMS, METERS
from mortm_hf.models.token_automaton import Grammar, VocabularyTables
from mortm_hf.models.token_grammar import find_errors
from mortm_hf.models.token_plan import GenerationPlan
from mortm_hf.models.token_vocabulary import TokenKind
from mortm_hf.models.tokenization_mortm import MortmTokenizer
from tests.grammar_validator import validate


K = TokenKind
TOKENIZER = MortmTokenizer()
VOCAB = TOKENIZER.vocabulary
END = VOCAB["<TE>"]


def tiny_model(seed=0, vocab_size=None):
    torch.manual_seed(seed)
    config = MortmConfig(
        vocab_size=vocab_size or len(VOCAB),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        moe_intermediate_size=16,
        num_local_experts=2,
        num_experts_per_tok=1,
    )
    return MortmForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def table(meter, n_bars):
    return BarTable.regular(METERS.index(meter), n_bars)


def prompt_of(plan, *extra):
    header = [VOCAB.id(K.INSTRUMENT, i) for i in plan.instruments]
    return [1, VOCAB["<SYSTEM>"], *header, VOCAB["<TAG_END>"], *extra, VOCAB.id(plan.kind)]


def padded(prompts):
    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(p)) + p for p in prompts])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def generate(model, prompts, plans, new_tokens, **kwargs):
    """Answers (cut after <TE>) of one `generate` call under the grammar."""
    processor = MetricGrammarLogitsProcessor(TOKENIZER, plans, max_new_tokens=new_tokens)
    inputs = padded(prompts)
    kwargs = {"do_sample": True, "top_k": 0, **kwargs}
    out = model.generate(
        **inputs,
        logits_processor=LogitsProcessorList([processor]),
        max_new_tokens=new_tokens,
        pad_token_id=0,
        eos_token_id=END,
        **kwargs,
    )
    answers = out[:, inputs["input_ids"].shape[1] :].tolist()
    assert all(END in answer for answer in answers), "an answer was not finished within its budget"
    return [answer[: answer.index(END) + 1] for answer in answers]


def assert_as_asked(prompt, answer, plan):
    """Both validators, the exact bars, every asked instrument sounding."""
    names = [VOCAB.tokens[i] for i in prompt + answer]
    parsed = validate(names)
    assert find_errors(VOCAB, [prompt + answer], complete=True) == [None]
    if plan.kind == K.META:
        return parsed
    for track in parsed.tracks:
        assert [b.length for b in track.bars] == plan.bars.length.tolist()
        assert [b.meter for b in track.bars] == [METERS[m] for m in plan.bars.meter]
    if plan.kind == K.MGEN:
        assert [t.instrument for t in parsed.tracks] == [
            VOCAB.tokens[VOCAB.id(K.INSTRUMENT, i)] for i in plan.instruments
        ]
        assert all(any(b.notes for b in t.bars) for t in parsed.tracks)
    return parsed


def assorted_plans():
    meters = [(4, 4), (3, 4), (6, 8), (5, 4), (7, 8), (2, 2), (12, 8), (3, 16)]
    players = [(0,), (40, 41), (DRUMS,), (0, 0, DRUMS), (25, 33, 73), (127,)]
    velocity = itertools.cycle([None, True, False])
    plans = []
    for index in range(44):
        bars = 1 + index % 8
        meter = meters[index % 8]
        bar_table = table(meter, bars)
        if index % 5 == 0 and bars > 1:  # a change of meter and an irregular bar
            odd = BarTable.from_lengths(np.array([50]), np.array([METERS.index((9, 16))]))
            bar_table = BarTable.concat(bar_table.window(0, bars - 1), odd, table((3, 4), 2))
        tempo = None if index % 2 else np.full(bar_table.n_bars, index % 32)
        limits = {"pitch_range": (48, 72), "scale": (0, 2, 4, 5, 7, 9, 11)} if index % 3 == 0 else {}
        plans.append(GenerationPlan(K.MGEN, bar_table, players[index % 6], tempo, next(velocity), **limits))
    plans += [GenerationPlan(K.CGEN, table((4, 4), n)) for n in (1, 3, 8)]
    return [*plans, GenerationPlan(K.META)]


def test_48_sequences_from_random_weights(model):
    """Meters, instruments, bar counts, velocities, tempi, ranges; different plans and prompt lengths in one batch."""
    plans = assorted_plans()
    assert len(plans) == 48
    prompts = [prompt_of(plan) if plan.kind != K.META else [1, VOCAB["<META>"]] for plan in plans]
    answers = generate(model, prompts, plans, 240)
    for prompt, answer, plan in zip(prompts, answers, plans):
        parsed = assert_as_asked(prompt, answer, plan)
        notes = [note for track in parsed.tracks for bar in track.bars for note in bar.notes]
        if plan.velocity is not None:
            assert all((note[3] is not None) == plan.velocity for note in notes)
        if plan.pitch_range is not None and DRUMS not in plan.instruments:
            assert all(48 <= note[1] <= 72 and note[1] % 12 in plan.scale for note in notes)


def test_500_sequences_from_random_logits():
    """The processor under noise instead of a model, half of the prompts from real songs, tight budgets."""
    rng, songs = np.random.default_rng(5), Songs(TOKENIZER)
    made = [songs.prompt(rng) if i % 2 else from_nothing(TOKENIZER, rng) for i in range(500)]
    prompts, plans = [list(p) for p, _ in made], [plan for _, plan in made]
    grammar = Grammar(VocabularyTables(VOCAB), plans)
    new_tokens = int(grammar.closing_cost(grammar.start()).max()) + 20
    processor = MetricGrammarLogitsProcessor(TOKENIZER, plans, max_new_tokens=new_tokens)
    ids = padded(prompts)["input_ids"]
    start = ids.shape[1]
    while not (ids[:, start:] == END).any(1).all():
        scores = processor(ids, torch.zeros(500, len(VOCAB)))
        ids = torch.cat([ids, scores.exp().multinomial(1)], 1)
    assert ids.shape[1] <= start + new_tokens
    for prompt, plan, answer in zip(prompts, plans, ids[:, start:].tolist()):
        assert faults(TOKENIZER, prompt + answer[: answer.index(END) + 1], plan) == []


@pytest.mark.skipif(not (Path(mortm_hf.STARTER) / "config.json").exists(), reason="no starter in this tree")
def test_48_sequences_from_the_starter():
    starter = MortmForCausalLM.from_pretrained(mortm_hf.STARTER, dtype=torch.float32).eval()
    result = run(starter, TOKENIZER, 48, np.random.default_rng(0), Songs(TOKENIZER), batch=48, slack=80)
    assert result["sequences"] == 48
    assert result["faults"] == 0, result


PLANS = [
    GenerationPlan(K.MGEN, table((3, 4), 4), (0, DRUMS)),
    GenerationPlan(K.MGEN, table((4, 4), 2), (5, 6, 7)),
]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"do_sample": False},
        {"num_return_sequences": 3},
        {"num_beams": 4, "do_sample": False},
        {"num_beams": 3, "do_sample": True, "num_return_sequences": 2},
        {"cache_implementation": "static", "disable_compile": True},
        {"top_p": 0.9, "temperature": 0.7},
        {"use_cache": False},
    ],
    ids=lambda value: "-".join(value),
)
def test_modes_of_generate(model, kwargs):
    prompts = [prompt_of(plan) for plan in PLANS]
    answers = generate(model, prompts, PLANS, 90, **kwargs)
    copies = len(answers) // 2
    for index, answer in enumerate(answers):
        assert_as_asked(prompts[index // copies], answer, PLANS[index // copies])


@pytest.mark.parametrize("mode", ["assistant", "lookup"])
@pytest.mark.parametrize("do_sample", [False, True])
def test_assisted_decoding(model, mode, do_sample):
    """Drafts are scored several positions at a time and partly taken back."""
    kwargs = {"assistant_model": tiny_model(1)} if mode == "assistant" else {"prompt_lookup_num_tokens": 4}
    prompt = prompt_of(PLANS[0])
    (answer,) = generate(model, [prompt], PLANS[0], 90, do_sample=do_sample, **kwargs)
    assert_as_asked(prompt, answer, PLANS[0])
    if not do_sample:  # assisted greedy decoding is greedy decoding
        assert answer == generate(model, [prompt], PLANS[0], 90, do_sample=False)[0]


def test_every_path_gives_the_scores_of_a_fresh_processor():
    """Incremental steps, jumps, rewinds, reordered rows and new batches against a processor without any memory."""
    plans, rng = PLANS, np.random.default_rng(0)
    used = MetricGrammarLogitsProcessor(TOKENIZER, plans, max_new_tokens=120)
    ids = padded([prompt_of(plan) for plan in plans])["input_ids"].repeat_interleave(3, 0)

    def masked(processor, ids):
        return processor(ids, torch.zeros(ids.shape[0], len(VOCAB)))

    for step in range(70):
        scores = masked(used, ids)
        fresh = MetricGrammarLogitsProcessor(TOKENIZER, plans, max_new_tokens=120)
        assert torch.equal(scores, masked(fresh, ids)), step
        token = torch.multinomial(scores.softmax(-1), 1)
        ids = torch.cat([ids, token], 1)
        if step % 7 == 3:  # beams: rows of one prompt change places, some are dropped
            order = torch.as_tensor(np.concatenate([rng.integers(0, 3, 3), 3 + rng.integers(0, 3, 3)]))
            ids = ids[order]
        if step % 11 == 5:  # a rewind by four tokens
            ids = ids[:, :-4]
        if step % 13 == 7:  # a jump of two tokens at once
            peek = masked(MetricGrammarLogitsProcessor(TOKENIZER, plans, max_new_tokens=120), ids)
            ids = torch.cat([ids, torch.multinomial(peek.softmax(-1), 1)], 1)
    # A new call with other prompts and another batch size on the same processor.
    other = padded([prompt_of(plans[0]), prompt_of(plans[1])])["input_ids"]
    fresh = MetricGrammarLogitsProcessor(TOKENIZER, plans, max_new_tokens=120)
    assert torch.equal(masked(used, other), masked(fresh, other))
    assert torch.equal(masked(copy.deepcopy(used), other), masked(fresh, other))


def test_incremental_steps_do_not_replay(monkeypatch):
    processor = MetricGrammarLogitsProcessor(TOKENIZER, PLANS[0])
    ids = torch.tensor([prompt_of(PLANS[0])])
    processor(ids, torch.zeros(1, len(VOCAB)))
    recovered = []
    original = processor._recover
    monkeypatch.setattr(processor, "_recover", lambda ids: recovered.append(1) or original(ids))
    for token in [VOCAB["<INST_0>"], VOCAB["<SME>"], VOCAB["<TS_3/4>"], VOCAB["s_4"]]:
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
        processor(ids, torch.zeros(1, len(VOCAB)))
    assert recovered == []


def test_answers_can_be_continued_from_any_point(model):
    """Prompts that end inside the generated field, at different distances from their markers."""
    prompts = [prompt_of(plan) for plan in PLANS]
    answers = generate(model, prompts, PLANS, 90)
    begun = [p + a[:cut] for p, a, cut in zip(prompts, answers, (17, 5))]
    length = max(map(len, begun))
    processor = MetricGrammarLogitsProcessor(TOKENIZER, PLANS, max_length=length + 80)
    inputs = padded(begun)
    out = model.generate(
        **inputs, logits_processor=[processor], max_new_tokens=80, do_sample=True, pad_token_id=0, eos_token_id=END
    )
    for row, prompt, plan in zip(out.tolist(), prompts, PLANS):
        row = [i for i in row if i]
        assert_as_asked(prompt, row[len(prompt) : row.index(END) + 1], plan)


def test_exact_and_too_small_budgets(model):
    plan = GenerationPlan(K.MGEN, table((4, 4), 3), (0, 1), tempo=np.full(3, -1), velocity=True)
    prompt = prompt_of(plan)
    shortest = 2 * (2 + 3 * 2 + 3) + 1 + 1  # <INST> <ESEQ>, <SME> <BLANK>, a note for one blank; one meter, <TE>
    answer = generate(model, [prompt], plan, shortest)[0]
    assert len(answer) == shortest
    assert_as_asked(prompt, answer, plan)
    for limit in ({"max_new_tokens": 20}, {"max_length": len(prompt) + 20}):
        processor = MetricGrammarLogitsProcessor(TOKENIZER, plan, **limit)
        with pytest.raises(PromptError) as error:
            processor(torch.tensor([prompt]), torch.zeros(1, len(VOCAB)))
        assert error.value.code == "prompt.too_long"
        assert "20 tokens" in str(error.value)


def test_plan_none_reads_the_prompt_and_velocity_follows_the_context(model):
    past = "<PAST_M> <INST_7> <SME> <TS_3/4> s_0 p_60 d_6 v_62 <ESEQ> <TAG_END>".split()
    header = "<EOS> <SYSTEM> <INST_7> <GEN_MEASURE_COUNT_3> <TAG_END>".split()
    prompt = [VOCAB[t] for t in [*header, *past, "<MGEN>"]]
    (answer,) = generate(model, [prompt], None, 120)
    parsed = validate([VOCAB.tokens[i] for i in prompt + answer])
    assert [b.meter for b in parsed.tracks[0].bars] == [(3, 4)] * 3
    assert all(n[3] is not None for b in parsed.tracks[0].bars for n in b.notes)
    plan = GenerationPlan(K.MGEN, table((3, 4), 3), (7,))  # undecided: the given music has velocities
    (answer,) = generate(model, [prompt], plan, 120)
    parsed = validate([VOCAB.tokens[i] for i in prompt + answer])
    assert all(n[3] is not None for b in parsed.tracks[0].bars for n in b.notes)


def test_a_prompt_object_is_a_plan():
    prompt = TOKENIZER.prompt(instruments=["piano", "drums"], bars=2, meter="3/4")
    ids = TOKENIZER.encode_prompt(prompt)
    processor = MetricGrammarLogitsProcessor(TOKENIZER, prompt)
    assert processor.plans[0].instruments == (0, DRUMS)
    scores = processor(torch.tensor([ids]), torch.zeros(1, len(VOCAB)))
    assert torch.isfinite(scores[0]).nonzero().flatten().tolist() == [VOCAB["<INST_0>"]]


def test_wrong_prompts_are_refused():
    zeros = torch.zeros(1, len(VOCAB))
    with pytest.raises(PromptError, match="row 0"):
        MetricGrammarLogitsProcessor(TOKENIZER, PLANS[0])(torch.tensor([[1, 8]]), zeros)
    with pytest.raises(PromptError) as error:
        MetricGrammarLogitsProcessor(TOKENIZER, PLANS[0])(torch.tensor([[1, VOCAB["<CGEN>"]]]), zeros)
    assert error.value.code == "prompt.task"
    with pytest.raises(PromptError):
        MetricGrammarLogitsProcessor(TOKENIZER, PLANS)(torch.tensor([prompt_of(PLANS[0])]), zeros)
    with pytest.raises(PromptError):
        MetricGrammarLogitsProcessor(TOKENIZER, [])


def test_finished_rows_and_padded_vocabularies():
    processor = MetricGrammarLogitsProcessor(TOKENIZER, PLANS[0])
    wide = len(VOCAB) + 38
    track = "<SME> {} s_0 p_60 d_6 <SME> <BLANK> <SME> <BLANK> <SME> <BLANK> <ESEQ>"
    answer = f"<INST_0> {track.format('<TS_3/4>')} <INST_DRUMS> {track.format('')} <TE>".split()
    ids = torch.tensor([prompt_of(PLANS[0]) + [VOCAB[t] for t in answer]])
    for _ in range(3):
        scores = processor(ids, torch.zeros(1, wide))
        assert torch.isfinite(scores[0]).nonzero().flatten().tolist() == [0]
        ids = torch.cat([ids, torch.zeros(1, 1, dtype=torch.long)], 1)
    # An illegal row (a beam of probability zero) keeps finite scores instead of failing.
    ids[0, -4] = VOCAB["s_3"]
    assert torch.isfinite(processor(ids, torch.zeros(1, wide))).any()


def test_upstream_dialect_with_its_own_vocabulary():
    tokenizer = MortmTokenizer(preset="pro@4.6.18", dialect="mortm")
    vocab = tokenizer.vocabulary
    model = tiny_model(vocab_size=650)
    plan = GenerationPlan(K.MGEN, BarTable.regular(COMMON_TIME, 4), (int(vocab.value[vocab["<INST_SAX>"]]),))
    prompt = [vocab[t] for t in "<EOS> <SYSTEM> <INST_SAX> k_CM <TAG_END> <MGEN>".split()]
    processor = MetricGrammarLogitsProcessor(tokenizer, plan, max_length=len(prompt) + 60)
    out = model.generate(
        torch.tensor([prompt] * 4),
        logits_processor=[processor],
        max_new_tokens=60,
        do_sample=True,
        pad_token_id=0,
        eos_token_id=vocab["<TE>"],
    )
    for row in out.tolist():
        parsed = validate([vocab.tokens[i] for i in row], "mortm", ordered=True)
        assert len(parsed.tracks[0].bars) == 4


def test_bar_streamer_yields_every_bar_once(model):
    prompts = padded([prompt_of(plan) for plan in PLANS])
    streamer = BarStreamer(TOKENIZER, timeout=60)
    processor = MetricGrammarLogitsProcessor(TOKENIZER, PLANS, max_new_tokens=90)
    result = {}

    def work():
        result["ids"] = model.generate(
            **prompts,
            streamer=streamer,
            logits_processor=[processor],
            max_new_tokens=90,
            do_sample=True,
            pad_token_id=0,
            eos_token_id=END,
        )

    thread = Thread(target=work)
    thread.start()
    bars = list(streamer)
    thread.join()
    for row, plan in enumerate(PLANS):
        mine = [b for b in bars if b.row == row]
        places = [(b.track, b.bar) for b in mine]
        assert places == list(itertools.product(range(len(plan.instruments)), range(plan.bars.n_bars)))
        assert [b.instrument for b in mine] == list(np.repeat(plan.instruments, plan.bars.n_bars))
        start = prompts["input_ids"].shape[1]
        answer = [i for i in result["ids"][row, start:].tolist() if i not in (0, END, VOCAB["<ESEQ>"])]
        answer = [i for i in answer if VOCAB.kind[i] != K.INSTRUMENT]
        assert [i for b in mine for i in b.ids.tolist()] == answer


@pytest.mark.gpu
def test_on_a_device(model):
    device_model = copy.deepcopy(model).to("cuda")
    inputs = {k: v.to("cuda") for k, v in padded([prompt_of(plan) for plan in PLANS]).items()}
    processor = MetricGrammarLogitsProcessor(TOKENIZER, PLANS, max_new_tokens=90)
    out = device_model.generate(
        **inputs, logits_processor=[processor], max_new_tokens=90, do_sample=True, pad_token_id=0, eos_token_id=END
    )
    for row, plan in zip(out[:, inputs["input_ids"].shape[1] :].tolist(), PLANS):
        assert_as_asked(prompt_of(plan), row[: row.index(END) + 1], plan)
