"""A recipe: one YAML file with three sections, any plain field of which the command line can override.

Design decisions
- `model` goes to the configuration class as it is, `data` to `DataRecipe`, `training` to `PretrainArguments` (a
  `TrainingArguments`), so that a recipe states everything a run depends on and nothing hides in code.
- Length of a run and start of the decay are separate from the data: a run may be told, when it is resumed, to end
  earlier or later; the stream of packs does not change with it.

Knows: dataclasses, YAML, transformers' argument parser. Must not know: how anything is built from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml
from transformers import HfArgumentParser, TrainingArguments

from ..data.manifest import CorpusFilter, Selection


@dataclass
class DataRecipe:
    """What is read and how it is mixed."""

    data: str = field(default="", metadata={"help": "folder of the training pack (manifest.csv and archives)"})
    cache: str = field(default="", metadata={"help": "folder for prepared stores; by default <output_dir>/stores"})
    row_length: int = field(default=1024, metadata={"help": "tokens of a row"})
    rows: int = field(default=2, metadata={"help": "rows of a pack (one pack is one step of one process)"})
    long_row_length: int = field(default=2048, metadata={"help": "tokens of a row late in the run"})
    long_from_step: int = field(default=-1, metadata={"help": "first step with long rows; -1: never"})
    packs_per_epoch: int = field(default=4096, metadata={"help": "packs of one epoch"})
    past_bars: tuple[int, int] = (4, 8)
    generated_bars: tuple[int, int] = (4, 8)
    velocity: float = field(default=0.2, metadata={"help": "share of windows that carry velocity"})
    header_dropout: float = field(default=0.25, metadata={"help": "chance that a header field is left out"})
    track_subset: float = field(default=0.3, metadata={"help": "chance that only some tracks take part"})
    transpose: tuple[int, int] = (-5, 6)
    past_loss: bool = field(default=True, metadata={"help": "count the past of plain continuations in the loss"})
    tasks: dict[str, float] = field(default_factory=dict)
    corpora: dict[str, dict] = field(default_factory=dict)

    def selection(self) -> Selection:
        """The files that take part."""
        return Selection(
            {
                name: CorpusFilter(tuple(rule.get("variants", ())), rule.get("licence", ""))
                for name, rule in self.corpora.items()
            }
        )

    def weights(self) -> dict[str, float]:
        """Share of the tokens of each corpus (normalised by the user of this)."""
        return {name: float(rule["weight"]) for name, rule in self.corpora.items()}


@dataclass
class PretrainArguments(TrainingArguments):
    """`TrainingArguments` and what a run on a laptop needs besides."""

    decay_steps: int = field(
        default=0, metadata={"help": "the learning rate falls linearly to zero over this many last steps"}
    )
    stop_at: str = field(default="", metadata={"help": "HH:MM local time: save a checkpoint and stop there"})
    max_minutes: float = field(default=0.0, metadata={"help": "save a checkpoint and stop after this many minutes"})
    save_minutes: float = field(default=5.0, metadata={"help": "minutes between checkpoints"})
    threads: int = field(default=0, metadata={"help": "torch threads; 0 leaves torch's choice"})
    experts_implementation: str = field(default="", metadata={"help": "transformers' experts interface: eager, ..."})
    attention: str = field(default="", metadata={"help": "attention implementation; empty: transformers' choice"})
    fresh: bool = field(default=False, metadata={"help": "start anew even if the run folder holds checkpoints"})
    router_every: int = field(default=100, metadata={"help": "steps between router statistics; 0: none"})


def read_recipe(path: str | Path, overrides: list[str] = ()) -> tuple[dict, DataRecipe, PretrainArguments]:
    """(model section, data recipe, training arguments) of a recipe file.

    Args:
        overrides: command-line words, e.g. `["--max_steps", "500", "--data", "pack"]`; any plain field of the data or
            training section.

    Raises:
        ValueError: unknown section, field or word (named).
        FileNotFoundError: no such recipe.
    """
    with open(path, encoding="utf-8") as handle:
        content = yaml.safe_load(handle) or {}
    unknown = set(content) - {"model", "data", "training"}
    if unknown:
        raise ValueError(f"{path}: unknown sections: {', '.join(sorted(unknown))}; there are model, data, training")
    data_section = dict(content.get("data") or {})
    nested = {name: data_section.pop(name) for name in ("tasks", "corpora") if name in data_section}
    for name in ("past_bars", "generated_bars", "transpose"):
        if name in data_section:
            nested[name] = tuple(data_section.pop(name))
    plain = _plain_fields()
    for section, allowed in ((data_section, plain[0]), (content.get("training") or {}, plain[1])):
        wrong = set(section) - allowed
        if wrong:
            raise ValueError(f"{path}: unknown fields: {', '.join(sorted(wrong))}")
    flat: list[str] = []
    for name, value in (*data_section.items(), *(content.get("training") or {}).items()):
        flat += [f"--{name}", *([str(v) for v in value] if isinstance(value, list) else [str(value)])]
    parser = HfArgumentParser((_PlainData, PretrainArguments))
    data, training, rest = parser.parse_args_into_dataclasses(flat + list(overrides), return_remaining_strings=True)
    if rest:
        raise ValueError(f"{path}: unknown arguments: {' '.join(rest)}")
    recipe = DataRecipe(**{name: getattr(data, name) for name in plain[0]}, **nested)
    return dict(content.get("model") or {}), recipe, training


def _plain_fields() -> tuple[set[str], set[str]]:
    return set(_PlainData.__dataclass_fields__), set(PretrainArguments.__dataclass_fields__)


@dataclass
class _PlainData:
    """The fields of `DataRecipe` that the command line can override."""

    data: str = DataRecipe.data
    cache: str = DataRecipe.cache
    row_length: int = DataRecipe.row_length
    rows: int = DataRecipe.rows
    long_row_length: int = DataRecipe.long_row_length
    long_from_step: int = DataRecipe.long_from_step
    packs_per_epoch: int = DataRecipe.packs_per_epoch
    velocity: float = DataRecipe.velocity
    header_dropout: float = DataRecipe.header_dropout
    track_subset: float = DataRecipe.track_subset
    past_loss: bool = DataRecipe.past_loss
