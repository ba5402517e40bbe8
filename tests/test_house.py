"""The house: no circle, no copy, one name a file, nothing public lost, every argument described.

Which part may import which, what models/ may import, what a module opens with and how long a file may be:
`test_package.py`.
"""

import ast
import collections
import functools
import hashlib
import json
import re
import subprocess
from pathlib import Path

import pytest
import surface

import mortm_hf


PACKAGE = Path(mortm_hf.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))
# module names that may occur twice in the package -> why
TWICE = {
    "__init__": "what Python calls a package",
    "__main__": "what Python runs",
    "live": "a command of the app and a task of training, each found by its word",
}
_SECTION = re.compile(r"(Args|Attributes|Parameters|Returns|Yields|Raises|Examples?|Notes?):\s*$")
_ENTRY = re.compile(r"(\*{0,2}[\w.]+(?:(?:, | / )\*{0,2}[\w.]+)*)(?: \([^)]*\))?: ?")


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# --------------------------------------------------------------------------------------------------- imports


def import_graph() -> dict[str, set[str]]:
    """Module -> modules of the package that it imports, wherever in it the import stands."""
    modules = {module_of(path): path for path in FILES}
    graph = {}
    for module, path in modules.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                source = ".".join([*base, *([node.module] if node.module else [])])
                inside = {f"{source}.{alias.name}" for alias in node.names}
                # `from . import x` imports the module x, or the name x of the package
                found |= {name if name in modules else source for name in inside}
        graph[module] = (found & modules.keys()) - {module}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """One circle of each group of modules that import each other."""
    order, low, stack, groups = {}, {}, [], []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                groups.append(set(group))

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return [_shortest(graph, group) for group in groups]


def _shortest(graph: dict[str, set[str]], group: set[str]) -> list[str]:
    """The shortest way from the group's first module back to it, or from the next one that has a way."""
    start = min(group)
    ways = collections.deque([[start]])
    seen = set()
    while ways:
        way = ways.popleft()
        for other in sorted(graph[way[-1]] & group):
            if other == start:
                return [*way, start]
            if other not in seen:
                seen.add(other)
                ways.append([*way, other])
    raise AssertionError("no circle in this group")


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [["b", "c", "b"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_import_circle():
    found = [" -> ".join(way) for way in circles(import_graph())]
    assert not found, "modules import each other:\n" + "\n".join(found)


# ----------------------------------------------------------------------------------------------------- files


def sources() -> list[Path]:
    """Python files under version control, or all of them where there is none."""
    try:
        run = subprocess.run(["git", "ls-files", "-z", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
        found = [ROOT / name for name in run.stdout.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        found = []
    parts = ("mortm_hf", "tests", "benchmarks", "conversion")
    return [path for path in found if path.is_file()] or [p for part in parts for p in (ROOT / part).rglob("*.py")]


def test_no_source_twice():
    same = collections.defaultdict(list)
    for path in sources():
        content = path.read_bytes()
        if content.strip():
            same[hashlib.sha256(content).hexdigest()].append(str(path.relative_to(ROOT)))
    copies = [names for names in same.values() if len(names) > 1]
    assert not copies, f"equal files: {copies}"


def test_no_module_name_twice():
    places = collections.defaultdict(list)
    for path in FILES:
        places[path.stem].append(name_of(path))
    twice = {stem: sorted(names) for stem, names in places.items() if len(names) > 1 and stem not in TWICE}
    assert not twice, "\n".join(f"{stem}: {', '.join(names)}" for stem, names in sorted(twice.items()))


def test_no_code_beside_weights():
    beside = [name_of(p) for weights in PACKAGE.rglob("*.safetensors") for p in weights.parent.glob("*.py")]
    assert not beside, f"code beside weights: {beside}"
    assert not list((PACKAGE / "checkpoints").rglob("*.py"))


# ---------------------------------------------------------------------------------------------------- surface


@pytest.mark.parametrize("part", surface.PARTS, ids=lambda part: part.__name__)
def test_nothing_public_is_lost(part):
    known = json.loads(surface.RECORD.read_text(encoding="utf-8"))[part.__name__]
    lost = sorted({*known} - {*part()})
    assert known and not lost, f"{part.__name__} that are gone: {lost}"


# ------------------------------------------------------------------------------------------------- docstrings


def sections_of(doc: str) -> dict[str, list[tuple[list[str], str]]]:
    """Section -> its entries: (names before the colon, text)."""
    found, here, depth = {}, None, 0
    for line in doc.splitlines():
        text, indent = line.strip(), len(line) - len(line.lstrip())
        if match := _SECTION.match(text):
            here, depth = found.setdefault(match[1], []), indent
        elif here is not None and text:
            if indent <= depth:
                here = None
            elif indent == depth + 4:
                match = _ENTRY.match(text)
                here.append((re.split(r", | / ", match[1]) if match else [], text))
            elif here:
                here[-1] = (here[-1][0], f"{here[-1][1]} {text}")
    return found


def arguments_of(node) -> list[str]:
    """What a caller names: no self, no `*args`, no `**kwargs`."""
    args = node.args
    names = [arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls") and not name.startswith("_")]


def fields_of(node: ast.ClassDef) -> list[str] | None:
    """The fields of a dataclass or named tuple, or what its constructor takes; None: neither."""
    decorators = {ast.unparse(d).partition("(")[0].rpartition(".")[2] for d in node.decorator_list}
    bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    if decorators & {"dataclass", "strict"} or "NamedTuple" in bases:
        hidden = ("_", "ClassVar")
        named = [
            p for p in node.body if isinstance(p, ast.AnnAssign) and not ast.unparse(p.annotation).startswith(hidden)
        ]
        # fields that carry their own help (options of a command line) are described there
        own = [p.target.id for p in named if "'help'" not in (ast.unparse(p.value) if p.value else "")]
        return [name for name in own if not name.startswith("_")]
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            return arguments_of(part)
    return None


def faults_of(what: str, doc: str | None, names: list[str]) -> list[str]:
    """What is wrong with a docstring whose owner takes `names`."""
    if not doc:
        return [f"{what}: no docstring"]
    sections = sections_of(doc)
    entries = [e for title in ("Args", "Attributes", "Parameters") for e in sections.get(title, ())]
    found = []
    for described, text in entries:
        if len(described) > 1:
            found.append(f"{what}: one line for {', '.join(described)}")
        others = {*names} - {*described}
        inline = [n for n in re.findall(r"(?:[.;,] |^)`?(\w+)`?(?: \([^)]*\))?: ", text) if n in others]
        if inline:
            found.append(f"{what}: {inline[0]} has no line of its own")
            described.extend(inline)  # once is enough
    known = {name.lstrip("*") for described, _ in entries for name in described}
    missing = [name for name in names if name not in known]
    return found + ([f"{what}: no line for {', '.join(missing)}"] if missing else [])


@functools.cache
def offered() -> set[tuple[str, str]]:
    """(module, name) of the classes and functions that `mortm_hf` offers, with what classes inherit from ours."""
    values = [getattr(mortm_hf, name) for name in mortm_hf.__all__]
    values = [kind for v in values for kind in (v.__mro__ if isinstance(v, type) else [v] if callable(v) else [])]
    return {(value.__module__, value.__qualname__) for value in values}


def docstring_faults(path: Path) -> list[str]:
    """Faults of the public functions, classes and methods of a module.

    What `mortm_hf` offers describes every argument. Elsewhere the sentence of a function of one argument may do. The
    two functions of a command are described once, in `app/__init__.py`; every layer of a model takes its configuration
    and its place in the model.
    """
    found, module, commands = [], module_of(path), path.parent.name == "app"
    layers = ("config", "layer_idx") if path.stem.startswith("modeling_") else ()

    def visit(body, prefix: str, inherits: bool) -> None:
        for node in body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
                continue
            what, doc = f"{prefix}{node.name}", ast.get_docstring(node)
            if isinstance(node, ast.ClassDef):
                names = [name for name in fields_of(node) or [] if name not in layers]
                init = next((p for p in node.body if isinstance(p, ast.FunctionDef) and p.name == "__init__"), None)
                if init is not None and ast.get_docstring(init):
                    doc = f"{doc}\n\n{ast.get_docstring(init)}"
                found.extend(f"{node.lineno}: {fault}" for fault in faults_of(what, doc, names))
                visit(node.body, f"{what}.", bool(node.bases))
                continue
            if inherits and not doc:  # what a base class asks for is described there
                continue
            decorators = {ast.unparse(d).rpartition(".")[2] for d in node.decorator_list}
            if decorators & {"setter", "overload"}:
                continue
            names = [name for name in arguments_of(node) if not (commands and name in ("commands", "args"))]
            public = (module, what.partition(".")[0]) in offered()
            if inherits and not sections_of(doc or "").get("Args"):  # it says what differs from the base class
                names = []
            if len(names) == 1 and not public and "Args:" not in (doc or ""):
                names = []
            found.extend(f"{node.lineno}: {fault}" for fault in faults_of(what, doc, names))

    visit(ast.parse(path.read_text(encoding="utf-8")).body, "", False)
    return found


def test_faults_are_found():
    both = "Adds.\n\nArgs:\n    a: the first. b: the second.\n"
    assert faults_of("f", both, ["a", "b"]) == ["f: b has no line of its own"]
    assert faults_of("f", "Adds.\n\nArgs:\n    a, b: numbers.\n", ["a", "b"]) == ["f: one line for a, b"]
    assert faults_of("f", "Adds.\n\nArgs:\n    a: one, in\n        beats.\n", ["a", "b"]) == ["f: no line for b"]
    assert faults_of("f", "Adds.\n\nArgs:\n    a: one.\n    b: two.\n", ["a", "b"]) == []
    assert faults_of("f", None, []) == ["f: no docstring"]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_argument_has_a_line(path):
    found = docstring_faults(path)
    assert not found, f"{len(found)} faults:\n" + "\n".join(f"{name_of(path)}:{fault}" for fault in found)


def test_public_names_are_described():
    """Docstrings as `help()` shows them, of everything that `mortm_hf` offers."""
    bare = []
    for name in mortm_hf.__all__:
        value = getattr(mortm_hf, name)
        if isinstance(value, type) or callable(value):
            bare += [name] if not (value.__doc__ or "").strip() else []
    assert not bare, f"no docstring: {bare}"


if __name__ == "__main__":  # what is wrong, by file
    for path in FILES:
        for fault in docstring_faults(path):
            print(f"{name_of(path)}:{fault}")
