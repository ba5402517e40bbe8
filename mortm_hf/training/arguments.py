"""The fields of a run: what is read and how it is mixed (section `data`), how it is trained (section `training`).

Design decisions
- The fields that decide a training example stand in `data.examples.ExampleRecipe` alone; a recipe file adds where the
  songs are and how long the rows become.
- Length of a run and start of the decay are separate from the data: a resumed run may end earlier or later; the stream
  of packs does not change with it.

Knows: the recipe of examples, transformers' arguments. Must not know: YAML, models, how anything is built from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments
from transformers.hf_argparser import HfArg

from ..data.examples import ExampleRecipe
from ..data.manifest import CorpusFilter, Selection
from ..models.errors_mortm import TrainingError
from .runlog import clock_of


EPOCHS = 1 << 10  # the stream never ends before the run does: its length is max_steps, which may change on resume


def selection_of(corpora: dict[str, dict]) -> Selection:
    """The files that take part.

    Args:
        corpora: `{name: {"variants": [...], "licence": text}}`, both optional.
    """
    return Selection(
        {
            name: CorpusFilter(tuple(rule.get("variants", ())), rule.get("licence", ""))
            for name, rule in corpora.items()
        }
    )


@dataclass
class DataRecipe(ExampleRecipe):
    """What is read and how it is mixed.

    Attributes:
        row_length: tokens of a row.
        rows: of a pack.
        tasks: `{task: weight}`; none: continuation alone.
    """

    data: str = HfArg(default="", help="training pack, prepared data set (folder or owner/name), or MIDI files")
    cache: str = HfArg(default="", help="folder for prepared stores; by default <output_dir>/stores")
    # A file that does not state these is trained as ever, or runs that began so could not be resumed.
    row_length: int = 1024
    rows: int = 2
    tasks: dict[str, float] = field(default_factory=dict)
    long_row_length: int = HfArg(default=2048, help="tokens of a row late in the run")
    long_from_step: int = HfArg(default=-1, help="first step with long rows; -1: never")
    packs_per_epoch: int = HfArg(default=4096, help="packs of one epoch")

    def selection(self) -> Selection:
        """The files that take part."""
        return selection_of(self.corpora)

    def weights(self) -> dict[str, float]:
        """Share of the tokens of each corpus (normalised by the user of this).

        Raises:
            TrainingError: a corpus without one.
        """
        without = [name for name, rule in self.corpora.items() if "weight" not in rule]
        if without:
            raise TrainingError(f"corpora.{without[0]} has no weight: give its share of the tokens, {{weight: 1}}")
        return super().weights()


@dataclass
class RunArguments(TrainingArguments):
    """`TrainingArguments` and what a run on a laptop needs besides: the section `training` of every task."""

    per_device_train_batch_size: int = HfArg(
        default=1, help="stays 1: an item of the data is a whole batch, its size is `rows` of the data"
    )
    decay_steps: int = HfArg(default=0, help="the learning rate falls linearly to zero over this many last steps")
    stop_at: str = HfArg(default="", help="HH:MM local time: save a checkpoint and stop there")
    max_minutes: float = HfArg(default=0.0, help="save a checkpoint and stop after this many minutes")
    save_minutes: float = HfArg(default=5.0, help="minutes between checkpoints")
    threads: int = HfArg(default=0, help="torch threads; 0 leaves torch's choice")
    experts_implementation: str = HfArg(
        default="",
        help="how experts are computed: padded_mm, or a name of transformers' interface (eager, grouped_mm, "
        "batched_mm); empty or auto: padded_mm on a CPU in half precision, else transformers' choice",
    )
    attention: str = HfArg(default="", help="attention implementation; empty: transformers' choice")
    fresh: bool = HfArg(default=False, help="start anew even if the run folder holds checkpoints")
    router_every: int = HfArg(default=100, help="steps between router statistics; 0: none")
    dead_share: float = HfArg(
        default=0.05, help="an expert with less than this part of the even share counts as unused"
    )
    dead_after: int = HfArg(default=5, help="router statistics in a row that make an unused expert dead")
    max_tokens: int = HfArg(default=0, help="length of the run in tokens (padding included); 0: max_steps counts")
    decay_share: float = HfArg(default=0.0, help="decay_steps as a part of the run")
    eval_windows: str = HfArg(
        default="", help="windows to validate on: all, or (pretrain) a csv beside the recipe, or a path; none: ''"
    )
    eval_tokens: int = HfArg(default=2_000_000, help="tokens between validations; 0: only at the end")
    eval_limit: int = HfArg(default=300, help="validation windows in all; 0: every one of the csv")
    early_stopping: int = HfArg(default=0, help="stop after this many validations without a new best; 0: never")
    select_best: bool = HfArg(
        default=True, help="final/ is the best model by validation (where there is any), else the last"
    )
    init: str = HfArg(default="", help="folder or repository to start from; the recipe then has no model section")
    lora_rank: int = HfArg(default=0, help="train LoRA adapters of this rank; 0: all weights")
    lora_alpha: float = HfArg(default=0.0, help="LoRA scale; 0: twice the rank")
    sharding: str = HfArg(
        default="", help="weights: spread over the processes (FSDP2); experts: these too, each whole in one process"
    )
    tensorboard: bool = HfArg(default=True, help="curves in <output_dir>/runs, where it is installed")

    def __post_init__(self):
        if self.per_device_train_batch_size != 1:
            raise TrainingError(
                f"per_device_train_batch_size {self.per_device_train_batch_size}: leave it out, an item of the data "
                "is a whole batch; its size is rows in the data section (batch in the sections roll and sound)"
            )
        if self.stop_at:
            clock_of(self.stop_at)
        super().__post_init__()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # torch would warn that there is nothing to pin it for
