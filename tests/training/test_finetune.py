"""Fine-tuning on a folder: the split, what is refused, and a folder that loads."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import symusic
import torch

from mortm_hf import build_dataset
from mortm_hf.app.cli import main
from mortm_hf.data.checkpoint_songs import read_members
from mortm_hf.models.configuration_bertm import BertmConfig
from mortm_hf.models.configuration_mortm import MortmConfig
from mortm_hf.models.errors_mortm import TrainingError
from mortm_hf.models.modeling_mortm import MortmForCausalLM
from mortm_hf.models.tokenization_mortm import MortmTokenizer
from mortm_hf.training.adapters import add_lora, is_adapted, merged
from mortm_hf.training.finetune import card, finetune, load_tokenizer
from mortm_hf.training.own_songs import read_songs, split_songs
from tests.sample_songs import midi, store


FIXTURES = Path(__file__).parents[1] / "fixtures" / "upstream_models"
SIZES = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, moe_intermediate_size=16,
             shared_expert_intermediate_size=16, num_local_experts=4)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Seven songs, one of them twice, and a file that is no MIDI file."""
    songs = tmp_path / "songs"
    songs.mkdir()
    for seed in range(7):
        (songs / f"{seed}.mid").write_bytes(midi(seed, bars=20))
    (songs / "again.mid").write_bytes(midi(3, bars=20))
    (songs / "broken.mid").write_bytes(b"no music")
    return songs


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tiny")
    MortmForCausalLM(MortmConfig(**SIZES)).save_pretrained(path)
    MortmTokenizer().save_pretrained(path)
    return path


def test_bad_files_and_repeated_songs_are_skipped(folder):
    songs, skipped = read_songs(sorted(folder.iterdir()))
    assert len(songs) == 7
    reasons = {item["file"].rpartition("/")[2]: item["reason"] for item in skipped}
    assert set(reasons) == {"again.mid", "broken.mid"} or set(reasons) == {"3.mid", "broken.mid"}
    assert any("the same notes as" in reason for reason in reasons.values())


@pytest.mark.parametrize(("count", "sizes"), [(3, (2, 0, 1)), (10, (8, 1, 1)), (50, (40, 5, 5))])
def test_songs_are_split_by_their_content(count, sizes):
    songs = store(count, 9).songs
    parts = split_songs(songs, 0.2, 0)
    assert tuple(len(parts[name]) for name in ("train", "validation", "test")) == sizes
    assert sorted(s.path for rows in parts.values() for s in rows) == sorted(s.path for s in songs)
    again = split_songs(songs[::-1], 0.2, 0)  # whatever the order of the files
    assert {k: [s.path for s in v] for k, v in again.items()} == {k: [s.path for s in v] for k, v in parts.items()}
    if count > 10:
        assert [s.path for s in split_songs(songs, 0.2, 1)["test"]] != [s.path for s in parts["test"]]


def test_copies_in_other_keys_stay_together(tmp_path):
    """Nothing is held out of which a copy is trained on."""
    songs = store(12, 9).songs
    copies = [replace(song, song_id=f"{song.song_id}-up", path=f"up/{song.path}") for song in songs]
    parts = split_songs([*songs, *copies], 0.3, 0)
    clusters = [{song.cluster for song in rows} for rows in parts.values()]
    assert not clusters[0] & (clusters[1] | clusters[2]) and not clusters[1] & clusters[2]
    assert sum(map(len, parts.values())) == 24
    files = []
    for shift in (0, 2):
        score = symusic.Score.from_midi(midi(5, 9, drums=False)).shift_pitch(shift)
        files.append(tmp_path / f"{shift}.mid")
        score.dump_midi(files[-1])
    one, other = read_songs(files)[0]
    assert one.cluster == other.cluster and one.song_id != other.song_id


def test_songs_bring_what_stands_beside_them(folder):
    """Chord annotations and metadata of a folder; estimated chords; missing files by name."""
    (folder / "0.lab").write_text("0 2 C:maj\n2 9 G:7\n")
    (folder / "1.lab").write_text("no chords")
    (folder / "metadata.csv").write_text("file_name,genre\n0.mid,jazz\ngone.mid,jazz\n")
    songs, skipped = read_songs([folder])
    by_name = {song.path.rpartition("/")[2]: song for song in songs}
    assert by_name["0.mid"].chord_source == "annotation" and by_name["0.mid"].genre
    assert by_name["1.mid"].chord_source == by_name["2.mid"].chord_source == "estimate"
    assert any("chord annotation is left out" in item["reason"] for item in skipped)
    assert {"file": "gone.mid", "reason": "the metadata names it, but it is no MIDI file"} in skipped
    _, skipped = read_songs([folder / "metadata.csv"])
    assert [item["reason"] for item in skipped] == ["no MIDI file"]
    (folder / "none").mkdir()
    for wrong, words in ((folder / "gone.mid", "is not there"), (folder / "none", "no MIDI file in the folder")):
        with pytest.raises(TrainingError, match=words):
            read_songs([folder / "2.mid", wrong])


def test_a_prepared_data_set_keeps_its_splits(folder, tmp_path):
    (folder / "metadata.csv").write_text(
        "file_name,split\n"
        + "".join(f"{seed}.mid,{('test', 'validation', 'train')[min(seed, 2)]}\n" for seed in range(7))
        + "again.mid,train\n"
    )
    build_dataset(folder, tmp_path / "set", progress=False)
    songs, skipped = read_songs([tmp_path / "set"])
    assert len(songs) == 7 and any("broken.mid" in item["file"] for item in skipped)
    parts = split_songs(songs, 0.2, 0)
    assert [song.path for song in parts["test"]] == ["0.mid"]
    assert [song.path for song in parts["validation"]] == ["1.mid"]
    assert {song.corpus for song in songs} == {"songs"}


def test_labels_are_heeded_and_what_they_leave_open_is_drawn():
    songs = [replace(song, split="test" if i < 3 else "") for i, song in enumerate(store(10, 9).songs)]
    parts = split_songs(songs, 0.4, 0)
    assert {song.path for song in parts["test"]} == {song.path for song in songs[:3]}
    assert len(parts["validation"]) == 2 and len(parts["train"]) == 5
    copy = replace(songs[0], split="train", song_id="copy", cluster="another")
    assert "copy" in {song.song_id for song in split_songs([*songs, copy], 0.4, 0)["test"]}
    with pytest.raises(TrainingError, match="none is left"):
        split_songs(songs[:3], 0.4, 0)


def test_the_same_notes_are_held_out_under_every_name(folder):
    (folder / "+copy.mid").write_bytes(midi(0, bars=20))
    (folder / "metadata.csv").write_text("file_name,split\n0.mid,test\n")
    songs, skipped = read_songs([folder])
    assert any("0.mid" in item["file"] for item in skipped)
    assert [song.path.rpartition("/")[2] for song in split_songs(songs, 0.2, 0)["test"]] == ["+copy.mid"]


def test_too_few_songs():
    with pytest.raises(TrainingError, match="needs 3") as caught:
        split_songs(store(2, 9).songs, 0.2, 0)
    assert caught.value.code == "training.data"


def test_checkpoints_of_upstream(tmp_path):
    """Upstream's dialect on the default table is trained in the metric dialect; upstream's table is refused."""
    model = MortmForCausalLM(MortmConfig(**SIZES))
    model.save_pretrained(tmp_path / "extended")
    MortmTokenizer(dialect="mortm").save_pretrained(tmp_path / "extended")
    tokenizer, notes = load_tokenizer(str(tmp_path / "extended"))
    assert tokenizer.dialect == "metric" and "dialect" in notes[0]
    model.save_pretrained(tmp_path / "upstream")
    MortmTokenizer(preset="pro", dialect="mortm").save_pretrained(tmp_path / "upstream")
    with pytest.raises(TrainingError, match="--extend-vocab"):
        load_tokenizer(str(tmp_path / "upstream"))
    with pytest.raises(TrainingError, match="nowhere"):
        load_tokenizer(str(tmp_path / "nowhere"))
    BertmConfig(**{k: v for k, v in SIZES.items() if "moe" not in k}).save_pretrained(tmp_path / "bertm")
    MortmTokenizer().save_pretrained(tmp_path / "bertm")
    with pytest.raises(TrainingError, match="bertm model"):
        load_tokenizer(str(tmp_path / "bertm"))


def test_an_upstream_checkpoint_learns_the_metric_dialect(tmp_path):
    """`.pth` -> folder with the default table -> fine-tuned: two commands."""
    source, songs = tmp_path / "upstream", tmp_path / "songs"
    shutil.copytree(FIXTURES / "mortm_alibi_silu_rmsnorm_6heads", source)
    songs.mkdir()
    for seed in range(5):  # short ones: its context is of 256 tokens
        (songs / f"{seed}.mid").write_bytes(midi(seed, bars=3, drums=False))
    assert main(["convert", str(source / "model.pth"), "--extend-vocab", "-o", str(tmp_path / "converted")]) == 0
    report = finetune(
        [songs], tmp_path / "mine", tmp_path / "converted", learning_rate=0.01, overrides=["--max_steps", "6"]
    )
    assert report.after["bits_per_note"] < report.before["bits_per_note"] - 1 and "dialect" in report.notes[0]
    tokenizer = MortmTokenizer.from_pretrained(tmp_path / "mine")
    assert tokenizer.dialect == "metric" and len(tokenizer) == 1162


def test_a_context_too_short_for_music_is_refused(folder, tmp_path):
    source = tmp_path / "upstream"
    shutil.copytree(FIXTURES / "mortm_rope_ffn_tanh_long", source)  # 64 tokens
    assert main(["convert", str(source / "model.pth"), "--extend-vocab", "-o", str(tmp_path / "converted")]) == 0
    with pytest.raises(TrainingError, match="rows of 64 tokens"):
        finetune([folder], tmp_path / "mine", tmp_path / "converted")


@pytest.mark.parametrize("sizes", [SIZES, {**SIZES, "mlp_layer_types": ["dense"], "intermediate_size": 32}])
def test_adapters_reach_the_experts_and_merge(sizes):
    torch.manual_seed(0)
    base = MortmForCausalLM(MortmConfig(**sizes)).eval()
    adapted = add_lora(base, 4, 8).eval()
    assert is_adapted(adapted) and not is_adapted(base)
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert all("lora_" in name for name in trained)
    assert any("q_proj" in name for name in trained)
    assert any("experts" in name for name in trained) == ("mlp_layer_types" not in sizes)
    assert any("shared_experts" in name or "mlp.up_proj" in name for name in trained)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.05)
        ids = torch.randint(2, 900, (1, 20))
        before = adapted(ids, use_cache=False).logits
        plain = merged(adapted)
        assert not is_adapted(plain) and not [n for n, _ in plain.named_parameters() if "lora" in n]
        assert torch.allclose(plain(ids, use_cache=False).logits, before, atol=1e-4)
        assert torch.allclose(adapted(ids, use_cache=False).logits, before)


def test_one_command(folder, tiny, tmp_path, capsys):
    """`mortm finetune`: all weights, a folder with card and figures, on songs that were not trained on."""
    out, figures = tmp_path / "mine", tmp_path / "f.json"
    words = ["finetune", str(folder), "-o", str(out), "--model", str(tiny), "--passes", "0.1", "--json", str(figures)]
    assert main([*words, "--learning-rate", "0.01"]) == 0
    told = capsys.readouterr().out
    assert "bits a note on 1 songs held out" in told and "skipped:" in told
    report = json.loads(figures.read_text())
    assert report["after"]["bits_per_note"] < report["before"]["bits_per_note"] - 1  # from random weights: much
    assert report["difference"]["bits_per_note"] == pytest.approx(
        report["after"]["bits_per_note"] - report["before"]["bits_per_note"], abs=1e-6
    )
    assert list(read_members(out).values()).count("train") == len(report["songs"]["train"]) > 0
    paths = [path for rows in report["songs"].values() for path in rows]
    assert len(paths) == len(set(paths)) == 7
    model = MortmForCausalLM.from_pretrained(out)
    assert model.config.use_cache and model.dtype == torch.float32
    assert MortmTokenizer.from_pretrained(out).dialect == "metric"
    assert {"README.md", "finetune.json", "finetune.log.jsonl", "modeling_mortm.py"} <= {p.name for p in out.iterdir()}
    assert str(tmp_path) not in (out / "README.md").read_text()
    assert not out.with_name("mine.run").exists()
    assert main(words) == 2  # it exists
    assert "--overwrite" in capsys.readouterr().err


def test_other_songs_do_not_go_on_with_a_run(folder, tiny, tmp_path):
    (tmp_path / "mine.run").mkdir()
    (tmp_path / "mine.run" / "songs.json").write_text('{"train": ["0"], "validation": []}')
    (tmp_path / "mine.run" / "checkpoint-1").mkdir()
    with pytest.raises(TrainingError, match="other songs"):
        finetune(sorted(folder.glob("*.mid")), tmp_path / "mine", tiny)


@pytest.mark.slow
def test_adapters_are_merged_into_what_is_shipped(folder, tiny, tmp_path):
    files = sorted(folder.glob("*.mid"))
    report = finetune(
        files, tmp_path / "mine", tiny, lora=4, learning_rate=0.02, keep_run=True, overrides=["--max_steps", "12"]
    )
    assert report.steps == 12 and report.after["bits_per_note"] < report.before["bits_per_note"]
    model = MortmForCausalLM.from_pretrained(tmp_path / "mine")
    base = MortmForCausalLM.from_pretrained(tiny)
    moved = {n for (n, p), q in zip(model.named_parameters(), base.parameters()) if not torch.equal(p, q)}
    assert any("experts.gate_up_proj" in n for n in moved) and any("q_proj" in n for n in moved)
    assert not any("embed" in n or "norm" in n or "mlp.gate." in n for n in moved)
    assert (tmp_path / "mine.run" / "log.jsonl").is_file()
    assert "LoRA" in card(report)


def test_before_and_after_are_of_the_same_windows(folder, tiny, tmp_path):
    """Nothing trained (rate next to nothing): the difference is nothing, whatever the figures are."""
    report = finetune(
        sorted(folder.glob("*.mid")), tmp_path / "same", tiny, learning_rate=1e-12, overrides=["--max_steps", "1"]
    )
    assert np.isclose(report.difference["bits_per_note"], 0, atol=1e-4)
    assert report.before["songs"] == report.after["songs"] == 1


@pytest.mark.slow
def test_a_run_with_adapters_is_resumed(tiny, tmp_path, monkeypatch):
    from mortm_hf.training.runlog import RunLog, read_log
    from mortm_hf.training.tasks.pretrain_task import train
    from tests.training.tiny_run import TINY, read_recipe, stores

    (tmp_path / "r.yaml").write_text("data:" + TINY.partition("data:")[2])
    words = ["--init", str(tiny), "--lora_rank", "4", "--max_steps", "4", "--decay_steps", "0"]

    def run(name):
        return train(read_recipe(tmp_path / "r.yaml", [*words, "--output_dir", str(tmp_path / name)]), stores())

    run("whole")
    end = RunLog.on_step_end

    def stop_at_two(self, args, state, control, **kwargs):
        if state.global_step == 2:
            self.stop_soon()
        return end(self, args, state, control, **kwargs)

    monkeypatch.setattr(RunLog, "on_step_end", stop_at_two)
    assert run("parts").state.global_step == 2
    monkeypatch.undo()
    run("parts")
    folders = (tmp_path / "whole", tmp_path / "parts")
    a, b = ({line["step"]: line["loss"] for line in read_log(folder) if "loss" in line} for folder in folders)
    assert a == b and len(a) == 4
    one, other = (MortmForCausalLM.from_pretrained(folder / "final") for folder in folders)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters()))
