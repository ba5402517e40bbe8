"""The notebook of sound and live playing is stored with its outputs, and runs from the first cell to the last.

Example: python -m pytest -m slow tests/test_audio_notebook.py
"""

from pathlib import Path

import pytest


NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "06_audio_and_live.ipynb"


def read():
    import nbformat

    return nbformat.read(NOTEBOOK, as_version=4)


def kinds(notebook) -> list[str]:
    return [
        kind for cell in notebook.cells for output in cell.get("outputs", ()) for kind in output.get("data", {}).keys()
    ]


def test_the_notebook_is_stored_with_outputs():
    cells = [cell for cell in read().cells if cell.cell_type == "code"]
    assert len(cells) >= 9
    for cell in cells:
        compile(cell.source, str(NOTEBOOK), "exec")
        assert cell.outputs, cell.source
        assert "/tmp" not in str(cell) and "/home/" not in str(cell)  # nothing of the machine it ran on
        assert not [o for o in cell.outputs if o.output_type == "error"]
    assert kinds(read()).count("image/png") == 3
    assert str(read()).count("audio/wav") >= 3
    assert NOTEBOOK.stat().st_size < 1_500_000


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    notebook = read()
    for cell in notebook.cells:
        cell.pop("outputs", None) if cell.cell_type != "code" else cell.update(outputs=[])
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": NOTEBOOK.parent}}
    ).execute()
    text = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", ()))
    assert "RMS of the new sound" in text and "chunks answered" in text
    assert kinds(notebook).count("image/png") == 3
