"""The bundled starter after music feedback: the starter's own form and code, other weights, legal music."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

import mortm_hf


STARTER, ALIGNED = Path(mortm_hf.STARTER), Path(mortm_hf.STARTER_ALIGNED)
SONG = next((Path(mortm_hf.__file__).parent / "app" / "demo").glob("*.mid"))


def test_it_is_the_starter_with_other_weights():
    names = {path.name for path in STARTER.iterdir() if path.is_file()}
    assert {path.name for path in ALIGNED.iterdir() if path.is_file()} == names
    for name in names - {"model.safetensors"}:
        assert (ALIGNED / name).read_bytes() == (STARTER / name).read_bytes(), name
    before, after = (load_file(folder / "model.safetensors") for folder in (STARTER, ALIGNED))
    assert before.keys() == after.keys()
    moved = [float((after[k].float() - before[k].float()).norm() / before[k].float().norm()) for k in before]
    assert 0 < sum(moved) / len(moved) < 0.1 and all(torch.isfinite(v).all() for v in after.values())
    assert sum(path.stat().st_size for path in ALIGNED.iterdir()) < 20_000_000


def test_it_writes_what_was_asked_for():
    score = mortm_hf.pipeline("midi-generation", model=ALIGNED, device="cpu")(str(SONG), bars=1, seed=0)[0]["score"]
    assert score.tracks and sum(len(track.notes) for track in score.tracks)


def test_the_card_states_what_the_reports_hold():
    """Every gain and share of diversity in the card's tables is that of the reports beside it."""
    cards = Path(__file__).parents[1] / "model_cards"
    text = (cards / "mortm-aligned.md").read_text(encoding="utf-8")
    reports = json.loads((cards / "mortm-aligned.json").read_text(encoding="utf-8"))
    assert {r["kl_coef"] for r in reports} == {0.0125, 0.05, 0.2} and len(reports) == 5
    for report in reports:
        run = report["run"]
        gain, judge = (report["gains"][name][run] for name in ("reward", "independent judge"))
        assert f"| {run} | {gain['value']:.2f} ({gain['z']:.1f}) | {judge['value']:.2f} ({judge['z']:.1f}) |" in text
    best = next(r for r in reports if r["run"] == "kl0.2-s0")
    assert all(found["kl0.2-s0"]["met"] for found in best["diversity"].values())
    assert best["gains"]["independent judge"]["kl0.2-s0"]["z"] > 2
