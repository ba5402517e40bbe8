"""The Trainer of this package: packs in order, a log of its own, graceful stops.

Design decisions
- The stream of packs is sequential and index-addressed, so skipping to a step costs nothing and resuming is exact.
- Log lines (`log.jsonl`) state tokens and speed beside the loss, and the share of tokens each expert received: the
  figures a model card needs are read from the log, not remembered.
- A run stops at a time of day or after some minutes with a checkpoint, because laptops and shared machines do.

Knows: transformers' Trainer, the model's router modules by name. Must not know: music, MIDI, recipes.
"""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path

import torch
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback


class PackTrainer(Trainer):
    """`Trainer` that reads packs in order (`PackDataset` decides what a position means)."""

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)


class RouterStatistics:
    """Share of the chosen experts over one training step, by forward hooks on the routers."""

    def __init__(self, model: torch.nn.Module):
        self.routers = [(n, m) for n, m in model.named_modules() if type(m).__name__.endswith("Router")]
        self._handles: list = []
        self._counts: dict[str, torch.Tensor] = {}

    def start(self) -> None:
        """Watch the next forward passes."""
        self._counts = {}
        for name, module in self.routers:
            self._handles.append(module.register_forward_hook(self._hook(name, module)))

    def _hook(self, name, module):
        def count(_, __, output):
            chosen = next(t for t in output if not t.is_floating_point())
            experts = getattr(module, "num_experts", None) or output[0].shape[-1]
            load = torch.bincount(chosen.reshape(-1), minlength=experts).float()
            self._counts[name] = self._counts.get(name, 0) + load

        return count

    def stop(self) -> list[list[float]]:
        """`[layers][experts]` share of the chosen slots; the hooks are removed."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        return [[round(float(x), 4) for x in (load / load.sum())] for load in self._counts.values()]


def _first_process_decides(*decisions: bool) -> list[bool]:
    """Clocks differ between processes: all do what the first one decided, or they would wait for each other."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return list(decisions)
    flags = torch.tensor(decisions, dtype=torch.uint8)
    if torch.distributed.get_backend() == "nccl":
        flags = flags.cuda()
    torch.distributed.broadcast(flags, src=0)
    return [bool(flag) for flag in flags.tolist()]


class RunLog(TrainerCallback):
    """Writes `log.jsonl`, saves by the clock and stops by the clock.

    Args:
        folder: of the run.
        tokens_of: step -> tokens seen when that step is done.
        stop_at: "HH:MM" local time or empty; max_minutes, save_minutes: 0 turns them off.
    """

    def __init__(self, folder, tokens_of, stop_at="", max_minutes=0.0, save_minutes=0.0, router_every=0):
        self.path = Path(folder) / "log.jsonl"
        self.tokens_of = tokens_of
        self.save_seconds = save_minutes * 60
        self.router_every = router_every
        self.started = time.time()
        self.deadline = self.started + max_minutes * 60 if max_minutes else float("inf")
        if stop_at:
            clock = datetime.strptime(stop_at, "%H:%M")
            now = datetime.now()
            at = now.replace(hour=clock.hour, minute=clock.minute, second=0, microsecond=0).timestamp()
            self.deadline = min(self.deadline, at if at > self.started else at + 86400)
        self.saved = self.started
        self.last = (None, 0)
        self.base = (0, 0)
        self.router: RouterStatistics | None = None
        self.watching = False

    def write(self, **line) -> None:
        """Append one line (the first process only)."""
        if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank():
            return
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps({"time": datetime.now().isoformat(timespec="seconds"), **line}) + "\n")

    def _tokens_before(self, step: int) -> tuple[int, int]:
        """(step, tokens seen by then) of the part of the run that ended at `step`: processes may differ now."""
        known = (0, 0)
        if step and self.path.is_file():
            for text in self.path.read_text(encoding="utf-8").splitlines():
                line = json.loads(text)
                if "tokens" in line and known[0] <= line["step"] <= step:
                    known = line["step"], line["tokens"]
            if known[0] and known[0] < step:  # saved between two log lines
                known = step, round(known[1] * step / known[0])
        return known

    def tokens(self, step: int) -> int:
        """Tokens seen when `step` is done, over all parts of the run."""
        base, seen = self.base
        return seen + self.tokens_of(step) - self.tokens_of(base)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.router = RouterStatistics(model)
        self.last = (time.perf_counter(), state.global_step)
        self.base = self._tokens_before(state.global_step)
        self.write(
            event="start",
            step=state.global_step,
            max_steps=state.max_steps,
            threads=torch.get_num_threads(),
            parameters=sum(p.numel() for p in model.parameters()),
        )

    def on_step_begin(self, args, state, control, **kwargs):
        if self.router_every and self.router.routers and state.global_step % self.router_every == 0:
            self.router.start()
            self.watching = True

    def on_step_end(self, args, state, control, **kwargs):
        if self.watching:
            self.watching = False
            self.write(event="router", step=state.global_step, load=self.router.stop())
        now = time.time()
        stop = now >= self.deadline and state.global_step < state.max_steps
        save = bool(self.save_seconds) and now - self.saved >= self.save_seconds
        stop, save = _first_process_decides(stop, save)
        if stop:
            control.should_save = control.should_training_stop = control.should_log = True
            self.write(event="stop", step=state.global_step, tokens=self.tokens(state.global_step))
        elif save:
            control.should_save = True
        return control

    def on_save(self, args, state, control, **kwargs):
        self.saved = time.time()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or not state.is_world_process_zero:
            return
        line = {k: v for k, v in logs.items() if k in ("loss", "grad_norm", "learning_rate") or k.startswith("eval_")}
        clock, step = self.last
        now = time.perf_counter()
        tokens = self.tokens(state.global_step)
        if "loss" in logs and state.global_step > step:
            line["tokens_per_second"] = round((tokens - self.tokens(step)) / (now - clock), 1)
            self.last = (now, state.global_step)
        self.write(step=state.global_step, tokens=tokens, **line)

    def on_train_end(self, args, state, control, **kwargs):
        self.write(event="end", step=state.global_step, tokens=self.tokens(state.global_step))
