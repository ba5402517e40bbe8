"""Push and pull over HTTP: what goes up, what comes down again, pinned to which revision.

The clients run in processes of their own, since `huggingface_hub` reads its endpoint once, when it is imported.
"""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard, ModelCard
from local_hub import LocalHub

import mortm_hf


SONG = next((Path(mortm_hf.__file__).parent / "app" / "demo").glob("*.mid"))
ROOT = Path(__file__).parents[2]

BEGIN = r"""
import json, sys
import torch
torch.set_num_threads(1)
out, song, told = sys.argv[1:]
told = json.loads(told)
"""

# With the package: a card, a model, a tokenizer, a changed model on a branch, a tag, a pipeline; then the way back.
PUSH = (
    BEGIN
    + r"""
import mortm_hf
from huggingface_hub import HfApi, ModelCard, ModelCardData
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, pipeline
torch.manual_seed(0)
sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, moe_intermediate_size=8)
sizes |= dict(shared_expert_intermediate_size=8, num_local_experts=2, max_position_embeddings=1024)
model = mortm_hf.MortmForCausalLM(mortm_hf.MortmConfig(**sizes)).eval()
tokenizer = mortm_hf.MortmTokenizer()
ids = tokenizer(midi=[song], bars=(0, 2), return_tensors="pt")["input_ids"]
data = ModelCardData(license="mit", base_model="me/first", library_name="transformers", tags=["classical"],
                     pipeline_tag="midi-generation")
api = HfApi()
api.create_repo("me/tiny")
card = ModelCard("---\n" + data.to_yaml() + "\n---\n\n# Tiny\n\nA card written by hand.\n")
# not card.push_to_hub: before 2.0 the client checks a card's head at the public Hub, whatever its endpoint
api.upload_file(path_or_fileobj=str(card).encode(), path_in_repo="README.md", repo_id="me/tiny")
found = {"first": model.push_to_hub("me/tiny", tags=["tiny"]).oid}
found["second"] = tokenizer.push_to_hub("me/tiny").oid
before = model(ids).logits.detach()
with torch.no_grad():
    model.lm_head.weight.mul_(2.0)
found["third"] = model.push_to_hub("me/tiny", revision="louder", commit_message="Louder").oid
api.create_tag("me/tiny", tag="v1", revision=found["second"])
pipe = mortm_hf.MidiGenerationPipeline(model=model, tokenizer=tokenizer, task="midi-generation", device="cpu")
found["pipe"] = pipe.push_to_hub("me/piped").oid
open(out + "/made.mid", "wb").write(pipe(song, bars=1, seed=0)[0]["midi"])
torch.save({"ids": ids, "before": before, "after": model(ids).logits.detach()}, out + "/logits.pt")
bertm = dict(sizes, num_labels=2)
mortm_hf.BertmForSequenceClassification(mortm_hf.BertmConfig(**bertm)).push_to_hub("me/judge")
# the way back, on the installed code: nothing needs trust
again = AutoModelForCausalLM.from_pretrained("me/tiny", revision="v1").eval()
found["same"] = torch.equal(again(ids).logits, before)
classes = [AutoConfig.from_pretrained("me/tiny"), again, AutoTokenizer.from_pretrained("me/tiny")]
piped = mortm_hf.pipeline("midi-generation", model="me/piped", device="cpu")
found["again"] = piped(song, bars=1, seed=0)[0]["midi"] == open(out + "/made.mid", "rb").read()
classes.append(piped)
found["modules"] = [type(x).__module__.split(".")[0] for x in classes]
info = api.model_info("me/tiny")
found["tags"], found["task"] = info.tags, info.pipeline_tag
found["other"] = mortm_hf.MortmForCausalLM(mortm_hf.MortmConfig(**sizes)).model_tags
json.dump(found, open(out + "/pushed.json", "w"))
"""
)

# Without the package: everything comes from the repository, at the revision asked for.
PULL = (
    BEGIN
    + r"""
def hide(name, path=None, target=None):
    if name.split(".")[0] == "mortm_hf":
        raise ModuleNotFoundError("the package must not be used here: " + name)
sys.meta_path.insert(0, type("Hidden", (), {"find_spec": staticmethod(hide)}))
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline
from transformers import AutoModel
trust, known = dict(trust_remote_code=True), torch.load(out + "/logits.pt")
ids, found = known["ids"], {}
tokenizer = AutoTokenizer.from_pretrained("me/tiny", revision="v1", **trust)
found["ids"] = torch.equal(tokenizer(midi=[song], bars=(0, 2), return_tensors="pt")["input_ids"], ids)
for revision, name in (("main", "before"), (told["first"], "before"), ("v1", "before"), ("louder", "after")):
    model = AutoModelForCausalLM.from_pretrained("me/tiny", revision=revision, code_revision=revision, **trust).eval()
    found[revision] = torch.equal(model(ids).logits, known[name])
found["states"] = list(AutoModel.from_pretrained("me/tiny", **trust)(ids).last_hidden_state.shape)
found["judge"] = list(AutoModelForSequenceClassification.from_pretrained("me/judge", **trust)(ids).logits.shape)
pipe = pipeline("midi-generation", model="me/piped", revision=told["pipe"], device="cpu", **trust)
found["made"] = pipe(song, bars=1, seed=0)[0]["midi"] == open(out + "/made.mid", "rb").read()
chords = pipeline("chord-estimation", model="me/piped", device="cpu", **trust)
found["chords"] = len(chords(song, bars=(0, 1))[0]["chords"])
for name, revision in (("me/tiny", "v9"), ("me/none", "main")):
    try:
        AutoModelForCausalLM.from_pretrained(name, revision=revision, **trust)
    except OSError as error:
        found["error " + name] = str(error)
found["modules"] = [type(x).__module__.split(".")[0] for x in (tokenizer, model, pipe)]
found["package"] = "mortm_hf" in sys.modules
json.dump(found, open(out + "/pulled.json", "w"))
"""
)


def client(code: str, hub: LocalHub, home: Path, out: Path, told=None) -> None:
    """Run `code` as a client of `hub` that keeps its cache in `home`."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "PYTHONPATH"))}
    environment |= hub.environment(home) | {"OMP_NUM_THREADS": "1", "TMPDIR": str(out)}
    if "import mortm_hf" in code:
        environment["PYTHONPATH"] = str(ROOT)
    run = subprocess.run(
        [sys.executable, "-c", code, str(out), str(SONG), json.dumps(told or {})],
        cwd=out,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-4000:]


@pytest.fixture(scope="module")
def hub():
    with LocalHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def pushed(hub, out):
    client(PUSH, hub, out / "author", out)
    return json.loads((out / "pushed.json").read_text())


@pytest.fixture(scope="module")
def pulled(pushed, hub, out):
    client(PULL, hub, out / "reader", out, pushed)
    return json.loads((out / "pulled.json").read_text())


def test_only_safetensors_json_code_and_cards_go_up(pushed, hub):
    for (kind, name), repository in hub.repositories.items():
        if kind != "models":
            continue
        for commit in repository.commits.values():
            endings = {Path(path).suffix for path in commit.files if path != ".gitattributes"}
            assert endings <= {".safetensors", ".json", ".py", ".md"}, name
            for path, content in commit.files.items():
                if path.endswith(".json"):
                    json.loads(content)
                elif path.endswith(".safetensors"):
                    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
                    assert header["__metadata__"]["format"] == "pt"
    assert {name for kind, name in hub.repositories if kind == "models"} == {"me/tiny", "me/piped", "me/judge"}


def test_repositories_are_complete(pushed, hub):
    models = Path(mortm_hf.__file__).parent / "models"
    code = {path.name: path.read_bytes() for path in models.glob("*.py") if path.name != "__init__.py"}
    data = {"config.json", "generation_config.json", "model.safetensors", "tokenizer_config.json", "vocab.json"}
    for name, revision in (("me/tiny", "main"), ("me/tiny", "louder"), ("me/piped", "main"), ("me/judge", "main")):
        files = hub.repository(name).find(revision).files
        assert {path: code[path] for path in files if path.endswith(".py")}.items() <= files.items()
        if name != "me/judge":
            assert set(files) == set(code) | data | {"README.md", ".gitattributes"}


def test_card_keeps_what_its_author_wrote_and_is_tagged(pushed, hub):
    card = ModelCard(hub.repository("me/tiny").find("main").files["README.md"].decode())
    assert "A card written by hand." in card.text
    assert card.data.base_model == "me/first" and card.data.license == "mit"
    assert set(card.data.tags) == {"classical", "tiny", "mortm", "symbolic-music", "midi"}
    assert "base_model:me/first" in pushed["tags"] and pushed["task"] == "midi-generation"
    made = ModelCard(hub.repository("me/judge").find("main").files["README.md"].decode())
    assert {"bertm", "symbolic-music"} <= set(made.data.tags) and "tiny" not in made.data.tags
    assert "tiny" not in pushed["other"]  # tags of one push stay with that model


def test_history(pushed, hub):
    repository = hub.repository("me/tiny")
    messages = [commit.message for commit in repository.commits.values()]
    assert messages[-3:] == ["Upload MortmForCausalLM", "Upload tokenizer", "Louder"]
    assert repository.names["main"] == pushed["second"] == repository.names["v1"]
    assert repository.names["louder"] == pushed["third"]
    first, last = repository.commits[pushed["first"]].files, repository.commits[pushed["third"]].files
    assert first["model.safetensors"] != last["model.safetensors"]


def test_installed_code_loads_repositories_without_trust(pushed):
    assert pushed["same"] and pushed["again"]
    assert set(pushed["modules"]) == {"mortm_hf"}


def test_revisions_come_back_exactly(pushed, pulled):
    assert pulled["ids"]
    assert all(pulled[revision] for revision in ("main", pushed["first"], "v1", "louder"))


def test_every_class_comes_from_the_repository(pulled):
    assert not pulled["package"]
    assert set(pulled["modules"]) == {"transformers_modules"}
    assert pulled["states"][-1] == 16 and pulled["judge"] == [1, 2]
    assert pulled["made"] and pulled["chords"]


def test_wrong_names_are_named(pulled):
    assert "v9" in pulled["error me/tiny"]
    assert "me/none" in pulled["error me/none"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/repos/create", {"name": "x"}, 401),
        ("/api/validate-yaml", {"content": "---\nlicense: [1, 2\n---\n", "repoType": "model"}, 400),
        ("/me/none/resolve/main/config.json", None, 404),
    ],
)
def test_the_hub_itself_refuses(hub, path, body, status):
    data = None if body is None else json.dumps(body).encode()
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(hub.endpoint + path, data)
    assert refused.value.code == status


# MIDI bytes as a plain data set; then as songs of ours, there and back; each at two revisions.
DATASET = (
    BEGIN
    + r"""
from pathlib import Path
import datasets
import mortm_hf
from huggingface_hub import HfApi
tokenizer = mortm_hf.MortmTokenizer()
midi = Path(song).read_bytes()
other = bytes(tokenizer.decode_midi(tokenizer.encode_midi(song, bars=(0, 4))).dumps_midi())
ids = tokenizer.encode_midi(song)
rows = [{"name": "song", "midi": midi, "input_ids": ids}, {"name": "part", "midi": other, "input_ids": ids[:9]}]
first = datasets.Dataset.from_list(rows[:1]).push_to_hub("me/songs")
second = datasets.Dataset.from_list(rows).push_to_hub("me/songs", commit_message="One more")
found = {}
for oid, want in ((first.oid, rows[:1]), (second.oid, rows), ("main", rows)):
    again = datasets.load_dataset("me/songs", revision=oid, split="train")
    assert again.to_list() == want
    assert tokenizer(midi=list(again["midi"]))["input_ids"][0] == ids

built = mortm_hf.build_dataset("me/songs", out + "/built", chords="annotated", progress=False)
assert sum(len(part) for part in built.values()) == 2
mortm_hf.push_dataset(out + "/built", "me/prepared", title="Two songs")
HfApi().create_tag("me/prepared", tag="v1", repo_type="dataset")
mortm_hf.push_dataset(datasets.DatasetDict({"train": next(iter(built.values())).select([0])}), "me/prepared")
assert len(mortm_hf.load_songs("me/prepared", revision="v1")) == 2
newest = mortm_hf.load_songs("me/prepared")
assert len(newest) == 1
for here, there in zip(mortm_hf.load_songs(out + "/built"), mortm_hf.load_songs("me/prepared", revision="v1")):
    assert here.path == there.path
    assert (here.score.onset == there.score.onset).all() and (here.score.pitch == there.score.pitch).all()
try:
    mortm_hf.load_songs("me/prepared", revision="v9")
except mortm_hf.DataError as error:
    assert error.code == "data.network" and "v9" in str(error), error
else:
    raise AssertionError("a revision that is not there was loaded")
"""
)


@pytest.mark.slow
def test_datasets_of_midi_bytes_and_of_songs(hub, out):
    client(DATASET, hub, out / "datasets", out)
    for name, endings in (("me/songs", {".parquet", ".md"}), ("me/prepared", {".parquet", ".md", ".json", ".csv"})):
        for commit in hub.repository(name, "datasets").commits.values():
            assert {Path(path).suffix for path in commit.files if path != ".gitattributes"} <= endings
    files = hub.repository("me/prepared", "datasets").find("v1").files
    card = DatasetCard(files["README.md"].decode())
    assert {"midi", "symbolic-music", "mortm"} <= set(card.data.tags) and "Two songs" in card.text
    assert card.data.to_dict()["configs"][0]["data_files"]  # what `datasets` needs is still in the head
