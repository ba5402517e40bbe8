"""A saved BERTM folder is complete: all its code, all its heads, also where the package is not installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mortm_hf
from mortm_hf import (
    BertmConfig,
    BertmForMaskedLM,
    BertmForSequenceClassification,
    BertmForTokenClassification,
    BertmModel,
    MortmTokenizer,
)


MODELS = Path(mortm_hf.__file__).parent / "models"
SONG = next((Path(mortm_hf.__file__).parent / "app" / "demo").glob("*.mid"))
HEADS = {
    "AutoModel": BertmModel,
    "AutoModelForMaskedLM": BertmForMaskedLM,
    "AutoModelForSequenceClassification": BertmForSequenceClassification,
    "AutoModelForTokenClassification": BertmForTokenClassification,
}
SIZES = dict(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    moe_intermediate_size=8,
    shared_expert_intermediate_size=8,
    num_local_experts=2,
    max_position_embeddings=1024,
    num_labels=3,
    initializer_range=0.2,
)

# Runs in an interpreter that does not see the package; argv: folder of a classifier, of an LM, song, output folder.
FRESH = r"""
import json, sys
def hide(name, path=None, target=None):
    if name.split(".")[0] == "mortm_hf":
        raise ModuleNotFoundError("the package must not be used here: " + name)
import torch
torch.set_num_threads(1)
sys.meta_path.insert(0, type("Hidden", (), {"find_spec": staticmethod(hide)}))
import transformers
classifier, language, song, out = sys.argv[1:]
trust = dict(trust_remote_code=True)
ids = transformers.AutoTokenizer.from_pretrained(classifier, **trust)(midi=[song], bars=(0, 2), return_tensors="pt")
ids = ids["input_ids"]
told = {"config": type(transformers.AutoConfig.from_pretrained(classifier, **trust)).__name__}
tensors = {"ids": ids}
for name, folder in (
    ("AutoModel", classifier),
    ("AutoModelForMaskedLM", language),
    ("AutoModelForSequenceClassification", classifier),
    ("AutoModelForTokenClassification", classifier),
):
    model = getattr(transformers, name).from_pretrained(folder, **trust).eval()
    told[name] = [type(model).__name__, type(model).__module__.split(".")[0]]
    with torch.no_grad():
        tensors[name] = model(ids)[0]
    model.save_pretrained(out + "/" + name)
told["package"] = "mortm_hf" in sys.modules
torch.save(tensors, out + "/found.pt")
json.dump(told, open(out + "/found.json", "w"))
"""


def code_of(folder):
    return {path.name: path.read_bytes() for path in Path(folder).glob("*.py")}


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    return {kind: kind(BertmConfig(**SIZES)).eval() for kind in (BertmForSequenceClassification, BertmForMaskedLM)}


@pytest.fixture(scope="module")
def folders(models, tmp_path_factory):
    paths = {kind: tmp_path_factory.mktemp("hub") / kind.__name__ for kind in models}
    for kind, path in paths.items():
        models[kind].save_pretrained(path)
        MortmTokenizer().save_pretrained(path)
    return paths


@pytest.mark.parametrize("head", HEADS.values())
def test_every_head_saves_all_code(head, tmp_path):
    head(BertmConfig(**SIZES)).save_pretrained(tmp_path)
    assert code_of(tmp_path) == {p.name: p.read_bytes() for p in MODELS.glob("*.py") if p.name in code_of(tmp_path)}
    assert set(code_of(tmp_path)) >= {"modeling_bertm.py", "modeling_mortm.py", "tokenization_mortm.py"}
    config = json.loads((tmp_path / "config.json").read_text())
    want = {"AutoConfig": "configuration_bertm.BertmConfig"}
    want |= {auto: f"modeling_bertm.{kind.__name__}" for auto, kind in HEADS.items()}
    assert config["auto_map"] == want
    assert config["model_type"] == "bertm" and not config["is_causal"]
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors", ".py", ".md"}


def test_installed_code_needs_no_trust(folders):
    import transformers

    folder = folders[BertmForSequenceClassification]
    assert type(transformers.AutoConfig.from_pretrained(folder)) is BertmConfig
    assert type(transformers.AutoTokenizer.from_pretrained(folder)) is MortmTokenizer
    for auto, kind in HEADS.items():
        assert type(getattr(transformers, auto).from_pretrained(folder)) is kind
    config = transformers.AutoConfig.for_model("bertm", **SIZES)
    assert transformers.models.auto.tokenization_auto.TOKENIZER_MAPPING[type(config)] is MortmTokenizer


def test_fresh_interpreter_finds_every_head(folders, models, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", FRESH, *map(str, folders.values()), str(SONG), str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    told = json.loads((tmp_path / "found.json").read_text())
    assert told["config"] == "BertmConfig" and not told["package"]
    for auto, kind in HEADS.items():
        assert told[auto] == [kind.__name__, "transformers_modules"]
        assert code_of(tmp_path / auto) == code_of(folders[BertmForMaskedLM])
    tensors = torch.load(tmp_path / "found.pt", weights_only=True)
    ids = MortmTokenizer()(midi=[str(SONG)], bars=(0, 2), return_tensors="pt")["input_ids"]
    assert torch.equal(ids, tensors["ids"]) and ids.shape[1] > 20
    with torch.no_grad():
        for kind, auto in (
            (BertmForSequenceClassification, "AutoModelForSequenceClassification"),
            (BertmForMaskedLM, "AutoModelForMaskedLM"),
        ):
            assert tensors[auto].abs().max() > 0.1
            torch.testing.assert_close(models[kind](ids).logits, tensors[auto], atol=1e-6, rtol=1e-5)
        base = models[BertmForSequenceClassification].model(ids).last_hidden_state
        torch.testing.assert_close(base, tensors["AutoModel"], atol=1e-6, rtol=1e-5)
