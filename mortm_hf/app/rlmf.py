"""`mortm rlmf`: reinforcement learning from music feedback, from a recipe.

Design decisions
- The recipe's fields are the options; none is repeated here. Pictures of the samples are drawn by this package and
  handed down, for the training package draws nothing.

Knows: argparse, the recipe's reader, the drawing of piano rolls. Must not know: rewards, trainers.
"""

from __future__ import annotations

import argparse

from ..models.errors_mortm import CommandError
from ..training.library_calls import without_bars
from .options import packages_of


EXAMPLES = """examples:
  mortm rlmf rlmf_rules --data ../shared/data --output_dir runs/rules      a recipe of the package
  mortm rlmf rlmf_quality --data pack --output_dir runs/q --kl_coef 0.1    any plain field of a recipe is an option
  mortm rlmf my.yaml --data pack --output_dir runs/q2 --resume runs/q/final    goes on from policy and critic
  mortm rlmf rlmf_rules --fields                                           lists the fields with their defaults
  accelerate launch --config_file mortm_hf/training/configs/ddp.yaml -m mortm_hf.training.rlmf my.yaml ...

Curves: tensorboard --logdir RUN, or RUN/log.jsonl. Samples: RUN/samples. The result: RUN/final, a model folder for
mortm generate --model. Before and after: benchmarks/rlmf.py."""


def add_command(commands) -> None:
    """Adds `rlmf` to the parser's commands."""
    parser = commands.add_parser(
        "rlmf",
        description="Trains a model by reinforcement learning: its music is rated by BERTM or by rules.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("recipe", help="YAML file, or the name of a recipe of the package (rlmf_rules, rlmf_quality)")
    add("fields", nargs=argparse.REMAINDER, metavar="--field value", help="fields of the recipe")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Trains.

    Raises:
        CommandError, RlmfError and the errors of data and models: what the user can mend.
    """
    import importlib.util

    with packages_of("reinforcement learning", "rlmf"):
        from ..training.recipe import describe_fields
        from ..training.rlmf.feedback_recipe import KIND, read_recipe
        from ..training.rlmf.feedback_run import output_of, train
    if "--fields" in args.fields:
        print(describe_fields(KIND))
        return
    draw = None
    if importlib.util.find_spec("matplotlib") is not None:
        from .rendering import draw_piano_roll as draw

    recipe = read_recipe(args.recipe, args.fields)
    folder = output_of(recipe)
    try:
        with without_bars():
            train(recipe, folder, draw=draw)
    except FileNotFoundError as error:
        raise CommandError(str(error), "command.input") from None
    if (folder / "final").is_dir():
        print(f"{folder / 'final'}: the policy, and its critic in value/")
