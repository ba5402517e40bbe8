"""mortm_hf: MORTM, a family of models for symbolic music, for transformers.

Design decisions
- Every name a user needs is importable from here, and is only loaded when it is first used.
- Importing the package makes transformers' Auto classes and `transformers.pipeline` know our classes (see
  `_registration`), without loading torch.

Knows: names. Must not know: what is behind them.

```python
from mortm_hf import pipeline

pipe = pipeline("midi-generation")
pipe("song.mid", bars=8, seed=0)[0]["score"].dump_midi("new.mid")
```
"""

from __future__ import annotations

import importlib
import os

from . import _registration
from ._version import __version__


# The folder of the bundled checkpoint: the default of every command and pipeline.
STARTER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "starter")

_PUBLIC = {
    "models.configuration_mortm": ("MortmConfig",),
    "models.modeling_mortm": ("MortmModel", "MortmForCausalLM", "MortmForSequenceClassification"),
    "models.configuration_bertm": ("BertmConfig",),
    "models.modeling_bertm": (
        "BertmModel",
        "BertmForMaskedLM",
        "BertmForSequenceClassification",
        "BertmForTokenClassification",
    ),
    "models.tokenization_mortm": ("MortmTokenizer",),
    "models.metric_prompt": ("MetricPrompt",),
    "models.metric_score": ("MetricScore",),
    "models.generation_mortm": ("MetricGrammarLogitsProcessor",),
    "models.pipeline_mortm": ("MidiGenerationPipeline", "ChordEstimationPipeline"),
    "conversion": ("ConversionError", "convert_checkpoint", "export_upstream", "extend_vocabulary"),
    "models.errors_mortm": ("MortmError", "MidiError", "VocabularyError", "PromptError", "GrammarError"),
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = [*_MODULE_OF, "pipeline", "STARTER", "__version__"]


def pipeline(task: str = "midi-generation", model=None, **kwargs):
    """`transformers.pipeline` on the installed code: needs no `trust_remote_code`.

    Args:
        task: "midi-generation" or "chord-estimation" (any other task of transformers is passed on as it is).
        model: a folder, a repository of the Hub, or a model; `STARTER` by default.
        kwargs: those of `transformers.pipeline`, and defaults for the calls of the pipeline.

    Returns:
        The pipeline, e.g. `MidiGenerationPipeline`.
    """
    import transformers

    if model is None:
        model = STARTER
    if isinstance(model, os.PathLike):
        model = os.fspath(model)
    if model == STARTER and not os.path.isfile(os.path.join(STARTER, "config.json")):
        from .models.errors_mortm import MortmError

        raise MortmError(f"there is no bundled checkpoint in {STARTER}: give model=, a folder or a Hub repository")
    if task in _registration.PIPELINE_CLASSES:
        kwargs.setdefault("pipeline_class", __getattr__(_registration.PIPELINE_CLASSES[task][0]))
    return transformers.pipeline(task, model=model, **kwargs)


def __getattr__(name: str):
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{module}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})


_registration.install()
