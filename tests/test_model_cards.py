"""Model cards: YAML that the Hub accepts and reads, and code that runs.

Every card in `model_cards/` is tested; each bundled checkpoint has one of its name, and a log.
"""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers.pipelines import PIPELINE_REGISTRY

import mortm_hf
from mortm_hf.app.cli import main
from mortm_hf.models.families import TASKS as OURS
from tests.hub.local_hub import card_problem


ROOT = Path(__file__).parents[1]
SONG = next((Path(mortm_hf.__file__).parent / "app" / "demo").glob("*.mid"))
STARTER = Path(mortm_hf.STARTER)
CARDS = sorted((ROOT / "model_cards").rglob("*.md"))
TASKS = {*OURS, *PIPELINE_REGISTRY.get_supported_tasks()}
REPOSITORY = re.compile(r"""(["'])[\w.-]+/(?:mortm|bertm)[\w.-]*\1""")  # "name/mortm-starter"


def problems(text: str) -> list[str]:
    """What is wrong with the head of a card."""
    said = card_problem(text)
    if said is not None:
        return [said]
    if not text.startswith("---\n"):
        return ["the card does not begin with YAML"]
    data, found = ModelCard(text).data, []
    if not data.license:
        found.append("no license")
    if data.library_name != "transformers":
        found.append("library_name is not transformers: the Hub shows no code to load the model")
    shown = "pipeline(" in ModelCard(text).content  # a model that no pipeline takes has no task
    if data.pipeline_tag not in TASKS and (shown or data.pipeline_tag is not None):
        found.append(f"pipeline_tag {data.pipeline_tag} is no task of ours or of transformers")
    if not data.tags:
        found.append("no tags")
    for section, value in data.to_dict().items():
        if value in (None, "", []) or "TODO" in str(value):
            found.append(f"{section} is empty")
    body = re.sub(r"```.*?```", "", ModelCard(text).content, flags=re.DOTALL)
    found += [f"left to fill in: {word}" for word in re.findall(r"More Information Needed|TODO|\{\{.*?\}\}", body)]
    return found


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def runnable(folder: Path, own_checkpoint: bool):
    """The names a reader of a card has at hand: `song.mid`, and a checkpoint where the bundled one is missing."""
    shutil.copy(SONG, folder / "song.mid")
    if own_checkpoint:
        return str(STARTER)
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, moe_intermediate_size=8)
    sizes |= dict(shared_expert_intermediate_size=8, num_local_experts=2)
    mortm_hf.MortmForCausalLM(mortm_hf.MortmConfig(**sizes)).save_pretrained(folder / "checkpoint")
    mortm_hf.MortmTokenizer().save_pretrained(folder / "checkpoint")
    return str(folder / "checkpoint")


def run(text: str) -> int:
    """Run the Python blocks of a card one after the other, as a reader would, and its `mortm` commands.

    Names of repositories on the Hub ("someone/mortm-...") stand for the checkpoint at hand.
    """
    names: dict = {}
    done = 0
    for block in blocks(text, "python"):
        exec(compile(REPOSITORY.sub(repr(mortm_hf.STARTER), block), "card", "exec"), names)
        done += 1
    for line in (line for block in blocks(text, "bash") for line in block.splitlines() if line.startswith("mortm ")):
        assert main(shlex.split(line, comments=True)[1:]) == 0, line
        done += 1
    return done


def test_folder_card_and_log_have_one_name():
    names = set(mortm_hf.bundled.CHECKPOINTS)
    assert {path.name for path in mortm_hf.bundled.ROOT.iterdir()} == names
    assert {card.stem for card in CARDS} == names
    assert {log.name for log in (ROOT / "model_cards").glob("*.log.jsonl")} <= {f"{name}.log.jsonl" for name in names}


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_hub_accepts_the_card(card):
    assert problems(card.read_text(encoding="utf-8")) == []


@pytest.mark.slow
@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_code_of_the_card_runs(card, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mortm_hf, "STARTER", runnable(tmp_path, (STARTER / "config.json").exists()))
    assert run(card.read_text(encoding="utf-8")) > 0, "a card shows how its model is used"


GOOD = """---
license: mit
library_name: transformers
pipeline_tag: midi-generation
tags: [mortm, midi]
base_model: someone/model
---

# A model

```python
from mortm_hf import STARTER, MortmTokenizer, pipeline

MortmTokenizer.from_pretrained("someone/mortm-tiny")
ids = MortmTokenizer.from_pretrained(STARTER).encode_midi("song.mid", bars=(0, 1))
```

```python
assert len(ids) > 5
out = pipeline("midi-generation", device="cpu")("song.mid", bars=1, seed=0)
out[0]["score"].dump_midi("new.mid")
```

```bash
mortm info song.mid
```
"""


def test_a_good_card_passes_and_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mortm_hf, "STARTER", runnable(tmp_path, False))
    monkeypatch.setitem(mortm_hf.bundled.CONSTANTS, "MORTM_SMALL", mortm_hf.STARTER)
    assert problems(GOOD) == []
    assert run(GOOD) == 3
    assert (tmp_path / "new.mid").exists()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("license: mit", "license: [mit", "flow sequence"),
        ("license: mit\n", "", "no license"),
        ("library_name: transformers\n", "", "library_name"),
        ("midi-generation\ntags", "symphonies\ntags", "symphonies"),
        ("pipeline_tag: midi-generation\n", "", "pipeline_tag None"),
        ("[mortm, midi]", "[]", "no tags"),
        ("[mortm, midi]", "[3, midi]", "tags"),
        ("someone/model", "[1]", "base_model"),
        ("# A model", "# A model\n\nTODO: words", "TODO"),
        ("# A model", "[More Information Needed]", "More Information"),
    ],
)
def test_faults_of_cards_are_found(old, new, words):
    assert old in GOOD
    assert words in " ".join(problems(GOOD.replace(old, new, 1)))


def test_code_that_fails_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NameError):
        run("```python\nlost\n```")
    with pytest.raises(AssertionError):
        run("```bash\nmortm info nowhere.mid\n```")
