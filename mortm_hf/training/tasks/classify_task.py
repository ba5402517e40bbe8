"""Fine-tuning BERTM's classifier (`task: classify`).

Design decisions
- `probe` trains a linear probe: the encoder is frozen, pooling is the mean and the hidden layer has no activation, so
  that what is found was linearly there. Otherwise all weights are trained. `scratch` gives the encoder of `init` fresh
  weights: the same model, data and budget without pretraining.
- Classes are balanced in the loss (weights by frequency) or in the draw (`class_balance`), or not at all.
- Validation is by song; its windows have the form of the training ones.

Knows: labelled sets, the encoder. Must not know: how windows are made, what a label means, how a run goes.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ...bundled import find_model
from ...data import labelled_windows as labelled
from ...data.labelled_windows import LabelledData
from ...models.configuration_bertm import BertmConfig
from ...models.errors_mortm import TrainingError
from ...models.modeling_bertm import BertmForSequenceClassification
from ...models.tokenization_mortm import MortmTokenizer
from ..arguments import RunArguments
from ..classifier_trainer import ClassifyTrainer, SongValidation
from ..feature_hints import HintLayer
from ..labelled_batches import LabelledBatches, draw_weights, evenly_chosen, half_of, without
from ..recipe import Recipe, RecipeKind
from ..run import carry_out, complete_arguments, new_trainer, open_run, packs_of_step, without_bars
from ..weights import load_weights, prepare_weights


BALANCES = ("loss", "label", "sampler", "none")
# how the windows of each set were cut: what a head trained on it is given in a pipeline
SET_FORMS = {"folk": "merged", "genre": "merged", "drums": "drums"}
SET_BARS = {"drums": 4}
# fields that came after the first runs, with what stood for them
_LATER = {"half": "", "pairs": False, "bars": [], "least_tracks": 1, "hints": 0.0}
_MAY_CHANGE = {"data", "cache"}


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
        metadata={"help": "condensed form: take so many consecutive bars of a window, from and to; none: all"},
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

    def __post_init__(self):
        if self.bars and self.form != "condensed":
            raise TrainingError(f"bars are chosen in the condensed form only (form is {self.form})")


@dataclass
class ClassifyArguments(RunArguments):
    """`RunArguments` and what fine-tuning a classifier needs besides."""

    probe: bool = field(default=False, metadata={"help": "linear probe: freeze the encoder"})
    scratch: bool = field(default=False, metadata={"help": "fresh weights in the encoder of init"})
    class_balance: str = field(default="loss", metadata={"help": "loss, label, sampler or none"})
    eval_every: int = field(default=100, metadata={"help": "steps between validations"})

    def __post_init__(self):
        super().__post_init__()
        if self.class_balance not in BALANCES:
            raise TrainingError(f"class_balance is one of {', '.join(BALANCES)}, got {self.class_balance!r}")


KIND = RecipeKind("classify", BertmConfig, LabelRecipe, ClassifyArguments)


def build_classifier(
    section: dict, names: Sequence[str], recipe: LabelRecipe, arguments: ClassifyArguments
) -> BertmForSequenceClassification:
    """A classifier for these labels on the encoder of `init`, or fresh where there is none.

    Args:
        section: keyword arguments of `BertmConfig` that are set over those of `init`.
        names: of the labels.
        recipe: the section `data`.
        arguments: of the run.

    Raises:
        TrainingError: a probe without an encoder, or an encoder that cannot be loaded.
    """
    prepare_weights(arguments)
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
    config = load_weights(BertmConfig, arguments.init)
    for key, value in own.items():
        setattr(config, key, value)
    if arguments.scratch:
        model = BertmForSequenceClassification._from_config(config)
    else:
        model = load_weights(
            BertmForSequenceClassification,
            arguments.init,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
        )
    if arguments.probe:
        model.model.requires_grad_(False)
    return model


@without_bars()
def train(recipe: Recipe, sets: dict[str, LabelledData] | None = None) -> ClassifyTrainer:
    """Train (or resume) a classifier and return its trainer; the best model stands in `final/`.

    Args:
        recipe: of this task.
        sets: `{"train": LabelledData, "validation": LabelledData}` instead of loading the recipe's set.

    Raises:
        TrainingError: the run folder belongs to another recipe, nothing to train on, or words that do not fit.
        FileNotFoundError: the data is not there.
    """
    section, data, arguments = recipe.model, recipe.data, recipe.training
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.init = arguments.init and find_model(arguments.init)
    tokenizer = load_weights(MortmTokenizer, arguments.init) if arguments.init else MortmTokenizer()
    if sets is None:
        where = {"data": data.data, "cache": data.cache or None, "tokenizer": tokenizer}
        sets = {split: labelled.load(data.set, split, **where) for split in ("train", "validation")}
    sets = {split: without(one, data.leave_out) for split, one in sets.items()}
    sets = {split: labelled.of_tracks(one, data.least_tracks) for split, one in sets.items()}
    examples = half_of(sets["train"], data.half)
    held = evenly_chosen(sets["validation"], data.validation_windows)
    validation = labelled.in_form(held, data.form, max(data.bars, default=None))
    for split, one in (("train", examples), ("validation", validation)):
        if len(np.unique(one.labels())) < 2:
            raise TrainingError(f"the {split} windows of {data.set or 'the set'} have fewer than two labels")
    length = int(np.mean([min(len(e.ids), data.max_length) for e in examples.examples]))
    per_step = data.rows * length * packs_of_step(arguments)
    complete_arguments(arguments, per_step)
    stated = {
        "task": KIND.task,
        "model": section,
        "data": {k: v for k, v in dataclasses.asdict(data).items() if k not in _MAY_CHANGE},
        "labels": list(examples.names),
        "init": os.path.basename(os.path.normpath(arguments.init)) if arguments.init else "",
        **{name: getattr(arguments, name) for name in ("probe", "scratch", "class_balance", "seed")},
    }
    open_run(arguments, stated, {"data": _LATER})
    model = build_classifier(section, examples.names, data, arguments)
    weights = None
    if arguments.class_balance == "loss":
        counts = np.bincount(examples.labels(), minlength=len(examples.names))
        weights = torch.tensor(len(examples) / (len(counts) * np.maximum(counts, 1)), dtype=torch.float32)
    drawn = arguments.class_balance in ("label", "sampler")
    chances = draw_weights(examples, arguments.class_balance) if drawn else None
    batches = LabelledBatches(examples, data, tokenizer.pad_token_id, arguments.seed, chances)
    if data.hints:
        model.hints = HintLayer(model.config.hidden_size, len(batches.hints))
    losses = {"class_weights": weights, "pairs": data.pairs, "hints": data.hints}
    trainer = new_trainer(model, batches, tokenizer, arguments, per_step, kind=ClassifyTrainer, **losses)
    trainer.add_callback(
        SongValidation(trainer.run_log, validation, arguments.eval_every, data.max_length, trainer.save_result)
    )
    return carry_out(trainer)
