"""The bundled V_MORTM and MORTM Live: complete, small, loadable without the package, and fit to play with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mortm_hf
from mortm_hf.app import cli, live
from mortm_hf.models.midi_files import read_midi


MODELS = Path(mortm_hf.__file__).parent / "models"
SONG = next((Path(mortm_hf.__file__).parent / "app" / "demo").glob("*.mid"))
FOLDERS = {mortm_hf.VMORTM: "VMortmForSpectrogramGeneration", mortm_hf.MORTM_LIVE: "MortmLiveForCausalGeneration"}
CHUNK = 1 / 3  # seconds of 16 ticks at 120 quarters a minute

# Runs in an interpreter that does not see the package; argv: the two folders, a song.
FRESH = r"""
import json, sys
def hide(name, path=None, target=None):
    if name.split(".")[0] == "mortm_hf":
        raise ModuleNotFoundError("the package must not be used here: " + name)
import numpy as np
import torch
torch.set_num_threads(1)
sys.meta_path.insert(0, type("Hidden", (), {"find_spec": staticmethod(hide)}))
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForTextToSpectrogram, AutoProcessor, pipeline
sound, partner, song = sys.argv[1:]
trust = dict(trust_remote_code=True)
wave = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000).astype(np.float32)
go_on = pipeline("audio-continuation", model=sound, device="cpu", **trust)
made = go_on(wave, sampling_rate=16000, seconds=0.5, iterations=4)
model = AutoModel.from_pretrained(partner, **trust).eval()
rolls = AutoProcessor.from_pretrained(partner, **trust)(song, return_tensors="pt")["rolls"][:, :6]
with torch.inference_mode():
    logits = model(rolls).logits
autos = (AutoModelForTextToSpectrogram, AutoFeatureExtractor, AutoProcessor)
names = [auto.from_pretrained(sound, **trust) for auto in autos]
print("JSON" + json.dumps({
    "new": len(made["new_audio"]), "level": float(np.abs(made["new_audio"]).max()), "logits": float(logits.sum()),
    "classes": [type(x).__name__ for x in (*names, model)], "package": "mortm_hf" in sys.modules,
}))
"""


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: Path(f).name)
def test_folders_are_complete(folder):
    code = {path.name: path.read_bytes() for path in Path(folder).glob("*.py")}
    assert {"modeling_mortm.py", "configuration_mortm.py"} < set(code)
    assert code == {name: (MODELS / name).read_bytes() for name in code}
    config = json.loads((Path(folder) / "config.json").read_text())
    assert config["architectures"] == [FOLDERS[folder]] and config["dtype"] == "float32"
    assert {path.suffix for path in Path(folder).iterdir()} <= {".json", ".safetensors", ".py"}


def test_together_they_are_small():
    assert sum(p.stat().st_size for folder in FOLDERS for p in Path(folder).rglob("*") if p.is_file()) <= 10_000_000


def test_without_the_package(tmp_path):
    import torch

    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", FRESH, mortm_hf.VMORTM, mortm_hf.MORTM_LIVE, str(SONG)]
    run = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-4000:]
    told = json.loads(run.stdout.split("JSON")[1])
    assert not told["package"] and told["level"] > 0 and told["new"] >= 7000
    assert set(told["classes"]) == {*FOLDERS.values(), "VMortmFeatureExtractor"}
    model = mortm_hf.MortmLiveForCausalGeneration.from_pretrained(mortm_hf.MORTM_LIVE).eval()
    rolls = mortm_hf.MortmLiveProcessor.from_pretrained(mortm_hf.MORTM_LIVE)(str(SONG), return_tensors="pt")["rolls"]
    with torch.inference_mode():
        assert float(model(rolls[:, :6]).logits.sum()) == pytest.approx(told["logits"], rel=1e-4)


def test_the_readers_are_known_where_the_package_is_installed(monkeypatch):
    """Nobody is asked whether the folder's own code may run."""
    from transformers import AutoFeatureExtractor, AutoProcessor

    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("asked"))
    for auto in (AutoFeatureExtractor, AutoProcessor):
        assert type(auto.from_pretrained(mortm_hf.VMORTM)) is mortm_hf.VMortmFeatureExtractor
        assert type(auto.from_pretrained(mortm_hf.MORTM_LIVE)) is mortm_hf.MortmLiveProcessor


def minute(session, notes):
    """60 s of simulated time with `notes` (time, pitch) of a quarter each; what the model played."""
    session.start(0.0)
    events, waiting = [], sorted([(t, p, 90) for t, p in notes] + [(t + 0.4, p, 0) for t, p in notes])
    while session.next_cut() < 60.0:
        now = session.next_cut()
        while waiting and waiting[0][0] <= now:
            time, pitch, velocity = waiting.pop(0)
            session.push(time, 0, pitch, velocity)
        events += session.advance(now)
    return events + session.panic(60.0)


def balanced(events) -> bool:
    """Every note that begins ends, and none sounds twice at once."""
    sounding = set()
    for event in events:
        if event.velocity:
            if event.pitch in sounding:
                return False
            sounding.add(event.pitch)
        else:
            sounding.discard(event.pitch)
    return not sounding


def test_a_minute_of_melody_is_accompanied():
    scale = [60, 62, 64, 65, 67, 69, 71, 72]
    notes = [(0.5 * i, scale[i % 8]) for i in range(118)]
    session = live.load_session(mortm_hf.MORTM_LIVE, play=[1], threshold=0.4)
    events = minute(session, notes)
    found = session.statistics
    assert (
        found.chunks == int((60 + session.lead) / CHUNK) and found.misses == found.skipped == found.dropped_events == 0
    )
    assert balanced(events) and sum(bool(e.velocity) for e in events) > 50
    begins = [e for e in events if e.velocity]
    pitches = np.bincount([e.pitch % 12 for e in begins], minlength=12)
    assert pitches[[0, 2, 4, 5, 7, 9, 11]].sum() > 0.8 * pitches.sum()  # C major is answered in C major
    assert all(0 <= e.pitch < 128 and e.slot == 1 for e in events)


def test_a_minute_of_silence_and_a_flood():
    session = live.load_session(mortm_hf.MORTM_LIVE, play=[1])
    quiet = minute(session, [])
    assert balanced(quiet) and sum(bool(e.velocity) for e in quiet) < 60 * 16
    flood = [(1.0 + 0.001 * i, 30 + i % 60) for i in range(2000)]
    session = live.load_session(mortm_hf.MORTM_LIVE, play=[1], max_events=100)
    assert balanced(minute(session, flood)) and session.statistics.dropped_events > 0
    assert len(session._events) <= 100


def test_the_command_plays_along_without_a_folder(tmp_path, capsys):
    out = tmp_path / "both.mid"
    assert cli.main(["live", str(SONG), "-o", str(out)]) == 2  # its voice is no flute
    assert "--slots" in capsys.readouterr().err and not out.exists()
    song = read_midi(SONG)
    slots = ["0" if track == 0 else "-1" for track in range(song.n_tracks)]
    assert cli.main(["live", str(SONG), "-o", str(out), "--threshold", "0.4", "--slots", *slots]) == 0
    both = read_midi(out)
    played = both.programs[both.track]
    assert (played == 73).any() and (played == 0).sum() > 20
