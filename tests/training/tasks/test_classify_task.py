"""Fine-tuning the classifier: balance, batches, probe, scratch, resuming, what is said of songs."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from mortm_hf.data.labelled_windows import LabelledData, LabelledExample, transpose_ids
from mortm_hf.evaluation.features import bag_of_features, scores_of
from mortm_hf.models.configuration_bertm import BertmConfig
from mortm_hf.models.errors_mortm import TrainingError
from mortm_hf.models.modeling_bertm import BertmForMaskedLM, BertmForSequenceClassification
from mortm_hf.models.token_codec import parse_segment
from mortm_hf.models.token_vocabulary import MetricVocabulary
from mortm_hf.models.tokenization_mortm import MortmTokenizer
from mortm_hf.training.classifier_trainer import evaluate, song_metrics
from mortm_hf.training.labelled_batches import LabelledBatches, draw_weights, half_of, twins_of, without
from mortm_hf.training.recipe import parse_recipe
from mortm_hf.training.run import command_line
from mortm_hf.training.runlog import RunLog
from mortm_hf.training.tasks import run as run_task
from mortm_hf.training.tasks.classify_task import KIND, LabelRecipe, train


VOCABULARY = MetricVocabulary.default()
TINY = """
task: classify
data: {set: genre, rows: 4, max_length: 64}
training:
  {seed: 3, max_steps: 30, warmup_steps: 2, learning_rate: 0.01, use_cpu: true, logging_steps: 1, save_minutes: 0,
   eval_every: 10, class_balance: sampler}
"""


def window(rng, high: bool, notes: int = 6) -> np.ndarray:
    """`<EOS> <MGEN> <INST_0> <SME> notes <ESEQ> <TE>`; pitches tell the class."""
    pitch = rng.integers(72, 84, notes) if high else rng.integers(40, 52, notes)
    words = ["<EOS>", "<MGEN>", "<INST_0>", "<SME>"]
    words += [word for i, p in enumerate(pitch) for word in (f"s_{12 * i}", f"p_{p}", "d_12")]
    return np.array([VOCABULARY[word] for word in (*words, "<ESEQ>", "<TE>")], dtype=np.int32)


def sets(names=("low", "high"), n=24, seed=0):
    rng = np.random.default_rng(seed)
    made = {}
    for split in ("train", "validation"):
        rows = []
        for i in range(n):
            label = int(i % 3 == 0)  # one of three is high
            ids = window(rng, bool(label), int(rng.integers(3, 8)))
            context = np.array([VOCABULARY["<EOS>"], VOCABULARY["<TAG_END>"], VOCABULARY["<MGEN>"]], dtype=np.int32)
            song = f"{split}{i // 6}-{label}"
            rows.append(LabelledExample(ids, label, song, song, split, "ab"[i % 4 == 0], context))
        made[split] = LabelledData(tuple(names), rows, VOCABULARY)
    return made


def encoder(folder):
    torch.manual_seed(0)
    config = BertmConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        mlp_layer_types=["dense"],
        router_balancing="none",
    )
    BertmForMaskedLM(config).save_pretrained(folder)
    MortmTokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def init(tmp_path_factory):
    return encoder(tmp_path_factory.mktemp("encoder") / "enc")


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


def read(recipe, words=()):
    return parse_recipe(recipe, words, KIND)


def main(words):
    return command_line("classify", "", lambda recipe, rest: run_task(recipe, rest, "classify"), words)


def run(recipe, folder, init, *words, data=None):
    return train(read(recipe, ["--output_dir", str(folder), "--init", init, *words]), data or sets())


def test_it_learns_and_the_folder_is_complete(recipe, tmp_path, init):
    run(recipe, tmp_path / "run", init)
    found = json.loads((tmp_path / "run" / "final" / "validation.json").read_text())
    assert found["macro_f1"] > 0.9 and found["auc"] > 0.95 and set(found) >= {"f1_low", "f1_high", "log_loss", "step"}
    model = BertmForSequenceClassification.from_pretrained(tmp_path / "run" / "final")
    config = model.config
    assert (config.num_labels, config.id2label, config.negative_label) == (1, {0: "high"}, "low")
    assert (config.window_form, config.window_bars, config.problem_type) == ("merged", 8, "multi_label_classification")
    data = sets()["validation"]
    again = song_metrics(evaluate(model, data, max_length=64), data)
    assert again["auc"] == pytest.approx(found["auc"]) and again["macro_f1"] == pytest.approx(found["macro_f1"])
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("event") == "validation"] == [10, 20, 30]


def test_resumed_run_equals_an_unbroken_one(recipe, tmp_path, init, monkeypatch):
    words = ("--max_steps", "6", "--eval_every", "3", "--class_balance", "loss", "--augment", "True", "--hints", "0.5")
    whole = run(recipe, tmp_path / "whole", init, *words)
    end = RunLog.on_step_end

    def stop_at_two(self, args, state, control, **kwargs):
        if state.global_step == 2:
            self.deadline = 0.0
        return end(self, args, state, control, **kwargs)

    monkeypatch.setattr(RunLog, "on_step_end", stop_at_two)
    assert run(recipe, tmp_path / "parts", init, *words).state.global_step == 2
    monkeypatch.undo()
    second = run(recipe, tmp_path / "parts", init, *words)
    for p, q in zip(whole.model.parameters(), second.model.parameters()):
        assert torch.equal(p, q)
    with pytest.raises(ValueError, match="another recipe"):
        run(recipe, tmp_path / "parts", init, *words, "--probe", "True")


def test_a_probe_leaves_the_encoder_alone_and_is_linear(recipe, tmp_path, init):
    trainer = run(recipe, tmp_path / "run", init, "--probe", "True", "--max_steps", "4")
    before = BertmForMaskedLM.from_pretrained(init).model.state_dict()
    model = trainer.model
    assert all(torch.equal(before[name], value) for name, value in model.model.state_dict().items())
    assert not any(name.startswith("pool") for name, _ in model.named_parameters())
    x, y = torch.randn(3, 32), torch.randn(3, 32)
    zero = model.score(torch.zeros(3, 32))
    with torch.no_grad():
        assert torch.allclose(model.score(x + y) - zero, model.score(x) + model.score(y) - 2 * zero, atol=1e-5)
    with pytest.raises(ValueError, match="needs a trained encoder"):
        run(recipe, tmp_path / "none", "", "--probe", "True")


def test_scratch_has_the_same_shape_and_other_weights(recipe, tmp_path, init):
    trained = run(recipe, tmp_path / "a", init, "--max_steps", "1", "--learning_rate", "0").model
    fresh = run(recipe, tmp_path / "b", init, "--max_steps", "1", "--learning_rate", "0", "--scratch", "True").model
    one, two = trained.state_dict(), fresh.state_dict()
    assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in two.items()}
    before = BertmForMaskedLM.from_pretrained(init).model.embed_tokens.weight
    assert torch.equal(one["model.embed_tokens.weight"], before)
    assert not torch.allclose(two["model.embed_tokens.weight"], before)


def test_more_labels_make_a_softmax(recipe, tmp_path, init):
    three = sets()
    for data in three.values():
        for i, example in enumerate(data.examples):
            if i % 3 == 1:
                object.__setattr__(example, "label", 2)
                object.__setattr__(example, "song", example.song + "x")
    three = {k: LabelledData(("low", "high", "third"), d.examples, VOCABULARY) for k, d in three.items()}
    model = run(recipe, tmp_path / "run", init, "--max_steps", "2", "--class_balance", "loss", data=three).model
    assert model.config.id2label == {0: "low", 1: "high", 2: "third"} and model.config.negative_label is None
    left = without(three["train"], ["low"])
    assert left.names == ("high", "third") and set(left.labels()) == {0, 1} and len(left) == 16
    assert without(three["train"], ["b"]).names == ("low", "high", "third")
    for names, said in ((["low", "high"], "only 1 label"), (["nothing"], "nothing")):
        with pytest.raises(ValueError, match=said):
            without(three["train"], names)


def test_halves_share_no_song(recipe, tmp_path, init):
    data = sets(n=120)["train"]
    songs = [{e.cluster for e in half_of(data, half).examples} for half in ("first", "second")]
    assert songs[0] and songs[1] and not songs[0] & songs[1]
    assert songs[0] | songs[1] == {e.cluster for e in data.examples}
    trainer = run(recipe, tmp_path / "run", init, "--half", "first", "--max_steps", "2", data=sets(n=120))
    assert {e.cluster for e in trainer.train_dataset.data.examples} == songs[0]


def test_draws_are_balanced_by_label_and_kind():
    data = sets(n=48)["train"]
    weights = draw_weights(data, "sampler")
    label, kind = data.labels(), data.column("kind")
    assert weights.sum() == pytest.approx(1)
    for chosen in (0, 1):
        assert weights[label == chosen].sum() == pytest.approx(0.5)
        for name in "ab":
            assert weights[(label == chosen) & (kind == name)].sum() == pytest.approx(0.25)
    assert np.ptp(draw_weights(data, "none")) == 0
    by_label = draw_weights(data, "label")
    assert [by_label[label == i].sum() for i in (0, 1)] == pytest.approx([0.5, 0.5])
    assert all(np.ptp(by_label[label == i]) == 0 for i in (0, 1))
    batches = LabelledBatches(data, LabelRecipe(rows=4), 0, seed=1, weights=weights)
    drawn = torch.cat([batches[i]["labels"] for i in range(batches.per_epoch * 20)])
    assert drawn.float().mean() == pytest.approx(0.5, abs=0.06)


def paired_sets(n=24):
    """Sets whose two origins answer the same prompts: songs of one low and one high window each."""
    made = sets(n=n)
    for split, data in made.items():
        low = [e for e in data.examples if e.label == 0]
        high = [e for e in data.examples if e.label == 1]
        high = [
            dataclasses.replace(h, song=e.song, cluster=e.cluster, context=np.append(e.context, np.int32(20 + i)))
            for i, (h, e) in enumerate(zip(high, low))
        ]
        low = [dataclasses.replace(e, context=np.append(e.context, np.int32(20 + i))) for i, e in enumerate(low)]
        made[split] = dataclasses.replace(data, examples=low + high)
    return made


def test_pairs_are_twins_moved_alike():
    data = paired_sets()["train"]
    twins = twins_of(data)
    assert (twins >= 0).sum() == (data.labels() == 1).sum() == 8 and (twins[data.labels() == 0] == -1).all()
    for i in np.flatnonzero(twins >= 0):
        one, other = data.examples[i], data.examples[twins[i]]
        assert one.song == other.song and np.array_equal(one.context, other.context) and other.label == 0
    recipe = LabelRecipe(rows=6, pairs=True, augment=True)
    batches = LabelledBatches(data, recipe, 0, seed=2, weights=draw_weights(data, "sampler"))
    rows = {tuple(e.ids.tolist()): i for i, e in enumerate(data.examples)}
    moved = 0
    for number in range(12):
        batch = batches[number]
        assert batch["labels"].tolist() == [1, 1, 1, 0, 0, 0]
        ids = [row[mask.bool()].numpy() for row, mask in zip(batch["input_ids"], batch["attention_mask"])]
        for machine, human in zip(ids[:3], ids[3:]):
            found = [
                {(rows.get(tuple(transpose_ids(VOCABULARY, row, -s).tolist())), s) for s in range(-5, 7)}
                for row in (machine, human)
            ]
            shifts = [{s for i, s in options if i is not None} for options in found]
            assert shifts[0] & shifts[1]
            moved += 0 not in shifts[0]
    assert moved
    with pytest.raises(TrainingError, match="pairs"):
        twins_of(
            dataclasses.replace(data, examples=[dataclasses.replace(e, context=e.context[:0]) for e in data.examples])
        )


def test_bars_are_cut_alike_from_twins():
    def row(pitch: int, label: int):
        notes = " ".join(f"<SME> s_0 p_{pitch + bar} d_24" for bar in range(6))
        words = f"<EOS> <MGEN> <INST_0> {notes} <ESEQ> <INST_9> {notes} <ESEQ> <TE>".split()
        context = np.array([1, 12], dtype=np.int32)
        return LabelledExample(np.array([VOCABULARY[w] for w in words]), label, "s", "s", "train", "x", context)

    data = LabelledData(("human", "machine"), [row(40, 0), row(70, 1)], VOCABULARY)
    recipe = LabelRecipe(rows=4, pairs=True, form="condensed", bars=[2, 3])
    batches = LabelledBatches(data, recipe, 0, seed=2)
    seen = set()
    for number in range(20):
        ids = batches[number]["input_ids"].numpy()
        machine, human = (parse_segment(VOCABULARY, ids[i]).generated.pitch for i in (0, 2))
        assert np.array_equal(machine - 70, human - 40)  # the same bars of both
        seen.add((int(human[0]) - 40, len(human)))
    assert {n for _, n in seen} == {2, 3} and {first for first, _ in seen} == {0, 1, 2, 3, 4}


def test_pairs_add_a_term_that_ranks_them(recipe, tmp_path, init):
    words = ("--pairs", "True", "--max_steps", "2")
    trainer = run(recipe, tmp_path / "run", init, *words, data=paired_sets())
    batch = trainer.train_dataset[0]
    with torch.no_grad():
        loss, out = trainer.compute_loss(trainer.model.eval(), batch, return_outputs=True)
        z, label = out.logits[:, 0], batch["labels"].float()
        plain = torch.nn.functional.binary_cross_entropy_with_logits(z, label)
    ranked = torch.log1p(torch.exp(z[label == 0] - z[label == 1])).mean()
    assert loss == pytest.approx(float(plain + ranked), rel=1e-5)


def test_hints_are_read_off_the_pooled_state_and_left_out_of_the_result(recipe, tmp_path, init):
    words = ("--hints", "0.5", "--max_steps", "12", "--eval_every", "6")
    trainer = run(recipe, tmp_path / "run", init, *words)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    told = [line["hint_loss"] for line in lines if "loss" in line]
    assert len(told) == 12 and told[-1] < told[0]
    batch = trainer.train_dataset[0]
    rows = [row[mask.bool()].numpy() for row, mask in zip(batch["input_ids"], batch["attention_mask"])]
    values = bag_of_features(scores_of(VOCABULARY, rows)).values
    whole = bag_of_features(scores_of(VOCABULARY, [e.ids for e in trainer.train_dataset.data.examples])).values
    mean, spread = whole.mean(0), np.where(whole.std(0) > 1e-6, whole.std(0), np.inf)
    assert np.allclose(batch["hints"], ((values - mean) / spread).clip(-5, 5), atol=1e-4)
    model = trainer.model.eval()
    with torch.no_grad():
        loss = trainer.compute_loss(model, batch)
        given = {k: batch[k] for k in ("input_ids", "attention_mask")}
        states = model.model(**given).last_hidden_state
        pooled = model.pool(states, batch["attention_mask"])
        told = (model.hints.read(pooled) - batch["hints"]).pow(2).mean()
        for part, target in zip(model.hints.notes(states).split((13, 27), -1), batch["intervals"].unbind(-1)):
            told = told + 0.5 * torch.nn.functional.cross_entropy(part[target >= 0], target[target >= 0])
        batch.pop("hints")
        plain = trainer.compute_loss(model, batch)
    assert loss == pytest.approx(float(plain + 0.5 * told), rel=1e-4)
    kept = BertmForSequenceClassification.from_pretrained(tmp_path / "run" / "final").state_dict()
    own = {k: v for k, v in model.state_dict().items() if not k.startswith("hints")}
    assert kept.keys() == own.keys() and len(own) < len(model.state_dict())


def test_batches_are_a_function_of_seed_epoch_and_index():
    data = sets(n=40)["train"]
    recipe = LabelRecipe(rows=4, form="mixed", augment=True)
    one, two = (LabelledBatches(data, recipe, 0, seed=5) for _ in range(2))
    two[25]  # another order of asking
    for i in (0, 7, 13):
        for name in ("input_ids", "attention_mask", "labels"):
            assert torch.equal(one[i][name], two[i][name])
    whole = LabelledBatches(data, LabelRecipe(rows=4), 0, seed=5)
    seen = [
        row[mask.bool()].tolist()
        for i in range(10)
        for row, mask in zip(*[whole[i][n] for n in ("input_ids", "attention_mask")])
    ]
    assert sorted(map(tuple, seen)) == sorted(tuple(e.ids.tolist()) for e in data.examples)  # each window once
    heads = [row[1].item() for i in range(10) for row in one[i]["input_ids"]]
    behind = np.mean([h == VOCABULARY["<TAG_END>"] for h in heads])
    assert 0.25 < behind < 0.75  # mixed: some behind their prompts
    full = LabelledBatches(data, LabelRecipe(rows=4, form="full"), 0, seed=5)
    assert {row[1].item() for row in full[0]["input_ids"]} == {VOCABULARY["<TAG_END>"]}


def test_class_weights_make_classes_count_alike(recipe, tmp_path, init):
    trainer = run(recipe, tmp_path / "run", init, "--max_steps", "1", "--class_balance", "loss")
    assert torch.allclose(trainer.class_weights, torch.tensor([24 / 32, 24 / 16]))
    batch = LabelledBatches(sets()["train"], LabelRecipe(rows=24), 0)[0]
    trainer.model.eval()
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, batch)
        logits = trainer.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch["labels"].float(), reduction="none")
    high = batch["labels"] == 1
    assert torch.allclose(loss, (each[high].mean() + each[~high].mean()) / 2, atol=1e-5)


def test_scores_do_not_depend_on_the_batch(init):
    config = BertmConfig.from_pretrained(init, num_labels=3, initializer_range=0.2)
    model = BertmForSequenceClassification(config)
    rows = [e.ids for e in sets()["train"].examples]
    whole = evaluate(model, rows)
    assert whole.shape == (24, 3)
    assert np.abs(evaluate(model, rows, batch_tokens=1) - whole).max() < 1e-5
    assert np.abs(evaluate(model, rows[::-1])[::-1] - whole).max() < 1e-5
    assert np.abs(evaluate(model, rows, max_length=6) - whole).max() > 1e-3


@pytest.mark.parametrize("name", ["bertm_genre", "bertm_quality", "bertm_phrase"])
def test_package_recipes_are_read(name):
    found = read(name, ["--output_dir", "x"])
    assert found.data.set == ("genre" if name == "bertm_genre" else "quality")
    assert found.training.init == "bertm-small" and found.model == {}


def test_what_training_arguments_refuse_has_a_code(recipe):
    with pytest.raises(TrainingError, match=r"tiny\.yaml: .*nonsense") as caught:
        read(recipe, ["--output_dir", "x", "--lr_scheduler_type", "nonsense"])
    assert caught.value.code == "training.recipe" and "\n" not in str(caught.value)


def test_the_model_section_is_an_option(recipe):
    words = ["--output_dir", "x", "--model.hidden_size", "64", "--model.classifier_pooling=mean"]
    assert read(recipe, words).model == {"hidden_size": 64, "classifier_pooling": "mean"}


@pytest.mark.parametrize(
    ("change", "words", "said"),
    [
        (("task: classify", "task: mlm"), (), "recipe for mlm"),
        (("set: genre", "sets: genre"), (), "data: unknown fields: sets (is set meant?)"),
        (("seed: 3", "sede: 3"), (), "training: unknown fields: sede (is seed meant?)"),
        (("data:", "model: {hiden_size: 3}\ndata:"), (), "model: unknown fields: hiden_size (is hidden_size meant?)"),
        (("data:", "roll: {}\ndata:"), (), "unknown sections: roll"),
        (("task: classify", "task: [sing"), (), "cannot read the recipe"),
        (("", ""), ("--model.hiden_size", "3"), "hiden_size (is hidden_size meant?)"),
        (("", ""), ("--model.hidden_size", "30"), "hidden_size (30)"),
        (("", ""), ("--rows", "0"), "rows is a number from 1 on, not 0"),
        (("", ""), ("--max_length", "0"), "max_length is a number from 1 on, not 0"),
        (("", ""), ("--class_balance", "much"), "class_balance"),
        (("", ""), ("--init", "no/such"), "no/such"),
        (("", ""), ("--half", "third"), "first or second"),
        (("", ""), ("--bars", "2", "4"), "condensed form only"),
        (("", ""), ("--nonsense", "1"), "nonsense"),
    ],
)
def test_faults_are_named(recipe, tmp_path, change, words, said, capsys, monkeypatch):
    recipe.write_text(TINY.replace(*change) if change[0] else TINY)
    monkeypatch.setattr("mortm_hf.data.labelled_windows.load", lambda name, split, **kwargs: sets()[split])
    assert main([str(recipe), "--output_dir", str(tmp_path / "run"), *words]) == 2
    assert said in capsys.readouterr().err
