"""Old place of `DataError`.

Knows: where it is. Must not know: anything else.
"""

from ..models.errors_mortm import DataError


__all__ = ["DataError"]
