"""Data sets of songs on a hub: what goes up, and that plain `datasets` and ours read it again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard
from local_hub import LocalHub

from mortm_hf import build_dataset, load_songs
from tests.sample_songs import midi


ROOT = Path(__file__).parents[2]
CLIENT = r"""
import json, sys
from mortm_hf.app.cli import main
folder, repo, out = sys.argv[1:]
assert main(["data", "push", folder, repo]) == 0
from datasets import load_dataset
from mortm_hf import load_songs
plain = load_dataset(repo)
songs = load_songs(repo, "train")
told = {"splits": {k: len(v) for k, v in plain.items()}}
told["columns"] = {k: str(v) for k, v in plain["train"].features.items()}
told["songs"] = [[s.path, s.score.pitch.tolist(), s.score.onset.tolist(), s.score.key] for s in songs.songs]
json.dump(told, open(out, "w"))
"""


@pytest.mark.slow
def test_push_and_load_again(tmp_path):
    source = tmp_path / "midi"
    source.mkdir()
    for i in range(6):
        (source / f"{i}.mid").write_bytes(midi(i, 8))
    (source / "bad.mid").write_bytes(b"x")
    (source / "metadata.csv").write_text("file_name,license,split\n0.mid,CC0,train\n1.mid,CC0,test\n2.mid,,train\n")
    build_dataset(source, tmp_path / "songs", shares=(0.0, 0.0), progress=False)
    with LocalHub() as hub:
        environment = (
            os.environ | hub.environment(tmp_path / "home") | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "0"}
        )
        words = [sys.executable, "-c", CLIENT, str(tmp_path / "songs"), "me/songs", str(tmp_path / "told.json")]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.strip().endswith("/datasets/me/songs")
        files = hub.repository("me/songs", "datasets").find("main").files
    told = json.loads((tmp_path / "told.json").read_text())
    mine = load_songs(tmp_path / "songs", "train")
    assert told["splits"] == {"train": 5, "test": 1}
    assert told["songs"] == [[s.path, s.score.pitch.tolist(), s.score.onset.tolist(), s.score.key] for s in mine.songs]
    assert "uint8" in told["columns"]["note_pitch"] and "uint16" in told["columns"]["note_duration"]
    assert any(name.endswith(".parquet") for name in files) and not any(name.endswith(".py") for name in files)
    assert json.loads(files["report.json"])["files"] == 7
    card = DatasetCard(files["README.md"].decode())
    assert {"music", "midi", "symbolic-music"} <= set(card.data.to_dict()["tags"])
    assert card.data.to_dict()["configs"][0]["data_files"]  # what `datasets` wrote is still there
    assert "load_songs" in card.text and "| train | 5 |" in card.text and "CC0 (2 songs)" in card.text
