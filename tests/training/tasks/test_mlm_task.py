"""Masked-language-model training: recipes, resuming, and bidirectional attention over documents."""

import json
from pathlib import Path

import pytest
import torch

from mortm_hf.data.encoder_examples import PieceSource
from mortm_hf.data.masking import MaskedPackDataset, MaskingRecipe
from mortm_hf.data.packing import PackDataset
from mortm_hf.models.configuration_bertm import BertmConfig
from mortm_hf.models.modeling_bertm import BertmForMaskedLM, BertmForTokenClassification
from mortm_hf.models.tokenization_mortm import MortmTokenizer
from mortm_hf.training import attention
from mortm_hf.training.recipe import parse_recipe
from mortm_hf.training.run import command_line
from mortm_hf.training.runlog import RunLog
from mortm_hf.training.tasks import mlm_task, task_of
from mortm_hf.training.tasks import run as run_task
from tests.sample_songs import store


TINY = """
task: mlm
model: {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32,
        mlp_layer_types: [dense], router_balancing: none}
pieces: {bare: 0.5, bare_bars: [2, 4]}
masking: {ways: {note: 2, bar: 1, pitch: 1}, attribute_span: [0.5, 1.0]}
data:
  row_length: 256
  rows: 2
  packs_per_epoch: 4
  generated_bars: [2, 3]
  past_bars: [1, 3]
  tasks: {continue: 1}
  corpora: {band: {weight: 1}, lead: {weight: 1}}
training:
  {seed: 7, max_steps: 7, decay_steps: 3, warmup_steps: 2, learning_rate: 0.003, use_cpu: true, logging_steps: 1,
   save_minutes: 0, attention: sdpa_documents}
"""
SONGS = store(4, 12)


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def read(recipe, words=()):
    return parse_recipe(recipe, words, mlm_task.KIND)


def main(words):
    return command_line("mlm", "", lambda recipe, rest: run_task(recipe, rest, "mlm"), words)


def run(recipe, folder, *words):
    return mlm_task.train(read(recipe, ["--output_dir", str(folder), *words]), {"train": SONGS})


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_resumed_run_equals_an_unbroken_one(recipe, tmp_path, monkeypatch):
    whole = run(recipe, tmp_path / "whole")
    end = RunLog.on_step_end

    def stop_at_three(self, args, state, control, **kwargs):
        if state.global_step == 3:
            self.deadline = 0.0
        return end(self, args, state, control, **kwargs)

    monkeypatch.setattr(RunLog, "on_step_end", stop_at_three)
    assert run(recipe, tmp_path / "parts").state.global_step == 3
    monkeypatch.undo()
    torch.manual_seed(12345)
    second = run(recipe, tmp_path / "parts")
    assert second.state.global_step == 7
    for p, q in zip(whole.model.parameters(), second.model.parameters()):
        assert torch.equal(p, q)
    losses = [line["loss"] for line in log_of(tmp_path / "whole") if "loss" in line]
    assert len(losses) == 7 and losses[-1] < losses[0]

    final = tmp_path / "parts" / "final"
    model = BertmForMaskedLM.from_pretrained(final)
    assert MortmTokenizer.from_pretrained(final).vocab_size == model.config.vocab_size == 1162
    with pytest.raises(ValueError, match=r"another recipe .*masking"):
        recipe.write_text(TINY.replace("note: 2", "note: 3"))
        run(recipe, tmp_path / "parts")


def test_documents_do_not_see_each_other_in_training(recipe):
    """The attention of the recipe gives what a block-diagonal mask gives, in both directions."""
    found = read(recipe, ["--output_dir", "unused"])
    section, data, arguments = found.model, found.data, found.training
    pieces, masking = vars(found.others["pieces"]), found.others["masking"]
    vocabulary = MortmTokenizer().vocabulary
    packs = PackDataset(PieceSource(SONGS, vocabulary, data, packs=5, **pieces), 4, lambda i: (2, 256), 0)
    pack = MaskedPackDataset(packs, vocabulary, masking)[0]
    attention.register()
    torch.manual_seed(0)
    config = BertmConfig(vocab_size=len(vocabulary), **{**section, "initializer_range": 0.2})
    model = BertmForMaskedLM._from_config(config, attn_implementation=arguments.attention)
    fast = model(**pack)
    model.set_attn_implementation("eager")
    pack.pop("cu_seq_lens_q")
    slow = model(**pack)
    assert (fast.logits - slow.logits).abs().max() < 1e-5
    assert torch.allclose(fast.loss, slow.loss)
    # and a document alone gives the same: nothing leaks
    length = int((pack["position_ids"][0].diff() != 1).nonzero()[0]) + 1
    alone = model(pack["input_ids"][:1, :length]).logits
    assert (alone - slow.logits[:1, :length]).abs().max() < 1e-5


def test_the_package_recipe_is_read():
    found = read("bertm_small", ["--output_dir", "x"])
    section, data, arguments = found.model, found.data, found.training
    pieces, masking = found.others["pieces"], found.others["masking"]
    config = BertmConfig(**section)
    parameters = sum(p.numel() for p in BertmForMaskedLM(config).parameters())
    assert 1_500_000 < parameters < 2_000_000
    assert pieces.bare == 0.4 and masking.rate == 0.2 and "nottingham" not in data.corpora
    assert isinstance(masking, MaskingRecipe) and arguments.attention == "sdpa_documents"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("note: 2", "notes: 2"), "masking ways"),
        (("bare: 0.5", "bare: 1.5"), "bare"),
        (("bare: 0.5", "naked: 0.5"), "pieces: unknown fields: naked"),
        (("ways:", "way:"), "masking: unknown fields: way (is ways meant?)"),
        (("task: mlm", "task: classify"), "recipe for classify"),
        (("pieces:", "parts:"), "unknown sections: parts"),
        (("seed: 7", "sede: 7"), "unknown fields: sede"),
    ],
)
def test_faults_of_a_recipe_are_named(recipe, tmp_path, change, said, capsys, monkeypatch):
    recipe.write_text(TINY.replace(*change))
    monkeypatch.setattr("mortm_hf.training.songs.build_store", lambda *a: SONGS)
    assert main([str(recipe), "--output_dir", str(tmp_path / "run"), "--data", "pack", "--max_steps", "1"]) == 2
    assert said in capsys.readouterr().err


def test_a_run_goes_on_from_a_finished_model(recipe, tmp_path):
    run(recipe, tmp_path / "one", "--max_steps", "1")
    start = BertmForMaskedLM.from_pretrained(tmp_path / "one" / "final").state_dict()
    words = ("--init", str(tmp_path / "one" / "final"), "--max_steps", "1", "--learning_rate", "0")
    same = run(recipe, tmp_path / "two", *words).model.state_dict()
    assert start.keys() == same.keys() and all(torch.equal(start[k], same[k]) for k in start)
    recipe.write_text(TINY.replace("intermediate_size: 32", "intermediate_size: 64"))
    with pytest.raises(ValueError, match="intermediate_size 32, not 64"):
        run(recipe, tmp_path / "three", *words)
    with pytest.raises(ValueError, match="cannot load"):
        run(recipe, tmp_path / "four", "--init", str(tmp_path / "nowhere"))


def test_wrong_notes_are_found_by_a_token_classifier(recipe, tmp_path):
    recipe.write_text(TINY.replace("masking: {ways: {note: 2, bar: 1, pitch: 1}, attribute_span: [0.5, 1.0]}",
                                   "replacing: {rate: [0.1, 0.3]}"))  # fmt: skip
    trainer = run(recipe, tmp_path / "run", "--max_steps", "2")
    model = BertmForTokenClassification.from_pretrained(tmp_path / "run" / "final")
    assert model.config.id2label == {0: "right", 1: "wrong"}
    pack = trainer.train_dataset[0]
    with torch.no_grad():
        out = trainer.model.eval()(**pack)
    use = pack["labels"] >= 0
    expected = torch.nn.functional.cross_entropy(out.logits[use], pack["labels"][use])
    assert torch.allclose(out.loss, expected, atol=1e-5) and 0.02 < pack["labels"][use].float().mean() < 0.3
    for wrong, said in (
        ("replacing: {generator: nowhere}", "cannot load a model from nowhere"),
        ("replacing: {rate: 2}", "rate"),
    ):
        recipe.write_text(
            TINY.replace("masking: {ways: {note: 2, bar: 1, pitch: 1}, attribute_span: [0.5, 1.0]}", wrong)
        )
        with pytest.raises(ValueError, match=said):
            run(recipe, tmp_path / "other")
    recipe.write_text(TINY + "replacing: {}\n")
    with pytest.raises(ValueError, match="two tasks"):
        run(recipe, tmp_path / "two")
    found = read("bertm_notes", ["--output_dir", "x"])
    assert "groove" not in found.data.corpora and found.training.init == "bertm-small"


def test_a_run_without_data_says_so(recipe, tmp_path, capsys):
    assert main([str(recipe), "--output_dir", str(tmp_path / "run")]) == 2
    assert "--data" in capsys.readouterr().err
    assert main([str(recipe), "--output_dir", str(tmp_path / "two"), "--data", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert main([str(Path("no") / "such.yaml")]) == 2
    assert "such.yaml" in capsys.readouterr().err


def test_a_recipe_names_its_task(recipe, tmp_path, monkeypatch):
    """`mortm train` does what the recipe says."""
    from mortm_hf.app.cli import main as mortm

    assert [task_of(name) for name in ("starter", "bertm_small", "bertm_genre", "bertm_quality")] == [
        *("pretrain", "mlm", "classify", "classify")
    ]
    done = []
    monkeypatch.setattr("mortm_hf.training.tasks.run", lambda *given: done.append(given))
    assert mortm(["train", str(recipe), "--output_dir", str(tmp_path / "run")]) == 0
    assert done == [(str(recipe), ["--output_dir", str(tmp_path / "run")])]
    monkeypatch.undo()
    recipe.write_text("task: sing")
    assert mortm(["train", str(recipe)]) == 2
