"""A recipe: one YAML file with three sections, any field of which the command line can override.

Design decisions
- `model` goes to the configuration class as it is, `data` to `DataRecipe`, `training` to `PretrainArguments` (a
  `TrainingArguments`), so that a recipe states everything a run depends on and nothing hides in code.
- What no run could use is refused here, before any data is read: unknown names (a configuration of transformers would
  keep them without a word), values of the wrong kind or size, weights that give no chances, a model that cannot be.
- Options are the recipe's words: `--rows 4`; `--model.hidden_size 128`; `--tasks '{continue: 1}'`, a value of YAML.
  Sections that only one task has (`OWN_SECTIONS`) are not: only the file holds them.
- Length of a run and start of the decay are separate from the data: a run may be told, when it is resumed, to end
  earlier or later; the stream of packs does not change with it.

Knows: dataclasses, YAML, transformers' argument parser, the configurations, the names of the examples' tasks.
Must not know: how anything is built from it.
"""

from __future__ import annotations

import copy
import difflib
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

import yaml
from transformers import HfArgumentParser, PreTrainedConfig, TrainingArguments

from ..data.examples import TASKS as EXAMPLE_TASKS
from ..data.manifest import CorpusFilter, Selection
from ..models.configuration_bertm import BertmConfig
from ..models.configuration_mortm import MortmConfig
from ..models.configuration_mortm_live import MortmLiveConfig
from ..models.configuration_vmortm import VMortmConfig
from ..models.errors_mortm import TrainingError
from .runlog import clock_of


CONFIGURATIONS = {  # the class that a task's `model` section goes to
    "pretrain": MortmConfig,
    "mlm": BertmConfig,
    "classify": BertmConfig,
    "audio": VMortmConfig,
    "live": MortmLiveConfig,
}
TASKS = tuple(CONFIGURATIONS)
OWN_SECTIONS = {"mlm": ("pieces", "masking", "replacing"), "audio": ("sound",), "live": ("roll",)}
# names that transformers' configurations take beside their fields
_OTHER_NAMES = {"num_labels", "output_attentions", "rope_theta", "rope_scaling", "partial_rotary_factor"}
_PAIRS = {"past_bars": 0, "generated_bars": 1, "transpose": -127}  # two whole numbers, from here on
_STRUCTURED = (*_PAIRS, "tasks", "corpora")  # fields of `data` that are no single words
_SIZES = ("rows", "row_length", "long_row_length", "max_length", "packs_per_epoch", "gradient_accumulation_steps")
_CHANCES = ("velocity", "header_dropout", "track_subset")
_BOUNDS = {**dict.fromkeys(_SIZES, (1, math.inf)), **dict.fromkeys(_CHANCES, (0, 1))}
_CORPUS_KEYS = ("weight", "variants", "licence")
RECIPES = Path(__file__).resolve().parent / "recipes"  # those of the package, with their lists of windows


@dataclass
class DataRecipe:
    """What is read and how it is mixed."""

    data: str = field(
        default="", metadata={"help": "training pack, prepared data set (folder or owner/name), or MIDI files"}
    )
    cache: str = field(default="", metadata={"help": "folder for prepared stores; by default <output_dir>/stores"})
    row_length: int = field(default=1024, metadata={"help": "tokens of a row"})
    rows: int = field(default=2, metadata={"help": "rows of a pack (one pack is one step of one process)"})
    long_row_length: int = field(default=2048, metadata={"help": "tokens of a row late in the run"})
    long_from_step: int = field(default=-1, metadata={"help": "first step with long rows; -1: never"})
    packs_per_epoch: int = field(default=4096, metadata={"help": "packs of one epoch"})
    past_bars: tuple[int, int] = field(default=(4, 8), metadata={"help": "bars that are given: least and most"})
    generated_bars: tuple[int, int] = field(default=(4, 8), metadata={"help": "bars that are generated"})
    velocity: float = field(default=0.2, metadata={"help": "share of windows that carry velocity"})
    header_dropout: float = field(default=0.25, metadata={"help": "chance that a header field is left out"})
    track_subset: float = field(default=0.3, metadata={"help": "chance that only some tracks take part"})
    transpose: tuple[int, int] = field(default=(-5, 6), metadata={"help": "semitones: least and most"})
    past_loss: bool = field(default=True, metadata={"help": "count the past of plain continuations in the loss"})
    tasks: dict[str, float] = field(
        default_factory=dict, metadata={"help": "share of the documents by task, as '{continue: 3, infill: 1}'"}
    )
    corpora: dict[str, dict] = field(
        default_factory=dict, metadata={"help": "share of the tokens by corpus, as '{lieder: {weight: 1}}'"}
    )

    def selection(self) -> Selection:
        """The files that take part."""
        return Selection(
            {
                name: CorpusFilter(tuple(rule.get("variants", ())), rule.get("licence", ""))
                for name, rule in self.corpora.items()
            }
        )

    def weights(self) -> dict[str, float]:
        """Share of the tokens of each corpus (normalised by the user of this).

        Raises:
            TrainingError: a corpus without one.
        """
        without = [name for name, rule in self.corpora.items() if "weight" not in rule]
        if without:
            raise TrainingError(f"corpora.{without[0]} has no weight: give its share of the tokens, {{weight: 1}}")
        return {name: float(rule["weight"]) for name, rule in self.corpora.items()}


@dataclass
class PretrainArguments(TrainingArguments):
    """`TrainingArguments` and what a run on a laptop needs besides."""

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


class RecipeParser(HfArgumentParser):
    """One error instead of the whole usage, which is as long as `TrainingArguments`."""

    def error(self, message: str):
        raise TrainingError(" ".join(message.split()))


def find_recipe(path: str | Path) -> Path:
    """A recipe file: as named, or the package's of that name.

    Raises:
        TrainingError: there is none (the message lists those of the package).
    """
    for candidate in (Path(path), RECIPES / path, RECIPES / f"{path}.yaml"):
        if candidate.is_file():
            return candidate
    # those of reinforcement learning are another command's
    known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml") if not p.stem.startswith("rlmf_")))
    raise TrainingError(f"no recipe {path}: give a YAML file, or one of {known}")


def _content(path: Path) -> dict:
    """The sections of a recipe file.

    Raises:
        TrainingError: no YAML, or no sections.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrainingError(f"cannot read the recipe {path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise TrainingError(f"{path} is no recipe: it has no sections model, data, training")
    for name, section in content.items():
        if name != "task" and section is not None and not isinstance(section, dict):
            raise TrainingError(f"{path}: {name} is a section, with lines such as `name: value`, not {section!r}")
    return content


def task_of(path: str | Path, default: str = "pretrain") -> str:
    """What a recipe trains: one of `TASKS`, `default` where it does not say.

    Raises:
        TrainingError: no such recipe, no YAML, or an unknown task.
    """
    path = find_recipe(path)
    task = _content(path).get("task", default)
    if task == "rlmf":
        raise TrainingError(f"{path} is a recipe of reinforcement learning: `mortm rlmf {path.stem}` runs it")
    if task not in TASKS:
        raise TrainingError(f"{path}: unknown task {task!r}; there are {', '.join(TASKS)}")
    return task


def with_folder(path: str | Path, words: Iterable[str]) -> list[str]:
    """The words after a recipe, with `--output_dir runs/<recipe>` (it is printed) where nothing names a folder."""
    path, words = find_recipe(path), list(words)
    named = any(word.partition("=")[0] in ("--output_dir", "--output-dir") for word in words)
    if named or "output_dir" in (_content(path).get("training") or {}):
        return words
    folder = Path("runs") / path.stem
    if os.environ.get("RANK", "0") == "0":
        print(f"run folder: {folder} (--output_dir names another)", flush=True)
    return ["--output_dir", str(folder), *words]


def read_recipe(
    path: str | Path, overrides: list[str] = (), others: tuple[str, ...] = ()
) -> tuple[dict, DataRecipe, PretrainArguments]:
    """(model section, data recipe, training arguments) of a recipe file.

    Args:
        path: a file, or the name of a recipe of the package ("starter").
        overrides: command-line words, e.g. `["--max_steps", "500", "--data", "pack"]`; any field of the data or
            training section, and `--model.` with a field of the model section.
        others: sections of a task of its own, which its caller reads.

    Raises:
        TrainingError: no such recipe; unknown section, field or word (named); a value that cannot be; no YAML.
    """
    path = find_recipe(path)
    # a file that does not say what it trains is one for its reader
    task = task_of(path, next((name for name, own in OWN_SECTIONS.items() if {*own} & {*others}), "pretrain"))
    section, data, training, words = read_sections(path, overrides, others)
    plain = _plain_fields()
    check_names(f"{path}: data", data, {*plain[0], *_STRUCTURED})
    check_names(f"{path}: training", training, plain[1])
    structured = {name: data.pop(name) for name in _STRUCTURED if name in data}
    _check_structured(path, structured)
    found, arguments = parse_fields(path, (_PlainData, PretrainArguments), {**data, **training}, words)
    check_model(path, task, section, arguments.init)
    structured |= {name: tuple(structured[name]) for name in _PAIRS if name in structured}
    recipe = DataRecipe(**{name: getattr(found, name) for name in plain[0]}, **structured)
    if arguments.eval_windows and (path.parent / arguments.eval_windows).is_file():
        arguments.eval_windows = str(path.parent / arguments.eval_windows)
    return section, recipe, arguments


def read_sections(
    path: Path, overrides: Iterable[str] = (), others: Sequence[str] = ()
) -> tuple[dict, dict, dict, list[str]]:
    """(model, data, training, words for `parse_fields`) of a recipe file; the other words stand in the sections.

    Raises:
        TrainingError: no YAML, unknown sections, words without a value.
    """
    content = _content(path)
    known = ("task", "model", "data", "training", *others)
    unknown = set(content) - set(known)
    if unknown:
        wrong = ", ".join(sorted(map(str, unknown)))
        raise TrainingError(f"{path}: unknown sections: {wrong}; there are {', '.join(known)}")
    section, data, training = (dict(content.get(name) or {}) for name in ("model", "data", "training"))
    words, given = _structured_words(overrides)
    for name, value in given.items():
        into, _, field_name = name.rpartition(".")
        (section if into else data)[field_name] = value
    return section, data, training, words


def parse_fields(path: Path, kinds: Sequence[type], values: dict, words: Iterable[str]) -> list:
    """One object of each of `kinds`: values of a recipe, and words of a command line over them.

    Raises:
        TrainingError: words that are no field; values of the wrong kind or size, or that do not go together.
    """
    flat: list[str] = []
    for name, value in values.items():
        value = json.dumps(value) if isinstance(value, dict) else value
        flat += [f"--{name}", *([str(v) for v in value] if isinstance(value, list) else [str(value)])]
    try:
        *found, rest = RecipeParser(kinds).parse_args_into_dataclasses([*flat, *words], return_remaining_strings=True)
    except ValueError as error:  # ours, and what TrainingArguments says of values that do not go together
        raise TrainingError(f"{path}: {' '.join(str(error).split())}") from None
    if rest:
        raise TrainingError(f"{path}: unknown arguments: {' '.join(rest)}")
    for name, (least, most) in _BOUNDS.items():
        for value in (getattr(one, name) for one in found if hasattr(one, name)):
            if not least <= value <= most:
                until = "on" if most == math.inf else f"to {most}"
                raise TrainingError(f"{path}: {name} is a number from {least} {until}, not {value}")
    return found


def check_model(path: Path, task: str, section: dict, init: str) -> None:
    """Refuse a model section that makes no configuration; over that of `init` only its names can be judged.

    Raises:
        TrainingError: unknown fields, or what the configuration says of its values.
    """
    check_names(f"{path}: model", section, _model_fields(task))
    if init:
        return
    try:
        CONFIGURATIONS[task](**copy.deepcopy(section))  # it completes rope_parameters in place
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # not all of transformers' checks are ours
        raise TrainingError(f"{path}: model: {' '.join(str(error).split())[:200]}") from None


def _model_fields(task: str) -> set[str]:
    """Names that a `model` section can hold; the size of the vocabulary is the tokenizer's."""
    kind = CONFIGURATIONS[task]
    return ({f.name for f in fields(kind)} | set(kind.attribute_map) | _OTHER_NAMES) - {"vocab_size"}


def check_names(where: str, given: Iterable, known: Iterable[str], what: str = "fields") -> None:
    """Refuse unknown names, each with the known one that is spelt most like it; a few known ones are all listed.

    Raises:
        TrainingError: there are such names.
    """
    wrong = []
    for name in map(str, given):
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            wrong.append(f"{name} (is {close[0]} meant?)" if close else name)
    if wrong:
        listed = f"; there are {', '.join(known)}" if len(known) < 10 else ""
        raise TrainingError(f"{where}: unknown {what}: {', '.join(sorted(wrong))}{listed}")


def _structured_words(words: Iterable[str]) -> tuple[list[str], dict]:
    """The words that go to the parser, and `{name: value}` of those that name structured fields or the model's."""
    rest, found, left = [], {}, iter(words)
    for word in left:
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not word.startswith("--") or not (name in _STRUCTURED or name.startswith("model.")):
            rest.append(word)
            continue
        value = value if equals else next(left, "")
        if not value:
            raise TrainingError(f"--{name} needs a value, as in a recipe")
        try:
            found[name] = json.loads(value)  # first: to YAML 1e-3 is a word
        except ValueError:
            try:
                found[name] = yaml.safe_load(value)
            except yaml.YAMLError:
                raise TrainingError(f"--{name}: cannot read the value {value!r}: give it as in a recipe") from None
    return rest, found


def _check_structured(path: Path, structured: dict) -> None:
    """Refuses values of the structured fields that nothing could be drawn by."""
    for name in _PAIRS.keys() & structured.keys():
        pair, least = structured[name], _PAIRS[name]
        whole = isinstance(pair, list) and len(pair) == 2 and all(type(n) is int for n in pair)
        if not whole or not least <= pair[0] <= pair[1]:
            raise TrainingError(
                f"{path}: {name} is two whole numbers from {least} on, least and most, as [4, 8]; not {pair!r}"
            )
    for name in ("tasks", "corpora"):
        structured[name] = structured.get(name) or {}
        if not isinstance(structured[name], dict):
            raise TrainingError(f"{path}: {name} has a line for each, `name: ...`, not {structured[name]!r}")
    for name, rule in structured["corpora"].items():
        if not isinstance(rule, dict):
            raise TrainingError(f"{path}: corpora.{name} is told as {{weight: 1}}, not {rule!r}")
        check_names(f"{path}: corpora.{name}", rule, _CORPUS_KEYS)
        if not isinstance(rule.get("variants", []), list) or not isinstance(rule.get("licence", ""), str):
            raise TrainingError(f"{path}: corpora.{name}: variants is a list, as [aligned], and licence a text")
    check_names(f"{path}: data", structured["tasks"], EXAMPLE_TASKS, "tasks")
    _check_weights(f"{path}: tasks", structured["tasks"])
    weights = {name: rule["weight"] for name, rule in structured["corpora"].items() if "weight" in rule}
    _check_weights(f"{path}: corpora", weights)


def _check_weights(where: str, weights: dict) -> None:
    for name, weight in weights.items():
        if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise TrainingError(f"{where}: the weight of {name} is a number from 0 on, not {weight!r}")
    if weights and not sum(weights.values()):
        raise TrainingError(f"{where}: all weights are 0: give one of {', '.join(weights)} more")


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


def describe_fields(task: str = "pretrain") -> str:
    """All fields that the command line can override, with their defaults, ours first; what it cannot is named last."""
    data, training = DataRecipe, PretrainArguments
    if task == "classify":  # it has sections of its own
        from .classify import ClassifyArguments as training
        from .classify import LabelRecipe as data
    own = {name for kind in (training, PretrainArguments) for name in kind.__annotations__}
    known = fields(training)
    lines = []
    for title, prefix, entries in (
        ("data", "", fields(data)),
        ("training", "", [f for f in known if f.name in own]),
        ("model", "model.", _own_fields(CONFIGURATIONS[task])),
        ("training (transformers' TrainingArguments)", "", [f for f in known if f.name not in own]),
    ):
        lines += [f"{title}:"] * bool(entries)
        for entry in entries:
            words = " ".join(entry.metadata.get("help", "").replace("%%", "%").split())
            text = f"  --{prefix}{entry.name} ({_default(entry)})" + (f"  {words}" if words else "")
            lines.append(text if len(text) <= 160 else text[:157] + "...")
    if task in OWN_SECTIONS:
        lines.append(f"no options, sections of the recipe file only: {', '.join(OWN_SECTIONS[task])}")
    return "\n".join(lines)


def _own_fields(kind) -> list:
    """Fields of a configuration beside those of every configuration."""
    common = {f.name for f in fields(PreTrainedConfig)} | {"vocab_size"}
    return [f for f in fields(kind) if f.name not in common]


def _default(entry) -> str:
    default = entry.default if entry.default is not MISSING else ""
    return str(list(default)) if isinstance(default, tuple) else str(default)
