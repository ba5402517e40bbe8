"""Pipeline `audio-continuation`: a sound goes in, the sound with new seconds after it comes out.

Design decisions
- What was given is returned as it was (resampled), and only the new part is made from frames; both are joined by a
  short cross-fade, as the phases do not meet.
- Only as many seconds of the end are heard as fit the context beside the answer.

Knows: the feature extractor's methods, `generate`. Must not know: layers, Fourier transforms.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import Pipeline

from .errors_mortm import AudioError


FADE_SECONDS = 0.05


class AudioContinuationPipeline(Pipeline):
    """`pipe("in.wav", seconds=5)` -> `{"audio": [samples], "sampling_rate", "new_audio", "spectrogram"}`.

    Args of a call:
        inputs: path, bytes, array, `{"array", "sampling_rate"}`, or a list of these.
        seconds: new seconds at most (default 4).
        stop_threshold, noise: see `VMortmForSpectrogramGeneration.generate`.
        seed: of noise and first phases; the same seed gives the same samples.
        iterations: of the phase estimate.
    """

    _load_tokenizer = False
    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = True
    _pipeline_calls_generate = False

    def _sanitize_parameters(self, sampling_rate=None, seconds=None, iterations=None, **run):
        unknown = set(run) - {"stop_threshold", "noise", "seed"}
        if unknown:
            raise TypeError(
                f"{self.task} has no argument {sorted(unknown)[0]!r}; it takes seconds, sampling_rate, iterations, "
                "stop_threshold, noise, seed"
            )
        if seconds is not None:
            if not seconds > 0:
                raise AudioError(f"seconds must be positive, got {seconds}", "audio.argument")
            run["seconds"] = seconds
        before = {} if sampling_rate is None else {"sampling_rate": sampling_rate}
        after = {} if iterations is None else {"iterations": iterations}
        if "seed" in run:
            after["seed"] = run["seed"] or 0
        return before, run, after

    def preprocess(self, inputs, sampling_rate=None):
        wave = self.feature_extractor.read(inputs, sampling_rate)
        return {"wave": wave, "features": torch.from_numpy(self.feature_extractor.frames(wave))[None]}

    def _forward(self, inputs, seconds=4.0, seed=None, stop_threshold=1.0, noise=0.0):
        extractor, config = self.feature_extractor, self.model.config
        new = max(1, round(seconds * extractor.sampling_rate / extractor.hop_length))
        room = config.max_position_embeddings - -(-new // config.patch_size)
        if room < 1:
            most = (config.max_position_embeddings - 1) * config.patch_size * extractor.hop_length
            raise AudioError(
                f"{seconds} seconds exceed the context: ask for at most {most / extractor.sampling_rate:.1f}",
                "audio.too_long",
            )
        generator = None
        if noise:
            generator = torch.Generator(device=self.device).manual_seed(seed or 0)
        output = self.model.generate(
            inputs["features"][:, -room * config.patch_size :],
            max_new_frames=new,
            stop_threshold=stop_threshold,
            noise=noise,
            generator=generator,
        )
        return {"wave": inputs["wave"], "output": output}

    def postprocess(self, outputs, iterations=60, seed=0):
        extractor, output = self.feature_extractor, outputs["output"]
        real = output.features[0][output.attention_mask[0].bool()].float().cpu()
        new = int(output.new_frames[0])
        wave, given = outputs["wave"], real.shape[0] - new
        context = min(given, 32)  # frames before the new ones, so that the join lies inside one phase estimate
        made = extractor.to_audio(real[given - context :], iterations=iterations, seed=seed)[0]
        start = context * extractor.hop_length  # sample of the first new frame, were the given ones all sounded
        overlap = min(int(FADE_SECONDS * extractor.sampling_rate), start, wave.size)
        fade = np.linspace(0.0, 1.0, overlap, dtype=np.float32)
        # the last given frame is centred on the last given sample, up to one hop
        new_audio = made[max(0, start - extractor.hop_length) :]
        tail = made[max(0, start - extractor.hop_length - overlap) : max(0, start - extractor.hop_length)]
        joined = wave.copy()
        if overlap and tail.size == overlap:
            joined[-overlap:] = joined[-overlap:] * (1 - fade) + tail * fade
        return {
            "audio": np.concatenate([joined, new_audio]),
            "new_audio": new_audio,
            "sampling_rate": extractor.sampling_rate,
            "spectrogram": real.numpy(),
            "given_frames": given,
        }


__all__ = ["AudioContinuationPipeline"]
