"""All outputs of a command or none.

Example: python -m pytest tests/app/test_files.py
"""

import os
from pathlib import Path

import pytest

from mortm_hf import MORTM_SMALL, STARTER
from mortm_hf.app.files import Outputs, find_midi
from mortm_hf.bundled import find_model as checkpoint
from mortm_hf.models.errors_mortm import CommandError


def test_outputs_appear_together(tmp_path):
    first, second = tmp_path / "a.mid", tmp_path / "b.wav"
    with Outputs() as out:
        out.stage(first).write_bytes(b"one")
        out.stage(second).write_bytes(b"two")
        assert not first.exists() and not second.exists()
    assert first.read_bytes() == b"one" and second.read_bytes() == b"two"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mid", "b.wav"]
    umask = os.umask(0)
    os.umask(umask)
    assert first.stat().st_mode & 0o777 == 0o666 & ~umask


def test_an_error_leaves_nothing_and_keeps_what_was_there(tmp_path):
    old = tmp_path / "a.mid"
    old.write_bytes(b"old")
    with pytest.raises(RuntimeError), Outputs() as out:
        out.stage(old).write_bytes(b"new")
        out.stage(tmp_path / "b.mid")
        raise RuntimeError
    assert old.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.mid"]


@pytest.mark.parametrize(
    "name, match", [("no/a.mid", "does not exist"), (".", "is a folder"), ("in.mid", "the input")]
)
def test_outputs_that_cannot_be_written(tmp_path, name, match):
    source = tmp_path / "in.mid"
    source.write_bytes(b"MThd")
    with pytest.raises(CommandError, match=match) as caught, Outputs([source]) as out:
        out.stage(tmp_path / name)
    assert caught.value.code == "command.output"
    assert source.read_bytes() == b"MThd"


def test_one_path_cannot_be_two_outputs(tmp_path):
    with pytest.raises(CommandError, match="two outputs"), Outputs() as out:
        out.stage(tmp_path / "a.mid")
        out.stage(tmp_path / "x" / ".." / "a.mid")
    assert not list(tmp_path.iterdir())


def test_find_midi_searches_folders_once(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.MID", "a.midi", "sub/c.kar", "sub/d.txt"):
        (tmp_path / name).write_bytes(b"")
    found = find_midi([tmp_path, tmp_path / "a.midi", tmp_path / "missing.mid"])
    assert [p.name for p in found] == ["a.midi", "b.MID", "c.kar", "missing.mid"]
    with pytest.raises(CommandError, match="no MIDI file"):
        empty = tmp_path / "empty"
        empty.mkdir()
        find_midi([empty])


def test_models_by_name(tmp_path):
    """A bundled name, the folder of a run, and anything else as it is."""
    assert Path(checkpoint("mortm-small")) == Path(MORTM_SMALL) and Path(checkpoint("starter")) == Path(STARTER)
    (tmp_path / "run" / "final").mkdir(parents=True)
    assert checkpoint(str(tmp_path / "run")) == str(tmp_path / "run")
    (tmp_path / "run" / "final" / "config.json").write_text("{}")
    assert checkpoint(str(tmp_path / "run")) == str(tmp_path / "run" / "final")
    assert checkpoint("owner/name") == "owner/name"
