"""The notebook on reinforcement learning parses, names nothing of the machine it ran on, and runs.

Example: python -m pytest -m slow tests/test_rlmf_notebook.py
"""

from pathlib import Path

import pytest
import torch

import mortm_hf


NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "05_rlmf.ipynb"


def read():
    import nbformat

    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_notebook_is_code_that_parses():
    cells = [cell for cell in read().cells if cell.cell_type == "code"]
    assert len(cells) >= 7
    for cell in cells:
        compile(cell.source, str(NOTEBOOK), "exec")
        assert "/tmp" not in str(cell) and "/home/" not in str(cell)
        assert not [o for o in cell.outputs if o.output_type == "error"]


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    """With a tiny policy and two updates in place of the bundled one and twenty."""
    pytest.importorskip("trl")
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, moe_intermediate_size=8)
    sizes |= dict(shared_expert_intermediate_size=8, num_local_experts=2)
    mortm_hf.MortmForCausalLM(mortm_hf.MortmConfig(**sizes)).save_pretrained(tmp_path / "tiny")
    mortm_hf.MortmTokenizer().save_pretrained(tmp_path / "tiny")
    notebook = read()
    notebook.cells.insert(
        0, nbformat.v4.new_code_cell(f"import mortm_hf\nmortm_hf.STARTER = {str(tmp_path / 'tiny')!r}")
    )
    for cell in notebook.cells:
        cell.source = cell.source.replace("total_episodes: 640", "total_episodes: 64")
    NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": NOTEBOOK.parent}}
    ).execute()
    kinds = {kind for cell in notebook.cells for output in cell.get("outputs", ()) for kind in output.get("data", ())}
    assert {"image/png", "text/html"} <= kinds  # curves, piano rolls and sound
