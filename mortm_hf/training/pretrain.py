"""Training: `mortm train RECIPE.yaml [--field value ...]`, one process.

Several processes: `accelerate launch [--config_file CONFIG] -m mortm_hf.training.pretrain RECIPE.yaml [...]`.

Design decisions
- A run folder holds everything: the recipe with all overrides, prepared stores, `log.jsonl`, curves for TensorBoard,
  checkpoints, the best model by validation in `best/`, and at the end `final/`, a complete folder for
  `from_pretrained`.
- Started again with the same folder it goes on from the newest checkpoint that is whole. Steps, decay, threads and the
  stopping time may differ then; data, seed and row lengths must not, and are compared with the stored recipe.
- fp32 master weights; bf16 is autocast (with DeepSpeed it is not: see its configuration).
- Fine-tuning is the same run from other weights (`init`), with adapters if asked; what is shipped is merged.
- Being told to end (Ctrl-C, SIGTERM) ends the run after the step under way, with a checkpoint.

Knows: recipes, the data package, the Trainer. Must not know: how notes become tokens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import torch
import transformers

from ..data.checkpoint_songs import FILE as MEMBERS
from ..data.checkpoint_songs import joined, members_of, read_members, write_members
from ..data.examples import ExampleSource
from ..data.fixed_examples import FixedPacks
from ..data.open import build_store
from ..data.packing import LEAST, DocumentSource, PackDataset, single_pack
from ..data.score_store import ScoreStore, load_songs
from ..data.sources import is_saved_dataset
from ..models.configuration_mortm import MortmConfig
from ..models.errors_mortm import TrainingError
from ..models.modeling_mortm import MortmForCausalLM
from ..models.tokenization_mortm import MortmTokenizer
from . import attention
from .adapters import add_lora, is_adapted, load_adapter, merged
from .arguments import RECIPES, DataRecipe, PretrainArguments, read_recipe, task_of
from .refusals import refused_as
from .routing import ExpertAlarm
from .runlog import Progress, RunLog, is_first_process
from .runs import apply_decay, command_line, holds_run, same_run, set_experts
from .trainer import PackTrainer
from .validation import ALL_WINDOWS, BEST, BitsPerNote, Selection, validation_windows


EPOCHS = 1 << 10  # the stream never ends before the run does: its length is max_steps, which may change on resume
_MAY_CHANGE = {"data", "cache", "long_from_step"}
_MISSING = {  # what to do about a split without songs
    "corpora": "the recipe's corpora name what is trained on (none: everything)",
    "train": "prepare more songs",
    "validation": "mortm finetune does with few songs; --eval_windows '' --early_stopping 0 trains without validation",
}
_CONFIGS = Path(__file__).resolve().parent / "configs"
_OPTIMIZER_STATE = ("optimizer.pt", "optimizer.bin", "optimizer_0", "optimizer-0-of-*.pt", "global_step*")


def pack_shape(recipe: DataRecipe, processes: int = 1):
    """Function: pack index -> (rows, row length). The tokens of a pack stay the same when rows become longer.

    Args:
        processes: packs of one step (processes times micro-batches).
    """

    def shape(index: int) -> tuple[int, int]:
        if 0 <= recipe.long_from_step <= index // processes:
            return max(1, recipe.rows * recipe.row_length // recipe.long_row_length), recipe.long_row_length
        return recipe.rows, recipe.row_length

    return shape


def build_model(section: dict, vocab_size: int, arguments: PretrainArguments) -> MortmForCausalLM:
    """A model for a run, fp32: fresh from a recipe's `model` section, seeded by the arguments' seed, or `init`.

    Raises:
        TrainingError: `init` with a model section, or with another token table; attention or experts that cannot be
            computed so.
    """
    transformers.set_seed(arguments.seed)
    if arguments.attention == attention.NAME:
        attention.register()
    if arguments.init:
        if section:
            raise TrainingError("init brings its own configuration: leave the recipe's model section out")
        with refused_as(f"cannot load a model from {arguments.init}"):
            model = MortmForCausalLM.from_pretrained(
                arguments.init, dtype=torch.float32, attn_implementation=arguments.attention or None
            )
        if model.config.vocab_size != vocab_size:
            raise TrainingError(
                f"{arguments.init} has {model.config.vocab_size} tokens, its tokenizer {vocab_size}: "
                "`mortm convert FOLDER --extend-vocab -o NEW` moves a converted checkpoint to the default table"
            )
    else:
        config = MortmConfig(vocab_size=vocab_size, **section)
        with refused_as(f"attention {arguments.attention}"):
            model = MortmForCausalLM._from_config(config, attn_implementation=arguments.attention or None)
    set_experts(model, arguments)
    return _spread(model, arguments) if arguments.sharding else model


def _spread(model: MortmForCausalLM, arguments: PretrainArguments) -> MortmForCausalLM:
    """The same model spread over the processes: transformers does that when it loads, so the weights go through a
    folder.

    Raises:
        TrainingError: one process, a number of them that does not divide the experts, or an older transformers.
    """
    if arguments.sharding not in ("weights", "experts"):
        raise TrainingError(f"sharding is weights or experts, not {arguments.sharding}")
    processes, experts = arguments.world_size, arguments.sharding == "experts"
    if processes < 2:
        raise TrainingError("sharding needs several processes: start it with torchrun or accelerate launch")
    if experts and model.config.num_local_experts % processes:
        raise TrainingError(f"{processes} processes do not divide the {model.config.num_local_experts} experts evenly")
    try:
        from transformers.distributed import DistributedConfig

        layout = DistributedConfig(fsdp_size=processes, ep_size=processes if experts else None)
    except (ImportError, TypeError):
        raise TrainingError(
            f"transformers {transformers.__version__} cannot spread a model itself: use accelerate's FSDP "
            f"({_CONFIGS / 'fsdp2.yaml'}) or a newer transformers"
        ) from None
    folder = None if arguments.fresh else newest_checkpoint(arguments.output_dir)
    if folder is None:
        folder = Path(arguments.output_dir) / ".init"
        with arguments.main_process_first(desc="writing the first weights"):
            if is_first_process():
                model.save_pretrained(folder)
    spread = MortmForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=arguments.attention or None, distributed_config=layout
    )
    set_experts(spread, arguments)
    return spread


def newest_checkpoint(folder: str | Path) -> str | None:
    """The newest complete checkpoint of a run folder: a run killed while it saved leaves one without the Trainer's
    state, which is written last, or with half of it."""

    def complete(path: Path) -> bool:
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return any(True for name in _OPTIMIZER_STATE for _ in path.glob(name))

    found = [p for p in Path(folder).glob("checkpoint-*") if p.name.partition("-")[2].isdigit() and complete(p)]
    return str(max(found, key=_step_of)) if found else None


def _step_of(checkpoint: str | Path) -> int:
    return int(Path(checkpoint).name.partition("-")[2])


def _check_same_run(
    folder: Path, section: dict, recipe: DataRecipe, arguments: PretrainArguments, examples: str | None = None
) -> None:
    """Write the recipe of a run, or compare it with the one that the run began with.

    Args:
        examples: digest of the fixed examples it is trained on, or None.
    """
    stated = {
        "model": section,
        "data": {k: v for k, v in dataclasses.asdict(recipe).items() if k not in _MAY_CHANGE},
        "seed": arguments.seed,
    }
    if arguments.init:
        stated["init"] = str(arguments.init)
    if arguments.lora_rank:
        stated["lora"] = [arguments.lora_rank, arguments.lora_alpha]
    if examples:
        stated["examples"] = examples
    same_run(folder, stated, arguments.fresh, {"data": dataclasses.asdict(DataRecipe())})


def _check_complete(section: dict, recipe: DataRecipe, arguments: PretrainArguments, windows) -> None:
    """Refuse what a run that reads its data by the recipe lacks, before it reads any.

    Raises:
        TrainingError: no data, no model, a corpus without weight, early stopping without validation.
    """
    if not recipe.data:
        raise TrainingError("no data: give a training pack, a data set or MIDI files with --data")
    if not section and not arguments.init:
        raise TrainingError(
            "no model: the recipe has no model section and there is no --init FOLDER to start from "
            "(songs of your own: mortm finetune)"
        )
    if arguments.early_stopping and not arguments.eval_windows and windows is None:
        raise TrainingError(
            "early_stopping needs validation: give --eval_windows FILE.csv, or --early_stopping 0 for none"
        )
    recipe.weights()


def _check_adapters(arguments: PretrainArguments) -> None:
    """Refuse adapters on weights that are spread: they are merged at the end, by one process that has them whole.

    Raises:
        TrainingError: adapters together with sharding, FSDP or DeepSpeed.
    """
    by_launcher = (f"ACCELERATE_USE_{name}" for name in ("FSDP", "DEEPSPEED"))
    spread = arguments.sharding or arguments.fsdp or arguments.deepspeed
    if arguments.lora_rank and (spread or any(os.environ.get(n, "").lower() in ("1", "true") for n in by_launcher)):
        raise TrainingError(
            "lora_rank goes with whole weights only, not with sharding, FSDP or DeepSpeed: take one process, or DDP "
            f"({_CONFIGS / 'ddp.yaml'})"
        )


def _read_stores(recipe: DataRecipe, folder: Path, arguments: PretrainArguments, fixed: FixedPacks | None) -> dict:
    """The stores of the recipe's data: `train`, and `validation` where there are windows.

    Fixed examples need no songs to train on; those to validate on lie in the data set they were drawn from.
    """
    cache = recipe.cache or str(folder / "stores")
    data, splits = recipe.data, ["train"] + ["validation"] * bool(arguments.eval_windows)
    if fixed is not None:
        data, splits = str(_source_of_fixed(Path(recipe.data))), splits[1:]
    with arguments.main_process_first(desc="reading the data"), refused_as("data"):
        stores = {split: build_store(data, recipe.selection(), split, cache) for split in splits}
    for split, store in stores.items():
        if not len(store):
            asked = f" of {', '.join(recipe.corpora)}" if recipe.corpora else ""
            raise TrainingError(
                f"{data} has no {split} song{asked}: " + _MISSING["corpora" if recipe.corpora else split]
            )
    return stores


def _fixed_examples(recipe: DataRecipe, tokenizer: MortmTokenizer) -> FixedPacks | None:
    """The examples that `mortm data build --materialize` kept, where the data is a folder of them.

    Raises:
        TrainingError: they are of another token table.
    """
    for folder in (Path(recipe.data) / "train", Path(recipe.data)):
        if (folder / "examples.json").is_file():
            fixed = FixedPacks(folder, EPOCHS)
            if fixed.meta["pad"] != tokenizer.pad_token_id or fixed.largest_id() >= len(tokenizer):
                raise TrainingError(
                    f"{folder} was made with another token table than that of the model: make it again"
                )
            return fixed
    return None


def _source_of_fixed(folder: Path, required: bool = True) -> Path | None:
    """The data set that fixed examples (of all splits, or of one) were drawn from: they lie in it.

    Raises:
        TrainingError: they have been moved.
    """
    folder = folder.resolve()
    source = folder.parents[1] if (folder / "examples.json").is_file() else folder.parent
    if not is_saved_dataset(source):
        if not required:
            return None
        raise TrainingError(
            f"{folder} does not lie in the data set it was drawn from, so there are no songs to validate on: "
            "--eval_windows '' (and --early_stopping 0) do without"
        )
    return source


def _state_members(folder: Path, stores: dict, fixed, recipe: DataRecipe, arguments: PretrainArguments) -> None:
    """`songs.json` of a run: what it trains on now, what it did before, and what the model it starts from was made
    with."""
    songs = {split: store.songs for split, store in stores.items()}
    if fixed is not None:
        source = _source_of_fixed(Path(recipe.data), required=False)
        songs["train"] = load_songs(str(source), "train").songs if source else ()
    before = read_members(folder) if holds_run(folder) and not arguments.fresh else None
    base = read_members(arguments.init) if arguments.init else None
    write_members(folder, joined(members_of(songs), before, base))


def _source(train: ScoreStore, vocabulary, recipe: DataRecipe, arguments: PretrainArguments) -> ExampleSource:
    several = len(train.corpora()) > 1  # one corpus has nothing to balance
    with refused_as("data"):
        return ExampleSource(train, vocabulary, recipe, seed=arguments.seed, **({} if several else {"packs": 1}))


def _complete_arguments(arguments: PretrainArguments, tokens_per_step: int) -> None:
    """Everything of the arguments that follows from others."""
    arguments.per_device_train_batch_size = 1  # one item of the dataset is one pack
    arguments.remove_unused_columns = False
    arguments.save_strategy = "no"  # by the clock: RunLog asks for checkpoints
    arguments.disable_tqdm = True
    if arguments.ddp_find_unused_parameters is None:
        arguments.ddp_find_unused_parameters = False  # experts are fused: every parameter takes part in every step
    if arguments.max_tokens:
        arguments.max_steps = math.ceil(arguments.max_tokens / tokens_per_step)
    if arguments.max_steps <= 0:
        raise TrainingError("how long? Give max_steps or max_tokens in the recipe's training section")
    if arguments.decay_share:
        arguments.decay_steps = round(arguments.decay_share * arguments.max_steps)
    apply_decay(arguments)
    if arguments.tensorboard and importlib.util.find_spec("tensorboard") is not None:
        arguments.report_to = sorted({*arguments.report_to, "tensorboard"})


def _windows_file(arguments: PretrainArguments) -> str:
    """The csv of validation windows, as named or beside the recipes of the package, or `ALL_WINDOWS`."""
    if arguments.eval_windows == ALL_WINDOWS:
        return ALL_WINDOWS
    for path in (Path(arguments.eval_windows), RECIPES / arguments.eval_windows):
        if path.is_file():
            return str(path)
    raise TrainingError(f"no file {arguments.eval_windows} (eval_windows), nor one beside the recipe or in {RECIPES}")


@contextlib.contextmanager
def without_bars():
    """transformers' bars for reading and writing weights would cut through ours."""
    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


@contextlib.contextmanager
def _ending_gracefully(log: RunLog):
    """Ctrl-C and SIGTERM end the run after the step under way; a second one ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {}

    def stop(number, frame):
        if is_first_process():
            print("ending after this step, with a checkpoint", file=sys.stderr, flush=True)
        log.stop_soon()
        for known, handler in before.items():
            signal.signal(known, handler)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclasses.dataclass
class Stream:
    """Another language for the same runs (comparisons with other tokenizers).

    Attributes:
        source: draws documents. model: predicts them. pad: id of padding.
    """

    source: DocumentSource
    model: torch.nn.Module
    pad: int


def make_trainer(
    section: dict,
    recipe: DataRecipe,
    arguments: PretrainArguments,
    stores: dict | None = None,
    windows=None,
    tokenizer: MortmTokenizer | None = None,
    stream: Stream | None = None,
) -> tuple[PackTrainer, RunLog]:
    """The trainer of a run with all that belongs to it; nothing is trained yet (arguments: see `pretrain`)."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    folder = Path(arguments.output_dir)
    if tokenizer is None:
        tokenizer = MortmTokenizer.from_pretrained(arguments.init) if arguments.init else MortmTokenizer()
    if tokenizer.dialect != "metric":
        raise TrainingError(
            f"{arguments.init} speaks upstream's dialect: `mortm finetune` moves it to the metric one (see its --help)"
        )
    fixed = None
    if stores is None:
        _check_complete(section, recipe, arguments, windows)
        fixed = _fixed_examples(recipe, tokenizer)
    if fixed is not None:  # what a recipe says of drawing has no say any more
        shape = {name: fixed.meta[name] for name in ("rows", "row_length")}
        recipe = DataRecipe(data=recipe.data, cache=recipe.cache, **shape)
    _check_adapters(arguments)
    packs_per_step = arguments.world_size * arguments.gradient_accumulation_steps
    shape = pack_shape(recipe, packs_per_step)
    rows, length = shape(0)
    if length < LEAST:
        raise TrainingError(f"rows of {length} tokens hold no music: row_length is {LEAST} at least")
    tokens_per_step = rows * length * packs_per_step
    _complete_arguments(arguments, tokens_per_step)
    csv = _windows_file(arguments) if arguments.eval_windows and windows is None else ""
    with arguments.main_process_first(desc="opening the run folder"):
        _check_same_run(folder, section, recipe, arguments, None if fixed is None else fixed.meta["digest"])
    vocabulary = tokenizer.vocabulary
    if stores is None:
        stores = _read_stores(recipe, folder, arguments, fixed)
    if is_first_process():
        _state_members(folder, stores, fixed, recipe, arguments)
    if stream is None:
        model, pad = build_model(section, len(vocabulary), arguments), tokenizer.pad_token_id
    else:
        model, pad, tokenizer = stream.model, stream.pad, None
    if fixed is not None:
        dataset = fixed
    else:
        source = stream.source if stream else _source(stores["train"], vocabulary, recipe, arguments)
        dataset = PackDataset(source, recipe.packs_per_epoch, shape, pad, arguments.seed, epochs=EPOCHS)
    if arguments.lora_rank:
        model = add_lora(model, arguments.lora_rank, arguments.lora_alpha or 2 * arguments.lora_rank)
    log = RunLog(
        folder,
        lambda step: step * tokens_per_step,
        arguments.stop_at,
        arguments.max_minutes,
        arguments.save_minutes,
        arguments.router_every,
        ExpertAlarm(arguments.dead_share, arguments.dead_after),
    )
    callbacks = [log, Progress(log)]
    if csv:
        limit = model.config.max_position_embeddings
        windows = validation_windows(vocabulary, stores["validation"], csv, limit, arguments.eval_limit)
    validation = BitsPerNote(windows, pad) if windows else None
    trainer = PackTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=single_pack,
        processing_class=tokenizer,
        callbacks=callbacks,
        validation=validation,
    )
    if validation is not None:
        trainer.add_callback(
            Selection(
                log,
                arguments.eval_tokens,
                arguments.early_stopping,
                lambda target: trainer.save_model(target, _internal_call=True),
            )
        )
    return trainer, log


def pretrain(
    section: dict,
    recipe: DataRecipe,
    arguments: PretrainArguments,
    stores: dict | None = None,
    windows=None,
    tokenizer: MortmTokenizer | None = None,
    stream: Stream | None = None,
) -> PackTrainer:
    """Train (or resume) and return the trainer.

    Args:
        section: keyword arguments of `MortmConfig` (empty with `init`).
        stores: `{"train": ScoreStore, "validation": ...}` to use instead of reading the pack.
        windows: encoded validation windows instead of the csv that the arguments name.
        tokenizer: by default that of `init`, else the default one.
        stream: another language, with its source, model and windows.

    Raises:
        TrainingError: the run folder belongs to another recipe, there is nothing to train on, or arguments that do
            not go together.
        DataError: the data cannot be used.
    """
    with without_bars():
        return _pretrain(section, recipe, arguments, stores, windows, tokenizer, stream)


def _pretrain(section, recipe, arguments, stores, windows, tokenizer, stream) -> PackTrainer:
    trainer, log = make_trainer(section, recipe, arguments, stores, windows, tokenizer, stream)
    folder = Path(arguments.output_dir)
    checkpoint = None if arguments.fresh else newest_checkpoint(folder)
    selection = next((c for c in trainer.callback_handler.callbacks if isinstance(c, Selection)), None)
    reached = _step_of(checkpoint) if checkpoint else 0
    over = reached >= arguments.max_steps or (selection is not None and selection.has_stopped(reached))
    if reached and over and (folder / "final").is_dir():
        if is_first_process():
            print(f"{folder} is finished ({reached} steps); more --max_steps (or --early_stopping) let it go on")
        trainer.state.global_step = reached
        return trainer
    if arguments.fresh and is_first_process():
        shutil.rmtree(folder / BEST, ignore_errors=True)
        (folder / "log.jsonl").unlink(missing_ok=True)
    if checkpoint and is_first_process():
        print(f"{folder} goes on from step {reached}", file=sys.stderr, flush=True)
    with _ending_gracefully(log):
        trainer.train(resume_from_checkpoint=checkpoint)
    early = selection is not None and selection.patience and selection.since >= selection.patience
    if early or trainer.state.global_step >= arguments.max_steps:
        _finish(trainer, folder, arguments.select_best)
    elif newest_checkpoint(folder) is None:
        trainer._save_checkpoint(trainer.model, trial=None)
    return trainer


def _finish(trainer: PackTrainer, folder: Path, select_best: bool) -> None:
    """Write `final/`: the best model by validation, or the last; adapters merged."""
    best = folder / BEST if select_best and (folder / BEST / "best.json").is_file() else None
    staged, final = folder / ".final.tmp", folder / "final"
    if is_first_process():
        shutil.rmtree(staged, ignore_errors=True)
    if is_adapted(trainer.model):
        if best is not None:
            load_adapter(trainer.model, best)
        if is_first_process():
            model = merged(trainer.model)
            model.config.use_cache = True
            model.save_pretrained(staged)
            trainer.processing_class.save_pretrained(staged)
    elif best is not None:
        if is_first_process():
            shutil.copytree(best, staged, ignore=shutil.ignore_patterns("best.json"))
    else:
        trainer.save_model(str(staged), _internal_call=True)
    if is_first_process():
        (staged / "training_args.bin").unlink(missing_ok=True)  # a pickle, of use to this run only
        if (folder / MEMBERS).is_file():
            shutil.copy(folder / MEMBERS, staged)
        shutil.rmtree(final, ignore_errors=True)
        staged.rename(final)


def run(path: str, overrides: list[str]) -> PackTrainer:
    """What `mortm train` does: a recipe file and `--field value` words."""
    task = task_of(path)
    if task != "pretrain":
        raise TrainingError(f"{path} is a recipe of the task {task}: `mortm train` runs it")
    section, recipe, arguments = read_recipe(path, overrides)
    trainer = pretrain(section, recipe, arguments)
    final = Path(arguments.output_dir) / "final"
    if is_first_process() and final.is_dir():
        print(f"{final}: the model, after {trainer.state.global_step} steps", flush=True)
    return trainer


def main(words: list[str] | None = None) -> int:
    """Command line: a recipe file and `--field value` words."""
    return command_line("pretrain", __doc__, run, words)


if __name__ == "__main__":
    sys.exit(main())
