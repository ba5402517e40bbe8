"""TRL's PPOTrainer for music: a thin subclass, and what is written while it runs.

Design decisions
- Only what PPOTrainer gets wrong or leaves out is overridden: gradients are clipped (it ignores `max_grad_norm`), the
  critic is saved with the policy and has a learning rate of its own, saving works on several processes and with PEFT,
  the KL coefficient may adapt, and precision is the models' own (an `Accelerator` built by PPOTrainer ignores `bf16`).
- One micro-batch a mini-batch (`gradient_accumulation_steps=1`): with more, PPOTrainer takes fewer optimizer steps
  than it is told to and logs every figure divided.
- DeepSpeed and FSDP are refused: neither was tried with the masks and the critic.
- Every update writes one line to `log.jsonl`: TRL's figures, the reward and its terms before shaping, the gradient
  norm, and where the time went.

Knows: TRL 1.12.0, policies, critics, reward adapters. Must not know: recipes, songs, how pictures are drawn.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from ...models.errors_mortm import RlmfError
from ..run import ending_gracefully
from .answers import passage, sample
from .policy import MortmCritic, MortmPolicy, freeze, save_pair
from .prompts import Prompt
from .rewards import RewardAdapter
from .trl_release import require_trl


require_trl()

from trl.experimental.ppo import PPOConfig, PPOTrainer  # noqa: E402


RUN_STATE = "rlmf_state.json"  # beside a saved pair: what a run that goes on from it needs besides the weights


class AdaptiveKL:
    """Moves the KL coefficient towards a target (Ziegler et al. 2019, "Fine-Tuning Language Models from Human
    Preferences", section 2.2): a proportional controller on the logarithm, its error clipped at 20 %.

    Args:
        target: KL to the reference, in nats a sequence. horizon: episodes over which an error of 10 % would correct
            itself about tenfold.
    """

    def __init__(self, target: float, horizon: int = 1000):
        self.target, self.horizon = target, horizon

    def step(self, coefficient: float, kl: float, episodes: int) -> float:
        """The coefficient after an update of so many episodes in which the KL was `kl`."""
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        return coefficient * (1.0 + error * episodes / self.horizon)


def check_before_training(
    args: PPOConfig, tokenizer, policy, critic, reference, prompts: Sequence[np.ndarray], masks
) -> None:
    """Everything that would otherwise show after a rollout, or never (TRL loops for ever on too small a data set).

    Args:
        critic: None for the algorithms without one.

    Raises:
        RlmfError: `rlmf.padding` (pad equals eos, or pads on the right), `rlmf.vocabulary` (sizes differ), `rlmf.data`
            (too few or too long prompts, or no room for an answer), `rlmf.device` (DeepSpeed, FSDP, fp16),
            `rlmf.recipe` (batches).
    """
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    if pad is None or pad == end:
        raise RlmfError(
            f"the pad token ({pad}) must not be the end token ({end}): ends would be masked away",
            "rlmf.padding",
        )
    if tokenizer.padding_side != "left":
        raise RlmfError("prompts are padded on the left: set tokenizer.padding_side = 'left'", "rlmf.padding")
    sizes = {m.config.vocab_size for m in (policy, critic, reference) if m is not None}
    if len(sizes) > 1 or min(sizes) < len(tokenizer.get_vocab()):
        raise RlmfError(
            f"policy, critic and reference know {sorted(sizes)} ids, the tokenizer {len(tokenizer.get_vocab())}: "
            "take all of them from one table",
            "rlmf.vocabulary",
        )
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" or os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise RlmfError("DeepSpeed and FSDP are not supported here: launch with plain data parallelism", "rlmf.device")
    if args.fp16 or os.environ.get("ACCELERATE_MIXED_PRECISION") == "fp16":
        raise RlmfError("fp16 is not supported: use bf16 or fp32", "rlmf.device")
    if args.gradient_accumulation_steps != 1:
        raise RlmfError(
            "gradient_accumulation_steps must be 1: set per_device_train_batch_size to the rollout's rows and "
            "num_mini_batches to the optimizer steps an epoch"
        )
    rows, processes = args.per_device_train_batch_size, int(os.environ.get("WORLD_SIZE", "1"))
    if rows % args.num_mini_batches:
        raise RlmfError(f"{rows} rows cannot be cut into {args.num_mini_batches} mini-batches: change one of them")
    if rows // args.num_mini_batches < 2:
        raise RlmfError("a mini-batch of one row cannot be whitened: use fewer mini-batches or more rows")
    if len(prompts) < rows * processes:
        raise RlmfError(
            f"{len(prompts)} prompts do not fill one batch of {rows} rows on {processes} processes: take more songs, "
            "or a smaller per_device_train_batch_size",
            "rlmf.data",
        )
    longest, limit = max(map(len, prompts)), policy.config.max_position_embeddings
    if longest + args.response_length > limit:
        raise RlmfError(
            f"prompts of {longest} tokens and answers of {args.response_length} exceed the context of {limit}",
            "rlmf.data",
        )
    for index, ids in enumerate(prompts):
        shortest = masks.shortest(ids)
        if shortest > args.response_length:
            raise RlmfError(
                f"prompt {index}: its shortest answer takes {shortest} tokens, response_length is "
                f"{args.response_length}: ask for fewer bars or allow more tokens",
                "rlmf.data",
            )


class MusicPPOTrainer(PPOTrainer):
    """PPO on a masked policy.

    Args:
        model: `MortmPolicy` with its grammar set. ref_model: frozen, masked alike. value_model: `MortmCritic`.
        reward_model: `RewardAdapter`. critic_learning_rate: by default the policy's. adaptive_kl: or None.
        The others are PPOTrainer's.
    """

    # transformers' `Trainer` sets it in an initialiser that PPOTrainer never calls, and reads it when saving
    is_distributed_loading_by_transformers = False

    def __init__(
        self,
        args: PPOConfig,
        processing_class,
        model: MortmPolicy,
        ref_model: MortmPolicy,
        reward_model: RewardAdapter,
        train_dataset,
        value_model: MortmCritic,
        critic_learning_rate: float | None = None,
        adaptive_kl: AdaptiveKL | None = None,
        callbacks: list[TrainerCallback] | None = None,
        peft_config=None,
        **kwargs,
    ):
        check_before_training(
            args,
            processing_class,
            model,
            value_model,
            ref_model,
            [np.asarray(row, dtype=np.int64) for row in train_dataset["input_ids"]],
            model.grammar,
        )
        if args.gradient_checkpointing:  # PPOTrainer reads the flag and does nothing
            model.gradient_checkpointing_enable()
            value_model.gradient_checkpointing_enable()
        # `accelerate launch --mixed_precision bf16` would only reach the update: sampling must follow it
        asked = args.bf16 or os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16"
        precision = torch.bfloat16 if asked else None
        model.autocast = ref_model.autocast = value_model.autocast = precision
        self.critic_learning_rate = critic_learning_rate
        self.adaptive_kl, self.grad_norms = adaptive_kl, []
        self.masked_policy, self.critic, self.adapter = model, value_model, reward_model
        super().__init__(
            args=args,
            processing_class=processing_class,
            model=model,
            ref_model=freeze(ref_model),
            reward_model=reward_model,
            train_dataset=train_dataset,
            value_model=value_model,
            callbacks=callbacks,
            peft_config=peft_config,
            **kwargs,
        )
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        self._trained = [p for group in inner.param_groups for p in group["params"]]
        inner.register_step_pre_hook(self._clip)
        self._marks = (time.perf_counter(), model.sampling_seconds)

    # ------------------------------------------------------------------------------------------------------- learning

    def create_optimizer(self, model=None):
        """AdamW; the critic may learn at a rate of its own."""
        args = self.args
        groups = [
            {"params": [p for p in part.parameters() if p.requires_grad], "lr": rate}
            for part, rate in (
                (self.model.policy, args.learning_rate),
                (self.model.value_model, self.critic_learning_rate or args.learning_rate),
            )
        ]
        self.optimizer = torch.optim.AdamW(
            groups,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
            weight_decay=args.weight_decay,
        )
        return self.optimizer

    def _clip(self, optimizer, args, kwargs) -> None:
        limit = self.args.max_grad_norm or float("inf")
        self.grad_norms.append(float(torch.nn.utils.clip_grad_norm_(self._trained, limit)))

    def log(self, logs: dict, start_time: float | None = None) -> None:
        """As the Trainer's, with the figures of this update that PPOTrainer does not have."""
        if "objective/kl" in logs:
            seen = self.adapter.drain()
            for name, values in seen.items():
                values = self.accelerator.gather(values)
                logs[f"reward/{name}"] = float(values.mean())
                if name == "reward":
                    logs["reward/std"] = float(values.std())
            if self.grad_norms:
                logs["grad_norm"] = float(np.mean(self.grad_norms))
                self.grad_norms = []
            logs["kl_coef"] = self.args.kl_coef
            now, sampling = time.perf_counter(), self.masked_policy.sampling_seconds
            logs["time/update"], logs["time/sampling"] = now - self._marks[0], sampling - self._marks[1]
            self._marks = (now, sampling)
            if self.adaptive_kl is not None:
                self.args.kl_coef = self.adaptive_kl.step(
                    self.args.kl_coef, logs["objective/kl"], self.args.batch_size
                )
        super().log(logs)

    # --------------------------------------------------------------------------------------------------------- saving

    def create_model_card(self, *args, **kwargs) -> None:
        """None: PPOTrainer's fails on several processes, and says nothing of the music."""

    def save_model(
        self, output_dir: str | None = None, _internal_call: bool = False, adapter: Path | None = None
    ) -> None:
        """Policy (or its adapter), tokenizer, critic and the state of a run, complete or not at all.

        Args:
            output_dir: folder to write; by default that of the run.
            _internal_call: without effect.
            adapter: folder that moves into it as `adapter/`, or None.
        """
        if not self.accelerator.is_main_process:
            return
        pair = self.accelerator.unwrap_model(self.model)
        target = Path(output_dir or self.args.output_dir)
        partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
        save_pair(pair.policy, pair.value_model, self.processing_class, partial)
        state = {
            "step": self.state.global_step,
            "episode": self.state.episode,
            "kl_coef": self.args.kl_coef,
            "reward_sums": self.adapter.backbone.shaping.sums.tolist(),
        }
        (partial / RUN_STATE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        if adapter is not None:
            adapter.rename(partial / "adapter")
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)

    def save_final(self, folder: str | Path) -> None:
        """The result, which is a whole model: adapters are merged into the policy, and kept in `adapter/` beside it.
        There is no more training after this."""
        pair = self.accelerator.unwrap_model(self.model)
        adapter = None
        if hasattr(pair.policy, "merge_and_unload"):
            adapter = Path(f"{folder}.adapter")
            if self.accelerator.is_main_process:
                pair.policy.save_pretrained(adapter)
            pair.policy = pair.policy.merge_and_unload()
        self.save_model(str(folder), adapter=adapter)
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(self, model, trial) -> None:
        """A saved pair; the optimizer's state is not kept, since PPOTrainer cannot resume (trl#2657)."""
        folder = Path(self.args.output_dir)
        self.save_model(str(folder / f"checkpoint-{self.state.global_step}"))
        if self.accelerator.is_main_process and self.args.save_total_limit:
            found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
            for old in found[: -self.args.save_total_limit]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def evaluate(self, *args, **kwargs):
        """Not here: `comparison` measures before and after."""
        raise RlmfError("PPOTrainer cannot evaluate: use mortm_hf.training.rlmf.comparison", "rlmf.recipe")


# ---------------------------------------------------------------------------------------------------------------------
# While it runs


class _Ended(Exception):
    """The run was asked to end: PPOTrainer's loop has no other way out."""


class _EndAtSignal(TrainerCallback):
    """Ends the loop after the update in which `asked` was set, with a saved pair.

    Args:
        trainer: of any algorithm.
    """

    def __init__(self, trainer):
        self.trainer, self.asked = trainer, False

    def ask(self) -> None:
        """End after the update under way."""
        self.asked = True

    def on_step_end(self, args, state, control, **kwargs):
        if self.asked:
            self.trainer._save_checkpoint(self.trainer.model, trial=None)
            raise _Ended


def end_at_signal(trainer) -> bool:
    """Trains; whether it came to its end: Ctrl-C and SIGTERM end it after an update, with a checkpoint.

    Args:
        trainer: of any algorithm.
    """
    ending = _EndAtSignal(trainer)
    trainer.add_callback(ending)
    try:
        with ending_gracefully(ending.ask):
            trainer.train()
    except _Ended:
        return False
    return True


class UpdateLog(TrainerCallback):
    """`log.jsonl` in the run's folder, and a progress bar where someone looks."""

    def __init__(self, folder: str | Path, progress: bool | None = None):
        self.path = Path(folder) / "log.jsonl"
        self.progress = sys.stderr.isatty() if progress is None else progress
        self.bar = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.progress:
                from tqdm import tqdm

                self.bar = tqdm(total=state.max_steps, unit="update")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        line = {k: round(v, 6) if isinstance(v, float) else v for k, v in logs.items()}
        with open(self.path, "a", encoding="utf-8") as handle:
            stamp = datetime.now().isoformat(timespec="seconds")
            handle.write(json.dumps({"time": stamp, "step": state.global_step, **line}) + "\n")
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)
            reward, kl = logs.get("reward/reward", float("nan")), logs.get("objective/kl", float("nan"))
            self.bar.set_postfix(reward=f"{reward:.3f}", kl=f"{kl:.2f}")

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()


class SampleWriter(TrainerCallback):
    """Continues a few fixed prompts every so many updates and writes them as MIDI, with a picture each.

    Args:
        policy: the masked policy. prompts: to continue. folder: `step-N/i.mid` and `.png` go there. every: updates.
        draw: function of (score, path, highlight=(first, last), title=...), or None: no pictures.
        seed: of the sampling; the run's own random numbers are left as they are.
    """

    def __init__(
        self,
        policy: MortmPolicy,
        tokenizer,
        prompts: Sequence[Prompt],
        folder: str | Path,
        every: int,
        response_length: int,
        draw: Callable | None = None,
        seed: int = 0,
    ):
        self.policy, self.tokenizer, self.prompts, self.folder = policy, tokenizer, list(prompts), Path(folder)
        self.every, self.response_length, self.draw, self.seed = every, response_length, draw, seed

    def write(self, step: int) -> None:
        """The samples of one step: all of them, or none."""
        target = self.folder / f"step-{step:05d}"
        partial = target.with_name(target.name + f".partial-{os.getpid()}")
        partial.mkdir(parents=True, exist_ok=True)
        sampled = sample(self.policy, self.tokenizer, self.prompts, self.response_length, self.seed)
        for index, (prompt, ids) in enumerate(zip(self.prompts, sampled)):
            score, given = passage(self.tokenizer, prompt.ids, ids)
            (partial / f"{index}.mid").write_bytes(score.dumps_midi())
            if self.draw is not None:
                title = f"update {step}: {Path(prompt.path).stem}"
                new = (given, given + prompt.bars)
                self.draw(score, partial / f"{index}.png", highlight=new, title=title)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.write(state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero and self.every and state.global_step % self.every == 0:
            self.write(state.global_step)
