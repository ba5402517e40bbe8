"""Values of command-line options: parsing them, handing them on; and packages that a command needs.

Knows: strings, which packages there are. Must not know: music theory (keys, chords and instruments are checked by the
package).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from ..models.errors_mortm import CommandError


@contextmanager
def packages_of(what: str, extra: str) -> Iterator[None]:
    """Imports of packages that not everybody has.

    Args:
        what: what needs them.
        extra: of the package, which brings them.

    Raises:
        CommandError: one is missing (`command.missing`).
    """
    try:
        yield
    except ImportError as error:
        needs = f"{what} needs more packages ({error.name})"
        raise CommandError(f'{needs}: pip install "mortm_hf[{extra}]"', "command.missing") from None


def require_packages(what: str, names: Iterable[str], extra: str) -> None:
    """Fail at the start where packages are not there.

    Args:
        what: begins the message: what needs them.
        names: of modules.
        extra: of the package, which brings them.

    Raises:
        CommandError: one is missing (`command.missing`).
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise CommandError(f"{what} {', '.join(missing)}: pip install 'mortm_hf[{extra}]'", "command.missing")


def given(args: argparse.Namespace, names: Iterable[str]) -> dict:
    """The options among `names` that were given (or have a default), as keyword arguments.

    Args:
        args: the parsed command line.
        names: of options.
    """
    return {name: value for name in names if (value := getattr(args, name, None)) is not None}


def _read(kind: type, what: str, text: str):
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected {what}, got {text!r}") from None


def at_least(low: int):
    """An integer option that is `low` or more.

    Args:
        low: the least value.

    Returns:
        A parser of the option's text.
    """

    def parse(text: str) -> int:
        value = _read(int, "a whole number", text)
        if value < low:
            raise argparse.ArgumentTypeError(f"must be at least {low}, got {value}")
        return value

    return parse


def number(low: float, high: float = float("inf")):
    """A real option in `(low, high]`.

    Args:
        low: bound that the value lies above.
        high: the greatest value.

    Returns:
        A parser of the option's text.
    """

    def parse(text: str) -> float:
        value = _read(float, "a number", text)
        if not low < value <= high:
            limit = f"above {low:g}" + (f" and at most {high:g}" if high != float("inf") else "")
            raise argparse.ArgumentTypeError(f"must be {limit}, got {text}")
        return value

    return parse


def one_or_each(kind: Callable):
    """An option with one value, or with one for each instrument: `"3"` -> `3`, `"3,5"` -> `[3, 5]`.

    Args:
        kind: parser of one value.

    Returns:
        A parser of the option's text.
    """

    def parse(text: str):
        values = [kind(part.strip()) for part in text.split(",")]
        return values[0] if len(values) == 1 else values

    return parse


def span(text: str) -> tuple[int, int]:
    """`"8:12"` -> `(8, 12)`."""
    start, separator, stop = text.partition(":")
    try:
        found = int(start), int(stop)
    except ValueError:
        found = None
    if not separator or found is None or not 0 <= found[0] < found[1]:
        raise argparse.ArgumentTypeError(f"expected A:B with 0 <= A < B, got {text!r}")
    return found


def names(text: str) -> list[str]:
    """`"piano, drums"` -> `["piano", "drums"]`."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise argparse.ArgumentTypeError("expected names separated by commas")
    return found


def chords(text: str) -> list[str] | str:
    """`"C Am F G"` or `"C | Am | F | G"` -> a list of symbols; the name of an annotation file stays as it is."""
    if text.lower().endswith((".tsv", ".txt", ".lab", ".csv")):
        return text
    found = text.replace("|", " ").replace(",", " ").split()
    if not found:
        raise argparse.ArgumentTypeError('expected chord symbols such as "C Am F G"')
    return found


def suffixed(*suffixes: str):
    """A path that must end in one of `suffixes`."""

    def parse(text: str) -> Path:
        path = Path(text)
        if path.suffix.lower() not in suffixes:
            raise argparse.ArgumentTypeError(f"{text} must end in {' or '.join(suffixes)}")
        return path

    return parse
