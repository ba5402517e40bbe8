"""V_MORTM: upstream's numbers, causality, padding, the loss's targets, and its own generate."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mortm_hf import VMortmConfig, VMortmForSpectrogramGeneration, VMortmModel, convert_checkpoint
from mortm_hf.models.modeling_vmortm import align_right


FIXTURE = Path(__file__).parents[1] / "fixtures" / "upstream_perception" / "vmortm_alibi_moe_tanh_minimal_fix"


def tiny(**options) -> VMortmForSpectrogramGeneration:
    torch.manual_seed(0)
    shape = dict(num_mel_bins=6, patch_size=3, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    shape |= dict(moe_intermediate_size=24, shared_expert_intermediate_size=16, num_local_experts=4)
    config = VMortmConfig(**{**shape, "initializer_range": 0.2, "max_position_embeddings": 64, **options})
    return VMortmForSpectrogramGeneration(config).eval()


def test_upstreams_weights_give_upstreams_output(tmp_path):
    report = convert_checkpoint(FIXTURE / "model.pth", tmp_path / "model")
    assert report.kind == "vmortm" and not report.unused and not report.missing
    model = VMortmForSpectrogramGeneration.from_pretrained(tmp_path / "model").eval()
    given, want = np.load(FIXTURE / "inputs.npz")["spectrogram"], np.load(FIXTURE / "expected.npz")["output"]
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            found = model(torch.from_numpy(given)).predictions
        assert np.abs(found.numpy() - want).max() < 1e-4


@pytest.mark.parametrize("difference", [False, True])
@pytest.mark.parametrize("positions", ["rope", "alibi"])
def test_a_patch_sees_nothing_after_it(positions, difference):
    model = tiny(position_embedding_type=positions, predict_difference=difference)
    features = torch.randn(2, 24, 6)
    changed = features.clone()
    changed[:, 12:] += 1.0  # patches 4 and later
    with torch.no_grad():
        before, after = model(features), model(changed)
    # experts sort their tokens, so that the last digits depend on the whole row
    assert torch.allclose(before.predictions[:, :12], after.predictions[:, :12], atol=1e-6)
    assert torch.allclose(before.stop_logits[:, :4], after.stop_logits[:, :4], atol=1e-6)
    assert (before.predictions[:, 12:15] - after.predictions[:, 12:15]).abs().max() > 1e-3  # its own patch acts


def test_the_target_is_the_whole_next_patch():
    model = tiny(router_balancing="none")
    features = torch.randn(2, 12, 6)
    with torch.no_grad():
        output = model(features, labels=features)
        predictions = model(features).predictions
    want = (predictions[:, :9] - features[:, 3:]).square().mean()
    assert torch.allclose(output.regression_loss, want, atol=1e-6)
    # what is visible must not be a part of the target: a copy of the input gets no credit
    assert (features[:, :9] - features[:, 3:]).square().mean() > 1.0


def test_padding_changes_no_prediction_and_no_loss():
    model = tiny(router_balancing="none")
    features = torch.randn(1, 12, 6)
    padded = torch.cat([features, 100 * torch.ones(1, 6, 6)], 1)
    mask = torch.tensor([[1] * 12 + [0] * 6])
    with torch.no_grad():
        alone = model(features, labels=features)
        right = model(padded, attention_mask=mask, labels=padded)
        left = model(padded.roll(6, 1), attention_mask=mask.roll(6, 1), labels=padded.roll(6, 1))
    assert torch.allclose(right.predictions[:, :12], alone.predictions, atol=1e-5)
    assert torch.allclose(left.predictions[:, 6:], alone.predictions, atol=1e-5)
    for output in (right, left):
        assert torch.allclose(output.regression_loss, alone.regression_loss, atol=1e-5)


def test_the_stop_head_learns_where_recordings_end_only():
    model = tiny(router_balancing="none", stop_loss_weight=1.0)
    features = torch.randn(2, 12, 6)
    output = model(features, labels=features, ends=torch.tensor([True, False]))
    logits = output.stop_logits
    target = torch.zeros_like(logits)
    target[0, -1] = 1
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    known = torch.ones_like(logits)
    known[1, -1] = 0  # the second row goes on somewhere else: nothing is known of its last patch
    assert torch.allclose(output.stop_loss, (losses * known).sum() / known.sum(), atol=1e-6)
    assert torch.allclose(output.loss, output.regression_loss + output.stop_loss, atol=1e-6)


@pytest.mark.parametrize("frames", [12, 13])
def test_cached_generation_is_the_uncached_one(frames):
    model = tiny(predict_difference=True)
    features = torch.rand(2, frames, 6)
    cached = model.generate(features, max_new_frames=9)
    plain = model.generate(features, max_new_frames=9, use_cache=False)
    assert torch.allclose(cached.features, plain.features, atol=1e-4)
    assert cached.new_frames.tolist() == [9, 9]
    assert torch.equal(cached.features[:, -9 - frames : -9], features)  # what was given stays as it was


def test_rows_do_not_know_their_batch():
    model = tiny(predict_difference=True)
    long, short = torch.rand(1, 15, 6), torch.rand(1, 7, 6)
    alone = model.generate(short, max_new_frames=6)
    batch = torch.cat([long, torch.cat([short, torch.zeros(1, 8, 6)], 1)])
    mask = torch.tensor([[1] * 15, [1] * 7 + [0] * 8])
    both = model.generate(batch, mask, max_new_frames=6)
    assert torch.allclose(both.features[1, -6:], alone.features[0, -6:], atol=1e-4)
    assert int(both.attention_mask[1].sum()) == 13


def test_a_row_stops_when_the_stop_head_says_so():
    model = tiny()
    features = torch.rand(2, 9, 6)
    with torch.no_grad():
        model.stop_head.weight.zero_()
        model.stop_head.bias.fill_(3.0)  # always: the first new patch is the last one
    output = model.generate(features, max_new_frames=12, stop_threshold=0.5)
    assert output.new_frames.tolist() == [3, 3]
    assert model.generate(features, max_new_frames=12).new_frames.tolist() == [12, 12]


def test_noise_is_seeded():
    model = tiny()
    features = torch.rand(1, 9, 6)
    runs = [
        model.generate(features, max_new_frames=6, noise=0.5, generator=torch.Generator().manual_seed(seed)).features
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda m: m(torch.rand(1, 10, 6)), "pad_to_multiple_of=3"),
        (lambda m: m(torch.rand(1, 9, 7)), r"\[batch, frames, 6\]"),
        (lambda m: m.generate(torch.rand(1, 9, 6), max_new_frames=0), "at least 1"),
        (lambda m: m.generate(torch.rand(1, 9, 6), max_new_frames=600), "exceed the context of 64"),
        (lambda m: m.generate(torch.rand(1, 9, 6), torch.zeros(1, 9), max_new_frames=3), "at least one given frame"),
    ],
)
def test_what_cannot_be_done_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(tiny())


def test_align_right_moves_rows_to_the_end():
    features = torch.arange(1.0, 11.0).reshape(2, 5, 1)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 0]])
    moved, kept = align_right(features, mask, 4)
    assert moved.squeeze(-1).tolist() == [[0, 0, 0, 0, 0, 1, 2, 3], [0, 0, 0, 0, 0, 7, 8, 9]]
    assert kept.tolist() == [[0, 0, 0, 0, 0, 1, 1, 1]] * 2


def test_training_reaches_every_parameter_with_checkpointing():
    model = tiny(router_aux_loss_coef=0.01).train()
    features = torch.rand(2, 12, 6)
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(features, labels=features, ends=torch.tensor([True, True])).loss.backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters()})
    assert all(torch.allclose(grads[0][name], grads[1][name], atol=1e-6) for name in grads[0])
    assert all(grad.abs().sum() > 0 for grad in grads[0].values())


def test_the_base_model_loads_from_a_saved_head(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    base = VMortmModel.from_pretrained(tmp_path).eval()
    features = torch.rand(1, 9, 6)
    with torch.no_grad():
        assert torch.equal(base(features).last_hidden_state, model.model(features).last_hidden_state)
