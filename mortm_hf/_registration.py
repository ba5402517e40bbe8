"""Registration with transformers' Auto classes and pipelines, at the moment those are loaded.

Design decisions
- Registering needs our classes, and those need torch: done at `import mortm_hf` it would cost several seconds. So an
  import hook waits for transformers' Auto modules instead, and `import mortm_hf` stays as light as a few small files.
  Whoever can name `AutoModel` finds it knowing our classes, whatever was imported first.
- An entry is settled once both sides are fully executed, and only when no module of transformers or of ours is half
  executed: `from transformers import LlamaForCausalLM` pulls in the Auto classes from within modules that ours need
  whole. So the hook counts how deep it is in such imports, and acts at the outermost one's end.
- Nothing here ever makes an import of transformers fail: a class of ours that cannot be imported is logged.

Knows: module and class names. Must not know: what is in them.
"""

from __future__ import annotations

import importlib
import logging
import sys
import threading
from importlib.abc import MetaPathFinder


MODELS = f"{__package__}.models"
_AUTO = "transformers.models.auto"
# our families: module and class of each configuration; those that read tokens share the tokenizer
TOKEN_CONFIGURATIONS = {"configuration_mortm": "MortmConfig", "configuration_bertm": "BertmConfig"}
CONFIGURATIONS = {
    **TOKEN_CONFIGURATIONS,
    "configuration_vmortm": "VMortmConfig",
    "configuration_mortm_live": "MortmLiveConfig",
}

# module of transformers -> (Auto class, our module, our class)
AUTO_CLASSES = {
    f"{_AUTO}.configuration_auto": [("AutoConfig", module, name) for module, name in CONFIGURATIONS.items()],
    f"{_AUTO}.modeling_auto": [
        ("AutoModel", "modeling_mortm", "MortmModel"),
        ("AutoModelForCausalLM", "modeling_mortm", "MortmForCausalLM"),
        ("AutoModelForSequenceClassification", "modeling_mortm", "MortmForSequenceClassification"),
        ("AutoModel", "modeling_bertm", "BertmModel"),
        ("AutoModelForMaskedLM", "modeling_bertm", "BertmForMaskedLM"),
        ("AutoModelForSequenceClassification", "modeling_bertm", "BertmForSequenceClassification"),
        ("AutoModelForTokenClassification", "modeling_bertm", "BertmForTokenClassification"),
        ("AutoModel", "modeling_vmortm", "VMortmModel"),
        ("AutoModelForTextToSpectrogram", "modeling_vmortm", "VMortmForSpectrogramGeneration"),
        ("AutoModel", "modeling_mortm_live", "MortmLiveForCausalGeneration"),
    ],
    f"{_AUTO}.tokenization_auto": [("AutoTokenizer", "tokenization_mortm", "MortmTokenizer")],
    f"{_AUTO}.feature_extraction_auto": [
        ("AutoFeatureExtractor", "feature_extraction_vmortm", "VMortmFeatureExtractor"),
        ("AutoFeatureExtractor", "processing_mortm_live", "MortmLiveProcessor"),
    ],
    f"{_AUTO}.processing_auto": [
        ("AutoProcessor", "feature_extraction_vmortm", "VMortmFeatureExtractor"),
        ("AutoProcessor", "processing_mortm_live", "MortmLiveProcessor"),
    ],
}
# module of classes that read the inputs -> configurations of the models that they read for
READERS = {
    "tokenization_mortm": TOKEN_CONFIGURATIONS,
    "feature_extraction_vmortm": {"configuration_vmortm": "VMortmConfig"},
    "processing_mortm_live": {"configuration_mortm_live": "MortmLiveConfig"},
}
_PIPELINES = "transformers.pipelines"
# task -> (our module, our class, Auto class of its model, what it reads)
PIPELINE_CLASSES = {
    "midi-generation": ("pipeline_mortm", "MidiGenerationPipeline", "AutoModelForCausalLM", "text"),
    "chord-estimation": ("pipeline_mortm", "ChordEstimationPipeline", "AutoModelForCausalLM", "text"),
    "midi-classification": (
        "pipeline_bertm",
        "MidiClassificationPipeline",
        "AutoModelForSequenceClassification",
        "text",
    ),
    "midi-feature-extraction": ("pipeline_bertm", "MidiFeatureExtractionPipeline", "AutoModel", "text"),
    "audio-continuation": (
        "pipeline_vmortm",
        "AudioContinuationPipeline",
        "AutoModelForTextToSpectrogram",
        "audio",
    ),
}

logger = logging.getLogger(__package__)


def _register_auto(entry: tuple[str, str, str], auto_module, module) -> None:
    auto_name, module_name, class_name = entry
    auto, ours = getattr(auto_module, auto_name), getattr(module, class_name)
    if auto_name == "AutoConfig":
        keys = [ours.model_type]
    elif hasattr(ours, "config_class"):
        keys = [ours.config_class]
    else:
        families = READERS[module_name]
        keys = [getattr(importlib.import_module(f"{MODELS}.{m}"), name) for m, name in families.items()]
    for key in keys:
        auto.register(key, ours, exist_ok=True)


def _register_pipeline(task: str, pipelines, module) -> None:
    _, class_name, auto_name, kind = PIPELINE_CLASSES[task]
    auto = getattr(importlib.import_module(f"{_AUTO}.modeling_auto"), auto_name)
    registry = pipelines.PIPELINE_REGISTRY
    if task not in registry.supported_tasks:
        registry.register_pipeline(task, pipeline_class=getattr(module, class_name), pt_model=(auto,), type=kind)


class _Registrar(MetaPathFinder):
    """Watches the imports of both sides and settles each entry when both are there."""

    def __init__(self):
        self.open = {}
        for watched, entries in AUTO_CLASSES.items():
            for entry in entries:
                self.open[entry] = (watched, f"{MODELS}.{entry[1]}", _register_auto)
        for task, (module, *_) in PIPELINE_CLASSES.items():
            self.open[task] = (_PIPELINES, f"{MODELS}.{module}", _register_pipeline)
        self.theirs = {watched for watched, _, _ in self.open.values()}
        self.ours = {module for _, module, _ in self.open.values()}
        self.done = {name for name in self.theirs | self.ours if _is_executed(name)}
        self.running = threading.local()  # .depth: watched imports under way, one within the other

    def find_spec(self, name, path=None, target=None):
        if not self.open or not name.startswith(("transformers.", f"{MODELS}.")):
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                break
        else:
            return None
        execute = spec.loader.exec_module

        def exec_module(module):
            self.running.depth = getattr(self.running, "depth", 0) + 1
            try:
                execute(module)
                self.done.add(name)
                if name in self.ours:
                    _carry_code(module)
            finally:  # an outer import may fail after the Auto classes were loaded within it
                self.running.depth -= 1
                if not self.running.depth:
                    self.settle()

        spec.loader.exec_module = exec_module  # each spec has a loader object of its own
        return spec

    def settle(self) -> None:
        """Register every entry whose two sides are executed; import our side where nobody is importing it yet."""
        for entry, (theirs, ours, register) in list(self.open.items()):
            if entry not in self.open or theirs not in self.done:
                continue
            if ours not in self.done:
                if ours in sys.modules:
                    continue  # being imported right now: it settles its entries when it is done
                try:
                    importlib.import_module(ours)
                except ImportError as error:
                    logger.warning("%s is not registered with transformers: %s", entry, error)
                    self.open.pop(entry, None)
                    continue
            if self.open.pop(entry, None) is not None:
                register(entry, sys.modules[theirs], sys.modules[ours])


def _carry_code(module) -> None:
    """Make the classes of one of our modules copy their code into every folder that they save."""
    for entries in AUTO_CLASSES.values():
        for auto_name, ours, class_name in entries:
            if module.__name__ == f"{MODELS}.{ours}":
                getattr(module, class_name).register_for_auto_class(auto_name)


def _is_executed(name: str) -> bool:
    module = sys.modules.get(name)
    return module is not None and not getattr(module.__spec__, "_initializing", False)


def install() -> None:
    """Start watching (once), and settle what is loaded already."""
    if not any(type(finder).__name__ == "_Registrar" for finder in sys.meta_path):
        registrar = _Registrar()
        sys.meta_path.insert(0, registrar)
        registrar.settle()
