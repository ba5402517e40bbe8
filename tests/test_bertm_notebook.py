"""The notebook of BERTM is stored with its outputs, and runs from the first cell to the last.

Example: python -m pytest -m slow tests/test_bertm_notebook.py
"""

from pathlib import Path

import pytest


NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "04_bertm.ipynb"


def read():
    import nbformat

    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_notebook_is_stored_with_outputs():
    cells = [cell for cell in read().cells if cell.cell_type == "code"]
    assert len(cells) >= 8
    for cell in cells:
        compile(cell.source, str(NOTEBOOK), "exec")
        assert cell.outputs, cell.source
        assert "/tmp" not in str(cell) and "/home/" not in str(cell)  # nothing of the machine it ran on
        assert not [o for o in cell.outputs if o.output_type == "error"]


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    monkeypatch.delenv("MIDI_FOLDER", raising=False)
    notebook = read()
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": NOTEBOOK.parent}}
    ).execute()
    text = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", ()))
    assert "nearest bar of the same song" in text and "probability human" in text
    kinds = {kind for cell in notebook.cells for output in cell.get("outputs", ()) for kind in output.get("data", ())}
    assert "image/png" in kinds
