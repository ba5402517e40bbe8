"""MORTM Live: upstream's VAE, causality, masks, the targets' orientation, cached steps."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mortm_hf import MortmLiveConfig, MortmLiveForCausalGeneration, MortmLiveVision, convert_checkpoint
from mortm_hf.models.modeling_mortm_live import roll_losses


FIXTURE = Path(__file__).parents[1] / "fixtures" / "upstream_perception" / "live_vae_default"


def tiny(**options) -> MortmLiveForCausalGeneration:
    torch.manual_seed(0)
    shape = dict(instruments=[0, 40], chunk_ticks=8, ticks_per_measure=96, hidden_size=32, num_hidden_layers=2)
    shape |= dict(num_attention_heads=2, moe_intermediate_size=24, shared_expert_intermediate_size=16)
    config = MortmLiveConfig(**{**shape, "num_local_experts": 4, "initializer_range": 0.1, **options})
    return MortmLiveForCausalGeneration(config).eval()


def rolls(batch=2, chunks=6, ticks=8, slots=2, seed=0):
    torch.manual_seed(seed)
    pitch = (torch.rand(batch, chunks, ticks, 128, slots) < 0.05).float()
    roll = torch.stack([pitch, pitch * torch.rand_like(pitch)], -1).flatten(-2)
    return roll  # channels: pitch, velocity, pitch, velocity


def test_upstreams_vae_gives_upstreams_numbers(tmp_path):
    report = convert_checkpoint(FIXTURE / "model.pth", tmp_path / "vae")
    assert report.kind == "live_vae" and report.tensors == 22
    vision = MortmLiveVision.from_pretrained(tmp_path / "vae").eval()
    given, want = np.load(FIXTURE / "inputs.npz"), np.load(FIXTURE / "expected.npz")
    with torch.no_grad():
        found = vision(torch.from_numpy(given["pianoroll"]), eps=torch.from_numpy(given["eps"]))
    for name, values in (("recon", found.logits), ("mu", found.mean), ("log_var", found.log_var)):
        assert np.abs(values.numpy() - want[name]).max() < 1e-4, name


def test_a_whole_live_checkpoint_converts(tmp_path):
    """Upstream's MORTMLive is its VAE (`vision.`) beside a bare decoder (`mortm.`), here put together from two."""
    source = FIXTURE.parent / "vmortm_alibi_moe_tanh_minimal_fix"
    decoder = torch.load(source / "model.pth", weights_only=True)
    state = {f"mortm.{k.removeprefix('decoder.')}": v for k, v in decoder.items() if k.startswith("decoder.")}
    raw = (source / "config.json").read_text()
    torch.manual_seed(0)
    vision = MortmLiveVision(MortmLiveConfig(hidden_size=64, num_attention_heads=4))
    state |= {f"vision.{k}": v for k, v in vision.state_dict().items()}
    torch.save(state, tmp_path / "model.pth")
    (tmp_path / "config.json").write_text(raw)
    report = convert_checkpoint(tmp_path / "model.pth", tmp_path / "live")
    assert report.kind == "live" and not report.missing and not report.unused
    model = MortmLiveForCausalGeneration.from_pretrained(tmp_path / "live").eval()
    again = {k.removeprefix("vision."): v for k, v in model.state_dict().items() if k.startswith("vision.")}
    assert all(torch.equal(again[k], v) for k, v in vision.state_dict().items())
    assert torch.isfinite(model(rolls(1, 3, 16, 8)).logits).all()


def test_outside_training_the_latent_is_the_mean():
    vision = tiny().vision
    roll = rolls()[0]
    assert torch.equal(vision(roll).latent, vision(roll).mean)
    vision.train()
    assert not torch.equal(vision(roll).latent, vision(roll).mean)


def test_a_chunk_sees_nothing_after_it():
    model, heard = tiny(), rolls()
    changed = heard.clone()
    changed[:, 3:] = 1 - changed[:, 3:]
    with torch.no_grad():
        before, after = model(heard).logits, model(changed).logits
    assert torch.allclose(before[:, :3], after[:, :3], atol=1e-6)
    assert (before[:, 3] - after[:, 3]).abs().max() > 1e-4


def test_the_other_slots_and_the_roles_act():
    model, heard = tiny(), rolls()
    other = heard.clone()
    other[..., 2:] = 0
    roles = torch.tensor([[True, False], [False, True]])
    with torch.no_grad():
        plain = model(heard, play=roles).logits
        assert (plain - model(other, play=roles).logits).abs().max() > 1e-4
        assert (plain - model(heard, play=~roles).logits).abs().max() > 1e-4
        phases = torch.arange(6).remainder(12).expand(2, -1)
        assert (plain - model(heard, play=roles, phase_ids=phases).logits).abs().max() > 1e-4


def test_cached_steps_are_the_whole_pass():
    model, heard = tiny(), rolls()
    with torch.no_grad():
        want = model(heard).logits
        cache = model(heard[:, :3], use_cache=True).past_key_values
        for chunk in range(3, 6):
            step = model(heard[:, chunk : chunk + 1], past_key_values=cache, use_cache=True, last_only=True)
            assert (step.logits[:, 0] - want[:, chunk]).abs().max() < 1e-4


def test_padding_changes_no_prediction_and_no_loss():
    model, heard = tiny(router_balancing="none"), rolls(1)
    mask = torch.tensor([[1] * 6 + [0] * 2])
    padded = torch.cat([heard, torch.ones(1, 2, *heard.shape[2:])], 1)
    with torch.no_grad():
        alone = model(heard, labels=heard)
        found = model(padded, attention_mask=mask, labels=padded)
    assert torch.allclose(found.logits[:, :6], alone.logits, atol=1e-5)
    for name, value in alone.losses.items():
        assert torch.allclose(found.losses[name], value, atol=1e-5), name


def test_targets_are_turned_to_the_decoders_orientation():
    """Logits that draw the next chunk have the least loss; drawn in the roll's own orientation they have not."""
    model, heard = tiny(router_balancing="none", chunk_ticks=128, vision_channels=2), rolls(1, 3, 128)
    target = heard.permute(0, 1, 4, 3, 2)
    sure = torch.where(target > 0, 20.0, -20.0)
    late = roll_losses(sure[:, :-1], target[:, 1:], model.config)["pitch"]
    perfect = roll_losses(sure[:, 1:], target[:, 1:], model.config)["pitch"]
    turned = roll_losses(sure[:, 1:].transpose(-1, -2), target[:, 1:], model.config)["pitch"]
    assert perfect < 1e-6
    assert turned > 0.5 and late > 0.5
    output = model(heard, labels=heard)
    want = roll_losses(output.logits[:, :-1], target[:, 1:], model.config)["pitch"]
    assert torch.allclose(output.losses["next_pitch"], want, atol=1e-6)


def test_the_loss_counts_the_slots_that_the_model_plays():
    model, heard = tiny(router_balancing="none"), rolls()
    roles = torch.tensor([[True, False], [True, False]])
    changed = heard.clone()
    changed[:, -1, :, :, 2:] = 0  # the last chunk is a target only, and its second slot nobody's business
    with torch.no_grad():
        first, second = (model(heard, play=roles, labels=labels).losses for labels in (heard, changed))
        both, fewer = (model(heard, labels=labels).losses for labels in (heard, changed))
    assert torch.allclose(first["next_pitch"], second["next_pitch"], atol=1e-6)
    assert not torch.allclose(both["next_pitch"], fewer["next_pitch"], atol=1e-6)  # unless the model plays it too
    assert torch.equal(first["pitch"], second["pitch"])  # what was heard is what is reconstructed


def test_training_reaches_every_parameter():
    model = tiny().train()
    output = model(rolls(), labels=rolls(), phase_ids=torch.arange(6).expand(2, -1))
    output.loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert torch.allclose(sum(output.losses.values()), output.loss)


def test_saved_and_loaded(tmp_path):
    model, heard = tiny(), rolls()
    model.save_pretrained(tmp_path)
    again = MortmLiveForCausalGeneration.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(heard).logits, model(heard).logits)


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(chunk_ticks=10), "multiple of 4"),
        (dict(instruments=[200]), "programs 0 to 127"),
        (dict(instruments=[]), "programs 0 to 127"),
        (dict(is_causal=False), "its own answer"),
    ],
)
def test_impossible_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words) as refused:
        MortmLiveConfig(**options)
    assert refused.value.code == "configuration.value"


def test_rolls_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="processor"):
        tiny()(torch.zeros(1, 2, 8, 128, 6))
