"""`mortm convert` and `mortm export-upstream`: upstream's checkpoints to folders of this package, and back.

Knows: the options of `mortm_hf.conversion`. Must not know: how a checkpoint is read or written.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..models.errors_mortm import ConversionError
from .files import Outputs
from .options import given


CONVERT_EXAMPLES = """examples:
  mortm convert model.pth --config config.json -o my-model
  mortm convert model.pth --config config.json --vocab vocab_list.json -o my-model
  mortm convert padded.pth --config config.json --tokenizer omega@4.6.18 -o my-model
  mortm convert lora.pth --config config.json --lora keep -o my-model
  mortm convert model.pth --config config.json --extend-vocab -o to-fine-tune
  mortm convert my-model --extend-vocab -o to-fine-tune
  mortm convert --check fixtures

--check compares converted models with upstream's own numbers: the folder's cases hold model.pth, config.json,
inputs.npz and expected.npz."""

EXPORT_EXAMPLES = """examples:
  mortm export-upstream my-model -o upstream
  mortm export-upstream my-model-trained-on --like my-model -o upstream"""

# the options that are words of `convert_checkpoint`
OPTIONS = "config vocab tokenizer version lora lora_merged extend_vocab allow overwrite".split()


def add_command(commands) -> None:
    """Adds `convert` and `export-upstream` to the parser's commands."""
    parser = commands.add_parser(
        "convert",
        description="Turns an upstream checkpoint (4.0 to 4.9) into a folder for from_pretrained.",
        epilog=CONVERT_EXAMPLES,
    )
    add = parser.add_argument
    add("input", type=Path, nargs="?", help="upstream's .pth file (or a converted folder, with --extend-vocab)")
    add("-o", "--output", type=Path, metavar="FOLDER", help="the folder to write")
    add("--config", type=Path, metavar="JSON", help="upstream's options (default: config.json beside it)")
    add("--vocab", type=Path, metavar="JSON", help="upstream's vocab_list.json")
    add("--tokenizer", metavar="TABLE", help="a published token table: pro, pro2, omega@4.6.18, ...")
    add("--version", metavar="X.Y", help="the upstream release, where the keys leave a choice")
    add(
        "--lora",
        choices=("merge", "keep"),
        default="merge",
        help="LoRA: add it to the weights (default), or keep it as a PEFT adapter",
    )
    add(
        "--lora-merged",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="the weights hold their LoRA deltas already (saved in eval mode), or do not",
    )
    add("--extend-vocab", action="store_true", help="move it to the default token table, to fine-tune")
    add("--allow", action="store_true", help="accept missing and unused tensors")
    add("--overwrite", action="store_true", help="replace a folder that exists")
    add("--check", type=Path, metavar="FOLDER", help="compare with upstream's numbers in FOLDER")
    add("--json", type=Path, metavar="FILE", help="write the report to a JSON file as well")
    parser.set_defaults(run=run_convert, parser=parser)

    parser = commands.add_parser(
        "export-upstream",
        description="Writes model.pth, config.json and vocab_list.json from a model folder, converted or made here.",
        epilog=EXPORT_EXAMPLES,
    )
    add = parser.add_argument
    add("input", type=Path, help="a model folder")
    add("-o", "--output", type=Path, metavar="FOLDER", required=True, help="the folder to write")
    add("--like", type=Path, metavar="FOLDER", help="the converted folder that it was trained from")
    add("--overwrite", action="store_true", help="replace a folder that exists")
    parser.set_defaults(run=run_export)


def run_convert(args: argparse.Namespace) -> None:
    """Converts, or checks parity, and prints the report.

    Raises:
        ConversionError: the checkpoint cannot be converted as asked.
    """
    from ..conversion.from_upstream import convert_checkpoint

    failed = []
    with Outputs([args.input] if args.input else [], args.json) as out:
        if args.check is not None:
            from ..conversion.parity import check_folder, table

            rows = check_folder(args.check)
            print(table(rows))
            out.report([row.as_dict() for row in rows])
            failed = [row.case for row in rows if row.passed is False]
        elif args.input is None or args.output is None:
            args.parser.error("give a checkpoint and -o FOLDER, or --check FOLDER")
        elif args.input.is_dir():
            _extend(args)
        else:
            report = convert_checkpoint(args.input, args.output, **given(args, OPTIONS))
            out.report(report.as_dict())
            _print(report, args.output)
    if failed:
        raise ConversionError(f"differs from upstream: {', '.join(failed)}", "conversion.parity")


def _extend(args: argparse.Namespace) -> None:
    """A folder as input: only its token table can be changed."""
    from ..conversion.token_tables import extend_vocabulary

    if not args.extend_vocab:
        raise ConversionError(
            f"{args.input} is a folder: give the .pth file in it, or --extend-vocab for a converted folder",
            "conversion.file",
        )
    counts = extend_vocabulary(args.input, args.output, overwrite=args.overwrite)
    print(f"{args.output}: " + ", ".join(f"{count} rows {name}" for name, count in counts.items()))


def run_export(args: argparse.Namespace) -> None:
    """Exports and prints the report.

    Raises:
        ConversionError: the folder cannot go back.
    """
    from ..conversion.to_upstream import export_upstream

    report = export_upstream(args.input, args.output, like=args.like, overwrite=args.overwrite)
    print(f"{args.output}: {report.tensors} tensors of {report.kind}")
    if report.rounded:
        print(f"  rounded to upstream's types: {len(report.rounded)} tensors, {report.rounded[0]} first")
    for note in report.notes:
        print(f"  note: {note}")


def _print(report, output: Path) -> None:
    print(f"{output}: {report.kind} of upstream {report.version_name}, {report.tensors} tensors")
    print(f"  sha256  {report.sha256}")
    print(f"  tokens  {report.vocabulary}")
    if report.lora != "none":
        print(f"  lora    {report.lora}")
    if report.aside:
        print(f"  aside   {len(report.aside)} tensors that no model reads ({report.aside[0]}, ...)")
    if report.extended:
        print("  table   " + ", ".join(f"{count} rows {name}" for name, count in report.extended.items()))
    for note in report.notes:
        print(f"  note: {note}")
