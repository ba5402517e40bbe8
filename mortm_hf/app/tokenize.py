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
from pathlib import Path

import numpy as np

from ..models.errors_mortm import CommandError
from .files import Outputs, find_midi, write_json
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
        help="MIDI files to token ids",
        description="Turns MIDI files into token ids. Files that cannot be read are skipped and listed.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", nargs="+", type=Path, help="MIDI files, or folders searched for them")
    parser.add_argument("-o", "--output", required=True, type=suffixed(".jsonl", ".npz"), help=".jsonl or .npz file")
    parser.add_argument("--model", help="folder or repository whose tokenizer to use (default: the built-in table)")
    parser.add_argument("--bars", type=span, metavar="A:B", help="only bars A to B - 1 (default: all)")
    parser.add_argument("--key", help='key to write, e.g. "C major" (default: the file\'s, else estimated)')
    parser.add_argument(
        "--velocity",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="write velocities (default: where they vary)",
    )
    parser.add_argument("--tokens", action="store_true", help="write the tokens' names beside their ids (.jsonl)")
    parser.add_argument("--strict", action="store_true", help="stop at the first file that cannot be used")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write counts and the skipped files here")
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
    try:
        return MortmTokenizer.from_pretrained(model)
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        raise CommandError(f"cannot load a tokenizer from {model}: {reason}", "command.input") from None


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
    with Outputs(files) as out:
        sink = (_Npz if args.output.suffix == ".npz" else _Jsonl)(out.stage(args.output))
        report = out.stage(args.json) if args.json else None
        tokenizer = load_tokenizer(args.model)
        # An option that no file can satisfy is one error, not one per file.
        if args.key is not None:
            tokenizer.prompt(bars=1, instruments=[0], key=args.key)
        with sink:
            for file in tqdm(files, unit="file", disable=len(files) == 1 or not sys.stderr.isatty()):
                try:
                    ids = tokenizer.encode_midi(file, bars=args.bars, key=args.key, velocity=args.velocity)
                except ValueError as error:
                    if args.strict or len(files) == 1 or not hasattr(error, "code"):
                        raise
                    skipped.append({"file": str(file), "code": error.code, "reason": " ".join(str(error).split())})
                    continue
                sink.add(str(file), ids, tokenizer.convert_ids_to_tokens(ids) if args.tokens else None)
                lengths.append(len(ids))
        for item in skipped:
            named = "" if item["file"] in item["reason"] else f"{item['file']}: "
            print(f"skipped: {named}{item['reason']}", file=sys.stderr)
        if not lengths:
            raise CommandError(f"none of {len(files)} files could be tokenised", "command.input")
        if report:
            counts = {"files": len(lengths), "tokens": sum(lengths), "longest": max(lengths), "skipped": skipped}
            write_json(report, counts)
    left = f", {len(skipped)} skipped" if skipped else ""
    print(f"{args.output}: {len(lengths)} files, {sum(lengths)} tokens{left}")


class _Jsonl:
    """JSON lines, written as they come."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self):
        self._file = self._path.open("w", encoding="utf-8")
        return self

    def __exit__(self, *_):
        self._file.close()

    def add(self, file: str, ids: list[int], tokens: list[str] | None) -> None:
        row = {"file": file, "input_ids": ids} | ({"tokens": tokens} if tokens else {})
        self._file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")


class _Npz:
    """One compressed archive, written at the end."""

    def __init__(self, path: Path):
        self._path = path
        self._files: list[str] = []
        self._ids: list[np.ndarray] = []

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None and self._ids:
            offsets = np.cumsum([0, *map(len, self._ids)])
            with self._path.open("wb") as file:
                np.savez_compressed(
                    file, files=np.array(self._files), offsets=offsets, input_ids=np.concatenate(self._ids)
                )

    def add(self, file: str, ids: list[int], tokens: list[str] | None) -> None:
        self._files.append(file)
        self._ids.append(np.asarray(ids, dtype=np.int32))
