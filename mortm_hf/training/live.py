"""Training of MORTM Live on piano rolls: `python -m mortm_hf.training.live RECIPE.yaml [--field value ...]`.

Design decisions
- The recipe's `roll` section says which tracks go to which slot and how long a window is.
- The loss's terms are the model's: pitch and velocity of the next chunk in the slots that the model plays, the next
  latent, reconstruction and KL (SPEC 6; their target is turned the right way, D-L2).

Knows: recipes, the data package, the Trainer. Must not know: how a loss comes about, clocks.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers

from ..data.open import build_store
from ..data.piano_rolls import RollWindows
from ..models.configuration_mortm_live import MortmLiveConfig
from ..models.errors_mortm import TrainingError
from ..models.modeling_mortm_live import MortmLiveForCausalGeneration
from ..models.processing_mortm_live import MortmLiveProcessor
from .arguments import DataRecipe, PretrainArguments, read_recipe
from .audio import read_section
from .runs import command_line, same_run, set_experts
from .trainer import PackTrainer
from .windows import run_windows


@dataclass
class RollRecipe:
    """`slots`: a rule for each slot (see `data.rolls.assign`); windows of `chunks` chunks, `batch` of them a step;
    `silence`: see `data.rolls.RollWindows`."""

    slots: list[dict] = field(default_factory=list)
    chunks: int = 48
    batch: int = 4
    silence: float = 0.0


def processor_of(config: MortmLiveConfig) -> MortmLiveProcessor:
    """The processor of a model."""
    return MortmLiveProcessor(config.instruments, config.chunk_ticks, config.ticks_per_measure, config.velocity)


def train_live(
    section: dict, roll: RollRecipe, recipe: DataRecipe, arguments: PretrainArguments, stores: dict | None = None
) -> PackTrainer:
    """Train (or resume) and return the trainer.

    Args:
        section: keyword arguments of `MortmLiveConfig`.
        stores: `{"train": ScoreStore}` to use instead of reading the pack.

    Raises:
        TrainingError: the run folder belongs to another recipe; nothing to train on; slots without rules.
    """
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    folder = Path(arguments.output_dir)
    stated = {
        "task": "live",
        "model": section,
        "roll": dataclasses.asdict(roll),
        "corpora": recipe.corpora,
        "transpose": recipe.transpose,
        "seed": arguments.seed,
    }
    same_run(folder, stated, arguments.fresh, later={"roll": {"silence": 0.0}})
    config = MortmLiveConfig(**section)
    if len(roll.slots) != config.num_slots:
        raise TrainingError(f"roll.slots has {len(roll.slots)} rules for {config.num_slots} instruments of the model")
    if stores is None:
        if not recipe.data:
            raise TrainingError("no data: give a training pack, a data set or MIDI files with --data")
        stores = {"train": build_store(recipe.data, recipe.selection(), "train", recipe.cache or folder / "stores")}
    processor = processor_of(config)
    items = arguments.max_steps * arguments.gradient_accumulation_steps * max(1, arguments.world_size)
    drawn = {"seed": arguments.seed, "transpose": recipe.transpose, "silence": roll.silence}
    dataset = RollWindows(stores["train"], processor, roll.slots, roll.chunks, roll.batch, items, **drawn)
    transformers.set_seed(arguments.seed)
    model = MortmLiveForCausalGeneration(config)
    set_experts(model, arguments)
    return run_windows(model, dataset, processor, arguments, roll.chunks * roll.batch)


def run(path: str | Path, words: list[str]) -> PackTrainer:
    """Train as a recipe file states, with words of a command line."""
    section, recipe, arguments = read_recipe(path, words, others=("roll",))
    return train_live(section, read_section(path, "roll", RollRecipe, "live"), recipe, arguments)


def main(words: list[str] | None = None) -> int:
    """Command line: a recipe file and `--field value` words."""
    return command_line("live", __doc__, run, words)


if __name__ == "__main__":
    sys.exit(main())
