"""Validation while a run is under way: fixed windows or batches, the best checkpoint, early stopping.

Design decisions
- The windows are named by the recipe (a csv of paths and bars, or all of the validation songs) and never change, so
  the figures of two runs, or of two steps, can be compared. A limit takes evenly spaced windows of each corpus, not
  the first ones.
- Models without notes to count are measured by the mean of their losses on fixed batches of the validation songs.
- Measured every so many tokens, whatever the size of a step is.
- The best model so far is kept in `best/`, a complete folder, with `best.json` beside its weights. Whether a run has
  stopped improving is read from its log, so a resumed run knows what an unbroken one would know.

Knows: encoded windows, a model that gives logits. Must not know: how it is trained.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from transformers import TrainerCallback

from ..data.score_store import ScoreStore
from ..evaluation.bits_per_note import model_bits
from ..evaluation.fixed_windows import GIVEN, Encoded, Window, encode_windows, fixed_windows, read_windows, window_bars
from ..models.errors_mortm import TrainingError
from . import attention
from .routing import summed
from .runlog import RunLog, is_first_process, read_log


BEST = "best"
METRIC = "eval_bits_per_note"
LOSS = "eval_loss"
ALL_WINDOWS = "all"  # instead of a csv: every window of the validation songs


def evenly_spaced(windows: Sequence[Window], corpus_of: dict[str, str], limit: int) -> list[Window]:
    """The same number of windows of each corpus, evenly spaced over its list.

    Args:
        windows: to choose from.
        corpus_of: `{path: corpus}`.
        limit: windows in all, about; 0: every one.
    """
    if not limit or len(windows) <= limit:
        return list(windows)
    groups: dict[str, list[Window]] = {}
    for window in windows:
        groups.setdefault(corpus_of[window.path], []).append(window)
    left, chosen = limit, []
    for place, rows in enumerate(sorted(groups.values(), key=len)):  # small corpora leave their share to the others
        take = min(len(rows), left // (len(groups) - place))
        left -= take
        chosen += [rows[i] for i in np.linspace(0, len(rows) - 1, take).round().astype(int)] if take else []
    return chosen


def validation_windows(
    vocabulary, store: ScoreStore, csv: str | Path, max_length: int, limit: int = 0
) -> list[Encoded]:
    """The encoded validation windows of a recipe.

    Args:
        vocabulary: the token table.
        store: the validation songs.
        csv: file of windows (8 given and 8 new bars), or `ALL_WINDOWS` (shorter ones where most songs are short).
        max_length: tokens of the model's context.
        limit: windows in all, about; 0: every one.

    Raises:
        TrainingError: a window names a song that the store has not, or none can be used.
    """
    bars = window_bars(store.songs) if csv == ALL_WINDOWS else GIVEN
    windows = fixed_windows(store, bars, bars) if csv == ALL_WINDOWS else read_windows(csv)
    corpus_of = {song.path: song.corpus for song in store.songs}
    missing = [w.path for w in windows if w.path not in corpus_of]
    if missing:
        raise TrainingError(
            f"{csv} names {len(missing)} windows of songs that the validation data does not hold, {missing[0]} first: "
            f"name the csv made for this data, or take all of its windows (--eval_windows {ALL_WINDOWS})"
        )
    chosen = evenly_spaced(windows, corpus_of, limit)
    encoded, left_out = encode_windows(vocabulary, store, chosen, max_length, bars, bars)
    if not encoded:
        reason = left_out[0][1] if left_out else f"no song has {2 * bars} bars"
        raise TrainingError(
            f"no validation window can be used ({reason}): --eval_windows '' --early_stopping 0 do without"
        )
    return encoded


@contextmanager
def whole_rows(model):
    """Rows of one document each: attention by documents gives way to sdpa inside."""
    config = model.config
    before = config._attn_implementation
    if before == attention.NAME:
        config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = before


class BitsPerNote:
    """Scores a model on fixed windows; `measure(model)` gives the figures by corpus and their mean.

    Args:
        windows: encoded validation windows.
        pad: id of padding.
        tokens_per_batch: padded tokens of a batch.
    """

    metric = METRIC

    def __init__(self, windows: Sequence[Encoded], pad: int = 0, tokens_per_batch: int = 8192):
        self.windows, self.pad, self.tokens_per_batch = list(windows), pad, tokens_per_batch

    def measure(self, model, rank: int = 0, ranks: int = 1) -> dict[str, float]:
        """`{"eval_bits_per_note": mean over corpora, "eval_bits_per_note_<corpus>": ..., "eval_seconds": ...}`.

        Args:
            model: the model, or what wraps it.
            rank: of this process, which scores its share of the windows; all sum up (every process calls this).
            ranks: processes; 1 in each where the weights are spread over them: all score everything.
        """
        started = time.perf_counter()
        inner = getattr(model, "module", model)
        own = range(rank, len(self.windows), ranks)
        bits = np.zeros(len(self.windows))
        with whole_rows(inner):
            bits[list(own)] = model_bits(
                model, [self.windows[i] for i in own], pad=self.pad, tokens_per_batch=self.tokens_per_batch
            )
        if ranks > 1:
            bits = summed(torch.from_numpy(bits)).numpy()
        corpus = np.array([w.corpus for w in self.windows])
        notes = np.array([w.notes for w in self.windows], dtype=np.float64)
        found = {name: bits[corpus == name].sum() / notes[corpus == name].sum() for name in dict.fromkeys(corpus)}
        figures = {METRIC: float(np.mean(list(found.values())))}
        figures |= {f"{METRIC}_{name}": float(value) for name, value in found.items()}
        return figures | {"eval_seconds": round(time.perf_counter() - started, 2)}


@torch.no_grad()
def mean_losses(model, batches, names: Sequence[str]) -> dict[str, float]:
    """Means over batches of what a model's output calls `names` (or holds in its `losses`).

    Args:
        model: called with each batch, in eval mode.
        batches: sequence of keyword arguments of the model.
        names: of losses.
    """
    was_training = model.training
    model.eval()
    sums = dict.fromkeys(names, 0.0)
    for index in range(len(batches)):
        batch = {k: v.to(model.device) if torch.is_tensor(v) else v for k, v in batches[index].items()}
        output = model(**batch)
        found = {**(output.get("losses") or {}), **{k: v for k, v in output.items() if k in names}}
        for name in names:
            sums[name] += float(found[name])
    model.train(was_training)
    return {name: total / max(1, len(batches)) for name, total in sums.items()}


def batches_to_measure(arguments, rows: int, songs: int) -> int:
    """How many batches of the validation songs are measured: about `eval_limit` windows, or one a song.

    Args:
        arguments: of the run (`eval_windows`, `eval_limit`).
        rows: windows of a batch.
        songs: of the validation split.

    Raises:
        TrainingError: `eval_windows` names a file, which only generators of tokens can be measured on.
    """
    if arguments.eval_windows != ALL_WINDOWS:
        raise TrainingError(f"eval_windows is {ALL_WINDOWS} or empty for this task, not {arguments.eval_windows}")
    return math.ceil((arguments.eval_limit or songs) / rows)


class MeanLosses:
    """Measures a model by its losses on fixed batches; `measure(model)` gives `{"eval_loss": ...}`.

    Args:
        batches: sequence of batches of the validation songs, each a pure function of its index.
        names: further losses, of the model's `losses`.
    """

    metric = LOSS

    def __init__(self, batches, names: Sequence[str] = ()):
        self.batches, self.names = batches, ("loss", *names)

    def measure(self, model, rank: int = 0, ranks: int = 1) -> dict[str, float]:
        """`{"eval_loss": mean, "eval_<name>": ..., "eval_seconds": ...}`; every process measures all batches.

        Args:
            model: the model, or what wraps it.
            rank: of this process (without effect).
            ranks: processes (without effect).
        """
        started = time.perf_counter()
        found = mean_losses(getattr(model, "module", model), self.batches, self.names)
        return {f"eval_{n}": v for n, v in found.items()} | {"eval_seconds": round(time.perf_counter() - started, 2)}


class Selection(TrainerCallback):
    """Asks for validation every so many tokens, keeps the best model and stops a run that has stopped improving.

    Args:
        log: of the run.
        every: tokens between two validations (0: only at the end).
        patience: validations without a new best after which the run stops (0: never).
        save: writes the model into the folder it is given (called in every process).
        metric: the figure that is to become small.
    """

    def __init__(self, log: RunLog, every: int, patience: int, save: Callable[[str], None], metric: str = METRIC):
        self.log, self.every, self.patience, self.save, self.metric = log, every, patience, save, metric
        self.folder = log.path.parent
        self.best = float("inf")
        self.since = 0

    def has_stopped(self, step: int) -> bool:
        """Whether the run had stopped improving when it reached `step`, by its log."""
        self.best, self.since = float("inf"), 0
        for line in read_log(self.log.path):
            if self.metric in line and line["step"] <= step:
                self._count(line[self.metric])
        return bool(self.patience) and self.since >= self.patience

    def on_train_begin(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or self.has_stopped(state.global_step)
        kept = self.folder / BEST / "best.json"
        if kept.is_file():  # a better one that a killed run wrote after its last checkpoint is still ours
            self.best = min(self.best, json.loads(kept.read_text(encoding="utf-8"))[self.metric])

    def _count(self, value: float) -> bool:
        better = value < self.best
        self.best = min(self.best, value)
        self.since = 0 if better else self.since + 1
        return better

    def on_step_end(self, args, state, control, **kwargs):
        step = state.global_step
        crossed = self.every and self.log.tokens(step) // self.every > self.log.tokens(step - 1) // self.every
        if crossed or step >= state.max_steps:
            control.should_evaluate = True

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if not metrics or self.metric not in metrics:
            return
        if self._count(metrics[self.metric]):
            self._keep(state.global_step, metrics)
        if self.patience and self.since >= self.patience and state.global_step < state.max_steps:
            self.log.write(event="early_stop", step=state.global_step, best=self.best)
            control.should_training_stop = control.should_save = True

    def _keep(self, step: int, metrics: dict) -> None:
        figures = {k: v for k, v in metrics.items() if k.startswith(self.metric)}
        keep_best(self.folder, self.save, "best.json", {"step": step, "tokens": self.log.tokens(step), **figures})


def keep_best(folder: Path, save: Callable[[str], None], name: str, figures: dict) -> None:
    """Puts a model in place of the best one of a run, in one rename (called in every process).

    Args:
        folder: of the run.
        save: writes the model into the folder it is given.
        name: of the file of figures beside the weights.
        figures: its content.
    """
    staged, target = folder / f".{BEST}.tmp", folder / BEST
    if is_first_process():
        shutil.rmtree(staged, ignore_errors=True)
    save(str(staged))
    if is_first_process():
        (staged / name).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        staged.rename(target)
