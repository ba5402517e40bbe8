"""Training of MORTM Live on piano rolls (`task: live`).

Design decisions
- The section `roll` says which tracks go to which slot and how long a window is.
- The loss's terms are the model's: pitch and velocity of the next chunk in the slots that the model plays, the next
  latent, reconstruction and KL (SPEC 6; their target is turned the right way, D-L2).
- With `eval_windows: all` the loss on windows of the validation songs is measured on the way.

Knows: piano rolls of songs, the model and its processor. Must not know: how a loss comes about, how a run goes,
clocks.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from ...data.piano_rolls import RollWindows
from ...models.configuration_mortm_live import MortmLiveConfig
from ...models.errors_mortm import TrainingError
from ...models.modeling_mortm_live import MortmLiveForCausalGeneration
from ...models.processing_mortm_live import MortmLiveProcessor
from ..recipe import Recipe, RecipeKind
from ..run import batches_of, carry_out, complete_arguments, new_trainer, open_run, packs_of_step, without_bars
from ..songs import open_songs
from ..trainer import PackTrainer
from ..validation import MeanLosses, batches_to_measure
from ..weights import fresh_weights, prepare_weights, set_experts


@dataclass
class RollRecipe:
    """How songs become rolls.

    Attributes:
        slots: a rule for each slot (see `data.piano_rolls.assign`).
        chunks: of a window.
        batch: windows of a step.
        silence: see `data.piano_rolls.RollWindows`.
    """

    slots: list[dict] = field(default_factory=list)
    chunks: int = 48
    batch: int = 4
    silence: float = 0.0


KIND = RecipeKind("live", MortmLiveConfig, own={"roll": RollRecipe})


def processor_of(config: MortmLiveConfig) -> MortmLiveProcessor:
    """The processor of a model."""
    return MortmLiveProcessor(config.instruments, config.chunk_ticks, config.ticks_per_measure, config.velocity)


@without_bars()
def train(recipe: Recipe, stores: dict | None = None) -> PackTrainer:
    """Train (or resume) and return the trainer.

    Args:
        recipe: of this task.
        stores: `{"train": ScoreStore, "validation": ...}` to use instead of opening the recipe's data.

    Raises:
        TrainingError: the run folder belongs to another recipe; nothing to train on; slots without rules.
    """
    section, data, arguments = recipe.model, recipe.data, recipe.training
    roll = recipe.others.get("roll") or RollRecipe()
    config = MortmLiveConfig(**section)
    if len(roll.slots) != config.num_slots:
        raise TrainingError(f"roll.slots has {len(roll.slots)} rules for {config.num_slots} instruments of the model")
    per_step = roll.chunks * roll.batch * packs_of_step(arguments)
    complete_arguments(arguments, per_step)
    stated = {
        "task": KIND.task,
        "model": section,
        "roll": dataclasses.asdict(roll),
        "corpora": data.corpora,
        "transpose": data.transpose,
        "seed": arguments.seed,
    }
    open_run(arguments, stated, {"roll": {"silence": 0.0}})
    stores = stores or open_songs(data, arguments)
    processor = processor_of(config)

    def windows(split: str, items: int, **drawn) -> RollWindows:
        return RollWindows(stores[split], processor, roll.slots, roll.chunks, roll.batch, items, **drawn)

    drawn = {"seed": arguments.seed, "transpose": data.transpose, "silence": roll.silence}
    dataset = windows("train", batches_of(arguments), **drawn)
    prepare_weights(arguments)
    model = fresh_weights(MortmLiveForCausalGeneration, config, arguments)
    set_experts(model, arguments)
    validation = None
    if arguments.eval_windows:
        items = batches_to_measure(arguments, roll.batch, len(stores["validation"]))
        validation = MeanLosses(windows("validation", items, seed=0, silence=roll.silence))
    return carry_out(new_trainer(model, dataset, processor, arguments, per_step, validation))
