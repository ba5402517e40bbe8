"""Fine-tuning BERTM's classifier: `python -m mortm_hf.training.classify RECIPE.yaml [--field value ...]`.

Design decisions
- A batch is a pure function of (seed, epoch, index): which windows, in which form, how far transposed. So a run that
  was stopped goes on exactly where it was, as in pretraining.
- `probe` trains a linear probe: the encoder is frozen, pooling is the mean and the hidden layer has no activation, so
  that what is found was linearly there. Otherwise all weights are trained. `scratch` gives the encoder of `init` fresh
  weights: the same model, data and budget without pretraining.
- Classes are balanced in the loss (weights by frequency) or in the draw ("label": first the label, then one of its
  examples; "sampler": first the label, then the kind of example, then one of these), or not at all.
- `pairs` sets every machine window beside the human one that answers the same prompt, moved alike: what the two share
  (song, texture, key) cancels in the gradient, and a second term ranks them (Bradley and Terry 1952, as reward models
  are trained).
- `hints` adds a second loss: the pooled state has to tell what can be counted in the window (`hints`). The layer that
  reads it off belongs to the run's checkpoints, not to its result.
- Two labels make one logit, that of the second label, trained with binary cross-entropy; more make a softmax.
- Validation is by song (the mean of its windows' log-probabilities): macro-F1, or AUC where there is one logit. The
  best model by it is kept in `best/` and becomes `final/`; the test split is not read here. Its windows have the form
  of the training ones.

Knows: labelled sets, the Trainer, scores of songs. Must not know: how windows are made, what a label means.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers
from torch.utils.data import Dataset
from transformers import TrainerCallback

from ..bundled import find_model
from ..data import labelled_windows as labelled
from ..data.labelled_windows import LabelledData
from ..data.packing import generator, single_pack
from ..evaluation.classification import auc, confusion, f1_of, macro_f1, sigmoid, song_scores
from ..models.configuration_bertm import BertmConfig
from ..models.errors_mortm import TrainingError
from ..models.inputs_bertm import batches_by_length, pad_rows
from ..models.modeling_bertm import BertmForSequenceClassification
from ..models.token_codec import parse_segment
from ..models.tokenization_mortm import MortmTokenizer
from .arguments import (
    PretrainArguments,
    check_model,
    check_names,
    find_recipe,
    parse_fields,
    read_sections,
    task_of,
)
from .hints import HintLayer, HintTable, note_intervals
from .pretrain import newest_checkpoint
from .runlog import RunLog
from .runs import apply_decay, command_line, same_run
from .trainer import PackTrainer


EPOCHS = 1 << 10
BALANCES = ("loss", "label", "sampler", "none")
HALVES = ("first", "second")
# how the windows of each set were cut: what a head trained on it hears in a pipeline
SET_FORMS = {"folk": "merged", "genre": "merged", "drums": "drums"}
SET_BARS = {"drums": 4}


@dataclass
class LabelRecipe:
    """Which labelled set, and how its windows are fed."""

    set: str = field(default="", metadata={"help": "labelled set: folk, drums, genre or quality"})
    data: str = field(default="", metadata={"help": "folder of the training pack"})
    cache: str = field(default="", metadata={"help": "folder of prepared stores (and of quality.npz)"})
    leave_out: list[str] = field(
        default_factory=list, metadata={"help": "labels, or kinds of examples, that take no part"}
    )
    half: str = field(
        default="", metadata={"help": "first or second: train on half of the songs, for judges that share no music"}
    )
    form: str = field(
        default="field",
        metadata={"help": "quality: field, full (behind its prompt), mixed (batches of either) or condensed"},
    )
    bars: list[int] = field(
        default_factory=list,
        metadata={"help": "condensed form: hear so many consecutive bars of a window, from and to; none: all"},
    )
    least_tracks: int = field(default=1, metadata={"help": "quality: leave out windows of fewer tracks"})
    hints: float = field(
        default=0.0,
        metadata={"help": "weight of a loss on what can be counted in a window, and on its notes' intervals"},
    )
    pairs: bool = field(default=False, metadata={"help": "quality: draw machine windows with their human twins"})
    augment: bool = field(default=False, metadata={"help": "move windows by -5 to 6 semitones"})
    rows: int = field(default=16, metadata={"help": "windows of a batch"})
    max_length: int = field(default=1024, metadata={"help": "longer windows are cut, in training and validation"})
    validation_windows: int = field(default=1000, metadata={"help": "validation windows in all; 0: every one"})


@dataclass
class ClassifyArguments(PretrainArguments):
    """`PretrainArguments` and what fine-tuning a classifier needs besides."""

    probe: bool = field(default=False, metadata={"help": "linear probe: freeze the encoder"})
    scratch: bool = field(default=False, metadata={"help": "fresh weights in the encoder of init"})
    class_balance: str = field(default="loss", metadata={"help": "loss, label, sampler or none"})
    eval_every: int = field(default=100, metadata={"help": "steps between validations"})


def read_classify_recipe(
    path: str | Path, overrides: Sequence[str] = ()
) -> tuple[dict, LabelRecipe, ClassifyArguments]:
    """(model section, label recipe, training arguments) of a recipe file; the command line overrides any field.

    Raises:
        TrainingError: no such recipe; unknown section, field or word (named); a value that cannot be; no YAML.
    """
    path = find_recipe(path)
    task = task_of(path, "classify")
    if task != "classify":
        raise TrainingError(f"{path} is a recipe for {task}, not for classify")
    section, data, training, words = read_sections(path, overrides)
    check_names(f"{path}: data", data, LabelRecipe.__dataclass_fields__)
    check_names(f"{path}: training", training, ClassifyArguments.__dataclass_fields__)
    values = {name: value for name, value in (*data.items(), *training.items()) if value != []}
    recipe, arguments = parse_fields(path, (LabelRecipe, ClassifyArguments), values, words)
    check_model(path, task, section, arguments.init)
    if recipe.bars and recipe.form != "condensed":
        raise TrainingError(f"{path}: bars are chosen in the condensed form only (form is {recipe.form})")
    if arguments.class_balance not in BALANCES:
        raise TrainingError(f"class_balance is one of {', '.join(BALANCES)}, got {arguments.class_balance!r}")
    return section, recipe, arguments


def without(data: LabelledData, leave_out: Sequence[str]) -> LabelledData:
    """A set without some labels and kinds of examples; the remaining labels are renumbered.

    Raises:
        TrainingError: fewer than two labels remain, or a name that is neither.
    """
    if not leave_out:
        return data
    unknown = set(leave_out) - set(data.names) - {e.kind for e in data.examples}
    if unknown:
        raise TrainingError(f"leave_out names no label or kind of the set: {', '.join(sorted(unknown))}")
    names = tuple(name for name in data.names if name not in leave_out)
    if len(names) < 2:
        raise TrainingError(f"only {len(names)} label remains of {', '.join(data.names)}: leave out fewer")
    new = {data.names.index(name): i for i, name in enumerate(names)}
    kept = [
        dataclasses.replace(e, label=new[e.label]) for e in data.examples if e.label in new and e.kind not in leave_out
    ]
    return dataclasses.replace(data, names=names, examples=kept)


def half_of(data: LabelledData, half: str) -> LabelledData:
    """The first or second half of a set's clusters of songs, by a hash of their names; "" keeps them all.

    Raises:
        TrainingError: another word.
    """
    if not half:
        return data
    if half not in HALVES:
        raise TrainingError(f"half is {' or '.join(HALVES)}, got {half!r}")
    side = HALVES.index(half)
    kept = [e for e in data.examples if hashlib.sha256(e.cluster.encode()).digest()[0] % 2 == side]
    return dataclasses.replace(data, examples=kept)


def draw_weights(data: LabelledData, balance: str) -> np.ndarray:
    """`[n]` chance of each example to be drawn: for "label" equal labels, for "sampler" also equal kinds within them,
    else all alike."""
    label = data.labels()
    if balance == "label":
        weights = 1 / np.bincount(label)[label]
    elif balance == "sampler":
        kinds = np.unique(data.column("kind"), return_inverse=True)[1]
        cell = label * (kinds.max() + 1) + kinds
        cells, index, counts = np.unique(cell, return_inverse=True, return_counts=True)
        kinds_of = np.bincount(cells // (kinds.max() + 1), minlength=label.max() + 1)
        weights = 1 / (kinds_of[label] * counts[index])
    else:
        weights = np.ones(len(data))
    return weights / weights.sum()


def twins_of(data: LabelledData) -> np.ndarray:
    """`[n]` place of the human window that answers the prompt of each machine window, -1 where there is none.

    Raises:
        TrainingError: no window has one.
    """
    label = data.labels()
    key = [(e.song, e.context.tobytes()) for e in data.examples]
    human = {key[i]: i for i, e in enumerate(data.examples) if label[i] == 0 and len(e.context)}
    twins = np.array([human.get(key[i], -1) if label[i] else -1 for i in range(len(data))])
    if not (twins >= 0).any():
        raise TrainingError("pairs need windows of two origins behind the same prompts: only the quality set has them")
    return twins


class LabelledBatches(Dataset):
    """Batches of labelled windows: item `i` depends on (seed, epoch, i) only.

    An epoch draws as many windows as there are: each once, or by `weights` with replacement. Windows of similar length
    go together (pools of `POOL` batches are sorted), which saves padding.
    """

    POOL = 8

    def __init__(self, data: LabelledData, recipe: LabelRecipe, pad: int, seed: int = 0, weights=None):
        self.data, self.recipe, self.pad, self.seed, self.weights = data, recipe, pad, seed, weights
        self.lengths = np.array([len(e.ids) for e in data.examples])
        self.labels = data.labels()
        self.twins, self.rows = None, recipe.rows
        if recipe.pairs:
            self.twins, self.rows = twins_of(data), recipe.rows // 2
            paired = (self.twins >= 0) * (np.ones(len(data)) if weights is None else weights)
            self.weights = paired / paired.sum()
        self.scores = None
        if recipe.form == "condensed":
            self.scores = [parse_segment(data.vocabulary, e.ids).generated for e in data.examples]
        self.hints = None
        if recipe.hints:
            some = np.linspace(0, len(data) - 1, min(2000, len(data))).astype(int)
            self.hints = HintTable(data.vocabulary, [self._row(i, False, 0, (0, EPOCHS)) for i in some])
        self.per_epoch = max(1, len(data) // recipe.rows)
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])

    def __len__(self) -> int:
        return self.per_epoch * EPOCHS

    def _batches(self, epoch: int) -> list[np.ndarray]:
        if self._epoch[0] != epoch:
            rng, rows = generator(self.seed, epoch, 0xB47C), self.rows
            n = self.per_epoch * rows if self.twins is not None else len(self.data)
            order = rng.permutation(n) if self.weights is None else rng.choice(len(self.data), size=n, p=self.weights)
            batches = []
            for at in range(0, n, rows * self.POOL):
                pool = order[at : at + rows * self.POOL]
                pool = pool[np.argsort(self.lengths[pool], kind="stable")]
                batches += [pool[i : i + rows] for i in range(0, len(pool), rows)]
            batches = [b for b in batches if len(b) == rows] or [order]
            self._epoch = epoch, [batches[i] for i in rng.permutation(len(batches))]
        return self._epoch[1]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        epoch, number = divmod(index, self.per_epoch)
        batches = self._batches(epoch)
        chosen = batches[number % len(batches)]
        rng = generator(self.seed, epoch, number, 0xF0A1)
        # all rows of a batch in one form: bare windows beside whole rows would be mostly padding
        whole = bool(rng.random() < 0.5) if self.recipe.form == "mixed" else self.recipe.form == "full"
        shifts = rng.integers(-5, 7, len(chosen)) if self.recipe.augment else np.zeros(len(chosen), dtype=int)
        spans = self._spans(chosen, rng)
        if self.twins is not None:  # what is done to a machine window is done to its twin
            chosen, shifts = np.concatenate([chosen, self.twins[chosen]]), np.tile(shifts, 2)
            spans = np.tile(spans, (2, 1))
        rows = [
            self._row(i, whole, shift, span)[: self.recipe.max_length]
            for i, shift, span in zip(chosen.tolist(), shifts.tolist(), spans.tolist())
        ]
        ids, mask = pad_rows(rows, self.pad)
        batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.from_numpy(self.labels[chosen])}
        if self.hints is not None:
            batch["hints"] = self.hints(rows)
            batch["intervals"] = torch.from_numpy(note_intervals(self.data.vocabulary, ids.numpy()))
        return batch

    def _spans(self, chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """`[rows, 2]` first bar and bar after the last of each window, as `recipe.bars` allows."""
        if self.scores is None or not self.recipe.bars:
            return np.tile([0, EPOCHS], (len(chosen), 1))
        n_bars = np.array([self.scores[i].n_bars for i in chosen])
        bars = np.minimum(rng.integers(self.recipe.bars[0], self.recipe.bars[-1] + 1, len(chosen)), n_bars)
        first = rng.integers(0, n_bars - bars + 1)
        return np.stack([first, first + bars], axis=1)

    def _row(self, index: int, whole: bool, shift: int, span: Sequence[int]) -> np.ndarray:
        example = self.data.examples[index]
        ids = example.full() if whole else example.ids
        if self.scores is not None:
            ids = labelled.condensed_ids(self.data.vocabulary, self.scores[index], *span)
        elif len(ids) > self.recipe.max_length:  # rather without its prompt than without its end
            ids = example.ids
        return labelled.transpose_ids(self.data.vocabulary, ids, shift) if shift else ids


class ClassifyTrainer(PackTrainer):
    """`Trainer` with class weights and one logit for two labels.

    Args:
        class_weights: `[labels]` weight of each class in the loss, or None. pairs: a batch holds machine windows, then
            their human twins. hints: weight of the loss on the batch's `hints`; the model then has a layer `hints`.
    """

    def __init__(
        self, *args, class_weights: torch.Tensor | None = None, pairs: bool = False, hints: float = 0.0, **kwargs
    ):
        super().__init__(*args, **kwargs)
        self.class_weights, self.pairs, self.hints = class_weights, pairs, hints
        self._told: list[torch.Tensor] = []
        self.model_accepts_loss_kwargs = False  # the loss is a mean over windows, not over tokens

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels, told = inputs["labels"], None
        if "hints" in inputs:
            layer = self.accelerator.unwrap_model(model).hints
            hook = layer.listen(self.accelerator.unwrap_model(model).pool)
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        if "hints" in inputs:
            hook.remove()
            told = layer.loss(inputs["hints"], inputs["intervals"])
        logits = outputs.logits.float()
        weights = None if self.class_weights is None else self.class_weights.to(logits.device)
        if logits.shape[-1] == 1:
            each = None if weights is None else weights[labels]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], labels.float(), weight=each)
            if self.pairs:
                machine, human = logits[:, 0].chunk(2)
                loss = loss + torch.nn.functional.softplus(human - machine).mean()
        else:
            loss = torch.nn.functional.cross_entropy(logits, labels, weight=weights)
        if told is not None:
            loss = loss + self.hints * told
            self._told.append(told.detach())
        return (loss, outputs) if return_outputs else loss

    def log(self, logs, *args, **kwargs):
        """With the loss of the hints beside the whole one."""
        if "loss" in logs and self._told:
            logs["hint_loss"] = round(float(torch.stack(self._told).mean()), 4)
            self._told = []
        super().log(logs, *args, **kwargs)

    def save_result(self, folder: str) -> None:
        """Save the model without the layer of its hints."""
        layer = self.model._modules.pop("hints", None)
        self.save_model(folder)
        if layer is not None:
            self.model.hints = layer


@torch.no_grad()
def evaluate(model, data, batch_tokens: int = 8192, max_length: int | None = None, progress: bool = False):
    """Logits `[n, num_labels]` float32 of windows, in their order.

    Args:
        model: `BertmForSequenceClassification`; it is put into eval mode.
        data: `LabelledData`, or a list of rows of ids.
        batch_tokens: tokens of a batch with padding. max_length: longer rows are cut.
    """
    rows = [e.ids for e in data.examples] if hasattr(data, "examples") else list(data)
    rows = [row[: max_length or model.config.max_position_embeddings] for row in rows]
    was, _ = model.training, model.eval()
    device = next(model.parameters()).device
    out = np.zeros((len(rows), model.config.num_labels), dtype=np.float32)
    batches = batches_by_length([len(row) for row in rows], batch_tokens)
    if progress:
        from tqdm.auto import tqdm

        batches = tqdm(batches, desc="scoring", unit="batch")
    for batch in batches:
        ids, mask = pad_rows([rows[i] for i in batch], model.config.pad_token_id or 0, device)
        out[batch] = model(input_ids=ids, attention_mask=mask).logits.float().cpu().numpy()
    model.train(was)
    return out


def two_columns(logits: np.ndarray) -> np.ndarray:
    """One logit as the scores of two labels (of the first, 0); more than one stay."""
    return np.concatenate([np.zeros_like(logits), logits], axis=1) if logits.shape[1] == 1 else logits


def song_metrics(logits: np.ndarray, data: LabelledData) -> dict[str, float]:
    """Macro-F1, accuracy, F1 of each label, and (one logit) AUC and log loss; one prediction per song and kind."""
    scores = two_columns(logits)
    # human and machine windows may belong to one song: what is predicted is (song, label, kind)
    songs = np.array([f"{e.song}|{e.label}|{e.kind}" for e in data.examples])
    joined = song_scores(scores, data.labels(), songs, data.column("cluster"))
    matrix = confusion(joined.label, joined.predicted, len(data.names))
    found = {"macro_f1": float(macro_f1(matrix)), "accuracy": float(np.trace(matrix) / matrix.sum())}
    found |= {f"f1_{name}": float(f) for name, f in zip(data.names, f1_of(matrix)) if not math.isnan(f)}
    if logits.shape[1] == 1:
        label, chance = data.labels(), sigmoid(logits[:, 0])
        found["auc"] = auc(logits[:, 0], label == 1)
        found["log_loss"] = float(-np.log(np.clip(np.where(label == 1, chance, 1 - chance), 1e-9, 1)).mean())
    return found


class SongValidation(TrainerCallback):
    """Measures songs of the validation split every so many steps and at the end, and keeps the best model."""

    def __init__(self, log: RunLog, folder: Path, data: LabelledData, every: int, max_length: int, save):
        self.run_log, self.folder, self.data = log, folder, data
        self.every, self.max_length, self.save = every, max_length, save
        self.figure = "auc" if len(data.names) == 2 else "macro_f1"

    @property
    def best(self) -> float:
        path = self.folder / "best" / "validation.json"
        return json.loads(path.read_text(encoding="utf-8"))[self.figure] if path.is_file() else -math.inf

    def on_step_end(self, args, state, control, model=None, **kwargs):
        step = state.global_step
        if (self.every and step % self.every == 0) or step >= state.max_steps:
            found = song_metrics(evaluate(model, self.data, max_length=self.max_length), self.data)
            self.run_log.write(event="validation", step=step, **{k: round(v, 5) for k, v in found.items()})
            if found[self.figure] > self.best:
                partial = self.folder / "best.partial"
                shutil.rmtree(partial, ignore_errors=True)
                self.save(str(partial))
                (partial / "validation.json").write_text(json.dumps({"step": step, **found}, indent=1) + "\n")
                shutil.rmtree(self.folder / "best", ignore_errors=True)
                partial.rename(self.folder / "best")


def build_classifier(
    section: dict, names: Sequence[str], recipe: LabelRecipe, arguments: ClassifyArguments
) -> BertmForSequenceClassification:
    """A classifier for these labels on the encoder of `init`, or fresh where there is none.

    Args:
        section: keyword arguments of `BertmConfig` that are set over those of `init`.
    """
    transformers.set_seed(arguments.seed)
    own = {
        "num_labels": len(names) if len(names) > 2 else 1,
        "window_form": "condensed" if recipe.form == "condensed" else SET_FORMS.get(recipe.set, "tracks"),
        "window_bars": SET_BARS.get(recipe.set, 8),
        "dtype": "float32",
    }
    if len(names) > 2:
        own |= {"id2label": dict(enumerate(names)), "problem_type": "single_label_classification"}
    else:
        own |= {"id2label": {0: names[1]}, "negative_label": names[0], "problem_type": "multi_label_classification"}
    own["label2id"] = {name: i for i, name in own["id2label"].items()}
    if arguments.probe:
        own |= {"classifier_pooling": "mean", "classifier_activation": "linear"}
    own |= section
    if not arguments.init:
        if arguments.probe:
            raise TrainingError("a linear probe needs a trained encoder: give --init")
        config = BertmConfig(vocab_size=len(MortmTokenizer().vocabulary), **own)
        return BertmForSequenceClassification._from_config(config)
    try:
        config = BertmConfig.from_pretrained(arguments.init)
        for key, value in own.items():
            setattr(config, key, value)
        if arguments.scratch:
            model = BertmForSequenceClassification._from_config(config)
        else:
            model = BertmForSequenceClassification.from_pretrained(
                arguments.init, config=config, dtype=torch.float32, ignore_mismatched_sizes=True
            )
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(f"cannot load an encoder from {arguments.init}: {reason}") from None
    if arguments.probe:
        model.model.requires_grad_(False)
    return model


def classify(
    section: dict, recipe: LabelRecipe, arguments: ClassifyArguments, sets: dict[str, LabelledData] | None = None
) -> ClassifyTrainer:
    """Train (or resume) a classifier and return its trainer; the best model stands in `final/`.

    Args:
        section: keyword arguments of `BertmConfig`, over those of `init`.
        sets: `{"train": LabelledData, "validation": LabelledData}` instead of loading the recipe's set.

    Raises:
        TrainingError: the run folder belongs to another recipe, nothing to train on, or words that do not fit.
        FileNotFoundError: the data is not there.
    """
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    folder = Path(arguments.output_dir)
    arguments.init = arguments.init and find_model(arguments.init)
    tokenizer = MortmTokenizer.from_pretrained(arguments.init) if arguments.init else MortmTokenizer()
    if sets is None:
        where = {"data": recipe.data, "cache": recipe.cache or None, "tokenizer": tokenizer}
        sets = {split: labelled.load(recipe.set, split, **where) for split in ("train", "validation")}
    sets = {split: without(data, recipe.leave_out) for split, data in sets.items()}
    sets = {split: labelled.of_tracks(data, recipe.least_tracks) for split, data in sets.items()}
    train = half_of(sets["train"], recipe.half)
    held = _some(sets["validation"], recipe.validation_windows)
    validation = labelled.in_form(held, recipe.form, max(recipe.bars, default=None))
    for split, data in (("train", train), ("validation", validation)):
        if len(np.unique(data.labels())) < 2:
            raise TrainingError(f"the {split} windows of {recipe.set or 'the set'} have fewer than two labels")
    changing = {"data", "cache"}
    stated = {
        "task": "classify",
        "model": section,
        "data": {k: v for k, v in dataclasses.asdict(recipe).items() if k not in changing},
        "labels": list(train.names),
        "init": os.path.basename(os.path.normpath(arguments.init)) if arguments.init else "",
        **{name: getattr(arguments, name) for name in ("probe", "scratch", "class_balance", "seed")},
    }
    same_run(
        folder,
        stated,
        arguments.fresh,
        later={"data": {"half": "", "pairs": False, "bars": [], "least_tracks": 1, "hints": 0.0}},
    )
    if arguments.fresh:
        shutil.rmtree(folder / "best", ignore_errors=True)
    model = build_classifier(section, train.names, recipe, arguments)

    arguments.per_device_train_batch_size = 1  # one item of the dataset is one batch
    arguments.remove_unused_columns = False
    arguments.save_strategy = "no"  # by the clock: RunLog asks for checkpoints
    arguments.disable_tqdm = True
    apply_decay(arguments)
    weights = None
    if arguments.class_balance == "loss":
        counts = np.bincount(train.labels(), minlength=len(train.names))
        weights = torch.tensor(len(train) / (len(counts) * np.maximum(counts, 1)), dtype=torch.float32)
    drawn = arguments.class_balance in ("label", "sampler")
    chances = draw_weights(train, arguments.class_balance) if drawn else None
    per_step = recipe.rows * int(np.mean([min(len(e.ids), recipe.max_length) for e in train.examples]))
    log = RunLog(
        folder,
        lambda step: step * per_step * arguments.gradient_accumulation_steps * arguments.world_size,
        arguments.stop_at,
        arguments.max_minutes,
        arguments.save_minutes,
    )
    batches = LabelledBatches(train, recipe, tokenizer.pad_token_id, arguments.seed, chances)
    if recipe.hints:
        model.hints = HintLayer(model.config.hidden_size, len(batches.hints))
    trainer = ClassifyTrainer(
        model=model,
        args=arguments,
        train_dataset=batches,
        data_collator=single_pack,
        processing_class=tokenizer,
        callbacks=[log],
        class_weights=weights,
        pairs=recipe.pairs,
        hints=recipe.hints,
    )
    trainer.add_callback(
        SongValidation(log, folder, validation, arguments.eval_every, recipe.max_length, trainer.save_result)
    )
    trainer.train(resume_from_checkpoint=None if arguments.fresh else newest_checkpoint(folder))
    if trainer.state.global_step >= arguments.max_steps:
        shutil.rmtree(folder / "final", ignore_errors=True)
        shutil.copytree(folder / "best", folder / "final")
    elif newest_checkpoint(folder) is None:
        trainer._save_checkpoint(model, trial=None)
    return trainer


def _some(data: LabelledData, limit: int) -> LabelledData:
    """At most about `limit` windows, spread evenly over the set."""
    if not limit or len(data) <= limit:
        return data
    rows = np.linspace(0, len(data) - 1, limit).astype(int)
    return dataclasses.replace(data, examples=[data.examples[i] for i in rows])


def run(recipe: str | Path, words: list[str]) -> ClassifyTrainer:
    """Train as a recipe file states, with words of a command line; prints what validation says of the best model."""
    trainer = classify(*read_classify_recipe(recipe, words))
    best = Path(trainer.args.output_dir) / "best" / "validation.json"
    if best.is_file():
        print(best.read_text(encoding="utf-8").strip())
    return trainer


def main(words: list[str] | None = None) -> int:
    """Command line: a recipe file and `--field value` words."""
    return command_line("classify", __doc__, run, words)


if __name__ == "__main__":
    sys.exit(main())
