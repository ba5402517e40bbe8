"""The notebook on fine-tuning runs from the first cell to the last with the bundled checkpoint.

Example: python -m pytest -m slow tests/test_finetune_notebook.py
"""

from pathlib import Path

import pytest


NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "03_finetune_on_your_midi.ipynb"


def read():
    import nbformat

    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_notebook_is_stored_with_its_outputs():
    cells = [cell for cell in read().cells if cell.cell_type == "code"]
    assert len(cells) >= 7
    for cell in cells:
        compile(cell.source, str(NOTEBOOK), "exec")
        assert "/tmp" not in str(cell) and "/home/" not in str(cell)  # nothing of the machine it ran on
        assert not [o for o in cell.outputs if o.output_type == "error"]
    kinds = {kind for cell in cells for output in cell.outputs for kind in output.get("data", ())}
    assert "image/png" in kinds  # curves, piano rolls
    assert any("bits a note on" in str(output) for cell in cells for output in cell.outputs)


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    notebook = read()
    for cell in notebook.cells:  # the way is what is tested here, and a short walk will do
        cell.source = cell.source.replace("range(16)", "range(6)").replace("passes=8", "passes=0.5")
    NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": NOTEBOOK.parent}}
    ).execute()
    text = str(notebook.cells)
    assert "bits a note on" in text and "before" in text
