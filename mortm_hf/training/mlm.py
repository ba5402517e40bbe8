"""Pretraining of BERTM on altered music: `python -m mortm_hf.training.mlm RECIPE.yaml [--field value ...]`.

Design decisions
- The stream is that of pretraining (the same documents, packed the same way, and bare windows), altered, so whatever
  is known of it holds here: a pack is a pure function of (seed, epoch, index), resuming is exact.
- Two tasks. `masking` (`MaskingRecipe`): hidden tokens are to be predicted, the masked language model. `replacing`
  (`ReplacingRecipe`): wrong notes are to be found, which is what a critic needs to know; it makes a token classifier.
- `model` goes to `BertmConfig`.
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

from ..bundled import find_model
from ..data.encoder_examples import PieceSource
from ..data.masking import MaskedPackDataset, MaskingRecipe
from ..data.open import build_store
from ..data.packing import PackDataset, single_pack
from ..data.replaced_notes import LABELS, ReplacedPackDataset, ReplacingRecipe
from ..models.configuration_bertm import BertmConfig
from ..models.errors_mortm import TrainingError
from ..models.modeling_bertm import BertmForMaskedLM, BertmForTokenClassification
from ..models.modeling_mortm import MortmForCausalLM
from ..models.tokenization_mortm import MortmTokenizer
from . import attention
from .arguments import DataRecipe, PretrainArguments, find_recipe, read_recipe
from .pretrain import EPOCHS, newest_checkpoint
from .refusals import refused_as
from .runlog import RunLog
from .runs import apply_decay, command_line, same_run, set_experts
from .trainer import PackTrainer


PIECE_FIELDS = {"bare", "merged", "bare_bars"}  # of PieceSource, in a recipe's `pieces` section
TASKS = {"masking": MaskingRecipe, "replacing": ReplacingRecipe}
_MAY_CHANGE = {"data", "cache"}


def read_mlm_recipe(
    path: str | Path, overrides: list[str] = ()
) -> tuple[dict, dict, MaskingRecipe | ReplacingRecipe, DataRecipe, PretrainArguments]:
    """(model section, pieces section, task, data recipe, training arguments) of a recipe file.

    Raises:
        TrainingError: no such recipe, unknown section, field or word (named).
    """
    section, recipe, arguments = read_recipe(path, overrides, others=("pieces", *TASKS))
    content = yaml.safe_load(find_recipe(path).read_text(encoding="utf-8")) or {}
    if content.get("task", "mlm") != "mlm":
        raise TrainingError(f"{path} is a recipe for {content['task']}, not for mlm")
    if "masking" in content and "replacing" in content:
        raise TrainingError(f"{path} has two tasks: keep the section masking or the section replacing")
    task = "replacing" if "replacing" in content else "masking"
    altering = dict(content.get(task) or {})
    pieces = dict(content.get("pieces") or {})
    known = {task: {f.name for f in dataclasses.fields(TASKS[task])}, "pieces": PIECE_FIELDS}
    for name, given in ((task, altering), ("pieces", pieces)):
        unknown = set(given) - known[name]
        if unknown:
            raise TrainingError(f"{path}: unknown fields in {name}: {', '.join(sorted(unknown))}")
    for given in (altering, pieces):
        given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    return section, pieces, TASKS[task](**altering), recipe, arguments


def _loaded(kind, init: str, **options):
    try:
        return kind.from_pretrained(init, **options)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(f"cannot load a model from {init}: {reason}") from None


def _build(section: dict, vocab_size: int, finds: bool, arguments: PretrainArguments):
    """A fresh model of the recipe, or the one of `init`, which must be of the recipe's size.

    Args:
        finds: a token classifier that finds wrong notes, instead of a masked language model.
    """
    options = {"attn_implementation": arguments.attention or None}
    kind = BertmForTokenClassification if finds else BertmForMaskedLM
    labels = {"num_labels": len(LABELS), "id2label": dict(enumerate(LABELS))} if finds else {}
    if not arguments.init:
        with refused_as(f"attention {arguments.attention}"):
            return kind._from_config(BertmConfig(vocab_size=vocab_size, **section, **labels), **options)
    model = _loaded(kind, arguments.init, dtype=torch.float32, **options, **labels)
    found = {name: getattr(model.config, name) for name in section}
    other = [f"{name} {found[name]}, not {value}" for name, value in section.items() if found[name] != value]
    if other:
        raise TrainingError(f"{arguments.init} is another model than the recipe's: {'; '.join(other)}")
    return model


def _proposer(task: ReplacingRecipe, half: bool, device: torch.device, workers: int):
    """Function: a pack -> logits `[rows, length, vocabulary]` of the generator that the task names; None without."""
    if not task.generator:
        return None
    attention.register()
    folder = find_model(task.generator)
    if device.type == "cuda" and workers:
        raise TrainingError(
            "a generator that runs on the GPU writes in the main process: set dataloader_num_workers to 0 (or use_cpu)"
        )
    model = _loaded(MortmForCausalLM, folder, dtype=torch.float32, attn_implementation=attention.NAME).eval()
    model.to(device)
    model.set_experts_implementation("grouped_mm")

    @torch.no_grad()
    def propose(pack: dict[str, torch.Tensor]):
        given = {n: v.to(device) if torch.is_tensor(v) else v for n, v in pack.items() if n != "labels"}
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            return model(**given, use_cache=False).logits.float().cpu().numpy()

    return propose


def pretrain_mlm(
    section: dict,
    pieces: dict,
    task: MaskingRecipe | ReplacingRecipe,
    recipe: DataRecipe,
    arguments: PretrainArguments,
    stores: dict | None = None,
) -> PackTrainer:
    """Train (or resume) an encoder and return its trainer.

    Args:
        section: keyword arguments of `BertmConfig`. pieces: those of `PieceSource`. task: how documents are altered.
        stores: `{"train": ScoreStore}` to use instead of reading the pack.

    Raises:
        TrainingError: the run folder belongs to another recipe; nothing to train on.
        FileNotFoundError: the data is not there.
    """
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    folder = Path(arguments.output_dir)
    arguments.init = arguments.init and find_model(arguments.init)
    finds = isinstance(task, ReplacingRecipe)
    stated = {
        "task": "mlm",
        "model": section,
        "pieces": pieces,
        "replacing" if finds else "masking": dataclasses.asdict(task),
        "data": {k: v for k, v in dataclasses.asdict(recipe).items() if k not in _MAY_CHANGE},
        "seed": arguments.seed,
    }
    if arguments.init:
        stated["init"] = Path(arguments.init).name
    same_run(folder, stated, arguments.fresh)
    tokenizer = _loaded(MortmTokenizer, arguments.init) if arguments.init else MortmTokenizer()
    vocabulary = tokenizer.vocabulary
    if stores is None:
        if not recipe.data:
            raise TrainingError("no data: give a training pack, a data set or MIDI files with --data")
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
    model = _build(section, len(vocabulary), finds, arguments)
    set_experts(model, arguments)

    if finds:
        proposer = _proposer(task, arguments.bf16, arguments.device, arguments.dataloader_num_workers)
        altered = ReplacedPackDataset(packs, vocabulary, task, proposer)
    else:
        altered = MaskedPackDataset(packs, vocabulary, task)

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
        train_dataset=altered,
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
