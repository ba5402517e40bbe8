"""`mortm data`: from MIDI to a data set, its report, and what is refused."""

import json

import pytest

from mortm_hf import load_songs
from mortm_hf.app.cli import main
from mortm_hf.data.annotations import CHORD_SUFFIXES
from mortm_hf.data.fixed_examples import FixedPacks
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


def test_labels_without_effect_are_told(tmp_path, capsys):
    source = tmp_path / "midi"
    source.mkdir()
    genres = ("rock", "polka", "polka", "waltz")
    rows = [f"{i}.mid,{genre}" for i, genre in enumerate(genres)] + [f"{i}.MID,rock" for i in range(7)]
    (source / "metadata.csv").write_text("\n".join(["file_name,genre", *rows]) + "\n")
    for i in range(4):
        (source / f"{i}.mid").write_bytes(midi(i, 4))
    words = ("data", "build", source, "-o", tmp_path / "songs", "--chords", "none", "--json", tmp_path / "x.json")
    for _ in range(2):  # built, and opened again
        code, _, err = run(capsys, *words)
        assert code == 0 and err.splitlines()[:2] == [
            "genres without a token: polka (2), waltz (1)",
            "metadata rows without a MIDI file: 7 (0.MID, 1.MID, 2.MID, 3.MID, 4.MID, 2 more)",
        ]
    told = json.loads((tmp_path / "x.json").read_text())
    assert told["genres_without_token"] == {"polka": 2, "waltz": 1} and told["metadata_without_file"]["rows"] == 7


def test_nothing_is_left_of_a_build_without_songs(tmp_path, capsys):
    (tmp_path / "bad.mid").write_text("no music")
    assert_refused(run(capsys, "data", "build", tmp_path / "bad.mid", "-o", tmp_path / "songs"), "bad.mid")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.mid"]


def test_copies_in_several_splits_are_told(tmp_path, capsys):
    source = tmp_path / "midi"
    source.mkdir()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (source / f"{name}.mid").write_bytes(midi(seed, 4))
    (source / "metadata.csv").write_text("file_name,split\na.mid,test\n")
    words = ("data", "build", source, "-o", tmp_path / "songs", "--chords", "none", "--validation", 0, "--test", 0)
    code, _, err = run(capsys, *words)
    assert code == 0 and "copies of a song in several splits (label them alike): train: b.mid; test: a.mid" in err
    assert "no song for validation" in err


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
    assert_refused(run(capsys, "data", "build", folder, "-o", tmp_path / "x", "--config", "a"), "configurations")
    assert_refused(run(capsys, "data", "build", folder, "-o", tmp_path / "x", "--revision", "a"), "revisions")
    assert not (tmp_path / "x").exists()


def test_missing_empty_and_damaged_folders_are_one_line(folder, tmp_path, capsys):
    empty, damaged, pack = (tmp_path / name for name in ("empty", "damaged", "pack"))
    for made in (empty, damaged, pack):
        made.mkdir()
    (pack / "manifest.csv").write_text("path,genre\n")
    (damaged / "metadata.jsonl").write_text('{"file_name"\n')
    (damaged / "a.mid").write_bytes(midi(0, 4))
    out = ("-o", tmp_path / "x")
    for source, word in (
        (empty, "no MIDI file"),
        (tmp_path / "no", "not there"),
        (pack, "missing"),
        (damaged, "JSON"),
    ):
        assert_refused(run(capsys, "data", "build", source, *out), source.name, word)
        assert_refused(run(capsys, "data", "stats", source), source.name, word)
    for source in (empty, tmp_path / "no"):
        assert_refused(run(capsys, "data", "push", source, "me/songs"), source.name)
    assert_refused(run(capsys, "data", "stats", folder, "-o", folder / "0.mid"), "0.mid is a file")
    songs = tmp_path / "songs"
    assert run(capsys, "data", "build", folder, "-o", songs, "--chords", "none")[0] == 0
    (songs / "report.json").write_text("{")
    assert_refused(run(capsys, "data", "stats", songs), "songs holds damaged JSON")
    assert_refused(run(capsys, "data", "push", songs, "me/songs"), "songs holds damaged JSON")


def test_help_names_the_chord_files(capsys):
    _, out, _ = run(capsys, "data", "build", "--help")
    for suffix in (*CHORD_SUFFIXES, " chord_midi.txt", "--config", "--revision"):
        assert suffix in out


@pytest.mark.parametrize("words", [("data", "--help"), ("data", "build", "--help"), ("data", "stats", "--help")])
def test_help_has_examples(words, capsys):
    code, out, _ = run(capsys, *words)
    assert code == 0 and "build" in out and (len(words) == 2 or "examples:" in out)
