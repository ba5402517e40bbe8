"""`mortm eval`: bad input in one line, and a whole run on a small pack."""

import json

import pytest

from mortm_hf import BERTM, build_dataset
from mortm_hf.app.cli import main
from mortm_hf.data.checkpoint_songs import write_members
from mortm_hf.data.song_reading import fingerprint
from mortm_hf.evaluation.eval_data import open_data
from mortm_hf.models.midi_files import read_midi
from tests.sample_songs import midi, write_pack


pytest.importorskip("muspy")
pytest.importorskip("mir_eval")


def refused(capsys, *words) -> str:
    assert main(["eval", *map(str, words)]) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and not told.out
    return told.err


def test_bad_input_is_one_line(tiny_model, song, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no folder" in refused(capsys, tmp_path / "gone", "--data", song.parent)
    assert "--parts takes bits" in refused(capsys, tiny_model, "--data", song.parent, "--parts", "bits,taste")
    assert "no MIDI file" in refused(capsys, empty, "--data", song.parent)
    assert "no folder" in refused(capsys, tiny_model, "--data", tmp_path / "gone")
    assert "no MIDI file" in refused(capsys, tiny_model, "--data", empty)
    assert "--split out" in refused(capsys, tiny_model, "--data", song.parent, "--split", "test")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "mortm"}')
    assert "cannot load a model" in refused(capsys, broken, "--data", song.parent)


def test_an_encoder_is_refused(song, capsys):
    assert "holds a bertm model" in refused(capsys, BERTM, "--data", song.parent)


def test_data_without_long_songs_is_refused(tiny_model, tmp_path, capsys):
    (tmp_path / "short.mid").write_bytes(midi(0, bars=9))
    (tmp_path / "text.mid").write_text("no music")
    assert "no song of 16 bars" in refused(capsys, tiny_model, "--data", tmp_path)


@pytest.fixture
def pack(tmp_path):
    """A pack with two songs a split, all of the corpus `lieder`, and a recipe that names it."""
    folder = tmp_path / "pack"
    folder.mkdir()
    rows, files = [], {}
    for number, split in enumerate(("train", "validation", "test")):
        archive = f"lieder-{split}.tar.xz"
        files[archive] = {}
        for seed in (2 * number, 2 * number + 1):
            path = f"lieder/{seed}.mid"
            files[archive][path] = midi(seed, 34)
            rows.append({"path": path, "archive": archive, "corpus": "lieder", "split": split, "song_id": seed})
    write_pack(folder, rows, files)
    recipe = tmp_path / "small.yaml"
    recipe.write_text("model: {}\ndata:\n  corpora: {lieder: {weight: 1}}\ntraining: {}\n")
    return folder, recipe


def test_a_whole_run(pack, tiny_model, tmp_path, capsys):
    folder, recipe = pack
    words = [tiny_model, "--data", folder, "--recipe", recipe, "--quick", "--samples", "2", "--windows", "1"]
    report = tmp_path / "report"
    assert main(["eval", *map(str, words), "-o", str(report), "--json", str(tmp_path / "f.json")]) == 0
    text = capsys.readouterr().out
    assert "## Bits a note" in text and "no song of the split has annotated chords" in text
    found = json.loads((tmp_path / "f.json").read_text())
    assert found == json.loads((report / "report.json").read_text())
    assert found["control"]["samples"]["bars"]["value"] == 1.0 and found["about"]["checkpoint"]
    assert found["music"]["copying"]["train_songs"] == 2
    names = sorted(p.name for p in report.iterdir())
    assert names == [
        "bits.png",
        "cache",
        "control.png",
        "distributions.png",
        "figures.png",
        "report.json",
        "report.md",
    ]
    assert (report / "report.md").read_text().startswith(f"# Evaluation of {tiny_model.name}")


def test_a_folder_of_midi_files(pack, tmp_path, capsys):
    folder, recipe = pack
    made = tmp_path / "made"
    made.mkdir()
    (made / "one.mid").write_bytes(midi(50, 10))
    (made / "bad.mid").write_text("no music")
    assert main(["eval", str(made), "--data", str(folder), "--recipe", str(recipe), "--quick", "--samples", "3"]) == 0
    text = capsys.readouterr().out
    assert "1 MIDI files (1 could not be read)" in text and "## The music" in text and "## Bits" not in text
    assert "bad.mid" in text


def measured(tmp_path, *words) -> dict:
    """The figures of a quick look at bits a note."""
    target = tmp_path / "figures.json"
    assert main(["eval", *map(str, words), "--quick", "--parts", "bits", "--windows", "0", "--json", str(target)]) == 0
    return json.loads(target.read_text())


def test_a_prepared_data_set_and_the_folder_of_a_run(pack, tiny_model, tmp_path, capsys):
    """Both give what the pack and the checkpoint itself give."""
    folder, recipe = pack
    build_dataset(folder, tmp_path / "songs", chords="annotated", progress=False)
    run = tmp_path / "mine"
    run.mkdir()
    (run / "final").symlink_to(tiny_model)
    expected = measured(tmp_path, tiny_model, "--data", folder, "--recipe", recipe)
    found = measured(tmp_path, run, "--data", tmp_path / "songs")
    assert found["bits"] == expected["bits"] and found["bits"]["by_corpus"]["macro"]["songs"] == 2
    assert found["about"]["name"] == "mine" and "split test" in found["about"]["data"]
    (run / "made").mkdir()
    (run / "made" / "one.mid").write_bytes(midi(1))
    build_dataset(run / "made", tmp_path / "one", shares=(0, 0), progress=False)
    capsys.readouterr()
    assert "--split takes train" in refused(capsys, tiny_model, "--data", tmp_path / "one")


def names_of(data) -> list[str]:
    return [song.path.rpartition("/")[2] for song in data.songs.songs]


def test_songs_that_a_model_was_made_with_are_not_measured_on(tiny_model, tmp_path):
    """Whatever they are called now, and wherever they lie: songs are known by their notes."""
    songs, model = tmp_path / "songs", tmp_path / "model"
    songs.mkdir()
    model.mkdir()
    marks = []
    for seed in range(4):
        (songs / f"renamed-{seed}.mid").write_bytes(midi(seed, 20))
        marks.append(fingerprint(read_midi(songs / f"renamed-{seed}.mid")))
    write_members(model, {marks[0]: "train", marks[1]: "validation"})
    data = open_data(songs, model=model)
    assert names_of(data) == ["renamed-2.mid", "renamed-3.mid"] and "but 2 songs" in data.name
    assert [song.path.rpartition("/")[2] for song in data.train_songs.songs] == ["renamed-0.mid"]
    assert {window.path for window in data.windows} == {song.path for song in data.songs.songs}
    assert names_of(open_data(songs, "validation", model=model)) == ["renamed-1.mid"]
    assert len(open_data(songs, model=tiny_model).songs) == 4
    build_dataset(songs, tmp_path / "set", shares=(0, 0), progress=False)  # where all of it is called train
    assert names_of(open_data(tmp_path / "set", model=model)) == ["renamed-2.mid", "renamed-3.mid"]
    splits = [f"renamed-{seed}.mid,{'train' if seed == 3 else 'test'}" for seed in range(4)]
    (songs / "metadata.csv").write_text("\n".join(["file_name,split", *splits]))
    build_dataset(songs, tmp_path / "other", progress=False)  # a set of its own splits keeps them
    assert names_of(open_data(tmp_path / "other", model=model)) == ["renamed-2.mid"]
    assert names_of(open_data(tmp_path / "other", "train", model=model)) == ["renamed-3.mid"]
    (model / "songs.json").write_text("[]")
    with pytest.raises(ValueError, match="damaged"):
        open_data(songs, model=model)


def test_a_guess_is_no_annotation(song, tmp_path):
    """Chords that the recogniser estimated are not held against a model."""
    build_dataset(song.parent, tmp_path / "set", shares=(0, 0), progress=False)
    for data in (open_data(tmp_path / "set", "train"), open_data(song.parent)):
        assert all(s.score.chords is None or s.chord_source != "estimate" for s in data.songs.songs)
