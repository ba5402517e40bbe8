"""The error of this sub-package.

Knows: nothing. Must not know: what raises it.
"""

from __future__ import annotations


class TrainingError(ValueError):
    """A recipe or a request that cannot be trained; the message names it and the remedy. `code`: training.*"""

    code = "training.recipe"

    def __init__(self, message: str, code: str | None = None):
        super().__init__(message)
        if code is not None:
            self.code = code
