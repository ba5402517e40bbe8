"""Masked-language-model training of BERTM: `python -m mortm_hf.training.mlm RECIPE.yaml [--field value ...]`.

Design decisions
- The stream is that of pretraining (the same documents, packed the same way, and bare windows) with masks on top, so
  whatever is known of it holds here: a pack is a pure function of (seed, epoch, index), resuming is exact.
- The recipe's `masking` section is `MaskingRecipe`; `model` goes to `BertmConfig`.
- A run folder holds recipe, stores, `log.jsonl`, checkpoints and at the end `final/`.

Knows: recipes, the data package, the Trainer. Must not know: which tokens are masked and why.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch
import transformers
import yaml

from ..data.masking import MaskedPackDataset, MaskingRecipe
from ..data.packing import PackDataset, single_pack
from ..data.pieces import PieceSource
from ..data.store import build_store
from ..models.configuration_bertm import BertmConfig
from ..models.modeling_bertm import BertmForMaskedLM
from ..models.tokenization_mortm import MortmTokenizer
from . import attention
from .arguments import DataRecipe, PretrainArguments, find_recipe, read_recipe
from .errors import TrainingError
from .pretrain import EPOCHS, newest_checkpoint
from .runs import apply_decay, command_line, same_run
from .trainer import PackTrainer, RunLog


PIECE_FIELDS = {"bare", "merged", "bare_bars"}  # of PieceSource, in a recipe's `pieces` section
_MAY_CHANGE = {"data", "cache"}


def read_mlm_recipe(
    path: str | Path, overrides: list[str] = ()
) -> tuple[dict, dict, MaskingRecipe, DataRecipe, PretrainArguments]:
    """(model section, pieces section, masking, data recipe, training arguments) of a recipe file.

    Raises:
        TrainingError: no such recipe, unknown section, field or word (named).
    """
    section, recipe, arguments = read_recipe(path, overrides, others=("pieces", "masking"))
    content = yaml.safe_load(find_recipe(path).read_text(encoding="utf-8")) or {}
    if content.get("task", "mlm") != "mlm":
        raise TrainingError(f"{path} is a recipe for {content['task']}, not for mlm")
    masking = dict(content.get("masking") or {})
    pieces = dict(content.get("pieces") or {})
    known = {"masking": {f.name for f in dataclasses.fields(MaskingRecipe)}, "pieces": PIECE_FIELDS}
    for name, given in (("masking", masking), ("pieces", pieces)):
        unknown = set(given) - known[name]
        if unknown:
            raise TrainingError(f"{path}: unknown fields in {name}: {', '.join(sorted(unknown))}")
    for given, name in ((masking, "attribute_span"), (pieces, "bare_bars")):
        if name in given:
            given[name] = tuple(given[name])
    return section, pieces, MaskingRecipe(**masking), recipe, arguments


def _loaded(kind, init: str, **options):
    try:
        return kind.from_pretrained(init, **options)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(f"cannot load a model from {init}: {reason}") from None


def _build(section: dict, vocab_size: int, arguments: PretrainArguments) -> BertmForMaskedLM:
    """A fresh model of the recipe, or the one of `init`, which must be of the recipe's size."""
    options = {"attn_implementation": arguments.attention or None}
    if not arguments.init:
        return BertmForMaskedLM._from_config(BertmConfig(vocab_size=vocab_size, **section), **options)
    model = _loaded(BertmForMaskedLM, arguments.init, dtype=torch.float32, **options)
    found = {name: getattr(model.config, name) for name in section}
    other = [f"{name} {found[name]}, not {value}" for name, value in section.items() if found[name] != value]
    if other:
        raise TrainingError(f"{arguments.init} is another model than the recipe's: {'; '.join(other)}")
    return model


def pretrain_mlm(
    section: dict,
    pieces: dict,
    masking: MaskingRecipe,
    recipe: DataRecipe,
    arguments: PretrainArguments,
    stores: dict | None = None,
) -> PackTrainer:
    """Train (or resume) a masked language model and return its trainer.

    Args:
        section: keyword arguments of `BertmConfig`. pieces: those of `PieceSource`. masking: how documents are masked.
        stores: `{"train": ScoreStore}` to use instead of reading the pack.

    Raises:
        TrainingError: the run folder belongs to another recipe; nothing to train on.
        FileNotFoundError: the data is not there.
    """
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    folder = Path(arguments.output_dir)
    stated = {
        "task": "mlm",
        "model": section,
        "pieces": pieces,
        "masking": dataclasses.asdict(masking),
        "data": {k: v for k, v in dataclasses.asdict(recipe).items() if k not in _MAY_CHANGE},
        "seed": arguments.seed,
    }
    if arguments.init:
        stated["init"] = str(arguments.init)
    same_run(folder, stated, arguments.fresh)
    tokenizer = _loaded(MortmTokenizer, arguments.init) if arguments.init else MortmTokenizer()
    vocabulary = tokenizer.vocabulary
    if stores is None:
        if not recipe.data:
            raise TrainingError("no data: give the folder of a training pack with --data")
        stores = {"train": build_store(recipe.data, recipe.selection(), "train", recipe.cache or folder / "stores")}
    if not len(stores["train"]):
        raise TrainingError("no song to train on: check the recipe's corpora against the manifest")
    source = PieceSource(stores["train"], vocabulary, recipe, seed=arguments.seed, **pieces)
    shape = recipe.rows, recipe.row_length
    packs = PackDataset(
        source, recipe.packs_per_epoch, lambda index: shape, tokenizer.pad_token_id, arguments.seed, epochs=EPOCHS
    )
    transformers.set_seed(arguments.seed)
    if arguments.attention == attention.NAME:
        attention.register()
    model = _build(section, len(vocabulary), arguments)
    if arguments.experts_implementation:
        model.set_experts_implementation(arguments.experts_implementation)

    arguments.per_device_train_batch_size = 1  # one item of the dataset is one pack
    arguments.remove_unused_columns = False
    arguments.save_strategy = "no"  # by the clock: RunLog asks for checkpoints
    arguments.disable_tqdm = True
    apply_decay(arguments)
    per_step = recipe.rows * recipe.row_length * arguments.gradient_accumulation_steps * arguments.world_size
    log = RunLog(
        folder,
        lambda step: step * per_step,
        arguments.stop_at,
        arguments.max_minutes,
        arguments.save_minutes,
        arguments.router_every,
    )
    trainer = PackTrainer(
        model=model,
        args=arguments,
        train_dataset=MaskedPackDataset(packs, vocabulary, masking),
        data_collator=single_pack,
        processing_class=tokenizer,
        callbacks=[log],
    )
    trainer.train(resume_from_checkpoint=None if arguments.fresh else newest_checkpoint(folder))
    if trainer.state.global_step >= arguments.max_steps:
        trainer.save_model(str(folder / "final"))
    elif newest_checkpoint(folder) is None:
        trainer._save_checkpoint(model, trial=None)
    return trainer


def run(recipe: str | Path, words: list[str]) -> PackTrainer:
    """Train as a recipe file states, with words of a command line."""
    return pretrain_mlm(*read_mlm_recipe(recipe, words))


def main(words: list[str] | None = None) -> int:
    """Command line: a recipe file and `--field value` words."""
    return command_line("mlm", __doc__, run, words)


if __name__ == "__main__":
    sys.exit(main())
