"""The comparison of architectures and token languages: the REMI stream, the report, and a tiny run of both."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import compare
from benchmarks.remi_stream import LONGEST, RemiSource, RemiStream, encode, meter_of
from mortm_hf.data.packing import generator
from mortm_hf.data.schema import Song
from mortm_hf.data.score_store import ScoreStore
from mortm_hf.evaluation.fixed_windows import Window, encode_windows, fixed_windows, write_windows
from mortm_hf.models.midi_files import read_midi
from mortm_hf.models.tokenization_mortm import MortmTokenizer
from mortm_hf.training.arguments import DataRecipe
from tests.sample_songs import midi, store, write_pack


FIXTURES = Path(__file__).parent / "fixtures" / "midi"


@pytest.fixture(scope="module")
def stream():
    return RemiStream()


@pytest.fixture(scope="module")
def real():
    """Real music in several meters, with cut bars, drums and many tracks."""
    return ScoreStore(
        [Song(p.name, "real", p.stem, p.stem, "test", None, read_midi(p)) for p in sorted(FIXTURES.glob("*.mid"))]
    )


def notes_of(stream, ids):
    """(onset, pitch, duration) in ticks of 24 a quarter, read back by miditok."""
    score = stream.tokenizer.decode(ids.tolist())
    scale = score.ticks_per_quarter / 24
    return sorted((n.time / scale, n.pitch, n.duration / scale) for track in score.tracks for n in track.notes)


def test_the_stream_holds_the_same_notes(stream, real):
    windows = fixed_windows(real)
    encoded, left_out = encode(stream, real, windows, 8192)
    assert len(encoded) == len(windows) >= 10 and not left_out
    songs = {song.path: song.score for song in real.songs}
    for (path, start), item in encoded.items():
        tracks = songs[path].window(start + 8, start + 16).sounding_tracks()
        score = songs[path].window(start, start + 16).take_tracks(tracks)
        duration = np.minimum(score.duration, 24 * LONGEST)
        wanted = sorted(zip(score.onset.tolist(), score.pitch.tolist(), duration.tolist()))
        assert notes_of(stream, item.ids[1:-1]) == wanted, path
        # what is scored begins with the bar line of the ninth bar, and its notes are those that are counted
        assert item.ids[item.answer] == stream.bar and (item.ids[: item.answer] == stream.bar).sum() == 8
        assert item.notes == songs[path].window(start + 8, start + 16).n_notes


def test_tracks_of_one_program_stay_apart(stream):
    song = store(1, 20).songs[0]
    score = song.score.window(0, 4)
    from dataclasses import replace

    pianos = replace(score, programs=np.where(score.programs == 73, 0, score.programs).astype(np.int16))
    ids = stream.ids(pianos)
    programs = {t for t in (stream.tokenizer[int(i)] for i in ids) if t.startswith("Program_")}
    assert programs == {"Program_0", "Program_1", "Program_-1"}
    assert stream.notes_of(ids) == score.n_notes


def test_meters_keep_the_grid():
    assert meter_of(96) == (4, 4) and meter_of(72) == (3, 4) and meter_of(84) == (7, 8) and meter_of(90) == (15, 16)
    assert meter_of(7) is None


def test_documents_are_drawn_as_ours_are(stream):
    recipe = DataRecipe(tasks={"continue": 1}, past_bars=(2, 4), generated_bars=(2, 4), velocity=0.0, row_length=1024)
    source = RemiSource(store(4, 20), MortmTokenizer().vocabulary, recipe, stream, packs=2)
    corpus = 0
    plan = source.plan(corpus, generator(3), 1024)
    plan = type(plan)(**{**plan.__dict__, "semitones": 2})
    document = source.render(plan, generator(4), 1024)
    still = source.render(type(plan)(**{**plan.__dict__, "semitones": 0}), generator(4), 1024)
    assert document.ids[0] == stream.bos and document.ids[-1] == stream.eos and document.target.all()
    assert len(document.ids) == len(still.ids)  # the same music, two semitones up, but for the drums
    names = [[stream.tokenizer[int(i)] for i in d.ids] for d in (document, still)]
    moved = [
        int(a.split("_")[1]) - int(b.split("_")[1])
        for k, (a, b) in enumerate(zip(*names))
        if a.startswith("Pitch_") and names[0][k - 1] != "Program_-1"
    ]
    assert moved and set(moved) == {2}
    short = source.render(plan, generator(4), len(document.ids) - 1)  # the oldest bars give way
    assert short is None or (len(short.ids) < len(document.ids) and short.notes == document.notes)


def test_without_header_the_model_is_told_nothing(real):
    vocabulary = MortmTokenizer().vocabulary
    own, _ = encode_windows(vocabulary, real, fixed_windows(real), 4096)
    for item, bare in zip(own, compare.without_header(vocabulary, real, own)):
        assert len(bare.ids) < len(item.ids)
        # the new bars themselves are the same tokens
        assert np.array_equal(item.ids[item.answer :], bare.ids[bare.answer :])
        system = int(np.flatnonzero(bare.ids == vocabulary.ids["<SYSTEM>"])[0])
        assert bare.ids[system + 1] == vocabulary.ids["<TAG_END>"]


def result(arm, seed, bits):
    windows = dict(path=["a", "b", "c"], start=[0, 0, 16], corpus=["x", "x", "y"], cluster=["1", "2", "3"],
                   notes=[10, 20, 10])  # fmt: skip
    names = ("remi",) if arm == "remi" else (compare.OWN, compare.BARE)
    return dict(
        arm=arm, seed=seed, asked=5, steps=3, tokens=5e6, notes_a_token=0.3, tokens_per_second=1000.0, minutes=80.0,
        final_loss=1.5, parameters={"total": 8_000_000, "active": 4_000_000}, learning_rate=1e-3, left_out={"x": 1},
        device="CPU", precision="fp32",
        windows=windows, bits=dict.fromkeys(names, bits),
    )  # fmt: skip


def test_the_stored_results_are_printed(capsys):
    """The command that the README quotes."""
    folder = Path(compare.__file__).parent / "results" / "compare"
    assert compare.main(["report", "--out", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "remi - dense" in told and "| macro |" in told and "bf16" in told


def test_the_report_is_printed_from_stored_results(tmp_path, capsys):
    for seed in range(3):
        for arm, bits in (("moe", [50, 100, 60]), ("dense", [45, 90, 65 + seed]), ("remi", [70, 120, 80])):
            folder = tmp_path / f"{arm}-s{seed}"
            folder.mkdir()
            (folder / "result.json").write_text(json.dumps(result(arm, seed, [float(b) for b in bits])))
    assert compare.main(["report", "--out", str(tmp_path), "--json", str(tmp_path / "all.json")]) == 0
    told = capsys.readouterr().out
    content = json.loads((tmp_path / "all.json").read_text())
    # x: 150 / 30 = 5 and 135 / 30 = 4.5; y: 6 and (65 + 66 + 67) / 3 / 10 = 6.6
    assert content["bits_per_note"]["moe, with header"]["macro"]["bits_per_note"] == pytest.approx(5.5)
    assert content["bits_per_note"]["dense, with header"]["macro"]["bits_per_note"] == pytest.approx(5.55)
    assert content["paired"]["dense - moe"]["by_seed"] == pytest.approx([0.0, 0.05, 0.1])
    assert content["paired"]["remi - dense"]["seeds"] == [0, 1, 2]
    assert "dense - moe: +0.050 ± 0.124" in told  # 4.303 * 0.05 / sqrt(3)
    assert "what each stream" not in told and "REMI" in told and "end of the window" in told
    assert compare.main(["collect", "--out", str(tmp_path), "--to", str(tmp_path / "kept")]) == 0
    capsys.readouterr()
    assert compare.main(["report", "--out", str(tmp_path / "kept")]) == 0
    assert capsys.readouterr().out == told
    assert len(list((tmp_path / "kept").iterdir())) == 10  # nine results, the windows once


def test_a_report_of_nothing(tmp_path, capsys):
    assert compare.main(["report", "--out", str(tmp_path)]) == 2
    assert "no results" in capsys.readouterr().err
    assert compare.main(["collect", "--out", str(tmp_path), "--to", str(tmp_path / "kept")]) == 2
    assert not (tmp_path / "kept").exists()


@pytest.mark.slow
def test_arms_run_resume_and_are_compared(tmp_path, capsys):
    rows, files = [], {}
    for seed in range(8):
        split, corpus = ("train" if seed < 6 else "test"), "pop909"
        row = dict(path=f"{corpus}/{seed}.mid", archive=f"{corpus}-{split}.tar.xz", corpus=corpus, split=split)
        row |= dict(variant="aligned", song_id=str(seed), licence="MIT", genre="pop")
        rows.append(row)
        files.setdefault(row["archive"], {})[row["path"]] = midi(seed, bars=40)
    write_pack(tmp_path, rows, files)
    listed = [Window(row["path"], at) for row in rows if row["split"] == "test" for at in (0, 16)]
    write_windows(tmp_path / "w.csv", listed)
    common = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--tokens", "8000"]
    common += ["--windows", str(tmp_path / "w.csv")]
    assert compare.main(["speed", *common, "--rounds", "3"]) == 0
    for arm in compare.ARMS:
        assert compare.main(["run", arm, *common]) == 0
    assert compare.main(["run", "moe", *common]) == 0  # there already
    capsys.readouterr()
    assert compare.main(["report", "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert all(f"| {arm}" in told for arm in compare.ARMS) and "dense / moe" in told
    assert "on 4 test windows" in told
