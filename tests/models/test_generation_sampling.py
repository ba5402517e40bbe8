"""Seeded sampling: the noise and the filters."""

import torch

from mortm_hf.models.generation_sampling import FiniteLogits, SeededChoice, sampling_filters


def test_seeded_choice_samples_the_softmax():
    scores = torch.tensor([[0.0, 1.0, 2.0, -torch.inf]])
    rows, drawn = 64, []
    for stream in range(8):
        choice = SeededChoice(range(rows), stream, start=0)
        for position in range(64):
            ids = torch.zeros(rows, position, dtype=torch.long)
            drawn.append(choice(ids, scores.expand(rows, -1)).argmax(-1))
    share = torch.bincount(torch.cat(drawn), minlength=4) / (8 * 64 * rows)
    assert share[3] == 0
    # 32768 draws: the standard error of a share is below 0.003
    assert (share[:3] - scores[0, :3].softmax(-1)).abs().max() < 0.012


def test_noise_is_a_function_of_seed_stream_and_position():
    scores, ids = torch.zeros(2, 50), torch.zeros(2, 100, dtype=torch.long)
    forward = [SeededChoice([1, 2], 0, 10)(ids[:, :n], scores) for n in (20, 90)]
    one = SeededChoice([1, 2], 0, 10)
    later, earlier = one(ids[:, :90], scores), one(ids[:, :20], scores)  # a rewind over a block of noise
    assert torch.equal(forward[0], earlier) and torch.equal(forward[1], later)
    assert torch.equal(SeededChoice([2], 0, 10)(ids[:1, :20], scores[:1])[0], earlier[1])
    assert not torch.equal(SeededChoice([1, 2], 1, 10)(ids[:, :20], scores), earlier)


def test_filters_and_finite_scores():
    names = [type(f).__name__ for f in sampling_filters({"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1})]
    assert names == ["TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "MinPLogitsWarper"]
    assert sampling_filters({"temperature": 1.0, "top_k": 0, "top_p": 1.0}) == []
    wild = torch.tensor([[float("nan"), float("inf"), -float("inf"), 1.0]], dtype=torch.float16)
    assert torch.isfinite(FiniteLogits()(None, wild)).all()
