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

from pathlib import Path

import torch
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from ...data.whole_files import replace_folder
from ...models.errors_mortm import RlmfError
from ...models.inputs_bertm import pad_rows
from .policy import save_policy
from .ppo import number_of_processes, prepare_models
from .prompts import prompt_dataset
from .rewards import RewardAdapter


class GroupReward:
    """A `RewardAdapter` as the function that TRL's group trainers call.

    Args:
        adapter: the reward.
        pad: id of padding.
    """

    __name__ = "music"

    def __init__(self, adapter: RewardAdapter, pad: int):
        self.adapter, self.pad = adapter, pad

    @torch.no_grad()
    def __call__(self, completion_ids, prompt_ids, **_) -> list[float]:
        """Ids of answers and of their prompts (lists of lists) -> one number each, shaped as under PPO."""
        rows = [[*prompt, *answer] for prompt, answer in zip(prompt_ids, completion_ids)]
        ids, mask = pad_rows(rows, self.pad, next(iter(self.adapter.parameters()), torch.zeros(0)).device)
        states = self.adapter.backbone(ids, mask.bool()).last_hidden_state
        self.adapter.drain()
        return states[:, 0, 0].float().tolist()


_ALIKE = "output_dir seed use_cpu temperature learning_rate lr_scheduler_type weight_decay report_to".split()


def group_arguments(algorithm: str, args, group: int):
    """TRL's `GRPOConfig` or `RLOOConfig` that does what a `PPOConfig` says.

    Args:
        algorithm: "grpo" or "rloo".
        args: the `PPOConfig` of the recipe.
        group: answers to a prompt.

    Raises:
        RlmfError: rows that cannot be cut into groups (`rlmf.recipe`).
    """
    rows = args.per_device_train_batch_size
    together = rows * number_of_processes()
    if group < 2:
        raise RlmfError(f"{algorithm} compares the answers to one prompt: group must be 2 or more, got {group}")
    if together % group:
        raise RlmfError(f"{together} rows cannot be cut into groups of {group}: change one of them")
    updates = -(-int(args.total_episodes) // together)
    return (GRPOConfig if algorithm == "grpo" else RLOOConfig)(
        **{name: getattr(args, name) for name in _ALIKE},
        bf16=False,  # precision is the policy's own
        gradient_checkpointing=False,
        per_device_train_batch_size=rows // args.num_mini_batches,
        gradient_accumulation_steps=1,
        steps_per_generation=args.num_mini_batches,
        num_iterations=args.num_ppo_epochs,
        max_steps=updates * args.num_mini_batches * args.num_ppo_epochs,
        num_generations=group,
        max_completion_length=args.response_length,
        top_p=1.0,
        top_k=0,
        beta=0.0,
        epsilon=args.cliprange,
        max_grad_norm=args.max_grad_norm or 0.0,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )


def group_trainer(algorithm, args, tokenizer, policy, reference, adapter, prompts, group: int = 4, **others):
    """`GRPOTrainer` or `RLOOTrainer` on a masked policy.

    Args:
        algorithm: "grpo" or "rloo".
        args: the `PPOConfig` of the recipe.
        tokenizer: of the policy.
        policy: `MortmPolicy` with its grammar set.
        reference: `MortmPolicy`, masked alike; it is frozen.
        adapter: `RewardAdapter`.
        prompts: `Prompt`s to answer.
        group: answers to a prompt.
        others: `callbacks` and `peft_config`, as the trainers take them.

    Raises:
        RlmfError: as `prepare_models`; groups that do not fit the batch.
    """
    prepare_models(args, tokenizer, policy, reference, None, [p.ids for p in prompts])
    trainer = (GRPOTrainer if algorithm == "grpo" else RLOOTrainer)(
        model=policy,
        reward_funcs=GroupReward(adapter, tokenizer.pad_token_id),
        args=group_arguments(algorithm, args, group),
        train_dataset=prompt_dataset(prompts, text=True, tokenizer=tokenizer),
        processing_class=tokenizer,
        **others,
    )
    trainer.remove_callback(PrinterCallback)
    if args.kl_coef:
        trainer.beta = args.kl_coef
        trainer.ref_model = trainer.accelerator.prepare_model(reference, evaluation_mode=True)
    return trainer


def save_final(trainer, folder: Path) -> None:
    """Write the policy that a group trainer made, whole (see `policy.save_policy`).

    Args:
        trainer: after its training.
        folder: to write.
    """
    if trainer.accelerator.is_main_process:
        policy = trainer.accelerator.unwrap_model(trainer.model)
        with replace_folder(folder) as partial:
            save_policy(policy, trainer.processing_class, partial, merge=True)
    trainer.accelerator.wait_for_everyone()
