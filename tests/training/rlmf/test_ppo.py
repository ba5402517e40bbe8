"""PPO end to end on tiny models: what enters the loss, the first ratio, clipping, saving, resuming, refusals."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mortm_hf.models.errors_mortm import RlmfError
from mortm_hf.training.rlmf.feedback_run import train
from mortm_hf.training.rlmf.policy import VALUE_FOLDER, load_critic, load_policy
from tests.training.rlmf.small_runs import BUDGET, MARKER, parts, recipe_of


pytest.importorskip("trl")
ROOT = Path(__file__).parents[3]


def test_the_first_ratio_is_one_and_a_run_saves_a_pair_that_goes_on(tmp_path, policy_folder, tokenizer, prompts):
    drawn = []

    def draw(score, path, highlight=None, title=None):
        drawn.append(highlight)
        path.write_bytes(b"picture")

    folder = tmp_path / "run"
    train(recipe_of(tmp_path, policy_folder, "--report_to", "tensorboard"), folder, prompts=prompts, draw=draw)
    assert list(folder.rglob("events.out.tfevents.*")), "TensorBoard's events"
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    updates = [line for line in log if "objective/kl" in line]
    assert len(updates) == 2
    # two mini-batches: the first one's ratio is exactly 1, the second one's after one optimizer step is near it
    assert updates[0]["objective/kl"] == pytest.approx(0, abs=1e-4)
    for name in ("reward/reward", "reward/scale", "reward/density_guard", "grad_norm", "time/sampling", "kl_coef"):
        assert np.isfinite(updates[0][name]), name
    total = updates[0]["reward/scale"] + 0.5 * updates[0]["reward/density_guard"]
    assert updates[0]["reward/reward"] == pytest.approx(total, abs=1e-4)
    assert updates[0]["reward/reward"] == pytest.approx(updates[0]["objective/scores"], abs=1e-4)
    assert (folder / "samples" / "step-00000" / "0.mid").is_file() and (folder / "samples/step-00002/0.png").is_file()
    assert len(drawn) == 3 and drawn[0] == (0, 2)
    final = folder / "final"
    assert (final / VALUE_FOLDER / "model.safetensors").is_file() and not list(folder.glob("*.partial*"))
    assert json.loads((folder / "recipe.json").read_text(encoding="utf-8"))["reward"]["terms"][0]["kind"] == "scale"
    before = load_policy(policy_folder)
    moved = [not torch.equal(a, b) for a, b in zip(before.parameters(), load_policy(final).parameters())]
    assert any(moved)
    with pytest.raises(RlmfError, match="finished run"):
        train(recipe_of(tmp_path, policy_folder), folder, prompts=prompts)

    # from the saved pair on: the KL is still measured to the first policy
    words = ("--resume", str(final), "--total_episodes", "8", "--sample_every", "0")
    train(recipe_of(tmp_path, policy_folder, *words), tmp_path / "more", prompts=prompts)
    log = [json.loads(line) for line in (tmp_path / "more" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert abs(next(line["objective/kl"] for line in log if "objective/kl" in line)) > 1e-3
    critics = [load_critic(f / "final") for f in (folder, tmp_path / "more")]
    assert any(not torch.equal(a, b) for a, b in zip(*(c.parameters() for c in critics)))


def test_a_run_reads_its_songs_and_lists_its_prompts(tmp_path, policy_folder, tokenizer, monkeypatch):
    from mortm_hf.training.rlmf import feedback_run
    from tests.training.rlmf.test_prompts import song, store

    found = [song(tokenizer, f"song {i}", notes_a_bar=1 + i % 3) for i in range(8)] + [
        song(tokenizer, "short", bars=3)
    ]
    asked = []
    monkeypatch.setattr(feedback_run, "read_songs", lambda recipe, folder: (asked.append(folder), store(*found))[1])
    words = ("--data", str(tmp_path), "--total_episodes", "8", "--sample_every", "0")
    train(recipe_of(tmp_path, policy_folder, *words), tmp_path / "run")
    assert asked == [tmp_path / "run"]
    listed = json.loads((tmp_path / "run" / "prompts.json").read_text(encoding="utf-8"))
    assert len(listed["prompts"]) == 8 and listed["skipped"][0][0] == "short"
    with pytest.raises(RlmfError, match="there is no"):
        train(recipe_of(tmp_path, policy_folder, "--data", str(tmp_path / "a/b")), tmp_path / "other")


def test_ratio_one_and_approximate_kl_zero_before_anything_is_learnt(tmp_path, policy_folder, tokenizer, prompts):
    from mortm_hf.training.rlmf.ppo import MusicPPOTrainer

    trainer = MusicPPOTrainer(**parts(policy_folder, tokenizer, prompts, tmp_path))
    seen = {}
    keep = trainer.log
    trainer.log = lambda logs, *a: (seen.update(logs), keep(logs))[1]
    trainer.train()
    assert seen["val/ratio"] == pytest.approx(1.0, abs=1e-5)
    assert abs(seen["policy/approxkl_avg"]) < 1e-6
    assert seen["policy/clipfrac_avg"] == 0


def test_gradients_are_clipped(tmp_path, policy_folder, tokenizer, prompts):
    from mortm_hf.training.rlmf.ppo import MusicPPOTrainer

    given = parts(policy_folder, tokenizer, prompts, tmp_path, max_grad_norm=1e-3)
    trainer = MusicPPOTrainer(**given, critic_learning_rate=1e-2)
    norms = []
    inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)

    def after_clipping(optimizer, args, kwargs):
        grads = [p.grad for p in trainer._trained if p.grad is not None]
        norms.append(float(torch.stack([g.norm() for g in grads]).norm()))

    inner.register_step_pre_hook(after_clipping)
    assert [g["lr"] for g in inner.param_groups] == [1e-3, 1e-2]
    trainer.train()
    assert norms and max(norms) <= 1e-3 * 1.01


def test_prompts_and_padding_never_enter_the_loss(policy_folder, tokenizer, prompts, tmp_path):
    """The loss of PPO is a function of logits and values at the answer's real tokens: changing any other one, or the
    pads after an end, changes nothing; changing these does."""
    from trl.experimental.ppo import ppo_trainer

    from mortm_hf.training.rlmf.ppo import MusicPPOTrainer

    def loss_with(change):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - TRL shuffles with it
        given = parts(policy_folder, tokenizer, prompts, tmp_path)
        torch.nn.init.normal_(given["value_model"].score.weight)
        trainer = MusicPPOTrainer(**given)
        losses = []
        plain, backward = ppo_trainer.forward, trainer.accelerator.backward

        def forward(model, ids, pad):
            output = plain(model, ids, pad)
            if not isinstance(output, tuple):
                return output
            policy_output, values = output
            place, real = torch.arange(ids.shape[1]), ids != pad
            marker = torch.where(ids == MARKER, place, -1).amax(1, keepdim=True)
            inside = real & (place >= marker) & (ids != tokenizer.eos_token_id)
            where = change(inside)[..., None]
            # the value after the last token is learnt too: it is where TRL puts the score
            valued = change(inside | (place > marker))[..., None]
            policy_output.logits = torch.where(where, policy_output.logits * 0.5, policy_output.logits)
            return policy_output, torch.where(valued, values + 1.0, values)

        ppo_trainer.forward = forward
        trainer.accelerator.backward = lambda loss: (losses.append(float(loss.detach())), backward(loss))[1]
        try:
            trainer.train()
        finally:
            ppo_trainer.forward = plain
        return losses[0]

    nothing = loss_with(torch.zeros_like)
    outside = loss_with(torch.logical_not)
    inside = loss_with(torch.clone)
    assert outside == pytest.approx(nothing, abs=1e-7)
    assert abs(inside - nothing) > 1e-4


def test_adaptive_kl_moves_towards_its_target():
    from mortm_hf.training.rlmf.ppo import AdaptiveKL

    control = AdaptiveKL(target=5.0, horizon=100)
    assert control.step(0.1, 50.0, 10) == pytest.approx(0.1 * 1.02)
    assert control.step(0.1, 0.0, 10) == pytest.approx(0.1 * 0.98)
    assert control.step(0.1, 5.0, 10) == pytest.approx(0.1)
    coefficient = 0.05
    for _ in range(200):  # a policy whose KL falls as the coefficient rises
        coefficient = control.step(coefficient, 0.5 / coefficient, 10)
    assert 0.5 / coefficient == pytest.approx(5.0, rel=0.05)


class TestRefusals:
    """Everything that is refused before a rollout."""

    def refuse(self, match, code, given):
        from mortm_hf.training.rlmf.ppo import MusicPPOTrainer

        with pytest.raises(RlmfError, match=match) as caught:
            MusicPPOTrainer(**given)
        assert caught.value.code == code

    @pytest.mark.parametrize(
        ("changes", "match", "code"),
        [
            ({"per_device_train_batch_size": 32}, "do not fill one batch of 32", "rlmf.data"),
            ({"gradient_accumulation_steps": 2}, "must be 1", "rlmf.recipe"),
            ({"num_mini_batches": 3}, "cannot be cut into 3", "rlmf.recipe"),
            ({"num_mini_batches": 8}, "cannot be whitened", "rlmf.recipe"),
            ({"response_length": 4}, "shortest answer takes", "rlmf.data"),
            ({"response_length": 600}, "exceed the context of 512", "rlmf.data"),
        ],
    )
    def test_arguments(self, policy_folder, tokenizer, prompts, tmp_path, changes, match, code):
        self.refuse(match, code, parts(policy_folder, tokenizer, prompts, tmp_path, **changes))

    def test_padding_and_tables(self, policy_folder, tokenizer, prompts, tmp_path, monkeypatch):
        import copy

        given = parts(policy_folder, tokenizer, prompts, tmp_path)
        other = copy.deepcopy(tokenizer)
        other.pad_token = other.eos_token
        self.refuse("must not be the end token", "rlmf.padding", given | {"processing_class": other})
        other = copy.deepcopy(tokenizer)
        other.padding_side = "right"
        self.refuse("on the left", "rlmf.padding", given | {"processing_class": other})
        given["ref_model"].config.vocab_size += 1
        self.refuse("from one table", "rlmf.vocabulary", given)
        given["ref_model"].config.vocab_size -= 1
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        self.refuse("DeepSpeed and FSDP", "rlmf.device", given)


def test_other_releases_of_trl_are_refused_before_anything_is_read(tmp_path, policy_folder, monkeypatch):
    import importlib.metadata

    recipe = recipe_of(tmp_path, tmp_path / "there is no such model")
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.16.0" if name == "trl" else version(name))
    with pytest.raises(RlmfError, match=r"TRL 1\.16\.0 is installed.*trl==1\.12\.0") as caught:
        train(recipe, tmp_path / "run")
    assert caught.value.code == "rlmf.trl"

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(RlmfError, match=r"needs TRL 1\.12\.0"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_a_signal_ends_a_run_with_a_checkpoint(algorithm, tmp_path, policy_folder, prompts):
    import signal

    from transformers import TrainerCallback

    class Terminated(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    words = ("--algorithm", algorithm, "--total_episodes", "64")
    train(recipe_of(tmp_path, policy_folder, *words), tmp_path / "run", prompts=prompts, callbacks=[Terminated()])
    assert (tmp_path / "run" / "checkpoint-1" / "model.safetensors").is_file()
    assert not list((tmp_path / "run").glob("final*")) and signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
@pytest.mark.parametrize("lora", [0, 4])
def test_two_processes_train_and_save(tmp_path, policy_folder, tokenizer, lora):
    """Two processes over gloo: both learn the same, the first one saves."""
    import subprocess
    import sys

    script = tmp_path / "two.py"
    script.write_text(
        f"""
import pickle, sys, torch
torch.set_num_threads(1)
from mortm_hf.training.rlmf.feedback_recipe import read_recipe
from mortm_hf.training.rlmf.feedback_run import train
prompts = pickle.loads(open({str(tmp_path / "prompts.pkl")!r}, "rb").read())
recipe = read_recipe({str(tmp_path / "recipe.yaml")!r}, sys.argv[1:])
trainer = train(recipe, {str(tmp_path / "run")!r}, prompts=prompts)
flat = torch.cat([p.detach().reshape(-1) for p in trainer._trained])
both = trainer.accelerator.gather(flat[None])
assert both.shape[0] == 2 and torch.equal(both[0], both[1]), "the processes have different weights"
""",
        encoding="utf-8",
    )
    import pickle

    from mortm_hf.models.prompt_building import MetricPrompt, build_prompt
    from mortm_hf.training.rlmf.prompts import Prompt

    ids = build_prompt(tokenizer.vocabulary, MetricPrompt(instruments=["piano"], bars=1, meter="4/4")).ids
    rows = [Prompt(ids.astype(np.int64), np.zeros(0, np.int64), f"{i}", "test", f"{i}", 0, 1) for i in range(16)]
    (tmp_path / "prompts.pkl").write_bytes(pickle.dumps(rows))
    recipe_of(tmp_path, policy_folder)
    words = {"per_device_train_batch_size": 4, "num_mini_batches": 1, "total_episodes": 16, "response_length": BUDGET}
    words |= {"learning_rate": 1e-3, "report_to": "none", "lora_rank": lora, "sample_every": 1}
    port = str(29650 + (lora > 0))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    command += [str(script), *(x for name, value in words.items() for x in (f"--{name}", str(value)))]
    settings = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=os.environ | settings)
    assert done.returncode == 0, done.stderr[-3000:]
    final = tmp_path / "run" / "final"
    assert (final / "model.safetensors").is_file(), "adapters are merged"
    assert (final / "adapter" / "adapter_model.safetensors").is_file() == bool(lora)
    before, after = load_policy(policy_folder).state_dict(), load_policy(final).state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("_proj" in name for name in moved) == bool(lora)
    assert (final / VALUE_FOLDER / "model.safetensors").is_file()
    assert load_critic(final).config.num_labels == 1
