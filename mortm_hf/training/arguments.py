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
    """What is read and how it is mixed."""

    data: str = field(
        default="", metadata={"help": "training pack, prepared data set (folder or owner/name), or MIDI files"}
    )
    cache: str = field(default="", metadata={"help": "folder for prepared stores; by default <output_dir>/stores"})
    # A file that does not state these is trained as ever, or runs that began so could not be resumed.
    row_length: int = 1024
    rows: int = 2
    tasks: dict[str, float] = field(default_factory=dict)  # continuation alone
    long_row_length: int = field(default=2048, metadata={"help": "tokens of a row late in the run"})
    long_from_step: int = field(default=-1, metadata={"help": "first step with long rows; -1: never"})
    packs_per_epoch: int = field(default=4096, metadata={"help": "packs of one epoch"})

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

    per_device_train_batch_size: int = field(
        default=1, metadata={"help": "stays 1: an item of the data is a whole batch, its size is `rows` of the data"}
    )
    decay_steps: int = field(
        default=0, metadata={"help": "the learning rate falls linearly to zero over this many last steps"}
    )
    stop_at: str = field(default="", metadata={"help": "HH:MM local time: save a checkpoint and stop there"})
    max_minutes: float = field(default=0.0, metadata={"help": "save a checkpoint and stop after this many minutes"})
    save_minutes: float = field(default=5.0, metadata={"help": "minutes between checkpoints"})
    threads: int = field(default=0, metadata={"help": "torch threads; 0 leaves torch's choice"})
    experts_implementation: str = field(
        default="",
        metadata={
            "help": "empty or auto: padded_mm on a CPU in half precision, else transformers' choice; or a name of its "
            "experts interface (eager, grouped_mm, batched_mm) or padded_mm"
        },
    )
    attention: str = field(default="", metadata={"help": "attention implementation; empty: transformers' choice"})
    fresh: bool = field(default=False, metadata={"help": "start anew even if the run folder holds checkpoints"})
    router_every: int = field(default=100, metadata={"help": "steps between router statistics; 0: none"})
    dead_share: float = field(
        default=0.05, metadata={"help": "an expert with less than this part of the even share counts as unused"}
    )
    dead_after: int = field(default=5, metadata={"help": "router statistics in a row that make an unused expert dead"})
    max_tokens: int = field(
        default=0, metadata={"help": "length of the run in tokens (padding included); 0: max_steps counts"}
    )
    decay_share: float = field(default=0.0, metadata={"help": "decay_steps as a part of the run"})
    eval_windows: str = field(
        default="",
        metadata={"help": "csv of validation windows (beside the recipe, or a path), all: every one; empty: none"},
    )
    eval_tokens: int = field(default=2_000_000, metadata={"help": "tokens between validations; 0: only at the end"})
    eval_limit: int = field(default=300, metadata={"help": "validation windows in all; 0: every one of the csv"})
    early_stopping: int = field(
        default=0, metadata={"help": "stop after this many validations without a new best; 0: never"}
    )
    select_best: bool = field(
        default=True, metadata={"help": "final/ is the best model by validation (where there is any), else the last"}
    )
    init: str = field(
        default="", metadata={"help": "folder or repository to start from; the recipe then has no model section"}
    )
    lora_rank: int = field(default=0, metadata={"help": "train LoRA adapters of this rank; 0: all weights"})
    lora_alpha: float = field(default=0.0, metadata={"help": "LoRA scale; 0: twice the rank"})
    sharding: str = field(
        default="",
        metadata={"help": "weights: spread over the processes (FSDP2); experts: these too, each whole in one process"},
    )
    tensorboard: bool = field(default=True, metadata={"help": "curves in <output_dir>/runs, where it is installed"})

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
