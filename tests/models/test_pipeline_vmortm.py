"""`audio-continuation`: what is given stays, batches and seeds, precision, what is refused."""

import numpy as np
import pytest
import torch

import mortm_hf
from mortm_hf import AudioContinuationPipeline, VMortmConfig, VMortmFeatureExtractor, VMortmForSpectrogramGeneration
from mortm_hf.models.errors_mortm import AudioError


RATE = 8000
ASKED = dict(sampling_rate=RATE, seconds=0.2, iterations=2)


def sound(frequency, samples):
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(samples) / RATE)).astype(np.float32)


SOUNDS = [sound(220, 4000), sound(330, 2600), sound(440, 3300)]  # prompts of different lengths


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "tiny"
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, moe_intermediate_size=16)
    sizes |= dict(shared_expert_intermediate_size=16, num_local_experts=4, initializer_range=0.2)
    mel = dict(num_mel_bins=8, patch_size=2, max_position_embeddings=48)
    VMortmForSpectrogramGeneration(VMortmConfig(**sizes, **mel)).save_pretrained(path)
    VMortmFeatureExtractor(
        feature_size=8, sampling_rate=RATE, n_fft=256, hop_length=128, patch_size=2
    ).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pipe(folder):
    return mortm_hf.pipeline("audio-continuation", model=folder, device="cpu")


def test_what_was_given_stays(pipe):
    result = pipe(SOUNDS[0], **ASKED)
    assert type(pipe) is AudioContinuationPipeline and result["sampling_rate"] == RATE
    kept = len(SOUNDS[0]) - int(0.05 * RATE)  # the end is faded into what is new
    np.testing.assert_array_equal(result["audio"][:kept], SOUNDS[0][:kept])
    assert len(result["audio"]) == len(SOUNDS[0]) + len(result["new_audio"])
    assert abs(len(result["new_audio"]) - 0.2 * RATE) <= 128 and np.isfinite(result["audio"]).all()
    assert result["spectrogram"].shape[1] == 8 and len(result["spectrogram"]) > result["given_frames"]


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_batches_change_nothing(pipe, noise):
    alone = [pipe(one, noise=noise, seed=3, **ASKED) for one in SOUNDS]
    for size in (1, 2, 3):
        together = pipe(SOUNDS, batch_size=size, noise=noise, seed=3, **ASKED)
        for one, other in zip(alone, together, strict=True):
            assert one["given_frames"] == other["given_frames"]
            np.testing.assert_allclose(one["spectrogram"], other["spectrogram"], atol=1e-5)


def test_seeds(pipe):
    first, same, other = (pipe(SOUNDS[1], noise=1.0, seed=seed, **ASKED) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first["audio"], same["audio"])
    assert not np.array_equal(first["spectrogram"], other["spectrogram"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precision_is_an_argument(folder, dtype, pipe):
    other = mortm_hf.pipeline("audio-continuation", model=folder, device="cpu", dtype=dtype)
    assert {parameter.dtype for parameter in other.model.parameters()} == {dtype}
    found = other(SOUNDS[:2], batch_size=2, **ASKED)
    for one, result in zip(SOUNDS, found, strict=False):
        want = pipe(one, **ASKED)
        assert result["audio"].dtype == np.float32 and result["audio"].shape == want["audio"].shape
        spread = 1e-5 if dtype == torch.float32 else 0.1
        assert np.abs(result["spectrogram"] - want["spectrogram"]).max() < spread * (1 + want["spectrogram"].max())


def test_a_long_sound_is_heard_from_its_end(pipe):
    """More than the context holds: the last seconds decide, the rest is still in the answer."""
    long, other = (np.concatenate([sound(f, 9000), *SOUNDS, *SOUNDS]) for f in (500, 700))
    one, two = (pipe(wave, **ASKED) for wave in (long, other))
    np.testing.assert_allclose(one["new_audio"], two["new_audio"], atol=1e-5)
    np.testing.assert_array_equal(one["audio"][:9000], long[:9000])


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        (dict(seconds=0), AudioError, "seconds must be positive"),
        (dict(seconds=60), AudioError, "exceed the context"),
        (dict(bars=4), TypeError, "no argument 'bars'"),
    ],
)
def test_what_is_refused(pipe, asked, error, words):
    with pytest.raises(error, match=words):
        pipe(SOUNDS[0], **{**ASKED, **asked})
