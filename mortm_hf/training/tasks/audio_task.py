"""Training of V_MORTM on rendered music (`task: audio`).

Design decisions
- The section `sound` says what is rendered and how it is cut; the mean and spread of the training frames go into the
  model's configuration.
- With `eval_windows: all` the loss on windows of the validation songs is measured on the way.

Knows: rendered songs, the model and its feature extractor. Must not know: how a loss comes about, how a run goes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ...data.mel_frames import SoundWindows, build_sound
from ...models.configuration_vmortm import VMortmConfig
from ...models.errors_mortm import TrainingError
from ...models.feature_extraction_vmortm import VMortmFeatureExtractor
from ...models.modeling_vmortm import VMortmForSpectrogramGeneration
from ..recipe import Recipe, RecipeKind
from ..run import batches_of, carry_out, complete_arguments, new_trainer, open_run, packs_of_step, without_bars
from ..songs import cache_of, open_songs
from ..trainer import PackTrainer
from ..validation import MeanLosses, batches_to_measure
from ..weights import fresh_weights, prepare_weights, set_experts


@dataclass
class SoundRecipe:
    """What is rendered, and how it is cut.

    Attributes:
        minutes: of the training split that are rendered.
        bars: of a rendered piece.
        sampling_rate: in Hz.
        frames: of a window.
        batch: windows of a step.
    """

    minutes: float = 40.0
    bars: int = 16
    sampling_rate: int = 16000
    frames: int = 256
    batch: int = 8


KIND = RecipeKind("audio", VMortmConfig, own={"sound": SoundRecipe})


@without_bars()
def train(recipe: Recipe, stores: dict | None = None) -> PackTrainer:
    """Train (or resume) and return the trainer.

    Args:
        recipe: of this task.
        stores: `{"train": ScoreStore, "validation": ...}` to use instead of opening the recipe's data.

    Raises:
        TrainingError: the run folder belongs to another recipe; nothing to train on.
        AudioError: no soundfont.
    """
    section, data, arguments = recipe.model, recipe.data, recipe.training
    sound = recipe.others.get("sound") or SoundRecipe()
    shape = VMortmConfig(**section)
    if sound.frames % shape.patch_size:
        raise TrainingError(f"sound.frames ({sound.frames}) must be a multiple of the patch ({shape.patch_size})")
    per_step = sound.frames * sound.batch * packs_of_step(arguments)
    complete_arguments(arguments, per_step)
    stated = {
        "task": KIND.task,
        "model": section,
        "sound": dataclasses.asdict(sound),
        "corpora": data.corpora,
        "seed": arguments.seed,
    }
    open_run(arguments, stated)
    stores = stores or open_songs(data, arguments)
    extractor = VMortmFeatureExtractor(
        feature_size=shape.num_mel_bins, sampling_rate=sound.sampling_rate, patch_size=shape.patch_size
    )

    def windows(split: str, items: int, minutes: float, seed: int) -> SoundWindows:
        made = build_sound(stores[split], extractor, minutes, cache_of(data, arguments), sound.bars, seed)
        return SoundWindows(made, sound.frames, sound.batch, items, seed)

    dataset = windows("train", batches_of(arguments), sound.minutes, arguments.seed)
    mean, std = dataset.store.moments()
    prepare_weights(arguments)
    model = fresh_weights(
        VMortmForSpectrogramGeneration, VMortmConfig(**{"mel_mean": mean, "mel_std": std, **section}), arguments
    )
    set_experts(model, arguments)
    validation = None
    if arguments.eval_windows:
        held = stores["validation"]
        items = batches_to_measure(arguments, sound.batch, len(held))
        validation = MeanLosses(windows("validation", items, max(1.0, sound.minutes / 10), 0))
    return carry_out(new_trainer(model, dataset, extractor, arguments, per_step, validation))
