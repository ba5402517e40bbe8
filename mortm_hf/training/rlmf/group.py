"""The same reward under TRL's group trainers: GRPO and RLOO. No critic: answers to one prompt are compared.

Design decisions
- They are TRL 1.12.0's own, like PPO: there the loss is computed from the logits of the policy's `forward`, so the
  grammar's masks take part. (In TRL 1.16 the loss runs a fused output layer past `forward`: tokens are sampled with
  masks and learnt without. That release is refused with all others.)
- These trainers take prompts as text only and hand completions to the reward as ids without their prompt: the prompt's
  ids travel beside it as a column, and the reward sees prompt and answer side by side, as under PPO.
- TRL would load the reference anew, by an architecture name it looks for in transformers and without masks; so it is
  built without one (`beta=0`) and given ours.
- Mini-batches and epochs mean what they mean under PPO: a rollout of `per_device_train_batch_size` rows is learnt from
  in `num_mini_batches` steps, `num_ppo_epochs` times.

Knows: TRL 1.12.0, masked policies, rewards. Must not know: critics, songs, how pictures are drawn.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import PrinterCallback, ProgressCallback

from ...models.errors_mortm import RlmfError
from .policy import MortmPolicy, freeze
from .ppo import SampleWriter, UpdateLog, check_before_training, end_at_signal
from .prompts import Prompt, prompt_dataset
from .rewards import RewardAdapter


class GroupReward:
    """A `RewardAdapter` as the function that TRL's group trainers call."""

    __name__ = "music"

    def __init__(self, adapter: RewardAdapter, pad: int):
        self.adapter, self.pad = adapter, pad

    @torch.no_grad()
    def __call__(self, completion_ids, prompt_ids, **_) -> list[float]:
        """Ids of answers and of their prompts (lists of lists) -> one number each, shaped as under PPO."""
        rows = [torch.tensor([*prompt, *answer]) for prompt, answer in zip(prompt_ids, completion_ids)]
        device = next(iter(self.adapter.parameters()), torch.zeros(0)).device
        lengths = torch.tensor([len(r) for r in rows])
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.pad)
        mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
        backbone = self.adapter.backbone
        states = backbone(ids.to(device), mask.to(device)).last_hidden_state
        self.adapter.drain()
        return states[:, 0, 0].float().tolist()


def group_arguments(algorithm: str, args, group: int):
    """TRL's `GRPOConfig` or `RLOOConfig` that does what a `PPOConfig` says.

    Raises:
        RlmfError: rows that cannot be cut into groups (`rlmf.recipe`).
    """
    from trl import GRPOConfig, RLOOConfig

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    rows = args.per_device_train_batch_size
    if group < 2:
        raise RlmfError(f"{algorithm} compares the answers to one prompt: group must be 2 or more, got {group}")
    if (rows * processes) % group:
        raise RlmfError(f"{rows * processes} rows cannot be cut into groups of {group}: change one of them")
    updates = -(-int(args.total_episodes) // (rows * processes))
    kind = GRPOConfig if algorithm == "grpo" else RLOOConfig
    return kind(
        output_dir=args.output_dir,
        seed=args.seed,
        use_cpu=args.use_cpu,
        bf16=False,  # precision is the policy's own
        gradient_checkpointing=False,
        per_device_train_batch_size=rows // args.num_mini_batches,
        gradient_accumulation_steps=1,
        steps_per_generation=args.num_mini_batches,
        num_iterations=args.num_ppo_epochs,
        max_steps=updates * args.num_mini_batches * args.num_ppo_epochs,
        num_generations=group,
        max_completion_length=args.response_length,
        temperature=args.temperature,
        top_p=1.0,
        top_k=0,
        beta=0.0,
        epsilon=args.cliprange,
        learning_rate=args.learning_rate,
        lr_scheduler_type=args.lr_scheduler_type,
        weight_decay=args.weight_decay,
        max_grad_norm=args.max_grad_norm or 0.0,
        logging_steps=1,
        save_strategy="no",
        report_to=args.report_to,
        disable_tqdm=True,
    )


def group_trainer(
    algorithm: str,
    args,
    tokenizer,
    policy: MortmPolicy,
    reference: MortmPolicy,
    adapter: RewardAdapter,
    prompts: Sequence[Prompt],
    group: int = 4,
    callbacks: list | None = None,
    peft_config=None,
):
    """`GRPOTrainer` or `RLOOTrainer` on a masked policy; `args` is the `PPOConfig` of the recipe.

    Raises:
        RlmfError: as `check_before_training`; groups that do not fit the batch.
    """
    from trl import GRPOTrainer, RLOOTrainer

    check_before_training(args, tokenizer, policy, None, reference, [p.ids for p in prompts], policy.grammar)
    if args.gradient_checkpointing:
        policy.gradient_checkpointing_enable()
    asked = args.bf16 or os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16"
    policy.autocast = reference.autocast = torch.bfloat16 if asked else None
    trainer = (GRPOTrainer if algorithm == "grpo" else RLOOTrainer)(
        model=policy,
        reward_funcs=GroupReward(adapter, tokenizer.pad_token_id),
        args=group_arguments(algorithm, args, group),
        train_dataset=prompt_dataset(prompts, text=True, tokenizer=tokenizer),
        processing_class=tokenizer,
        callbacks=callbacks,
        peft_config=peft_config,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if args.kl_coef:
        trainer.beta = args.kl_coef
        trainer.ref_model = trainer.accelerator.prepare_model(freeze(reference), evaluation_mode=True)
    return trainer


def train_group(
    recipe,
    args,
    tokenizer,
    policy: MortmPolicy,
    reference: MortmPolicy,
    adapter: RewardAdapter,
    prompts: Sequence[Prompt],
    folder: Path,
    draw: Callable | None = None,
    callbacks: list | None = None,
    peft_config=None,
):
    """Run a recipe whose algorithm is "grpo" or "rloo"; `folder/final` holds the policy."""
    run = recipe.run
    extra = [UpdateLog(folder), *(callbacks or [])]
    if run.sample_every:
        shown = prompts[: run.sample_count]
        place = folder / "samples"
        extra.append(SampleWriter(policy, tokenizer, shown, place, run.sample_every, args.response_length, draw))
    trainer = group_trainer(
        run.algorithm, args, tokenizer, policy, reference, adapter, prompts, run.group, extra, peft_config
    )
    if end_at_signal(trainer) and trainer.accelerator.is_main_process:
        partial = folder / f"final.partial-{os.getpid()}"
        result = trainer.accelerator.unwrap_model(trainer.model)
        if hasattr(result, "merge_and_unload"):
            result.save_pretrained(partial / "adapter")
            result = result.merge_and_unload()
        result.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        if (folder / "final").exists():
            shutil.rmtree(folder / "final")
        partial.rename(folder / "final")
    trainer.accelerator.wait_for_everyone()
    return trainer
