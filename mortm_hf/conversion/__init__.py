"""Upstream checkpoints (4.0 to 4.9) <-> Hub folders.

Knows: the models and upstream's files; the only code that reads pickles (`weights_only=True`). Must not know:
datasets, training, command lines.
"""

from ..models.errors_mortm import ConversionError as ConversionError  # the error of all conversions
