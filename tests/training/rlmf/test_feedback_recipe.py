"""Recipes: reading, overriding, refusing; the recipes of the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from mortm_hf.app.cli import main
from mortm_hf.models.errors_mortm import RlmfError
from mortm_hf.training.rlmf.feedback_recipe import Recipe, read_recipe


RECIPES = Path(__file__).parents[3] / "mortm_hf" / "training" / "recipes"


def write(tmp_path, text):
    file = tmp_path / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize("name", sorted(p.stem for p in RECIPES.glob("rlmf_*.yaml")))
def test_the_recipes_of_the_package_are_complete(name):
    recipe = read_recipe(name, ["--output_dir", "run"])
    assert recipe.reward.terms and recipe.corpora
    assert recipe.prompts().response_length == {"rlmf_rules": 96, "rlmf_quality": 128}[name]
    pytest.importorskip("trl")
    args = recipe.arguments("run")
    assert args.gradient_accumulation_steps == 1 and args.temperature == 1.0 and args.stop_token == "eos"
    assert args.num_sample_generations == 0 and not args.bf16 and not args.gradient_checkpointing
    assert args.per_device_train_batch_size % args.num_mini_batches == 0


def test_words_override_fields_of_every_section(tmp_path):
    file = write(
        tmp_path, "data: {corpora: {pop909: {variants: [aligned]}, lieder: }, past: 3}\ntraining: {seed: 3}\n"
    )
    words = ["--kl_coef", "0.2", "--past=2", "--critic_layers", "1", "--algorithm", "rloo", "--seed", "5"]
    recipe = read_recipe(file, words)
    assert (recipe.training["kl_coef"], recipe.training["seed"]) == (0.2, 5)
    assert (recipe.data.past, recipe.model.critic_layers, recipe.run.algorithm) == (2, 1, "rloo")
    assert recipe.selection().corpora["pop909"].variants == ("aligned",) and "lieder" in recipe.selection().corpora
    assert Recipe.restated(recipe.stated()) == recipe


@pytest.mark.parametrize(
    ("text", "words", "match"),
    [
        ("music: {}", [], "unknown sections: music"),
        ("data: {bar: 2}", [], "data: unknown fields: bar"),
        ("reward: {clip: [3, 1]}", [], "the lower one first"),
        ("run: {algorithm: dpo}", [], "no algorithm 'dpo'"),
        ("", ["--sft_model_path", "x"], "name the policy under model"),
        ("", ["--resume_from_checkpoint", "x"], "--resume the folder of a saved pair"),
        ("", ["kl_coef", "2"], "write --field value"),
        ("", ["--kl_coef"], "needs a value"),
        ("data: {past: soon}", [], "past"),
    ],
)
def test_refusals_name_the_field(tmp_path, text, words, match):
    with pytest.raises(RlmfError, match=match):
        read_recipe(write(tmp_path, text), words)


def test_a_judge_of_ones_own_takes_the_place_of_the_recipes():
    terms = read_recipe("rlmf_quality", ["--judge", "mine"]).reward.terms
    assert [t["model"] for t in terms if t["kind"] == "judge"] == ["mine"]
    assert [t["model"] for t in read_recipe("rlmf_quality").reward.terms if t["kind"] == "judge"] == ["BERTM_QUALITY"]
    with pytest.raises(RlmfError, match="no term of the kind judge"):
        read_recipe("rlmf_rules", ["--judge", "mine"])


def test_unknown_training_fields_are_refused(tmp_path):
    pytest.importorskip("trl")
    with pytest.raises(RlmfError, match="kl_coefficient"):
        read_recipe(write(tmp_path, ""), ["--kl_coefficient", "1"]).arguments(tmp_path)


def test_the_command_ends_with_one_line(tmp_path, capsys):
    assert main(["rlmf", "nothing.yaml"]) == 2
    assert "no recipe nothing.yaml" in capsys.readouterr().err
    assert main(["rlmf", "rlmf_rules"]) == 2
    assert "give --output_dir" in capsys.readouterr().err
    pytest.importorskip("trl")
    assert main(["rlmf", "rlmf_rules", "--output_dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "no data" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
