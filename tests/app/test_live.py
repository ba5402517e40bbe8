"""`mortm live`: along a file, in real time between in-process ports, and what it refuses."""

import json
import re
import sys
import time
from pathlib import Path

import pytest
import torch

from mortm_hf import MortmLiveConfig, MortmLiveForCausalGeneration, MortmLiveProcessor
from mortm_hf.app import cli, live
from mortm_hf.app.live_session import LiveEvent, LiveSession
from mortm_hf.models.midi_files import read_midi


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    target = tmp_path_factory.mktemp("live") / "model"
    shape = dict(instruments=[73, 0], chunk_ticks=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    shape |= dict(moe_intermediate_size=24, shared_expert_intermediate_size=16, num_local_experts=4)
    MortmLiveForCausalGeneration(MortmLiveConfig(**shape, initializer_range=0.3)).save_pretrained(target)
    MortmLiveProcessor(instruments=[73, 0]).save_pretrained(target)
    return target


@pytest.fixture
def song(tmp_path) -> Path:
    processor = MortmLiveProcessor(instruments=[73, 0])
    notes = ([0] * 4, [0, 24, 48, 72], [60, 62, 64, 65], [24] * 4, [80] * 4)
    processor.roll_to_score(processor.notes_to_roll(*notes), bpm=90).dump_midi(tmp_path / "song.mid")
    return tmp_path / "song.mid"


def test_along_a_file(folder, song, tmp_path, capsys):
    words = ["live", str(song), "-o", str(tmp_path / "both.mid"), "--model", str(folder), "--threshold", "0.4"]
    assert cli.main([*words, "--json", str(tmp_path / "facts.json")]) == 0
    both = read_midi(tmp_path / "both.mid")
    heard = both.programs[both.track] == 73
    assert both.onset[heard].tolist() == [0, 24, 48, 72]
    assert (both.programs[both.track] == 0).any()  # the model's answer
    assert both.onset[~heard].min() >= 16  # after the first chunk
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["chunks"] == 6 and facts["misses"] == 0
    assert "chunks 6" in capsys.readouterr().out


def test_in_real_time_between_in_process_ports(folder):
    session = live.load_session(folder, play=[1], bpm=240, threshold=0.4, lead=0.05)
    incoming, sent = [[(0, 60, 90)], [], [(0, 60, 0)]], []
    live.play_live(session, lambda: incoming.pop(0) if incoming else [], sent.append, seconds=1.0)
    assert session.statistics.chunks >= 3
    assert sent and all(isinstance(event, LiveEvent) and event.slot == 1 for event in sent)
    sounding = set()
    for event in sent:
        (sounding.add if event.velocity else sounding.discard)(event.pitch)
    assert not sounding  # all notes end when it does


def test_the_sender_keeps_times_and_order():
    sent = []
    sender = live.Sender(lambda event: sent.append((event, time.monotonic())))
    now = time.monotonic()
    sender.put([LiveEvent(now + 0.10, 0, 62, 0), LiveEvent(now + 0.03, 0, 60, 9), LiveEvent(now + 0.03, 0, 61, 9)])
    time.sleep(0.4)
    sender.close()
    assert [event.pitch for event, _ in sent] == [60, 61, 62]
    assert all(at >= event.time for event, at in sent)


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "give a MIDI file"),
        (["{song}", "--model", "{folder}"], "-o FILE"),
        (["{song}", "-o", "{out}", "--model", "{nothing}"], "no MORTM Live checkpoint"),
        (["{song}", "-o", "{out}", "--model", "{folder}", "--play", "5"], "slots of 0 to 1"),
        (["{folder}/config.json", "-o", "{out}", "--model", "{folder}"], "MIDI"),
    ],
)
def test_what_it_refuses(folder, song, tmp_path, capsys, words, said):
    places = {"folder": folder, "song": song, "out": tmp_path / "out.mid", "nothing": tmp_path}
    code = cli.main(["live", *(word.format(**places) for word in words)])
    message = capsys.readouterr().err
    assert code == 2 and re.search(said, message) and message.count("\n") == 1
    assert not (tmp_path / "out.mid").exists()


def test_ports_need_a_package(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mido", None)
    assert cli.main(["live", "--ports"]) == 2
    assert "pip install mido python-rtmidi" in capsys.readouterr().err


def test_ports_are_found_by_a_part_of_their_name():
    assert live._open(lambda name: name, "key", ["Synth", "USB Keystation 49"]) == "USB Keystation 49"
    with pytest.raises(ValueError, match="there are: Synth"):
        live._open(lambda name: name, "key", ["Synth"])


def test_the_session_is_the_folders(folder):
    session = live.load_session(folder, play=[0])
    assert isinstance(session, LiveSession) and session.others == [1]
