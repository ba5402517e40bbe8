"""Calls of libraries: what they refuse, as an error of ours; what they load, without their bars.

Knows: the errors, transformers' logging. Must not know: what is called.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten

from ..models.errors_mortm import MortmError, TrainingError


@contextmanager
def without_bars() -> Iterator[None]:
    """transformers' bars for reading and writing weights would cut through ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def refused_as(what: str, kind: type[MortmError] = TrainingError, code: str | None = None) -> Iterator[None]:
    """Errors of a library within the block become one of ours; errors with a code of ours pass.

    Args:
        what: what was tried; opens the message, which ends with the library's reason, in one line.
        kind: class of the error that is raised.
        code: its code; by default that of its class.

    Raises:
        MortmError: of this kind, where a library raised `ValueError`, `OSError` or `ImportError`.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        if isinstance(getattr(error, "code", None), str):  # ours, with a remedy
            raise
        raise kind(f"{what}: {shorten(str(error), 300, placeholder=' ...')}", code) from None
