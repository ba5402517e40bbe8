"""`mortm data`: from MIDI to a data set, its report, and what is refused."""

import json

import pytest

from mortm_hf import load_songs
from mortm_hf.app.cli import main
from mortm_hf.data import FixedPacks
from tests.sample_songs import midi


def run(capsys, *args) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    try:
        code = main([str(arg) for arg in args])
    except SystemExit as stop:  # argparse
        code = stop.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def assert_refused(result, *words):
    code, _, error = result
    lines = error.strip().splitlines()
    assert code == 2 and len(lines) == 1 and "error: " in lines[0], error
    for word in words:
        assert word in lines[0], error


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("midi")
    for i in range(4):
        (out / f"{i}.mid").write_bytes(midi(i, 18))
    (out / "bad.mid").write_bytes(b"MThd")
    return out


def test_build_and_stats(folder, tmp_path, capsys):
    words = ("data", "build", folder, "-o", tmp_path / "songs", "--validation", 0, "--test", 0)
    code, out, err = run(capsys, *words, "--json", tmp_path / "x.json")
    assert code == 0 and "train: 4 songs, 72 bars" in out and "5 files, 1 skipped" in out
    assert err.count("skipped:") == 1 and "bad.mid" in err
    told = json.loads((tmp_path / "x.json").read_text())
    assert told["files"] == 5 and told["skipped"][0]["file"] == "bad.mid"
    songs = load_songs(tmp_path / "songs", "train")
    assert len(songs) == 4 and all(s.chord_source == "estimate" for s in songs.songs)
    code, out, _ = run(capsys, *words)  # once more: nothing to do
    assert code == 0 and "train: 4 songs" in out
    report = tmp_path / "report"
    code, out, _ = run(capsys, "data", "stats", tmp_path / "songs", "-o", report, "--windows", 3)
    assert code == 0 and "report.md" in out and (report / "meters.png").is_file()
    assert json.loads((report / "stats.json").read_text())["songs"] == 4
    assert "bad.mid" in (report / "report.md").read_text()


def test_stats_of_a_folder_keep_nothing(folder, tmp_path, capsys):
    before = sorted(folder.iterdir())
    code, out, _ = run(capsys, "data", "stats", folder, "--windows", 2, "--json", tmp_path / "f.json")
    assert code == 0 and out.startswith(f"# {folder}") and "4 songs" in out
    assert json.loads((tmp_path / "f.json").read_text())["skipped"] == {"midi.unreadable": 1}
    assert sorted(folder.iterdir()) == before


@pytest.mark.slow
def test_fixed_examples(folder, tmp_path, capsys):
    recipe = tmp_path / "own.yaml"
    recipe.write_text("data: {row_length: 600, rows: 1, tasks: {infill: 1.0}}\n")
    words = ("--chords", "none", "--validation", 0, "--test", 0, "--materialize", "--packs", 2, "--recipe", recipe)
    code, out, err = run(capsys, "data", "build", folder, "-o", tmp_path / "songs", *words)
    assert code == 0 and "examples/train: 2 rows, " in out, err
    assert len(FixedPacks(tmp_path / "songs" / "examples" / "train")) == 2
    recipe.write_text("data: {rows_length: 600}\n")
    assert_refused(run(capsys, "data", "build", folder, "-o", tmp_path / "two", *words), "rows_length")


def test_refusals(folder, tmp_path, capsys):
    assert_refused(run(capsys, "data", "build", tmp_path / "nowhere", "-o", tmp_path / "x"), "nowhere", "is not there")
    assert_refused(run(capsys, "data", "build", folder, "-o", tmp_path / "x", "--packs", 3), "--materialize")
    assert_refused(
        run(capsys, "data", "build", folder, "-o", tmp_path / "x", "--validation", 0.8, "--test", 0.5), "shares"
    )
    assert_refused(run(capsys, "data", "build", folder, "-o", tmp_path / "x", "--corpora", "pop"), "training pack")
    assert_refused(run(capsys, "data", "build", folder, "-o", folder), "something else")
    assert_refused(run(capsys, "data", "stats", tmp_path / "nowhere"), "nowhere")
    assert_refused(run(capsys, "data", "push", folder, "me/songs"), "is no data set")
    assert_refused(run(capsys, "data", "push", folder, "songs"), "owner/name")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("words", [("data", "--help"), ("data", "build", "--help"), ("data", "stats", "--help")])
def test_help_has_examples(words, capsys):
    code, out, _ = run(capsys, *words)
    assert code == 0 and "build" in out and (len(words) == 2 or "examples:" in out)
