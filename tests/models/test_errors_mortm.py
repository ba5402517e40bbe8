"""The table of errors against the package's sources and the documentation page."""

import ast
import re
from pathlib import Path

import pytest

import mortm_hf
from mortm_hf.models import errors_mortm
from mortm_hf.models.errors_mortm import CODES, MortmError


ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "errors.md"
CLASSES = {
    name: value
    for name, value in vars(errors_mortm).items()
    if isinstance(value, type) and issubclass(value, MortmError)
}
A_CODE = re.compile(rf"({'|'.join({code.partition('.')[0] for code in CODES})})\.[a-z_]+")


def row(code: str) -> str:
    kind, raised_for, remedy = CODES[code]
    return f"| `{kind.__name__}` | `{code}` | {raised_for} | {remedy} |"


def raised(source: Path):
    """(line, class, code or None where it is computed) of every error of ours that a file makes."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name not in CLASSES:
            continue
        given = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
        given += node.args[3 if name == "GrammarError" else 1 :]
        if not given:
            yield node.lineno, name, CLASSES[name].code
        else:
            yield node.lineno, name, given[0].value if isinstance(given[0], ast.Constant) else None


def test_every_code_raised_is_in_the_table_with_its_class():
    wrong, seen = [], set()
    for source in sorted((ROOT / "mortm_hf").rglob("*.py")):
        for line, name, code in raised(source):
            seen.add(code)
            if code is not None and (code not in CODES or CODES[code][0] is not CLASSES[name]):
                wrong.append(f"{source.relative_to(ROOT)}:{line}: {name} with the code {code!r}")
    assert not wrong, "\n".join(wrong)
    # codes that are handed on as a value stand in the sources as strings
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "mortm_hf").rglob("*.py"))
    idle = [code for code in CODES if code not in seen and text.count(f'"{code}"') < 2]
    assert not idle, f"never raised: {idle}"


def test_every_string_that_looks_like_a_code_is_one():
    modules = {path.stem for path in (ROOT / "mortm_hf").rglob("*.py")}
    wrong = []
    for source in sorted((ROOT / "mortm_hf").rglob("*.py")):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and A_CODE.fullmatch(node.value):
                last = node.value.rpartition(".")[2]
                if node.value not in CODES and last not in modules | {"json", "pt", "mid", "py", "yaml"}:
                    wrong.append(f"{source.relative_to(ROOT)}:{node.lineno}: {node.value!r}")
    assert not wrong, "\n".join(wrong)


def test_the_page_shows_the_table():
    shown = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert shown == [row(code) for code in CODES]


@pytest.mark.parametrize("name", CLASSES)
def test_each_class_is_public_and_has_a_code_of_its_own(name):
    kind = CLASSES[name]
    assert getattr(mortm_hf, name) is kind and name in mortm_hf.__all__
    assert CODES[kind.code][0] is kind and "code" in vars(kind)
    assert kind("message").code == kind.code and kind("message", code="other").code == "other"
    assert isinstance(kind("message"), ValueError)


def test_old_places():
    from mortm_hf import ConversionError, DataError, LiveError
    from mortm_hf.conversion import ConversionError as conversion
    from mortm_hf.data import DataError as data
    from mortm_hf.models.errors_mortm import CommandError
    from mortm_hf.models.errors_mortm import LiveError as live

    assert conversion is ConversionError and data is DataError and live is LiveError
    assert CommandError is mortm_hf.CommandError
