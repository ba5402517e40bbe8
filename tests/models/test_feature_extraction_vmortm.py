"""Sound to frames and back: shapes, masks, files, resampling, and what cannot be read."""

import io

import numpy as np
import pytest
import torch

from mortm_hf import AudioError, VMortmFeatureExtractor


soundfile = pytest.importorskip("soundfile")
RATE = 8000


@pytest.fixture(scope="module")
def extractor():
    return VMortmFeatureExtractor(feature_size=40, sampling_rate=RATE, n_fft=512, hop_length=128)


def tone(seconds=0.5, frequency=440.0, rate=RATE):
    return (0.3 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def test_frames_are_log_power_of_the_right_bins(extractor):
    low, high = extractor.frames(tone(frequency=300)), extractor.frames(tone(frequency=3000))
    assert low.shape == (1 + len(tone()) // 128, 40) and low.dtype == np.float32
    assert low.min() >= 0
    assert low[10].argmax() < high[10].argmax()
    # twice the amplitude is four times the power
    louder = extractor.frames(2 * tone(frequency=300))
    assert np.allclose(np.expm1(louder[5:-5]), 4 * np.expm1(low[5:-5]), rtol=1e-3, atol=1e-4)


def test_batches_are_padded_to_patches_with_a_mask(extractor):
    batch = extractor([tone(0.5), tone(0.2)], sampling_rate=RATE, return_tensors="pt")
    assert batch["input_features"].shape[1] % extractor.patch_size == 0
    assert batch["attention_mask"].sum(-1).tolist() == [1 + 4000 // 128, 1 + 1600 // 128]
    assert batch["attention_mask"][1, 0] == 0  # in front of the sound
    assert batch["input_features"][1][batch["attention_mask"][1] == 0].abs().max() == 0


def test_channels_integers_files_and_other_rates(extractor, tmp_path):
    wave = tone()
    assert np.allclose(extractor.read(np.stack([wave, -wave]), RATE), 0, atol=1e-6)
    assert np.allclose(extractor.read((wave * 32767).astype(np.int16), RATE), wave, atol=1e-4)
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(rate=16000), 16000)
    read = extractor.read(path)
    assert len(read) == len(wave)
    assert np.corrcoef(read[200:-200], wave[200:-200])[0, 1] > 0.999
    held = io.BytesIO()
    soundfile.write(held, wave, RATE, format="FLAC")
    assert np.allclose(extractor.read(held.getvalue()), wave, atol=1e-3)
    assert np.array_equal(extractor.read({"array": wave, "sampling_rate": RATE}), wave)


def test_the_way_back_sounds_alike(extractor):
    wave = tone(1.0)
    frames = extractor.frames(wave)
    back = extractor.to_audio(frames, iterations=20)[0]
    assert len(back) == (len(frames) - 1) * 128
    assert abs(np.sqrt((back**2).mean()) - np.sqrt((wave**2).mean())) < 0.05
    spectrum = np.abs(np.fft.rfft(back[1000:7000]))
    assert abs(np.fft.rfftfreq(6000, 1 / RATE)[spectrum.argmax()] - 440) < 20
    assert np.array_equal(back, extractor.to_audio(frames, iterations=20)[0])


def test_the_mask_says_what_is_sounded(extractor):
    batch = extractor([tone(0.5), tone(0.2)], sampling_rate=RATE, return_tensors="pt")
    waves = extractor.to_audio(batch["input_features"], batch["attention_mask"], iterations=2)
    assert [len(w) for w in waves] == [(4000 // 128) * 128, (1600 // 128) * 128]


def test_saved_and_loaded(extractor, tmp_path):
    extractor.save_pretrained(tmp_path)
    assert "mel_filters" not in (tmp_path / "preprocessor_config.json").read_text()
    again = VMortmFeatureExtractor.from_pretrained(tmp_path)
    assert np.array_equal(again.frames(tone()), extractor.frames(tone()))


@pytest.mark.parametrize(
    "audio, code",
    [
        ("missing.wav", "audio.unreadable"),
        (b"no sound at all", "audio.unreadable"),
        (np.zeros(0, np.float32), "audio.empty"),
        (np.full(100, np.nan, np.float32), "audio.unreadable"),
        (np.zeros((2, 2, 2), np.float32), "audio.unreadable"),
        ([], "audio.empty"),
    ],
)
def test_bad_sound_is_refused_by_name(extractor, audio, code):
    with pytest.raises(AudioError) as caught:
        extractor(audio)
    assert caught.value.code == code


def test_very_short_sound_is_a_few_frames(extractor):
    assert extractor.frames(np.ones(3, np.float32)).shape[1] == 40
    assert torch.isfinite(torch.from_numpy(extractor.frames(np.ones(3, np.float32)))).all()
