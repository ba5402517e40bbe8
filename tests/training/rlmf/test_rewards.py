"""Rewards: the judge's own score at any position TRL may pick, sums, shaping, refusals."""

from __future__ import annotations

import pytest
import torch

from mortm_hf.models.errors_mortm import RlmfError
from mortm_hf.models.inputs_bertm import bare_segment, clip_durations, condense
from mortm_hf.models.modeling_bertm import BertmForSequenceClassification
from mortm_hf.models.reward_bertm import BertmReward
from mortm_hf.models.token_codec import parse_segment
from mortm_hf.models.token_vocabulary import MetricVocabulary
from mortm_hf.models.tokenization_mortm import MortmTokenizer
from mortm_hf.training.rlmf.rewards import (
    HumanBaseline,
    JudgeReward,
    MusicReward,
    RewardAdapter,
    Shaping,
    build_reward,
    check_same_table,
    load_judge,
)
from mortm_hf.training.rlmf.rules import ScaleAdherence
from tests.training.rlmf.small_runs import rollout


VOCABULARY = MetricVocabulary.default()


def layout(name: str, rows: int = 6, length: int = 24):
    """Ids in one of the paddings in which TRL hands rows over; (ids, width of the prompt)."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(30, 600, (rows, length), generator=generator)
    width = 10
    ids[:, width - 1] = 12  # <MGEN>
    if "left" in name:
        for row in range(rows):
            ids[row, : row % 5] = 0
    if "right" in name:
        for row in range(rows):
            ids[row, length - (row % 6) :] = 0
    if "empty" in name:  # an answer that is nothing but padding
        ids[0, width:] = 0
    if "middle" in name:
        ids[1, width + 3] = 0
    return ids, width


class Sum(torch.nn.Module):
    """A reward that counts: the sum of a row's ids."""

    def forward(self, ids, mask):
        return (ids * mask).sum(1).float()


def test_the_songs_own_answer_is_taken_from_the_reward():
    prompts, answers = [[5, 7, 12], [6, 12]], [[30, 2], [40, 41, 2]]
    baseline = HumanBaseline(Sum(), prompts, answers, pad=0, marker=12)
    ids = torch.tensor([[0, 6, 12, 50, 2], [5, 7, 12, 60, 2], [0, 9, 12, 1, 2]])  # the last prompt is unknown
    human = torch.tensor([6.0 + 12 + 40 + 41 + 2, 5.0 + 7 + 12 + 30 + 2])
    expected = torch.tensor([human[0], human[1], human.mean()])
    assert torch.equal(baseline(ids, ids != 0), expected)
    adapter = RewardAdapter(Sum(), Shaping(clip=(-100, 7)), baseline=baseline)
    states = adapter.backbone(ids, (ids != 0).long()).last_hidden_state
    assert torch.equal(states[:, 0, 0], (ids.sum(1) - expected).clamp(-100, 7))
    assert torch.equal(adapter.drain()["reward"], ids.sum(1).float())  # what is reported is the reward


@pytest.mark.parametrize("name", ["none", "left", "right", "left right", "left right empty", "left middle"])
def test_the_adapter_gives_the_judges_own_score_at_every_position(judge_folder, name):
    pytest.importorskip("trl")
    from trl.experimental.utils import get_reward

    judge = BertmForSequenceClassification.from_pretrained(judge_folder).eval()
    adapter = RewardAdapter(JudgeReward(BertmReward(judge, mode="machine_logit"), "row", VOCABULARY))
    ids, width = layout(name)
    mask = ids != 0
    with torch.no_grad():
        own = judge(input_ids=ids.masked_fill(~mask, 0), attention_mask=mask.long()).logits[:, 0]
        every, picked, _ = get_reward(adapter, ids, 0, width)
    assert torch.equal(picked, own), "bit for bit"
    assert torch.equal(every[..., 0], own[:, None].expand_as(ids))
    # and it is the score of the row alone, without padding
    for row in range(len(ids)):
        alone = ids[row][mask[row]][None]
        with torch.no_grad():
            assert torch.allclose(judge(input_ids=alone).logits[0, 0], own[row], atol=2e-6)


def test_a_judge_may_read_the_answer_alone(judge_folder):
    judge = BertmForSequenceClassification.from_pretrained(judge_folder).eval()
    whole, bare = (JudgeReward(BertmReward(judge, mode="logit"), view, VOCABULARY) for view in ("row", "answer"))
    ids, width = layout("left right")
    mask = ids != 0
    given = bare(ids, mask)
    for row in range(len(ids)):
        text = torch.cat([torch.tensor([1, 12]), ids[row, width:][mask[row, width:]]])[None]
        torch.testing.assert_close(given[row], whole(text, torch.ones_like(text))[0], atol=2e-6, rtol=0)
    assert not torch.allclose(given, whole(ids, mask))
    changed = ids.clone()
    changed[:, 5:8] = 77  # the prompt
    torch.testing.assert_close(bare(changed, mask), given, atol=2e-6, rtol=0)
    with pytest.raises(RlmfError, match="no view"):
        JudgeReward(BertmReward(judge), "elsewhere", VOCABULARY)


def test_a_judge_may_read_the_answer_as_its_windows_are_written(
    judge_folder, masked_policy, tokenizer, prompts, tmp_path
):
    judge = BertmForSequenceClassification.from_pretrained(judge_folder).eval()
    judge.config.window_form = "condensed"
    reward = BertmReward(judge, tokenizer, mode="logit")
    seen = JudgeReward(reward, "window", tokenizer.vocabulary)
    ids, mask, _, _ = rollout(masked_policy, tokenizer, prompts[:6])
    given = seen(ids, mask)
    for row in range(len(ids)):
        music = parse_segment(tokenizer.vocabulary, ids[row][mask[row]].numpy()).generated
        bare = bare_segment(tokenizer.vocabulary, condense(clip_durations(music)))
        assert float(given[row]) == pytest.approx(reward.rate(bare), abs=2e-6)
    judge.config.window_form = "tracks"
    assert not torch.allclose(seen(ids, mask), given), "another form is another score"
    for form, view in (("tracks", "row"), ("condensed", "window")):  # what a recipe means that names no view
        folder = tmp_path / form
        judge.config.window_form = form
        judge.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        reward = build_reward([{"kind": "judge", "model": str(folder)}], tokenizer)
        assert reward.judges["judge"].view == view


def test_sums_and_their_terms(tokenizer, judge_folder):
    terms = [
        {"kind": "scale", "weight": 2.0},
        {"kind": "judge", "model": str(judge_folder), "mode": "probability", "weight": 0.5},
        {"kind": "judge", "name": "pair", "model": [str(judge_folder)] * 2, "combine": "min", "weight": -1},
    ]
    reward = build_reward(terms, tokenizer)
    ids, _ = layout("left")
    total = reward(ids, ids != 0)
    parts = reward.last
    assert list(parts) == ["scale", "judge", "pair"]
    torch.testing.assert_close(total, 2 * parts["scale"] + 0.5 * parts["judge"] - parts["pair"])
    torch.testing.assert_close(parts["judge"], parts["pair"])
    adapter = RewardAdapter(reward)
    adapter.backbone(ids, ids != 0)
    adapter.backbone(ids[:2], ids[:2] != 0)
    drained = adapter.drain()
    assert {k: len(v) for k, v in drained.items()} == {"reward": 8, "scale": 8, "judge": 8, "pair": 8}
    assert adapter.drain() == {}
    assert not any(m.training for m in adapter.train().modules()) and not any(
        p.requires_grad for p in adapter.parameters()
    )


def test_shaping():
    shaping = Shaping(whiten=True, clip=(-1.5, 1.5))
    first = torch.randn(64) * 3 + 10
    shaped = shaping(first)
    torch.testing.assert_close(shaped, ((first - first.mean()) / first.std(unbiased=False)).clamp(-1.5, 1.5))
    second = torch.randn(64) + 50
    both = torch.cat([first, second])
    expected = ((second - both.mean()) / both.std(unbiased=False)).clamp(-1.5, 1.5)
    torch.testing.assert_close(shaping(second), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(Shaping()(first), first)
    assert Shaping(clip=(0.0, 11.0))(first).max() <= 11


@pytest.mark.parametrize(
    ("terms", "match"),
    [
        ([], "without terms"),
        ([{"weight": 1}], "has no kind"),
        ([{"kind": "applause"}], "no reward 'applause'"),
        ([{"kind": "scale", "steepness": 3}], "steepness"),
        ([{"kind": "scale"}, {"kind": "scale"}], "one name"),
        ([{"kind": "judge"}], "names no model"),
        ([{"kind": "judge", "model": "there/is/none"}], "cannot load a judge"),
        ([{"kind": "judge", "model": "BERTM_APPLAUSE"}], "no checkpoint BERTM_APPLAUSE"),
    ],
)
def test_recipes_that_make_no_reward(tokenizer, terms, match):
    with pytest.raises(RlmfError, match=match):
        build_reward(terms, tokenizer)


def test_another_token_table_is_refused(tokenizer, judge_folder):
    other = MortmTokenizer(preset="pro@4.9")
    with pytest.raises(RlmfError, match="another token table") as caught:
        load_judge(judge_folder, other)
    assert caught.value.code == "rlmf.vocabulary"
    with pytest.raises(RlmfError, match="knows 100 ids"):
        check_same_table(tokenizer, tokenizer.get_vocab(), 100, "x")


def test_rules_alone_are_a_reward(tokenizer):
    reward = MusicReward(tokenizer.vocabulary, [("scale", 1.0, ScaleAdherence())])
    ids, _ = layout("none")
    assert reward(ids, ids != 0).shape == (6,)
