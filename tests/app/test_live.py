"""`mortm live`: along a file, in real time between in-process ports, and what it refuses."""

import json
import re
import sys
import time
import types
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
    assert "p95_ms" not in facts  # in simulated time nothing is measured
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


class Early:
    """Stands for a session that decides a note 0.1 s before it begins, until somebody panics."""

    def __init__(self):
        self.panics, self.cuts = 0, 0

    def start(self, now):
        self.began = now

    def next_cut(self):
        return self.began + 0.03 * (self.cuts + 1)

    def advance(self, now, finished):
        self.cuts += 1
        pitch = 40 + self.cuts
        on, off = LiveEvent(now + 0.10, 1, pitch, 90), LiveEvent(now + 0.30, 1, pitch, 0)
        return [] if self.panics else [on, off]

    def panic(self, now):
        self.panics += 1
        return []


def test_a_panic_ends_what_sounds_and_what_was_about_to():
    """No note that was decided before the panic begins after it, where nothing would end it."""
    session, sent, polls = Early(), [], iter([[]] * 150 + [[None]])
    asked = []

    def poll():
        found = next(polls, [])
        if found:
            asked.append(time.monotonic())
        return found

    live.play_live(session, poll, lambda event: sent.append((time.monotonic(), event)), seconds=0.6)
    begins = [at for at, event in sent if event.velocity]
    ends = [at for at, event in sent if not event.velocity]
    assert session.panics == 2 and len(begins) == len(ends) > 0  # the second is the end of the performance
    assert max(begins) <= asked[0] and max(ends) < asked[0] + 0.1


@pytest.fixture
def ports(monkeypatch):
    """mido on a backend that lives in this process: what is sent to a port is kept, what it hears is prepared."""
    mido = pytest.importorskip("mido")
    from mido.ports import BaseInput, BaseOutput

    kept = {"sent": [], "opened": [], "messages": []}

    class Input(BaseInput):
        def _open(self, virtual=False, **options):
            kept["opened"].append(("input", self.name, virtual))

        def _close(self):
            kept["opened"].remove(("input", self.name, kept["virtual"]))

        def _receive(self, block=True):
            return kept["messages"].pop(0) if kept["messages"] else None

    class Output(BaseOutput):
        def _open(self, virtual=False, **options):
            if self.name == "Taken":
                raise OSError("in use")
            kept["opened"].append(("output", self.name, virtual))

        def _close(self):
            kept["opened"].remove(("output", self.name, kept["virtual"]))

        def _send(self, message):
            kept["sent"].append(message)

    module = types.ModuleType("loop_backend")
    module.Input, module.Output = Input, Output
    module.get_devices = lambda **options: [
        {"name": name, "is_input": True, "is_output": True} for name in ("Keystation 49", "Synth", "Taken")
    ]
    monkeypatch.setitem(sys.modules, "loop_backend", module)
    backend = mido.Backend("loop_backend", load=True, use_environ=False)
    for name in ("open_input", "open_output", "get_input_names", "get_output_names"):
        monkeypatch.setattr(mido, name, getattr(backend, name))
    return kept


@pytest.mark.parametrize("virtual", [False, True])
def test_in_real_time_on_ports_of_mido(folder, ports, capsys, virtual):
    import mido

    ports["virtual"] = virtual
    ports["messages"] = [mido.Message("note_on", note=60, velocity=90), mido.Message("note_off", note=60)]
    names = ["in", "out"] if virtual else ["key", "synth"]
    words = ["live", "--input", names[0], "--output", names[1], "--model", str(folder), "--bpm", "240"]
    words += ["--threshold", "0.4", "--seconds", "1", *(["--virtual"] if virtual else [])]
    assert cli.main(words) == 0
    assert "chunks" in capsys.readouterr().out
    assert {message.type for message in ports["sent"]} == {"note_on", "note_off"}
    sounding = set()
    for message in ports["sent"]:
        (sounding.add if message.type == "note_on" else sounding.discard)(message.note)
    assert not sounding and ports["opened"] == []  # all notes end, and the ports are closed


def test_ports_that_cannot_be_opened_are_named(folder, ports, capsys):
    ports["virtual"] = False
    assert cli.main(["live", "--ports"]) == 0 and "Keystation 49" in capsys.readouterr().out
    assert cli.main(["live", "--input", "key", "--output", "taken", "--model", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "'Taken': in use" in said and said.count("\n") == 1 and ports["opened"] == []


def test_a_machine_without_midi_says_so(monkeypatch, capsys):
    def broken():
        raise OSError("no sequencer")

    monkeypatch.setitem(sys.modules, "mido", types.SimpleNamespace(get_output_names=broken))
    assert cli.main(["live", "--ports"]) == 2
    said = capsys.readouterr().err
    assert "no sequencer" in said and "pip install" not in said


def test_the_sender_keeps_times_and_order():
    sent = []
    sender = live.Sender(lambda event: sent.append((event, time.monotonic())))
    now = time.monotonic()
    sender.put([LiveEvent(now + 0.10, 0, 62, 0), LiveEvent(now + 0.03, 0, 60, 9), LiveEvent(now + 0.03, 0, 61, 9)])
    time.sleep(0.4)
    sender.close()
    assert [event.pitch for event, _ in sent] == [60, 61, 62, 60, 61]
    assert all(at >= event.time for event, at in sent)
    assert [event.velocity for event, _ in sent] == [9, 9, 0, 0, 0]  # what still sounded ends


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
