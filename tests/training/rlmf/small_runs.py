"""Small rollouts and runs that several tests start from."""

from __future__ import annotations

import torch

from mortm_hf.training.rlmf.feedback_recipe import Recipe, read_recipe
from mortm_hf.training.rlmf.policy import load_policy, make_critic
from mortm_hf.training.rlmf.prompts import left_padded, prompt_dataset
from mortm_hf.training.rlmf.rewards import MusicReward, RewardAdapter
from mortm_hf.training.rlmf.rules import RULES


BUDGET, MARKER = 40, 12  # the marker's id: <MGEN>


def rollout(policy, tokenizer, prompts, seed=0, temperature=1.0):
    """(ids, mask of real tokens, width of the prompts, the scores that were sampled from)."""
    ids, mask = left_padded(prompts, tokenizer.pad_token_id)
    torch.manual_seed(seed)
    out = policy.generate(
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask),
        max_new_tokens=BUDGET,
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        return_dict_in_generate=True,
        output_scores=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    rows = out.sequences
    return rows, rows != tokenizer.pad_token_id, ids.shape[1], torch.stack(out.scores, 1)


def recipe_of(tmp_path, policy_folder, *words, reward=None) -> Recipe:
    """A small run: 8 rows an update."""
    file = tmp_path / "recipe.yaml"
    terms = reward or "[{kind: scale}, {kind: density_guard, weight: 0.5}]"
    file.write_text(f"model: {{policy: {policy_folder}}}\nreward: {{terms: {terms}}}\n", encoding="utf-8")
    fields = {"per_device_train_batch_size": 8, "num_mini_batches": 2, "total_episodes": 16, "response_length": BUDGET}
    fields |= {"learning_rate": 1e-3, "sample_every": 1, "sample_count": 1, "report_to": "none", "seed": 0}
    base = [x for name, value in fields.items() for x in (f"--{name}", str(value))]
    return read_recipe(file, base + list(words))


def parts(policy_folder, tokenizer, prompts, tmp_path, **changes):
    """(arguments of MusicPPOTrainer) for a run of one update."""
    from mortm_hf.training.rlmf.ppo import PPOConfig

    policy, reference = load_policy(policy_folder), load_policy(policy_folder)
    for model in (policy, reference):
        model.set_grammar(tokenizer, BUDGET)
    settings = {
        "output_dir": str(tmp_path / "run"),
        "per_device_train_batch_size": 8,
        "num_mini_batches": 1,
        "num_ppo_epochs": 1,
        "gradient_accumulation_steps": 1,
        "total_episodes": 8,
        "response_length": BUDGET,
        "temperature": 1.0,
        "stop_token": "eos",
        "num_sample_generations": 0,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "learning_rate": 1e-3,
    } | changes
    return {
        "args": PPOConfig(**settings),
        "processing_class": tokenizer,
        "model": policy,
        "ref_model": reference,
        "reward_model": RewardAdapter(MusicReward(tokenizer.vocabulary, [("scale", 1.0, RULES["scale"]())])),
        "train_dataset": prompt_dataset(prompts),
        "value_model": make_critic(policy),
    }
