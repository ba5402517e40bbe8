"""`mortm train` and `mortm finetune`: from a recipe, or from a folder of one's own MIDI files, to a checkpoint.

Design decisions
- `train` takes a recipe and any field of it as `--field value`, the very words of
  `accelerate launch -m mortm_hf.training.pretrain`: one process here, several there. A run has a folder always: the
  one that is named, or `runs/<recipe>`.
- `finetune` takes a folder and nothing else that must be known: it splits, trains, measures before and after on songs
  it did not train on, and writes one folder that every command takes as `--model`.

Knows: argparse, the training package's entry points. Must not know: how training is done.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..bundled import default_model
from ..models.errors_mortm import CommandError
from .files import Outputs
from .options import at_least, given, number, packages_of


TRAIN_EXAMPLES = """examples:
  mortm train mortm_small --data pack --output_dir runs/mine --bf16 True    the bundled checkpoint, on a GPU
  mortm train starter --data pack --output_dir runs/mine                    a smaller run for CPU cores
  mortm train own --data my_songs --output_dir runs/own                     MIDI files or a data set of your own
  mortm train my.yaml --data pack --output_dir runs/mine --max_steps 500    fields of a recipe are options
  mortm train my.yaml --data pack --model.hidden_size 128 --tasks '{continue: 3, infill: 1}'    all of them
  mortm train my.yaml --data pack --output_dir runs/mine                    again: goes on where it stopped
  mortm train starter --fields                                              lists all fields with their defaults
  mortm train bertm_small --data pack --output_dir runs/encoder             an encoder, on hidden notes
  mortm train bertm_notes --data pack --output_dir runs/notes               a critic's encoder, on wrong notes
  mortm train bertm_genre --data pack --output_dir runs/genre               a classifier from the bundled encoder

A run ends with a checkpoint when it is interrupted (Ctrl-C). Curves: tensorboard --logdir runs/mine/runs
Several processes: accelerate launch -m mortm_hf.training.pretrain my.yaml ... (launch commands: the package's
training/configs). Reinforcement learning: mortm rlmf."""

FINETUNE_EXAMPLES = """examples:
  mortm finetune my_songs/ -o my-model                       the bundled checkpoint, on every .mid below the folder
  mortm finetune my_songs/ -o my-model --lora                adapters only, merged at the end: less to forget
  mortm finetune my_songs/ -o my-model --model someone/their-model --passes 4
  mortm generate song.mid -o new.mid --model my-model        what comes of it

Some songs are held out and never trained on: those that a data set or the metadata.csv of a folder (column split)
names, else some are drawn. Chord annotations beside the files are heeded, genres and keys of a metadata.csv too.
Interrupted, it goes on when it is run again."""

# the options that are words of `finetune`
FINETUNE_OPTIONS = "model lora passes learning_rate held_out seed overwrite keep_run".split()


def add_command(commands) -> None:
    """Adds `train` and `finetune` to the parser's commands."""
    train = commands.add_parser(
        "train",
        description="Trains (or goes on training) a model as a recipe states it.",
        epilog=TRAIN_EXAMPLES,
    )
    add = train.add_argument
    add("recipe", help="YAML file, or the name of a recipe of the package (mortm_small, starter, ...)")
    add("--fields", action="store_true", help="list the fields that can be given, and stop")
    add("words", nargs=argparse.REMAINDER, metavar="--field value", help="fields of the recipe")
    train.set_defaults(run=run_train)

    tune = commands.add_parser(
        "finetune",
        description="Trains a checkpoint further on a folder of MIDI files and measures it on songs held out.",
        epilog=FINETUNE_EXAMPLES,
    )
    add = tune.add_argument
    add("input", nargs="+", type=Path, help="MIDI files, folders of them, or one data set of `mortm data build`")
    add("-o", "--output", required=True, type=Path, help="folder to write")
    add("--model", help="start from: folder, run, bundled name or repository (default: mortm-small)")
    add(
        "--lora",
        nargs="?",
        const=16,
        default=0,
        type=at_least(1),
        metavar="RANK",
        help="train adapters of this rank (16) instead of all weights",
    )
    add("--passes", type=number(0), default=4.0, help="times the songs are gone through (default 4)")
    add("--learning-rate", type=number(0, 1), help="peak rate (default 3e-4, with --lora 2e-3)")
    add(
        "--held-out",
        type=number(0, 0.5),
        default=0.2,
        metavar="PART",
        help="part of the songs that is held out, half to select by, half to report (default 0.2)",
    )
    add("--bf16", action="store_true", help="train in bf16 (GPUs, and CPUs with instructions for it)")
    add("--seed", type=int, default=0, help="of the split and of all draws (default 0)")
    add("--overwrite", action="store_true", help="replace a folder that exists")
    add("--keep-run", action="store_true", help="keep the working folder (OUTPUT.run)")
    add("--json", type=Path, metavar="FILE", help="write the figures and the skipped files here")
    tune.set_defaults(run=run_finetune)


def run_train(args: argparse.Namespace) -> None:
    """Trains, or lists the fields.

    Raises:
        TrainingError: the recipe cannot be trained.
        CommandError: files that are not there.
    """
    with packages_of("training", "train"):
        from ..training import tasks
        from ..training.recipe import describe_fields
    if args.fields or "--fields" in args.words:
        print(describe_fields(tasks.kind_of(args.recipe)))
        return
    try:
        tasks.run(args.recipe, args.words)
    except FileNotFoundError as error:
        raise CommandError(str(error), "command.input") from None


def run_finetune(args: argparse.Namespace) -> None:
    """Fine-tunes; prints bits a note before and after, and skipped files.

    Raises:
        TrainingError: too few songs, a checkpoint that cannot be trained on them, an output that exists.
    """
    with packages_of("training", "train"):
        from ..training.finetune import finetune
    words = ["--bf16", "True"] if args.bf16 else []
    with Outputs(json=args.json) as out:
        options = {"model": default_model("finetune"), **given(args, FINETUNE_OPTIONS), "overrides": words}
        report = finetune(args.input, args.output, **options)
        out.report(report.as_dict())
    print(report.text())
