"""What the README tells people to type works: every command, every Python block, every make target.

Example: python -m pytest tests/app/test_readme.py
"""

import re
import shlex
import shutil
from pathlib import Path

import pytest

import mortm_hf
from mortm_hf.app.cli import build_parser, main


ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


COMMANDS = [line for block in _blocks("bash") for line in block.splitlines() if line.startswith("mortm ")]


@pytest.fixture
def desk(tmp_path, song, tiny_model, monkeypatch):
    """A folder with `song.mid` and `collection/`, where the bundled checkpoint is a tiny random one."""
    (tmp_path / "collection").mkdir()
    shutil.copy(song, tmp_path / "song.mid")
    shutil.copy(song, tmp_path / "collection" / "one.mid")
    monkeypatch.chdir(tmp_path)
    for name in ("MORTM_SMALL", "STARTER"):
        monkeypatch.setattr(mortm_hf, name, str(tiny_model))
    return tmp_path


def test_the_readme_shows_every_command():
    usual = {"generate", "tokenize", "info", "convert", "data", "train", "finetune", "eval", "rlmf", "live"}
    assert {command.split()[1] for command in COMMANDS} == usual
    assert len(_blocks("python")) == 2


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split("#")[0].strip())
def test_words_are_understood(command):
    """Those that train or need a collection have tests of their own, with the same words."""
    args = build_parser().parse_args(shlex.split(command, comments=True)[1:])
    assert callable(args.run)


@pytest.mark.parametrize(
    "command",
    [c for c in COMMANDS if c.split()[1] in ("generate", "tokenize", "info")],
    ids=lambda command: command.split("#")[0].strip(),
)
def test_commands(desk, command, capsys):
    words = shlex.split(command, comments=True)[1:]
    assert main(words) == 0
    if "-o" in words:
        assert (desk / words[words.index("-o") + 1]).stat().st_size > 100


def test_convert(tmp_path, monkeypatch, capsys):
    """The README's conversion on the smallest upstream case."""
    (command,) = (shlex.split(c, comments=True)[1:] for c in COMMANDS if " convert " in c)
    case = min((ROOT / "tests/fixtures/upstream_models").glob("*/model.pth"), key=lambda path: path.stat().st_size)
    for name in ("model.pth", "config.json"):
        shutil.copy(case.with_name(name), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert main(command) == 0, capsys.readouterr().err
    assert (tmp_path / "my-model" / "model.safetensors").exists()


@pytest.mark.parametrize("block", _blocks("python"), ids=["pipeline", "parts"])
def test_python(desk, block):
    exec(compile(block, "README.md", "exec"), {})
    assert [p for p in desk.iterdir() if p.name in ("new.mid", "copy.mid")]


def test_make_targets_and_paths_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)", README, flags=re.MULTILINE)
    assert len(targets) >= 5
    for target in {first or second for first, second in targets}:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for path in re.findall(r"(?:mortm_hf|benchmarks|tests|model_cards|\.ci)/[\w./-]*\w", README):
        assert (ROOT / path).exists(), path
