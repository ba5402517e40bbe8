"""`mortm eval`: bad input in one line, and a whole run on a small pack."""

import json

import pytest

from mortm_hf.app.cli import main
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
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "mortm"}')
    assert "cannot load a model" in refused(capsys, broken, "--data", song.parent)


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
