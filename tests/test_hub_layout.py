"""A saved folder is complete: all code, byte for byte, and it works where the package is not installed."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers.dynamic_module_utils import get_relative_import_files

import mortm_hf
from mortm_hf import (
    MidiGenerationPipeline,
    MortmConfig,
    MortmForCausalLM,
    MortmForSequenceClassification,
    MortmModel,
    MortmTokenizer,
)
from mortm_hf.models.families import FAMILIES, class_names


MODELS = Path(mortm_hf.__file__).parent / "models"
TASKS = set(FAMILIES["mortm"].tasks)
SONG = next((Path(mortm_hf.__file__).parent / "app" / "demo").glob("*.mid"))
SIZES = dict(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    moe_intermediate_size=8,
    shared_expert_intermediate_size=8,
    num_local_experts=2,
    max_position_embeddings=1024,
)

# An interpreter that does not see the package.
FRESH_HIDING = r"""
import json, sys
def hide(name, path=None, target=None):
    if name.split(".")[0] == "mortm_hf":
        raise ModuleNotFoundError("the package must not be used here: " + name)
import torch
torch.set_num_threads(1)
sys.meta_path.insert(0, type("Hidden", (), {"find_spec": staticmethod(hide)}))
"""
# argv: folder, song, output folder
FRESH = (
    FRESH_HIDING
    + r"""
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers import AutoTokenizer, pipeline
folder, song, out = sys.argv[1:]
trust = dict(trust_remote_code=True)
config = AutoConfig.from_pretrained(folder, **trust)
tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
model = AutoModelForCausalLM.from_pretrained(folder, **trust).eval()
base = AutoModel.from_pretrained(folder, **trust).eval()
scores = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, **trust)
ids = tokenizer(midi=[song], bars=(0, 2), return_tensors="pt")["input_ids"]
with torch.no_grad():
    found = {"ids": ids, "logits": model(ids).logits, "states": base(ids).last_hidden_state}
generate = pipeline("midi-generation", model=folder, device="cpu", **trust)
first = generate(song, bars=2, seed=0)[0]
open(out + "/made.mid", "wb").write(first["midi"])
estimate = pipeline("chord-estimation", model=folder, device="cpu", **trust)
chords = estimate(song, bars=(0, 2))[0]["chords"]
generate.save_pretrained(out + "/again")
words = tokenizer.decode(ids[0, :8])
text = pipeline("text-generation", model=folder, device="cpu", **trust)
said = text(words + " ", max_new_tokens=3, do_sample=False, return_full_text=False)
features = pipeline("feature-extraction", model=folder, device="cpu", **trust)(words, return_tensors=True)
torch.save({**found, "features": features}, out + "/found.pt")
json.dump(
    {
        "classes": [type(x).__name__ for x in (config, tokenizer, model, base, scores, generate, estimate)],
        "modules": [type(x).__module__.split(".")[0] for x in (config, tokenizer, model, generate)],
        "bars": first["bars"], "chords": chords, "labels": scores.config.num_labels,
        "text": said[0]["generated_text"], "package": "mortm_hf" in sys.modules,
    },
    open(out + "/found.json", "w"),
)
"""
)


def code_of(folder):
    return {path.name: path.read_bytes() for path in Path(folder).glob("*.py")}


def travelling(entry="modeling_mortm"):
    """The modules of `models/` that travel with a class of one: all that transformers copies with it."""
    files = [MODELS / f"{entry}.py", *map(Path, get_relative_import_files(MODELS / f"{entry}.py"))]
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_module_travels_with_a_family(family):
    everything = {path.name for path in MODELS.glob("*.py")} - {"__init__.py"}
    for name in (FAMILIES[family].config, *FAMILIES[family].models.values()):
        assert set(travelling(name.split(".")[0])) == everything


def test_the_table_names_what_is_there():
    for name in class_names():
        module, kind = name.split(".")
        assert hasattr(importlib.import_module(f"mortm_hf.models.{module}"), kind), name
        assert getattr(mortm_hf, kind) is not None


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MortmForCausalLM(MortmConfig(**SIZES)).eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("hub") / "tiny"
    model.save_pretrained(path)
    MortmTokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def fresh(folder, tmp_path_factory):
    """What an interpreter without the package makes of the folder."""
    out = tmp_path_factory.mktemp("fresh")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(out / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", FRESH, str(folder), str(SONG), str(out)],
        cwd=out,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return out, json.loads((out / "found.json").read_text()), torch.load(out / "found.pt")


@pytest.mark.parametrize("head", [MortmModel, MortmForCausalLM, MortmForSequenceClassification])
def test_every_head_saves_all_code(head, tmp_path):
    head(MortmConfig(**SIZES)).save_pretrained(tmp_path)
    assert code_of(tmp_path) == travelling()
    config = json.loads((tmp_path / "config.json").read_text())
    assert set(config["auto_map"]) >= {
        "AutoConfig",
        "AutoModel",
        "AutoModelForCausalLM",
        "AutoModelForSequenceClassification",
    }
    assert {task: entry["impl"].split(".")[-1] for task, entry in config["custom_pipelines"].items()} == {
        task: row.pipeline.split(".")[1] for task, row in FAMILIES["mortm"].tasks.items()
    }
    modules = {reference.split(".")[0] + ".py" for reference in config["auto_map"].values()}
    assert modules <= set(code_of(tmp_path))


def test_tokenizer_and_config_save_their_code(tmp_path):
    MortmTokenizer().save_pretrained(tmp_path / "tokenizer")
    saved = code_of(tmp_path / "tokenizer")
    assert "tokenization_mortm.py" in saved and saved.items() <= travelling().items()
    told = json.loads((tmp_path / "tokenizer" / "tokenizer_config.json").read_text())
    assert told["auto_map"]["AutoTokenizer"][0] == "tokenization_mortm.MortmTokenizer"
    MortmConfig(**SIZES).save_pretrained(tmp_path / "config")
    assert "configuration_mortm.py" in code_of(tmp_path / "config")


def test_pipeline_saves_everything_and_loads_again(folder, tmp_path):
    pipe = mortm_hf.pipeline("midi-generation", model=folder, device="cpu")
    before = pipe(str(SONG), bars=1, seed=3)[0]["midi"]
    pipe.save_pretrained(tmp_path)
    assert code_of(tmp_path) == travelling()
    assert set(json.loads((tmp_path / "config.json").read_text())["custom_pipelines"]) == TASKS
    again = mortm_hf.pipeline("midi-generation", model=tmp_path, device="cpu")
    assert isinstance(again, MidiGenerationPipeline)
    assert again(str(SONG), bars=1, seed=3)[0]["midi"] == before


def test_only_safe_files(folder):
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors", ".py", ".md"}


def test_a_package_without_its_checkpoint_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(mortm_hf.bundled.CONSTANTS, "MORTM_SMALL", str(tmp_path))
    with pytest.raises(ValueError, match="no bundled checkpoint"):
        mortm_hf.pipeline("midi-generation")


def test_fresh_interpreter_finds_our_classes(fresh):
    _, found, _ = fresh
    assert found["classes"] == [
        *("MortmConfig", "MortmTokenizer", "MortmForCausalLM", "MortmModel", "MortmForSequenceClassification"),
        *("MidiGenerationPipeline", "ChordEstimationPipeline"),
    ]
    assert not found["package"]
    assert set(found["modules"]) == {"transformers_modules"}
    assert found["labels"] == 3


def test_fresh_interpreter_computes_the_same(fresh, model):
    _, _, tensors = fresh
    ids = MortmTokenizer()(midi=[str(SONG)], bars=(0, 2), return_tensors="pt")["input_ids"]
    assert torch.equal(ids, tensors["ids"])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, tensors["logits"])
        assert torch.equal(model.model(ids).last_hidden_state, tensors["states"])
        want = model.model(ids[:, :8]).last_hidden_state
    torch.testing.assert_close(tensors["features"], want, atol=1e-6, rtol=1e-5)


def test_fresh_interpreter_makes_the_same_music(fresh, folder):
    out, found, _ = fresh
    here = mortm_hf.pipeline("midi-generation", model=folder, device="cpu")(str(SONG), bars=2, seed=0)[0]
    assert here["midi"] == (out / "made.mid").read_bytes()
    assert list(here["bars"]) == found["bars"]
    chords = mortm_hf.pipeline("chord-estimation", model=folder, device="cpu")(str(SONG), bars=(0, 2))[0]["chords"]
    assert chords == found["chords"]
    assert len(found["text"].split()) == 3


def test_tasks_of_ones_own_stay(folder, tmp_path):
    """What somebody wrote into a configuration is saved, beside or in place of the family's."""
    pipe = mortm_hf.pipeline("midi-generation", model=folder, device="cpu")
    own = {"impl": "mine.MyPipeline", "pt": ["AutoModelForCausalLM"], "type": "text"}
    pipe.model.config.custom_pipelines = {"my-task": own, "chord-estimation": own}
    pipe.model.config.auto_map = {"AutoModel": "mine.MyModel"}
    pipe.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert set(config["custom_pipelines"]) == {*TASKS, "my-task"}
    assert config["custom_pipelines"]["my-task"] == config["custom_pipelines"]["chord-estimation"] == own
    assert config["auto_map"]["AutoModel"] == "mine.MyModel"
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_mortm.MortmForCausalLM"


def test_a_pipeline_of_ones_own_is_saved_with_its_task(model, tmp_path):
    from transformers import AutoModelForCausalLM
    from transformers.pipelines import PIPELINE_REGISTRY

    class Own(MidiGenerationPipeline):
        pass

    Own.__module__ = MidiGenerationPipeline.__module__
    PIPELINE_REGISTRY.register_pipeline("my-task", Own, pt_model=(AutoModelForCausalLM,), type="text")
    try:
        Own(model=model, tokenizer=MortmTokenizer(), task="my-task", device="cpu").save_pretrained(tmp_path)
    finally:
        del PIPELINE_REGISTRY.supported_tasks["my-task"]
        del model.config.custom_pipelines
    tasks = json.loads((tmp_path / "config.json").read_text())["custom_pipelines"]
    assert set(tasks) == {*TASKS, "my-task"}
    assert tasks["my-task"] == {"impl": "pipeline_mortm.Own", "pt": ["AutoModelForCausalLM"], "type": "text"}


def test_a_card_is_written_once(model, tmp_path):
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert 'pipeline("midi-generation", model=FOLDER, trust_remote_code=True)' in card
    (tmp_path / "README.md").write_text("by hand")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "by hand"
    MortmConfig(**SIZES).save_pretrained(tmp_path / "config")
    assert not (tmp_path / "config" / "README.md").exists()  # no model, no card


def test_fresh_interpreter_saves_a_complete_folder(fresh, folder):
    out, _, _ = fresh
    assert code_of(out / "again") == code_of(folder)
    config = json.loads((out / "again" / "config.json").read_text())
    assert set(config["custom_pipelines"]) == TASKS
    assert all(entry["pt"] == ["AutoModelForCausalLM"] for entry in config["custom_pipelines"].values())


def test_installed_code_needs_no_trust(folder):
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

    assert type(AutoConfig.from_pretrained(folder)) is MortmConfig
    assert type(AutoModelForCausalLM.from_pretrained(folder)) is MortmForCausalLM
    assert type(AutoModel.from_pretrained(folder)) is MortmModel
    assert type(AutoTokenizer.from_pretrained(folder)) is MortmTokenizer
