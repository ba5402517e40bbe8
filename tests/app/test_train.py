"""`mortm train` and `mortm finetune`: words, refusals, and a run from archives to a folder that loads."""

import pytest

from mortm_hf.app.cli import main
from mortm_hf.evaluation.fixed_windows import Window, write_windows
from mortm_hf.models.modeling_mortm import MortmForCausalLM
from mortm_hf.training.runlog import read_log
from tests.sample_songs import midi, write_pack


RECIPE = """
model:
  {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, moe_intermediate_size: 16,
   shared_expert_intermediate_size: 16, num_local_experts: 4}
data:
  {row_length: 256, rows: 2, packs_per_epoch: 4, corpora: {band: {weight: 1}}}
training:
  {seed: 1, warmup_steps: 1, learning_rate: 0.003, use_cpu: true, logging_steps: 1, save_minutes: 0,
   attention: sdpa_documents, tensorboard: false}
"""


@pytest.fixture
def pack(tmp_path):
    """Four songs to train on, two to validate."""
    folder = tmp_path / "pack"
    folder.mkdir()
    rows, files = [], {}
    for seed in range(6):
        split = "train" if seed < 4 else "validation"
        row = dict(path=f"band/{seed}.mid", archive=f"band-{split}.tar.xz", corpus="band", genre="pop", split=split)
        rows.append(row | dict(variant="original", song_id=str(seed), licence="MIT"))
        files.setdefault(row["archive"], {})[row["path"]] = midi(seed)
    write_pack(folder, rows, files)
    return folder


def test_from_archives_to_a_checkpoint(pack, tmp_path, capsys):
    (tmp_path / "own.yaml").write_text(RECIPE)
    write_windows(tmp_path / "own.csv", [Window("band/4.mid", 0), Window("band/5.mid", 0)])
    run = tmp_path / "run"
    words = ["train", str(tmp_path / "own.yaml"), "--data", str(pack), "--output_dir", str(run)]
    words += ["--max_tokens", "1500", "--eval_windows", "own.csv", "--eval_tokens", "1000"]
    assert main(words) == 0
    lines = read_log(run)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    assert [line["step"] for line in lines if "eval_bits_per_note" in line] == [2, 3]
    MortmForCausalLM.from_pretrained(run / "final")
    capsys.readouterr()
    assert main(words) == 0 and "finished" in capsys.readouterr().out
    assert main([*words, "--row_length", "128"]) == 2
    assert "another recipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "no_such_recipe"], "no recipe no_such_recipe"),
        (["train", "starter", "--output_dir", "{}/r"], "--data"),
        (["train", "starter", "--output_dir", "{}/r", "--data", "{}/nowhere"], "manifest.csv"),
        (["train", "starter", "--output_dir", "{}/r", "--dta", "x"], "--dta"),
        (["train", "starter", "--output_dir", "{}/r", "--max_steps", "abc"], "abc"),
        (["train", "starter", "--output_dir", "{}/r", "--stop_at", "99"], "stop_at"),
        (["train", "starter", "--output_dir", "{}/r", "--model.hiden_size", "32"], "hidden_size"),
        (["train", "finetune", "--output_dir", "{}/r", "--data", "{}"], "mortm finetune"),
        (["train", "rlmf_rules", "--output_dir", "{}/r"], "mortm rlmf"),
        (["finetune", "{}/nowhere", "-o", "{}/o"], "nowhere"),
        (["finetune", "{}", "-o", "{}/o"], "no MIDI file"),
        (["finetune", "{}/song.mid", "-o", "{}/o", "--model", "{}/nowhere"], "nowhere"),
    ],
)
def test_what_can_be_mended_is_one_line(words, told, tmp_path, capsys):
    if "song" in words[1]:
        (tmp_path / "song.mid").write_bytes(midi(1))
    assert main([word.format(tmp_path) for word in words]) == 2
    error = capsys.readouterr().err.strip()
    assert told in error and "\n" not in error and error.startswith("mortm: error:")
    assert not (tmp_path / "o").exists()


def test_fields_are_listed(capsys):
    assert main(["train", "starter", "--fields"]) == 0
    told = capsys.readouterr().out
    assert "--eval_windows" in told and "--tasks" in told and "--model.hidden_size" in told


def test_a_mended_recipe_starts_and_names_its_folder(pack, tmp_path, capsys, monkeypatch):
    """No folder is named, the first start fails; the options say what the recipe could."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text(RECIPE)
    words = ["train", "own.yaml", "--data", str(pack), "--max_steps", "1"]
    assert main([*words, "--tasks", "{contiue: 1}"]) == 2
    assert "contiue" in capsys.readouterr().err
    assert main([*words, "--tasks", "{continue: 1}", "--model.hidden_size", "16"]) == 0
    told = capsys.readouterr()
    assert "runs/own" in told.out and "pin_memory" not in told.err
    assert MortmForCausalLM.from_pretrained(tmp_path / "runs" / "own" / "final").config.hidden_size == 16


@pytest.mark.parametrize("command", ["train", "finetune"])
def test_help_has_examples(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0 and f"mortm {command}" in capsys.readouterr().out.partition("examples:")[2]
