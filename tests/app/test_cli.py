"""The command line: what it writes, and what it refuses.

Example: python -m pytest tests/app/test_cli.py
"""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import symusic

from mortm_hf import MortmTokenizer
from mortm_hf.app.cli import main


def run(capsys, *args) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    try:
        code = main([str(arg) for arg in args])
    except SystemExit as stop:  # argparse
        code = stop.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def assert_refused(result, *words):
    """Exit code 2 and one line that names the trouble."""
    code, _, error = result
    lines = error.strip().splitlines()
    assert code == 2, error
    assert len(lines) == 1 and lines[0].startswith("mortm") and "error: " in lines[0], error
    for word in words:
        assert word in lines[0], error


# ------------------------------------------------------------------------------------------------------------- in all


def test_help_is_light_and_has_examples():
    """Importing the command line loads neither torch nor transformers; every command shows examples."""
    code = "import sys; from mortm_hf.app.cli import build_parser; build_parser(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
    for command in ("generate", "tokenize", "info"):
        shown = subprocess.run(
            [sys.executable, "-m", "mortm_hf", command, "--help"], capture_output=True, text=True, check=True
        ).stdout
        assert "examples:" in shown and f"mortm {command}" in shown


def test_help_tells_the_defaults_of_the_pipeline(capsys):
    from mortm_hf.models.generation_windows import PAST_BARS
    from mortm_hf.models.pipeline_mortm import SAMPLING_DEFAULTS

    _, shown, _ = run(capsys, "generate", "--help")
    shown = " ".join(shown.split())
    assert f"safer (default: {SAMPLING_DEFAULTS['temperature']:g})" in shown
    assert f"probability (default: {SAMPLING_DEFAULTS['top_p']:g})" in shown
    assert f"listen to (default: {PAST_BARS})" in shown
    assert SAMPLING_DEFAULTS["do_sample"] and not SAMPLING_DEFAULTS["top_k"]


def test_every_word_of_the_pipeline_is_an_option():
    from mortm_hf.app.generate import REQUEST
    from mortm_hf.models.pipeline_mortm import FUTURE_BARS, WINDOW_BARS, MidiGenerationPipeline

    assert {*MidiGenerationPipeline._options[0], *MidiGenerationPipeline._options[2]} <= set(REQUEST)
    assert (FUTURE_BARS, WINDOW_BARS) == (4, 8)  # as --help says


@pytest.mark.parametrize(
    "args, words",
    [
        ([], ["COMMAND"]),
        (["compose"], ["compose"]),
        (["generate"], ["-o"]),
        (["generate", "-o", "x.wav"], [".mid"]),
        (["generate", "-o", "x.mid", "--bars", "0"], ["--bars", "at least 1"]),
        (["generate", "-o", "x.mid", "--bars", "-3"], ["--bars", "at least 1"]),
        (["generate", "-o", "x.mid", "--temperature", "0"], ["--temperature", "above 0"]),
        (["generate", "-o", "x.mid", "--top-p", "1.5"], ["--top-p", "at most 1"]),
        (["generate", "-o", "x.mid", "--infill", "8"], ["A:B"]),
        (["generate", "-o", "x.mid", "--infill", "8:8"], ["A:B"]),
        (["generate", "-o", "x.mid", "--infill", "2:4"], ["need a MIDI file"]),
        (["generate", "-o", "x.mid", "--start", "4"], ["need a MIDI file"]),
        (["tokenize", "x.mid", "-o", "x.txt"], [".jsonl or .npz"]),
    ],
)
def test_wrong_options(capsys, tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    assert_refused(run(capsys, *args), *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["generate", "tokenize", "info"])
@pytest.mark.parametrize("what", ["text", "empty", "missing"])
def test_unreadable_midi(capsys, tmp_path, bad_files, command, what):
    outputs = {"generate": ["-o", tmp_path / "x.mid"], "tokenize": ["-o", tmp_path / "x.npz"]}
    assert_refused(run(capsys, command, bad_files[what], *outputs.get(command, [])), bad_files[what].name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["generate", "tokenize"])
def test_unwritable_output(capsys, tmp_path, song, command):
    suffix = {"generate": ".mid", "tokenize": ".npz"}[command]
    assert_refused(run(capsys, command, song, "-o", tmp_path / "no" / f"x{suffix}"), "does not exist")
    blocked = tmp_path / f"folder{suffix}"
    blocked.mkdir()
    assert_refused(run(capsys, command, song, "-o", blocked), "is a folder")
    assert [p.name for p in tmp_path.iterdir()] == [blocked.name]


def test_being_ended_leaves_nothing(capsys, tmp_path, song, monkeypatch):
    monkeypatch.setattr("mortm_hf.app.info.describe", lambda midi: os.kill(os.getpid(), signal.SIGTERM))
    assert run(capsys, "info", song, "--json", tmp_path / "x.json")[0] == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# --------------------------------------------------------------------------------------------------------------- info


def test_info_shows_the_song(capsys, song, tmp_path):
    code, shown, _ = run(capsys, "info", song, "--json", tmp_path / "info.json")
    assert code == 0
    for fact in ("21 (3/4 x 21)", "0:50", "G major", "404 in 2 tracks", "Voice Oohs", "62 to 80"):
        assert fact in shown
    facts = json.loads((tmp_path / "info.json").read_text())
    assert facts["bars"] == 21 and facts["key_from"] == "file" and facts["notes"] == 404
    assert [(t["instrument"], t["notes"]) for t in facts["tracks"]] == [
        ("Voice Oohs", 66),
        ("Acoustic Grand Piano", 338),
    ]


def test_info_counts_drums_and_meter_changes(capsys, band, tmp_path):
    code, shown, _ = run(capsys, "info", band, "--json", tmp_path / "info.json")
    facts = json.loads((tmp_path / "info.json").read_text())
    assert code == 0 and "(estimated)" in shown
    assert facts["meters"] == [{"bar": 0, "bars": 6, "meter": "4/4"}, {"bar": 6, "bars": 2, "meter": "3/4"}]
    assert facts["key"] == "C major" and facts["key_from"] == "estimate"
    assert facts["tracks"][1] == {
        "track": 1,
        "name": "Kit",
        "instrument": "Drums",
        "program": None,
        "notes": 30,
        "lowest": None,
        "highest": None,
    }


def test_drums_have_no_key(capsys, tmp_path):
    score = symusic.Score(480)
    drums = symusic.Track("Kit", 0, True)
    drums.notes.append(symusic.Note(0, 120, 36, 100))
    score.tracks.append(drums)
    score.dump_midi(str(tmp_path / "drums.mid"))
    code, shown, _ = run(capsys, "info", tmp_path / "drums.mid", "--json", tmp_path / "info.json")
    assert code == 0 and "key     none" in shown
    assert json.loads((tmp_path / "info.json").read_text())["key"] is None


# ----------------------------------------------------------------------------------------------------------- tokenize


def test_a_batch_goes_on_after_bad_files(capsys, tmp_path, song, band, bad_files):
    output, counts = tmp_path / "ids.jsonl", tmp_path / "counts.json"
    files = [bad_files["text"], song, bad_files["silent"], band, bad_files["missing"]]
    code, shown, error = run(capsys, "tokenize", *files, "-o", output, "--tokens", "--json", counts)
    assert code == 0 and "2 files" in shown and "3 skipped" in shown
    lines = error.splitlines()
    assert len(lines) == 3 and all(line.startswith("skipped: ") for line in lines)
    assert all(str(bad_files[name]) in line for name, line in zip(("text", "silent", "missing"), lines))
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    tokenizer = MortmTokenizer()
    assert [row["file"] for row in rows] == [str(song), str(band)]
    assert [row["input_ids"] for row in rows] == [tokenizer.encode_midi(song), tokenizer.encode_midi(band)]
    assert rows[0]["tokens"] == tokenizer.convert_ids_to_tokens(rows[0]["input_ids"])
    report = json.loads(counts.read_text())
    assert report["files"] == 2 and report["tokens"] == sum(len(row["input_ids"]) for row in rows)
    assert [item["file"] for item in report["skipped"]] == [str(files[0]), str(files[2]), str(files[4])]
    assert all(item["reason"] and item["code"].startswith("midi.") for item in report["skipped"])


def test_npz_holds_every_file_of_a_folder(capsys, tmp_path, band, song):
    folder = tmp_path / "in"
    folder.mkdir()
    for index, source in enumerate((song, band)):
        (folder / f"{index}.mid").write_bytes(source.read_bytes())
    (folder / "2.mid").write_bytes(b"broken")
    code, _, _ = run(capsys, "tokenize", folder, "-o", tmp_path / "ids.npz", "--bars", "0:4")
    assert code == 0
    with np.load(tmp_path / "ids.npz", allow_pickle=False) as stored:
        assert [name.rsplit("/", 1)[-1] for name in stored["files"]] == ["0.mid", "1.mid"]
        offsets, ids = stored["offsets"], stored["input_ids"]
    tokenizer = MortmTokenizer()
    for index, source in enumerate((song, band)):
        expected = tokenizer.encode_midi(source, bars=(0, 4))
        assert ids[offsets[index] : offsets[index + 1]].tolist() == expected
    assert offsets[-1] == len(ids)


def test_strict_stops_and_leaves_no_file(capsys, tmp_path, song, bad_files):
    output = tmp_path / "ids.jsonl"
    assert_refused(run(capsys, "tokenize", song, bad_files["text"], "-o", output, "--strict"), "text.mid")
    assert not list(tmp_path.iterdir())


def test_options_no_file_can_satisfy(capsys, tmp_path, song):
    output = tmp_path / "ids.npz"
    assert_refused(run(capsys, "tokenize", song, "-o", output, "--key", "H moll"), "H moll")
    assert_refused(run(capsys, "tokenize", song, "-o", output, "--bars", "90:99"), "90:99")
    assert_refused(run(capsys, "tokenize", song, "-o", output, "--tokens"), "--tokens needs")
    assert_refused(run(capsys, "tokenize", song, "-o", output, "--model", tmp_path / "none"), "tokenizer")
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------------------------- generate


def test_continue_with_sound_and_picture(capsys, tmp_path, band, tiny_model):
    output = tmp_path / "new.mid"
    args = ["generate", band, "-o", output, "--model", tiny_model, "--start", 4, "--bars", 2, "--seed", 3]
    code, shown, error = run(capsys, *args, "--wav", "--png", "--json", tmp_path / "run.json")
    assert code == 0, error
    assert shown.strip() == f"{output}, {tmp_path / 'new.wav'}, {tmp_path / 'new.png'}"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.mid", "new.png", "new.wav", "run.json"]
    before, after = symusic.Score(str(band)), symusic.Score(str(output))
    kept = [(n.time, n.pitch) for n in before.tracks[0].notes if n.time < 4 * 1920]
    found = [(n.time * 480 // after.tpq, n.pitch) for n in after.tracks[0].notes]
    assert found[: len(kept)] == kept  # the given bars are untouched
    new = [n.time for track in after.tracks for n in track.notes if n.time >= 4 * 1920 * after.tpq // 480]
    assert new and max(new) < 6 * 1920 * after.tpq // 480
    figures = json.loads((tmp_path / "run.json").read_text())
    assert figures["request"] == {"bars": 2, "start": 4, "seed": 3}
    assert figures["outputs"][0]["bars"] == [4, 6] and figures["seconds"] > 0
    assert figures["outputs"][0]["tracks"] == [{"name": t.name, "notes": len(t.notes)} for t in after.tracks]
    ids = figures["outputs"][0]["token_ids"]
    MortmTokenizer().decode_midi(ids["prompt"] + ids["generated"], strict=True)


def test_same_seed_same_bytes_and_several_versions(capsys, tmp_path, tiny_model):
    args = ["--model", tiny_model, "--bars", 2, "--instruments", "piano,drums", "--key", "A minor", "--meter", "3/4"]
    args += ["--tempo", 96, "--chords", "Am F", "--seed", 5, "--num", 2]
    assert run(capsys, "generate", "-o", tmp_path / "a.mid", *args)[0] == 0
    assert run(capsys, "generate", "-o", tmp_path / "b.mid", *args)[0] == 0
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert sorted(files) == ["a-1.mid", "a-2.mid", "b-1.mid", "b-2.mid"]
    assert files["a-1.mid"] == files["b-1.mid"] and files["a-2.mid"] == files["b-2.mid"]
    assert files["a-1.mid"] != files["a-2.mid"]
    score = symusic.Score.from_midi(files["a-1.mid"])
    first = score.time_signatures[0]
    assert (first.numerator, first.denominator) == (3, 4)
    assert sorted((t.is_drum, t.program) for t in score.tracks) == [(False, 0), (True, 0)]
    assert abs(score.tempos[0].qpm - 96) < 4  # the nearest tempo token


def test_fast_decoding_writes_the_same(capsys, tmp_path, tiny_model):
    args = ["--model", tiny_model, "--bars", 1, "--instruments", "piano", "--seed", 5]
    for name, more in (("a", []), ("b", ["--fast", "fp32"]), ("c", ["--fast", "int8"])):
        assert run(capsys, "generate", "-o", tmp_path / f"{name}.mid", *args, *more)[0] == 0
    assert (tmp_path / "a.mid").read_bytes() == (tmp_path / "b.mid").read_bytes()
    assert symusic.Score.from_midi((tmp_path / "c.mid").read_bytes()).note_num() > 0


def test_only_the_new_bars(capsys, tmp_path, band, tiny_model):
    output = tmp_path / "new.mid"
    args = ["--start", 4, "--bars", 2, "--instruments", "piano", "--scale", "C major", "--pitch-range", "60:72"]
    args += ["--new-bars-only", "--png", "--model", tiny_model, "--seed", 1]
    assert run(capsys, "generate", band, "-o", output, *args)[0] == 0
    (track,) = symusic.Score(str(output)).tracks
    assert 0 <= min(n.time for n in track.notes) and max(n.time for n in track.notes) < 2 * 1920
    assert {n.pitch for n in track.notes} <= {60, 62, 64, 65, 67, 69, 71, 72}


def test_infill_keeps_the_other_bars(capsys, tmp_path, band, tiny_model):
    output = tmp_path / "new.mid"
    assert run(capsys, "generate", band, "-o", output, "--infill", "2:4", "--model", tiny_model, "--seed", 1)[0] == 0
    before, after = symusic.Score(str(band)), symusic.Score(str(output))
    for old, new in zip(before.tracks, after.tracks):
        outside = [
            [(n.time, n.pitch, n.duration, n.velocity) for n in track.notes if not 2 * 1920 <= n.time < 4 * 1920]
            for track in (old, new)
        ]
        assert outside[0] == outside[1]


@pytest.mark.parametrize(
    "args, words",
    [
        (["--instruments", "kazoo choir"], ["kazoo choir"]),
        (["--key", "H major"], ["H major"]),
        (["--chords", "C Xyz"], ["Xyz"]),
        (["--meter", "4/5"], ["4/5"]),
        (["--meter", "three"], ["three"]),
        (["--start", "99"], ["99"]),
        (["--infill", "90:99"], ["90"]),
        (["--tracks", "7"], ["7"]),
        (["--genre", "polkacore"], ["polkacore"]),
        (["--density", "11"], ["11"]),
        (["--pitch-range", "60:300"], ["300"]),
        (["--scale", "H major"], ["H major"]),
    ],
)
def test_requests_that_make_no_sense(capsys, tmp_path, band, tiny_model, args, words):
    result = run(capsys, "generate", band, "-o", tmp_path / "x.mid", "--bars", 2, "--model", tiny_model, *args)
    if "--infill" in args:
        result = run(capsys, "generate", band, "-o", tmp_path / "x.mid", "--model", tiny_model, *args)
    assert_refused(result, *words)
    assert not list(tmp_path.iterdir())


def test_prompt_longer_than_the_context(capsys, tmp_path, tiny_model):
    """Constant tracks are never cut, and this single bar takes more than 1024 tokens."""
    score = symusic.Score(480)
    track = symusic.Track("crowd", 0, False)
    for step in range(96):
        for pitch in (60, 64, 67, 72):
            track.notes.append(symusic.Note(step * 20, 20, pitch, 90))
    score.tracks.append(track)
    score.dump_midi(str(tmp_path / "crowd.mid"))
    args = ["--start", 0, "--bars", 1, "--tracks", 0, "--instruments", "bass", "--model", tiny_model]
    assert_refused(run(capsys, "generate", tmp_path / "crowd.mid", "-o", tmp_path / "x.mid", *args), "tokens", "fewer")
    assert [p.name for p in tmp_path.iterdir()] == ["crowd.mid"]


def test_missing_model_and_soundfont(capsys, tmp_path, band):
    args = ["generate", band, "-o", tmp_path / "x.mid"]
    assert_refused(run(capsys, *args, "--model", tmp_path / "none"), "cannot load a model")
    assert_refused(run(capsys, *args, "--soundfont", tmp_path / "none.sf2"), "soundfont")
    assert_refused(run(capsys, "generate", band, "-o", band), "is the input")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words, refusal",
    [
        (["--instruments", "theremin"], "unknown instrument 'theremin'"),
        (["--key", "H"], "unknown key 'H'"),
        (["--genre", "polka"], "unknown genre 'polka'"),
        (["--chords", "C Xyz"], "unknown chord 'Xyz'"),
        (["--meter", "17/16"], "unknown meter '17/16'"),
        (["--tempo", "900"], "tempo must be between 10 and 500"),
        (["--density", "3,11"], "density must be 1 (sparse) to 10 (dense)"),
        (["--scale", "H"], "unknown key 'H'"),
        (["--pitch-range", "60:200"], "pitch_range must be"),
    ],
)
def test_wrong_words_are_refused_before_a_model_loads(words, refusal, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mortm_hf.app.generate.load_pipeline", lambda *args: pytest.fail("a model was loaded"))
    assert main(["generate", "-o", str(tmp_path / "new.mid"), *words]) == 2
    error = capsys.readouterr().err
    assert refusal in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_help_imports_no_command():
    code = "import sys; from mortm_hf.app.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'numpy', 'torch', 'transformers', 'mortm_hf.app.generate'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
