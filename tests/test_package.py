"""The house rules of the package: who may import whom, what travels, what a user can name."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mortm_hf
from mortm_hf.models.families import TASKS


ROOT = Path(mortm_hf.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MODELS = sorted((ROOT / "models").glob("*.py"))
# which parts a part may import from, itself aside
BELOW = {
    "models": set(),
    "data": {"models"},
    "conversion": {"models"},
    "training": {"data", "models", "evaluation"},
    "evaluation": {"data", "models"},
    "app": {"training", "evaluation", "data", "models", "conversion"},
}
CORE = {"torch", "numpy", "transformers", "tokenizers", "huggingface_hub"}


def name_of(path) -> str:
    return str(path.relative_to(ROOT))


def part_of(path) -> str:
    """The sub-package of a file, "" at the top."""
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else ""


def imports_of(path):
    """(absolute module, node, inside a try, level) of every import statement of a file."""
    package = ["mortm_hf", *path.relative_to(ROOT).parts[:-1]]
    found = []

    def walk(node, guarded):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.extend((alias.name, child, guarded, 0) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else []
                module = ".".join([*base, *([child.module] if child.module else [])])
                names = [f"{module}.{alias.name}" for alias in child.names] if not child.module else [module]
                found.extend((name, child, guarded, child.level) for name in names)
            walk(child, guarded or isinstance(node, ast.Try) or isinstance(child, ast.Try))

    walk(ast.parse(path.read_text(encoding="utf-8")), False)
    return found


@pytest.mark.parametrize("path", [p for p in FILES if part_of(p)], ids=name_of)
def test_imports_run_downward(path):
    here = part_of(path)
    for module, node, _, _ in imports_of(path):
        steps = module.split(".")
        if steps[0] != "mortm_hf" or len(steps) < 2 or steps[1] not in BELOW:
            # the package's own top: its version and names only
            continue
        assert steps[1] == here or steps[1] in BELOW[here], f"line {node.lineno}: {here} must not import {module}"


@pytest.mark.parametrize("path", MODELS, ids=name_of)
def test_models_travel(path):
    """Flat, sibling imports only, nothing beyond the core outside `try`: what transformers can copy and load."""
    siblings = {p.stem for p in MODELS}
    standard = sys.stdlib_module_names
    for module, node, guarded, level in imports_of(path):
        where = f"line {node.lineno}"
        if level:
            assert level == 1, f"{where}: `from ..` cannot travel"
            assert node.module, f"{where}: `from . import x` copies no file"
            assert node.module in siblings, f"{where}: no sibling {node.module}"
        else:
            top = module.split(".")[0]
            assert top != "mortm_hf", f"{where}: an absolute import of the package cannot travel"
            assert top in standard or top in CORE or guarded, f"{where}: {top} belongs inside `try`"


def test_models_folder_is_flat():
    inside = {p.name for p in (ROOT / "models").iterdir() if p.name != "__pycache__"}
    assert inside == {p.name for p in MODELS}
    assert len({p.stem for p in MODELS}) == len(MODELS)


@pytest.mark.parametrize("path", [p for p in FILES if part_of(p) != "conversion"], ids=name_of)
def test_no_pickle_at_run_time(path):
    """Only `mortm_hf.conversion` may read upstream's pickles (with `weights_only=True`)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for module, node, _, _ in imports_of(path):
        top = module.split(".")[0]
        assert top not in {"pickle", "dill", "cloudpickle", "joblib", "shelve"}, f"line {node.lineno}: {module}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
            owner = node.func.value
            if isinstance(owner, ast.Name) and owner.id in ("torch", "np", "numpy"):
                safe = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
                if owner.id == "torch":
                    assert safe.get("weights_only") is True, f"line {node.lineno}: torch.load without weights_only"
                else:
                    assert not safe.get("allow_pickle"), f"line {node.lineno}: allow_pickle"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_module_docstring(path):
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert doc and doc.strip(), "a module opens with what it is for"
    if path.name != "__init__.py" and path.name not in ("_version.py", "__main__.py"):
        assert "Knows" in doc, "say what the module knows"
        assert "ust not know" in doc or "Knows: nothing but" in doc, "say what the module must not know"


# attention, experts and all heads of a model share one modeling file: transformers requires it
@pytest.mark.parametrize("path", [p for p in FILES if not p.stem.startswith("modeling_")], ids=name_of)
def test_files_stay_readable(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 600


def test_every_public_name_is_importable():
    for name in mortm_hf.__all__:
        assert getattr(mortm_hf, name) is not None, name
    assert set(mortm_hf.__all__) <= set(dir(mortm_hf))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mortm_hf.nothing  # noqa: B018


def test_version_is_one():
    assert mortm_hf.__version__ == importlib.import_module("mortm_hf._version").__version__
    assert mortm_hf.__version__.split(".")[:2] == ["0", "1"]


def run_fresh(code: str) -> str:
    environment = dict(os.environ, PYTHONPATH=str(ROOT.parent), OMP_NUM_THREADS="1")
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout.strip()


def test_import_loads_nothing_heavy():
    loaded = run_fresh(
        "import sys, mortm_hf; print(*[m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    assert loaded == ""


@pytest.mark.parametrize(
    "first",
    [
        "import mortm_hf; from transformers import LlamaForCausalLM",
        "from transformers import AutoModelForCausalLM, AutoTokenizer; import transformers.pipelines; import mortm_hf",
        pytest.param("from mortm_hf import MortmForCausalLM", marks=pytest.mark.slow),
        pytest.param("from mortm_hf.models.pipeline_mortm import MidiGenerationPipeline", marks=pytest.mark.slow),
    ],
)
def test_registered_whatever_comes_first(first):
    """Auto classes and pipelines know our classes, whichever package was imported first."""
    code = f"""
{first}
import transformers
from transformers.pipelines import PIPELINE_REGISTRY
for family, head in (("mortm", "AutoModelForCausalLM"), ("bertm", "AutoModelForMaskedLM")):
    config = transformers.AutoConfig.for_model(family, hidden_size=16, num_attention_heads=2, num_hidden_layers=1)
    print(type(config).__name__)
    for name in ("AutoModel", head, "AutoModelForSequenceClassification"):
        print(type(getattr(transformers, name).from_config(config)).__name__)
    print(transformers.models.auto.tokenization_auto.TOKENIZER_MAPPING[type(config)].__name__)
for task in {sorted(TASKS)!r}:
    print(PIPELINE_REGISTRY.check_task(task)[1]["impl"].__name__)
"""
    told = run_fresh(code).split()
    assert told == [
        *("MortmConfig", "MortmModel", "MortmForCausalLM", "MortmForSequenceClassification", "MortmTokenizer"),
        *("BertmConfig", "BertmModel", "BertmForMaskedLM", "BertmForSequenceClassification", "MortmTokenizer"),
        *(row.pipeline.split(".")[1] for _, row in sorted(TASKS.items())),
    ]


def test_nothing_else_of_transformers_is_disturbed():
    """An unrelated model loads as before, and a failing import of ours only warns."""
    code = """
import sys
class Broken:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "mortm_hf.models.modeling_mortm":
            raise ImportError("broken on purpose")
sys.meta_path.insert(0, Broken)
import mortm_hf, logging
logging.basicConfig(stream=sys.stdout)
from transformers import AutoModel, AutoConfig
print(type(AutoConfig.for_model("gpt2")).__name__)
AutoModel._model_mapping[type(AutoConfig.for_model("gpt2"))]
"""
    told = run_fresh(code)
    assert "GPT2Config" in told and "is not registered with transformers" in told
