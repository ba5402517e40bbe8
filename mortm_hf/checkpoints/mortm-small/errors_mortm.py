"""Typed errors of the suite.

Knows: nothing but Python. Every error is a `ValueError` with a stable `code`, because entry files loaded from a
checkpoint folder are module trees of their own: `isinstance` across them fails, so callers catch `ValueError` and
read `code`.

| class | code | raised for |
|---|---|---|
| `MidiError` | `midi.*` | files that cannot be read, are empty, or exceed a cap |
| `VocabularyError` | `vocabulary.*` | tokens, instruments, keys, meters or chords without a token |
| `GrammarError` | `grammar.*` | id sequences that break the token language; has `position` and `token` |
| `PromptError` | `prompt.*` | requests that make no musical sense or do not fit the context |
| `ConfigurationError` | `configuration.*` | model configurations that no model could be built from |
| `AudioError` | `audio.*` | sound that cannot be read, or requests about it that cannot be served |
"""

from __future__ import annotations


class MortmError(ValueError):
    """Base class; `code` is stable across releases, the message names the input and the remedy."""

    code = "mortm"

    def __init__(self, message: str, code: str | None = None):
        super().__init__(message)
        if code is not None:
            self.code = code


class MidiError(MortmError):
    """A MIDI input that cannot be used. `code`: midi.unreadable, .empty, .timing, .too_large, .argument."""

    code = "midi.unreadable"


class VocabularyError(MortmError):
    """A name that has no token. `code`: vocabulary.token, .instrument, .key, .chord, .meter, .table."""

    code = "vocabulary.token"


class PromptError(MortmError):
    """A request that cannot be served. `code`: prompt.bars, .empty, .too_long, .material, .task."""

    code = "prompt.material"


class ConfigurationError(MortmError):
    """A model configuration that cannot be. `code`: configuration.value; the message names class, field and remedy."""

    code = "configuration.value"


class AudioError(MortmError):
    """Sound that cannot be used. `code`: audio.unreadable, .empty, .too_long, .rate, .missing, .argument."""

    code = "audio.unreadable"


class GrammarError(MortmError):
    """Ids that break the grammar: `position` (index into the ids) and `token` (its name) say where."""

    code = "grammar.token"

    def __init__(self, message: str, position: int | None = None, token: str | None = None, code: str | None = None):
        super().__init__(message, code)
        self.position = position
        self.token = token
