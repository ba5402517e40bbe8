"""Sound to mel frames and back for V_MORTM (DESIGN 11): mono, resampled, log(1 + mel power).

Design decisions
- The transform is transformers' `audio_utils`: triangular filters on the HTK scale without area normalisation, Hann
  window, centred frames, as upstream's 80 bins, n_fft 1024, hop 256 (SPEC 6).
- Frames are padded to whole patches, in front of the sound by default: what is continued is the end.
- The way back is an estimate: a non-negative least-squares fit of the power spectrum, then Griffin and Lim's phase
  iteration (1984) with Perraudin's momentum (2013). It sounds hollow and metallic; a neural vocoder would do better.
- Files are read by soundfile and resampled by scipy, both of the `[audio]` extra and asked for only when needed.

Knows: wave forms, files of sound, frames. Must not know: models, patches' meaning.
"""

from __future__ import annotations

import io
import os

import numpy as np
import torch
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature

from .errors_mortm import AudioError
from .families import FAMILIES


MAX_SECONDS = 3600.0


class VMortmFeatureExtractor(SequenceFeatureExtractor):
    r"""Wave forms to `input_features` [batch, frames, feature_size] of log(1 + power), and back.

    Args:
        feature_size: mel bins.
        sampling_rate: in Hz; other rates are resampled to it.
        padding_value: log(1 + power) of padded frames.
        n_fft: samples of a window.
        hop_length: samples between frames.
        f_min: lowest frequency of the filters in Hz.
        f_max: highest frequency of the filters in Hz; half the sampling rate by default.
        patch_size: frames are padded to a multiple of this.
        padding_side: "left" for continuing, "right" for training.
    """

    model_input_names = ["input_features", "attention_mask"]

    def __init__(
        self,
        feature_size: int = 80,
        sampling_rate: int = 22050,
        padding_value: float = 0.0,
        n_fft: int = 1024,
        hop_length: int = 256,
        f_min: float = 0.0,
        f_max: float | None = None,
        patch_size: int = 4,
        padding_side: str = "left",
        **kwargs,
    ):
        super().__init__(
            feature_size=feature_size,
            sampling_rate=sampling_rate,
            padding_value=padding_value,
            padding_side=padding_side,
            **kwargs,
        )
        self.n_fft, self.hop_length = n_fft, hop_length
        self.f_min, self.f_max = f_min, f_max
        self.patch_size = patch_size
        self.mel_filters = mel_filter_bank(
            num_frequency_bins=n_fft // 2 + 1,
            num_mel_filters=feature_size,
            min_frequency=f_min,
            max_frequency=f_max or sampling_rate / 2,
            sampling_rate=sampling_rate,
            norm=None,
            mel_scale="htk",
        )
        self.window = window_function(n_fft, "hann")

    def to_dict(self) -> dict:
        """The parameters and the classes' names; what is computed from the parameters is left out."""
        output = {k: v for k, v in super().to_dict().items() if k not in ("mel_filters", "window")}
        return output | {"auto_map": FAMILIES["vmortm"].readers | output.get("auto_map", {})}

    # ------------------------------------------------------------------------------------------------------ to frames

    def read(self, audio, sampling_rate: int | None = None) -> np.ndarray:
        """One mono wave form [samples] at `self.sampling_rate`, float32 in -1 to 1.

        Args:
            audio: path, bytes of a wav or flac file, array [samples] or [channels, samples] (fewer channels than
                samples), or a dict with `array` (or `raw`) and `sampling_rate`.
            sampling_rate: of an array, in Hz; `self.sampling_rate` by default.

        Raises:
            AudioError: `audio.unreadable`, `audio.empty`, `audio.too_long`, `audio.rate`, `audio.missing` (a package
                of the `[audio]` extra is not installed).
        """
        name = "the audio"
        if isinstance(audio, dict):
            sampling_rate = audio.get("sampling_rate", sampling_rate)
            audio = audio.get("array", audio.get("raw"))
        if isinstance(audio, (str, os.PathLike, bytes)):
            if not isinstance(audio, bytes):
                name = os.fspath(audio)
            audio, sampling_rate = _read_file(audio, name)
        elif sampling_rate is None:
            sampling_rate = self.sampling_rate
        wave = np.asarray(audio.detach().cpu() if isinstance(audio, torch.Tensor) else audio)
        if wave.dtype.kind == "i":
            wave = wave / float(np.iinfo(wave.dtype).max)
        if wave.dtype.kind != "f" or wave.ndim not in (1, 2):
            raise AudioError(f"{name}: expected samples, got an array {wave.shape} of {wave.dtype}")
        if wave.ndim == 2:
            wave = wave.mean(int(wave.shape[0] > wave.shape[1]))
        if not wave.size:
            raise AudioError(f"{name} holds no samples", "audio.empty")
        if not np.isfinite(wave).all():
            raise AudioError(f"{name} holds samples that are no numbers")
        if not sampling_rate or sampling_rate < 1:
            raise AudioError(f"{name}: a sampling rate in Hz is needed, got {sampling_rate}", "audio.rate")
        if wave.size / sampling_rate > MAX_SECONDS:
            raise AudioError(
                f"{name} lasts {wave.size / sampling_rate:.0f} seconds, more than {MAX_SECONDS:.0f}: cut it",
                "audio.too_long",
            )
        return _resample(wave.astype(np.float32), int(sampling_rate), self.sampling_rate)

    def frames(self, wave: np.ndarray) -> np.ndarray:
        """Wave form [samples] -> log(1 + mel power) [frames, feature_size], float32; frames = 1 + samples // hop."""
        if wave.size <= self.n_fft // 2:  # centred frames mirror half a window at both ends
            wave = np.pad(wave, (0, self.n_fft // 2 + 1 - wave.size))
        power = spectrogram(
            wave,
            self.window,
            frame_length=self.n_fft,
            hop_length=self.hop_length,
            power=2.0,
            mel_filters=self.mel_filters,
        )
        return np.log1p(power.T).astype(np.float32)

    def __call__(
        self,
        audio,
        sampling_rate: int | None = None,
        padding: bool | str = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool = True,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """`input_features` [batch, frames, feature_size] and `attention_mask` [batch, frames] (1: real frame).

        Args:
            audio: one input of `read`, or a list of them.
            sampling_rate: of arrays, in Hz.
            padding: as in transformers; True pads to the longest.
            max_length: most frames.
            truncation: cut what exceeds `max_length` off at the end.
            pad_to_multiple_of: frames; the patch size by default.
            return_attention_mask: give the mask too.
            return_tensors: "pt" or "np"; lists of arrays by default.

        Raises:
            AudioError: see `read`.
        """
        many = isinstance(audio, (list, tuple)) and not np.isscalar(audio[0] if len(audio) else 0)
        items = list(audio) if many else [audio]
        if not items:
            raise AudioError("no audio was given", "audio.empty")
        features = [self.frames(self.read(item, sampling_rate)) for item in items]
        return self.pad(
            BatchFeature({"input_features": features}),
            padding=padding,
            max_length=max_length,
            truncation=truncation,
            pad_to_multiple_of=self.patch_size if pad_to_multiple_of is None else pad_to_multiple_of,
            return_attention_mask=return_attention_mask,
            return_tensors=return_tensors,
        )

    # ------------------------------------------------------------------------------------------------------- to sound

    def to_audio(
        self, features, attention_mask=None, iterations: int = 60, momentum: float = 0.99, seed: int = 0
    ) -> list[np.ndarray]:
        """Frames back to sound: one wave form [samples] a row, samples = (frames - 1) * hop.

        Args:
            features: [batch, frames, feature_size] or one row.
            attention_mask: [batch, frames]; only real frames are sounded.
            iterations: steps of Griffin and Lim's phase estimate.
            momentum: of these steps; 0 for the plain method.
            seed: seed of the first phases.
        """
        features = torch.as_tensor(np.asarray(features) if not isinstance(features, torch.Tensor) else features)
        features = features.detach().float().cpu()
        if features.dim() == 2:
            features = features[None]
        rows = features.unbind(0)
        if attention_mask is not None:
            mask = torch.as_tensor(attention_mask).cpu().bool()
            rows = [row[real] for row, real in zip(rows, mask, strict=True)]
        return [self._griffin_lim(row, iterations, momentum, seed) for row in rows]

    def _griffin_lim(self, frames: torch.Tensor, iterations: int, momentum: float, seed: int) -> np.ndarray:
        if frames.shape[0] < 2:
            return np.zeros(0, dtype=np.float32)
        magnitude = self._linear_power(torch.expm1(frames.clamp(min=0.0))).sqrt().T.contiguous()
        window = torch.as_tensor(self.window, dtype=torch.float32)
        length = (frames.shape[0] - 1) * self.hop_length
        options = dict(n_fft=self.n_fft, hop_length=self.hop_length, window=window)
        generator = torch.Generator().manual_seed(seed)
        angles = torch.polar(
            torch.ones_like(magnitude), 2 * torch.pi * torch.rand(magnitude.shape, generator=generator)
        )
        before = torch.zeros_like(angles)
        for _ in range(iterations):
            wave = torch.istft(magnitude * angles, length=length, **options)
            again = torch.stft(wave, center=True, return_complex=True, **options)
            angles = again - momentum / (1 + momentum) * before
            angles = angles / angles.abs().clamp(min=1e-9)
            before = again
        return torch.istft(magnitude * angles, length=length, **options).numpy()

    def _linear_power(self, mel: torch.Tensor, steps: int = 60) -> torch.Tensor:
        """Mel power [frames, bins] -> power of the frequencies [frames, n_fft / 2 + 1], fitted with all values >= 0.

        Multiplicative updates (Lee and Seung, 2000) from a positive start stay positive and never overshoot.
        """
        filters = torch.as_tensor(self.mel_filters, dtype=torch.float32)  # [frequencies, bins]
        share = filters / filters.sum(0).clamp(min=1e-12)
        power = mel @ share.T + 1e-9
        wanted = mel @ filters.T
        for _ in range(steps):
            power = power * wanted / (power @ filters @ filters.T).clamp(min=1e-9)
        return power


def _read_file(source, name: str) -> tuple[np.ndarray, int]:
    try:
        import soundfile
    except ImportError as error:
        raise AudioError(
            f"reading {name} needs the package soundfile: pip install 'mortm_hf[audio]', or give an array",
            "audio.missing",
        ) from error
    if not isinstance(source, bytes) and not os.path.isfile(source):
        raise AudioError(f"{name}: no such file")
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else os.fspath(source)) as file:
            if file.frames > MAX_SECONDS * file.samplerate:
                raise AudioError(
                    f"{name} lasts {file.frames / file.samplerate:.0f} seconds, more than {MAX_SECONDS:.0f}: cut it",
                    "audio.too_long",
                )
            return file.read(dtype="float32", always_2d=True).mean(1), file.samplerate
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{name} is no sound file that can be read: {error}") from error


def _resample(wave: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    if rate == wanted:
        return wave
    try:
        from scipy.signal import resample_poly
    except ImportError as error:
        raise AudioError(
            f"resampling {rate} Hz to {wanted} Hz needs scipy: pip install 'mortm_hf[audio]', or give {wanted} Hz",
            "audio.missing",
        ) from error
    common = int(np.gcd(rate, wanted))
    return resample_poly(wave, wanted // common, rate // common).astype(np.float32)


__all__ = ["VMortmFeatureExtractor"]
