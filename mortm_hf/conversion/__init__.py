"""Upstream checkpoints (4.0 to 4.9) <-> Hub folders.

Knows: the models and upstream's files; the only code that reads pickles (`weights_only=True`). Must not know:
datasets, training, command lines.
"""

from ..models.errors_mortm import ConversionError
from .export import ExportReport, export_upstream
from .extension import extend_vocabulary
from .folder import ConversionReport, convert_checkpoint


__all__ = [
    "ConversionError",
    "ConversionReport",
    "ExportReport",
    "convert_checkpoint",
    "export_upstream",
    "extend_vocabulary",
]
