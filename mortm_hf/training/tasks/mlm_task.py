"""Pretraining of BERTM on altered music (`task: mlm`).

Design decisions
- The stream is that of pretraining (the same documents, packed the same way, and bare windows), altered, so whatever
  is known of it holds here: a pack is a pure function of (seed, epoch, index), resuming is exact.
- Two ways to alter it. `masking` (`MaskingRecipe`): hidden tokens are to be predicted, the masked language model.
  `replacing` (`ReplacingRecipe`): wrong notes are to be found, which is what a critic needs to know; it makes a token
  classifier.
- With `eval_windows: all` the loss on altered packs of the validation songs is measured on the way.

Knows: the stream of documents and how it is altered, the models. Must not know: which tokens are masked and why, how a
run goes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from ...bundled import find_model
from ...data.encoder_examples import PieceSource
from ...data.masking import MaskedPackDataset, MaskingRecipe
from ...data.packing import PackDataset
from ...data.replaced_notes import LABELS, ReplacedPackDataset, ReplacingRecipe
from ...models.configuration_bertm import BertmConfig
from ...models.errors_mortm import TrainingError
from ...models.modeling_bertm import BertmForMaskedLM, BertmForTokenClassification
from ...models.modeling_mortm import MortmForCausalLM
from ...models.tokenization_mortm import MortmTokenizer
from .. import attention
from ..arguments import EPOCHS, DataRecipe, RunArguments
from ..recipe import Recipe, RecipeKind
from ..run import carry_out, complete_arguments, new_trainer, open_run, packs_of_step, without_bars
from ..songs import open_songs
from ..trainer import PackTrainer
from ..validation import MeanLosses, batches_to_measure
from ..weights import fresh_weights, load_weights, prepare_weights, set_experts


@dataclass
class PiecesRecipe:
    """Windows without a header among the documents (see `data.encoder_examples.PieceSource`).

    Attributes:
        bare: share of the documents that are such windows.
        merged: share of those with pitched tracks in which these are one track.
        bare_bars: least and most bars of such a window.
    """

    bare: float = 0.4
    merged: float = 0.5
    bare_bars: tuple[int, int] = (4, 16)


KIND = RecipeKind(
    "mlm", BertmConfig, own={"pieces": PiecesRecipe, "masking": MaskingRecipe, "replacing": ReplacingRecipe}
)
_MAY_CHANGE = {"data", "cache"}


def _build(section: dict, vocab_size: int, finds: bool, arguments: RunArguments):
    """A fresh model of the recipe, or the one of `init`, which must be of the recipe's size.

    Args:
        section: keyword arguments of `BertmConfig`.
        vocab_size: tokens of the tokenizer.
        finds: a token classifier that finds wrong notes, instead of a masked language model.
        arguments: of the run.
    """
    kind = BertmForTokenClassification if finds else BertmForMaskedLM
    labels = {"num_labels": len(LABELS), "id2label": dict(enumerate(LABELS))} if finds else {}
    if not arguments.init:
        return fresh_weights(kind, BertmConfig(vocab_size=vocab_size, **section, **labels), arguments)
    options = {"dtype": torch.float32, "attn_implementation": arguments.attention or None}
    model = load_weights(kind, arguments.init, **options, **labels)
    found = {name: getattr(model.config, name) for name in section}
    other = [f"{name} {found[name]}, not {value}" for name, value in section.items() if found[name] != value]
    if other:
        raise TrainingError(f"{arguments.init} is another model than the recipe's: {'; '.join(other)}")
    return model


def _proposer(task: ReplacingRecipe, arguments: RunArguments):
    """Function: a pack -> logits `[rows, length, vocabulary]` of the generator that the task names; None without."""
    if not task.generator:
        return None
    attention.register()
    folder = find_model(task.generator)
    device, half = arguments.device, arguments.bf16
    if device.type == "cuda" and arguments.dataloader_num_workers:
        raise TrainingError(
            "a generator that runs on the GPU writes in the main process: set dataloader_num_workers to 0 (or use_cpu)"
        )
    model = load_weights(MortmForCausalLM, folder, dtype=torch.float32, attn_implementation=attention.NAME).eval()
    model.to(device)
    model.set_experts_implementation("grouped_mm")

    @torch.no_grad()
    def propose(pack: dict[str, torch.Tensor]):
        given = {n: v.to(device) if torch.is_tensor(v) else v for n, v in pack.items() if n != "labels"}
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            return model(**given, use_cache=False).logits.float().cpu().numpy()

    return propose


@without_bars()
def train(recipe: Recipe, stores: dict | None = None) -> PackTrainer:
    """Train (or resume) an encoder and return its trainer.

    Args:
        recipe: of this task.
        stores: `{"train": ScoreStore, "validation": ...}` to use instead of opening the recipe's data.

    Raises:
        TrainingError: the run folder belongs to another recipe; nothing to train on.
    """
    section, data, arguments = recipe.model, recipe.data, recipe.training
    if "masking" in recipe.others and "replacing" in recipe.others:
        raise TrainingError("the recipe has two tasks: keep the section masking or the section replacing")
    pieces = recipe.others.get("pieces") or PiecesRecipe()
    finds = "replacing" in recipe.others
    task = recipe.others["replacing"] if finds else recipe.others.get("masking") or MaskingRecipe()
    arguments.init = arguments.init and find_model(arguments.init)
    per_step = data.rows * data.row_length * packs_of_step(arguments)
    complete_arguments(arguments, per_step)
    stated = {
        "task": KIND.task,
        "model": section,
        "pieces": dataclasses.asdict(pieces),
        "replacing" if finds else "masking": dataclasses.asdict(task),
        "data": {k: v for k, v in dataclasses.asdict(data).items() if k not in _MAY_CHANGE},
        "seed": arguments.seed,
    }
    if arguments.init:
        stated["init"] = Path(arguments.init).name
    later = {"pieces": dataclasses.asdict(PiecesRecipe()), "data": dataclasses.asdict(DataRecipe())}
    open_run(arguments, stated, later)
    tokenizer = load_weights(MortmTokenizer, arguments.init) if arguments.init else MortmTokenizer()
    vocabulary = tokenizer.vocabulary
    stores = stores or open_songs(data, arguments)

    def packs(split: str, count: int, seed: int, epochs: int) -> PackDataset:
        source = PieceSource(stores[split], vocabulary, data, seed=seed, **vars(pieces))
        shape = data.rows, data.row_length
        return PackDataset(source, count, lambda index: shape, tokenizer.pad_token_id, seed, epochs=epochs)

    plain = packs("train", data.packs_per_epoch, arguments.seed, EPOCHS)
    prepare_weights(arguments)
    model = _build(section, len(vocabulary), finds, arguments)
    set_experts(model, arguments)
    proposer = _proposer(task, arguments) if finds else None

    def altered(dataset: PackDataset):
        if finds:
            return ReplacedPackDataset(dataset, vocabulary, task, proposer)
        return MaskedPackDataset(dataset, vocabulary, task)

    validation = None
    if arguments.eval_windows:
        count = batches_to_measure(arguments, data.rows, len(stores["validation"]))
        validation = MeanLosses(altered(packs("validation", count, 0, 1)))
    return carry_out(new_trainer(model, altered(plain), tokenizer, arguments, per_step, validation))
