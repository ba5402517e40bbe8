"""What transformers expects of any model, for every class, norm and position type of ours.

In the spirit of transformers' own common tests. What only one family can do (generation, packing, pooling, upstream's
numbers) is tested beside that family.
"""

import copy
import fnmatch
import itertools

import pytest
import torch

from mortm_hf.models.configuration_bertm import BertmConfig
from mortm_hf.models.configuration_mortm import MortmConfig
from mortm_hf.models.modeling_bertm import (
    BertmForMaskedLM,
    BertmForSequenceClassification,
    BertmForTokenClassification,
    BertmModel,
)
from mortm_hf.models.modeling_mortm import MortmForCausalLM, MortmForSequenceClassification, MortmModel


CLASSES = [
    MortmModel,
    MortmForCausalLM,
    MortmForSequenceClassification,
    BertmModel,
    BertmForMaskedLM,
    BertmForSequenceClassification,
    BertmForTokenClassification,
]
TIED = [MortmForCausalLM, BertmForMaskedLM]
NORMS, POSITIONS = ["rmsnorm", "layernorm", "dynamic_tanh"], ["rope", "alibi"]
LABELS = 3

every_class = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
every_model = pytest.mark.parametrize(
    ("kind", "norm", "positions"),
    list(itertools.product(CLASSES, NORMS, POSITIONS)),
    ids=lambda value: getattr(value, "__name__", value),
)


def config_of(kind, **options):
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
        mlp_layer_types=["sparse", "dense"],
        initializer_range=0.1,
        eos_token_id=2,
        num_labels=LABELS,
    )
    return (BertmConfig if kind.__name__.startswith("Bertm") else MortmConfig)(**{**defaults, **options})


def tiny(kind, norm="rmsnorm", positions="rope", seed=0, **options):
    torch.manual_seed(seed)
    model = kind(config_of(kind, norm_type=norm, position_embedding_type=positions, **options)).eval()
    model.set_experts_implementation("eager")
    return model


def tokens(*shape, seed=1):
    return torch.randint(3, 97, shape, generator=torch.Generator().manual_seed(seed))


def answer(output):
    """The tensor a model is run for."""
    return output.last_hidden_state if "last_hidden_state" in output else output.logits


def run(model, *args, **kwargs):
    with torch.no_grad():
        return answer(model(*args, **kwargs))


def of_a_piece(kind) -> bool:
    """Whether the answer is one of a row, not one of a token."""
    return kind.__name__.endswith("SequenceClassification")


def labels_for(kind, ids):
    if of_a_piece(kind):
        return ids[:, 0] % LABELS
    return ids % LABELS if kind is BertmForTokenClassification else ids


# --- saving and loading


@every_model
def test_a_saved_model_is_the_same_model(kind, norm, positions, tmp_path):
    model, ids = tiny(kind, norm, positions), tokens(2, 12)
    model.save_pretrained(tmp_path, max_shard_size="20KB")  # several files and their index
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    again, told = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert not again.training
    again.set_experts_implementation("eager")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    torch.testing.assert_close(run(again, ids), run(model, ids), atol=1e-6, rtol=1e-5)
    assert set(again.state_dict()) == set(model.state_dict())
    before, after = model.config.to_dict(), again.config.to_dict()
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {"architectures", "transformers_version", "_name_or_path"}


@every_class
def test_every_buffer_and_weight_survives_low_memory_loading(kind, tmp_path):
    """Weights are read one by one into a model without storage; buffers that no file holds are made anew."""
    model, ids = tiny(kind, positions="alibi", router_balancing="bias"), tokens(1, 9)
    model.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path, device_map={"": "cpu"}, dtype=torch.float32)
    again.set_experts_implementation("eager")
    for name, tensor in [*again.named_parameters(), *again.named_buffers()]:
        assert tensor.device.type == "cpu", name
    for (name, one), (_, other) in zip(model.named_buffers(), again.named_buffers(), strict=True):
        assert torch.equal(one, other), name
    for (name, one), (_, other) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    # tensors of a mapped file lie elsewhere in memory, where kernels may sum in another order
    torch.testing.assert_close(run(again, ids), run(model, ids), atol=1e-6, rtol=1e-5)


@every_class
def test_made_without_storage_and_filled_later(kind):
    model = tiny(kind, positions="alibi")
    with torch.device("meta"):
        empty = kind(model.config)
    assert all(tensor.is_meta for tensor in empty.parameters())
    assert {k: v.shape for k, v in empty.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


@every_class
def test_half_precision_follows_fp32(kind, tmp_path):
    model, ids = tiny(kind, initializer_range=0.02), tokens(2, 12)
    model.save_pretrained(tmp_path)
    half = kind.from_pretrained(tmp_path, dtype=torch.bfloat16)
    half.set_experts_implementation("eager")
    got = run(half, ids)
    assert got.dtype == torch.bfloat16
    want = run(model, ids)
    assert (got.float() - want).abs().max() < 0.05 * want.abs().max() + 0.05


@every_class
def test_copies_are_independent(kind):
    model, ids = tiny(kind), tokens(1, 8)
    other, want = copy.deepcopy(model), run(model, ids)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(run(model, ids), want)


# --- results


@every_model
def test_a_row_does_not_depend_on_its_batch(kind, norm, positions):
    """Padding on the left and other rows change nothing."""
    model = tiny(kind, norm, positions)
    rows = [tokens(n, seed=n) for n in (15, 9, 12)]
    ids, mask = torch.zeros(3, 15, dtype=torch.long), torch.zeros(3, 15, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, 15 - len(row) :], mask[i, 15 - len(row) :] = row, 1
    together = run(model, ids, attention_mask=mask)
    for i, row in enumerate(rows):
        alone = run(model, row[None])[0]
        got = together[i] if of_a_piece(kind) else together[i, 15 - len(row) :]
        torch.testing.assert_close(got, alone, atol=2e-5, rtol=1e-4)


@every_class
def test_seeds_decide_everything(kind):
    ids = tokens(2, 10)
    one, same, other = tiny(kind), tiny(kind), tiny(kind, seed=7)
    assert torch.equal(run(one, ids), run(same, ids))
    assert torch.equal(run(one, ids), run(one, ids))
    assert not torch.equal(run(one, ids), run(other, ids))


@every_class
@pytest.mark.parametrize("positions", POSITIONS)
def test_embeddings_are_as_good_as_ids(kind, positions):
    model, ids = tiny(kind, positions=positions), tokens(2, 10)
    mask = torch.ones_like(ids)
    states = model.get_input_embeddings()(ids)
    want = run(model, ids, attention_mask=mask)
    assert torch.equal(run(model, inputs_embeds=states, attention_mask=mask), want)


@every_class
def test_tuples_hold_what_outputs_hold(kind):
    model, ids = tiny(kind), tokens(1, 8)
    with torch.no_grad():
        output, flat = model(ids), model(ids, return_dict=False)
    assert isinstance(flat, tuple)
    assert torch.equal(flat[0], answer(output))


@every_class
@pytest.mark.parametrize("positions", POSITIONS)
def test_shapes_of_what_happens_inside(kind, positions):
    model, ids = tiny(kind, positions=positions), tokens(2, 10)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(ids, output_hidden_states=True, output_attentions=True, output_router_logits=True)
    assert [tuple(x.shape) for x in output.hidden_states] == [(2, 10, 32)] * 3
    assert [tuple(x.shape) for x in output.attentions] == [(2, 4, 10, 10)] * 2
    if kind is not MortmForSequenceClassification:  # transformers' output class has no place for it
        assert [tuple(x.shape) for x in output.router_logits] == [(20, 4)]  # one sparse layer, in fp32
        assert output.router_logits[0].dtype == torch.float32
    for weights in output.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 10))
    ahead = torch.stack(output.attentions).triu(1).abs().max()
    assert (ahead > 0) == (not model.config.is_causal)


# --- embeddings and output layer


@every_class
@pytest.mark.parametrize("size", [120, 90])
def test_vocabularies_can_grow_and_shrink(kind, size):
    model, ids = tiny(kind), tokens(1, 8).clamp(max=80)
    want = run(model, ids)
    model.resize_token_embeddings(size, mean_resizing=False)
    assert model.config.vocab_size == size == model.get_input_embeddings().num_embeddings
    got = run(model, ids)
    if kind in TIED:
        assert model.lm_head.weight is model.get_input_embeddings().weight
        assert got.shape[-1] == size == model.lm_head.out_features
        torch.testing.assert_close(got[..., : min(size, 97)], want[..., :size])
        assert torch.isfinite(model(ids, labels=ids).loss)
    else:
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("kind", TIED)
def test_output_layers_are_tied_unless_asked_otherwise(kind, tmp_path):
    tied, apart = tiny(kind), tiny(kind, tie_word_embeddings=False)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert apart.lm_head.weight is not apart.model.embed_tokens.weight
    assert len(list(apart.parameters())) == len(list(tied.parameters())) + 1
    apart.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, apart.lm_head.weight)
    assert not torch.equal(again.lm_head.weight, again.model.embed_tokens.weight)


# --- training


@every_class
@pytest.mark.parametrize("positions", POSITIONS)
def test_checkpointing_changes_no_gradient(kind, positions):
    ids, found = tokens(2, 10), []
    for on in (False, True):
        model = tiny(kind, positions=positions).train()
        if on:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            assert model.supports_gradient_checkpointing
        if kind in (MortmModel, BertmModel):
            loss = model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state.pow(2).mean()
        else:
            loss = model(ids, attention_mask=torch.ones_like(ids), labels=labels_for(kind, ids)).loss
        loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 10
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], msg=name)


@every_model
def test_weights_start_in_their_range(kind, norm, positions):
    model = tiny(kind, norm, positions, initializer_range=0.02, mlp_bias=True, attention_bias=True)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad and torch.isfinite(parameter).all(), name
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif name.endswith("alpha"):
            assert parameter.item() == 0.5
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            assert abs(parameter.mean()) < 0.02 and 0.01 < parameter.std() < 0.03, name


# --- plans


@every_class
def test_plans_name_what_is_there(kind):
    model = tiny(kind, mlp_bias=True)
    base = getattr(model, model.base_model_prefix, model)
    names = {name for name, _ in base.named_modules()} | {name for name, _ in base.named_parameters()}
    config = model.config
    for plan in (config.base_model_tp_plan, config.base_model_ep_plan, config.base_model_pp_plan):
        assert plan and all(fnmatch.filter(names, pattern) for pattern in plan)
    inside = {name for name, _ in model.named_modules()}
    for plan in (model.tp_plan, getattr(model, "_fsdp_plan", None) or {}):
        for pattern in plan:
            assert fnmatch.filter(inside | {name for name, _ in model.named_parameters()}, pattern), pattern
    classes = {type(module).__name__ for module in model.modules()}
    assert set(model._no_split_modules) <= classes


@every_class
def test_configurations_round_trip(kind, tmp_path):
    config = config_of(kind, norm_type="dynamic_tanh", position_embedding_type="alibi")
    config.save_pretrained(tmp_path)
    again = type(config).from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict() and again.num_labels == LABELS
    assert type(config).from_dict(config.to_dict()).to_json_string() == config.to_json_string()
