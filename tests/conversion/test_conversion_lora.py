"""Low-rank deltas: merged once, never twice, or kept as an adapter that PEFT reads."""

import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from upstream_states import MODELS, load, same, synthetic, write

from mortm_hf import MortmForCausalLM
from mortm_hf.conversion.from_upstream import convert_checkpoint
from mortm_hf.conversion.lora import guess_merged
from mortm_hf.conversion.to_upstream import export_upstream
from mortm_hf.conversion.token_tables import extend_vocabulary
from mortm_hf.models.errors_mortm import ConversionError


CASE = MODELS / "mortm_rope_moe_layernorm_lora"
OPTIONS = json.loads((CASE / "config.json").read_text())
SCALE = OPTIONS["lora_alpha"] / OPTIONS["lora_r"]


def stems(state):
    return [name.removesuffix(".lora_A") for name in state if name.endswith(".lora_A")]


@pytest.fixture(scope="module")
def unmerged():
    return load(CASE / "model.pth")


@pytest.fixture(scope="module")
def merged(unmerged):
    """The same model saved in eval mode: the deltas are in the weights, in the weights' type."""
    state = dict(unmerged)
    for stem in stems(state):
        product = SCALE * state[f"{stem}.lora_B"].float() @ state[f"{stem}.lora_A"].float()
        state[f"{stem}.weight"] = (state[f"{stem}.weight"].float() + product).to(state[f"{stem}.weight"].dtype)
    return state


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    path = tmp_path_factory.mktemp("lora") / "kept"
    convert_checkpoint(CASE / "model.pth", path, lora="keep")
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("lora") / "plain"
    convert_checkpoint(CASE / "model.pth", path)
    return path


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(ids).logits


def test_guess(unmerged, merged):
    factor, error = guess_merged(unmerged, stems(unmerged), SCALE)
    assert abs(factor) < 0.1 and error < 0.1
    factor, error = guess_merged(merged, stems(merged), SCALE)
    assert abs(factor - 1) < 0.1 and error < 0.1
    fresh = {k: torch.zeros_like(v) if k.endswith("lora_B") else v for k, v in unmerged.items()}
    assert guess_merged(fresh, stems(fresh), SCALE)[1] == float("inf")


def test_merged_weights_are_noticed(merged, plain, tmp_path):
    """Saved in eval mode and nobody says so: refused; said so: the delta is not added again."""
    source = write(tmp_path / "source", merged, OPTIONS)
    with pytest.raises(ConversionError, match="--lora-merged") as error:
        convert_checkpoint(source, tmp_path / "out", tokenizer="pro")
    assert error.value.code == "conversion.lora" and not (tmp_path / "out").exists()
    convert_checkpoint(source, tmp_path / "out", tokenizer="pro", lora_merged=True)
    ids = torch.randint(1, 629, (1, 24))
    found, want = (logits(MortmForCausalLM.from_pretrained(p), ids) for p in (tmp_path / "out", plain))
    # the attention's sums were rounded to bf16 by upstream
    assert (found - want).abs().mean() < 0.02
    wrong = convert_checkpoint(source, tmp_path / "twice", tokenizer="pro", lora_merged=False)
    assert any(note.startswith("WARNING") for note in wrong.notes)
    assert (logits(MortmForCausalLM.from_pretrained(tmp_path / "twice"), ids) - want).abs().mean() > 0.2


def test_merged_deltas_can_be_taken_out_again(merged, unmerged, tmp_path):
    """Kept apart although merged: the base is what it was, up to the rounding of its type, which is told."""
    source = write(tmp_path / "source", merged, OPTIONS)
    report = convert_checkpoint(source, tmp_path / "out", tokenizer="pro", lora="keep", lora_merged=True)
    assert any("rounds" in note for note in report.notes)
    found = MortmForCausalLM.from_pretrained(tmp_path / "out").model.layers[0].mlp.experts.down_proj[1]
    assert torch.allclose(found, unmerged["decoder.layers.0.ffn.experts.1.w2.weight"], atol=1e-6)


def test_contradicting_option_warns(tmp_path):
    report = convert_checkpoint(CASE / "model.pth", tmp_path / "out", lora_merged=True)
    assert any(note.startswith("WARNING") and "--lora-merged" in note for note in report.notes)


def test_untrained_deltas_need_no_decision(unmerged, tmp_path):
    state = {k: torch.zeros_like(v) if k.endswith("lora_B") else v for k, v in unmerged.items()}
    convert_checkpoint(write(tmp_path / "source", state, OPTIONS), tmp_path / "out", tokenizer="pro")
    weight = MortmForCausalLM.from_pretrained(tmp_path / "out").model.layers[0].self_attn.o_proj.weight
    assert torch.equal(weight, state["decoder.layers.0.self_attention.qkv_block.W_o.weight"].float())


def test_kept_folder_holds_the_base(kept, unmerged):
    model = MortmForCausalLM.from_pretrained(kept)
    gate = model.model.layers[1].mlp.experts.gate_up_proj
    assert torch.equal(gate[2, :96], unmerged["decoder.layers.1.ffn.experts.2.w1.weight"])
    assert torch.equal(gate[2, 96:], unmerged["decoder.layers.1.ffn.experts.2.w3.weight"])
    assert "PeftModel" in (kept / "README.md").read_text()


def test_peft_reads_the_adapter(kept, plain):
    """Attention, router, experts and shared expert: base plus adapter is the merged model."""
    peft = pytest.importorskip("peft")
    ids = torch.randint(1, 629, (2, 24))
    base = MortmForCausalLM.from_pretrained(kept)
    want = logits(MortmForCausalLM.from_pretrained(plain), ids)
    assert (logits(base, ids) - want).abs().max() > 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT looks for its patterns among modules only
        model = peft.PeftModel.from_pretrained(base, kept / "adapter")
    assert (logits(model, ids) - want).abs().max() < 1e-4


def test_merged_export_says_so(plain, tmp_path):
    report = export_upstream(plain, tmp_path / "back")
    options = json.loads((tmp_path / "back" / "config.json").read_text())
    assert not any(options[f"use_{part}_lora"] for part in ("attn", "gate", "ffn"))
    assert not [k for k in load(tmp_path / "back" / "model.pth") if "lora" in k]
    assert any("merged" in note for note in report.notes)


@pytest.mark.parametrize("case", ["4.1.33", "4.5"])
def test_old_releases_with_a_delta_on_the_output_layer(case, tmp_path):
    """4.0 to 4.5: `use_lora` reaches the output layer; kept and brought back bit for bit."""
    state, options = synthetic(case, "MORTM/lora40")
    source = write(tmp_path / "source", state, options)
    vocab = source.parent / "vocab_list.json"
    convert_checkpoint(source, tmp_path / "ours", vocab=vocab, lora="keep", lora_merged=False)
    config = json.loads((tmp_path / "ours" / "adapter" / "adapter_config.json").read_text())
    assert "lm_head" in config["target_modules"]
    export_upstream(tmp_path / "ours", tmp_path / "back")
    assert same(load(tmp_path / "back" / "model.pth"), state)
    with pytest.raises(ConversionError, match="--lora merge") as error:
        extend_vocabulary(tmp_path / "ours", tmp_path / "long")
    assert error.value.code == "conversion.lora"
    with pytest.raises(ConversionError, match="--lora merge"):
        convert_checkpoint(source, tmp_path / "long", vocab=vocab, lora="keep", lora_merged=False, extend_vocab=True)
    convert_checkpoint(source, tmp_path / "long", vocab=vocab, lora_merged=False, extend_vocab=True)


def test_actor_and_critic_keep_a_delta_each(tmp_path):
    """Both have the layers, so both have the adapter; trained apart, they cannot go back as one."""
    state, options = synthetic("4.6.18", "MORTM/lora46")
    critic = {k: v for k, v in synthetic("4.6.18", "ActorCritic/moe_tanh")[0].items() if k.startswith("critic")}
    source = write(tmp_path / "source", state | critic, options)
    vocab = source.parent / "vocab_list.json"
    convert_checkpoint(source, tmp_path / "ours", vocab=vocab, lora="keep", lora_merged=False)
    assert (tmp_path / "ours" / "adapter").is_dir() and (tmp_path / "ours" / "value" / "adapter").is_dir()
    export_upstream(tmp_path / "ours", tmp_path / "back")
    assert same(load(tmp_path / "back" / "model.pth"), state | critic)
    path = tmp_path / "ours" / "value" / "adapter" / "adapter_model.safetensors"
    save_file({k: v + 1 if k.endswith("o_proj.lora_B.weight") else v for k, v in load_file(path).items()}, path)
    with pytest.raises(ConversionError, match="one set for both"):
        export_upstream(tmp_path / "ours", tmp_path / "again")


def test_adapter_that_upstream_cannot_hold(kept, tmp_path):
    """q, k and v trained apart have three lora_A; upstream has one."""
    folder = tmp_path / "kept"
    shutil.copytree(kept, folder)
    path = folder / "adapter" / "adapter_model.safetensors"
    state = load_file(path)
    state["base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight"] += 1
    save_file(state, path)
    with pytest.raises(ConversionError, match="merge_and_unload") as error:
        export_upstream(folder, tmp_path / "back")
    assert error.value.code == "conversion.lora"
