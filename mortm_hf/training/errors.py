"""Old place of `TrainingError` and `refused_as`.

Knows: where they are. Must not know: anything else.
"""

from ..models.errors_mortm import TrainingError
from .refusals import refused_as


__all__ = ["TrainingError", "refused_as"]
