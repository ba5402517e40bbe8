"""What a library refuses, as an error of ours.

Knows: the errors. Must not know: what raises them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten

from ..models.errors_mortm import TrainingError


@contextmanager
def refused_as(what: str) -> Iterator[None]:
    """Errors of a library within the block become a `TrainingError`; errors with a code of ours pass.

    Args:
        what: what was tried; opens the message, which ends with the library's reason, in one line.

    Raises:
        TrainingError: a library raised `ValueError`, `OSError` or `ImportError`.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        if isinstance(getattr(error, "code", None), str):  # ours, with a remedy
            raise
        raise TrainingError(f"{what}: {shorten(str(error), 300, placeholder=' ...')}") from None
