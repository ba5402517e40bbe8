"""One run, whatever it trains: its folder, its schedule, its log, how it resumes and how it ends.

Design decisions
- A run folder holds everything: the recipe with all overrides, prepared stores, `log.jsonl`, curves for TensorBoard,
  checkpoints, the best model by validation in `best/`, and at the end `final/`, a complete folder for
  `from_pretrained`, which appears whole (a temporary name, then one rename).
- One recipe a folder: a run that is started again must be the one that the folder holds, or start anew. A folder
  without a checkpoint holds none: a first start that failed does not bar the corrected recipe.
- Started again with the same folder it goes on from the newest checkpoint that is whole. Steps, decay, threads and the
  stopping time may differ then; what the recipe states of data, model and seed must not.
- Ctrl-C and SIGTERM end a run after the step under way, with a checkpoint; a second one ends it at once.

Knows: run folders, the Trainer, its log and validation. Must not know: data, models, recipes' sections.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers

from ..data.checkpoint_songs import FILE as MEMBERS
from ..data.packing import single_pack
from ..models.errors_mortm import TrainingError
from .adapters import is_adapted, load_adapter, merged
from .arguments import RunArguments
from .routing import ExpertAlarm
from .runlog import Progress, RunLog, is_first_process
from .trainer import PackTrainer
from .validation import BEST, Selection


_RESULTS = ("checkpoint-*", "best", "final")
_OPTIMIZER_STATE = ("optimizer.pt", "optimizer.bin", "optimizer_0", "optimizer-0-of-*.pt", "global_step*")


# ---------------------------------------------------------------------------------------------------------------------
# The folder


def holds_run(folder: Path) -> bool:
    """Whether there is a run to go on with, or its result."""
    return any(found for name in _RESULTS for found in folder.glob(name))


def open_run(arguments: RunArguments, stated: dict, later: dict | None = None) -> Path:
    """Sets torch's threads and opens the folder of a run; the folder.

    Args:
        arguments: of the run.
        stated: what the run is made of; a run that goes on must be made of the same.
        later: `{section: {field: default}}` of fields that may have come after the run began: there they stand at
            their defaults.

    Raises:
        TrainingError: the folder holds a run of another recipe (the message names the fields that differ).
    """
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    folder = Path(arguments.output_dir)
    with arguments.main_process_first(desc="opening the run folder"):
        same_run(folder, stated, arguments.fresh, later)
    return folder


def same_run(folder: Path, stated: dict, fresh: bool, later: dict | None = None) -> None:
    """Write what a run is made of, or compare it with what the run in this folder began with.

    Args:
        folder: of the run.
        stated: what it is made of (JSON types).
        fresh: start anew, whatever the folder holds.
        later: see `open_run`.

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


def _changes(before, stated, name: str = "") -> list[str]:
    """`name: before -> now` of every field that differs; `None` and a missing field are the same."""
    if isinstance(before, dict) and isinstance(stated, dict):
        parts = [(key, f"{name}.{key}" if name else key) for key in {**before, **stated}]
        return [line for key, path in parts for line in _changes(before.get(key), stated.get(key), path)]
    words = ["nothing" if value is None else str(value) for value in (before, stated)]
    return [] if before == stated else [f"{name}: {' -> '.join(words)}"]


def newest_checkpoint(folder: str | Path) -> str | None:
    """The newest complete checkpoint of a run folder: a run killed while it saved leaves one without the Trainer's
    state, which is written last, or with half of it."""

    def complete(path: Path) -> bool:
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return any(True for name in _OPTIMIZER_STATE for _ in path.glob(name))

    found = [p for p in Path(folder).glob("checkpoint-*") if p.name.partition("-")[2].isdigit() and complete(p)]
    return str(max(found, key=_step_of)) if found else None


def _step_of(checkpoint: str | Path) -> int:
    return int(Path(checkpoint).name.partition("-")[2])


# ---------------------------------------------------------------------------------------------------------------------
# The trainer


def complete_arguments(arguments: RunArguments, tokens_per_step: int) -> None:
    """Sets everything of the arguments that follows from others.

    Args:
        arguments: of the run, changed in place.
        tokens_per_step: of all processes and micro-batches together (frames or chunks where there are no tokens).

    Raises:
        TrainingError: the run has no length.
    """
    arguments.per_device_train_batch_size = 1  # one item of the data is one batch
    arguments.remove_unused_columns = False
    arguments.save_strategy = "no"  # by the clock: RunLog asks for checkpoints
    arguments.disable_tqdm = True
    if arguments.max_tokens:
        arguments.max_steps = math.ceil(arguments.max_tokens / tokens_per_step)
    if arguments.max_steps <= 0:
        raise TrainingError("how long? Give max_steps or max_tokens in the recipe's training section")
    if arguments.decay_share:
        arguments.decay_steps = round(arguments.decay_share * arguments.max_steps)
    if arguments.decay_steps:  # a linear fall of the learning rate over the last steps
        arguments.lr_scheduler_type = "warmup_stable_decay"
        arguments.lr_scheduler_kwargs = {
            "num_decay_steps": arguments.decay_steps,
            "decay_type": "linear",
            "min_lr_ratio": 0.0,
        }
    if arguments.tensorboard and importlib.util.find_spec("tensorboard") is not None:
        arguments.report_to = sorted({*arguments.report_to, "tensorboard"})


def batches_of(arguments: RunArguments) -> int:
    """Batches that all processes draw over the whole run."""
    return arguments.max_steps * packs_of_step(arguments)


def packs_of_step(arguments: RunArguments) -> int:
    """Batches of one step: processes times micro-batches."""
    return arguments.gradient_accumulation_steps * max(1, arguments.world_size)


def new_trainer(
    model,
    dataset,
    reader,
    arguments: RunArguments,
    tokens_per_step: int,
    validation=None,
    kind: type[PackTrainer] = PackTrainer,
    **options,
) -> PackTrainer:
    """The trainer of a run, with its log, progress and selection; nothing is trained yet.

    Args:
        model: to train.
        dataset: whose items are whole batches, each a pure function of its index.
        reader: what is saved beside the model: tokenizer, feature extractor or processor.
        arguments: completed (`complete_arguments`).
        tokens_per_step: as there.
        validation: what is measured on the way (`validation.BitsPerNote`, `validation.MeanLosses`), or None.
        kind: class of the trainer.
        options: further keyword arguments of that class.
    """
    log = RunLog(
        arguments.output_dir,
        lambda step: step * tokens_per_step,
        arguments.stop_at,
        arguments.max_minutes,
        arguments.save_minutes,
        arguments.router_every,
        ExpertAlarm(arguments.dead_share, arguments.dead_after),
    )
    trainer = kind(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=single_pack,
        processing_class=reader,
        callbacks=[log, Progress(log)],
        validation=validation,
        **options,
    )
    trainer.run_log = log
    if validation is not None:
        trainer.add_callback(
            Selection(log, arguments.eval_tokens, arguments.early_stopping, trainer.save_result, validation.metric)
        )
    return trainer


def carry_out(trainer: PackTrainer) -> PackTrainer:
    """Trains from the newest checkpoint on, to the end or to where the run is stopped; the same trainer.

    At the end stands `final/`: the best model by validation, or the last; adapters merged.

    Args:
        trainer: of `new_trainer`.
    """
    arguments = trainer.args
    folder = Path(arguments.output_dir)
    checkpoint = None if arguments.fresh else newest_checkpoint(folder)
    selection = next((c for c in trainer.callback_handler.callbacks if isinstance(c, Selection)), None)
    reached = _step_of(checkpoint) if checkpoint else 0
    over = reached >= arguments.max_steps or (selection is not None and selection.has_stopped(reached))
    if reached and over and (folder / "final").is_dir():
        if is_first_process():
            print(f"{folder} is finished ({reached} steps); more --max_steps (or --early_stopping) let it go on")
        trainer.state.global_step = reached
        return trainer
    if arguments.fresh and is_first_process():
        shutil.rmtree(folder / BEST, ignore_errors=True)
        (folder / "log.jsonl").unlink(missing_ok=True)
    if checkpoint and is_first_process():
        print(f"{folder} goes on from step {reached}", file=sys.stderr, flush=True)
    with ending_gracefully(trainer.run_log.stop_soon):
        trainer.train(resume_from_checkpoint=checkpoint)
    early = selection is not None and selection.patience and selection.since >= selection.patience
    if early or trainer.state.global_step >= arguments.max_steps:
        _finish(trainer, folder, arguments.select_best)
    elif newest_checkpoint(folder) is None:
        trainer._save_checkpoint(trainer.model, trial=None)
    return trainer


def _finish(trainer: PackTrainer, folder: Path, select_best: bool) -> None:
    """Writes `final/`."""
    best = folder / BEST if select_best and (folder / BEST).is_dir() else None
    staged, final = folder / ".final.tmp", folder / "final"
    if is_first_process():
        shutil.rmtree(staged, ignore_errors=True)
    if is_adapted(trainer.model):
        if best is not None:
            load_adapter(trainer.model, best)
        if is_first_process():
            model = merged(trainer.model)
            model.config.use_cache = True
            model.save_pretrained(staged)
            trainer.processing_class.save_pretrained(staged)
    elif best is not None:
        if is_first_process():
            shutil.copytree(best, staged, ignore=shutil.ignore_patterns("best.json"))
    else:
        trainer.save_result(str(staged))
    if is_first_process():
        (staged / "training_args.bin").unlink(missing_ok=True)  # a pickle, of use to this run only
        if (folder / MEMBERS).is_file():
            shutil.copy(folder / MEMBERS, staged)
        shutil.rmtree(final, ignore_errors=True)
        staged.rename(final)


# ---------------------------------------------------------------------------------------------------------------------
# The process


@contextlib.contextmanager
def without_bars():
    """transformers' bars for reading and writing weights would cut through ours."""
    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


@contextlib.contextmanager
def ending_gracefully(stop: Callable[[], None]):
    """Inside, the first Ctrl-C or SIGTERM calls `stop` instead of ending the process; the second one ends it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {}

    def heed(number, frame):
        if is_first_process():
            print("ending after this step, with a checkpoint", file=sys.stderr, flush=True)
        stop()
        for known, handler in before.items():
            signal.signal(known, handler)

    before = {number: signal.signal(number, heed) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def command_line(name: str, title: str, run: Callable, words: Sequence[str] | None) -> int:
    """A recipe file and `--field value` words; the exit code (2: bad input, one line on stderr).

    Args:
        name: of the command, before its errors.
        title: text whose first line is the help.
        run: called with the recipe and the words after it.
        words: of the command line; by default those of this process.
    """
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0].startswith("-"):
        print(title.splitlines()[0])
        return 0 if words and words[0] in ("-h", "--help") else 2
    try:
        run(words[0], words[1:])
    except (ValueError, OSError) as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0
