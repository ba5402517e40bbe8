"""The bundled encoder and its heads: complete, small, loadable without the package, and better than nothing."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import mortm_hf
from mortm_hf.models.token_vocabulary import TokenKind


MODELS = Path(mortm_hf.__file__).parent / "models"
SONG = next((Path(mortm_hf.__file__).parent / "app" / "demo").glob("*.mid"))
FOLDERS = {
    mortm_hf.BERTM: "BertmForMaskedLM",
    mortm_hf.BERTM_GENRE: "BertmForSequenceClassification",
    mortm_hf.BERTM_QUALITY: "BertmForSequenceClassification",
}

# Runs in an interpreter that does not see the package; argv: the three folders, a song.
FRESH = r"""
import json, sys
def hide(name, path=None, target=None):
    if name.split(".")[0] == "mortm_hf":
        raise ModuleNotFoundError("the package must not be used here: " + name)
import torch
torch.set_num_threads(1)
sys.meta_path.insert(0, type("Hidden", (), {"find_spec": staticmethod(hide)}))
from transformers import AutoModelForMaskedLM, pipeline
encoder, genre, quality, song = sys.argv[1:]
trust = dict(trust_remote_code=True, device="cpu")
said = {
    "genre": pipeline("midi-classification", model=genre, **trust)(song),
    "quality": pipeline("midi-classification", model=quality, **trust)(song),
    "song": pipeline("midi-feature-extraction", model=encoder, **trust)(song)["song"].tolist(),
    "masked": type(AutoModelForMaskedLM.from_pretrained(encoder, trust_remote_code=True)).__module__.split(".")[0],
    "package": "mortm_hf" in sys.modules,
}
print("JSON" + json.dumps(said))
"""


def code_of(folder):
    return {path.name: path.read_bytes() for path in Path(folder).glob("*.py")}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: Path(f).name)
def test_folders_are_complete(folder):
    code = code_of(folder)
    assert {"modeling_bertm.py", "modeling_mortm.py", "tokenization_mortm.py", "pipeline_bertm.py"} <= set(code)
    assert code == {name: (MODELS / name).read_bytes() for name in code}
    config = json.loads((Path(folder) / "config.json").read_text())
    assert config["architectures"] == [FOLDERS[folder]] and config["dtype"] == "float32"
    assert set(config["custom_pipelines"]) == {"midi-classification", "midi-feature-extraction"}
    assert {path.suffix for path in Path(folder).iterdir()} <= {".json", ".safetensors", ".py"}


def test_together_they_are_small():
    size = sum(p.stat().st_size for folder in FOLDERS for p in Path(folder).rglob("*") if p.is_file())
    assert size <= 12_000_000
    for folder in FOLDERS:
        assert (Path(folder) / "model.safetensors").stat().st_size < 4_000_000


def test_labels_and_probabilities():
    genre = mortm_hf.pipeline("midi-classification", device="cpu")(str(SONG))
    assert sum(entry["score"] for entry in genre) == pytest.approx(1)
    assert "lied" in {entry["label"] for entry in genre[:2]}  # Schumann
    assert len(genre) == 5 and genre[-1]["score"] < 0.05  # and no pop
    quality = mortm_hf.pipeline("midi-classification", model=mortm_hf.BERTM_QUALITY, device="cpu")(str(SONG))
    assert {entry["label"] for entry in quality} == {"human", "machine"}
    reward = mortm_hf.BertmReward.from_pretrained(mortm_hf.BERTM_QUALITY)
    human = reward.rate(str(SONG))
    assert human == pytest.approx({e["label"]: e["score"] for e in quality}["human"], abs=0.05)


def test_the_reward_hears_damage():
    reward = mortm_hf.BertmReward.from_pretrained(mortm_hf.BERTM_QUALITY, mode="logit")
    score = reward.tokenizer.read_midi(str(SONG))
    rng = np.random.default_rng(0)
    onset = np.clip(score.onset + rng.integers(-20, 21, score.n_notes), 0, score.bars.end - 1)
    order = np.lexsort((score.duration, score.pitch, onset, score.track))
    columns = {n: getattr(score, n)[order] for n in ("track", "pitch", "duration", "velocity")}
    damaged = replace(score, onset=onset[order], **columns)
    assert reward.rate(str(SONG)) > reward.rate(damaged) + 0.5


@pytest.mark.parametrize(("kind", "least"), [(TokenKind.ONSET, 0.5), (TokenKind.DURATION, 0.4)])
def test_the_encoder_finds_hidden_tokens(kind, least):
    """Better than always saying the piece's most frequent onset or duration (0.25 and 0.35)."""
    tokenizer = mortm_hf.MortmTokenizer.from_pretrained(mortm_hf.BERTM)
    model = mortm_hf.BertmForMaskedLM.from_pretrained(mortm_hf.BERTM).eval()
    vocabulary = tokenizer.vocabulary
    ids = torch.tensor(tokenizer.encode_midi(str(SONG), bars=(0, 8)))
    places = np.flatnonzero(vocabulary.kind[ids.numpy()] == kind)
    common = np.bincount(ids[places].numpy()).max() / len(places)
    rows = ids.repeat(len(places[::5]), 1)
    where = torch.arange(len(rows)), torch.tensor(places[::5])
    rows[where] = vocabulary["<MASK>"]
    with torch.no_grad():
        best = model(rows).logits[where].argmax(-1)
    assert (vocabulary.kind[best.numpy()] == kind).mean() > 0.95
    right = (best == ids[places[::5]]).float().mean()
    assert right > least and right > common


@pytest.mark.slow
def test_they_load_where_the_package_is_not_installed(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", FRESH, *FOLDERS, str(SONG)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    said = json.loads(run.stdout.partition("JSON")[2])
    assert not said["package"] and said["masked"] == "transformers_modules"
    for task, folder in (("genre", mortm_hf.BERTM_GENRE), ("quality", mortm_hf.BERTM_QUALITY)):
        here = mortm_hf.pipeline("midi-classification", model=folder, device="cpu")(str(SONG))
        assert [e["label"] for e in here] == [e["label"] for e in said[task]]
        assert [e["score"] for e in here] == pytest.approx([e["score"] for e in said[task]], abs=1e-5)
    song = mortm_hf.pipeline("midi-feature-extraction", device="cpu")(str(SONG))["song"]
    assert np.allclose(song, said["song"], atol=1e-4)
