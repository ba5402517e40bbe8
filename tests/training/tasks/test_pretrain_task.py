"""Pretraining: recipes, packs that keep documents apart, and a run that is stopped and resumed."""

import json
from pathlib import Path

import pytest
import torch

from mortm_hf.data.examples import ExampleSource
from mortm_hf.data.packing import PackDataset
from mortm_hf.models.configuration_mortm import MortmConfig
from mortm_hf.models.errors_mortm import TrainingError
from mortm_hf.models.modeling_mortm import MortmForCausalLM
from mortm_hf.models.tokenization_mortm import MortmTokenizer
from mortm_hf.training.pretrain import main
from mortm_hf.training.tasks import read_recipe
from mortm_hf.training.tasks.pretrain_task import pack_shape, train
from tests.sample_songs import store


RECIPES = Path(__file__).resolve().parents[3] / "mortm_hf" / "training" / "recipes"
TINY = """
model:
  {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, moe_intermediate_size: 16,
   shared_expert_intermediate_size: 16, num_local_experts: 4}
data:
  row_length: 256
  rows: 2
  packs_per_epoch: 4
  generated_bars: [2, 3]
  past_bars: [1, 3]
  tasks: {continue: 3, infill: 1}
  corpora: {band: {weight: 1}, lead: {weight: 1}}
training:
  {seed: 7, max_steps: 8, decay_steps: 3, warmup_steps: 2, learning_rate: 0.003, use_cpu: true, logging_steps: 1,
   save_minutes: 0, attention: sdpa_documents, experts_implementation: grouped_mm, router_every: 4}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder):
    return {line["step"]: line["loss"] for line in log_of(folder) if "loss" in line}


def run(recipe, folder, *words):
    return train(read_recipe(recipe, ["--output_dir", str(folder), *words]), {"train": SONGS})


SONGS = store(4, 12)


def test_resumed_run_equals_an_unbroken_one(recipe, tmp_path, monkeypatch):
    whole = run(recipe, tmp_path / "whole")
    # a run whose clock says stop after step 3 (in its first epoch of packs), then goes on
    from mortm_hf.training.runlog import RunLog

    end = RunLog.on_step_end

    def stop_at_three(self, args, state, control, **kwargs):
        if state.global_step == 3:
            self.deadline = 0.0
        return end(self, args, state, control, **kwargs)

    monkeypatch.setattr(RunLog, "on_step_end", stop_at_three)
    first = run(recipe, tmp_path / "parts")
    assert first.state.global_step == 3
    monkeypatch.undo()
    (tmp_path / "parts" / "checkpoint-5").mkdir()  # what a run leaves that is killed while it saves
    torch.manual_seed(12345)  # nothing may depend on what is left in memory
    second = run(recipe, tmp_path / "parts")
    assert second.state.global_step == 8
    a, b = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert sorted(a) == sorted(b) == list(range(1, 9)) and a == b
    for p, q in zip(whole.model.parameters(), second.model.parameters()):
        assert torch.equal(p, q)

    log = log_of(tmp_path / "parts")
    assert [line["event"] for line in log if "event" in line and line["event"] != "router"] == [
        "start", "stop", "end", "start", "end"]  # fmt: skip
    assert log[-1]["tokens"] == 8 * 512
    load = next(line["load"] for line in log if line.get("event") == "router")
    assert len(load) == 1 and sum(load[0]) == pytest.approx(1.0, abs=1e-3)
    rates = [line["learning_rate"] for line in log if "learning_rate" in line]
    assert rates[-1] < 0.0015 < max(rates)  # warmed up and decayed

    # the finished folder is complete
    final = tmp_path / "parts" / "final"
    tokenizer = MortmTokenizer.from_pretrained(final)
    model = MortmForCausalLM.from_pretrained(final)
    assert len(tokenizer.vocabulary) == model.config.vocab_size

    # an earlier decay on resume changes the rate, not the data
    with pytest.raises(ValueError, match=r"another recipe .data\.row_length: 256 -> 128"):
        run(recipe, tmp_path / "parts", "--row_length", "128")


def test_end_can_be_moved_on_resume(recipe, tmp_path):
    run(recipe, tmp_path / "r", "--max_minutes", "0.0001")
    trainer = run(recipe, tmp_path / "r", "--max_steps", "4", "--decay_steps", "2")
    assert trainer.state.global_step == 4
    rates = [line["learning_rate"] for line in log_of(tmp_path / "r") if "learning_rate" in line]
    assert rates[-1] == pytest.approx(0.0015)


def test_what_cannot_be_computed_so_is_one_line(recipe, tmp_path):
    for words in (["--attention", "nonsense"], ["--experts_implementation", "nonsense"]):
        with pytest.raises(TrainingError, match=f"{words[0][2:]} nonsense"):
            run(recipe, tmp_path / "run", *words)
    assert run(recipe, tmp_path / "run", "--row_length", "128", "--max_steps", "1").state.global_step == 1


def test_documents_of_a_pack_do_not_see_each_other(recipe):
    found = read_recipe(recipe)
    section, data = found.model, found.data
    tokenizer = MortmTokenizer()
    source = ExampleSource(SONGS, tokenizer.vocabulary, data, packs=10)
    dataset = PackDataset(source, 4, lambda i: (1, 512), 0)
    index = next(i for i in range(4) if len(dataset.documents(i)[0]) > 1)
    documents = dataset.documents(index)[0]
    pack = dataset[index]
    torch.manual_seed(1)
    model = MortmForCausalLM(MortmConfig(vocab_size=len(tokenizer), **section)).eval()
    with torch.no_grad():
        packed = model(input_ids=pack["input_ids"], position_ids=pack["position_ids"], use_cache=False).logits[0]
        at = 0
        for document in documents:
            alone = model(input_ids=torch.from_numpy(document.ids.astype("int64"))[None], use_cache=False).logits[0]
            assert (packed[at : at + len(document.ids)] - alone).abs().max() < 1e-4
            at += len(document.ids)


def test_shapes_lengthen_late():
    words = ["--rows", "2", "--row_length", "1024", "--long_from_step", "5"]
    data = read_recipe(RECIPES / "starter.yaml", words).data
    shape = pack_shape(data)
    assert shape(4) == (2, 1024) and shape(5) == (1, 2048)
    assert pack_shape(data, packs=2)(9) == (2, 1024) and pack_shape(data, packs=2)(10) == (1, 2048)


def test_starter_recipe():
    found = read_recipe(RECIPES / "starter.yaml", ["--max_steps", "5"])
    section, data, arguments = found.model, found.data, found.training
    MortmConfig(**section)
    assert arguments.max_steps == 5 and arguments.learning_rate == 1e-3 and arguments.adam_beta2 == 0.95
    assert data.weights() == {"pop909": 50, "lieder": 15, "gamemusic": 12, "groove": 10, "chorales": 7, "openewld": 6}
    rules = data.selection().corpora
    assert rules["pop909"].variants == ("aligned",) and rules["gamemusic"].licence == "BSD" and "asap_nc" not in rules


def test_bad_recipes_are_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.yaml"
    for text, word in (
        ("modle: {}", "modle"),
        ("data: {rwos: 1}", "rwos"),
        ("training: {sede: 1}", "sede"),
        ("model: {hiden_size: 32}", "hidden_size"),
        ("data: {corpora: {one: {wieght: 1}}}", "wieght"),
        ("data: {past_bars: 4}", "past_bars"),
        ("data: 3", "data"),
        ("training: {stop_at: 99}", "stop_at"),
        ("training: {max_steps: abc}", "abc"),
        ("task: mlm", "recipe for mlm"),
    ):
        path.write_text(text)
        assert main([str(path)]) == 2
        error = capsys.readouterr().err.strip()
        assert word in error and "\n" not in error
    path.write_text("data: {rows: 1}")
    assert main([str(path), "--output_dir", str(tmp_path / "o")]) == 2
    assert "--data" in capsys.readouterr().err
    assert main([str(tmp_path / "none.yaml")]) == 2
    assert main([]) == 2
