"""A recipe: one YAML file with three sections, any plain field of which the command line can override.

Design decisions
- `model` goes to the configuration class as it is, `data` to `DataRecipe`, `training` to `PretrainArguments` (a
  `TrainingArguments`), so that a recipe states everything a run depends on and nothing hides in code.
- Length of a run and start of the decay are separate from the data: a run may be told, when it is resumed, to end
  earlier or later; the stream of packs does not change with it.

Knows: dataclasses, YAML, transformers' argument parser. Must not know: how anything is built from it.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, field
from pathlib import Path

import yaml
from transformers import HfArgumentParser, TrainingArguments

from ..data.manifest import CorpusFilter, Selection
from .errors import TrainingError


RECIPES = Path(__file__).resolve().parent / "recipes"  # those of the package, with their lists of windows


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
    dead_share: float = field(
        default=0.05, metadata={"help": "an expert with less than this part of the even share counts as unused"}
    )
    dead_after: int = field(default=5, metadata={"help": "router statistics in a row that make an unused expert dead"})
    max_tokens: int = field(
        default=0, metadata={"help": "length of the run in tokens (padding included); 0: max_steps counts"}
    )
    decay_share: float = field(default=0.0, metadata={"help": "decay_steps as a part of the run"})
    eval_windows: str = field(
        default="", metadata={"help": "csv of validation windows, beside the recipe or a path; empty: no validation"}
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


def find_recipe(path: str | Path) -> Path:
    """A recipe file: as named, or the package's of that name.

    Raises:
        TrainingError: there is none (the message lists those of the package).
    """
    for candidate in (Path(path), RECIPES / path, RECIPES / f"{path}.yaml"):
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
    raise TrainingError(f"no recipe {path}: give a YAML file, or one of {known}")


TASKS = ("pretrain", "mlm", "classify", "audio", "live")


def task_of(path: str | Path) -> str:
    """What a recipe trains: one of `TASKS`, "pretrain" where it does not say.

    Raises:
        TrainingError: no such recipe, no YAML, or an unknown task.
    """
    path = find_recipe(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrainingError(f"cannot read the recipe {path}: {' '.join(str(error).split())}") from None
    task = content.get("task", "pretrain") if isinstance(content, dict) else "pretrain"
    if task not in TASKS:
        raise TrainingError(f"{path}: unknown task {task!r}; there are {', '.join(TASKS)}")
    return task


def read_recipe(
    path: str | Path, overrides: list[str] = (), others: tuple[str, ...] = ()
) -> tuple[dict, DataRecipe, PretrainArguments]:
    """(model section, data recipe, training arguments) of a recipe file.

    Args:
        path: a file, or the name of a recipe of the package ("starter").
        overrides: command-line words, e.g. `["--max_steps", "500", "--data", "pack"]`; any plain field of the data or
            training section.
        others: sections of a task of its own, which its caller reads.

    Raises:
        TrainingError: no such recipe; unknown section, field or word (named); no YAML.
    """
    path = find_recipe(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrainingError(f"cannot read the recipe {path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise TrainingError(f"{path} is no recipe: it has no sections model, data, training")
    known = ("task", "model", "data", "training", *others)
    unknown = set(content) - set(known)
    if unknown:
        raise TrainingError(f"{path}: unknown sections: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    data_section = dict(content.get("data") or {})
    nested = {name: data_section.pop(name) for name in ("tasks", "corpora") if name in data_section}
    for name in ("past_bars", "generated_bars", "transpose"):
        if name in data_section:
            nested[name] = tuple(data_section.pop(name))
    plain = _plain_fields()
    for section, allowed in ((data_section, plain[0]), (content.get("training") or {}, plain[1])):
        wrong = set(section) - allowed
        if wrong:
            raise TrainingError(f"{path}: unknown fields: {', '.join(sorted(wrong))}")
    flat: list[str] = []
    for name, value in (*data_section.items(), *(content.get("training") or {}).items()):
        value = json.dumps(value) if isinstance(value, dict) else value
        flat += [f"--{name}", *([str(v) for v in value] if isinstance(value, list) else [str(value)])]
    parser = HfArgumentParser((_PlainData, PretrainArguments))
    data, training, rest = parser.parse_args_into_dataclasses(flat + list(overrides), return_remaining_strings=True)
    if rest:
        raise TrainingError(f"{path}: unknown arguments: {' '.join(rest)}")
    recipe = DataRecipe(**{name: getattr(data, name) for name in plain[0]}, **nested)
    if training.eval_windows and (path.parent / training.eval_windows).is_file():
        training.eval_windows = str(path.parent / training.eval_windows)
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


def describe_fields() -> str:
    """All fields that the command line can override, with their defaults, ours first."""
    own = set(PretrainArguments.__annotations__)
    lines = []
    for title, kind, names in (
        ("data", _PlainData, None),
        ("training", PretrainArguments, own),
        ("training (transformers' TrainingArguments)", PretrainArguments, None),
    ):
        lines.append(f"{title}:")
        for name, entry in kind.__dataclass_fields__.items():
            if (names is not None and name not in names) or (names is None and kind is not _PlainData and name in own):
                continue
            documented = DataRecipe.__dataclass_fields__.get(name, entry) if kind is _PlainData else entry
            words = " ".join(documented.metadata.get("help", "").split())
            default = entry.default if entry.default is not MISSING else ""
            text = f"  --{name} ({default})" + (f"  {words}" if words else "")
            lines.append(text if len(text) <= 160 else text[:157] + "...")
    return "\n".join(lines)
