"""Training on data that no recipe of the package names: MIDI files, prepared songs, fixed examples."""

import shutil

import numpy as np
import pytest

from mortm_hf import build_dataset, load_songs
from mortm_hf.app.cli import main
from mortm_hf.data.checkpoint_songs import read_members
from mortm_hf.data.examples import ExampleRecipe, ExampleSource
from mortm_hf.data.fixed_examples import FixedPacks
from mortm_hf.data.packing import generator
from mortm_hf.evaluation.eval_data import open_data
from mortm_hf.models.errors_mortm import TrainingError
from mortm_hf.models.token_vocabulary import MetricVocabulary, default_tokens
from mortm_hf.training.runlog import read_log
from mortm_hf.training.tasks import read_recipe
from mortm_hf.training.tasks.pretrain_task import make_trainer, train
from tests.sample_songs import midi


TINY = ("--model.hidden_size 32 --model.num_hidden_layers 1 --model.num_attention_heads 2 --row_length 256 "
        "--model.moe_intermediate_size 16 --model.shared_expert_intermediate_size 16 --max_steps 2 --warmup_steps 1 "
        "--eval_tokens 500 --logging_steps 1 --use_cpu True --tensorboard False").split()  # fmt: skip


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """Twelve MIDI files; a metadata file puts two of them into each of validation and test."""
    folder = tmp_path_factory.mktemp("music")
    for seed in range(12):
        (folder / f"{seed}.mid").write_bytes(midi(seed, 20))
    rows = [f"{seed}.mid,{('validation', 'test')[seed % 2] if seed < 4 else 'train'}" for seed in range(12)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,split", *rows]))
    return folder


def test_a_folder_of_midi_files_is_enough(music, tmp_path):
    """`mortm train own`: prepared in the run's folder, validated on the songs held out."""
    run = tmp_path / "run"
    assert main(["train", "own", "--data", str(music), "--output_dir", str(run), *TINY]) == 0
    log = read_log(run)
    bits = [line["eval_bits_per_note"] for line in log if "eval_bits_per_note" in line]
    assert bits and np.isfinite(bits).all() and (run / "final" / "model.safetensors").is_file()
    assert len(list((run / "stores").iterdir())) == 1


def test_a_run_says_what_it_was_made_with(music, tmp_path):
    """So that nothing it heard is called test later."""
    run = tmp_path / "run"
    parts = read_recipe("own", [*TINY, "--data", str(music), "--output_dir", str(run)])
    train(parts)
    members = read_members(run / "final")
    assert sorted(members.values()) == ["train"] * 8 + ["validation"] * 2
    for place in (run / "final", run / "best"):
        assert len(open_data(music, model=place).songs) == 2
    again = tmp_path / "again"  # what the base was made with stays known
    words = ["--init", str(run / "final"), "--max_steps", "1", "--tasks", "{continue: 1}", "--row_length", "256"]
    words += ["--use_cpu", "True", "--warmup_steps", "0", "--tensorboard", "False", "--output_dir", str(again)]
    (tmp_path / "one").mkdir()
    shutil.copy(music / "2.mid", tmp_path / "one")
    build_dataset(tmp_path / "one", tmp_path / "set", shares=(0, 0), progress=False)
    train(read_recipe("finetune", [*words, "--data", str(tmp_path / "set"), "--early_stopping", "0"]))
    assert len(read_members(again / "final")) == 10


def test_without_corpora_songs_count_by_their_bars(tmp_path):
    """Sub-folders are no corpora that would count alike: one song in a folder of its own is one song."""
    folder = tmp_path / "music"
    for seed in range(9):
        place = folder / ("drafts" if seed == 8 else "songs")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{seed}.mid").write_bytes(midi(seed, 10))
    build_dataset(folder, tmp_path / "set", shares=(0, 0), progress=False)
    store = load_songs(tmp_path / "set")
    assert len(store.corpora()) == 2
    vocabulary = MetricVocabulary({token: i for i, token in enumerate(default_tokens())})
    source = ExampleSource(store, vocabulary, ExampleRecipe())
    drafts = next(i for i, song in enumerate(store.songs) if song.path.startswith("drafts"))
    drawn = [source.draw(generator(0, i), 1024).source for i in range(300)]
    assert drawn.count(drafts) < 80  # a ninth of 300 is 33, a half 150


def test_recipes_for_other_corpora_say_so(music, tmp_path, capsys):
    build_dataset(music, tmp_path / "songs", progress=False)
    words = ["--data", str(tmp_path / "songs"), "--output_dir", str(tmp_path / "run"), *TINY]
    assert main(["train", "starter", *words]) == 2
    told = capsys.readouterr().err
    assert "has no train song of pop909" in told and told.count("\n") == 1


@pytest.mark.parametrize("bars", [1, 9])
def test_short_songs_are_validated_on_short_windows(tmp_path, capsys, bars):
    """Windows of four given and four new bars for songs of nine; none at all of one bar is told in one line."""
    music = tmp_path / "music"
    music.mkdir()
    for seed in range(3):
        (music / f"{seed}.mid").write_bytes(midi(seed, bars if seed == 0 else 9))
    (music / "metadata.csv").write_text("file_name,split\n0.mid,validation\n1.mid,train\n2.mid,train\n")
    words = ["--data", str(music), "--output_dir", str(tmp_path / "run"), *TINY]
    if bars == 9:
        assert main(["train", "own", *words]) == 0
        assert any("eval_bits_per_note" in line for line in read_log(tmp_path / "run"))
        assert "final: the model, after 2 steps" in capsys.readouterr().out
    else:
        assert main(["train", "own", *words]) == 2
        assert "no song has 2 bars" in capsys.readouterr().err


def test_fixed_examples_are_what_drawn_ones_would_be(music, tmp_path):
    """`mortm data build --materialize`, then `mortm train --data songs/examples`: the same losses, and the same
    validation on the songs they were drawn from."""
    drawn = ExampleRecipe(row_length=256, rows=2, tasks={"continue": 1.0}, generated_bars=(2, 3), past_bars=(1, 3))
    songs = tmp_path / "songs"
    build_dataset(music, songs, materialize=True, recipe=drawn, packs=4, seed=5, progress=False)
    words = [*TINY, "--seed", "5", "--packs_per_epoch", "4", "--rows", "2", "--tasks", "{continue: 1}"]
    words += ["--generated_bars", "[2, 3]", "--past_bars", "[1, 3]"]
    logs = []
    for data in (songs, songs / "examples"):
        run = tmp_path / f"run-{data.name}"
        # what a kept example is made of does not come from the recipe any more
        more = ["--row_length", "512"] if data.name == "examples" else []
        parts = read_recipe("own", [*words, *more, "--data", str(data), "--output_dir", str(run)])
        trainer = train(parts)
        assert isinstance(trainer.train_dataset, FixedPacks) == bool(more)
        logs.append([(x["step"], x["loss"], x.get("eval_bits_per_note")) for x in read_log(run) if "loss" in x])
    assert logs[0] == logs[1] and len(logs[0]) == 2
    build_dataset(music, tmp_path / "other", materialize=True, recipe=drawn, packs=4, seed=6, progress=False)
    parts = read_recipe("own", [*words, "--data", str(tmp_path / "other/examples"), "--output_dir", str(run)])
    with pytest.raises(TrainingError, match=r"another recipe .*examples:"):
        make_trainer(parts)
    assert len(read_members(tmp_path / "run-examples")) == 10
    shutil.move(songs / "examples", tmp_path / "moved")
    parts = read_recipe("own", [*words, "--data", str(tmp_path / "moved"), "--output_dir", str(tmp_path / "run")])
    with pytest.raises(TrainingError, match="does not lie in the data set"):
        make_trainer(parts)
