"""The command `mortm`.

Design decisions
- One module per command; each offers `add_command(subparsers)`, and its `run(args)` imports what is heavy, so that
  `mortm --help` answers at once. A further command is a module more in `COMMANDS`.
- The words and defaults of the options are those of the Python API.
- What the user can mend ends with exit code 2 and one line on stderr; anything else is a defect and shows its
  traceback.

Knows: argparse. Must not know: how any command does its work.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading

from .._version import __version__
from . import convert, data, eval, generate, info, live, rlmf, tokenize, train


COMMANDS = (generate, tokenize, info, convert, train, data, eval, rlmf, live)


class _Parser(argparse.ArgumentParser):
    """One line on a wrong option instead of the whole usage."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands."""
    parser = _Parser(prog="mortm", description="Music with MORTM: MIDI in, new grammatical bars out.")
    parser.add_argument("--version", action="version", version=f"mortm_hf {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_command(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: words after `mortm`; by default those of the process.

    Returns:
        The exit code; 2: bad input, with one line on stderr.
    """
    args = build_parser().parse_args(argv)
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
