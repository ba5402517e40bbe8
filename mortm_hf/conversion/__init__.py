"""Upstream checkpoints (4.0 to 4.9) <-> Hub folders.

Knows: the models and upstream's files; the only code that reads pickles (`weights_only=True`). Must not know:
datasets, training, command lines.
"""

from ..models.errors_mortm import ConversionError
from .conversion_report import ConversionReport
from .from_upstream import convert_checkpoint
from .to_upstream import ExportReport, export_upstream
from .token_tables import extend_vocabulary


__all__ = [
    "ConversionError",
    "ConversionReport",
    "ExportReport",
    "convert_checkpoint",
    "export_upstream",
    "extend_vocabulary",
]
