"""What can be trained from a recipe: one module a task, found by the line `task:` of the recipe.

Design decisions
- A module of a task offers `KIND`, its sections, and `train(recipe, ...)`: model, data and validation. All else is
  `recipe` (the parser) and `run` (folder, log, signals, resuming, `final/`).
- A new task is a module `<name>_task` and a line in `TASKS`.

Knows: the names of the tasks. Must not know: what any of them does.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path

from ...models.errors_mortm import TrainingError
from ..arguments import DataRecipe
from ..recipe import Recipe, RecipeKind, find_recipe, parse_recipe, read_sections, with_folder
from ..runlog import is_first_process


TASKS = ("pretrain", "mlm", "classify", "audio", "live")


def task_of(path: str | Path, default: str = "pretrain") -> str:
    """What a recipe trains: one of `TASKS`.

    Args:
        path: a file, or the name of a recipe of the package.
        default: the task of a file that does not say it.

    Raises:
        TrainingError: no such recipe, no YAML, or an unknown task.
    """
    path = find_recipe(path)
    task = read_sections(path).get("task", default)
    if task == "rlmf":
        raise TrainingError(f"{path} is a recipe of reinforcement learning: `mortm rlmf {path.stem}` runs it")
    if task not in TASKS:
        raise TrainingError(f"{path}: unknown task {task!r}; there are {', '.join(TASKS)}")
    return task


def _module(task: str):
    return importlib.import_module(f".{task}_task", __package__)


def kind_of(path: str | Path) -> RecipeKind:
    """The sections that a recipe may have, by its task.

    Args:
        path: a file, or the name of a recipe of the package.

    Raises:
        TrainingError: as `task_of`.
    """
    return _module(task_of(path)).KIND


def read_recipe(path: str | Path, words: Iterable[str] = ()) -> Recipe:
    """A recipe of any task (see `recipe.parse_recipe`).

    Args:
        path: a file, or the name of a recipe of the package.
        words: `--field value` words over its fields.

    Raises:
        TrainingError: no such recipe, or one that no run could use.
    """
    return parse_recipe(path, words, kind_of(path))


def read_data(path: str | Path, words: Iterable[str] = ()) -> DataRecipe:
    """The section `data` of a recipe that chooses songs and draws examples from them.

    Args:
        path: a file, or the name of a recipe of the package.
        words: `--field value` words over its fields.

    Raises:
        TrainingError: as `read_recipe`; a recipe that names a labelled set instead.
    """
    recipe = read_recipe(path, words)
    if not isinstance(recipe.data, DataRecipe):
        raise TrainingError(f"{path} is a recipe for {recipe.task}: its data is no choice of songs")
    return recipe.data


def run(path: str | Path, words: Iterable[str], task: str = ""):
    """What `mortm train` does: trains (or goes on training) as a recipe states it; the trainer.

    Args:
        path: a file, or the name of a recipe of the package.
        words: `--field value` words over its fields; without `--output_dir` the run goes to `runs/<recipe>`.
        task: refuse recipes of another one; empty: any.

    Raises:
        TrainingError: a recipe that no run could use, or a run that cannot start.
    """
    module = _module(task or task_of(path))
    trainer = module.train(parse_recipe(path, with_folder(path, words), module.KIND))
    folder = Path(trainer.args.output_dir)
    figures = folder / "best" / "validation.json"  # of a classifier
    if is_first_process() and figures.is_file():
        print(figures.read_text(encoding="utf-8").strip())
    if is_first_process() and (folder / "final").is_dir():
        print(f"{folder / 'final'}: the model, after {trainer.state.global_step} steps", flush=True)
    return trainer
