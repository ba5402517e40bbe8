"""Fast decoding on a CPU: the eager model's logits in every variant, the same music, named refusals."""

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from mortm_hf import (
    BertmConfig,
    ChordEstimationPipeline,
    MetricGrammarLogitsProcessor,
    MidiGenerationPipeline,
    MortmConfig,
    MortmForCausalLM,
    MortmTokenizer,
)
from mortm_hf.models.generation_compiled import missing
from mortm_hf.models.generation_cpu import (
    ACTIVATIONS,
    FastDecoder,
    decoder_for,
    parse_precision,
    refusal,
    unsupported_arguments,
)
from mortm_hf.models.modeling_bertm import BertmForMaskedLM
from tests.models.test_pipeline_mortm import check, make_model, make_song


pytestmark = pytest.mark.skipif(missing() is not None, reason="numba is not installed")

SIZES = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    moe_intermediate_size=16,
    shared_expert_intermediate_size=16,
    num_local_experts=6,
    max_position_embeddings=256,
    eos_token_id=2,
)
BIASES = dict(attention_bias=True, attention_output_bias=True, mlp_bias=True, lm_head_bias=True)
VARIANTS = {
    "default": {},
    "grouped heads": dict(num_key_value_heads=2),
    "layer norm, all biases, dense and sparse": dict(
        norm_type="layernorm", mlp_layer_types=["dense", "sparse"], tie_word_embeddings=False, **BIASES
    ),
    "dynamic tanh, ALiBi, one key head": dict(
        norm_type="dynamic_tanh", position_embedding_type="alibi", num_key_value_heads=1
    ),
    "ALiBi, five heads": dict(position_embedding_type="alibi", hidden_size=60, num_attention_heads=5),
    "sigmoid, groups, bias balancing, scaling": dict(
        scoring_func="sigmoid", n_group=3, topk_group=2, router_balancing="bias", routed_scaling_factor=2.5
    ),
    "bias balancing in training only": dict(router_balancing="bias", router_bias_in_eval=False),
    "softmax over all, no shared expert": dict(norm_topk_prob=False, shared_expert_intermediate_size=0),
    "groups with softmax, three experts": dict(n_group=2, topk_group=1, num_experts_per_tok=3),
    "another width of the shared expert, biases": dict(shared_expert_intermediate_size=24, mlp_bias=True),
    "dense, plain, gelu": dict(mlp_layer_types=["dense", "dense"], gated_mlp=False, hidden_act="gelu"),
    "yarn": dict(
        rope_parameters=dict(
            rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=64
        )
    ),
    "linear positions": dict(rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=2.0)),
}  # fmt: skip


def random_model(seed=0, **changes) -> MortmForCausalLM:
    """All parameters and the router's bias random, large enough for every one of them to matter."""
    model = MortmForCausalLM(MortmConfig(**{**SIZES, **changes})).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in name and "weight" in name else 0.15 * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
    return model


def batch(rows, length, padding=()):
    """Random ids [rows, length] and the mask of `padding` tokens on the left of each row."""
    ids = torch.randint(3, SIZES["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, count in enumerate(padding):
        ids[row, :count], mask[row, :count] = 0, 0
    return ids, mask


@torch.no_grad()
def eager_logits(model, ids, mask):
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    return model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits


def stepwise_logits(model, ids, mask, given, precision="fp32"):
    """Logits [rows, length - given + 1, V] of reading `given` tokens and then one at a time."""
    state = FastDecoder(model, precision).start(ids[:, :given], mask[:, :given], ids.shape[1] - given)
    found = [state.logits.clone()]
    found += [state.step(ids[:, i]).clone() for i in range(given, ids.shape[1])]
    return torch.stack(found, dim=1)


# -------------------------------------------------------------------------------------------------------------- logits


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("padding", [(0,), (0, 3, 9, 0, 5)], ids=["one row", "padded rows"])
def test_logits_are_the_models(name, padding):
    model = random_model(**VARIANTS[name])
    ids, mask = batch(len(padding), 40, padding)
    expected = eager_logits(model, ids, mask)[:, 11:]
    found = stepwise_logits(model, ids, mask, 12)
    assert expected.std() > 0.05
    assert (found - expected).abs().max() <= 2e-5


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    model = random_model(hidden_act=name)
    ids, mask = batch(1, 20)
    assert (stepwise_logits(model, ids, mask, 12) - eager_logits(model, ids, mask)[:, 11:]).abs().max() <= 2e-5


@pytest.mark.parametrize("name", ["default", "layer norm, all biases, dense and sparse"])
def test_weights_of_half_precision_are_kept_in_it(name):
    model = random_model(**VARIANTS[name]).bfloat16().float()
    ids, mask = batch(5, 40, (0, 3, 9, 0, 5))
    assert FastDecoder(model).arrays.weights.dtype == FastDecoder(model).arrays.tables.dtype == np.uint16
    assert (stepwise_logits(model, ids, mask, 12) - eager_logits(model, ids, mask)[:, 11:]).abs().max() <= 2e-5


def test_threads_and_rows_that_have_ended():
    model = random_model()
    ids, mask = batch(5, 20, (0, 3, 9, 0, 5))
    one, two = (FastDecoder(model, threads=n).start(ids[:, :12], mask[:, :12], 8) for n in (1, 3))
    for at in range(12, 20):
        expected = one.step(ids[:, at]).clone()
        assert (two.step(ids[:, at]) - expected).abs().max() <= 2e-6
    state = FastDecoder(model).start(ids[:, :12], mask[:, :12], 8)
    ended = state.logits[[0, 2, 4]].clone()
    state.advance(ids[:, 12].numpy().copy(), np.array([1, 3]))
    found = state.logits
    expected = FastDecoder(model).start(ids[:, :12], mask[:, :12], 8).step(ids[:, 12])
    assert torch.equal(found[[0, 2, 4]], ended) and (found - expected)[[1, 3]].abs().max() <= 2e-6


def test_rows_do_not_depend_on_their_neighbours():
    model = random_model()
    ids, mask = batch(4, 30, (0, 4, 8, 2))
    together = stepwise_logits(model, ids, mask, 10, "int8")
    for row, skip in enumerate((0, 4, 8, 2)):
        alone = stepwise_logits(model, ids[row : row + 1, skip:], mask[row : row + 1, skip:], 10 - skip, "int8")
        # the prompts are read in fp32 and bf16 rounding may tip over: far below the error of another row's scale
        assert (together[row] - alone[0]).abs().max() < 2e-2


def rounded(model: MortmForCausalLM) -> MortmForCausalLM:
    """The model with the weights of layers and experts rounded to int8 for each output channel."""
    copy = MortmForCausalLM(model.config).eval()
    copy.load_state_dict(model.state_dict())
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            if name.endswith(("_proj.weight", "gate_up_proj", "experts.down_proj")):
                scale = (parameter.abs().amax(-1, keepdim=True) / 127).bfloat16().float()
                parameter.copy_((parameter / scale).round().clamp(-127, 127) * scale)
    return copy


@pytest.mark.parametrize("padding", [(0,), (0, 3, 5)], ids=["one row", "padded rows"])
@pytest.mark.parametrize("name", ["default", "layer norm, all biases, dense and sparse"])
def test_int8_is_the_model_with_rounded_weights(name, padding):
    # every expert is chosen, for a rounding that tips a choice over would hide the others
    model = random_model(**VARIANTS[name], num_experts_per_tok=SIZES["num_local_experts"])
    ids, mask = batch(len(padding), 24, padding)
    exact, int8 = eager_logits(model, ids, mask), eager_logits(rounded(model), ids, mask)
    # one token of prompt: nearly all is read with int8 weights
    given = 1 + max(padding)
    found = stepwise_logits(model, ids, mask, given, "int8")[:, 1:]
    exact, int8 = exact[:, given:], int8[:, given:]
    assert (found - exact).abs().max() < 0.1 * exact.std()
    assert 0 < (found - int8).pow(2).mean() < (found - exact).pow(2).mean() * 1.5
    assert FastDecoder(model, "int8").arrays.weights.dtype == np.int8


def test_no_room_is_an_error():
    state = FastDecoder(random_model()).start(batch(1, 5)[0], None, 1)
    state.step(torch.tensor([3]))
    with pytest.raises(ValueError, match="max_new_tokens"):
        state.step(torch.tensor([3]))


# ------------------------------------------------------------------------------------------------------------ generate


class Recorder(BaseStreamer):
    def __init__(self):
        self.values, self.ended = [], 0

    def put(self, value):
        self.values.append(value.clone())

    def end(self):
        self.ended += 1


@pytest.mark.parametrize("padding", [(0,), (0, 7, 2)], ids=["one row", "padded rows"])
def test_greedy_is_generates(padding):
    model = random_model(num_key_value_heads=2)
    ids, mask = batch(len(padding), 12, padding)
    options = dict(attention_mask=mask, max_new_tokens=40, pad_token_id=0)
    free = model.generate(ids, do_sample=False, eos_token_id=None, **options)
    ends = [int(row[20 + 5 * i]) for i, row in enumerate(free)]  # so that all rows end, at different places
    theirs, ours = Recorder(), Recorder()
    expected = model.generate(ids, do_sample=False, eos_token_id=ends, streamer=theirs, **options)
    found = FastDecoder(model).generate(ids, mask, max_new_tokens=40, eos_token_id=ends, pad_token_id=0, streamer=ours)
    assert torch.equal(found, expected) and found.shape[1] < 52
    assert ours.ended == theirs.ended == 1
    assert all(torch.equal(a, b) for a, b in zip(ours.values, theirs.values, strict=True))
    assert not found.is_inference()


def test_without_end_all_room_is_used_and_criteria_stop():
    model, (ids, mask) = random_model(), batch(2, 6)
    decoder = FastDecoder(model)
    assert decoder.generate(ids, mask, max_new_tokens=9, eos_token_id=[]).shape == (2, 15)
    stop = lambda ids, scores, **_: torch.full((len(ids),), ids.shape[1] >= 10)
    assert decoder.generate(ids, mask, max_new_tokens=9, eos_token_id=[], stopping_criteria=[stop]).shape == (2, 10)


def test_grammar_is_obeyed_as_by_generate():
    tokenizer, model = MortmTokenizer(), make_model()
    prompts = [tokenizer.prompt(bars=2, instruments=names) for names in (["piano"], ["violin", "drums"])]
    rows = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + list(row) for row in rows])
    mask = (ids != 0).long()
    made = []
    for decoder in (model, FastDecoder(model)):
        grammar = MetricGrammarLogitsProcessor(tokenizer, prompts, max_new_tokens=150)
        options = dict(do_sample=False) if decoder is model else {}
        made.append(
            decoder.generate(
                input_ids=ids,
                attention_mask=mask,
                logits_processor=LogitsProcessorList([grammar]),
                max_new_tokens=150,
                pad_token_id=0,
                eos_token_id=tokenizer.eos_token_id,
                **options,
            )
        )
    assert torch.equal(*made)


# ----------------------------------------------------------------------------------------------------------- pipelines


@pytest.fixture(scope="module")
def song():
    return make_song()


@pytest.fixture(scope="module")
def tokenizer():
    return MortmTokenizer()


@pytest.fixture(scope="module")
def pipe(tokenizer):
    return MidiGenerationPipeline(model=make_model(), tokenizer=tokenizer, task="midi-generation", device="cpu")


@pytest.mark.parametrize(
    "request_",
    [
        dict(bars=2, seed=0),
        dict(bars=2, do_sample=False, seed=0),
        dict(bars=18, window=6, instruments=["piano"], past=2, seed=1),
        dict(bars=2, seed=2, num_return_sequences=3, top_k=20, temperature=0.9, top_p=0.9),
        dict(infill=(4, 6), seed=3, min_p=0.01),
    ],
    ids=["sampled", "greedy", "windows", "several", "infill"],
)
def test_same_music(pipe, tokenizer, song, request_):
    expected = pipe(song, progress=False, fast=False, **request_)
    found = pipe(song, progress=False, fast=True, **request_)
    assert [r["midi"] for r in found] == [r["midi"] for r in expected]
    for result in found:
        check(result, tokenizer)


def test_lists_and_callbacks(pipe, song):
    bars = {False: [], "fp32": []}
    results = {}
    for fast, events in bars.items():
        out = pipe([song, None], bars=2, seed=5, batch_size=2, callback=events.append, fast=fast)
        results[fast] = [r["midi"] for answers in out for r in answers]
    assert results[False] == results["fp32"] and len(bars[False]) == len(bars["fp32"]) > 0
    assert [e["token_ids"] for e in bars[False]] == [e["token_ids"] for e in bars["fp32"]]


def test_int8_is_grammatical_and_repeatable(tokenizer, song):
    torch.manual_seed(0)
    config = MortmConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, num_local_experts=2, max_position_embeddings=2048,
    )  # fmt: skip
    model = MortmForCausalLM(config).eval()
    pipe = MidiGenerationPipeline(model=model, tokenizer=tokenizer, task="midi-generation", device="cpu", fast="int8")
    first, again = (pipe(song, bars=3, seed=4, num_return_sequences=2) for _ in range(2))
    assert [r["midi"] for r in first] == [r["midi"] for r in again]
    for result in first:
        check(result, tokenizer)
    assert list(pipe._decoders) == ["int8"]
    assert pipe(song, bars=1, seed=4, fast=False)[0]["report"]["complete"]  # a call overrides the default


def test_chords(tokenizer, song):
    estimator = ChordEstimationPipeline(model=make_model(), tokenizer=tokenizer, task="chord-estimation", device="cpu")
    assert (
        estimator(song, bars=(0, 3), fast=True)[0]["chords"] == estimator(song, bars=(0, 3), fast=False)[0]["chords"]
    )


def test_half_precision_models_decode_in_fp32(tokenizer, song):
    model = make_model().to(torch.bfloat16)
    pipe = MidiGenerationPipeline(model=model, tokenizer=tokenizer, task="midi-generation", device="cpu")
    check(pipe(song, bars=1, seed=0, fast=True)[0], tokenizer)
    # bfloat16 holds these weights exactly; sums are fp32
    assert pipe._decoders["fp32"].arrays.weights.dtype == np.uint16


def test_decoder_is_kept_until_the_weights_change(tokenizer, song):
    model = make_model()
    pipe = MidiGenerationPipeline(model=model, tokenizer=tokenizer, task="midi-generation", device="cpu")
    pipe(song, bars=1, seed=0, fast=True)
    decoder = pipe._decoders["fp32"]
    pipe(song, bars=1, seed=1, fast="fp32")
    assert pipe._decoders["fp32"] is decoder
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(-3.0)
    expected = pipe(song, bars=1, seed=0, do_sample=False, fast=False)[0]["midi"]
    assert pipe(song, bars=1, seed=0, do_sample=False, fast=True)[0]["midi"] == expected
    assert pipe._decoders["fp32"] is not decoder


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    "arguments, names",
    [
        (dict(num_beams=2, do_sample=False), "num_beams"),
        (dict(repetition_penalty=1.3), "repetition_penalty"),
        (dict(assistant_model=make_model()), "assistant_model"),
        (dict(cache_implementation="static"), "cache_implementation"),
        (dict(generation_config=GenerationConfig(no_repeat_ngram_size=3)), "no_repeat_ngram_size"),
        (dict(fast="int4"), "int4"),
    ],
)
def test_what_it_does_not_do_is_refused_by_name(pipe, song, arguments, names):
    with pytest.raises(ValueError, match=names) as caught:
        pipe(song, **{"bars": 1, "seed": 0, "fast": True, **arguments})
    assert caught.value.code == "prompt.argument"


def test_neutral_arguments_are_not_refused():
    config = GenerationConfig(do_sample=True, top_p=0.9, repetition_penalty=1.0, num_beams=1, use_cache=True)
    assert unsupported_arguments(config, {"output_scores": False, "streamer": object()}) == []


def test_models_it_does_not_know():
    assert refusal(random_model()) is None
    bertm = BertmForMaskedLM(BertmConfig(**{k: SIZES[k] for k in ("vocab_size", "hidden_size", "num_hidden_layers")}))
    assert "BertmForMaskedLM" in refusal(bertm.eval())
    assert "eval()" in refusal(random_model().train())
    assert "meta" in refusal(random_model().to("meta"))
    assert "is_causal" in refusal(random_model(is_causal=False))
    dynamic = dict(rope_type="dynamic", rope_theta=1e4, factor=2.0)
    assert "dynamic" in refusal(random_model(rope_parameters=dynamic))
    assert "relu6" in refusal(random_model(hidden_act="relu6"))
    with pytest.raises(ValueError, match="precision"):
        FastDecoder(random_model(), "int3")


def test_adapters_must_be_merged_first():
    peft = pytest.importorskip("peft")
    for target in ("q_proj", "gate_proj"):
        model = random_model(seed=3)
        model.add_adapter(peft.LoraConfig(target_modules=[target], r=2))
        with pytest.raises(ValueError, match=f"{target}.*merge_and_unload"):
            FastDecoder(model.eval())


def test_when_a_call_gets_a_decoder(monkeypatch):
    model, known = random_model(), {}
    decoder = decoder_for(model, None, [], known)
    assert decoder is known["fp32"] is decoder_for(model, True, [], known) and list(known) == ["fp32"]
    assert decoder_for(model, False, [], known) is None
    assert decoder_for(model, "int8", [], known).precision == "int8"
    # beams, half precision, other models: generate() without a word, unless a decoder was asked for
    assert decoder_for(model, None, ["num_beams"], known) is None
    assert decoder_for(random_model().bfloat16(), None, [], {}) is None
    assert decoder_for(random_model(hidden_act="relu6"), None, [], {}) is None
    with pytest.raises(ValueError, match="num_beams"):
        decoder_for(model, True, ["num_beams"], known)
    with pytest.raises(ValueError, match="relu6"):
        decoder_for(random_model(hidden_act="relu6"), True, [], {})
    monkeypatch.setattr("mortm_hf.models.generation_cpu.missing", lambda: "fast decoding needs numba")
    assert decoder_for(model, True, [], known) is decoder_for(model, None, [], known) is None
    assert "numba" in refusal(model)


def test_padding_on_the_right_is_refused():
    ids, mask = batch(2, 8)
    mask[1, -2:] = 0
    with pytest.raises(ValueError, match="left"):
        FastDecoder(random_model()).start(ids, mask, 4)


def test_words_of_the_argument():
    assert [parse_precision(x) for x in (None, False, True, "fp32", "int8")] == [None, None, "fp32", "fp32", "int8"]
    with pytest.raises(ValueError, match="fast must be"):
        parse_precision(8)
