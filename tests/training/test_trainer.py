"""The trainer: the weight of the balancing loss, exact resume in every setting, what is logged, what is saved."""

import json

import pytest
import torch

from mortm_hf.models.configuration_mortm import MortmConfig
from mortm_hf.models.errors_mortm import TrainingError
from mortm_hf.models.modeling_mortm import MortmForCausalLM
from mortm_hf.training import attention
from mortm_hf.training.arguments import RunArguments
from mortm_hf.training.run import newest_checkpoint
from mortm_hf.training.runlog import RunLog, read_log
from mortm_hf.training.tasks.pretrain_task import make_trainer, train
from mortm_hf.training.trainer import PackTrainer
from mortm_hf.training.validation import METRIC
from tests.training.tiny_run import TINY, read_recipe, stores, windows


# bias balancing, dropout, accumulation: everything that has a state of its own
HARD = TINY.replace("num_local_experts: 4}", "num_local_experts: 4, router_balancing: bias, hidden_dropout: 0.1}")
SONGS = stores()
WINDOWS = windows(SONGS["validation"])


def write_recipe(path, text):
    path.write_text(text)
    return path


def start(recipe, folder, *words, windows=None):
    found = read_recipe(recipe, ["--output_dir", str(folder), *words])
    return train(found, SONGS, windows)


def curve(folder):
    lines = read_log(folder)
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def interrupt_after(monkeypatch, step):
    """Ctrl-C while `step` is under way."""
    import signal

    begin = RunLog.on_step_begin

    def told(self, args, state, control, **kwargs):
        if state.global_step == step - 1:
            signal.raise_signal(signal.SIGINT)
        return begin(self, args, state, control, **kwargs)

    monkeypatch.setattr(RunLog, "on_step_begin", told)


def test_balancing_loss_weighs_the_same_however_the_batch_is_cut():
    """Gradients with accumulation = CE over all tokens + coefficient x mean balancing loss of the parts."""
    config = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, moe_intermediate_size=8,
                  shared_expert_intermediate_size=8, num_local_experts=4, router_aux_loss_coef=0.5)  # fmt: skip
    torch.manual_seed(0)
    model = MortmForCausalLM(MortmConfig(**config))
    torch.manual_seed(1)
    parts = [{"input_ids": ids, "labels": ids} for ids in torch.randint(2, 900, (2, 1, 40))]
    arguments = RunArguments(output_dir="unused", use_cpu=True, gradient_accumulation_steps=2, report_to="none")
    trainer = PackTrainer(model=model, args=arguments)
    trainer.current_gradient_accumulation_steps = 2
    model.train()
    items = torch.tensor(78)
    for part in parts:
        trainer.compute_loss(model, dict(part), num_items_in_batch=items).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    outputs = [model(**part, num_items_in_batch=items, use_cache=False) for part in parts]
    entropy = sum(o.loss - 0.5 * o.aux_loss for o in outputs)
    (entropy + 0.5 * torch.stack([o.aux_loss for o in outputs]).mean()).backward()
    for name, p in model.named_parameters():
        assert torch.allclose(found[name], p.grad, atol=1e-6), name


def test_a_run_interrupted_and_resumed_is_the_run(tmp_path, monkeypatch):
    """Bias balancing, dropout, accumulation, loader processes, gradient checkpointing, a selection by validation."""
    recipe = write_recipe(tmp_path / "r.yaml", HARD)
    words = ["--gradient_accumulation_steps", "2", "--max_steps", "6", "--decay_steps", "2", "--eval_tokens", "2000"]
    words += ["--gradient_checkpointing", "True"]  # the name that old and new transformers know
    whole = start(recipe, tmp_path / "whole", *words, windows=WINDOWS)
    interrupt_after(monkeypatch, 3)
    first = start(recipe, tmp_path / "parts", *words, "--dataloader_num_workers", "1", windows=WINDOWS)
    assert first.state.global_step == 3 and newest_checkpoint(tmp_path / "parts").endswith("checkpoint-3")
    assert not (tmp_path / "parts" / "final").exists()
    monkeypatch.undo()
    torch.manual_seed(99)
    second = start(recipe, tmp_path / "parts", *words, windows=WINDOWS)
    a, b = curve(tmp_path / "whole"), curve(tmp_path / "parts")
    assert a == b and list(a) == [1, 2, 3, 4, 5, 6]
    one, other = whole.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    biases = [name for name in one if "e_score_correction_bias" in name]
    assert biases and one[biases[0]].abs().max() > 0

    figures = [{line["step"]: line[METRIC] for line in read_log(tmp_path / f) if METRIC in line}
               for f in ("whole", "parts")]  # fmt: skip
    assert figures[0] == figures[1] and list(figures[0]) == [2, 4, 6]
    best = json.loads((tmp_path / "parts" / "best" / "best.json").read_text())
    assert best[METRIC] == min(figures[0].values())
    final = MortmForCausalLM.from_pretrained(tmp_path / "parts" / "final")
    kept = MortmForCausalLM.from_pretrained(tmp_path / "parts" / "best")
    assert all(torch.equal(p, q) for p, q in zip(final.parameters(), kept.parameters()))
    assert final.config.use_cache  # the Trainer had turned it off

    # finished: nothing is done again
    before = (tmp_path / "parts" / "log.jsonl").read_bytes()
    assert start(recipe, tmp_path / "parts", *words, windows=WINDOWS).state.global_step == 6
    assert (tmp_path / "parts" / "log.jsonl").read_bytes() == before


def test_what_a_step_says(tmp_path, capsys, caplog):
    recipe = write_recipe(tmp_path / "r.yaml", TINY.replace("router_every: 4", "router_every: 1"))
    words = ["--max_steps", "6", "--decay_steps", "0", "--lr_scheduler_type", "cosine", "--tensorboard", "True"]
    start(recipe, tmp_path / "run", *words, "--dead_share", "1.0", "--dead_after", "2", windows=WINDOWS)
    lines = read_log(tmp_path / "run")
    steps = [line for line in lines if "loss" in line]
    assert {"loss", "aux_loss", "grad_norm", "learning_rate", "tokens_per_second", "tokens"} <= set(steps[0])
    rates = [line["learning_rate"] for line in steps]
    assert max(rates) == 0.003 and rates[-1] < 0.001  # warmed up, and down the cosine
    assert any(line.get("event") == "dead_expert" for line in lines)  # some expert is always under the even share
    assert "router_balancing" in caplog.text
    assert list((tmp_path / "run" / "runs").rglob("events.out.tfevents*"))
    told = capsys.readouterr()
    assert "{'loss'" not in told.out and "step 6/6" in told.err


def test_early_stopping_ends_the_run_and_ships_the_best(tmp_path):
    recipe = write_recipe(tmp_path / "r.yaml", TINY)
    words = ["--learning_rate", "0.0", "--early_stopping", "2", "--eval_tokens", "512", "--max_steps", "8"]
    trainer = start(recipe, tmp_path / "run", *words, windows=WINDOWS)
    assert trainer.state.global_step == 3  # nothing moves: the first figure stays the best
    assert (tmp_path / "run" / "final" / "config.json").is_file()
    assert [line["event"] for line in read_log(tmp_path / "run") if "event" in line][-2:] == ["early_stop", "end"]
    again = start(recipe, tmp_path / "run", *words, windows=WINDOWS)
    assert again.state.global_step == 3


def test_half_written_checkpoints_are_passed_over(tmp_path):
    for step, state, optimizer in ((5, '{"global_step": 5}', True), (9, '{"glob', True), (12, "{}", False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(state)
        if optimizer:
            (folder / "optimizer.pt").write_bytes(b"x")
    (tmp_path / "checkpoint-x").mkdir()
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-5")
    sharded = tmp_path / "checkpoint-20"
    (sharded / "optimizer_0").mkdir(parents=True)
    (sharded / "trainer_state.json").write_text("{}")
    assert newest_checkpoint(tmp_path) == str(sharded)


def test_other_weights_to_start_from(tmp_path):
    recipe = write_recipe(tmp_path / "r.yaml", TINY)
    start(recipe, tmp_path / "a", "--max_steps", "1", "--decay_steps", "0")
    plain = write_recipe(tmp_path / "p.yaml", "data:" + TINY.partition("data:")[2])
    found = read_recipe(
        plain, ["--output_dir", str(tmp_path / "b"), "--init", str(tmp_path / "a" / "final"), "--max_steps", "1"]
    )
    trainer = make_trainer(found, SONGS)
    assert trainer.args.ddp_find_unused_parameters is False
    source = MortmForCausalLM.from_pretrained(tmp_path / "a" / "final")
    assert all(torch.equal(p, q) for p, q in zip(trainer.model.parameters(), source.parameters()))
    assert trainer.model.config._attn_implementation == attention.NAME
    found = read_recipe(recipe, ["--output_dir", str(tmp_path / "c"), "--init", str(tmp_path / "a" / "final")])
    with pytest.raises(TrainingError, match="model section"):
        make_trainer(found, SONGS)
    found = read_recipe(plain, ["--output_dir", str(tmp_path / "d"), "--init", str(tmp_path)])
    with pytest.raises((TrainingError, OSError), match=tmp_path.name):
        make_trainer(found, SONGS)
