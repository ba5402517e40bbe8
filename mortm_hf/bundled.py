"""The checkpoints that come with the package: their names, where they lie, what each of them is the default for.

Design decisions
- A checkpoint has one name: that of its folder, its card (`model_cards/NAME.md`) and its log (`NAME.log.jsonl`). The
  constants of `mortm_hf` (`MORTM_SMALL`, ...) are made from the same table.
- Whatever a user names as a model becomes a folder here and nowhere else, so that every command, recipe and function
  understands the same words.
- What is on disk goes before a bundled name: a folder of one's own is never hidden by the package.

Knows: folders and names. Must not know: models, transformers (importing this costs nothing).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from .models.errors_mortm import MortmError
from .models.families import FAMILIES


class Checkpoint(NamedTuple):
    """One bundled checkpoint.

    Attributes:
        constant: its public name in `mortm_hf`, the path of its folder.
        default_of: families, tasks and commands that use it where no model is named.
        about: what it is.
    """

    constant: str
    default_of: tuple[str, ...]
    about: str


# folder in checkpoints/ = card = log
CHECKPOINTS = {
    "mortm-small": Checkpoint("MORTM_SMALL", ("mortm",), "the generator of pipelines, `generate` and `finetune`"),
    "mortm-starter": Checkpoint("STARTER", ("rlmf",), "the same architecture trained on a CPU; the judges know it"),
    "mortm-aligned": Checkpoint("STARTER_ALIGNED", (), "the starter after music feedback: tracks that agree better"),
    "bertm-small": Checkpoint("BERTM", ("bertm", "fill-mask"), "the encoder (masked language model)"),
    "bertm-genre": Checkpoint("BERTM_GENRE", ("midi-classification",), "the encoder with a head for genres"),
    "bertm-quality": Checkpoint("BERTM_QUALITY", (), 'the encoder with one logit: "made by a machine"'),
    "vmortm-small": Checkpoint("VMORTM", ("vmortm",), "rendered sound"),
    "live-small": Checkpoint("MORTM_LIVE", ("mortm_live", "live"), "a partner to play with"),
}
ROOT = Path(__file__).resolve().parent / "checkpoints"
CONSTANTS = {row.constant: str(ROOT / name) for name, row in CHECKPOINTS.items()}
# every word for a bundled checkpoint -> its folder
_NAMES = {"starter": CONSTANTS["STARTER"], **CONSTANTS, **{name: str(ROOT / name) for name in CHECKPOINTS}}


def default_model(use: str) -> str:
    """The checkpoint that a task or a command uses where none is named.

    Args:
        use: a task ("midi-generation"), a family ("bertm") or a command ("rlmf"); others get the generator.

    Returns:
        Path of the folder.
    """
    family = next((name for name, row in FAMILIES.items() if use in row.tasks), "mortm")
    for wanted in (use, family):
        for row in CHECKPOINTS.values():
            if wanted in row.default_of:
                return CONSTANTS[row.constant]
    raise KeyError(f"no bundled checkpoint is the default of the family {family}")


def find_model(named: str | os.PathLike) -> str:
    """What a user named as a model, as `from_pretrained` takes it.

    Args:
        named: a checkpoint's folder, that of a run (its `final/` is meant), a bundled one by its name
            ("mortm-small") or constant ("MORTM_SMALL"), or a repository of the Hub.

    Returns:
        A folder, or the repository's name as it is.

    Raises:
        MortmError: a name in capitals that no bundled checkpoint has, or one whose folder is missing.
    """
    text = os.fspath(named)
    folder = Path(text)
    if folder.is_dir() and text not in CONSTANTS.values():
        final = folder / "final"
        whole = (folder / "config.json").is_file() or not (final / "config.json").is_file()
        return text if whole else str(final)
    found = _NAMES.get(text, text)
    if found in CONSTANTS.values() and not os.path.isfile(os.path.join(found, "config.json")):
        raise MortmError(f"there is no bundled checkpoint in {found}: give a folder or a Hub repository")
    if found == text and text.isidentifier() and text.isupper():
        raise MortmError(f"the package has no checkpoint {text}: it has {', '.join(CONSTANTS)}")
    return found


__all__ = ["CHECKPOINTS", "CONSTANTS", "default_model", "find_model"]
