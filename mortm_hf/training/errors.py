"""The error of this sub-package, and errors of libraries turned into it.

Knows: nothing. Must not know: what raises it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten


class TrainingError(ValueError):
    """A recipe or a request that cannot be trained; the message names it and the remedy. `code`: training.*"""

    code = "training.recipe"

    def __init__(self, message: str, code: str | None = None):
        super().__init__(message)
        if code is not None:
            self.code = code


@contextmanager
def refused_as(what: str) -> Iterator[None]:
    """What a library refuses is refused as `what: its reason`, in one line."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        if isinstance(getattr(error, "code", None), str):  # ours, with a remedy
            raise
        raise TrainingError(f"{what}: {shorten(str(error), 300, placeholder=' ...')}") from None
