"""Registration with transformers' Auto classes and pipelines, at the moment those are loaded.

Design decisions
- Registering needs our classes, and those need torch: done at `import mortm_hf` it would cost several seconds. So an
  import hook waits for transformers' Auto modules instead, and `import mortm_hf` stays as light as a few small files.
  Whoever can name `AutoModel` finds it knowing our classes, whatever was imported first.
- An entry is settled once both sides are fully executed, and only when no module of transformers or of ours is half
  executed: `from transformers import LlamaForCausalLM` pulls in the Auto classes from within modules that ours need
  whole. So the hook counts how deep it is in such imports, and acts at the outermost one's end.
- Nothing here ever makes an import of transformers fail: a class of ours that cannot be imported is logged.

- What is registered stands in `models/families.py`; every task gets its bundled checkpoint as default.

Knows: how and when to register. Must not know: what is registered, what is in the classes.
"""

from __future__ import annotations

import importlib
import logging
import sys
import threading
from importlib.abc import MetaPathFinder

from .bundled import default_model
from .models.families import FAMILIES, TASKS


MODELS = f"{__package__}.models"
_AUTO, _PIPELINES = "transformers.models.auto", "transformers.pipelines"
# Auto class -> module of transformers that holds it; all others are those of models
_AUTO_MODULES = {
    "AutoConfig": f"{_AUTO}.configuration_auto",
    "AutoTokenizer": f"{_AUTO}.tokenization_auto",
    "AutoFeatureExtractor": f"{_AUTO}.feature_extraction_auto",
    "AutoProcessor": f"{_AUTO}.processing_auto",
}
# (family, Auto class) -> our class, as "module.Class"
AUTO_CLASSES = {
    (family, auto): name
    for family, row in FAMILIES.items()
    for auto, name in {"AutoConfig": row.config, **row.models, **row.readers}.items()
}

logger = logging.getLogger(__package__)


def class_of(name: str):
    """Our class of a name in `FAMILIES`.

    Args:
        name: "module.Class".

    Returns:
        The class, its module imported.
    """
    module, _, kind = name.partition(".")
    return getattr(importlib.import_module(f"{MODELS}.{module}"), kind)


def _register_auto(entry: tuple[str, str], auto_module) -> None:
    family, auto_name = entry
    auto, ours = getattr(auto_module, auto_name), class_of(AUTO_CLASSES[entry])
    key = family if auto_name == "AutoConfig" else class_of(FAMILIES[family].config)
    auto.register(key, ours, exist_ok=True)


def _register_pipeline(task: str, pipelines) -> None:
    row, registry = TASKS[task], pipelines.PIPELINE_REGISTRY
    if task not in registry.supported_tasks:
        registry.register_pipeline(
            task,
            pipeline_class=class_of(row.pipeline),
            pt_model=(getattr(importlib.import_module(f"{_AUTO}.modeling_auto"), row.auto),),
            default={"model": (default_model(task), "main")},  # a folder has no revisions, but one is asked for
            type=row.reads,
        )


class _Registrar(MetaPathFinder):
    """Watches the imports of both sides and settles each entry when both are there."""

    def __init__(self):
        self.open = {}  # entry -> module of transformers, of ours, what to do when both are executed
        for entry, name in AUTO_CLASSES.items():
            theirs = _AUTO_MODULES.get(entry[1], f"{_AUTO}.modeling_auto")
            self.open[entry] = (theirs, _module_of(name), _register_auto)
        for task, row in TASKS.items():
            self.open[task] = (_PIPELINES, _module_of(row.pipeline), _register_pipeline)
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
                register(entry, sys.modules[theirs])


def _carry_code(module) -> None:
    """Make the classes of one of our modules copy their code into every folder that they save."""
    for (_, auto_name), name in AUTO_CLASSES.items():
        if module.__name__ == _module_of(name):
            class_of(name).register_for_auto_class(auto_name)


def _module_of(name: str) -> str:
    return f"{MODELS}.{name.partition('.')[0]}"


def _is_executed(name: str) -> bool:
    module = sys.modules.get(name)
    return module is not None and not getattr(module.__spec__, "_initializing", False)


def install() -> None:
    """Start watching (once), and settle what is loaded already."""
    if not any(type(finder).__name__ == "_Registrar" for finder in sys.meta_path):
        registrar = _Registrar()
        sys.meta_path.insert(0, registrar)
        registrar.settle()
