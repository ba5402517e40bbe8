"""Training of V_MORTM on rendered music: `python -m mortm_hf.training.audio RECIPE.yaml [--field value ...]`.

Design decisions
- The recipe's `sound` section says what is rendered and how it is heard; the mean and spread of the training frames go
  into the model's configuration.
- A run folder holds recipe, stores, `log.jsonl`, checkpoints and at the end `final/`.

Knows: recipes, the data package, the Trainer. Must not know: how a loss comes about.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
import yaml

from ..data.mel_frames import SoundWindows, build_sound
from ..data.open import build_store
from ..models.configuration_vmortm import VMortmConfig
from ..models.errors_mortm import TrainingError
from ..models.feature_extraction_vmortm import VMortmFeatureExtractor
from ..models.modeling_vmortm import VMortmForSpectrogramGeneration
from .arguments import DataRecipe, PretrainArguments, find_recipe, read_recipe
from .runs import command_line, same_run, set_experts
from .trainer import PackTrainer
from .windows import run_windows


@dataclass
class SoundRecipe:
    """What is rendered: minutes of the training split, pieces of so many bars, at a sampling rate in Hz; windows of
    `frames` frames, `batch` of them a step."""

    minutes: float = 40.0
    bars: int = 16
    sampling_rate: int = 16000
    frames: int = 256
    batch: int = 8


def read_section(path: str | Path, name: str, kind, task: str):
    """The section `name` of a recipe as the dataclass `kind`.

    Raises:
        TrainingError: unknown fields, or a recipe of another task.
    """
    content = yaml.safe_load(find_recipe(path).read_text(encoding="utf-8")) or {}
    if content.get("task", task) != task:
        raise TrainingError(f"{path} is a recipe for {content['task']}, not for {task}")
    given = dict(content.get(name) or {})
    unknown = set(given) - {field.name for field in dataclasses.fields(kind)}
    if unknown:
        raise TrainingError(f"{path}: unknown fields in {name}: {', '.join(sorted(unknown))}")
    return kind(**given)


def train_audio(
    section: dict, sound: SoundRecipe, recipe: DataRecipe, arguments: PretrainArguments, stores: dict | None = None
) -> PackTrainer:
    """Train (or resume) and return the trainer.

    Args:
        section: keyword arguments of `VMortmConfig`.
        stores: `{"train": ScoreStore}` to use instead of reading the pack.

    Raises:
        TrainingError: the run folder belongs to another recipe; nothing to train on.
        AudioError: no soundfont.
    """
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    folder = Path(arguments.output_dir)
    stated = {
        "task": "audio",
        "model": section,
        "sound": dataclasses.asdict(sound),
        "corpora": recipe.corpora,
        "seed": arguments.seed,
    }
    same_run(folder, stated, arguments.fresh)
    cache = recipe.cache or folder / "stores"
    if stores is None:
        if not recipe.data:
            raise TrainingError("no data: give a training pack, a data set or MIDI files with --data")
        stores = {"train": build_store(recipe.data, recipe.selection(), "train", cache)}
    if not len(stores["train"]):
        raise TrainingError("no song to train on: check the recipe's corpora against the manifest")
    shape = VMortmConfig(**section)
    if sound.frames % shape.patch_size:
        raise TrainingError(f"sound.frames ({sound.frames}) must be a multiple of the patch ({shape.patch_size})")
    extractor = VMortmFeatureExtractor(
        feature_size=shape.num_mel_bins, sampling_rate=sound.sampling_rate, patch_size=shape.patch_size
    )
    frames = build_sound(stores["train"], extractor, sound.minutes, cache, sound.bars, arguments.seed)
    mean, std = frames.moments()
    transformers.set_seed(arguments.seed)
    model = VMortmForSpectrogramGeneration(VMortmConfig(**{"mel_mean": mean, "mel_std": std, **section}))
    set_experts(model, arguments)
    items = arguments.max_steps * arguments.gradient_accumulation_steps * max(1, arguments.world_size)
    dataset = SoundWindows(frames, sound.frames, sound.batch, items, arguments.seed)
    return run_windows(model, dataset, extractor, arguments, sound.frames * sound.batch)


def run(path: str | Path, words: list[str]) -> PackTrainer:
    """Train as a recipe file states, with words of a command line."""
    section, recipe, arguments = read_recipe(path, words, others=("sound",))
    return train_audio(section, read_section(path, "sound", SoundRecipe, "audio"), recipe, arguments)


def main(words: list[str] | None = None) -> int:
    """Command line: a recipe file and `--field value` words."""
    return command_line("audio", __doc__, run, words)


if __name__ == "__main__":
    sys.exit(main())
