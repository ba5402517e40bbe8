"""What every run has in common: its folder's recipe, its schedule, its command line.

Design decisions
- One recipe a folder: a run that is started again must be the one that the folder holds, or be told to start anew. A
  folder without a checkpoint holds none: a first start that failed does not bar the corrected recipe.
- A training module offers `run(recipe, words)`; `mortm train` and `python -m` both call it.

Knows: run folders, transformers' arguments. Must not know: data, models, recipes' sections.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ..models.errors_mortm import TrainingError
from .arguments import with_folder
from .refusals import refused_as
from .runlog import is_first_process


_RESULTS = ("checkpoint-*", "best", "final")


def _changes(before, stated, name: str = "") -> list[str]:
    """`name: before -> now` of every field that differs; `None` and a missing field are the same."""
    if isinstance(before, dict) and isinstance(stated, dict):
        parts = [(key, f"{name}.{key}" if name else key) for key in {**before, **stated}]
        return [line for key, path in parts for line in _changes(before.get(key), stated.get(key), path)]
    told = ["nothing" if value is None else str(value) for value in (before, stated)]
    return [] if before == stated else [f"{name}: {' -> '.join(told)}"]


def holds_run(folder: Path) -> bool:
    """Whether there is a run to go on with, or its result."""
    return any(found for name in _RESULTS for found in folder.glob(name))


def same_run(folder: Path, stated: dict, fresh: bool, later: dict | None = None) -> None:
    """Write what a run is made of, or compare it with what the run in this folder began with.

    Args:
        later: `{section: {field: default}}` of fields that may have come after the run began: there they stand at
            their defaults.

    Raises:
        TrainingError: another recipe (the message names the fields that differ).
    """
    stated = json.loads(json.dumps(stated))
    path = folder / "recipe.json"
    if path.is_file() and holds_run(folder) and not fresh:
        before = json.loads(path.read_text(encoding="utf-8"))
        for section, defaults in json.loads(json.dumps(later or {})).items():
            known = {name: value for name, value in defaults.items() if name in stated[section]}
            before[section] = known | before.get(section, {})
        different = _changes(before, stated)
        if different:
            more = f"; and {len(different) - 5} more" if len(different) > 5 else ""
            raise TrainingError(
                f"{folder} holds a run with another recipe ({'; '.join(different[:5])}{more}): "
                "give another --output_dir, or --fresh True to start it anew"
            )
    elif is_first_process():  # the others would write the same, at the same time
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / ".recipe.json.tmp"
        partial.write_text(json.dumps(stated, indent=1), encoding="utf-8")
        partial.replace(path)


def apply_decay(arguments) -> None:
    """A linear fall of the learning rate over the last `decay_steps`."""
    if arguments.decay_steps:
        arguments.lr_scheduler_type = "warmup_stable_decay"
        arguments.lr_scheduler_kwargs = {
            "num_decay_steps": arguments.decay_steps,
            "decay_type": "linear",
            "min_lr_ratio": 0.0,
        }


def set_experts(model, arguments) -> None:
    """How the experts are computed, where the arguments say it.

    Raises:
        TrainingError: they cannot be computed so.
    """
    name = arguments.experts_implementation
    if name:
        with refused_as(f"experts_implementation {name}"):
            model.set_experts_implementation(name)


def command_line(name: str, title: str, run, words: list[str] | None) -> int:
    """A recipe file and `--field value` words; the exit code (2: bad input, one line on stderr).

    Args:
        run: called with the recipe and the words after it.
    """
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0].startswith("-"):
        print(title.splitlines()[0])
        return 0 if words and words[0] in ("-h", "--help") else 2
    try:
        run(words[0], with_folder(words[0], words[1:]))
    except (ValueError, OSError) as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0
