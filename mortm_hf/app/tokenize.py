"""`mortm tokenize`: MIDI files -> token ids, one file or a whole collection.

Design decisions
- A bad file does not stop a batch: it is listed with its reason at the end. `--strict` stops at the first.
- JSON lines stream file by file; `.npz` holds one flat array of ids with offsets, as training code wants it.

Knows: the tokenizer. Must not know: models.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..models.errors_mortm import CommandError
from ..training.library_calls import refused_as
from .files import Outputs, find_midi, print_skipped
from .options import span, suffixed


EXAMPLES = """examples:
  mortm tokenize song.mid -o song.jsonl
  mortm tokenize collection/ more.mid -o ids.npz        every .mid, .midi and .kar below the folder
  mortm tokenize song.mid -o part.jsonl --bars 0:16 --tokens

.jsonl: one line per file, {"file", "input_ids"} (and "tokens" with --tokens).
.npz:   files [n], offsets [n + 1], input_ids; file i has input_ids[offsets[i]:offsets[i + 1]]."""


def add_command(commands) -> None:
    """Adds `tokenize` to the parser's commands."""
    parser = commands.add_parser(
        "tokenize",
        description="Turns MIDI files into token ids. Files that cannot be read are skipped and listed.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("input", nargs="+", type=Path, help="MIDI files, or folders searched for them")
    add("-o", "--output", required=True, type=suffixed(".jsonl", ".npz"), help=".jsonl or .npz file")
    add("--model", help="folder or repository whose tokenizer to use (default: the built-in table)")
    add("--bars", type=span, metavar="A:B", help="only bars A to B - 1 (default: all)")
    add("--key", help='key to write, e.g. "C major" (default: the file\'s, else estimated)')
    add(
        "--velocity",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="write velocities (default: where they vary)",
    )
    add("--tokens", action="store_true", help="write the tokens' names beside their ids (.jsonl)")
    add("--strict", action="store_true", help="stop at the first file that cannot be used")
    add("--json", type=Path, metavar="FILE", help="write counts and the skipped files here")
    parser.set_defaults(run=run)


def load_tokenizer(model: str | None):
    """The built-in tokenizer, or that of a checkpoint, on the installed code.

    Args:
        model: folder or repository; None: the built-in table.

    Raises:
        CommandError: it cannot be loaded (`command.input`).
    """
    from mortm_hf import MortmTokenizer

    if model is None:
        return MortmTokenizer()
    with refused_as(f"cannot load a tokenizer from {model}", CommandError, "command.input"):
        return MortmTokenizer.from_pretrained(model)


def run(args: argparse.Namespace) -> None:
    """Tokenises; prints a summary, and skipped files on stderr.

    Raises:
        CommandError: no file at all could be used.
        MortmError: with `--strict`, or for a single file: it cannot be used.
    """
    from tqdm import tqdm

    if args.tokens and args.output.suffix == ".npz":
        raise CommandError("--tokens needs a .jsonl output")
    files = find_midi(args.input)
    skipped: list[dict[str, str]] = []
    lengths: list[int] = []
    with Outputs(files, args.json) as out:
        target = out.stage(args.output)
        tokenizer = load_tokenizer(args.model)
        # An option that no file can satisfy is one error, not one per file.
        if args.key is not None:
            tokenizer.prompt(bars=1, instruments=[0], key=args.key)
        with (_npz if args.output.suffix == ".npz" else _jsonl)(target) as add:
            for file in tqdm(files, unit="file", disable=len(files) == 1 or not sys.stderr.isatty()):
                try:
                    ids = tokenizer.encode_midi(file, bars=args.bars, key=args.key, velocity=args.velocity)
                except ValueError as error:
                    if args.strict or len(files) == 1 or not hasattr(error, "code"):
                        raise
                    skipped.append({"file": str(file), "code": error.code, "reason": " ".join(str(error).split())})
                    continue
                add(str(file), ids, tokenizer.convert_ids_to_tokens(ids) if args.tokens else None)
                lengths.append(len(ids))
        for item in skipped:
            print_skipped(item["file"], item["reason"])
        if not lengths:
            raise CommandError(f"none of {len(files)} files could be tokenised", "command.input")
        out.report({"files": len(lengths), "tokens": sum(lengths), "longest": max(lengths), "skipped": skipped})
    left = f", {len(skipped)} skipped" if skipped else ""
    print(f"{args.output}: {len(lengths)} files, {sum(lengths)} tokens{left}")


@contextmanager
def _jsonl(path: Path):
    """Adds lines of JSON, written as they come."""

    def add(file: str, ids: list[int], tokens: list[str] | None) -> None:
        row = {"file": file, "input_ids": ids} | ({"tokens": tokens} if tokens else {})
        lines.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")

    with path.open("w", encoding="utf-8") as lines:
        yield add


@contextmanager
def _npz(path: Path):
    """Adds to one compressed archive, written at the end."""
    files, rows = [], []

    def add(file: str, ids: list[int], _: None) -> None:
        files.append(file)
        rows.append(np.asarray(ids, dtype=np.int32))

    yield add
    if rows:
        with path.open("wb") as archive:
            np.savez_compressed(
                archive,
                files=np.array(files),
                offsets=np.cumsum([0, *map(len, rows)]),
                input_ids=np.concatenate(rows),
            )
