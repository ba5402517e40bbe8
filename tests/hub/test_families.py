"""Every family on the Hub: what its configuration names is registered here, travels along, and works there alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

import mortm_hf
from mortm_hf.models.families import FAMILIES, TASKS
from tests.test_hub_layout import FRESH_HIDING, MODELS, code_of, travelling


SONG = next((Path(mortm_hf.__file__).parent / "app" / "demo").glob("*.mid"))
SIZES = dict(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    moe_intermediate_size=8,
    shared_expert_intermediate_size=8,
    num_local_experts=2,
)
CONFIGS = {family: getattr(mortm_hf, row.config.split(".")[1]) for family, row in FAMILIES.items()}


@pytest.mark.parametrize("family", CONFIGS)
def test_a_configuration_names_what_is_registered(family):
    """`auto_map` and `custom_pipelines` of a written configuration against what transformers knows."""
    config, row = CONFIGS[family](), FAMILIES[family]
    assert not hasattr(config, "auto_map") and not hasattr(config, "custom_pipelines")
    written = config.to_dict()
    assert type(AutoConfig.for_model(family)) is type(config)
    for auto, name in row.models.items():
        assert written["auto_map"][auto] == name
        assert getattr(transformers, auto)._model_mapping[type(config)].__name__ == name.split(".")[1]
    assert set(written["custom_pipelines"]) == set(row.tasks)
    for task, entry in written["custom_pipelines"].items():
        known = PIPELINE_REGISTRY.check_task(task)[1]
        assert entry["impl"].split(".")[1] == known["impl"].__name__ and entry["type"] == known["type"]
        assert entry["pt"] == [auto.__name__ for auto in known["pt"]] and entry["pt"][0] in written["auto_map"]
        assert known["default"]["model"][0] == mortm_hf.bundled.default_model(task)


def test_every_task_belongs_to_one_family():
    tasks = [task for row in FAMILIES.values() for task in row.tasks]
    assert sorted(tasks) == sorted(TASKS)


# argv: folder with one folder a family, song, wave
FRESH = (
    FRESH_HIDING
    + r"""
import numpy as np
import transformers
from transformers import pipeline
root, song, wave = sys.argv[1:]
trust, told, device = dict(trust_remote_code=True), {}, dict(device="cpu")
classify = pipeline("midi-classification", model=root + "/bertm", **trust, **device)
told["classes"] = classify(song, top_k=None)
embed = pipeline("midi-feature-extraction", model=root + "/bertm", **trust, **device)
np.savez(root + "/embedding.npz", **embed(song))
go_on = pipeline("audio-continuation", model=root + "/vmortm", **trust, **device)
np.save(root + "/audio.npy", go_on(np.load(wave), sampling_rate=8000, seconds=0.2, iterations=2)["audio"])
live = transformers.AutoModel.from_pretrained(root + "/live", **trust).eval()
reader = transformers.AutoProcessor.from_pretrained(root + "/live", **trust)
rolls = reader(song, return_tensors="pt")["rolls"][:, :4]
with torch.no_grad():
    torch.save(live(rolls).logits, root + "/live.pt")
for name, pipe in (("bertm", classify), ("vmortm", go_on)):
    pipe.save_pretrained(root + "/again-" + name)
told["modules"] = [type(x).__module__.split(".")[0] for x in (classify, classify.model, embed, go_on, live, reader)]
told["package"] = "mortm_hf" in sys.modules
json.dump(told, open(root + "/told.json", "w"))
"""
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    torch.manual_seed(0)
    spread = dict(SIZES, initializer_range=0.3)
    mortm_hf.BertmForSequenceClassification(mortm_hf.BertmConfig(**spread, num_labels=3)).save_pretrained(
        root / "bertm"
    )
    mortm_hf.MortmTokenizer().save_pretrained(root / "bertm")
    mel = dict(num_mel_bins=8, patch_size=2, max_position_embeddings=64)
    mortm_hf.VMortmForSpectrogramGeneration(mortm_hf.VMortmConfig(**spread, **mel)).save_pretrained(root / "vmortm")
    mortm_hf.VMortmFeatureExtractor(
        feature_size=8, sampling_rate=8000, n_fft=256, hop_length=128, patch_size=2
    ).save_pretrained(root / "vmortm")
    live = dict(instruments=[0, 40], chunk_ticks=8, ticks_per_measure=96)
    mortm_hf.MortmLiveForCausalGeneration(mortm_hf.MortmLiveConfig(**spread, **live)).save_pretrained(root / "live")
    mortm_hf.MortmLiveProcessor(instruments=[0, 40], chunk_ticks=8).save_pretrained(root / "live")
    time = np.arange(4000) / 8000
    np.save(root / "wave.npy", np.sin(2 * np.pi * 440 * time).astype(np.float32))
    return root


@pytest.fixture(scope="module")
def told(root):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(root / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", FRESH, str(root), str(SONG), str(root / "wave.npy")],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads((root / "told.json").read_text())


def test_without_the_package(told):
    assert not told["package"] and set(told["modules"]) == {"transformers_modules"}


def test_classes_and_embeddings_are_the_same(told, root):
    here = mortm_hf.pipeline("midi-classification", model=root / "bertm", device="cpu")(str(SONG), top_k=None)
    assert here == told["classes"] and len(here) == 3
    embed = mortm_hf.pipeline("midi-feature-extraction", model=root / "bertm", device="cpu")
    here, there = embed(str(SONG)), np.load(root / "embedding.npz")
    assert set(here) == set(there) and len(there["bars"]) > 8
    for name in here:
        np.testing.assert_array_equal(here[name], there[name])


def test_sound_is_the_same(told, root):
    wave = np.load(root / "wave.npy")
    pipe = mortm_hf.pipeline("audio-continuation", model=root / "vmortm", device="cpu")
    here = pipe(wave, sampling_rate=8000, seconds=0.2, iterations=2)["audio"]
    np.testing.assert_array_equal(np.load(root / "audio.npy"), here)
    assert len(here) > len(wave)


def test_live_is_the_same_and_needs_no_trust_here(told, root):
    model, reader = AutoModel.from_pretrained(root / "live").eval(), AutoProcessor.from_pretrained(root / "live")
    assert type(reader) is mortm_hf.MortmLiveProcessor
    assert type(AutoFeatureExtractor.from_pretrained(root / "vmortm")) is mortm_hf.VMortmFeatureExtractor
    with torch.no_grad():
        logits = model(reader(str(SONG), return_tensors="pt")["rolls"][:, :4]).logits
    assert torch.equal(logits, torch.load(root / "live.pt"))


@pytest.mark.parametrize("name", ["bertm", "vmortm", "live"])
def test_folders_carry_their_code(told, root, name):
    entry = {"live": "modeling_mortm_live"}.get(name, f"modeling_{name}")
    saved = code_of(root / name)
    assert set(travelling(entry)) <= set(saved)
    assert all((MODELS / file).read_bytes() == content for file, content in saved.items())
    if name != "live":  # saved by the pipeline, over there: nothing is lost
        again = root / f"again-{name}"
        assert set(code_of(again)) == set(saved)
        config = json.loads((again / "config.json").read_text())
        assert config["custom_pipelines"] == json.loads((root / name / "config.json").read_text())["custom_pipelines"]
        assert {path.suffix for path in again.iterdir()} == {".json", ".safetensors", ".py", ".md"}
