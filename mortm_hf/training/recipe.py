"""The parser of every recipe: one YAML file of sections, whose fields the command line can override.

Design decisions
- A task states its sections as a `RecipeKind`; everything else (finding the file, names, kinds and bounds of values,
  words of the command line, the list of fields) is done here, once, for all tasks.
- A section is a configuration of a model (its names are judged, its values go on as they are), a dataclass (every
  value is judged), or free (another library's fields, which it judges itself).
- What no run could use is refused here, before any data is read: unknown names (a configuration of transformers would
  keep them without a word), values of the wrong kind or size, weights that give no chances, a model that cannot be.
- Options are the recipe's words: `--rows 4`; `--model.hidden_size 128`; `--tasks '{continue: 1}'`, a value of YAML.
  A task's own sections (`RecipeKind.own`) are not: only the file holds them.

Knows: YAML, dataclasses, transformers' argument parser, the fields of a run. Must not know: which tasks there are, how
anything is built from a recipe.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import json
import math
import os
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser, PreTrainedConfig, TrainingArguments

from ..data.examples import TASKS as EXAMPLE_TASKS
from ..models.errors_mortm import TrainingError
from .arguments import DataRecipe, RunArguments


RECIPES = Path(__file__).resolve().parent / "recipes"  # those of the package, with their lists of windows
# names that transformers' configurations take beside their fields
_OTHER_NAMES = {"num_labels", "output_attentions", "rope_theta", "rope_scaling", "partial_rotary_factor"}
_PAIRS = {"past_bars": 0, "generated_bars": 1, "transpose": -127}  # two whole numbers, from here on
_SIZES = ("rows", "row_length", "long_row_length", "max_length", "packs_per_epoch", "gradient_accumulation_steps")
_OWN_SIZES = ("batch", "frames", "chunks")  # of the sections sound and roll
_CHANCES = ("velocity", "header_dropout", "track_subset")
_BOUNDS = {**dict.fromkeys(_SIZES + _OWN_SIZES, (1, math.inf)), **dict.fromkeys(_CHANCES, (0, 1))}
_CORPUS_KEYS = ("weight", "variants", "licence")


@dataclass(frozen=True)
class RecipeKind:
    """What a recipe of one task may hold.

    Attributes:
        task: its name in the line `task:` of a file.
        model: configuration class, or dataclass, of the section `model`.
        data: dataclass of the section `data`.
        training: dataclass of the section `training`, or a sentence that says whose fields it takes.
        options: `{name: dataclass}` of further sections whose fields are options of the command line.
        own: `{name: dataclass}` of sections that only the file holds.
    """

    task: str
    model: type
    data: type = DataRecipe
    training: type | str = RunArguments
    options: Mapping[str, type] = field(default_factory=dict)
    own: Mapping[str, type] = field(default_factory=dict)

    @property
    def is_configuration(self) -> bool:
        """Whether the section `model` goes to a configuration of transformers."""
        return issubclass(self.model, PreTrainedConfig)

    def parsed(self) -> dict[str, type]:
        """The sections whose fields are options `--NAME`, in the order in which they are listed."""
        found = {} if self.is_configuration else {"model": self.model}
        found |= {"data": self.data, **self.options}
        return found if isinstance(self.training, str) else found | {"training": self.training}


@dataclass
class Recipe:
    """A recipe, read.

    Attributes:
        task: name of what is trained.
        model: keyword arguments of the configuration (or the section's dataclass).
        data: the section's dataclass.
        training: the section's dataclass (or a dict, where another library judges it).
        others: `{name: dataclass}` of the further sections: all options, and those of the task's own that the file
            has.
    """

    task: str
    model: Any
    data: Any
    training: Any
    others: dict[str, Any] = field(default_factory=dict)


class _Parser(HfArgumentParser):
    """One error instead of the whole usage, which is as long as `TrainingArguments`."""

    def error(self, message: str):
        raise TrainingError(" ".join(message.split()))


# ---------------------------------------------------------------------------------------------------------------------
# The file


def find_recipe(path: str | Path, listed: str = "[!r]*") -> Path:
    """A recipe file: as named, or the package's of that name.

    Args:
        path: a file, or a name such as `starter`.
        listed: pattern of the package's recipes that the message names (those of reinforcement learning are another
            command's).

    Raises:
        TrainingError: there is none.
    """
    for candidate in (Path(path), RECIPES / path, RECIPES / f"{path}.yaml"):
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(p.stem for p in RECIPES.glob(f"{listed}.yaml")))
    raise TrainingError(f"no recipe {path}: give a YAML file, or one of {known}")


def read_sections(path: Path) -> dict:
    """The sections of a recipe file, as YAML has them.

    Args:
        path: an existing file.

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


def with_folder(path: str | Path, words: Iterable[str]) -> list[str]:
    """The words after a recipe, with `--output_dir runs/<recipe>` (it is printed) where nothing names a folder.

    Args:
        path: the recipe, as `find_recipe` takes it.
        words: `--field value` words of the command line.
    """
    path, words = find_recipe(path), list(words)
    named = any(word.partition("=")[0] in ("--output_dir", "--output-dir") for word in words)
    if named or "output_dir" in (read_sections(path).get("training") or {}):
        return words
    folder = Path("runs") / path.stem
    if os.environ.get("RANK", "0") == "0":
        print(f"run folder: {folder} (--output_dir names another)", flush=True)
    return ["--output_dir", str(folder), *words]


def parse_recipe(path: str | Path, words: Iterable[str], kind: RecipeKind) -> Recipe:
    """A recipe file with words of the command line over it.

    Args:
        path: a file, or the name of a recipe of the package ("starter").
        words: e.g. `["--max_steps", "500", "--data", "pack"]`: any field of a section that is no task's own, and
            `--model.` with a field of the model section.
        kind: of the task that is to be trained; a file that does not say what it trains is one for it.

    Raises:
        TrainingError: no such recipe or one of another task; unknown section, field or word (named); a value that
            cannot be; no YAML.
    """
    path = find_recipe(path)
    content = read_sections(path)
    task = content.get("task", kind.task)
    if task != kind.task:
        raise TrainingError(f"{path} is a recipe for {task}, not for {kind.task}: `mortm train` runs it")
    known = ("task", "model", "data", *kind.options, "training", *kind.own)
    unknown = ", ".join(sorted(map(str, set(content) - set(known))))
    if unknown:
        raise TrainingError(f"{path}: unknown sections: {unknown}; there are {', '.join(known)}")
    given = {name: dict(content.get(name) or {}) for name in known if name != "task" and name not in kind.own}
    words = _assign_words(words, kind, given)
    found = _parse_options(path, kind.parsed(), given, words)
    if kind.is_configuration:
        _check_model(path, kind.model, given["model"], found["training"].init)
    arguments = found.get("training")
    if isinstance(arguments, RunArguments) and arguments.eval_windows:
        beside = path.parent / arguments.eval_windows
        arguments.eval_windows = str(beside) if beside.is_file() else arguments.eval_windows
    sections = given | found
    others = {name: sections[name] for name in kind.options}
    others |= {name: _own_section(path, name, kind.own[name], content[name]) for name in kind.own if name in content}
    return Recipe(kind.task, sections["model"], sections["data"], sections["training"], others)


# ---------------------------------------------------------------------------------------------------------------------
# Words of the command line


def _assign_words(words: Iterable[str], kind: RecipeKind, given: dict[str, dict]) -> list[str]:
    """Puts the words that no argument parser reads into the sections of `given`; returns the others."""
    structured = {name: section for section, k in kind.parsed().items() for name in _structured(k)}
    plain = {f.name for k in kind.parsed().values() for f in fields(k)} - set(structured)
    rest, left = [], iter(words)
    for word in left:
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        section, of_model, field_name = name.partition(".")
        if word.startswith("--") and of_model and section == "model" and kind.is_configuration:
            section = "model"
        elif word.startswith("--") and name in structured:
            section, field_name = structured[name], name
        elif word.startswith("--") and isinstance(kind.training, str) and name not in plain:
            section, field_name = "training", name
        else:
            rest.append(word)
            if word.startswith("--") and not equals and isinstance(kind.training, str):
                rest.append(_value_after(name, left))  # no flags: what follows belongs to this word
            continue
        value = value if equals else _value_after(name, left)
        given[section][field_name] = _read_value(name, value)
    return rest


def _value_after(name: str, words: Iterable[str]) -> str:
    value = next(iter(words), "")
    if not value:
        raise TrainingError(f"--{name} needs a value, as in a recipe")
    return value


def _read_value(name: str, text: str):
    """A value of the command line, as it would stand in a recipe."""
    try:
        return json.loads(text)  # first: to YAML 1e-3 is a word
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise TrainingError(f"--{name}: cannot read the value {text!r}: give it as in a recipe") from None


# ---------------------------------------------------------------------------------------------------------------------
# Names and values


def check_names(where: str, given: Iterable, known: Iterable[str], what: str = "fields") -> None:
    """Refuse unknown names, each with the known one that is spelt most like it; a few known ones are all listed.

    Args:
        where: what the message begins with.
        given: names, of any type.
        known: the names there are.
        what: the word for them.

    Raises:
        TrainingError: there are such names.
    """
    wrong, known = [], list(known)
    for name in map(str, given):
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            wrong.append(f"{name} (is {close[0]} meant?)" if close else name)
    if wrong:
        listed = f"; there are {', '.join(known)}" if len(known) < 10 else ""
        raise TrainingError(f"{where}: unknown {what}: {', '.join(sorted(wrong))}{listed}")


def _check_model(path: Path, kind: type, section: dict, init: str) -> None:
    """Refuse a model section that makes no configuration; over that of `init` only its names can be judged."""
    # the size of the vocabulary is the tokenizer's
    known = ({f.name for f in fields(kind)} | set(kind.attribute_map) | _OTHER_NAMES) - {"vocab_size"}
    check_names(f"{path}: model", section, known)
    if init:
        return
    try:
        kind(**copy.deepcopy(section))  # it completes rope_parameters in place
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # not all of transformers' checks are ours
        raise TrainingError(f"{path}: model: {' '.join(str(error).split())[:200]}") from None


@functools.cache
def _structured(kind: type) -> tuple[str, ...]:
    """Names of the fields of a section that are no single words: pairs and tables."""
    if issubclass(kind, TrainingArguments):
        return ()
    hints = typing.get_type_hints(kind)
    return tuple(f.name for f in fields(kind) if typing.get_origin(hints[f.name]) in (dict, tuple))


@functools.cache
def _plain(kind: type) -> type:
    """The section without its structured fields, which an argument parser cannot read."""
    structured = _structured(kind)
    if not structured:
        return kind
    hints = typing.get_type_hints(kind)
    kept = [(f.name, hints[f.name], copy.copy(f)) for f in fields(kind) if f.name not in structured]
    return dataclasses.make_dataclass(f"Plain{kind.__name__}", kept)


def as_words(values: dict) -> list[str]:
    """`--name value ...` words of an argument parser.

    Args:
        values: `{name: value}`; a list is several words.
    """
    parts = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    return [word for name, several in parts.items() for word in (f"--{name}", *map(str, several))]


def _parse_options(path: Path, kinds: dict[str, type], given: dict[str, dict], words: Sequence[str]) -> dict[str, Any]:
    """`{section: object}`: the values of a file, and words of a command line over them."""
    flat: list[str] = []
    structured: dict[str, dict] = {}
    for section, kind in kinds.items():
        check_names(f"{path}: {section}", given[section], {f.name for f in fields(kind)})
        values = dict(given[section])
        structured[section] = {name: values.pop(name) for name in _structured(kind) if name in values}
        _check_structured(path, structured[section])
        for name, value in values.items():
            if value != []:
                flat += as_words({name: json.dumps(value) if isinstance(value, dict) else value})
    plain = [_plain(kind) for kind in kinds.values()]
    try:
        *parsed, rest = _Parser(plain).parse_args_into_dataclasses([*flat, *words], return_remaining_strings=True)
        if rest:
            raise TrainingError(f"unknown arguments: {' '.join(rest)} (write --field value)")
        found = {}
        for (section, kind), one in zip(kinds.items(), parsed):
            _check_bounds(one)
            if type(one) is not kind:
                one = kind(**{f.name: getattr(one, f.name) for f in fields(one)}, **structured[section])
            found[section] = one
    except ValueError as error:  # ours, and what TrainingArguments says of values that do not go together
        raise TrainingError(f"{path}: {' '.join(str(error).split())}") from None
    return found


def _check_bounds(values) -> None:
    for name, (least, most) in _BOUNDS.items():
        value = getattr(values, name, least)
        if not least <= value <= most:
            until = "on" if most == math.inf else f"to {most}"
            raise TrainingError(f"{name} is a number from {least} {until}, not {value}")


def _check_structured(path: Path, structured: dict) -> None:
    """Refuses values of the structured fields that nothing could be drawn by; lists become tuples."""
    for name in _PAIRS.keys() & structured.keys():
        pair, least = structured[name], _PAIRS[name]
        whole = isinstance(pair, list) and len(pair) == 2 and all(type(n) is int for n in pair)
        if not whole or not least <= pair[0] <= pair[1]:
            raise TrainingError(
                f"{path}: {name} is two whole numbers from {least} on, least and most, as [4, 8]; not {pair!r}"
            )
        structured[name] = tuple(pair)
    for name in [name for name in ("tasks", "corpora") if name in structured]:
        structured[name] = structured[name] or {}
        if not isinstance(structured[name], dict):
            raise TrainingError(f"{path}: {name} has a line for each, `name: ...`, not {structured[name]!r}")
    tasks, corpora = structured.get("tasks", {}), structured.get("corpora", {})
    corpora.update({name: {} for name, rule in corpora.items() if rule is None})
    for name, rule in corpora.items():
        if not isinstance(rule, dict):
            raise TrainingError(f"{path}: corpora.{name} is given as {{weight: 1}}, not {rule!r}")
        check_names(f"{path}: corpora.{name}", rule, _CORPUS_KEYS)
        if not isinstance(rule.get("variants", []), list) or not isinstance(rule.get("licence", ""), str):
            raise TrainingError(f"{path}: corpora.{name}: variants is a list, as [aligned], and licence a text")
    check_names(f"{path}: data", tasks, EXAMPLE_TASKS, "tasks")
    _check_weights(f"{path}: tasks", tasks)
    _check_weights(f"{path}: corpora", {n: rule["weight"] for n, rule in corpora.items() if "weight" in rule})


def _check_weights(where: str, weights: dict) -> None:
    for name, weight in weights.items():
        if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise TrainingError(f"{where}: the weight of {name} is a number from 0 on, not {weight!r}")
    if weights and not sum(weights.values()):
        raise TrainingError(f"{where}: all weights are 0: give one of {', '.join(weights)} more")


def _own_section(path: Path, name: str, kind: type, content: dict | None):
    """A section that only the file holds, as its dataclass."""
    where, values, hints = f"{path}: {name}", dict(content or {}), typing.get_type_hints(kind)
    check_names(where, values, [f.name for f in fields(kind)])
    for key, value in values.items():
        if typing.get_origin(hints[key]) is tuple and isinstance(value, list):
            values[key] = value = tuple(value)
        if not _is_of(value, hints[key]):
            wanted = getattr(hints[key], "__name__", "") or str(hints[key])
            raise TrainingError(f"{where}: {key} is a value of the kind {wanted}, not {value!r}")
    try:
        made = kind(**values)
        _check_bounds(made)
    except ValueError as error:
        raise TrainingError(f"{where}: {' '.join(str(error).split())[:300]}") from None
    return made


def _is_of(value, hint) -> bool:
    """Whether a value of YAML is of the kind that a field's annotation states (the outermost one)."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_of(value, one) for one in typing.get_args(hint))
    if hint is float or hint is int:
        return type(value) is int or (hint is float and type(value) is float)
    return isinstance(value, origin or hint)


# ---------------------------------------------------------------------------------------------------------------------
# The list of fields


def describe_fields(kind: RecipeKind) -> str:
    """All fields that the command line can override, with their defaults, ours first; what it cannot is named last.

    Args:
        kind: of the recipe's task.
    """
    groups, later = [], []
    for name, section in kind.parsed().items():
        entries = fields(section)
        if issubclass(section, TrainingArguments):
            ours = {n for one in section.__mro__ if issubclass(one, RunArguments) for n in one.__annotations__}
            later = [("training (transformers' TrainingArguments)", "", [f for f in entries if f.name not in ours])]
            entries = [f for f in entries if f.name in ours]
        else:  # what a section has of its own (where the data is) before what it inherits
            inherited = {n for one in section.__mro__[1:] for n in getattr(one, "__dataclass_fields__", ())}
            entries = sorted(entries, key=lambda f: f.name in inherited)
        groups.append((name, "", section, entries))
    if kind.is_configuration:
        common = {f.name for f in fields(PreTrainedConfig)} | {"vocab_size"}
        groups.append(("model", "model.", kind.model, [f for f in fields(kind.model) if f.name not in common]))
    groups += [(title, prefix, kind.training, entries) for title, prefix, entries in later]
    lines = []
    for title, prefix, section, entries in groups:
        lines += [f"{title}:"] * bool(entries)
        for entry in entries:
            words = " ".join(_help(section, entry.name).replace("%%", "%").split())
            text = f"  --{prefix}{entry.name} ({_default(entry)})" + (f"  {words}" if words else "")
            lines.append(text if len(text) <= 160 else text[:157] + "...")
    if isinstance(kind.training, str):
        lines.append(f"training: {kind.training}")
    if kind.own:
        lines.append(f"no options, sections of the recipe file only: {', '.join(kind.own)}")
    return "\n".join(lines)


def _help(section: type, name: str) -> str:
    """What a field is, by the class that says it: a subclass may state another default alone."""
    for kind in section.__mro__:
        entry = getattr(kind, "__dataclass_fields__", {}).get(name)
        if entry is not None and "help" in entry.metadata:
            return entry.metadata["help"]
    return ""


def _default(entry) -> str:
    default = entry.default if entry.default is not MISSING else ""
    return str(list(default)) if isinstance(default, tuple) else str(default)
