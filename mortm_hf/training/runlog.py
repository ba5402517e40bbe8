"""The log of a run, its clock and its progress bar.

Design decisions
- `log.jsonl` is the record: tokens and speed beside the loss, validation, the share of tokens each expert received,
  every start and stop. The figures of a model card are read from it, not remembered.
- Nothing is ever taken out of it. What a killed run wrote after its last checkpoint is superseded when it is resumed:
  `read_log` leaves those lines out, and a last line cut in half by the kill as well.
- Checkpoints are saved by the clock, at a step that has a log line, so that a resumed run writes the same lines as an
  unbroken one. A run stops at a time of day, after some minutes, or when it is asked to, always with a checkpoint,
  because laptops and shared machines do.
- On a terminal there is one progress bar; elsewhere one plain line a minute.

Knows: transformers' callbacks. Must not know: music, recipes, how a loss comes about.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import datetime
from pathlib import Path

import torch
from transformers import TrainerCallback

from ..models.errors_mortm import TrainingError
from .routing import ExpertAlarm, RouterStatistics


logger = logging.getLogger(__name__)
_VALIDATION = {"eval_bits_per_note": "bits/note", "eval_loss": "validation loss"}
_NUMBERS = ("loss", "aux_loss", "hint_loss", "grad_norm", "learning_rate", "tokens_per_second")


def read_log(path: str | Path) -> list[dict]:
    """The lines of a `log.jsonl` (or of the one in a run folder) that count: a resumed run's replace the ones that
    were written beyond the checkpoint it started from. An unreadable line (cut by a kill) is left out."""
    path = Path(path)
    path = path / "log.jsonl" if path.is_dir() else path
    lines: list[dict] = []
    if not path.is_file():
        return lines
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line.get("event") == "start":
            at = line["step"]
            lines = [kept for kept in lines if kept.get("step", 0) <= at]
        lines.append(line)
    return lines


def clock_of(text: str) -> datetime:
    """Hour and minute of "HH:MM".

    Raises:
        TrainingError: it is no time of day.
    """
    try:
        return datetime.strptime(text, "%H:%M")
    except ValueError:
        raise TrainingError(f'stop_at is a time of day such as "23:30" (in quotes in a recipe), not {text}') from None


def _first_process_decides(*decisions: bool) -> list[bool]:
    """Clocks differ between processes: all do what the first one decided, or they would wait for each other."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return list(decisions)
    flags = torch.tensor(decisions, dtype=torch.uint8)
    if torch.distributed.get_backend() == "nccl":
        flags = flags.cuda()
    torch.distributed.broadcast(flags, src=0)
    return [bool(flag) for flag in flags.tolist()]


def is_first_process() -> bool:
    """Whether this process writes files."""
    return not (
        torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank()
    )


class RunLog(TrainerCallback):
    """Writes `log.jsonl`, saves by the clock and stops by the clock.

    Args:
        folder: of the run.
        tokens_of: step -> tokens seen when that step is done.
        stop_at: "HH:MM" local time or empty.
        max_minutes: until the run stops; 0: never.
        save_minutes: between checkpoints; 0: none.
        router_every: steps between measurements of the experts' shares; 0: none.
        alarm: fed with each measurement; by default one with its own defaults.
    """

    def __init__(
        self,
        folder,
        tokens_of,
        stop_at="",
        max_minutes=0.0,
        save_minutes=0.0,
        router_every=0,
        alarm: ExpertAlarm | None = None,
    ):
        self.path = Path(folder) / "log.jsonl"
        self.tokens_of = tokens_of
        self.save_seconds = save_minutes * 60
        self.router_every = router_every
        self.alarm = alarm or ExpertAlarm()
        self.started = time.time()
        self.deadline = self.started + max_minutes * 60 if max_minutes else float("inf")
        if stop_at:
            clock = clock_of(stop_at)
            now = datetime.now()
            at = now.replace(hour=clock.hour, minute=clock.minute, second=0, microsecond=0).timestamp()
            self.deadline = min(self.deadline, at if at > self.started else at + 86400)
        self.saved = self.started
        self.last = (None, 0)
        self.base = (0, 0)
        self.router: RouterStatistics | None = None
        self.load: list[list[float]] = []  # the last measurement
        self.watching = False

    def stop_soon(self) -> None:
        """End the run with a checkpoint after the step that is under way."""
        self.deadline = 0.0

    def write(self, **line) -> None:
        """Append one line (the first process only)."""
        if is_first_process():
            with open(self.path, "a", encoding="utf-8") as handle:
                handle.write(json.dumps({"time": datetime.now().isoformat(timespec="seconds"), **line}) + "\n")

    def _close_cut_line(self) -> None:
        """A kill may have left half a line: what comes next must not be glued to it."""
        if is_first_process() and self.path.is_file():
            with open(self.path, "rb+") as handle:
                handle.seek(0, 2)
                if handle.tell():
                    handle.seek(-1, 2)
                    if handle.read(1) != b"\n":
                        handle.write(b"\n")

    def _tokens_before(self, step: int) -> tuple[int, int]:
        """(step, tokens seen by then) of the part of the run that ended at `step`: processes may differ now."""
        known = (0, 0)
        if step:
            for line in read_log(self.path):
                if "tokens" in line and known[0] <= line["step"] <= step:
                    known = line["step"], line["tokens"]
            if known[0] and known[0] < step:  # saved between two log lines
                known = step, round(known[1] * step / known[0])
        return known

    def tokens(self, step: int) -> int:
        """Tokens seen when `step` is done, over all parts of the run."""
        base, seen = self.base
        return seen + self.tokens_of(step) - self.tokens_of(base)

    def speed(self, step: int) -> float | None:
        """Tokens a second since the last call (validation aside), or `None` if no step was done."""
        clock, before = self.last
        if clock is None or step <= before:
            return None
        now = time.perf_counter()
        self.last = (now, step)
        return round((self.tokens(step) - self.tokens(before)) / (now - clock), 1)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.router = RouterStatistics(model)
        self._close_cut_line()
        step = state.global_step
        self.base = self._tokens_before(step)
        for line in read_log(self.path):
            if line.get("event") == "router" and line["step"] <= step:
                self.alarm.feed(line["load"])  # experts stay dead over a stop
        self.last = (time.perf_counter(), step)
        self.write(
            event="start",
            step=step,
            max_steps=state.max_steps,
            threads=torch.get_num_threads(),
            processes=args.world_size,
            parameters=sum(p.numel() for p in model.parameters()),
        )

    def on_step_begin(self, args, state, control, **kwargs):
        if self.router_every and self.router.routers and state.global_step % self.router_every == 0:
            self.router.start()
            self.watching = True

    def on_step_end(self, args, state, control, **kwargs):
        if self.watching:
            self.watching = False
            load = self.load = self.router.stop()
            if load:
                self.write(event="router", step=state.global_step, load=load)
                for layer, expert, share in self.alarm.feed(load):
                    self.write(event="dead_expert", step=state.global_step, layer=layer, expert=expert, share=share)
                    if is_first_process():
                        logger.warning(
                            "expert %d of layer %d gets %.2f %% of the tokens at step %d (even: %.1f %%): raise "
                            'router_aux_loss_coef, or use router_balancing "bias"',
                            *(expert, layer, 100 * share, state.global_step, 100 / len(load[layer])),
                        )
        now = time.time()
        stop = now >= self.deadline and state.global_step < state.max_steps
        save = bool(self.save_seconds) and now - self.saved >= self.save_seconds
        stop, save = _first_process_decides(stop, save)
        if stop:
            control.should_save = control.should_training_stop = control.should_log = True
            self.write(event="stop", step=state.global_step, tokens=self.tokens(state.global_step))
        elif state.global_step >= state.max_steps:
            control.should_save = control.should_log = True
        elif save and state.global_step % max(1, int(args.logging_steps)) == 0:
            control.should_save = True
        return control

    def on_save(self, args, state, control, **kwargs):
        self.saved = time.time()

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        clock, step = self.last
        if clock is not None and metrics:
            self.last = (clock + metrics.get("eval_seconds", 0.0), step)  # the speed is that of training

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or not state.is_world_process_zero:
            return
        line = {k: v for k, v in logs.items() if k in _NUMBERS or k.startswith("eval_")}
        if line:
            self.write(step=state.global_step, tokens=self.tokens(state.global_step), **line)

    def on_train_end(self, args, state, control, **kwargs):
        self.write(event="end", step=state.global_step, tokens=self.tokens(state.global_step))


class Progress(TrainerCallback):
    """A progress bar on a terminal, one line a minute elsewhere; the first process only.

    Args:
        log: of the same run.
        seconds: between lines where there is no terminal.
        file: to write to; by default stderr.
    """

    def __init__(self, log: RunLog, seconds: float = 60.0, file=None):
        self.log, self.seconds, self.file = log, seconds, file or sys.stderr
        self.bar = None
        self.said = 0.0
        self.started = (0.0, 0)
        self.notes: dict[str, str] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        self.started = (time.time(), state.global_step)
        self.said = 0.0
        if self.file.isatty():
            from tqdm.auto import tqdm

            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, unit="step", dynamic_ncols=True, file=self.file
            )

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        measured = [(name, words) for name, words in _VALIDATION.items() if name in (logs or ())]
        fresh = bool(measured)
        if not state.is_world_process_zero or not (fresh or "loss" in (logs or ())):
            return
        if "loss" in logs:
            self.notes["loss"] = f"{logs['loss']:.3f}"
        if logs.get("tokens_per_second"):
            self.notes["tok/s"] = f"{logs['tokens_per_second']:.0f}"
        for name, words in measured:
            self.notes[words] = f"{logs[name]:.3f}"
        if self.bar is not None:
            self.bar.set_postfix(self.notes, refresh=False)
            return
        now, last = time.time(), state.global_step >= state.max_steps
        if fresh or last or now - self.said >= self.seconds:
            self.said = now
            begun, first = self.started
            done = state.global_step - first
            left = (now - begun) / done * (state.max_steps - state.global_step) if done else 0.0
            words = "  ".join(f"{name} {value}" for name, value in self.notes.items())
            tokens = self.log.tokens(state.global_step)
            seen = f"{tokens / 1e6:.2f} M" if tokens >= 1e6 else f"{tokens / 1e3:.0f} k"
            text = f"step {state.global_step}/{state.max_steps}  {seen} tokens  {words}"
            print(text + ("" if last else f"  {left / 60:.0f} min left"), file=self.file, flush=True)

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()
            self.bar = None
