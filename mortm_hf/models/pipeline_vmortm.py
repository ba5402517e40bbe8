"""Pipeline `audio-continuation`: a sound goes in, the sound with new seconds after it comes out.

Design decisions
- What was given is returned as it was (resampled), and only the new part is made from frames; both are joined by a
  short cross-fade, as the phases do not meet.
- Only as many seconds of the end are given to the model as fit its context beside the answer.
- Sounds of a batch are padded as frames, on the left, where a mask hides the padding.

Knows: the feature extractor's methods, `generate`. Must not know: layers, Fourier transforms.
"""

from __future__ import annotations

import numpy as np
import torch

from .errors_mortm import AudioError
from .pipeline_midi import MusicPipeline


FADE_SECONDS = 0.05


class AudioContinuationPipeline(MusicPipeline):
    """`pipe("in.wav", seconds=5)` -> `{"audio": [samples], "sampling_rate", "new_audio", "spectrogram"}`.

    Args (of a call, or of the pipeline as defaults of its calls):
        inputs: path, bytes, array, `{"array", "sampling_rate"}`, or a list of these.
            sampling_rate: of an array, in Hz.
        seconds: new seconds at most (default 4).
        stop_threshold: probability of an end at which the sound ends, see `VMortmForSpectrogramGeneration.generate`.
        noise: standard deviation of what is added to each new frame, see there.
        seed: of noise and first phases; the same seed gives the same samples.
        iterations: of the phase estimate.

    Returns:
        A dict (a list of them for a list of inputs): `audio` [samples] float32, given and new; `new_audio`;
        `sampling_rate` in Hz; `spectrogram` [frames, mel bins]; `given_frames`, how many of these were given.

    Raises:
        AudioError: unusable sound, or more seconds than the context holds (a `ValueError` with a `code`).
    """

    _load_tokenizer = False
    _load_feature_extractor = True
    _options = (("sampling_rate",), ("seconds", "stop_threshold", "noise", "seed"), ("iterations",))

    def _sanitize_parameters(self, **kwargs):
        given = {name: value for name, value in kwargs.items() if value is not None}
        before, run, after = super()._sanitize_parameters(**given)
        if not run.get("seconds", 1) > 0:
            raise AudioError(f"seconds must be positive, got {run['seconds']}", "audio.argument")
        if "seed" in run:  # of the noise, and of the first phases
            after["seed"] = run["seed"]
        return before, run, after

    def preprocess(self, inputs, sampling_rate=None):
        wave = self.feature_extractor.read(inputs, sampling_rate)
        # one entry for both, so that a batch is a list of them: nothing of a sound is padded on the way
        return {"sound": {"wave": wave, "features": torch.from_numpy(self.feature_extractor.frames(wave))}}

    def _forward(self, inputs, seconds=4.0, seed=None, stop_threshold=1.0, noise=0.0):
        sounds = inputs["sound"]
        many = isinstance(sounds, list)
        sounds = sounds if many else [sounds]
        extractor, config = self.feature_extractor, self.model.config
        new = max(1, round(seconds * extractor.sampling_rate / extractor.hop_length))
        room = config.max_position_embeddings - -(-new // config.patch_size)
        if room < 1:
            most = (config.max_position_embeddings - 1) * config.patch_size * extractor.hop_length
            raise AudioError(
                f"{seconds} seconds exceed the context: ask for at most {most / extractor.sampling_rate:.1f}",
                "audio.too_long",
            )
        given = [sound["features"][-room * config.patch_size :] for sound in sounds]
        options = dict(max_new_frames=new, stop_threshold=stop_threshold, noise=noise)
        # noise is drawn for a batch at once: one sound at a time, so that a seed's noise does not depend on the others
        groups = [[frames] for frames in given] if noise else [given]
        made = []
        for group in groups:
            generator = torch.Generator(device=self.device).manual_seed(seed or 0) if noise else None
            features = torch.nn.utils.rnn.pad_sequence(group, batch_first=True, padding_side="left")
            lengths = torch.tensor([len(frames) for frames in group], device=features.device)[:, None]
            mask = torch.arange(features.shape[1], device=features.device) >= features.shape[1] - lengths
            output = self.model.generate(features, mask.long(), generator=generator, **options)
            for row, real, count in zip(output.features, output.attention_mask, output.new_frames):
                made.append({"features": row[real.bool()], "new": int(count)})
        results = [{"wave": sound["wave"], **one} for sound, one in zip(sounds, made)]
        return {"result": results if many else results[0]}

    def postprocess(self, outputs, iterations=60, seed=0):
        extractor, result = self.feature_extractor, outputs["result"]
        real, new, wave = result["features"].float().cpu(), result["new"], result["wave"]
        given = real.shape[0] - new
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
