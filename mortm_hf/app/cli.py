"""The command `mortm`.

Design decisions
- One module for one command or two; each offers `add_command(subparsers)`. Only the module of the word that was
  typed is imported, and its `run(args)` imports what is heavy, so that help and refusals come at once. A further
  command is a row more in `COMMANDS`.
- The words and defaults of the options are those of the Python API.
- What the user can mend ends with exit code 2 and one line on stderr; anything else is a defect and shows its
  traceback.

Knows: argparse. Must not know: how any command does its work.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import threading

from .._version import __version__


# word -> module of the command, its line in the help
COMMANDS = {
    "generate": ("generate", "continue, rewrite, accompany or invent music"),
    "tokenize": ("tokenize", "MIDI files to token ids"),
    "info": ("info", "bars, meters, tempo, key and tracks of a MIDI file"),
    "convert": ("convert", "turn an upstream .pth checkpoint into a model folder"),
    "export-upstream": ("convert", "write upstream's files from a model folder"),
    "train": ("train", "train from a recipe"),
    "finetune": ("train", "a checkpoint on your own MIDI files"),
    "data": ("data", "MIDI to a data set for training"),
    "eval": ("eval", "measure a model, or generated music"),
    "rlmf": ("rlmf", "align a model with a musical reward (PPO, GRPO, RLOO)"),
    "live": ("live", "play with a MORTM Live checkpoint"),
}


class _Parser(argparse.ArgumentParser):
    """One line on a wrong option instead of the whole usage; examples stand in the help as they are written."""

    def __init__(self, **options):
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter} | options)

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} (see {self.prog} --help)\n")


def build_parser(word: str | None = None) -> argparse.ArgumentParser:
    """The parser of the command line.

    Args:
        word: the command whose options are wanted, all others only stand in the list; None: all with their options.
    """
    parser = _Parser(prog="mortm", description="Music with MORTM: MIDI in, new grammatical bars out.")
    parser.add_argument("--version", action="version", version=f"mortm_hf {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    wanted = {module for name, (module, _) in COMMANDS.items() if word in (None, name)}
    for name, (module, line) in COMMANDS.items():
        if module not in wanted:
            commands.add_parser(name, help=line)
        elif name not in commands.choices:  # a module may have added it beside another
            importlib.import_module(f".{module}", __package__).add_command(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: words after `mortm`; by default those of the process.

    Returns:
        The exit code; 2: bad input, with one line on stderr.
    """
    words = sys.argv[1:] if argv is None else argv
    args = build_parser(next((word for word in words if not word.startswith("-")), "")).parse_args(words)
    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _stop) if main_thread else None
    try:
        args.run(args)
    except KeyboardInterrupt:
        return 130
    except ValueError as error:
        # by its code, not its class: code loaded from a checkpoint folder has classes of its own
        if not isinstance(getattr(error, "code", None), str):
            raise
        print(f"mortm: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    finally:
        if main_thread:
            signal.signal(signal.SIGTERM, before)
    return 0


def _stop(number, frame):
    """A signal to end unwinds the stack, so that staged outputs are removed."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
