"""GRPO and RLOO on a masked policy: the loss sees the masks, the reward sees prompt and answer."""

from __future__ import annotations

import json

import pytest
import torch

from mortm_hf.models.errors_mortm import RlmfError
from mortm_hf.training.rlmf.feedback_run import train
from mortm_hf.training.rlmf.rewards import RewardAdapter, Shaping
from tests.training.rlmf.small_runs import BUDGET, parts, recipe_of


pytest.importorskip("trl")


def test_the_reward_sees_prompt_and_answer_side_by_side(tokenizer, prompts):
    from mortm_hf.training.rlmf.group import GroupReward

    class Seen(torch.nn.Module):
        def forward(self, ids, mask):
            self.rows = [row[keep].tolist() for row, keep in zip(ids, mask.bool())]
            return mask.sum(1).float()

    seen = Seen()
    reward = GroupReward(RewardAdapter(seen, Shaping(clip=(0.0, 12.0))), tokenizer.pad_token_id)
    asked = [prompts[0].ids.tolist(), prompts[3].ids.tolist()]
    values = reward(completion_ids=[[49, 627], [627]], prompt_ids=asked, prompts=["x", "y"], trainer_state=None)
    assert seen.rows == [[*asked[0], 49, 627], [*asked[1], 627]]
    assert values == [min(12.0, len(row)) for row in seen.rows]


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_a_group_trainer_learns_on_the_masked_distribution(tmp_path, policy_folder, tokenizer, prompts, algorithm):
    from mortm_hf.training.rlmf.group import group_trainer

    given = parts(policy_folder, tokenizer, prompts, tmp_path)
    policy = given["model"]
    trainer = group_trainer(
        algorithm, given["args"], tokenizer, policy, given["ref_model"], given["reward_model"], prompts, group=2
    )
    before = policy.model.embed_tokens.weight.clone()
    seen = []
    plain = trainer._get_per_token_logps_and_entropies

    def record(model, ids, mask, keep, *args, **kwargs):
        found = plain(model, ids, mask, keep, *args, **kwargs)
        with torch.no_grad():
            logits = policy(input_ids=ids, attention_mask=mask).logits[:, -keep - 1 : -1] / trainer.temperature
        own = logits.log_softmax(-1).gather(-1, ids[:, -keep:, None])[..., 0]
        real = mask[:, -keep:].bool()
        seen.append(float(((found[0] - own).abs() * real).max()))
        assert torch.equal(trainer.ref_model.grammar.sequence(ids, mask), policy.grammar.sequence(ids, mask))
        return found

    trainer._get_per_token_logps_and_entropies = record
    trainer.train()
    assert seen and max(seen) < 1e-4, "the loss is taken from the masked logits"
    assert not torch.equal(before, policy.model.embed_tokens.weight)
    history = [line for line in trainer.state.log_history if "reward" in line]
    assert history and 0 <= history[0]["reward"] <= 1
    assert any("kl" in line for line in trainer.state.log_history), (
        "the KL to the masked reference is part of the loss"
    )


def test_a_recipe_runs_and_saves_the_policy(tmp_path, policy_folder, tokenizer, prompts):
    words = ("--algorithm", "rloo", "--group", "2", "--total_episodes", "8", "--sample_every", "0")
    train(recipe_of(tmp_path, policy_folder, *words), tmp_path / "run", prompts=prompts)
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()
    config = json.loads((tmp_path / "run" / "final" / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["MortmForCausalLM"]
    assert "reward" in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8")


def test_groups_that_do_not_fit_are_refused(tmp_path, policy_folder, tokenizer, prompts):
    from mortm_hf.training.rlmf.group import group_arguments

    args = parts(policy_folder, tokenizer, prompts, tmp_path)["args"]
    with pytest.raises(RlmfError, match="groups of 3"):
        group_arguments("grpo", args, 3)
    with pytest.raises(RlmfError, match="2 or more"):
        group_arguments("rloo", args, 1)
    assert group_arguments("rloo", args, 2).max_completion_length == BUDGET
