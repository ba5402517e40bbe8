"""The model around its attention: upstream's numbers, routing, training, generation modes, saving and loading."""

import fnmatch
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, StaticCache
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from upstream_loader import upstream_config, upstream_weights

from mortm_hf.models.attention_mortm import alibi_slopes
from mortm_hf.models.configuration_mortm import MortmConfig
from mortm_hf.models.modeling_mortm import (
    MortmExperts,
    MortmForCausalLM,
    MortmForSequenceClassification,
    MortmModel,
    MortmTopKRouter,
    choose_experts,
    load_balancing_loss,
)
from mortm_hf.models.token_vocabulary import TABLE_SIZE


UPSTREAM = Path(__file__).parents[1] / "fixtures" / "upstream_models"


def tiny_config(**options) -> MortmConfig:
    defaults = dict(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=24,
        num_local_experts=4,
        initializer_range=0.1,
        eos_token_id=2,
    )
    return MortmConfig(**{**defaults, **options})


def tiny(kind=MortmForCausalLM, experts="eager", **options):
    torch.manual_seed(0)
    model = kind(tiny_config(**options)).eval()
    model.set_experts_implementation(experts)
    return model


def tokens(*shape):
    return torch.randint(3, 97, shape)


# --- the mathematics


@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("case", sorted(path.name for path in UPSTREAM.glob("mortm*")))
def test_upstream_checkpoints(case, implementation, experts):
    """Logits of upstream's own code, for whole sequences (right padded) and single decoding steps."""
    want = np.load(UPSTREAM / case / "expected.npz")
    config = upstream_config(UPSTREAM / case, str(want["version"]))
    config.eos_token_id = None
    model = MortmForCausalLM(config).eval()
    model.load_state_dict(upstream_weights(UPSTREAM / case), strict=True)
    model.set_attn_implementation(implementation)
    model.set_experts_implementation(experts)
    ids, mask = torch.tensor(want["input_ids"]), torch.tensor(want["attention_mask"])
    places = torch.tensor(want["positions"])
    with torch.no_grad():
        logits = (model(ids, attention_mask=mask).logits * mask[..., None])[:, places]
        assert (logits - torch.tensor(want["logits"])).abs().max() < 1e-4
        if "decode_logits" not in want:  # of the checkpoint with LoRA, whole sequences only are stored
            return
        for row, keep, steps in zip(ids, mask.bool(), torch.tensor(want["decode_logits"]), strict=True):
            row = row[keep][None]
            cache = model(row[:, :-8], use_cache=True).past_key_values
            got = [
                model(row[:, i : i + 1], past_key_values=cache).logits[0, 0]
                for i in range(row.shape[1] - 8, row.shape[1])
            ]
            assert (torch.stack(got)[want["decode_steps"]] - steps).abs().max() < 1e-4


def naive_moe(block, x, config):
    """The routed layer written out token by token."""
    rows = []
    for token in x:
        logits = block.gate.weight @ token
        scores = logits.softmax(0) if config.scoring_func == "softmax" else logits.sigmoid()
        choice = scores.clone()
        if config.router_balancing == "bias":
            choice = choice + block.gate.e_score_correction_bias
        if config.n_group > 1:
            groups = choice.reshape(config.n_group, -1)
            keep = groups.max(1).values.topk(config.topk_group).indices
            for group in range(config.n_group):
                if group not in keep:
                    groups[group] = -1e9
            choice = groups.reshape(-1)
        chosen = choice.topk(config.num_experts_per_tok).indices
        weights = scores[chosen]
        if config.norm_topk_prob:
            weights = weights / (weights.sum() + config.norm_topk_eps)
        out = torch.zeros_like(token)
        for expert, weight in zip(chosen, weights * config.routed_scaling_factor, strict=True):
            inner = block.experts.gate_up_proj[expert] @ token
            if config.mlp_bias:
                inner = inner + block.experts.gate_up_proj_bias[expert]
            gate, up = inner.chunk(2)
            y = block.experts.down_proj[expert] @ (F.silu(gate) * up)
            out = out + weight * (y + block.experts.down_proj_bias[expert] if config.mlp_bias else y)
        if block.shared_experts is not None:
            shared = block.shared_experts
            out = out + shared.down_proj(F.silu(shared.gate_proj(token)) * shared.up_proj(token))
        rows.append(out)
    return torch.stack(rows)


@pytest.mark.parametrize("experts", ["eager", "grouped_mm", "batched_mm", "padded_mm"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(norm_topk_prob=False, shared_expert_intermediate_size=0),
        dict(scoring_func="sigmoid", routed_scaling_factor=2.5, router_balancing="bias"),
        dict(num_local_experts=6, n_group=3, topk_group=2, norm_topk_eps=1e-6, mlp_bias=True),
        dict(num_local_experts=6, num_experts_per_tok=3, scoring_func="sigmoid", norm_topk_prob=False),
    ],
    ids=["default", "raw", "sigmoid bias", "groups biases", "raw sigmoid"],
)
def test_routed_layer_is_what_it_says(options, experts):
    model = tiny(MortmModel, experts, **options)
    block = model.layers[0].mlp
    with torch.no_grad():
        for name, tensor in [*block.named_parameters(), *block.named_buffers()]:
            if "bias" in name:
                tensor.normal_(std=0.3)
        x = torch.randn(2, 9, 32)
        want = naive_moe(block, x.reshape(18, 32), model.config).reshape(2, 9, 32)
        torch.testing.assert_close(block(x), want, atol=1e-5, rtol=1e-4)


def test_eager_experts_leave_out_other_ranks_experts():
    """Under expert parallelism an index equal to the number of experts means "not mine"."""
    experts = tiny(MortmModel).layers[0].mlp.experts
    x, index, weights = torch.randn(5, 32), torch.randint(0, 4, (5, 2)), torch.rand(5, 2)
    index[:, 1], index[3, 0] = 4, 4
    got = experts(x, index, weights)
    assert (got[3] == 0).all()
    one = experts(x, index[:, :1].clamp(max=3), weights[:, :1])
    torch.testing.assert_close(got[[0, 1, 2, 4]], one[[0, 1, 2, 4]])


def test_experts_gradients_agree():
    gradients = {}
    for experts in ("eager", "grouped_mm"):
        model = tiny(experts=experts).train()
        ids = torch.arange(3, 63).reshape(2, 30)
        model(ids, labels=ids).loss.backward()
        gradients[experts] = {name: p.grad for name, p in model.named_parameters()}
    for name, gradient in gradients["eager"].items():
        torch.testing.assert_close(gradient, gradients["grouped_mm"][name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
def test_autocast_reaches_the_experts(experts, monkeypatch):
    import transformers.integrations.moe as moe

    seen = set()
    linear, grouped = F.linear, moe._grouped_mm

    def spy_linear(x, weight, bias=None):
        y = linear(x, weight, bias)
        if weight.shape in {(32, 32), (32, 16)} and not isinstance(weight, torch.nn.Parameter):  # a slice of experts
            seen.add(y.dtype)
        return y

    def spy_grouped(x, weight, offs):
        seen.add(weight.dtype)
        return grouped(x, weight, offs)

    monkeypatch.setattr(F, "linear", spy_linear)
    monkeypatch.setattr(moe, "_grouped_mm", spy_grouped)
    model = tiny(experts=experts).train()
    ids = tokens(2, 20)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(ids, labels=ids)
    output.loss.backward()
    assert seen == {torch.bfloat16}
    assert model.model.layers[0].mlp.experts.down_proj.grad.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(output.logits.float(), model(ids).logits, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("padded", [False, True])
def test_balancing_loss_is_the_switch_transformer_one(padded):
    config = tiny_config()
    logits = tuple(torch.randn(24, 4) for _ in range(3))
    mask = (torch.arange(12) < torch.tensor([[12], [7]])).long() if padded else None
    want = load_balancing_loss_func(logits, num_experts=4, top_k=2, attention_mask=mask)
    torch.testing.assert_close(load_balancing_loss(logits, config, mask), want)
    uniform = tuple(torch.zeros(24, 4) for _ in range(3))
    torch.testing.assert_close(load_balancing_loss(uniform, config), torch.tensor(2.0))


def test_balancing_loss_is_part_of_training_only():
    model = tiny(mlp_layer_types=["dense", "sparse"], router_aux_loss_coef=0.5)
    ids = tokens(2, 20)
    plain = model(ids, labels=ids)
    assert plain.aux_loss is None and plain.router_logits is None
    asked = model(ids, labels=ids, output_router_logits=True)
    assert len(asked.router_logits) == 1 and asked.router_logits[0].shape == (40, 4)
    torch.testing.assert_close(asked.loss, plain.loss + 0.5 * asked.aux_loss)
    model.train()
    trained = model(ids, labels=ids)
    torch.testing.assert_close(trained.loss, asked.loss)
    assert trained.router_logits is None
    model.config.router_balancing = "none"
    torch.testing.assert_close(model(ids, labels=ids).loss, plain.loss)


def test_bias_balancing_evens_the_load():
    model = tiny(MortmModel, router_balancing="bias", router_bias_update_rate=0.02, num_hidden_layers=1).train()
    router, experts = model.layers[0].mlp.gate, 4
    with torch.no_grad():
        router.weight[0] *= 4  # one expert far too attractive or unattractive
    ids = tokens(4, 64)

    def spread():
        with torch.no_grad():
            index = router(model.input_states)[2]
        return index.flatten().bincount(minlength=experts).float().std().item()

    handle = router.register_forward_pre_hook(lambda _, args: setattr(model, "input_states", args[0].detach()))
    model(ids)
    handle.remove()
    before = spread()
    for _ in range(60):
        model(ids)
    assert spread() < 0.3 * before
    bias = router.e_score_correction_bias.clone()
    model.eval()(ids)
    assert torch.equal(bias, router.e_score_correction_bias)
    assert "layers.0.mlp.gate.e_score_correction_bias" in model.state_dict()
    assert "layers.0.mlp.gate.expert_counts" not in model.state_dict()


def test_bias_outside_training_is_a_choice():
    for used in (True, False):
        router = MortmTopKRouter(tiny_config(router_balancing="bias", router_bias_in_eval=used)).eval()
        torch.nn.init.normal_(router.weight)
        router.e_score_correction_bias[2] = 5.0
        index = router(torch.randn(200, 32))[2]
        assert bool((index == 2).any(-1).all()) == used


def test_groups_of_experts():
    scores = torch.tensor([[0.9, 0.0, 0.5, 0.6, 0.8, 0.7]])
    config = tiny_config(num_local_experts=6, n_group=3, topk_group=1)
    assert set(choose_experts(scores, config)[0].tolist()) == {0, 1}
    config = tiny_config(num_local_experts=6, n_group=3, topk_group=2)
    assert set(choose_experts(scores, config)[0].tolist()) == {0, 4}


# --- training


@pytest.mark.parametrize("positions", ["rope", "alibi"])
@pytest.mark.parametrize("balancing", ["loss", "bias"])
def test_gradient_checkpointing_changes_nothing(positions, balancing):
    ids, results = tokens(2, 40), []
    for checkpointing in (False, True):
        model = tiny(position_embedding_type=positions, router_balancing=balancing).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        for _ in range(2):  # the second pass uses a bias that the first one moved
            model.zero_grad()
            loss = model(ids, labels=ids).loss
            loss.backward()
        results.append((loss, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(results[0][0], results[1][0])
    for one, other in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm", "dynamic_tanh"])
def test_every_parameter_learns(norm):
    model = tiny(
        norm_type=norm,
        position_embedding_type="alibi",
        mlp_layer_types=["sparse", "dense"],
        attention_bias=True,
        attention_output_bias=True,
        mlp_bias=True,
        lm_head_bias=True,
        tie_word_embeddings=False,
        hidden_dropout=0.1,
        activation_dropout=0.1,
        attention_dropout=0.1,
    ).train()
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=5e-3), []
    ids = tokens(4, 32)
    for _ in range(30):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        # without rotation a bias on keys shifts a row of scores by a constant, which softmax ignores
        assert {name for name in still if "k_proj.bias" not in name} == set()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_dropout_acts_in_training_only():
    model = tiny(hidden_dropout=0.5, attention_dropout=0.5)
    ids = tokens(1, 12)
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize("positions", ["rope", "alibi"])
def test_compiles_as_one_graph(positions):
    model = tiny(experts="grouped_mm", position_embedding_type=positions)
    ids = tokens(2, 40)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        want = model(ids, use_cache=False).logits
        torch.testing.assert_close(compiled(ids, use_cache=False).logits, want, atol=1e-5, rtol=1e-4)
    torch._dynamo.reset()


@pytest.mark.parametrize("positions", ["rope", "alibi"])
def test_decoding_step_compiles_as_one_graph(positions):
    model = tiny(experts="grouped_mm", position_embedding_type=positions)
    ids = tokens(2, 12)
    with torch.no_grad():
        want = model(ids, use_cache=False).logits[:, 10:]
        cache = StaticCache(config=model.config, max_cache_len=16)
        model(ids[:, :10], past_key_values=cache, use_cache=True)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        got = []
        for i in (10, 11):
            places = torch.tensor([[i]])
            step = compiled(ids[:, i : i + 1], position_ids=places, past_key_values=cache, use_cache=True)
            got.append(step.logits)
    torch.testing.assert_close(torch.cat(got, 1), want, atol=1e-5, rtol=1e-4)
    torch._dynamo.reset()


def test_peft_adapters_train_and_merge():
    from peft import LoraConfig, get_peft_model

    base = tiny(position_embedding_type="alibi")
    ids = tokens(2, 20)
    before = base(ids).logits.detach()
    config = LoraConfig(r=2, target_modules=["q_proj", "o_proj"], target_parameters=["experts.gate_up_proj"])
    model = get_peft_model(base, config)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, before)  # B starts at zero
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    with torch.no_grad():
        want = model.eval()(ids).logits
        assert (want - before).abs().max() > 1e-3
        torch.testing.assert_close(model.merge_and_unload()(ids).logits, want, atol=1e-4, rtol=1e-3)


# --- generation


@pytest.mark.parametrize("positions", ["rope", "alibi"])
class TestGeneration:
    def test_greedy_is_the_argmax_of_full_passes(self, positions):
        model, ids = tiny(position_embedding_type=positions), tokens(1, 40)
        got = model.generate(ids, max_new_tokens=10, do_sample=False, eos_token_id=None)
        for _ in range(10):
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        assert torch.equal(got, ids)

    def test_left_padded_rows_do_as_alone(self, positions):
        model = tiny(position_embedding_type=positions)
        rows = [tokens(n) for n in (21, 9, 14)]
        ids = torch.stack([F.pad(row, (21 - len(row), 0)) for row in rows])
        got = model.generate(
            ids, attention_mask=(ids > 0).long(), max_new_tokens=8, do_sample=False, eos_token_id=None
        )
        for row, out in zip(rows, got, strict=True):
            alone = model.generate(row[None], max_new_tokens=8, do_sample=False, eos_token_id=None)
            assert torch.equal(out[21:], alone[0, len(row) :])

    def test_static_cache_and_assistant_and_beams(self, positions):
        model, ids = tiny(position_embedding_type=positions), tokens(2, 20)
        options = dict(max_new_tokens=8, do_sample=False, eos_token_id=None)
        greedy = model.generate(ids, **options)
        assert torch.equal(greedy, model.generate(ids, cache_implementation="static", **options))
        assistant = tiny(position_embedding_type=positions, num_hidden_layers=1)
        assert torch.equal(greedy[:1], model.generate(ids[:1], assistant_model=assistant, **options))
        beams = model.generate(ids, num_beams=3, num_return_sequences=3, **options)
        uncached = model.generate(ids, num_beams=3, num_return_sequences=3, use_cache=False, **options)
        assert torch.equal(beams, uncached)

    def test_static_cache_prefill_longer_than_a_head(self, positions):
        model, ids = tiny(MortmModel, position_embedding_type=positions), tokens(2, 40)
        with torch.no_grad():
            want = model(ids, use_cache=False).last_hidden_state
            cache = StaticCache(config=model.config, max_cache_len=64)
            first = model(ids[:, :30], past_key_values=cache, use_cache=True).last_hidden_state
            rest = model(ids[:, 30:], past_key_values=cache, use_cache=True).last_hidden_state
        torch.testing.assert_close(torch.cat([first, rest], 1), want, atol=1e-5, rtol=1e-4)


# --- heads


def test_sequence_classification_reads_the_last_token():
    torch.manual_seed(0)
    model = MortmForSequenceClassification(tiny_config(num_labels=3)).eval()
    row = tokens(9)
    ids = torch.stack([F.pad(row, (4, 0)), F.pad(row, (0, 4))])
    with torch.no_grad():
        logits = model(ids, attention_mask=(ids > 0).long(), position_ids=None).logits
        alone = model(row[None]).logits
    assert logits.shape == (2, 3)
    torch.testing.assert_close(logits[1:], alone, atol=1e-5, rtol=1e-4)
    output = model(ids, attention_mask=(ids > 0).long(), labels=torch.tensor([0, 2]))
    output.loss.backward()
    assert model.score.weight.grad.any()
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, torch.tensor([0, 2])))


def test_labels_and_logits_to_keep():
    model, ids = tiny(), tokens(2, 12)
    output = model(ids, labels=ids)
    want = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(output.loss, want)
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, output.logits[:, -2:])


# --- configuration, initialisation, saving


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(norm_type="batchnorm"), "norm_type"),
        (dict(hidden_size="32"), "hidden_size"),
        (dict(num_attention_heads=4, num_key_value_heads=3), "multiple of num_key_value_heads"),
        (dict(hidden_size=33), "multiple of num_attention_heads"),
        (dict(hidden_size=20, num_attention_heads=4, head_dim=5), "even head_dim"),
        (dict(num_experts_per_tok=5), "num_experts_per_tok"),
        (dict(n_group=3), "n_group"),
        (dict(n_group=4, topk_group=1), "fewer than"),
        (dict(mlp_layer_types=["sparse"]), "mlp_layer_types"),
        (dict(mlp_layer_types=["sparse", "moe"]), "mlp_layer_types"),
        (dict(hidden_dropout=1.0), "hidden_dropout"),
        (dict(num_attention_heads=0), "num_attention_heads must be at least 1"),
        (dict(vocab_size=0), "vocab_size must be at least 1"),
        (dict(moe_intermediate_size=0), "moe_intermediate_size must be at least 1"),
        (dict(rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}), "rope_type 'spiral' is unknown"),
    ],
)
def test_impossible_configurations_are_refused(options, words):
    with pytest.raises(ValueError, match=words) as refused:
        tiny_config(**options)
    assert refused.value.code == "configuration.value" and "\n" not in str(refused.value)


def test_default_configuration_is_the_starter():
    config = MortmConfig()
    assert (config.vocab_size, config.pad_token_id, config.bos_token_id, config.eos_token_id) == (
        TABLE_SIZE,
        0,
        1,
        627,
    )
    with torch.device("meta"):
        model = MortmForCausalLM(config)
    assert sum(p.numel() for p in model.parameters()) == 8_434_432
    assert config.num_experts == config.num_local_experts == 8


@pytest.mark.parametrize("positions", ["rope", "alibi"])
@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm", "dynamic_tanh"])
def test_save_and_load(positions, norm, tmp_path):
    model = tiny(
        position_embedding_type=positions,
        norm_type=norm,
        num_attention_heads=8,
        router_balancing="bias",
        mlp_bias=True,
        mlp_layer_types=["dense", "sparse"],
    )
    with torch.no_grad():
        model.model.layers[1].mlp.gate.e_score_correction_bias.normal_()
    ids = tokens(2, 20)
    want = model(ids).logits
    model.save_pretrained(tmp_path)
    again = MortmForCausalLM.from_pretrained(tmp_path).eval()  # built on the meta device
    again.set_experts_implementation("eager")
    assert torch.equal(again(ids).logits, want)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    half = MortmForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.model.layers[1].mlp.gate.e_score_correction_bias.dtype == torch.float32
    if positions == "alibi":
        for changed in (half, again.to(torch.bfloat16)):
            assert torch.equal(changed.model.alibi.slopes, alibi_slopes(8))
    base = MortmModel.from_pretrained(tmp_path).eval()
    assert base.config.to_diff_dict() == MortmConfig.from_pretrained(tmp_path).to_diff_dict()


def test_every_value_is_initialised_on_the_meta_device(tmp_path):
    """An empty checkpoint: all that is not in it must come from `_init_weights`, buffers that are never saved too."""
    options = dict(mlp_layer_types=["sparse", "dense"], mlp_bias=True, norm_type="dynamic_tanh", lm_head_bias=True)
    config = tiny_config(position_embedding_type="alibi", router_balancing="bias", **options)
    model = MortmForCausalLM.from_pretrained(None, config=config, state_dict={})
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert tensor.device.type == "cpu" and torch.isfinite(tensor).all(), name
        if name.endswith("alpha"):
            assert tensor.item() == 0.5
        elif name.endswith("slopes"):
            assert torch.equal(tensor, alibi_slopes(4))
        elif "bias" in name or "counts" in name:
            assert not tensor.any(), name
        elif "norm" in name:
            assert (tensor == 1).all(), name
        else:
            rest = tensor[1:] if "embed" in name or "lm_head" in name else tensor
            assert 0.08 < rest.std() < 0.12, name
    assert not model.model.embed_tokens.weight[0].any()  # the padding token


def test_parallel_plans_name_real_modules():
    model = tiny(mlp_layer_types=["sparse", "dense"], mlp_bias=True)
    names = {name for name, _ in model.model.named_modules()} | {name for name, _ in model.model.named_parameters()}
    config = model.config
    for plan in (config.base_model_tp_plan, config.base_model_ep_plan, config.base_model_pp_plan):
        for pattern in plan:
            assert fnmatch.filter(names, pattern), pattern
    # every weight of two dimensions but the router's is split by tensor parallelism
    split = [p for pattern in config.base_model_tp_plan for p in fnmatch.filter(names, pattern)]
    for name, _ in model.model.named_parameters():
        if "embed" in name or "bias" in name:  # some versions of transformers split it by themselves
            continue
        whole = any(word in name for word in ("norm", "mlp.gate.weight"))
        assert whole == (name.removesuffix(".weight") not in split), name
    assert model.tp_plan["lm_head"] == "colwise_gather_output"


def test_tensor_parallelism_that_would_be_wrong_is_refused():
    model = tiny(MortmModel, mlp_bias=True)
    down = model.layers[0].mlp.experts.down_proj
    down.placements = (SimpleNamespace(dim=0),)  # cut along experts
    model(tokens(1, 5))
    down.placements = (SimpleNamespace(dim=2),)
    with pytest.raises(ValueError, match="once per rank"):
        model(tokens(1, 5))
    model = tiny(MortmModel, position_embedding_type="alibi")
    model.alibi.slopes = alibi_slopes(2)
    with pytest.raises(ValueError, match="tensor parallelism"):
        model(tokens(1, 20))


def test_folder_lists_all_heads(tmp_path):
    tiny().save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["auto_map"]["AutoModel"] == "modeling_mortm.MortmModel"
    assert stored["auto_map"]["AutoModelForCausalLM"] == "modeling_mortm.MortmForCausalLM"
    assert stored["auto_map"]["AutoModelForSequenceClassification"] == "modeling_mortm.MortmForSequenceClassification"
    assert stored["auto_map"]["AutoConfig"] == "configuration_mortm.MortmConfig"
    pipelines = stored["custom_pipelines"]
    assert {task: entry["impl"] for task, entry in pipelines.items()} == {
        "midi-generation": "pipeline_mortm.MidiGenerationPipeline",
        "chord-estimation": "pipeline_mortm.ChordEstimationPipeline",
    }
    model = MortmForCausalLM.from_pretrained(tmp_path)
    for entry in model.config.custom_pipelines.values():  # what `transformers.pipeline` makes of them
        entry["pt"] = (MortmForCausalLM,)
    model.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())["custom_pipelines"]
    assert again["midi-generation"]["pt"] == ["MortmForCausalLM"]
    AutoConfig.register("mortm", MortmConfig, exist_ok=True)
    assert AutoConfig.from_pretrained(tmp_path).num_local_experts == 4


def test_experts_interface_is_switchable():
    assert MortmForCausalLM._can_set_attn_implementation() and MortmForCausalLM._can_set_experts_implementation()
    assert tiny(experts="grouped_mm").config._experts_implementation == "grouped_mm"
    assert MortmExperts(tiny_config()).has_gate
