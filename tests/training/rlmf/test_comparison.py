"""Before and after: pairing, divergence, best of N, diversity, verdicts; and the tables that are printed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mortm_hf.data.score_store import ScoreStore
from mortm_hf.evaluation.features import scores_of
from mortm_hf.models.errors_mortm import RlmfError
from mortm_hf.training.rlmf import comparison
from mortm_hf.training.rlmf.comparison import (
    Arm,
    answer_prompts,
    best_of,
    describe,
    divergence,
    non_inferior,
    paired,
    rate,
    self_bleu,
)
from mortm_hf.training.rlmf.policy import load_policy
from mortm_hf.training.rlmf.rewards import build_reward
from tests.training.rlmf.small_runs import BUDGET


@pytest.fixture(scope="module")
def answers(policy_folder, tokenizer, prompts):
    return answer_prompts(load_policy(policy_folder), tokenizer, prompts[:8], BUDGET, [0, 1])


def test_answers_are_cached_and_paired_by_seed(policy_folder, tokenizer, prompts, answers, tmp_path, monkeypatch):
    model = load_policy(policy_folder)
    few = prompts[:3]
    once = answer_prompts(model, tokenizer, few, BUDGET, [0], tmp_path, "a")
    monkeypatch.setattr(model, "generate", lambda *a, **k: pytest.fail("sampled again"))
    again = answer_prompts(model, tokenizer, few, BUDGET, [0], tmp_path, "a")
    for a, b, c in zip(once[0], again[0], answers[0]):
        assert np.array_equal(a, b) and np.array_equal(a, c), "a row's answer depends on its seed alone"
    assert all(len(a) <= BUDGET and a[-1] == tokenizer.eos_token_id for row in answers for a in row)


def test_divergence_is_the_mean_log_ratio(policy_folder, tokenizer, prompts, answers):
    policy, reference = load_policy(policy_folder), load_policy(policy_folder)
    with pytest.raises(RlmfError, match="call set_grammar on both"):
        divergence(policy, reference, prompts[:8], answers[0])
    for model in (policy, reference):
        model.set_grammar(tokenizer, BUDGET)
    assert np.abs(divergence(policy, reference, prompts[:8], answers[0])).max() < 1e-5
    with torch.no_grad():
        policy.lm_head.weight.mul_(1.3)
    found = divergence(policy, reference, prompts[:8], answers[0])
    prompt, answer = prompts[2].ids, answers[0][2]
    ids = torch.from_numpy(np.concatenate([prompt, answer]))[None]
    with torch.no_grad():
        own = [
            model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)[range(len(answer)), answer].sum()
            for model in (policy, reference)
        ]
    assert found[2] == pytest.approx(float(own[0] - own[1]), abs=1e-3) and abs(found[2]) > 1e-3


def test_rewards_best_of_and_paired_gains(tokenizer, prompts, answers):
    reward = build_reward([{"kind": "density_guard", "low": 3, "high": 5}], tokenizer)
    rows = prompts[:8]
    values = np.stack([rate(reward, rows, a)["reward"] for a in answers])
    best = best_of(answers, values)
    np.testing.assert_allclose(rate(reward, rows, best)["reward"], values.max(0))
    before, after = Arm("a", answers, {"reward": values}), Arm("b", [best], {"reward": values.max(0)[None]})
    gain = paired(before, after, rows)
    each = values.max(0) - values.mean(0)
    assert gain["value"] == pytest.approx(each.mean()) and gain["low"] <= gain["value"] <= gain["high"]
    assert gain["standard_error"] == pytest.approx(each.std(ddof=1) / np.sqrt(8))
    assert gain["z"] == pytest.approx(gain["value"] / gain["standard_error"])


def test_diversity_falls_where_answers_are_alike(tokenizer, prompts, answers):
    same = [prompts[0]] * 8
    varied = Arm("varied", [list(row) for row in answers], {"reward": np.zeros((2, 8))}, np.zeros((2, 8)))
    alike = Arm("alike", [[answers[0][0]] * 8] * 2, {"reward": np.zeros((2, 8))})
    full, flat = describe(varied, tokenizer, same), describe(alike, tokenizer, same)
    for name in ("pairwise_distance", "distance_within_prompt"):
        assert flat["figures"][name]["value"] == pytest.approx(0.0, abs=1e-9)
        assert full["figures"][name]["value"] > 0.01
    assert self_bleu(scores_of(tokenizer.vocabulary, alike.answers[0])) == pytest.approx(1.0, abs=1e-6)
    assert self_bleu(scores_of(tokenizer.vocabulary, answers[0])) < 1.0
    verdict = non_inferior(full, flat, "pairwise_distance")
    assert verdict["ratio"] == pytest.approx(0.0, abs=1e-9) and not verdict["met"]
    assert non_inferior(full, full, "distance_within_prompt")["met"]
    assert full["kl"]["value"] == 0.0 and "kl" not in flat
    copied = describe(varied, tokenizer, same, train=scores_of(tokenizer.vocabulary, answers[0]))["copied"]
    assert copied["longest_run_max"] > 0


def test_non_inferiority_takes_the_spread_into_account():
    def figures(value, std):
        return {"figures": {"x": {"value": value, "std": std, "n": 3}}}

    assert non_inferior(figures(1.0, 0.001), figures(0.97, 0.001), "x")["met"]
    assert not non_inferior(figures(1.0, 0.05), figures(0.97, 0.05), "x")["met"]
    assert not non_inferior(figures(1.0, 0.0), figures(0.94, 0.0), "x")["met"]


@pytest.mark.slow
def test_the_benchmark_measures_runs_and_prints_from_their_reports(
    tmp_path, policy_folder, judge_folder, tokenizer, prompts, monkeypatch, capsys
):
    """Two runs of a tiny policy through `benchmarks/rlmf.py`, with songs in place of a pack."""
    pytest.importorskip("trl")
    from mortm_hf.training.rlmf import feedback_run
    from tests.training.rlmf.small_runs import recipe_of
    from tests.training.rlmf.test_prompts import song

    found = [song(tokenizer, f"song {i}", corpus="ab"[i % 2], notes_a_bar=1 + i % 4) for i in range(16)]
    songs = ScoreStore(found)
    monkeypatch.setattr(feedback_run, "read_songs", lambda *a, **k: songs)
    for seed in (0, 1):
        words = ("--seed", str(seed), "--sample_every", "0", "--total_episodes", "8")
        feedback_run.train(recipe_of(tmp_path, policy_folder, *words), tmp_path / f"run{seed}", songs=songs)
    spec = importlib.util.spec_from_file_location("bench_rlmf", Path(__file__).parents[3] / "benchmarks" / "rlmf.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    runs = ["--runs", str(tmp_path / "run0"), str(tmp_path / "run1")]
    rest = ["--data", str(tmp_path), "--cache", str(tmp_path / "cache"), "--judge", str(judge_folder), "--count", "6"]
    joined = tmp_path / "joined.json"
    monkeypatch.setattr(sys, "argv", ["rlmf.py", *runs, *rest, "--best-of", "2", "--json", str(joined)])
    bench.main()
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "run0" / "comparison.json").read_text(encoding="utf-8"))
    assert report["setting"]["prompts"] == 6 and set(report["arms"]) == {"frozen", "best of 2", "run0"}
    assert report["gains"]["reward"]["best of 2"]["value"] >= 0
    assert report["arms"]["frozen"]["kl"]["value"] == 0.0
    monkeypatch.setattr(comparison, "answer_prompts", lambda *a, **k: pytest.fail("reprinting samples nothing"))
    picture = tmp_path / "curves.png"
    monkeypatch.setattr(sys, "argv", ["rlmf.py", "--reports", str(joined), "--png", str(picture)])
    bench.main()
    again = capsys.readouterr().out
    assert printed.endswith(again) and "independent judge" in again and "| best of 2 |" in again
    assert picture.read_bytes().startswith(b"\x89PNG")
