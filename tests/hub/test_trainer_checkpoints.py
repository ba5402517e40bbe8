"""Checkpoints of `transformers.Trainer`: complete folders, and pushes of nothing but what may go up.

Training runs here, on plain `Trainer` as a user would write it; the readers are interpreters without the package.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from local_hub import LocalHub
from transformers import Trainer, TrainingArguments

import mortm_hf
from mortm_hf import (
    BertmConfig,
    BertmForSequenceClassification,
    MortmConfig,
    MortmForCausalLM,
    MortmTokenizer,
    TrainingError,
    push_folder,
)
from mortm_hf.training.publish import SafePush, shipped_files
from tests.test_hub_layout import FRESH_HIDING, code_of, travelling


ROOT = Path(__file__).parents[2]
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
FAMILIES = {"mortm": (MortmForCausalLM, MortmConfig), "bertm": (BertmForSequenceClassification, BertmConfig)}
# argv: folder, song, output file
FRESH = (
    FRESH_HIDING
    + r"""
folder, song, out = sys.argv[1:]
import transformers
from transformers import AutoConfig, AutoTokenizer
trust = dict(trust_remote_code=True)
config = AutoConfig.from_pretrained(folder, **trust)
(kind,) = config.architectures
auto = "AutoModelForCausalLM" if kind.endswith("CausalLM") else "AutoModelForSequenceClassification"
model = getattr(transformers, auto).from_pretrained(folder, **trust).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
ids = tokenizer(midi=[song], bars=(0, 2), return_tensors="pt")["input_ids"]
with torch.no_grad():
    torch.save({"ids": ids, "logits": model(ids).logits}, out)
assert type(model).__name__ == kind and type(model).__module__.startswith("transformers_modules")
assert "mortm_hf" not in sys.modules
"""
)


def tiny(family):
    torch.manual_seed(0)
    kind, config = FAMILIES[family]
    return kind(config(**SIZES, **({"num_labels": 2} if family == "bertm" else {})))


def rows(family):
    ids = MortmTokenizer().encode_midi(str(SONG), bars=(0, 1))[:48]
    return [{"input_ids": ids, "labels": ids if family == "mortm" else i % 2} for i in range(4)]


def collate(batch):
    labels = torch.tensor([row["labels"] for row in batch])
    return {"input_ids": torch.tensor([row["input_ids"] for row in batch]), "labels": labels}


def trained(family, folder, kind=Trainer, **options):
    trainer = kind(
        model=tiny(family),
        args=TrainingArguments(
            str(folder),
            max_steps=2,
            save_steps=1,
            per_device_train_batch_size=2,
            learning_rate=0.01,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            **options,
        ),
        train_dataset=rows(family),
        data_collator=collate,
        processing_class=MortmTokenizer(),
    )
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {family: trained(family, folder / family) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_is_complete(runs, family):
    checkpoint = Path(runs[family].args.output_dir) / "checkpoint-1"
    assert code_of(checkpoint) == travelling(f"modeling_{family}")
    assert {"model.safetensors", "vocab.json", "tokenizer_config.json"} <= {p.name for p in checkpoint.iterdir()}
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["model_type"] == family and config["custom_pipelines"]
    modules = {reference.split(".")[0] + ".py" for reference in config["auto_map"].values()}
    modules |= {entry["impl"].split(".")[0] + ".py" for entry in config["custom_pipelines"].values()}
    assert modules <= set(code_of(checkpoint))
    if family == "mortm":
        assert json.loads((checkpoint / "generation_config.json").read_text())["eos_token_id"] in (627, [627])
    told = json.loads((checkpoint / "tokenizer_config.json").read_text())
    assert told["dialect"] == "metric" and told["auto_map"]["AutoTokenizer"][0].startswith("tokenization_mortm.")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_interpreter_computes_the_same(runs, family, tmp_path):
    trainer = runs[family]
    checkpoint = Path(trainer.args.output_dir) / "checkpoint-2"  # the last state of the model in hand
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", FRESH, str(checkpoint), str(SONG), str(tmp_path / "found.pt")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    found = torch.load(tmp_path / "found.pt")
    assert torch.equal(found["ids"], MortmTokenizer()(midi=[str(SONG)], bars=(0, 2), return_tensors="pt")["input_ids"])
    with torch.no_grad():
        assert torch.equal(trainer.model.eval()(found["ids"]).logits, found["logits"])
    assert not torch.equal(tiny(family).eval()(found["ids"]).logits, found["logits"])  # training moved them


def test_resuming_reads_the_checkpoint(runs, tmp_path):
    """The same two steps in one go and in two: equal weights."""
    checkpoint = Path(runs["mortm"].args.output_dir) / "checkpoint-1"
    again = Trainer(
        model=tiny("mortm"),
        args=TrainingArguments(
            str(tmp_path),
            max_steps=2,
            save_strategy="no",
            per_device_train_batch_size=2,
            learning_rate=0.01,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=rows("mortm"),
        data_collator=collate,
        processing_class=MortmTokenizer(),
    )
    again.train(resume_from_checkpoint=str(checkpoint))
    want = runs["mortm"].model.state_dict()
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, want[name]), name


# ------------------------------------------------------------------------------------------------------------- pushing


def test_what_may_go_up(runs):
    checkpoint = Path(runs["bertm"].args.output_dir) / "checkpoint-1"
    assert {"training_args.bin", "optimizer.pt"} <= {path.name for path in checkpoint.iterdir()}
    names = {path.name for path in shipped_files(checkpoint)}
    assert {Path(name).suffix for name in names} == {".json", ".py", ".safetensors", ".md"}
    assert "trainer_state.json" not in names
    assert names > set(code_of(checkpoint)) | {"config.json", "model.safetensors", "vocab.json"}


def test_what_is_no_checkpoint_is_refused(runs, tmp_path):
    with pytest.raises(TrainingError, match="is no folder"):
        push_folder(tmp_path / "nowhere", "me/x")
    with pytest.raises(TrainingError, match=r"no config\.json"):
        push_folder(tmp_path, "me/x")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(TrainingError, match="no weights in safetensors") as refused:
        push_folder(tmp_path, "me/x")
    assert refused.value.code == "training.hub"
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(TrainingError, match=r"config\.json is no JSON"):
        push_folder(tmp_path, "me/x")


# argv: folder; trains with the mixin, pushing at every save, then once more; then pushes a folder by hand
PUSH = r"""
import json, sys
from pathlib import Path
import mortm_hf
import torch
torch.set_num_threads(1)
from tests.hub.test_trainer_checkpoints import SafePushTrainer, TrainingError, push_folder, trained
folder = sys.argv[1]
online = dict(push_to_hub=True, hub_model_id="me/trained", hub_strategy="every_save")
trainer = trained("mortm", folder + "/run", SafePushTrainer, **online)
done = trainer.push_to_hub("Done", tags="folk", finetuned_from="me/base")
found = {"done": done.oid}
found["branch"] = push_folder(folder + "/run/checkpoint-1", "me/trained", revision="early", license="mit").oid
card = Path(folder) / "run" / "checkpoint-2" / "README.md"
card.write_text("---\nlicense: mit\ntags: [mine]\n---\n\n# By hand\n")
found["hand"] = push_folder(card.parent, "me/hand", base_model="me/trained").oid
found["kept"] = push_folder(folder + "/run/checkpoint-1", "me/hand").oid
push_folder(mortm_hf.BERTM_QUALITY, "me/bundled")
try:
    trained("mortm", folder + "/no", SafePushTrainer, **{**online, "hub_strategy": "checkpoint"})
except TrainingError as error:
    found["refused"] = str(error)
from transformers import AutoModelForCausalLM
for revision in (found["done"], found["branch"], "early"):
    model = AutoModelForCausalLM.from_pretrained("me/trained", revision=revision)
    step = 1 if revision != found["done"] else 2
    want = AutoModelForCausalLM.from_pretrained(f"{folder}/run/checkpoint-{step}")
    pairs = zip(model.state_dict().values(), want.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs), revision
json.dump(found, open(folder + "/found.json", "w"))
"""


class SafePushTrainer(SafePush, Trainer):
    pass


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pushing")
    with LocalHub() as hub:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "PYTHONPATH"))}
        environment |= hub.environment(folder / "home") | {"OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "hub")])
        run = subprocess.run(
            [sys.executable, "-c", PUSH, str(folder)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert run.returncode == 0, run.stderr[-4000:]
    return hub, json.loads((folder / "found.json").read_text())


def test_trainers_push_no_pickles(pushed):
    hub, found = pushed
    assert {name for _, name in hub.repositories} == {"me/trained", "me/hand", "me/bundled"}
    for repository in hub.repositories.values():
        for commit in repository.commits.values():
            names = {name for name in commit.files if name != ".gitattributes"}
            assert {Path(name).suffix for name in names} <= {".json", ".py", ".safetensors", ".md"}, commit.message
            assert "trainer_state.json" not in names
    messages = [commit.message for commit in hub.repository("me/trained").commits.values()]
    assert messages == [
        "initial commit",
        *("Training in progress, step 1", "Training in progress, step 2"),
        *("Done", "Upload checkpoint-1"),
    ]
    assert "'every_save' or 'end'" in found["refused"]


def test_pushed_folders_are_complete_and_have_a_card(pushed):
    from huggingface_hub import ModelCard

    hub, found = pushed
    files = hub.repository("me/trained").find("main").files
    assert hub.repository("me/trained").names["main"] == found["done"]
    assert {name for name in files if name.endswith(".py")} == set(travelling())
    assert {"config.json", "generation_config.json", "model.safetensors", "vocab.json", "README.md"} <= set(files)
    card = ModelCard(files["README.md"].decode()).data
    assert card.base_model == "me/base" and card.library_name == "transformers"
    assert card.pipeline_tag == "text-generation" and {"folk", "mortm", "symbolic-music", "midi"} <= set(card.tags)
    hand = ModelCard(hub.repository("me/hand").find(found["hand"]).files["README.md"].decode())
    assert "# By hand" in hand.text and hand.data.license == "mit" and hand.data.base_model == "me/trained"
    assert {"mine", "mortm"} <= set(hand.data.tags)
    # a card that only says what was saved gives way to one that stands in the repository
    assert "# By hand" in hub.repository("me/hand").find(found["kept"]).files["README.md"].decode()


def test_weights_and_json_go_up_with_code_and_card(pushed, tmp_path):
    """A bundled folder on the Hub holds what the same model, saved, holds."""
    bundled = mortm_hf.BERTM_QUALITY
    for kind in (BertmForSequenceClassification, MortmTokenizer):
        kind.from_pretrained(bundled).save_pretrained(tmp_path)
    files = pushed[0].repository("me/bundled").find("main").files
    assert {path.name for path in tmp_path.iterdir()} == set(files) - {".gitattributes"}
    assert code_of(tmp_path) == {name: content for name, content in files.items() if name.endswith(".py")}
    for name in ("config.json", "tokenizer_config.json"):
        saved, there = json.loads((tmp_path / name).read_text()), json.loads(files[name])
        for key in ("auto_map", "custom_pipelines", "architectures", "model_type"):
            assert saved.get(key) == there.get(key), (name, key)
    assert 'pipeline("midi-classification", model="me/bundled"' in files["README.md"].decode()
