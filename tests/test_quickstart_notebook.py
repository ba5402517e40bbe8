"""The quickstart runs from the first cell to the last, with the bundled checkpoint.

Example: python -m pytest -m slow tests/test_quickstart_notebook.py
"""

import re
from pathlib import Path

import pytest


NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "01_quickstart.ipynb"


def read():
    import nbformat

    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_notebook_is_code_that_parses():
    cells = [cell for cell in read().cells if cell.cell_type == "code"]
    assert len(cells) >= 8
    for cell in cells:
        compile(cell.source, str(NOTEBOOK), "exec")
        assert "/tmp" not in str(cell) and "/home/" not in str(cell)  # nothing of the machine it ran on
        assert not [o for o in cell.outputs if o.output_type == "error"]


def test_the_stored_outputs_show_what_a_reader_would_see():
    """Pictures, sound and figures stand in the file; it is small, and nothing of a machine is in it."""
    notebook = read()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))  # run once, from the top
    outputs = [output for cell in cells for output in cell.outputs]
    kinds = {kind for output in outputs for kind in output.get("data", ())}
    assert {"image/png", "text/html"} <= kinds
    assert any("bars (8, 12)" in output.get("text", "") for output in outputs)
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 300_000
    for output in outputs:
        words = str({k: v for k, v in output.items() if k != "data"}) + str(output.get("data", {}).get("text/plain"))
        assert not re.search(r"(?<![\w.<])/(?:tmp|home|root|usr|work|Users|mnt|var)\b|[A-Z]:\\\\", words), words[:300]
        assert "Warning" not in words and "Error" not in words


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    notebook = read()
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": NOTEBOOK.parent}}
    ).execute()
    kinds = {kind for cell in notebook.cells for output in cell.get("outputs", ()) for kind in output.get("data", ())}
    assert {"image/png", "text/html"} <= kinds  # the piano roll and the sound
