"""Controls as rows: what every row must say, and a row that somebody adds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mortm_hf.models.errors_mortm import PromptError, VocabularyError
from mortm_hf.models.token_controls import Control, register
from mortm_hf.models.token_headers import CONTROLS, Header, describe, thinned, without
from mortm_hf.models.token_vocabulary import CONTROL_KINDS, MetricVocabulary
from mortm_hf.models.tokenization_mortm import MortmTokenizer
from tests.sample_songs import store


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def toy():
    """What a program with a control of its own reports."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests/models/toy_control.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_an_added_control_is_one_row(toy):
    assert toy["new_tokens"] == ["<HEIGHT_low>", "<HEIGHT_middle>", "<HEIGHT_high>"]
    header = "<INST_73> <HEIGHT_high> <INST_32> <HEIGHT_low> <GEN_MEASURE_COUNT_2>"
    assert header in toy["prompt"] and toy["back"] == [["high", "low"], True]
    assert header in toy["generated"][0] and toy["generated"][1] is True
    assert toy["help"] is True


def test_an_added_control_is_measured_trained_masked_and_marked(toy):
    assert toy["measured"][0] == toy["measured"][1] > 0
    assert 0.4 < toy["examples"] < 0.95  # left out in a quarter, and with the instruments in an eighth
    assert toy["masked"] is True and toy["windows"] is False and toy["asked"] is True
    assert toy["marks"] == ["height of the track", 1.0, True]


def test_rows_are_complete_once_there_is_a_table():
    with pytest.raises(VocabularyError, match="before a tokenizer"):
        register(Control(name="late", kind="LATE", form=("<LATE_", ">"), names=["a"]))


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.name)
def test_every_row_keeps_its_promises(control):
    vocabulary = MetricVocabulary.default()
    values = [value for value, name in enumerate(control.names) if name is not None]
    known = [v for v in values if vocabulary.has(CONTROL_KINDS[control.name], v)]
    assert len(known) >= len(control.tokens()) > 0 and control.help
    assert control.option in ("text", "names", "count", "number") and control.level in ("piece", "track", "bar")
    for value in known:
        if control.name != "instruments" or value <= 128:  # categories of the mortm dialect are no words
            assert control.parse(control.word(value)) == value or control.name == "key"
    if control.name == "key":  # twins keep their own spelling
        assert all(control.names[control.parse(control.word(v))] == control.names[v] for v in known)
    nothing = control.score(values[:1] if control.repeats or control.level == "track" else values[0], (0,), None)
    assert set(nothing) == set(control.figures)
    assert not any(mark[0] if isinstance(mark, tuple) else mark for mark in nothing.values())


def test_what_is_measured_fulfils_itself():
    """A header that was measured from music is followed by that very music."""
    from mortm_hf.models.token_controls import Described

    for song in store(6, 34).songs:
        score = song.score.window(0, 8)
        score = score.take_tracks(score.sounding_tracks())
        facts = Described(
            bars=score.bars,
            instruments=tuple(score.programs.tolist()),
            tempo=score.tempo,
            music=score,
            sources=(score,),
        )
        header = describe(facts)
        for control in CONTROLS:
            if control.name in header and control.name not in ("key", "meter"):  # labels and changes differ in part
                for name, mark in control.score(header[control.name], header.instruments, score).items():
                    assert mark[0] == mark[1] if isinstance(mark, tuple) else mark, name


def test_controls_of_tracks_go_with_the_instruments():
    header = Header(instruments=(0, 32), density=(3, None), key=0)
    assert without(header, ["instruments"]) == {"key": 0}
    assert without(header, ["density"]) == {"instruments": (0, 32), "key": 0}
    with pytest.raises(PromptError, match="no header field"):
        thinned(header, 0.0, ["colour"])


def test_draws_of_the_first_controls_never_change():
    """Training examples stay what they were when a control is added: it is drawn behind the others."""
    header = Header(instruments=(0,), density=(3,), bars=4, genre=(1,), meter=8, tempo=20, key=0)
    rng = np.random.default_rng(5)
    draw = np.random.default_rng(5).random(8)
    thin = thinned(header, 0.5, (), rng)
    kept = [name for name, x in zip(header, draw) if x >= 0.5]
    expected = [n for n in kept if "instruments" in kept or n != "density"]
    assert list(thin) == expected and rng.random() == np.random.default_rng(5).random(9)[8]


def test_every_control_is_a_word_of_requests():
    tokenizer = MortmTokenizer()
    words = {
        "instruments": ["piano"],
        "bars": 2,
        "density": 4,
        "genre": "jazz",
        "meter": "3/4",
        "tempo": 90,
        "key": "Am",
    }
    assert set(words) <= {control.name for control in CONTROLS}
    prompt = tokenizer.prompt(**words)
    assert all(prompt.word(name) == word for name, word in words.items())
    kinds = tokenizer.vocabulary.kind[tokenizer.encode_prompt(prompt)].tolist()
    assert all(int(CONTROL_KINDS[name]) in kinds for name in words)
    with pytest.raises(TypeError):
        tokenizer.prompt(colour="blue")
