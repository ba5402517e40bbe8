"""The whole evaluation on a small store and a random model; its parts, caches, report and pictures."""

import json

import numpy as np
import pytest

from mortm_hf.evaluation.eval_data import EvalData
from mortm_hf.evaluation.fixed_windows import fixed_windows
from mortm_hf.evaluation.model_answers import Sampling
from mortm_hf.evaluation.plots import draw_all
from mortm_hf.evaluation.report import markdown, number, percent, with_interval
from mortm_hf.evaluation.suite import PARTS, Evaluation, Settings, first_of_each, music_of_files, passages_of
from mortm_hf.models.tokenization_mortm import MortmTokenizer
from tests.evaluation.small_scores import melody, passage


pytest.importorskip("muspy")
pytest.importorskip("mir_eval")


def test_first_of_each():
    items = ["a1", "b1", "a2", "a3", "b2"]
    assert first_of_each(items, lambda x: x[0], 2) == ["a1", "b1", "a2", "b2"]
    assert first_of_each(items, lambda x: x[0], 0) == items


def test_passages_of_files():
    long = passage((0, melody(*range(60, 80), step=96)), (1, []), bars=20)
    short = passage((0, melody(60)), bars=3)
    found = passages_of([long, short], 10)
    assert [p.n_bars for p in found] == [8, 8, 3] and found[0].n_tracks == 1  # the silent track is left out
    assert [p.n_bars for p in passages_of([long, short], 2)] == [8, 3]


def test_numbers_are_written_with_their_intervals():
    assert percent({"value": 0.5, "low": 0.25, "high": 1.0}) == "50.0 [25.0, 100.0]"
    assert with_interval({"value": 2.0, "low": 1.0, "high": 3.0}, 1) == "2.0 [1.0, 3.0]"
    assert percent({"value": None}) == percent(None) == number(None) == number(float("nan")) == "-"


@pytest.fixture(scope="module")
def data(windows):
    songs, _ = windows
    return EvalData(songs, fixed_windows(songs), "test", lambda: songs, lambda: songs)


@pytest.fixture(scope="module")
def settings():
    return Settings.quick(samples=2, bits_windows=1, chord_songs=1, tune_songs=1, sampling=Sampling(top_p=0.9))


@pytest.fixture(scope="module")
def result(model, data, settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    found = Evaluation(model, MortmTokenizer(), data, settings, "tiny", folder).run()
    return found, folder


def test_every_part_is_measured(result):
    found, _ = result
    assert tuple(found) == PARTS
    assert set(found["bits"]["by_corpus"]) == {"band", "lead", "macro"}
    assert found["grammar"]["broken"]["value"] == 1.0  # a random model, free
    control = found["control"]
    for name in ("bars", "meter", "instruments"):  # what the grammar guarantees
        assert control["samples"][name]["value"] == 1.0
    assert control["human"]["density_exact"]["value"] == 1.0 and control["requests"] == {"band": 1, "lead": 1}
    music = found["music"]
    assert music["passages"] == {"samples": 2, "human": 2} and music["unreadable"] == 0
    # the human passages stand in the train songs (they are the same songs here), random notes do not
    assert music["copying"]["human"]["8_note_runs_in_train"] == 1.0
    assert music["copying"]["samples"]["8_note_runs_in_train"] == 0.0
    assert music["distances"]["samples"]["duration"]["mean"] > music["distances"]["human"]["duration"]["mean"]
    table = found["chords"]["all"]["lead"]
    assert set(table["scores"]) == {"model", "majority", "majority of key", "templates"} and table["songs"] == 1
    assert table["scores"]["majority"]["root"]["value"] > 0.2  # one of four chords


def test_a_second_run_reads_what_the_first_has_found(result, data, settings):
    found, folder = result

    class Gone:
        config = type("Config", (), {"max_position_embeddings": 4096})()

        def __getattr__(self, name):
            raise AssertionError(f"the model was asked for {name}")

    again = Evaluation(Gone(), MortmTokenizer(), data, settings, "tiny", folder).run()
    assert again == json.loads(json.dumps(found))
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


def test_the_report_names_every_part_and_picture(result, tmp_path):
    found, _ = result
    names = draw_all(found, lambda name: tmp_path / name)
    assert sorted(names) == ["bits.png", "chords.png", "control.png", "distributions.png", "figures.png"]
    assert all((tmp_path / n).stat().st_size > 5000 for n in names)
    text = markdown({"about": {"name": "tiny", "seed": 0}, **found}, names)
    for words in ("# Evaluation of tiny", "## Bits a note", "## Grammar", "## Control", "## The music", "## Chord"):
        assert words in text
    assert all(f"]({name})" in text for name in names)
    assert "| bar count | 2 | 100.0 [34.2, 100.0] |" in text
    assert "nan" not in text and "None" not in text.replace("C:None", "")


def test_files_are_measured_beside_the_split(data, settings):
    made = [passage((0, melody(*[60, 64, 67, 72] * 8)), bars=8), passage((0, melody(*[60, 61, 62] * 8)), bars=8)]
    suite = Evaluation(None, MortmTokenizer(), data, settings)
    found = music_of_files(made, suite)
    assert found["passages"] == {"samples": 2, "human": 2}
    assert found["figures"]["samples"]["notes_per_bar"]["value"] == 3.5
    assert set(found["distances"]["samples"]["onset"]) == {"all", "mean"}
    assert found["variety"]["samples"]["distinct_bars"] < 1.0
    assert np.isfinite(found["diversity"]["samples"]["vendi"])
    assert "## The music" in markdown({"music": found})
