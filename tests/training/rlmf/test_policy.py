"""The masked policy: both forms of the mask, sampling, precision of the ratio, saving."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from mortm_hf.models.errors_mortm import RlmfError
from mortm_hf.models.modeling_mortm import MortmForCausalLM, MortmForSequenceClassification
from mortm_hf.models.token_grammar import check
from mortm_hf.training.rlmf.answers import passage, sample
from mortm_hf.training.rlmf.policy import (
    ILLEGAL,
    load_critic,
    load_policy,
    make_critic,
    save_pair,
)
from tests.training.rlmf.small_runs import BUDGET, rollout


def test_both_forms_of_the_mask_agree_and_sampling_is_what_is_learnt(masked_policy, tokenizer, prompts):
    ids, mask, width, scores = rollout(masked_policy, tokenizer, prompts[:8])
    whole = masked_policy.grammar.sequence(ids, mask)
    learnt = masked_policy(
        input_ids=ids.masked_fill(~mask, 0), attention_mask=mask, position_ids=mask.cumsum(1) - mask.long()
    ).logits
    for row in range(len(ids)):
        for place in range(width, ids.shape[1]):
            if mask[row, place]:  # the distribution that this token was drawn from
                legal = scores[row, place - width] > ILLEGAL / 2
                assert torch.equal(legal, whole[row, place - 1]), (row, place)
                assert legal[ids[row, place]]
                torch.testing.assert_close(
                    scores[row, place - width].log_softmax(-1),
                    learnt[row, place - 1].log_softmax(-1),
                    atol=2e-5,
                    rtol=0,
                )
    assert whole[:, : width - 1].all(), "prompts are not masked"
    assert not whole[:, width - 1 :][mask[:, width - 1 :]].all(1).any(), "every place of an answer is masked"


def test_answers_are_complete_within_the_budget_and_hold_no_padding(masked_policy, tokenizer, prompts):
    ids, mask, width, scores = rollout(masked_policy, tokenizer, prompts, seed=3)
    assert ids.shape[1] - width <= BUDGET
    for row in range(len(ids)):
        text = ids[row][mask[row]].numpy()
        check(tokenizer.vocabulary, text, complete=True)
        end = int((ids[row, width:] == tokenizer.eos_token_id).int().argmax())
        assert mask[row, width : width + end + 1].all(), "no pad before the end"
        assert (scores[row, : end + 1, tokenizer.pad_token_id] == ILLEGAL).all(), "a pad has no probability"


def test_prompt_plans_do_not_depend_on_padding(masked_policy, prompt_ids):
    masks = masked_policy.grammar
    alone = [masks.sequence(torch.from_numpy(p)[None])[0, -1] for p in prompt_ids]
    width = max(map(len, prompt_ids)) + 3
    ids = torch.zeros(len(prompt_ids), width, dtype=torch.long)
    for i, p in enumerate(prompt_ids):
        ids[i, width - len(p) :] = torch.from_numpy(p)
    together = masks.sequence(ids, ids != 0)
    for i, legal in enumerate(alone):
        assert torch.equal(together[i, -1], legal)
    with pytest.raises(RlmfError, match="row 0 has no <MGEN>"):
        masks.sequence(torch.ones(1, 5, dtype=torch.long))


def test_gradients_flow_through_legal_tokens_only_and_dropout_is_off(masked_policy, tokenizer, prompts):
    policy = masked_policy.train()
    assert policy.training and not any(m.training for m in policy.modules() if m is not policy)
    ids, mask, width, _ = rollout(policy, tokenizer, prompts[:4])
    inputs = {"input_ids": ids, "attention_mask": mask}
    assert torch.equal(policy(**inputs).logits, policy(**inputs).logits), "dropout in the configuration is not used"
    logits = policy(**inputs).logits
    logits.retain_grad()
    logits[:, width - 1 : -1].log_softmax(-1).gather(-1, ids[:, width:, None]).sum().backward()
    legal = policy.grammar.sequence(ids, mask)
    assert (logits.grad[~legal] == 0).all()
    assert policy.model.embed_tokens.weight.grad.abs().sum() > 0


def test_in_place_division_of_the_logits_is_allowed(masked_policy, tokenizer, prompts):
    ids, mask, width, _ = rollout(masked_policy, tokenizer, prompts[:2])
    logits = masked_policy(input_ids=ids, attention_mask=mask).logits[:, width - 1 : -1]
    logits /= 1.0 + 1e-7  # what TRL does
    entropy = torch.logsumexp(logits, -1) - (logits.softmax(-1) * logits).sum(-1)
    assert torch.isfinite(entropy).all()
    logits.log_softmax(-1)[..., 0].sum().backward()


def test_refuses_what_it_cannot_mask(masked_policy, tokenizer, prompts):
    ids, mask, _, _ = rollout(masked_policy, tokenizer, prompts[:2])
    cache = masked_policy(input_ids=ids, attention_mask=mask, use_cache=True).past_key_values
    with pytest.raises(RlmfError, match="whole sequences"):
        masked_policy(input_ids=ids[:, -1:], past_key_values=cache)
    with pytest.raises(RlmfError, match="no assisted decoding"):
        masked_policy.prepare_inputs_for_generation(
            torch.cat([ids, ids[:, -2:]], 1), past_key_values=cache, next_sequence_length=2
        )


def test_logits_to_keep_cuts_the_mask_alike(masked_policy, tokenizer, prompts):
    ids, mask, _width, _ = rollout(masked_policy, tokenizer, prompts[:4])
    inputs = {"input_ids": ids, "attention_mask": mask}
    whole = masked_policy(**inputs).logits
    torch.testing.assert_close(masked_policy(**inputs, logits_to_keep=7).logits, whole[:, -7:])


def test_gradient_checkpointing_gives_the_same_gradients(masked_policy, tokenizer, prompts):
    ids, mask, width, _ = rollout(masked_policy, tokenizer, prompts[:2])

    def gradient():
        masked_policy.zero_grad()
        masked_policy(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, width:].logsumexp(
            -1
        ).sum().backward()
        return masked_policy.model.layers[0].self_attn.q_proj.weight.grad.clone()

    plain = gradient()
    masked_policy.gradient_checkpointing_enable()
    masked_policy.train()
    assert masked_policy.model.layers[0].training and not masked_policy.model.layers[0].self_attn.training
    torch.testing.assert_close(gradient(), plain)


def test_autocast_acts_alike_in_sampling_and_learning(masked_policy, tokenizer, prompts):
    masked_policy.autocast = torch.bfloat16
    ids, mask, width, scores = rollout(masked_policy, tokenizer, prompts[:4])
    learnt = masked_policy(input_ids=ids, attention_mask=mask).logits
    assert learnt.dtype == torch.float32 and scores.dtype == torch.float32
    chosen = ids[:, width:, None]
    sampled = scores.log_softmax(-1).gather(-1, chosen)[..., 0]
    again = learnt[:, width - 1 : -1].log_softmax(-1).gather(-1, chosen)[..., 0]
    real = mask[:, width:]
    assert (sampled - again).abs()[real].mean() < 0.05, "the same precision: a difference of rounding only"
    masked_policy.autocast = None
    plain = masked_policy(input_ids=ids, attention_mask=mask).logits
    assert not torch.equal(plain[:, width - 1 : -1][real], learnt[:, width - 1 : -1][real])


def test_saving_hides_the_subclasses(masked_policy, tokenizer, tmp_path):
    critic = make_critic(masked_policy, hidden=8, layers=1)
    save_pair(masked_policy, critic, tokenizer, tmp_path / "pair")
    assert type(masked_policy).__name__ == "MortmPolicy", "the object itself stays what it is"
    for folder, kind in (
        (tmp_path / "pair", MortmForCausalLM),
        (tmp_path / "pair" / "value", MortmForSequenceClassification),
    ):
        model = kind.from_pretrained(folder)
        assert model.config.architectures == [kind.__name__]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "pair")
    assert type(plain) is MortmForCausalLM
    for (name, a), (other, b) in zip(plain.named_parameters(), masked_policy.named_parameters()):
        assert name == other and torch.equal(a, b)
    again = load_critic(tmp_path / "pair")
    assert again.config.num_hidden_layers == 1
    for a, b in zip(again.parameters(), critic.parameters()):
        assert torch.equal(a, b)
    with pytest.raises(RlmfError, match="no saved pair"):
        load_critic(tmp_path)


@pytest.mark.parametrize(("hidden", "layers"), [(None, 0), (8, 0), (None, 1)])
def test_the_critic_starts_from_the_policy_and_values_nothing(masked_policy, tokenizer, prompts, hidden, layers):
    critic = make_critic(masked_policy, hidden=hidden, layers=layers)
    ids, mask, _, _ = rollout(masked_policy, tokenizer, prompts[:2])
    states = critic.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    assert (critic.score(states[-1]) == 0).all()
    if not layers:
        torch.testing.assert_close(
            states[-1], masked_policy.model(input_ids=ids, attention_mask=mask).last_hidden_state
        )
    # causal: what comes later changes no value
    torch.nn.init.normal_(next(p for p in reversed(list(critic.score.parameters())) if p.dim() > 1))
    changed = ids.clone()
    changed[:, -1] = 5
    value = [critic.score(critic.model(input_ids=x, attention_mask=mask).last_hidden_state) for x in (ids, changed)]
    torch.testing.assert_close(value[0][:, :-1], value[1][:, :-1])
    with pytest.raises(RlmfError, match="critic_layers"):
        make_critic(masked_policy, layers=9)


def test_sampling_repeats_itself_and_leaves_the_random_numbers_alone(masked_policy, tokenizer, prompts):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = sample(masked_policy, tokenizer, prompts[:6], BUDGET, seed=1, batch=4)
    assert torch.equal(torch.get_rng_state(), before)
    again = sample(masked_policy, tokenizer, prompts[:6], BUDGET, seed=1, batch=4)
    other = sample(masked_policy, tokenizer, prompts[:6], BUDGET, seed=2, batch=4)
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other))
    score, given = passage(tokenizer, prompts[0].ids, first[0])
    assert given == 0 and sum(len(t.notes) for t in score.tracks) > 0


def test_refuses_models_that_cannot_be_policies(judge_folder, tmp_path):
    with pytest.raises(RlmfError, match="cannot load a model"):
        load_policy(tmp_path / "nothing")
    with pytest.raises(RlmfError):
        load_policy(judge_folder)
