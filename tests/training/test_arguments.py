"""Recipes: where they are found, what can be overridden, what is refused."""

import dataclasses
import json

import pytest

from mortm_hf.models.configuration_mortm import MortmConfig
from mortm_hf.training.arguments import (
    RECIPES,
    DataRecipe,
    PretrainArguments,
    describe_fields,
    find_recipe,
    read_recipe,
)
from mortm_hf.training.errors import TrainingError
from mortm_hf.training.pretrain import _check_same_run, _complete_arguments


OURS = ("starter", "mortm_small", "finetune", "compare_moe", "compare_dense")


def test_a_recipe_is_found_by_name():
    assert find_recipe("starter") == find_recipe("starter.yaml") == RECIPES / "starter.yaml"
    with pytest.raises(TrainingError, match="starter") as caught:
        find_recipe("no_such")
    assert caught.value.code == "training.recipe"


@pytest.mark.parametrize("name", OURS)
def test_recipes_of_the_package_are_valid(name, tmp_path):
    section, data, arguments = read_recipe(name, ["--output_dir", str(tmp_path)])
    if section:
        MortmConfig(**section)
    assert data.row_length * data.rows >= 2048 and arguments.weight_decay > 0


def test_the_compared_arms_differ_in_the_model_only(tmp_path):
    moe, dense = (read_recipe(f"compare_{name}", ["--output_dir", str(tmp_path)]) for name in ("moe", "dense"))
    assert moe[1] == dense[1]
    differing = {
        f.name for f in dataclasses.fields(PretrainArguments) if getattr(moe[2], f.name) != getattr(dense[2], f.name)
    }
    assert differing <= {"experts_implementation"}
    a, b = MortmConfig(**moe[0]), MortmConfig(**dense[0])
    chosen = (a.num_experts_per_tok * a.moe_intermediate_size) + a.shared_expert_intermediate_size
    assert chosen == b.intermediate_size  # as many parameters act on a token


def test_length_and_schedules_follow_from_the_arguments(tmp_path):
    _, _, arguments = read_recipe("compare_moe", ["--output_dir", str(tmp_path), "--max_tokens", "100000"])
    _complete_arguments(arguments, 2048)
    assert arguments.max_steps == 49 and arguments.decay_steps == 10
    assert arguments.lr_scheduler_type == "warmup_stable_decay"
    _, _, arguments = read_recipe("finetune", ["--output_dir", str(tmp_path), "--max_steps", "10"])
    _complete_arguments(arguments, 2048)
    assert arguments.lr_scheduler_type == "cosine" and arguments.ddp_find_unused_parameters is False
    _, _, arguments = read_recipe("finetune", ["--output_dir", str(tmp_path)])
    with pytest.raises(TrainingError, match="max_tokens"):
        _complete_arguments(arguments, 2048)


def test_windows_are_found_beside_the_recipe(tmp_path):
    (tmp_path / "own.csv").write_text("path,start\n")
    (tmp_path / "own.yaml").write_text("training: {max_steps: 3, eval_windows: own.csv}")
    _, _, arguments = read_recipe(tmp_path / "own.yaml", ["--output_dir", str(tmp_path / "run")])
    assert arguments.eval_windows == str(tmp_path / "own.csv")


@pytest.mark.parametrize("text", ["a: [", "- just\n- a list", "model: 3: 4"])
def test_no_yaml_is_one_line(text, tmp_path):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(TrainingError, match=r"bad\.yaml") as caught:
        read_recipe(tmp_path / "bad.yaml")
    assert "\n" not in str(caught.value)


def test_a_run_begun_before_a_field_existed_goes_on(tmp_path):
    arguments = PretrainArguments(output_dir=str(tmp_path), seed=3)
    _check_same_run(tmp_path, {}, DataRecipe(rows=5), arguments)
    stored = json.loads((tmp_path / "recipe.json").read_text())
    del stored["data"]["header_dropout"]  # as if that field were newer than the run
    (tmp_path / "recipe.json").write_text(json.dumps(stored))
    _check_same_run(tmp_path, {}, DataRecipe(rows=5), arguments)
    with pytest.raises(TrainingError, match="another recipe"):
        _check_same_run(tmp_path, {}, DataRecipe(rows=5, header_dropout=0.5), arguments)
    with pytest.raises(TrainingError, match=r"lora"):
        other = PretrainArguments(output_dir=str(tmp_path), seed=3, lora_rank=4)
        _check_same_run(tmp_path, {}, DataRecipe(rows=5), other)


def test_fields_are_described():
    text = describe_fields()
    assert "--max_tokens (0)" in text and "--row_length (1024)" in text and "--learning_rate" in text
    assert text.index("--max_tokens") < text.index("--learning_rate")
