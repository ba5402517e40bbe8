"""What README, CONTRIBUTING, benchmarks/README and docs/ tell people to type works; what they point to is there.

Every command in a bash block is parsed and, unless `NOT_RUN` says why not, run; the Python blocks of a page run one
after the other, as a reader would type them.

Example: python -m pytest tests/app/test_docs.py -k generation
"""

import argparse
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import mortm_hf
from mortm_hf.app.cli import build_parser, main


ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
        *sorted((ROOT / "docs").glob("*.md")),
    )
}
LANGUAGES = {"", "bash", "python", "yaml"}
# what a bash block may begin a line with besides `mortm`: `make` and `python` are checked, the others are not ours
PROGRAMS = {"make", "python", ".venv/bin/python", "pip", "git", "cd", "torchrun", "mortm"}
# Commands that are parsed but not run, by their first words (the longest that fit), and why.
NOT_RUN = {
    "mortm train": "trains for minutes to hours: tests/training",
    "mortm finetune": "trains for minutes: tests/training/test_finetune.py",
    "mortm eval": "samples for minutes: tests/app/test_eval.py",
    "mortm rlmf": "trains for minutes: tests/training/rlmf",
    "mortm data push": "needs the Hub: tests/hub/test_push_songs.py",
    "mortm live --ports": "needs MIDI ports: tests/app/test_live.py",
    "mortm live --input": "needs MIDI ports: tests/app/test_live.py",
}
RUN = ("mortm train own --fields",)  # although `NOT_RUN` holds the words before
# Python blocks that are compiled but not run, by a line that they hold, and why.
NOT_RUN_PYTHON = {"push_folder(": "needs the Hub: tests/hub/test_push_and_pull.py"}
# Pages whose blocks change what the package knows: each section runs in an interpreter of its own.
ALONE = ("CONTRIBUTING.md",)


def fenced(text: str, language: str) -> list[str]:
    """The fenced blocks of one language in a text."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [block for kind, block in found if kind == language]


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of one language on a page."""
    return fenced(PAGES[page], language)


def command_words(page: str, program: str) -> list[list[str]]:
    """The words of the commands in bash blocks that begin with `program`."""
    lines = (shlex.split(line, comments=True) for text in blocks(page, "bash") for line in text.splitlines())
    return [words for words in lines if words[:1] == [program]]


def inline(page: str, program: str) -> list[list[str]]:
    """The words of the commands in the running text and in tables that begin with `program`."""
    text = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"`([^`]+)`", text)
    return [words for words in map(str.split, found) if words[:1] == [program] and len(words) > 1]


COMMANDS = {" ".join(words): words for page in PAGES for words in command_words(page, "mortm")}


def reason(command: str) -> str | None:
    """Why a command is not run, or None."""
    fitting = [words for words in NOT_RUN if command.startswith(words)]
    return None if command.startswith(RUN) or not fitting else NOT_RUN[max(fitting, key=len)]


# ---------------------------------------------------------------------------------------------------------------------
# Commands


@pytest.fixture
def desk(tmp_path, tiny_model, monkeypatch):
    """An empty folder to work in, where the bundled generators are a tiny random one."""
    monkeypatch.chdir(tmp_path)
    for name in ("MORTM_SMALL", "STARTER"):
        monkeypatch.setattr(mortm_hf, name, str(tiny_model))
        monkeypatch.setitem(mortm_hf.bundled.CONSTANTS, name, str(tiny_model))
    return tmp_path


def lay_out(desk: Path, words: list[str], song: Path) -> None:
    """Puts the inputs that `words` name on the desk; what follows -o is an output."""
    outputs = {words[i + 1].rstrip("/") for i, word in enumerate(words[:-1]) if word in ("-o", "--output_dir")}
    case = min((ROOT / "tests/fixtures/upstream_models").glob("*/model.pth"), key=lambda path: path.stat().st_size)
    for name in {word.rstrip("/") for word in words} - outputs:
        if name == "song.mid":
            shutil.copy(song, desk / name)
        elif name in ("collection", "midi", "my_songs"):
            (desk / name).mkdir()
            shutil.copy(song, desk / name / "one.mid")
        elif name in ("model.pth", "config.json"):
            shutil.copy(case.with_name(name), desk / name)
        elif name == "my-model":
            mortm_hf.convert_checkpoint(case, desk / name)
        elif name == "songs":
            mortm_hf.build_dataset(song, desk / name, chords="none", progress=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_words_are_understood(command):
    words = COMMANDS[command]
    args = build_parser().parse_args(words[1:])
    assert callable(args.run)
    if words[1] in ("train", "rlmf") and not words[2].endswith(".yaml"):
        assert (ROOT / "mortm_hf/training/recipes" / f"{words[2]}.yaml").exists()


@pytest.mark.parametrize("command", [command for command in COMMANDS if reason(command) is None])
def test_commands_run(desk, command, song, capsys):
    words = COMMANDS[command]
    lay_out(desk, words, song)
    assert main(words[1:]) == 0, capsys.readouterr().err
    if "-o" in words:
        target = desk / words[words.index("-o") + 1]
        if "--num" in words:
            target = target.with_stem(f"{target.stem}-{words[words.index('--num') + 1]}")
        assert any(target.iterdir()) if target.is_dir() else target.stat().st_size > 100


def test_every_reason_is_needed():
    for words in (*NOT_RUN, *RUN):
        assert any(command.startswith(words) for command in COMMANDS), words
    text = "".join(block for page in PAGES for block in blocks(page, "python"))
    assert all(line in text for line in NOT_RUN_PYTHON)


def test_every_command_is_shown():
    parser = build_parser()
    (choices,) = [a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    assert {words[1] for words in command_words("docs/command-line.md", "mortm")} == set(choices)
    for page in PAGES:
        assert {words[1] for words in inline(page, "mortm")} <= set(choices), page


@pytest.mark.parametrize("page", PAGES)
def test_programs_and_targets(page):
    """`make` targets are in the Makefile; scripts and modules are there and know the options that are given."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for text in blocks(page, "bash"):
        for line in text.splitlines():
            assert not line or line.lstrip("# ").startswith("<") or line.split()[0] in PROGRAMS, line
    for words in (*command_words(page, "make"), *inline(page, "make")):
        target = words[1]
        generic = target.startswith("bench-") and (ROOT / "benchmarks" / f"{target[6:]}.py").exists()
        assert generic or re.search(rf"^{re.escape(target)}:", makefile, flags=re.MULTILINE), target
    ours = command_words(page, "python") + command_words(page, ".venv/bin/python") + inline(page, "python")
    for words in ours:
        if words[1:3] == ["-m", "pytest"]:
            assert (ROOT / words[3]).exists(), words[3]
            continue
        if words[1] == "-m":
            spec = importlib.util.find_spec(words[2])
            assert spec is not None, words[2]
            source = "" if not words[2].startswith("mortm_hf") else Path(spec.origin).read_text(encoding="utf-8")
        else:
            source = (ROOT / words[1]).read_text(encoding="utf-8")
        for option in [word for word in words if word.startswith("--")] if source else ():
            assert f'"{option}"' in source, (words[1], option)


# ---------------------------------------------------------------------------------------------------------------------
# Python and YAML


def sections(page: str) -> dict[str, str]:
    """The Python blocks of each section of a page, by its heading."""
    parts = re.split(r"^## (.*)$", PAGES[page], flags=re.MULTILINE)
    code = {head: "\n".join(fenced(text, "python")) for head, text in zip(parts[1::2], parts[2::2])}
    return {head: text for head, text in code.items() if text}


@pytest.mark.parametrize(("page", "section"), [(page, section) for page in ALONE for section in sections(page)])
def test_python_blocks_run_alone(tmp_path, page, section, song):
    lay_out(tmp_path, ["song.mid"], song)
    (tmp_path / "section.py").write_text(sections(page)[section], encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "section.py"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python") and page not in ALONE])
def test_python_blocks_run(desk, page, song):
    lay_out(desk, ["song.mid", "midi", "model.pth", "config.json"], song)
    names: dict = {}
    for block in blocks(page, "python"):
        code = compile(block, page, "exec")
        if not any(line in block for line in NOT_RUN_PYTHON):
            exec(code, names)


@pytest.mark.parametrize("page", PAGES)
def test_other_blocks(page):
    kinds = re.findall(r"^```(\w*)\n.*?^```$", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    assert set(kinds) <= LANGUAGES and PAGES[page].count("```") == 2 * len(kinds)
    for block in blocks(page, "yaml"):
        assert yaml.safe_load(block)


# ---------------------------------------------------------------------------------------------------------------------
# What pages point to, and how long they are


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths(page):
    """Relative links lead to files of the tree, and so do the paths that the text names."""
    text = PAGES[page]
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in link:
            assert (ROOT / page).parent.joinpath(link).exists(), link
    plain = re.sub(r"\]\([^)]*\)", "]", text)
    named = re.findall(
        r"(?<![\w./-])(?:mortm_hf|benchmarks|tests|model_cards|notebooks|docs|conversion|\.ci)/[\w./-]*\w", plain
    )
    for path in named:
        assert (ROOT / path).exists(), path


def test_the_map_is_that_of_the_tree():
    """Every line of the map names what is there; every folder and every file at the top of the package has a line."""
    (tree,) = [block for block in blocks("CONTRIBUTING.md", "") if block.startswith("README.md ")]
    folders, named = {-2: ROOT}, set()
    for line in tree.splitlines():
        depth, name = len(line) - len(line.lstrip()), line.split()[0]
        path = folders[depth - 2] / name
        assert path.exists() and path.is_dir() == name.endswith("/"), line
        folders[depth] = path
        named.add(path)
    package = [path for path in (ROOT / "mortm_hf").iterdir() if path.name not in ("__pycache__", "py.typed")]
    assert {path for path in package if not path.name.startswith(("_v", "__m"))} <= named
    chapters = re.findall(r"`(\w+_)`", PAGES["CONTRIBUTING.md"].partition("### The chapters")[2].partition("###")[0])
    files = [path.name for path in (ROOT / "mortm_hf/models").glob("*.py") if path not in named]
    alone = ("__init__.py", "inputs_bertm.py", "reward_bertm.py", "attention_mortm.py", "experts_mortm.py")
    assert [name for name in files if not name.startswith((*chapters, *alone))] == []


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_imports_of_notebooks(notebook):
    """The slow tests run the notebooks; what they import from the package is there."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    lines = re.findall(r"^from mortm_hf\S* import .*$", source, flags=re.MULTILINE)
    assert lines or "import mortm_hf" in source
    for line in lines:
        exec(line, {})


def test_anchors():
    """Links within a page lead to one of its headings."""
    for page, text in PAGES.items():
        headings = {
            re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.M)
        }
        assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings, page


def test_every_recipe_is_named():
    recipes = {path.stem for path in (ROOT / "mortm_hf/training/recipes").glob("*.yaml")}
    assert recipes <= set(re.findall(r"`(\w+)`", PAGES["docs/training.md"]))


def test_the_index_has_every_page():
    pages = {Path(page).name for page in PAGES if page.startswith("docs/")} - {"index.md"}
    assert set(re.findall(r"^\| \[[^]]+\]\(([\w-]+\.md)\)", PAGES["docs/index.md"], flags=re.MULTILINE)) == pages


def test_every_benchmark_stands_in_the_table():
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py")}
    assert scripts <= set(re.findall(r"(\w+\.py)", PAGES["benchmarks/README.md"]))
    table = PAGES["benchmarks/README.md"].partition("<!-- figures:begin -->")[2].partition("<!-- figures:end -->")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) > 50 and max(map(len, rows)) < 200


def test_the_readme_is_short_and_shows_music():
    assert PAGES["README.md"].count("\n") <= 150
    first = blocks("README.md", "python")[0]
    assert len([line for line in first.splitlines() if line]) <= 5
    for name, most in (("continued.mp3", 150_000), ("continued.png", 150_000), ("continued.mid", 10_000)):
        assert 1000 < (ROOT / "docs/media" / name).stat().st_size < most and f"docs/media/{name}" in PAGES["README.md"]
