"""Training in several processes: `torchrun -m mortm_hf.training.pretrain RECIPE.yaml [--field value ...]`.

Also `accelerate launch [--config_file CONFIG] -m mortm_hf.training.pretrain RECIPE.yaml [...]`. Recipes of the other
tasks: the same with `-m mortm_hf train RECIPE.yaml`.

Knows: the tasks, the command line of a run. Must not know: anything else.
"""

from __future__ import annotations

import sys

from .run import command_line
from .tasks import run


def main(words: list[str] | None = None) -> int:
    """Command line: a recipe file and `--field value` words; the exit code.

    Args:
        words: by default those of this process.
    """
    return command_line("pretrain", __doc__, lambda path, rest: run(path, rest, "pretrain"), words)


if __name__ == "__main__":
    sys.exit(main())
