"""Figures, report and pictures of a data set."""

import json

import numpy as np
import pytest

from mortm_hf.data import load_songs
from mortm_hf.data.song_statistics import dataset_stats, markdown, write_stats
from mortm_hf.models.music_names import METERS
from tests.sample_songs import store


@pytest.fixture(scope="module")
def songs():
    return store(5, 24)


@pytest.fixture(scope="module")
def figures(songs):
    skipped = [{"file": "a.mid", "code": "midi.unreadable", "message": "no header"}] * 2
    return dataset_stats(songs, windows=10, skipped=skipped)


def test_figures_are_those_of_the_songs(songs, figures):
    scores = [song.score for song in songs.songs]
    assert figures["songs"] == 5 and figures["corpora"] == {"band": 3, "lead": 2}
    assert figures["notes"] == sum(s.n_notes for s in scores) and figures["bars"] == sum(s.n_bars for s in scores)
    meters = {}
    for s in scores:
        for m in s.bars.meter.tolist():
            name = "{}/{}".format(*METERS[m])
            meters[name] = meters.get(name, 0) + 1
    assert figures["meters"] == meters and next(iter(figures["meters"])) == "4/4"
    assert figures["instruments"] == {"Acoustic Grand Piano": 5, "Flute": 5, "Drums": 3}
    per_bar = np.concatenate([np.bincount(s.bar_of_notes(), minlength=s.n_bars) for s in scores])
    assert figures["notes_per_bar"]["mean"] == pytest.approx(per_bar.mean(), abs=1e-3)
    assert figures["notes_per_bar_counts"] == np.bincount(per_bar, minlength=65).tolist()
    drums = np.concatenate([s.pitch[s.programs[s.track] == 128] for s in scores])
    assert sum(figures["pitch_counts"]) == figures["notes"] - len(drums)
    assert figures["keys"]["CM"] >= 2 and sum(figures["keys"].values()) == 5
    assert sum(figures["tempo"].values()) == figures["bars"] and figures["songs_with_dynamics"] == 5
    assert figures["chord_sources"] == {"none": 5} and set(figures["chords"]) >= {"C", "A m7", "F", "Bb"}
    assert figures["skipped"] == {"midi.unreadable": 2} and len(figures["skipped_files"]) == 2
    tokens = figures["tokens_per_window"]
    assert tokens["counted"] == 10 and 100 < tokens["median"] < 2000 and sum(tokens["counts"]["counts"]) == 10
    json.dumps(figures)


def test_songs_on_disk_give_the_same(songs, figures, tmp_path):
    songs.save(tmp_path / "s")
    again = dataset_stats(load_songs(tmp_path / "s"), windows=10, skipped=figures["skipped_files"])
    assert again == figures


def test_report_and_pictures(figures, tmp_path):
    files = write_stats(figures, tmp_path / "report", "my songs")
    assert {f.name for f in files} == {f.name for f in (tmp_path / "report").iterdir()}
    names = {f.stem for f in files if f.suffix == ".png"}
    assert names >= {"meters", "keys", "tempo", "instruments", "notes_per_bar", "tokens_per_window", "skipped"}
    assert all(f.read_bytes()[:4] == b"\x89PNG" for f in files if f.suffix == ".png")
    assert json.loads((tmp_path / "report" / "stats.json").read_text()) == figures
    text = (tmp_path / "report" / "report.md").read_text()
    assert text.startswith("# my songs") and "| 4/4 |" in text and "| a.mid | no header |" in text
    assert all(f"![{name}]({name}.png)" in text for name in names)
    assert markdown(figures, "my songs") in text


def test_nothing_to_count():
    assert dataset_stats(store(1, 4), windows=5)["tokens_per_window"]["counted"] == 0  # shorter than a window
