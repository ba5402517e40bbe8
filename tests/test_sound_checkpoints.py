"""The bundled V_MORTM and MORTM Live: small, known to the Auto classes, and fit to play with."""

from pathlib import Path

import numpy as np
import pytest

import mortm_hf
from mortm_hf.app import cli, live
from mortm_hf.models.midi_files import read_midi


SONG = next((Path(mortm_hf.__file__).parent / "app" / "demo").glob("*.mid"))
FOLDERS = (mortm_hf.VMORTM, mortm_hf.MORTM_LIVE)
CHUNK = 1 / 3  # seconds of 16 ticks at 120 quarters a minute


def test_together_they_are_small():
    assert sum(p.stat().st_size for folder in FOLDERS for p in Path(folder).rglob("*") if p.is_file()) <= 10_000_000


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
