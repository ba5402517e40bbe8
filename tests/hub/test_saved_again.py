"""A folder loaded with `trust_remote_code` and saved again loses nothing, whichever class loaded it.

All of it happens in an interpreter without the package, which loads, saves, and loads what it saved.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import mortm_hf
from tests.test_hub_layout import FRESH_HIDING, MODELS, code_of, travelling


SIZES = dict(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    moe_intermediate_size=8,
    shared_expert_intermediate_size=8,
    num_local_experts=2,
    max_position_embeddings=512,
    initializer_range=0.1,
)
MEL = dict(num_mel_bins=8, patch_size=2)
ROLL = dict(instruments=[0, 40], chunk_ticks=8, ticks_per_measure=96)
# folder -> model class, configuration, what reads its inputs, the Auto classes that load them
FOLDERS = {
    "mortm": ("MortmForCausalLM", mortm_hf.MortmConfig, {}, "AutoModelForCausalLM", "AutoTokenizer"),
    "mortm-base": ("MortmModel", mortm_hf.MortmConfig, {}, "AutoModel", "AutoTokenizer"),
    "mortm-classes": (
        "MortmForSequenceClassification",
        mortm_hf.MortmConfig,
        dict(num_labels=3, position_embedding_type="alibi", norm_type="dynamic_tanh"),
        "AutoModelForSequenceClassification",
        "AutoTokenizer",
    ),
    "bertm": ("BertmForMaskedLM", mortm_hf.BertmConfig, {}, "AutoModelForMaskedLM", "AutoTokenizer"),
    "bertm-classes": (
        "BertmForSequenceClassification",
        mortm_hf.BertmConfig,
        dict(id2label={0: "human", 1: "machine"}, label2id={"human": 0, "machine": 1}),
        "AutoModelForSequenceClassification",
        "AutoTokenizer",
    ),
    "bertm-tokens": (
        "BertmForTokenClassification",
        mortm_hf.BertmConfig,
        dict(num_labels=4),
        "AutoModelForTokenClassification",
        "AutoTokenizer",
    ),
    "vmortm": (
        "VMortmForSpectrogramGeneration",
        mortm_hf.VMortmConfig,
        MEL,
        "AutoModelForTextToSpectrogram",
        "AutoFeatureExtractor",
    ),
    "vmortm-base": ("VMortmModel", mortm_hf.VMortmConfig, MEL, "AutoModel", "AutoFeatureExtractor"),
    "live": ("MortmLiveForCausalGeneration", mortm_hf.MortmLiveConfig, ROLL, "AutoModel", "AutoProcessor"),
}
# argv: folder of the folders, JSON: name -> (Auto class of the model, of what reads its inputs)
FRESH = (
    FRESH_HIDING
    + r"""
import transformers
root, folders = sys.argv[1], json.loads(sys.argv[2])
trust, told = dict(trust_remote_code=True), {}
for name, (auto, reader) in folders.items():
    found = []
    for step in ("first", "again"):
        source = f"{root}/{name}/{step}"
        model = getattr(transformers, auto).from_pretrained(source, **trust).eval()
        model.set_experts_implementation("eager")
        inputs = torch.load(f"{root}/{name}/inputs.pt")
        with torch.no_grad():
            found.append(model(**inputs)[0])
        reads = getattr(transformers, reader).from_pretrained(source, **trust)
        if step == "first":
            model.save_pretrained(f"{root}/{name}/again")
            reads.save_pretrained(f"{root}/{name}/again")
    modules = [type(x).__module__ for x in (model, model.config, reads)]
    told[name] = {"equal": torch.equal(*found), "modules": sorted({m.split(".")[0] for m in modules})}
    torch.save(found[0], f"{root}/{name}/found.pt")
told["package"] = "mortm_hf" in sys.modules
json.dump(told, open(root + "/told.json", "w"))
"""
)


def inputs_of(name):
    random = torch.Generator().manual_seed(1)
    if name.startswith("vmortm"):
        return {"input_features": torch.rand(1, 12, 8, generator=random)}
    if name == "live":
        return {"rolls": (torch.rand(1, 4, 8, 128, 4, generator=random) < 0.05).float()}
    return {"input_ids": torch.randint(10, 600, (1, 20), generator=random)}


def reader_of(name):
    if name.startswith("vmortm"):
        return mortm_hf.VMortmFeatureExtractor(
            feature_size=8, sampling_rate=8000, n_fft=256, hop_length=128, patch_size=2
        )
    if name == "live":
        return mortm_hf.MortmLiveProcessor(instruments=[0, 40], chunk_ticks=8)
    return mortm_hf.MortmTokenizer()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    for name, (kind, config, options, *_) in FOLDERS.items():
        torch.manual_seed(0)
        getattr(mortm_hf, kind)(config(**SIZES, **options)).save_pretrained(root / name / "first")
        reader_of(name).save_pretrained(root / name / "first")
        torch.save(inputs_of(name), root / name / "inputs.pt")
    return root


@pytest.fixture(scope="module")
def told(root):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(root / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    autos = json.dumps({name: entry[3:] for name, entry in FOLDERS.items()})
    run = subprocess.run(
        [sys.executable, "-c", FRESH, str(root), autos],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads((root / "told.json").read_text())


def test_the_package_was_not_there(told):
    assert told.pop("package") is False
    assert {module for entry in told.values() for module in entry["modules"]} == {"transformers_modules"}


@pytest.mark.parametrize("name", FOLDERS)
def test_nothing_is_lost(told, root, name):
    first, again = root / name / "first", root / name / "again"
    files, more = ({path.name for path in folder.iterdir()} for folder in (first, again))
    # transformers gives remote classes that generate a configuration of generation, needed or not
    assert files <= more <= files | {"generation_config.json"}
    assert code_of(again) == code_of(first)
    entry = "modeling_" + {"live": "mortm_live"}.get(name, name.split("-")[0])
    assert travelling(entry).items() <= code_of(again).items()
    assert all((MODELS / file).read_bytes() == content for file, content in code_of(again).items())
    before, after = (load_file(folder / "model.safetensors") for folder in (first, again))
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    for path in first.glob("*.json"):
        was, now = (json.loads((folder / path.name).read_text()) for folder in (first, again))
        # where it was loaded from, not what it is
        own = {"_name_or_path", "name_or_path", "is_local", "local_files_only"}
        assert {k: v for k, v in was.items() if k not in own} == {k: v for k, v in now.items() if k not in own}, path


@pytest.mark.parametrize("name", FOLDERS)
def test_the_numbers_stay(told, root, name):
    assert told[name]["equal"]
    model = getattr(mortm_hf, FOLDERS[name][0]).from_pretrained(root / name / "again").eval()
    model.set_experts_implementation("eager")
    with torch.no_grad():
        assert torch.equal(model(**inputs_of(name))[0], torch.load(root / name / "found.pt"))
