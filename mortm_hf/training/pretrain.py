"""Pretraining: `python -m mortm_hf.training.pretrain RECIPE.yaml [--field value ...]`.

Design decisions
- A run folder holds everything: the recipe with all overrides, prepared stores, `log.jsonl`, checkpoints, and at the
  end `final/`, a complete folder for `from_pretrained`.
- Started again with the same folder it goes on from the newest checkpoint. Steps, decay, threads and the stopping
  time may differ then; data, seed and row lengths must not, and are compared with the stored recipe.
- fp32 master weights; bf16 is autocast.

Knows: recipes, the data package, the Trainer. Must not know: how notes become tokens.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import torch
import transformers

from ..data.examples import ExampleSource
from ..data.packing import PackDataset, single_pack
from ..data.store import build_store
from ..models.configuration_mortm import MortmConfig
from ..models.modeling_mortm import MortmForCausalLM
from ..models.tokenization_mortm import MortmTokenizer
from . import attention
from .arguments import DataRecipe, PretrainArguments, read_recipe
from .trainer import PackTrainer, RunLog


EPOCHS = 1 << 10  # the stream never ends before the run does: its length is max_steps, which may change on resume
_MAY_CHANGE = {"data", "cache", "long_from_step"}


def pack_shape(recipe: DataRecipe, processes: int = 1):
    """Function: pack index -> (rows, row length). The tokens of a pack stay the same when rows become longer."""

    def shape(index: int) -> tuple[int, int]:
        if 0 <= recipe.long_from_step <= index // processes:
            return max(1, recipe.rows * recipe.row_length // recipe.long_row_length), recipe.long_row_length
        return recipe.rows, recipe.row_length

    return shape


def build_model(section: dict, vocab_size: int, arguments: PretrainArguments) -> MortmForCausalLM:
    """A fresh model for a recipe's `model` section, fp32, seeded by the arguments' seed."""
    transformers.set_seed(arguments.seed)
    if arguments.attention == attention.NAME:
        attention.register()
    config = MortmConfig(vocab_size=vocab_size, **section)
    model = MortmForCausalLM._from_config(config, attn_implementation=arguments.attention or None)
    if arguments.experts_implementation:
        model.set_experts_implementation(arguments.experts_implementation)
    return model


def newest_checkpoint(folder: str | Path) -> str | None:
    """The newest complete checkpoint of a run folder: a run killed while it saved leaves one without the Trainer's
    state, which is written last."""
    found = [p for p in Path(folder).glob("checkpoint-*") if p.name.partition("-")[2].isdigit()]
    complete = [p for p in found if (p / "trainer_state.json").is_file() and (p / "optimizer.pt").is_file()]
    return str(max(complete, key=lambda p: int(p.name.partition("-")[2]))) if complete else None


def _check_same_run(folder: Path, section: dict, recipe: DataRecipe, arguments: PretrainArguments) -> None:
    """Write the recipe of a run, or compare it with the one that the run began with."""
    stated = {
        "model": section,
        "data": {k: v for k, v in dataclasses.asdict(recipe).items() if k not in _MAY_CHANGE},
        "seed": arguments.seed,
    }
    stated = json.loads(json.dumps(stated))
    path = folder / "recipe.json"
    if path.is_file() and not arguments.fresh:
        before = json.loads(path.read_text(encoding="utf-8"))
        if before != stated:
            different = [k for k in stated if before.get(k) != stated[k]]
            raise ValueError(
                f"{folder} holds a run with another recipe (different: {', '.join(different)}): "
                "give another --output_dir, or --fresh True to start it anew"
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(stated, indent=1), encoding="utf-8")


def pretrain(section: dict, recipe: DataRecipe, arguments: PretrainArguments, stores: dict | None = None):
    """Train (or resume) and return the model.

    Args:
        section: keyword arguments of `MortmConfig`.
        stores: `{"train": ScoreStore}` to use instead of reading the pack.

    Raises:
        ValueError: the run folder belongs to another recipe; nothing to train on.
        FileNotFoundError: the data is not there.
    """
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    folder = Path(arguments.output_dir)
    _check_same_run(folder, section, recipe, arguments)
    tokenizer = MortmTokenizer()
    vocabulary = tokenizer.vocabulary
    if stores is None:
        if not recipe.data:
            raise ValueError("no data: give the folder of a training pack with --data")
        cache = recipe.cache or str(folder / "stores")
        stores = {"train": build_store(recipe.data, recipe.selection(), "train", cache)}
    train = stores["train"]
    if not len(train):
        raise ValueError("no song to train on: check the recipe's corpora against the manifest")
    source = ExampleSource(train, vocabulary, recipe, seed=arguments.seed)
    shape = pack_shape(recipe, arguments.world_size)
    dataset = PackDataset(source, recipe.packs_per_epoch, shape, tokenizer.pad_token_id, arguments.seed, epochs=EPOCHS)
    model = build_model(section, len(vocabulary), arguments)

    arguments.per_device_train_batch_size = 1  # one item of the dataset is one pack
    arguments.remove_unused_columns = False
    arguments.save_strategy = "no"  # by the clock: RunLog asks for checkpoints
    arguments.disable_tqdm = True
    if arguments.decay_steps:
        arguments.lr_scheduler_type = "warmup_stable_decay"
        arguments.lr_scheduler_kwargs = {
            "num_decay_steps": arguments.decay_steps,
            "decay_type": "linear",
            "min_lr_ratio": 0.0,
        }

    def tokens_of(step: int) -> int:
        rows, length = shape(0)
        return step * rows * length * arguments.gradient_accumulation_steps * arguments.world_size

    log = RunLog(
        folder, tokens_of, arguments.stop_at, arguments.max_minutes, arguments.save_minutes, arguments.router_every
    )
    trainer = PackTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=single_pack,
        processing_class=tokenizer,
        callbacks=[log],
    )
    checkpoint = None if arguments.fresh else newest_checkpoint(folder)
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.state.global_step >= arguments.max_steps:
        trainer.save_model(str(folder / "final"))
    elif newest_checkpoint(folder) is None:
        trainer._save_checkpoint(model, trial=None)
    return trainer


def main(words: list[str] | None = None) -> int:
    """Command line: a recipe file and `--field value` words."""
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0].startswith("-"):
        print(__doc__.splitlines()[0])
        return 0 if words and words[0] in ("-h", "--help") else 2
    try:
        section, recipe, arguments = read_recipe(words[0], words[1:])
        pretrain(section, recipe, arguments)
    except (ValueError, FileNotFoundError) as error:
        print(f"pretrain: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
