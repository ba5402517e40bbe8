"""The notebook on conversion runs from its first cell to its last."""

import json
from pathlib import Path

import pytest


NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "02_convert_a_checkpoint.ipynb"


def test_notebook_is_stored_with_its_results():
    """Every cell was run without an error, and nothing of the machine it ran on is in it."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs and not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert "/home/" not in json.dumps(outputs) and "/tmp" not in json.dumps(outputs)


@pytest.mark.slow
def test_notebook_runs(monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": NOTEBOOK.parent}}
    )
    client.execute()
    text = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))
    assert "all the same: True" in text and "conversion.vocabulary" in text
