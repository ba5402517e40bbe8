"""The bundled checkpoints: weights and JSON under one name each, run by the installed code, complete when saved again.

Every folder is saved, and what was saved is loaded and used in an interpreter without the package: its own class, and
all tasks that its model can do. The same is done here with the bundled folder itself, which needs no trust.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

import mortm_hf
from mortm_hf.bundled import CHECKPOINTS, CONSTANTS, ROOT, default_model, find_model
from mortm_hf.models.families import FAMILIES, TASKS
from tests.test_hub_layout import FRESH_HIDING


SONG = next((Path(mortm_hf.__file__).parent / "app" / "demo").glob("*.mid"))
# of a folder: what its model says and what each of its tasks answers, as plain values
USE = r"""
import base64
import numpy as np
import torch
import transformers

def use(folder, job, song, **trust):
    wave = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000).astype(np.float32)
    reader = getattr(transformers, job["reader"]).from_pretrained(folder, **trust)
    if job["reader"] == "AutoTokenizer":
        inputs = reader(midi=[song], bars=(0, 2), return_tensors="pt")
    elif hasattr(reader, "frames"):
        inputs = reader(wave, sampling_rate=16000, return_tensors="pt")
    else:
        inputs = {"rolls": reader(song, return_tensors="pt")["rolls"][:, :6]}
    model = getattr(transformers, job["auto"]).from_pretrained(folder, **trust).eval()
    with torch.inference_mode():
        numbers = model(**{k: v for k, v in inputs.items() if k in ("input_ids", "input_features", "rolls")})[0]
    found = {"model": numbers.double().sum().item(), "kinds": [type(model).__name__, type(reader).__name__]}
    for task in job["tasks"]:
        pipe = transformers.pipeline(task, model=folder, device="cpu", **trust)
        for options in job["calls"].get(task, [{}]):
            made = pipe(wave if "audio" in task else song, **options)
            if isinstance(made, list) and "midi" in made[0]:  # of music its bytes, and the chords where they are asked
                made = [made[0].get("chords"), base64.b64encode(made[0]["midi"]).decode()]
            elif isinstance(made, dict):
                made = {k: np.asarray(v, dtype=np.float64).sum().item() for k, v in made.items()}
            found[f"{task} {options}"] = made
        found["kinds"].append(type(pipe).__name__)
    used = [model, reader, pipe] if job["tasks"] else [model, reader]
    found["modules"] = sorted({type(x).__module__.split(".")[0] for x in used})
    return found
"""
# argv: folder of the saved folders, JSON of the jobs, song
FRESH = (
    FRESH_HIDING
    + USE
    + r"""
root, jobs, song = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
found = {name: use(f"{root}/{name}", job, song, trust_remote_code=True) for name, job in jobs.items()}
found["package"] = "mortm_hf" in sys.modules
json.dump(found, open(root + "/found.json", "w"))
"""
)
CALLS = {
    "midi-generation": [{"bars": 1, "seed": 0}],
    "chord-estimation": [{"bars": [0, 2]}],
    "audio-continuation": [{"sampling_rate": 16000, "seconds": 0.5, "iterations": 4}],
}
# of one checkpoint: decoded fast, and in the middle of a song
MORE_CALLS = {"midi-generation": [{"bars": 1, "seed": 0, "fast": fast} for fast in (False, True)]}
MORE_CALLS["midi-generation"].append({"infill": [4, 5], "seed": 0})


KINDS = {
    **dict.fromkeys(("mortm-small", "mortm-starter", "mortm-aligned"), "MortmForCausalLM"),
    "bertm-small": "BertmForMaskedLM",
    **dict.fromkeys(("bertm-genre", "bertm-quality"), "BertmForSequenceClassification"),
    "vmortm-small": "VMortmForSpectrogramGeneration",
    "live-small": "MortmLiveForCausalGeneration",
}


def job_of(name: str) -> dict:
    config = json.loads((ROOT / name / "config.json").read_text())
    family, (kind,) = FAMILIES[config["model_type"]], config["architectures"]
    auto = next(auto for auto, where in family.models.items() if where.endswith(f".{kind}"))
    tasks = [task for task, row in family.tasks.items() if row.auto in (auto, "AutoModel")]
    calls = CALLS | (MORE_CALLS if name == "mortm-small" else {})
    return {"auto": auto, "reader": list(family.readers)[-1], "tasks": tasks, "calls": calls}


JOBS = {name: job_of(name) for name in CHECKPOINTS}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What an interpreter without the package makes of all of them, saved again."""
    root = tmp_path_factory.mktemp("saved")
    for name, job in JOBS.items():
        for auto in (job["auto"], job["reader"]):
            getattr(transformers, auto).from_pretrained(ROOT / name).save_pretrained(root / name)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(root / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", FRESH, str(root), json.dumps(JOBS), str(SONG)],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads((root / "found.json").read_text())


@pytest.mark.parametrize("name", JOBS)
def test_saved_again_it_works_without_the_package(found, name):
    space: dict = {}
    exec(USE, space)
    here = json.loads(json.dumps(space["use"](str(ROOT / name), JOBS[name], str(SONG))))
    there = found[name]
    assert not found["package"] and there.pop("modules") == ["transformers_modules"]
    assert here.pop("modules") == ["mortm_hf"]
    assert here.pop("model") == pytest.approx(there.pop("model"), rel=1e-4)
    for key, value in here.items():
        if isinstance(value, dict):
            assert value == pytest.approx(there[key], rel=1e-4), key
        elif isinstance(value, list) and isinstance(value[0], dict):
            assert [entry["label"] for entry in value] == [entry["label"] for entry in there[key]]
            want = [entry["score"] for entry in there[key]]
            assert [entry["score"] for entry in value] == pytest.approx(want, abs=1e-5), key
        else:
            assert value == there[key], key
    assert len(there["kinds"]) == 2 + len(JOBS[name]["tasks"])


def test_every_task_is_used(found):
    assert {key.split()[0] for made in found.values() if isinstance(made, dict) for key in made} >= set(TASKS)
    small = {key: made for key, made in found["mortm-small"].items() if key.startswith("midi-generation")}
    plain, fast, infill = small.values()
    assert plain == fast != infill


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_weights_and_json_only(name):
    files = {path.name for path in (ROOT / name).iterdir()}
    assert {Path(file).suffix for file in files} == {".json", ".safetensors"}
    for file in files:
        if file.endswith("config.json"):
            assert not {"auto_map", "custom_pipelines"} & set(json.loads((ROOT / name / file).read_text())), file
    config = json.loads((ROOT / name / "config.json").read_text())
    assert config["dtype"] == "float32" and config["architectures"] == [KINDS[name]]
    assert len(JOBS[name]["tasks"]) > 0 or name == "live-small"


@pytest.mark.parametrize("task", TASKS)
def test_transformers_own_pipeline_has_a_default(task):
    pipe = transformers.pipeline(task, device="cpu")
    assert type(pipe) is type(mortm_hf.pipeline(task, device="cpu"))
    assert pipe.model.name_or_path == default_model(task)


def test_one_resolver_for_all_words(tmp_path, monkeypatch):
    for name, row in CHECKPOINTS.items():
        assert find_model(name) == find_model(row.constant) == getattr(mortm_hf, row.constant) == str(ROOT / name)
        assert find_model(Path(CONSTANTS[row.constant])) == str(ROOT / name)
    assert find_model("starter") == mortm_hf.STARTER
    assert find_model("owner/name") == "owner/name" and find_model("gpt2") == "gpt2"
    with pytest.raises(ValueError, match="no checkpoint BERTM_APPLAUSE"):
        find_model("BERTM_APPLAUSE")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mortm-small").mkdir()  # a folder of one's own goes before the package's
    (tmp_path / "mortm-small" / "config.json").write_text("{}")
    assert find_model("mortm-small") == "mortm-small"


def test_defaults():
    assert default_model("midi-generation") == default_model("text-generation") == mortm_hf.MORTM_SMALL
    assert default_model("midi-classification") == mortm_hf.BERTM_GENRE
    assert default_model("fill-mask") == default_model("midi-feature-extraction") == mortm_hf.BERTM
    assert default_model("audio-continuation") == mortm_hf.VMORTM
    assert default_model("rlmf") == mortm_hf.STARTER and default_model("live") == mortm_hf.MORTM_LIVE
