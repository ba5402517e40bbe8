"""The typed error of this package.

Knows: nothing but the base class. `code` is stable across releases: data.source (what was to be read), data.output
(where it was to be written), data.format (a data set of another kind or version), data.column (a column that is
missing or holds something else), data.option, data.network.
"""

from __future__ import annotations

from ..models.errors_mortm import MortmError


class DataError(MortmError):
    """Data that cannot be read, prepared or written; the message names it and the remedy."""

    code = "data.source"
