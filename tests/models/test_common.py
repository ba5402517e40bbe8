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
from mortm_hf.models.configuration_mortm_live import MortmLiveConfig
from mortm_hf.models.configuration_vmortm import VMortmConfig
from mortm_hf.models.modeling_bertm import (
    BertmForMaskedLM,
    BertmForSequenceClassification,
    BertmForTokenClassification,
    BertmModel,
)
from mortm_hf.models.modeling_mortm import MortmForCausalLM, MortmForSequenceClassification, MortmModel
from mortm_hf.models.modeling_mortm_live import MortmLiveForCausalGeneration, MortmLiveModel, MortmLiveVision
from mortm_hf.models.modeling_vmortm import VMortmForSpectrogramGeneration, VMortmModel


TOKEN_CLASSES = [
    MortmModel,
    MortmForCausalLM,
    MortmForSequenceClassification,
    BertmModel,
    BertmForMaskedLM,
    BertmForSequenceClassification,
    BertmForTokenClassification,
]
# what reads mel frames, piano rolls, latents of rolls
CLASSES = [*TOKEN_CLASSES, VMortmModel, VMortmForSpectrogramGeneration, MortmLiveModel, MortmLiveForCausalGeneration]
BASES = [MortmModel, BertmModel, VMortmModel, MortmLiveModel]
TIED = [MortmForCausalLM, BertmForMaskedLM]
NORMS, POSITIONS = ["rmsnorm", "layernorm", "dynamic_tanh"], ["rope", "alibi"]
LABELS = 3
BINS, PATCH, TICKS, SLOTS = 6, 2, 8, [0, 40]


def every(classes, *, norms=NORMS, positions=POSITIONS):
    """Each class with each norm and position type; the VAE of Live has neither layers nor positions: once."""
    cases = list(itertools.product(classes, norms, positions))
    if classes is CLASSES:
        cases.append((MortmLiveVision, norms[0], positions[0]))
    names = [f"{kind.__name__}-{norm}-{position}" for kind, norm, position in cases]
    return pytest.mark.parametrize(("kind", "norm", "positions"), cases, ids=names)


every_class = pytest.mark.parametrize("kind", [*CLASSES, MortmLiveVision], ids=lambda kind: kind.__name__)
every_model = every(CLASSES)


def family_of(kind) -> str:
    return kind.config_class.model_type


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
    family = family_of(kind)
    if family in ("vmortm", "mortm_live"):
        del defaults["vocab_size"], defaults["eos_token_id"]
    if family == "vmortm":
        defaults |= dict(num_mel_bins=BINS, patch_size=PATCH)
    elif family == "mortm_live":
        defaults |= dict(instruments=SLOTS, chunk_ticks=TICKS, ticks_per_measure=96)
    kinds = {"mortm": MortmConfig, "bertm": BertmConfig, "vmortm": VMortmConfig, "mortm_live": MortmLiveConfig}
    return kinds[family](**{**defaults, **options})


def tiny(kind, norm="rmsnorm", positions="rope", seed=0, **options):
    torch.manual_seed(seed)
    model = kind(config_of(kind, norm_type=norm, position_embedding_type=positions, **options)).eval()
    model.set_experts_implementation("eager")
    return model


def tokens(*shape, seed=1):
    return torch.randint(3, 97, shape, generator=torch.Generator().manual_seed(seed))


def inputs_of(kind, rows, steps, seed=1):
    """Rows of `steps` tokens, patches of mel frames, chunks of a roll, or latents; Live's VAE reads single chunks."""
    random = torch.Generator().manual_seed(seed)
    if family_of(kind) == "vmortm":
        return {"input_features": torch.rand(rows, steps * PATCH, BINS, generator=random)}
    if kind is MortmLiveModel:
        return {"inputs_embeds": torch.randn(rows, steps, 32, generator=random)}
    if family_of(kind) == "mortm_live":
        pitch = (torch.rand(rows, steps, TICKS, 128, len(SLOTS), generator=random) < 0.05).float()
        rolls = torch.stack([pitch, pitch * 0.7], -1).flatten(-2)
        return {"roll": rolls[:, 0]} if kind is MortmLiveVision else {"rolls": rolls}
    return {"input_ids": tokens(rows, steps, seed=seed)}


def mask_of(kind, mask):
    """A mask of steps as the model reads it: of frames where a step is a patch of them."""
    return mask.repeat_interleave(PATCH, 1) if family_of(kind) == "vmortm" else mask


def answer(output):
    """The tensor a model is run for."""
    return next(output[name] for name in ("last_hidden_state", "predictions", "logits") if name in output)


def run(model, **inputs):
    with torch.no_grad():
        return answer(model(**inputs))


def of_a_piece(kind) -> bool:
    """Whether the answer is one of a row, not one of a token."""
    return kind.__name__.endswith("SequenceClassification")


def loss_of(model, inputs):
    """The loss of training, or a stand-in where a class has none."""
    kind = type(model)
    (main,) = inputs.values()
    if kind is not MortmLiveVision:
        length = main.shape[1] // (PATCH if family_of(kind) == "vmortm" else 1)
        inputs = {**inputs, "attention_mask": mask_of(kind, torch.ones(main.shape[0], length, dtype=torch.long))}
    if kind in BASES:
        return model(**inputs).last_hidden_state.pow(2).mean()
    if of_a_piece(kind):
        main = main[:, 0] % LABELS
    elif kind is BertmForTokenClassification:
        main = main % LABELS
    return model(**inputs, labels=main).loss


# --- saving and loading


@every_model
def test_a_saved_model_is_the_same_model(kind, norm, positions, tmp_path):
    model, inputs = tiny(kind, norm, positions), inputs_of(kind, 2, 12)
    model.save_pretrained(tmp_path, max_shard_size="20KB")  # several files and their index
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    again, told = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert not again.training
    again.set_experts_implementation("eager")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    torch.testing.assert_close(run(again, **inputs), run(model, **inputs), atol=1e-6, rtol=1e-5)
    assert set(again.state_dict()) == set(model.state_dict())
    before, after = model.config.to_dict(), again.config.to_dict()
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {"architectures", "transformers_version", "_name_or_path"}


@every_model
def test_every_buffer_and_weight_survives_low_memory_loading(kind, norm, positions, tmp_path):
    """Weights are read one by one into a model without storage; buffers that no file holds are made anew."""
    model, inputs = tiny(kind, norm, positions, router_balancing="bias"), inputs_of(kind, 1, 9)
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
    torch.testing.assert_close(run(again, **inputs), run(model, **inputs), atol=1e-6, rtol=1e-5)


@every_model
def test_made_without_storage_and_filled_later(kind, norm, positions):
    model = tiny(kind, norm, positions)
    with torch.device("meta"):
        empty = kind(model.config)
    assert all(tensor.is_meta for tensor in empty.parameters())
    assert {k: v.shape for k, v in empty.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


@every_model
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_follows_fp32(kind, norm, positions, dtype, tmp_path):
    model, inputs = tiny(kind, norm, positions, initializer_range=0.02), inputs_of(kind, 2, 12)
    model.save_pretrained(tmp_path)
    half = kind.from_pretrained(tmp_path, dtype=dtype)
    half.set_experts_implementation("eager")
    want = run(model, **inputs)
    if kind is MortmLiveModel:  # its latents come from a part of the same precision
        inputs = {name: value.to(dtype) for name, value in inputs.items()}
    got = run(half, **inputs)
    assert got.dtype == (torch.float32 if kind is VMortmForSpectrogramGeneration else dtype)  # in the units of mels
    assert (got.float() - want).abs().max() < 0.05 * want.abs().max() + 0.05


@every_class
def test_copies_are_independent(kind):
    model, inputs = tiny(kind), inputs_of(kind, 1, 8)
    other, want = copy.deepcopy(model), run(model, **inputs)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(run(model, **inputs), want)


# --- results


@every_model
def test_a_row_does_not_depend_on_its_batch(kind, norm, positions):
    """Padding on the left and other rows change nothing."""
    model = tiny(kind, norm, positions)
    if kind is MortmLiveVision:  # single chunks: there is nothing to pad
        rows = [inputs_of(kind, 1, 1, seed=n)["roll"] for n in (15, 9, 12)]
        together = run(model, roll=torch.cat(rows))
        for got, row in zip(together, rows, strict=True):
            torch.testing.assert_close(got[None], run(model, roll=row), atol=2e-5, rtol=1e-4)
        return
    steps = (15, 9, 12)
    rows = [inputs_of(kind, 1, n, seed=n) for n in steps]
    ((name, longest),) = rows[0].items()
    unit = longest.shape[1] // steps[0]
    batch = torch.zeros(3, *longest.shape[1:], dtype=longest.dtype)
    mask = torch.zeros(3, steps[0], dtype=torch.long)
    for i, n in enumerate(steps):
        batch[i, (steps[0] - n) * unit :], mask[i, steps[0] - n :] = rows[i][name][0], 1
    together = run(model, **{name: batch}, attention_mask=mask_of(kind, mask))
    for i, row in enumerate(rows):
        alone = run(model, **row)[0]
        got = together[i] if of_a_piece(kind) else together[i, -len(alone) :]
        torch.testing.assert_close(got, alone, atol=2e-5, rtol=1e-4)


@every_model
def test_seeds_decide_everything(kind, norm, positions):
    inputs = inputs_of(kind, 2, 10)
    one, same, other = (tiny(kind, norm, positions, seed=seed) for seed in (0, 0, 7))
    assert torch.equal(run(one, **inputs), run(same, **inputs))
    assert torch.equal(run(one, **inputs), run(one, **inputs))
    assert not torch.equal(run(one, **inputs), run(other, **inputs))


@every(TOKEN_CLASSES)
def test_embeddings_are_as_good_as_ids(kind, norm, positions):
    model, ids = tiny(kind, norm, positions), tokens(2, 10)
    mask = torch.ones_like(ids)
    states = model.get_input_embeddings()(ids)
    want = run(model, input_ids=ids, attention_mask=mask)
    assert torch.equal(run(model, inputs_embeds=states, attention_mask=mask), want)


@every_class
def test_tuples_hold_what_outputs_hold(kind):
    model, inputs = tiny(kind), inputs_of(kind, 1, 8)
    with torch.no_grad():
        output, flat = model(**inputs), model(**inputs, return_dict=False)
    assert isinstance(flat, tuple)
    assert torch.equal(flat[0], answer(output))


@every_model
def test_shapes_of_what_happens_inside(kind, norm, positions):
    if kind is MortmLiveVision:
        return  # no layers
    model, inputs = tiny(kind, norm, positions), inputs_of(kind, 2, 10)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True, output_attentions=True, output_router_logits=True)
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


@every(TOKEN_CLASSES)
@pytest.mark.parametrize("size", [120, 90])
def test_vocabularies_can_grow_and_shrink(kind, norm, positions, size):
    model, ids = tiny(kind, norm, positions), tokens(1, 8).clamp(max=80)
    want = run(model, input_ids=ids)
    model.resize_token_embeddings(size, mean_resizing=False)
    assert model.config.vocab_size == size == model.get_input_embeddings().num_embeddings
    got = run(model, input_ids=ids)
    if kind in TIED:
        assert model.lm_head.weight is model.get_input_embeddings().weight
        assert got.shape[-1] == size == model.lm_head.out_features
        torch.testing.assert_close(got[..., : min(size, 97)], want[..., :size])
        assert torch.isfinite(model(ids, labels=ids).loss)
    else:
        torch.testing.assert_close(got, want)


@every(TIED)
def test_output_layers_are_tied_unless_asked_otherwise(kind, norm, positions, tmp_path):
    tied, apart = (tiny(kind, norm, positions, tie_word_embeddings=tie) for tie in (True, False))
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert apart.lm_head.weight is not apart.model.embed_tokens.weight
    assert len(list(apart.parameters())) == len(list(tied.parameters())) + 1
    apart.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, apart.lm_head.weight)
    assert not torch.equal(again.lm_head.weight, again.model.embed_tokens.weight)


# --- training


@every_model
def test_checkpointing_changes_no_gradient(kind, norm, positions):
    inputs, found = inputs_of(kind, 2, 10), []
    for on in (False, True):
        if kind is MortmLiveVision:  # it has no layers to recompute
            return
        model = tiny(kind, norm, positions).train()
        if on:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            assert model.supports_gradient_checkpointing
        torch.manual_seed(0)  # Live draws its latents
        loss_of(model, inputs).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 10
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], msg=name)


@every_model
def test_weights_start_in_their_range(kind, norm, positions):
    model = tiny(kind, norm, positions, initializer_range=0.02, mlp_bias=True, attention_bias=True)
    groups = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.GroupNorm)}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad and torch.isfinite(parameter).all(), name
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif name.endswith("alpha"):
            assert parameter.item() == 0.5
        elif "norm" in name or name in groups:
            assert (parameter == 1).all(), name
        else:
            assert abs(parameter.mean()) < 0.02 and 0.01 < parameter.std() < 0.03, name


# --- plans


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_plans_name_what_is_there(kind):
    model = tiny(kind, mlp_bias=True)
    base = getattr(model, model.base_model_prefix, model)
    names = {name for name, _ in base.named_modules()} | {name for name, _ in base.named_parameters()}
    config = model.config
    for plan in (config.base_model_tp_plan, config.base_model_ep_plan, config.base_model_pp_plan):
        assert plan and all(fnmatch.filter(names, pattern) for pattern in plan)
    inside = {name for name, _ in model.named_modules()}
    for plan in (model.tp_plan, model._ep_plan, model._pp_plan, getattr(model, "_fsdp_plan", None) or {}):
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
