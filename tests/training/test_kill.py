"""kill -9 in the middle of training: the run started again is the run that was never killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mortm_hf.models.modeling_mortm import MortmForCausalLM
from mortm_hf.training.runlog import read_log
from tests.training.tiny_run import TINY


ROOT = Path(__file__).resolve().parents[2]
WORDS = ["--max_steps", "12", "--save_minutes", "0.0001", "--gradient_accumulation_steps", "2"]


def command(recipe, folder):
    return [sys.executable, "-m", "tests.training.tiny_run", str(recipe), "--output_dir", str(folder), *WORDS]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_resumed(tmp_path, workers):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(TINY)
    settings = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    subprocess.run(command(recipe, whole), cwd=ROOT, env=settings, check=True, capture_output=True, timeout=1200)
    again = [*command(recipe, parts), "--dataloader_num_workers", str(workers)]
    process = subprocess.Popen(
        again, cwd=ROOT, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.time() + 600
    while time.time() < deadline and process.poll() is None:  # as soon as it is past step 5, wherever it is then
        if any(line.get("step", 0) >= 5 for line in read_log(parts)):
            break
        time.sleep(0.05)
    assert process.poll() is None, "it ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    reached = max(line.get("step", 0) for line in read_log(parts))
    assert 5 <= reached < 12 and not (parts / "final").exists()
    subprocess.run(again, cwd=ROOT, env=settings, check=True, capture_output=True, timeout=1200)
    starts = [line["step"] for line in read_log(parts) if line.get("event") == "start"]
    assert len(starts) == 2 and 0 < starts[1] <= reached  # it went on, it did not begin anew
    one, other = ({line["step"]: line["loss"] for line in read_log(f) if "loss" in line} for f in (whole, parts))
    assert one == other and len(one) == 12
    a, b = (MortmForCausalLM.from_pretrained(folder / "final") for folder in (whole, parts))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
