"""What users hold on to: names, words, options, fields, codes and parameters, as plain lists.

`python tests/surface.py` adds what is new to `fixtures/surface.json`; nothing is ever taken out of it, so that
`test_house.py` finds what has vanished.
"""

import argparse
import ast
import contextlib
import io
import json
import re
from pathlib import Path

import yaml


RECORD = Path(__file__).parent / "fixtures" / "surface.json"
CHECKPOINTS = "MORTM_SMALL STARTER STARTER_ALIGNED BERTM BERTM_GENRE BERTM_QUALITY VMORTM MORTM_LIVE".split()
# one recipe of each task lists the fields that all of the task have
TASK_RECIPES = ("starter", "bertm_small", "bertm_genre", "vmortm_small", "live_small")


def package() -> Path:
    import mortm_hf

    return Path(mortm_hf.__file__).parent


def public_names() -> list[str]:
    import mortm_hf

    return sorted(mortm_hf.__all__)


def tasks() -> list[str]:
    """Tasks of `transformers.pipeline` that the package brings along."""
    from transformers.pipelines import PIPELINE_REGISTRY

    import mortm_hf  # noqa: F401

    return sorted(t for t, entry in PIPELINE_REGISTRY.supported_tasks.items() if "mortm_hf." in str(entry["impl"]))


def commands() -> list[str]:
    """Every command and each of its options, e.g. "generate --bars" and "data build INPUT"."""
    from mortm_hf.app.cli import build_parser

    found = []

    def walk(parser, words: tuple[str, ...]) -> None:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for word, sub in action.choices.items():
                    found.append(" ".join((*words, word)))
                    walk(sub, (*words, word))
            elif action.option_strings:
                found.extend(" ".join((*words, option)) for option in action.option_strings)
            else:
                found.append(" ".join((*words, action.dest.upper())))
            if action.choices and not isinstance(action.choices, dict) and not isinstance(action.choices, range):
                name = action.option_strings[-1] if action.option_strings else action.dest.upper()
                found.extend(" ".join((*words, name, str(choice))) for choice in action.choices)

    walk(build_parser(), ())
    return sorted(set(found))


def recipes() -> list[str]:
    """Names of the recipes of the package, and the fields that each one states, e.g. "starter data.rows"."""
    found = []
    for path in sorted((package() / "training" / "recipes").glob("*.yaml")):
        found.append(path.stem)
        for section, values in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            found.append(f"{path.stem} {section}")
            found.extend(f"{path.stem} {section}.{name}" for name in (values if isinstance(values, dict) else ()))
    return found


def recipe_options() -> list[str]:
    """The options of `mortm train`, e.g. "starter --rows"; those of transformers' own arguments are its affair."""
    from mortm_hf.app.cli import main

    found = []
    for recipe in TASK_RECIPES:
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            assert main(["train", recipe, "--fields"]) == 0
        text = shown.getvalue().partition("training (transformers'")[0]
        found.extend(f"{recipe} {option}" for option in re.findall(r"^  (--[\w.]+)", text, re.M))
    return found


def recipe_fields() -> list[str]:
    """Fields of the classes that recipes are read into, e.g. "rows"."""
    found = set()
    for path in package().rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name.endswith(("Recipe", "Section", "Arguments")):
                found |= {part.target.id for part in node.body if isinstance(part, ast.AnnAssign)}
    return sorted(found)


def error_codes() -> list[str]:
    from mortm_hf.models.errors_mortm import CODES

    return sorted(CODES)


def parameters() -> list[str]:
    """Names in the weights of the bundled checkpoints, numbers as N: "MORTM_SMALL model.layers.N.mlp.gate.weight"."""
    from safetensors import safe_open

    import mortm_hf

    found = set()
    for constant in CHECKPOINTS:
        with safe_open(Path(getattr(mortm_hf, constant)) / "model.safetensors", "pt") as file:
            found |= {f"{constant} {re.sub(r'[0-9]+', 'N', name)}" for name in file.keys()}
    return sorted(found)


PARTS = (public_names, tasks, commands, recipes, recipe_options, recipe_fields, error_codes, parameters)


def record() -> None:
    """Add what is new to the record."""
    known = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}
    for part in PARTS:
        known[part.__name__] = sorted({*known.get(part.__name__, ()), *part()})
    RECORD.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    record()
