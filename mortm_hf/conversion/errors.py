"""The error of this sub-package.

Knows: nothing but its base class. Must not know: checkpoints.
"""

from __future__ import annotations

from ..models.errors_mortm import MortmError


class ConversionError(MortmError):
    """A checkpoint that cannot be converted as asked; the message names the input and the option that helps.

    | code | raised for |
    |---|---|
    | `conversion.file` | a file that cannot be read, is truncated, or holds anything but plain tensors |
    | `conversion.config` | options that are missing, or that contradict the tensors |
    | `conversion.kind` | a checkpoint of another kind of model, or of one that has no model here yet |
    | `conversion.version` | keys of no published version, or a `version` that the keys rule out |
    | `conversion.keys` | missing or unused tensors |
    | `conversion.lora` | low-rank deltas that may be merged already, or that cannot be kept |
    | `conversion.vocabulary` | a token table that cannot be told or does not fit |
    | `conversion.output` | a folder or file that exists or cannot be written |
    | `conversion.parity` | models that differ from upstream, or a folder without cases |
    | `conversion.folder` | a folder that cannot go back to upstream |
    """

    code = "conversion.file"
