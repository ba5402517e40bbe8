"""The accelerate configurations: read by accelerate, and two processes that compute what one computes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers.distributed import DistributedConfig

from mortm_hf.models.modeling_mortm import MortmForCausalLM
from mortm_hf.training.run import newest_checkpoint
from mortm_hf.training.runlog import read_log
from mortm_hf.training.validation import METRIC
from tests.training.tiny_run import TINY


ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "mortm_hf" / "training" / "configs"
# no experts: their balancing loss is a product of means, which differs between one batch and two halves
DENSE = TINY.replace("num_local_experts: 4}", "num_local_experts: 4, mlp_layer_types: [dense], intermediate_size: 64}")


def parsed(name):
    """The arguments of `accelerate launch --config_file NAME` and the environment of its processes."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    words = ["--config_file", str(CONFIGS / f"{name}.yaml"), "-m", "mortm_hf.training.pretrain", "recipe.yaml"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    return arguments, prepare_multi_gpu_env(arguments)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("single_gpu", None), ("ddp", "multi_gpu"), ("fsdp2", "use_fsdp"), ("deepspeed_zero3", "use_deepspeed"),
     ("expert_parallel", "multi_gpu")],
)  # fmt: skip
def test_accelerate_reads_them(name, kind, monkeypatch):
    for key in list(os.environ):
        if key.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.delenv(key)
    arguments, environment = parsed(name)
    assert [k for k in ("multi_gpu", "use_fsdp", "use_deepspeed") if getattr(arguments, k)] == ([kind] if kind else [])
    if name == "fsdp2":
        assert environment["FSDP_VERSION"] == "2"
        assert environment["FSDP_TRANSFORMER_CLS_TO_WRAP"] in MortmForCausalLM._no_split_modules
    if name == "deepspeed_zero3":
        assert arguments.zero_stage == 3 and arguments.gradient_clipping == "auto"  # the recipe's max_grad_norm


@pytest.mark.parametrize("path", sorted(CONFIGS.iterdir()), ids=lambda path: path.stem)
def test_their_commands_find_them_wherever_the_package_is(path, tmp_path):
    command = next(line for line in path.read_text().splitlines() if "accelerate launch" in line).lstrip("# ")
    words = (
        command.partition("--config_file ")[2].partition(" --num_processes")[0].partition(" -m mortm_hf.training.p")[0]
    )
    settings = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    told = subprocess.run(
        ["bash", "-c", f"echo {words}"], cwd=tmp_path, env=os.environ | settings, capture_output=True, text=True
    )
    assert Path(told.stdout.strip()) == path, told.stderr


def test_every_configuration_is_tested_and_shipped():
    assert {p.stem for p in CONFIGS.iterdir()} == {"single_gpu", "ddp", "fsdp2", "deepspeed_zero3", "expert_parallel"}
    assert "training/configs/*" in (ROOT / "setup.cfg").read_text()


def launch(recipe, folder, *words, processes=1, port=29621):
    """A tiny run in one process, or in several over gloo."""
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(port), "-m"]
    command += ["tests.training.tiny_run", str(recipe), "--output_dir", str(folder), *words]
    # several processes run on one machine: a port of its own for each test, one thread each
    settings = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def curve(folder, key="loss"):
    return {line["step"]: line[key] for line in read_log(folder) if key in line}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process that takes the packs two by two."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "r.yaml").write_text(DENSE)
    launch(folder / "r.yaml", folder / "run", "--gradient_accumulation_steps", "2", "--max_steps", "4")
    return folder / "run"


def compare(one, other, tolerance):
    a, b = curve(one), curve(other)
    assert list(a) == list(b) == [1, 2, 3, 4]
    assert all(abs(a[step] - b[step]) < tolerance for step in a), (a, b)
    a, b = curve(one, METRIC), curve(other, METRIC)
    assert a.keys() == b.keys() and all(abs(a[step] - b[step]) < 20 * tolerance for step in a), (a, b)
    one, other = (MortmForCausalLM.from_pretrained(folder / "final") for folder in (one, other))
    for p, q in zip(one.parameters(), other.parameters()):
        assert torch.allclose(p, q, atol=10 * tolerance)


@pytest.mark.slow
def test_ddp_computes_what_one_process_computes(alone, tmp_path):
    (tmp_path / "r.yaml").write_text(DENSE)
    told = launch(tmp_path / "r.yaml", tmp_path / "run", "--max_steps", "4", processes=2)
    compare(alone, tmp_path / "run", 1e-4)
    assert "find_unused_parameters" not in told
    assert read_log(tmp_path / "run")[-1]["tokens"] == read_log(alone)[-1]["tokens"] == 4 * 1024


@pytest.mark.slow
@pytest.mark.parametrize(("sharding", "port"), [("weights", 29622), ("experts", 29624)])
def test_fsdp2_and_spread_experts_compute_what_one_process_computes_and_resume(sharding, port, alone, tmp_path):
    experts = sharding == "experts"
    balanced = TINY.replace("num_local_experts: 4}", "num_local_experts: 4, router_balancing: none}")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(balanced if experts else DENSE)
    if experts:
        alone = tmp_path / "alone"
        launch(recipe, alone, "--gradient_accumulation_steps", "2", "--max_steps", "4")
    run = tmp_path / "run"
    words = (recipe, run, "--max_steps", "4", "--sharding", sharding)
    if "ep_size" not in DistributedConfig.__dataclass_fields__:  # an older transformers: refused with the way out
        with pytest.raises(AssertionError, match=r"fsdp2\.yaml"):
            launch(*words, processes=2, port=port)
        return
    # stopped by its clock after the first step, then it goes on with weights and optimizer that lie apart
    launch(*words, "--max_minutes", "0.00001", processes=2, port=port)
    assert newest_checkpoint(run).endswith("checkpoint-1") and not (run / "final").exists()
    launch(*words, processes=2, port=port + 1)
    compare(alone, run, 1e-4)


def test_sharding_needs_processes(tmp_path):
    from mortm_hf.models.errors_mortm import TrainingError
    from tests.training.tiny_run import run

    (tmp_path / "r.yaml").write_text(TINY)
    with pytest.raises(TrainingError, match="several processes"):
        run(tmp_path / "r.yaml", ["--output_dir", str(tmp_path / "run"), "--sharding", "weights"])
