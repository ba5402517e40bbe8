"""What every run has in common: its folder's recipe, its schedule, its command line.

Design decisions
- One recipe a folder: a run that is started again must be the one that the folder holds, or be told to start anew.
- A training module offers `run(recipe, words)`; `mortm train` and `python -m` both call it.

Knows: run folders, transformers' arguments. Must not know: data, models, recipes' sections.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .errors import TrainingError


def same_run(folder: Path, stated: dict, fresh: bool, later: dict | None = None) -> None:
    """Write what a run is made of, or compare it with what the run in this folder began with.

    Args:
        later: `{section: {field: default}}` of fields that may have come after the run began: there they stand at
            their defaults.

    Raises:
        TrainingError: another recipe (the message names the parts that differ).
    """
    stated = json.loads(json.dumps(stated))
    path = folder / "recipe.json"
    if path.is_file() and not fresh:
        before = json.loads(path.read_text(encoding="utf-8"))
        for section, defaults in json.loads(json.dumps(later or {})).items():
            known = {name: value for name, value in defaults.items() if name in stated[section]}
            before[section] = known | before.get(section, {})
        if before != stated:
            different = [k for k in {**before, **stated} if before.get(k) != stated.get(k)]
            raise TrainingError(
                f"{folder} holds a run with another recipe (different: {', '.join(different)}): "
                "give another --output_dir, or --fresh True to start it anew"
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / ".recipe.json.tmp"
        partial.write_text(json.dumps(stated, indent=1), encoding="utf-8")
        partial.replace(path)


def bundled_encoder(name: str) -> str:
    """The folder of the package's encoder for the word `bertm-small`; anything else stays as it is."""
    if name != "bertm-small":
        return name
    from .. import BERTM

    return BERTM


def apply_decay(arguments) -> None:
    """A linear fall of the learning rate over the last `decay_steps`."""
    if arguments.decay_steps:
        arguments.lr_scheduler_type = "warmup_stable_decay"
        arguments.lr_scheduler_kwargs = {
            "num_decay_steps": arguments.decay_steps,
            "decay_type": "linear",
            "min_lr_ratio": 0.0,
        }


def command_line(name: str, title: str, run, words: list[str] | None) -> int:
    """A recipe file and `--field value` words; the exit code (2: bad input, one line on stderr).

    Args:
        run: called with the recipe and the words after it.
    """
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0].startswith("-"):
        print(title.splitlines()[0])
        return 0 if words and words[0] in ("-h", "--help") else 2
    try:
        run(words[0], words[1:])
    except (ValueError, OSError) as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0
