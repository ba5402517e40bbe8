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
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback

from ...data.whole_files import replace_folder
from ...models.errors_mortm import RlmfError
from ..run import ending_gracefully
from ..runlog import append_line
from .answers import passage, sample
from .policy import MortmPolicy, freeze, save_pair
from .trl_release import require_trl


require_trl()

from trl.experimental.ppo import PPOConfig, PPOTrainer  # noqa: E402


RUN_STATE = "rlmf_state.json"  # beside a saved pair: what a run that goes on from it needs besides the weights


class AdaptiveKL:
    """Moves the KL coefficient towards a target (Ziegler et al. 2019, "Fine-Tuning Language Models from Human
    Preferences", section 2.2): a proportional controller on the logarithm, its error clipped at 20 %.

    Args:
        target: KL to the reference, in nats a sequence.
        horizon: episodes over which an error of 10 % would correct itself about tenfold.
    """

    def __init__(self, target: float, horizon: int = 1000):
        self.target, self.horizon = target, horizon

    def step(self, coefficient: float, kl: float, episodes: int) -> float:
        """The coefficient after an update.

        Args:
            coefficient: before it.
            kl: measured in it, in nats a sequence.
            episodes: of the update.
        """
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        return coefficient * (1.0 + error * episodes / self.horizon)


def prepare_models(
    args: PPOConfig, tokenizer, policy: MortmPolicy, reference: MortmPolicy, critic, prompts: Sequence[np.ndarray]
) -> None:
    """Refuse what would otherwise show after a rollout, or never (TRL loops for ever on too small a data set); then
    set precision and checkpointing as the arguments ask.

    Args:
        args: of the run.
        tokenizer: of the policy.
        policy: with its grammar set.
        reference: masked alike; it is frozen.
        critic: None for the algorithms without one.
        prompts: ids of each.

    Raises:
        RlmfError: `rlmf.padding` (pad equals eos, or pads on the right), `rlmf.vocabulary` (sizes differ), `rlmf.data`
            (too few or too long prompts, or no room for an answer), `rlmf.device` (DeepSpeed, FSDP, fp16),
            `rlmf.recipe` (batches).
    """
    models = [model for model in (policy, reference, critic) if model is not None]
    pad, end, table = tokenizer.pad_token_id, tokenizer.eos_token_id, len(tokenizer.get_vocab())
    sizes = sorted({model.config.vocab_size for model in models})
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION")
    rows, batches, processes = args.per_device_train_batch_size, args.num_mini_batches, number_of_processes()
    if pad is None or pad == end:
        raise RlmfError(f"the pad token ({pad}) must not be the end token: ends would be masked away", "rlmf.padding")
    if tokenizer.padding_side != "left":
        raise RlmfError("prompts are padded on the left: set tokenizer.padding_side = 'left'", "rlmf.padding")
    if len(sizes) > 1 or sizes[0] < table:
        known = f"policy, critic and reference know {sizes} ids, the tokenizer {table}"
        raise RlmfError(f"{known}: take all of them from one table", "rlmf.vocabulary")
    if "true" in (os.environ.get("ACCELERATE_USE_DEEPSPEED"), os.environ.get("ACCELERATE_USE_FSDP")):
        raise RlmfError("DeepSpeed and FSDP are not supported here: launch with plain data parallelism", "rlmf.device")
    if args.fp16 or precision == "fp16":
        raise RlmfError("fp16 is not supported: use bf16 or fp32", "rlmf.device")
    if args.gradient_accumulation_steps != 1:
        raise RlmfError(
            "gradient_accumulation_steps must be 1: set per_device_train_batch_size to the rollout's rows and "
            "num_mini_batches to the optimizer steps an epoch"
        )
    if rows % batches:
        raise RlmfError(f"{rows} rows cannot be cut into {batches} mini-batches: change one of them")
    if rows // batches < 2:
        raise RlmfError("a mini-batch of one row cannot be whitened: use fewer mini-batches or more rows")
    if len(prompts) < rows * processes:
        few = f"{len(prompts)} prompts do not fill one batch of {rows} rows on {processes} processes"
        raise RlmfError(f"{few}: take more songs, or a smaller per_device_train_batch_size", "rlmf.data")
    room, longest, limit = args.response_length, max(map(len, prompts)), policy.config.max_position_embeddings
    if longest + room > limit:
        asked = f"prompts of {longest} tokens and answers of {room}"
        raise RlmfError(f"{asked} exceed the context of {limit}", "rlmf.data")
    for index, shortest in enumerate(map(policy.grammar.shortest, prompts)):
        if shortest > room:
            needs = f"prompt {index}: its shortest answer takes {shortest} tokens, response_length is {room}"
            raise RlmfError(f"{needs}: ask for fewer bars or allow more tokens", "rlmf.data")
    freeze(reference)
    # `accelerate launch --mixed_precision bf16` would only reach the update: sampling must follow it
    asked = args.bf16 or precision == "bf16"
    for model in models:
        model.autocast = torch.bfloat16 if asked else None
        if args.gradient_checkpointing and model is not reference:  # PPOTrainer reads the flag and does nothing
            model.gradient_checkpointing_enable()


def number_of_processes() -> int:
    """Processes of the launch, before any trainer knows them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class MusicPPOTrainer(PPOTrainer):
    """PPO on a masked policy.

    Args:
        critic_learning_rate: by default the policy's.
        adaptive_kl: moves the KL coefficient; None: it stays.
        given: PPOTrainer's own, by name: `model` (a `MortmPolicy` with its grammar set), `ref_model` (masked alike;
            it is frozen), `value_model` (a `MortmCritic`), `reward_model` (a `RewardAdapter`), and the others.
    """

    # transformers' `Trainer` sets it in an initialiser that PPOTrainer never calls, and reads it when saving
    is_distributed_loading_by_transformers = False

    def __init__(self, critic_learning_rate: float | None = None, adaptive_kl: AdaptiveKL | None = None, **given):
        policy, prompts = given["model"], [np.asarray(ids, np.int64) for ids in given["train_dataset"]["input_ids"]]
        models = policy, given["ref_model"], given["value_model"]
        prepare_models(given["args"], given["processing_class"], *models, prompts)
        self.critic_learning_rate = critic_learning_rate
        self.adaptive_kl, self.grad_norms = adaptive_kl, []
        self.masked_policy, self.adapter = policy, given["reward_model"]
        super().__init__(**given)
        self.remove_callback(PrinterCallback)
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        self._trained = [p for group in inner.param_groups for p in group["params"]]
        inner.register_step_pre_hook(self._clip)
        self._marks = (time.perf_counter(), policy.sampling_seconds)

    # ------------------------------------------------------------------------------------------------------- learning

    def create_optimizer(self, model=None):
        """AdamW; the critic may learn at a rate of its own."""
        args = self.args
        rates = {self.model.policy: None, self.model.value_model: self.critic_learning_rate}
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in part.parameters() if p.requires_grad], "lr": rate or args.learning_rate}
                for part, rate in rates.items()
            ],
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
            for name, values in self.adapter.drain().items():
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

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False, merge: bool = False) -> None:
        """Policy (or its adapter), tokenizer, critic and the state of a run, complete or not at all.

        Args:
            output_dir: folder to write; by default that of the run.
            _internal_call: without effect.
            merge: write a whole policy (see `policy.save_policy`).
        """
        if not self.accelerator.is_main_process:
            return
        pair = self.accelerator.unwrap_model(self.model)
        target = Path(output_dir or self.args.output_dir)
        state = {
            "step": self.state.global_step,
            "episode": self.state.episode,
            "kl_coef": self.args.kl_coef,
            "reward_sums": self.adapter.backbone.shaping.sums.tolist(),
        }
        with replace_folder(target) as partial:
            save_pair(pair.policy, pair.value_model, self.processing_class, partial, merge)
            (partial / RUN_STATE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")

    def save_final(self, folder: str | Path) -> None:
        """The result, which is a whole model: adapters are merged into the policy, and kept in `adapter/` beside it.
        There is no more training after this.

        Args:
            folder: to write.
        """
        self.save_model(str(folder), merge=True)
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
    """`log.jsonl` in the run's folder, and a progress bar where someone looks.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: str | Path):
        self.path = Path(folder) / "log.jsonl"
        self.bar = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if sys.stderr.isatty():
                self.bar = tqdm(total=state.max_steps, unit="update")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        line = {k: round(v, 6) if isinstance(v, float) else v for k, v in logs.items()}
        append_line(self.path, {"step": state.global_step, **line})
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
        policy: the masked `MortmPolicy`.
        tokenizer: of the policy.
        prompts: `Prompt`s to continue.
        folder: `step-N/i.mid` and `.png` go there.
        every: updates between two sets of samples.
        response_length: most tokens of an answer.
        draw: function of (score, path, highlight=(first, last), title=...), or None: no pictures.
    """

    def __init__(self, policy, tokenizer, prompts, folder: Path, every: int, response_length: int, draw=None):
        self.policy, self.tokenizer, self.prompts, self.folder = policy, tokenizer, list(prompts), folder
        self.every, self.response_length, self.draw = every, response_length, draw

    def write(self, step: int) -> None:
        """The samples of one step: all of them, or none."""
        sampled = sample(self.policy, self.tokenizer, self.prompts, self.response_length)
        with replace_folder(self.folder / f"step-{step:05d}") as partial:
            partial.mkdir(parents=True)
            for index, (prompt, ids) in enumerate(zip(self.prompts, sampled)):
                score, given = passage(self.tokenizer, prompt.ids, ids)
                (partial / f"{index}.mid").write_bytes(score.dumps_midi())
                if self.draw is not None:
                    title = f"update {step}: {Path(prompt.path).stem}"
                    new = (given, given + prompt.bars)
                    self.draw(score, partial / f"{index}.png", highlight=new, title=title)

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.write(state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero and self.every and state.global_step % self.every == 0:
            self.write(state.global_step)
