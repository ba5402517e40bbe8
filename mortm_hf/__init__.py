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
from .bundled import CONSTANTS, default_model, find_model
from .models.families import TASKS, class_names


globals().update(CONSTANTS)  # MORTM_SMALL and the other bundled checkpoints: the paths of their folders

# module -> public names; those of `FAMILIES` are public, too
_PUBLIC = {
    "models.modeling_mortm_live": ("MortmLiveVision",),
    "models.reward_bertm": ("BertmReward",),
    "models.prompt_building": ("MetricPrompt",),
    "models.music_score": ("MetricScore",),
    "models.generation_mortm": ("MetricGrammarLogitsProcessor",),
    "models.generation_cpu": ("FastDecoder",),
    "data": ("build_dataset", "load_songs", "open_dataset", "push_dataset"),
    "app.live_session": ("LiveSession",),
    "conversion": ("convert_checkpoint", "export_upstream", "extend_vocabulary"),
    "training.finetune": ("finetune", "FinetuneReport"),
    "training.publish": ("push_folder",),
    "models.errors_mortm": (
        *("MortmError", "MidiError", "VocabularyError", "PromptError", "GrammarError", "GenerationError"),
        *("AudioError", "ConfigurationError", "DataError", "TrainingError", "RlmfError", "ConversionError"),
        *("CommandError", "LiveError"),
    ),
}
_MODULE_OF = {kind: f"models.{module}" for module, _, kind in (name.partition(".") for name in class_names())}
_MODULE_OF |= {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = [
    *_MODULE_OF,
    "pipeline",
    *CONSTANTS,
    "__version__",
]


def pipeline(task: str = "midi-generation", model=None, **kwargs):
    """`transformers.pipeline` on the installed code: needs no `trust_remote_code`.

    Args:
        task: "midi-generation", "chord-estimation", "midi-classification", "midi-feature-extraction" or
            "audio-continuation" (any other task of transformers is passed on as it is).
        model: a folder, the name of a bundled checkpoint, a repository of the Hub, or a model; by default the task's
            bundled checkpoint (see `mortm_hf.bundled`).
        kwargs: those of `transformers.pipeline`, and defaults for the calls of the pipeline.

    Returns:
        The pipeline, e.g. `MidiGenerationPipeline`.

    Raises:
        MortmError: the bundled checkpoint that was named, or is the default, is missing.
    """
    import transformers

    if model is None:
        model = default_model(task)
    if isinstance(model, (str, os.PathLike)):
        model = find_model(model)
    if kwargs.get("fast") and kwargs.get("device") is None and kwargs.get("device_map") is None:
        kwargs["device"] = "cpu"  # what fast decoding is for; transformers would choose an accelerator
    if task in TASKS:
        kwargs.setdefault("pipeline_class", _registration.class_of(TASKS[task].pipeline))
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
