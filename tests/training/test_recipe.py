"""Recipes: where they are found, what can be overridden, what is refused."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch
import yaml

from mortm_hf.models.configuration_mortm import MortmConfig
from mortm_hf.models.errors_mortm import TrainingError
from mortm_hf.training.arguments import DataRecipe, RunArguments
from mortm_hf.training.recipe import RECIPES, Recipe, describe_fields, find_recipe, parse_recipe, with_folder
from mortm_hf.training.rlmf.feedback_recipe import read_recipe as feedback_recipe
from mortm_hf.training.run import complete_arguments, same_run
from mortm_hf.training.tasks import (
    TASKS,
    audio_task,
    classify_task,
    live_task,
    mlm_task,
    pretrain_task,
    read_recipe,
    task_of,
)
from mortm_hf.training.tasks.pretrain_task import make_trainer, stated_of


OURS = ("starter", "mortm_small", "finetune", "compare_moe", "compare_dense")


def test_a_recipe_is_found_by_name():
    assert find_recipe("starter") == find_recipe("starter.yaml") == RECIPES / "starter.yaml"
    with pytest.raises(TrainingError, match="starter") as caught:
        find_recipe("no_such")
    assert caught.value.code == "training.recipe" and "rlmf" not in str(caught.value)
    with pytest.raises(TrainingError, match="mortm rlmf rlmf_rules"):
        task_of("rlmf_rules")


@pytest.mark.parametrize("name", OURS)
def test_recipes_of_the_package_are_valid(name, tmp_path):
    found = read_recipe(name, ["--output_dir", str(tmp_path)])
    section, data, arguments = found.model, found.data, found.training
    if section:
        MortmConfig(**section)
    assert data.row_length * data.rows >= 2048 and arguments.weight_decay > 0


KINDS = {m.KIND.task: m.KIND for m in (pretrain_task, mlm_task, classify_task, audio_task, live_task)}


@pytest.mark.parametrize("name", sorted(p.stem for p in RECIPES.glob("*.yaml") if not p.stem.startswith("rlmf_")))
def test_every_recipe_of_the_package_is_read(name, tmp_path):
    found = read_recipe(name, ["--output_dir", str(tmp_path)])
    assert found.task == task_of(name) in KINDS and tuple(KINDS) == TASKS
    assert set(found.others) <= set(KINDS[found.task].own)


def resolved(name):
    """Every field of a recipe that is ours or that the file states, with the value a run would have."""
    if name.startswith("rlmf_"):
        return feedback_recipe(name).stated()
    found = read_recipe(name)
    training = found.training
    stated = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())["training"]
    ours = {n for kind in type(training).__mro__ if issubclass(kind, RunArguments) for n in kind.__annotations__}
    values = {n: getattr(training, n) for n in {*stated, *ours}} | {"eval_windows": Path(training.eval_windows).name}
    others = {section: dataclasses.asdict(one) for section, one in found.others.items()}
    parts = {"model": found.model, "data": dataclasses.asdict(found.data), "training": values, "others": others}
    return {"task": found.task, **parts}


def test_the_recipes_of_the_package_mean_what_they_meant():
    """Runs that began with one must go on, and figures that were measured must be those of the recipe."""
    kept = json.loads((Path(__file__).parents[1] / "fixtures" / "recipe_fields.json").read_text())
    assert set(kept) == {p.stem for p in RECIPES.glob("*.yaml")}
    for name, digest in kept.items():
        text = json.dumps(resolved(name), sort_keys=True)
        assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest, f"{name}: {text}"


def test_names_of_the_model_section_are_known(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("model: {hiden_size: 32}")
    with pytest.raises(TrainingError, match=r"model: unknown fields: hiden_size \(is hidden_size meant\?\)"):
        read_recipe(path)
    kept = {
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "num_experts": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    }
    path.write_text(yaml.safe_dump({"model": kept}))
    section = read_recipe(path).model
    assert section == kept and MortmConfig(**section).num_local_experts == 4
    for task, own in (
        ("live", {"instruments": [0, 73]}),
        ("audio", {"patch_size": 2}),
        ("mlm", {"classifier_pooling": "mean"}),
    ):
        path.write_text(yaml.safe_dump({"task": task, "model": own}))
        assert read_recipe(path).model == own  # the task that is stated counts, not the sections of its own
        path.write_text(yaml.safe_dump({"model": own}))
        assert parse_recipe(path, (), KINDS[task]).model == own  # where none is, its reader's
        with pytest.raises(TrainingError, match=next(iter(own))):
            read_recipe(path)
    path.write_text("task: mlm\nmodel: {instruments: [0]}")
    with pytest.raises(TrainingError, match="instruments"):
        read_recipe(path)


@pytest.mark.parametrize("task", ["pretrain", "mlm", "audio", "live"])
@pytest.mark.parametrize(
    ("section", "told"),
    [
        ("hidden_size: 32, num_attention_heads: 3", r"hidden_size \(32\) .* num_attention_heads \(3\)"),
        ("norm_type: foo", "rmsnorm"),
        ("rope_parameters: {rope_type: linear}", "factor"),  # a KeyError of transformers
    ],
)
def test_a_model_that_cannot_be_is_refused_before_data_is_read(task, section, told, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(f"task: {task}\nmodel: {{{section}}}")
    with pytest.raises(TrainingError, match=rf"own\.yaml: model: .*{told}") as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)
    # over the configuration of `init` a section need not be whole
    path.write_text(f"task: {task}\nmodel: {{hidden_size: 30}}")
    assert read_recipe(path, ["--init", "there"]).model == {"hidden_size": 30}


def test_the_model_section_stays_as_it_is_written(tmp_path):
    """It stands in the run's recipe.json; the configuration completes rope_parameters in place."""
    path = tmp_path / "own.yaml"
    path.write_text("model: {rope_parameters: {rope_type: default}}")
    assert read_recipe(path).model == {"rope_parameters": {"rope_type": "default"}}


def test_every_field_is_an_option(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("model: {hidden_size: 32, num_hidden_layers: 1}\ndata: {tasks: {continue: 1, infill: 1}, rows: 3}")
    words = ["--tasks", "{continue: 3}", "--past_bars", "[1, 2]", "--transpose=[-1, 1]", "--rows", "4"]
    words += [
        "--corpora",
        "{lieder: {weight: 1}}",
        "--model.hidden_size",
        "64",
        "--model.router_aux_loss_coef",
        "1e-3",
    ]
    found = read_recipe(path, words)
    section, data = found.model, found.data
    assert section == {"hidden_size": 64, "num_hidden_layers": 1, "router_aux_loss_coef": 0.001}
    assert data.tasks == {"continue": 3} and data.corpora == {"lieder": {"weight": 1}} and data.rows == 4
    assert (data.past_bars, data.generated_bars, data.transpose) == ((1, 2), (4, 8), (-1, 1))
    text = describe_fields(KINDS["pretrain"])
    for name in ("tasks", "corpora", "past_bars", "generated_bars", "transpose", "model.hidden_size"):
        assert f"--{name} (" in text
    assert "--model.instruments" in describe_fields(KINDS["live"])
    listed = describe_fields(KINDS["classify"])
    assert "--leave_out" in listed and "--model.classifier_pooling" in listed
    assert describe_fields(KINDS["mlm"]).endswith("sections of the recipe file only: pieces, masking, replacing")
    assert "recipe file only" not in text + listed


@pytest.mark.parametrize(
    ("text", "words", "told"),
    [
        ("data: 3", [], "data is a section"),
        ("training: [a]", [], "training is a section"),
        ("data: {1: 2}", [], "unknown fields: 1"),
        ("data: {past_bars: 4}", [], "past_bars"),
        ("data: {generated_bars: [0, 4]}", [], "generated_bars"),
        ("data: {transpose: [6, -5]}", [], "transpose"),
        ("data: {corpora: {one: {wieght: 1}}}", [], r"wieght \(is weight meant"),
        ("data: {corpora: {one: 1}}", [], "corpora.one"),
        ("data: {corpora: {one: {weight: 1, variants: aligned}}}", [], "variants is a list"),
        ("data: {corpora: {one: {weight: -1}}}", [], "weight of one"),
        ("data: {corpora: {one: {weight: 0}}}", [], "all weights are 0"),
        ("data: {tasks: {continue: 0, infill: 0}}", [], "tasks: all weights are 0"),
        ("data: {tasks: {continue: 2, infill: -1}}", [], "weight of infill"),
        ("data: {tasks: {continue: lots}}", [], "lots"),
        ("data: {tasks: continue}", [], "tasks has a line"),
        (
            "data: {tasks: {contine: 1}}",
            [],
            r"unknown tasks: contine \(is continue meant\?\); there are",
        ),
        ("", ["--tasks", "{hum: 1}"], "unknown tasks: hum; there are continue"),
        ("data: {rows: 0}", [], "rows is a number from 1 on, not 0"),
        ("", ["--row_length", "0"], "row_length"),
        ("", ["--long_row_length", "-1"], "long_row_length"),
        ("", ["--packs_per_epoch", "0"], "packs_per_epoch"),
        ("", ["--gradient_accumulation_steps", "0"], "gradient_accumulation_steps"),
        ("data: {velocity: 1.5}", [], "velocity is a number from 0 to 1, not 1.5"),
        ("", ["--header_dropout", "-0.1"], "header_dropout"),
        ("", ["--track_subset", "nan"], "track_subset"),
        ("training: {per_device_train_batch_size: 8}", [], "rows"),
        ("", ["--per_device_train_batch_size", "4"], "rows"),
        ("", ["--max_steps", "abc"], "'abc'"),
        ("", ["--lr_scheduler_type", "nonsense"], "'nonsense'"),
        ("", ["--stop_at", "99"], "99"),
        ("training: {stop_at: 23:30}", [], "in quotes"),  # to YAML a number to the base of 60
        ("", ["--tasks"], "--tasks needs a value"),
        ("", ["--past_bars", "[4"], "--past_bars"),
        ("", ["--model.hiden", "1"], "hiden"),
    ],
)
def test_what_no_run_could_use_is_one_line(text, words, told, tmp_path):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(TrainingError, match=told) as caught:
        read_recipe(tmp_path / "own.yaml", words)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_corpus_without_weight_is_named():
    with pytest.raises(TrainingError, match=r"corpora\.lieder has no weight"):
        DataRecipe(corpora={"pop909": {"weight": 1}, "lieder": {}}).weights()


def test_nothing_is_pinned_where_there_is_no_accelerator(tmp_path):
    arguments = RunArguments(output_dir=str(tmp_path))
    assert arguments.dataloader_pin_memory == (torch.device("cpu") != arguments.device)


@pytest.mark.parametrize(
    "spread", ["sharding", "fsdp", "deepspeed", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"]
)
def test_adapters_need_whole_weights(spread, tmp_path, monkeypatch):
    arguments = RunArguments(output_dir=str(tmp_path / "run"), max_steps=1, lora_rank=2, data_seed=1)
    if spread.isupper():
        monkeypatch.setenv(spread, "true")
    else:
        setattr(arguments, spread, "weights")
    with pytest.raises(TrainingError, match=r"lora_rank .* DDP"):
        make_trainer(Recipe("pretrain", {"hidden_size": 32}, DataRecipe(data="pack"), arguments))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("section", "options", "told"),
    [
        ({}, {}, "mortm finetune"),
        ({"hidden_size": 32}, {"early_stopping": 3}, "eval_windows"),
    ],
)
def test_what_a_run_lacks_is_said_before_data_is_read(section, options, told, tmp_path):
    arguments = RunArguments(output_dir=str(tmp_path / "run"), max_steps=1, **options)
    with pytest.raises(TrainingError, match=told):
        make_trainer(Recipe("pretrain", section, DataRecipe(data=str(tmp_path / "pack")), arguments))
    assert not (tmp_path / "run").exists()


def test_a_run_has_a_folder(tmp_path, capsys):
    path = tmp_path / "own.yaml"
    path.write_text("training: {seed: 1}")
    assert with_folder(path, ["--seed", "3"]) == ["--output_dir", "runs/own", "--seed", "3"]
    assert "runs/own" in capsys.readouterr().out
    assert with_folder(path, ["--output_dir", "x"]) == ["--output_dir", "x"]
    assert with_folder(path, ["--output-dir=x"]) == ["--output-dir=x"]
    path.write_text("training: {output_dir: there}")
    assert with_folder(path, []) == [] and not capsys.readouterr().out


def test_another_recipe_is_told_by_its_fields(tmp_path):
    stated = {"data": {"rows": 1, "tasks": {"continue": 1}}, "seed": 0}
    same_run(tmp_path, stated, False)
    # a first start that failed holds nothing that could be mixed up
    changed = {"data": {"rows": 2, "tasks": {"continue": 3}}, "seed": 0, "init": "there"}
    same_run(tmp_path, changed, False)
    assert json.loads((tmp_path / "recipe.json").read_text()) == changed
    (tmp_path / "checkpoint-1").mkdir()
    same_run(tmp_path, changed, False)
    with pytest.raises(TrainingError) as caught:
        same_run(tmp_path, stated, False)
    assert "(data.rows: 2 -> 1; data.tasks.continue: 3 -> 1; init: there -> nothing)" in str(caught.value)


def test_the_compared_arms_differ_in_the_model_only(tmp_path):
    moe, dense = (read_recipe(f"compare_{name}", ["--output_dir", str(tmp_path)]) for name in ("moe", "dense"))
    assert moe.data == dense.data
    names = [f.name for f in dataclasses.fields(RunArguments)]
    differing = {name for name in names if getattr(moe.training, name) != getattr(dense.training, name)}
    assert differing <= {"experts_implementation"}
    a, b = MortmConfig(**moe.model), MortmConfig(**dense.model)
    chosen = (a.num_experts_per_tok * a.moe_intermediate_size) + a.shared_expert_intermediate_size
    assert chosen == b.intermediate_size  # as many parameters act on a token


def test_length_and_schedules_follow_from_the_arguments(tmp_path):
    arguments = read_recipe("compare_moe", ["--output_dir", str(tmp_path), "--max_tokens", "100000"]).training
    complete_arguments(arguments, 2048)
    assert arguments.max_steps == 49 and arguments.decay_steps == 10
    assert arguments.lr_scheduler_type == "warmup_stable_decay"
    arguments = read_recipe("finetune", ["--output_dir", str(tmp_path), "--max_steps", "10"]).training
    complete_arguments(arguments, 2048)
    assert arguments.lr_scheduler_type == "cosine"
    arguments = read_recipe("finetune", ["--output_dir", str(tmp_path)]).training
    with pytest.raises(TrainingError, match="max_tokens"):
        complete_arguments(arguments, 2048)


def test_windows_are_found_beside_the_recipe(tmp_path):
    (tmp_path / "own.csv").write_text("path,start\n")
    (tmp_path / "own.yaml").write_text("training: {max_steps: 3, eval_windows: own.csv}")
    arguments = read_recipe(tmp_path / "own.yaml", ["--output_dir", str(tmp_path / "run")]).training
    assert arguments.eval_windows == str(tmp_path / "own.csv")


@pytest.mark.parametrize("text", ["a: [", "- just\n- a list", "model: 3: 4"])
def test_no_yaml_is_one_line(text, tmp_path):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(TrainingError, match=r"bad\.yaml") as caught:
        read_recipe(tmp_path / "bad.yaml")
    assert "\n" not in str(caught.value)


def test_a_run_begun_before_a_field_existed_goes_on(tmp_path):
    def check(**changes):
        data = {name: changes.pop(name) for name in ("header_dropout",) if name in changes}
        arguments = RunArguments(output_dir=str(tmp_path), seed=3, **changes)
        stated = stated_of(Recipe("pretrain", {}, DataRecipe(rows=5, **data), arguments))
        same_run(tmp_path, stated, False, {"data": dataclasses.asdict(DataRecipe())})

    check()
    (tmp_path / "checkpoint-1").mkdir()
    stored = json.loads((tmp_path / "recipe.json").read_text())
    del stored["data"]["header_dropout"]  # as if that field were newer than the run
    (tmp_path / "recipe.json").write_text(json.dumps(stored))
    check()
    with pytest.raises(TrainingError, match="another recipe"):
        check(header_dropout=0.5)
    with pytest.raises(TrainingError, match=r"lora"):
        check(lora_rank=4)


def test_fields_are_described():
    text = describe_fields(KINDS["pretrain"])
    assert "--max_tokens (0)" in text and "--row_length (1024)" in text and "--learning_rate" in text
    assert text.index("--max_tokens") < text.index("--learning_rate")
