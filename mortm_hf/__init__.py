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


_HERE = os.path.dirname(os.path.abspath(__file__))
# The bundled generator: the default of the pipelines, `mortm generate` and `mortm finetune`.
MORTM_SMALL = os.path.join(_HERE, "checkpoints", "mortm-small")
# The same architecture trained on a CPU: what music feedback starts from, and what the judges have heard.
STARTER = os.path.join(_HERE, "starter")
# The starter after reinforcement learning from BERTM's judgement: tracks that agree better.
STARTER_ALIGNED = os.path.join(_HERE, "checkpoints", "mortm-aligned")
# The bundled encoder (masked language model), and its two heads: genres, and "made by a machine".
BERTM = os.path.join(_HERE, "checkpoints", "bertm-small")
BERTM_GENRE = os.path.join(_HERE, "checkpoints", "bertm-genre")
BERTM_QUALITY = os.path.join(_HERE, "checkpoints", "bertm-quality")
# Rendered sound, and a partner to play with.
VMORTM = os.path.join(_HERE, "checkpoints", "vmortm-small")
MORTM_LIVE = os.path.join(_HERE, "checkpoints", "live-small")
# task -> the checkpoint it uses where none is given; any other task uses MORTM_SMALL
_BUNDLED = {
    "midi-classification": BERTM_GENRE,
    "midi-feature-extraction": BERTM,
    "fill-mask": BERTM,
    "audio-continuation": VMORTM,
}

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
    "models.reward_bertm": ("BertmReward",),
    "models.pipeline_bertm": ("MidiClassificationPipeline", "MidiFeatureExtractionPipeline"),
    "models.configuration_vmortm": ("VMortmConfig",),
    "models.modeling_vmortm": ("VMortmModel", "VMortmForSpectrogramGeneration"),
    "models.feature_extraction_vmortm": ("VMortmFeatureExtractor",),
    "models.pipeline_vmortm": ("AudioContinuationPipeline",),
    "models.configuration_mortm_live": ("MortmLiveConfig",),
    "models.modeling_mortm_live": ("MortmLiveForCausalGeneration", "MortmLiveVision"),
    "models.processing_mortm_live": ("MortmLiveProcessor",),
    "models.tokenization_mortm": ("MortmTokenizer",),
    "models.prompt_building": ("MetricPrompt",),
    "models.music_score": ("MetricScore",),
    "models.generation_mortm": ("MetricGrammarLogitsProcessor",),
    "models.generation_cpu": ("FastDecoder",),
    "models.pipeline_mortm": ("MidiGenerationPipeline", "ChordEstimationPipeline"),
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
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = [
    *_MODULE_OF,
    "pipeline",
    "MORTM_SMALL",
    "STARTER",
    "STARTER_ALIGNED",
    "BERTM",
    "BERTM_GENRE",
    "BERTM_QUALITY",
    "VMORTM",
    "MORTM_LIVE",
    "__version__",
]


def pipeline(task: str = "midi-generation", model=None, **kwargs):
    """`transformers.pipeline` on the installed code: needs no `trust_remote_code`.

    Args:
        task: "midi-generation", "chord-estimation", "midi-classification", "midi-feature-extraction" or
            "audio-continuation" (any other task of transformers is passed on as it is).
        model: a folder, a repository of the Hub, or a model; by default the bundled one: `MORTM_SMALL`, `BERTM_GENRE`
            for classification, `BERTM` for feature extraction, `VMORTM` for sound.
        kwargs: those of `transformers.pipeline`, and defaults for the calls of the pipeline.

    Returns:
        The pipeline, e.g. `MidiGenerationPipeline`.
    """
    import transformers

    if model is None:
        model = _BUNDLED.get(task, MORTM_SMALL)
    if isinstance(model, os.PathLike):
        model = os.fspath(model)
    bundled = (MORTM_SMALL, STARTER, STARTER_ALIGNED, *_BUNDLED.values())
    if model in bundled and not os.path.isfile(os.path.join(model, "config.json")):
        from .models.errors_mortm import MortmError

        raise MortmError(f"there is no bundled checkpoint in {model}: give model=, a folder or a Hub repository")
    if kwargs.get("fast") and kwargs.get("device") is None and kwargs.get("device_map") is None:
        kwargs["device"] = "cpu"  # what fast decoding is for; transformers would choose an accelerator
    if task in _registration.PIPELINE_CLASSES:
        kwargs.setdefault("pipeline_class", __getattr__(_registration.PIPELINE_CLASSES[task][1]))
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
