"""Training of MORTM on documents of songs, packed into rows (`task: pretrain`, and every recipe that names no task).

Design decisions
- fp32 master weights; bf16 is autocast (with DeepSpeed it is not: see its configuration).
- Fine-tuning is the same run from other weights (`init`), with adapters if asked; what is shipped is merged.
- Validation is bits a note on windows that a csv names (`eval_windows`), or on all of the validation songs.

Knows: the stream of documents, the model, its validation. Must not know: how notes become tokens, how a run goes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from ...data.examples import ExampleSource
from ...data.packing import LEAST, DocumentSource, PackDataset
from ...data.score_store import ScoreStore
from ...models.configuration_mortm import MortmConfig
from ...models.errors_mortm import TrainingError
from ...models.modeling_mortm import MortmForCausalLM
from ...models.tokenization_mortm import MortmTokenizer
from ..adapters import add_lora, check_adapters
from ..arguments import EPOCHS, DataRecipe, RunArguments
from ..recipe import RECIPES, Recipe, RecipeKind
from ..refusals import refused_as
from ..run import (
    carry_out,
    complete_arguments,
    new_trainer,
    newest_checkpoint,
    open_run,
    packs_of_step,
    without_bars,
)
from ..runlog import is_first_process
from ..songs import fixed_examples, open_songs, require_data, source_of_fixed, state_members
from ..trainer import PackTrainer
from ..validation import ALL_WINDOWS, BitsPerNote, validation_windows
from ..weights import fresh_weights, load_weights, prepare_weights, set_experts, spread


KIND = RecipeKind("pretrain", MortmConfig)
_MAY_CHANGE = {"data", "cache", "long_from_step"}


@dataclass
class Stream:
    """Another language for the same runs (comparisons with other tokenizers).

    Attributes:
        source: draws documents.
        model: predicts them.
        pad: id of padding.
    """

    source: DocumentSource
    model: torch.nn.Module
    pad: int


def pack_shape(recipe: DataRecipe, packs: int = 1):
    """Function: pack index -> (rows, row length). The tokens of a pack stay the same when rows become longer.

    Args:
        recipe: the section `data`.
        packs: of one step (processes times micro-batches).
    """

    def shape(index: int) -> tuple[int, int]:
        if 0 <= recipe.long_from_step <= index // packs:
            return max(1, recipe.rows * recipe.row_length // recipe.long_row_length), recipe.long_row_length
        return recipe.rows, recipe.row_length

    return shape


def build_model(section: dict, vocab_size: int, arguments: RunArguments) -> MortmForCausalLM:
    """A model for a run, fp32: fresh from a recipe's `model` section, seeded by the arguments' seed, or `init`.

    Args:
        section: keyword arguments of `MortmConfig`.
        vocab_size: tokens of the tokenizer.
        arguments: of the run.

    Raises:
        TrainingError: `init` with a model section, or with another token table; attention or experts that cannot be
            computed so.
    """
    prepare_weights(arguments)
    if arguments.init:
        if section:
            raise TrainingError("init brings its own configuration: leave the recipe's model section out")
        options = {"dtype": torch.float32, "attn_implementation": arguments.attention or None}
        model = load_weights(MortmForCausalLM, arguments.init, **options)
        if model.config.vocab_size != vocab_size:
            raise TrainingError(
                f"{arguments.init} has {model.config.vocab_size} tokens, its tokenizer {vocab_size}: "
                "`mortm convert FOLDER --extend-vocab -o NEW` moves a converted checkpoint to the default table"
            )
    else:
        model = fresh_weights(MortmForCausalLM, MortmConfig(vocab_size=vocab_size, **section), arguments)
    set_experts(model, arguments)
    if not arguments.sharding:
        return model
    return spread(model, arguments, None if arguments.fresh else newest_checkpoint(arguments.output_dir))


def stated_of(recipe: Recipe, examples: str | None = None) -> dict:
    """What a run is made of, and may not change when it goes on.

    Args:
        recipe: of this task.
        examples: digest of the fixed examples it is trained on, or None.
    """
    data, arguments = recipe.data, recipe.training
    stated = {
        "model": recipe.model,
        "data": {k: v for k, v in dataclasses.asdict(data).items() if k not in _MAY_CHANGE},
        "seed": arguments.seed,
    }
    if arguments.init:
        stated["init"] = str(arguments.init)
    if arguments.lora_rank:
        stated["lora"] = [arguments.lora_rank, arguments.lora_alpha]
    if examples:
        stated["examples"] = examples
    return stated


def _check_complete(recipe: Recipe, windows) -> None:
    """Refuse what a run that reads its data by the recipe lacks, before it reads any.

    Raises:
        TrainingError: no data, no model, a corpus without weight, early stopping without validation.
    """
    arguments = recipe.training
    require_data(recipe.data)
    if not recipe.model and not arguments.init:
        raise TrainingError(
            "no model: the recipe has no model section and there is no --init FOLDER to start from "
            "(songs of your own: mortm finetune)"
        )
    if arguments.early_stopping and not arguments.eval_windows and windows is None:
        raise TrainingError(
            "early_stopping needs validation: give --eval_windows FILE.csv, or --early_stopping 0 for none"
        )
    recipe.data.weights()


def _windows_file(arguments: RunArguments) -> str:
    """The csv of validation windows, as named or beside the recipes of the package, or `ALL_WINDOWS`."""
    if arguments.eval_windows == ALL_WINDOWS:
        return ALL_WINDOWS
    for path in (Path(arguments.eval_windows), RECIPES / arguments.eval_windows):
        if path.is_file():
            return str(path)
    raise TrainingError(f"no file {arguments.eval_windows} (eval_windows), nor one beside the recipe or in {RECIPES}")


def _source(store: ScoreStore, vocabulary, recipe: DataRecipe, arguments: RunArguments) -> ExampleSource:
    several = len(store.corpora()) > 1  # one corpus has nothing to balance
    with refused_as("data"):
        return ExampleSource(store, vocabulary, recipe, seed=arguments.seed, **({} if several else {"packs": 1}))


def make_trainer(
    recipe: Recipe,
    stores: dict | None = None,
    windows=None,
    tokenizer: MortmTokenizer | None = None,
    stream: Stream | None = None,
) -> PackTrainer:
    """The trainer of a run with all that belongs to it; nothing is trained yet.

    Args:
        recipe: of this task.
        stores: see `train`.
        windows: see `train`.
        tokenizer: see `train`.
        stream: see `train`.

    Raises:
        TrainingError: see `train`.
    """
    data, arguments = recipe.data, recipe.training
    folder = Path(arguments.output_dir)
    if tokenizer is None:
        tokenizer = load_weights(MortmTokenizer, arguments.init) if arguments.init else MortmTokenizer()
    if tokenizer.dialect != "metric":
        raise TrainingError(
            f"{arguments.init} speaks upstream's dialect: `mortm finetune` moves it to the metric one (see its --help)"
        )
    fixed = None
    if stores is None:
        _check_complete(recipe, windows)
        fixed = fixed_examples(data, tokenizer)
    if fixed is not None:  # what a recipe says of drawing has no say any more
        data = DataRecipe(
            data=data.data, cache=data.cache, rows=fixed.meta["rows"], row_length=fixed.meta["row_length"]
        )
    check_adapters(arguments)
    packs = packs_of_step(arguments)
    shape = pack_shape(data, packs)
    rows, length = shape(0)
    if length < LEAST:
        raise TrainingError(f"rows of {length} tokens hold no music: row_length is {LEAST} at least")
    per_step = rows * length * packs
    if arguments.ddp_find_unused_parameters is None:
        arguments.ddp_find_unused_parameters = False  # experts are fused: every parameter takes part in every step
    complete_arguments(arguments, per_step)
    csv = _windows_file(arguments) if arguments.eval_windows and windows is None else ""
    stated = stated_of(dataclasses.replace(recipe, data=data), None if fixed is None else fixed.meta["digest"])
    open_run(arguments, stated, {"data": dataclasses.asdict(DataRecipe())})
    if stores is None and fixed is None:
        stores = open_songs(data, arguments)
    elif stores is None:  # no songs are needed to train on; those to validate on lie beside the examples
        held = ["validation"] * bool(arguments.eval_windows)
        stores = open_songs(data, arguments, source_of_fixed(data.data), held) if held else {}
    if is_first_process():
        state_members(folder, stores, fixed, data, arguments)
    vocabulary = tokenizer.vocabulary
    if stream is None:
        model, pad = build_model(recipe.model, len(vocabulary), arguments), tokenizer.pad_token_id
    else:
        model, pad, tokenizer = stream.model, stream.pad, None
    dataset = fixed
    if fixed is None:
        source = stream.source if stream else _source(stores["train"], vocabulary, data, arguments)
        dataset = PackDataset(source, data.packs_per_epoch, shape, pad, arguments.seed, epochs=EPOCHS)
    if arguments.lora_rank:
        model = add_lora(model, arguments.lora_rank, arguments.lora_alpha or 2 * arguments.lora_rank)
    if csv:
        limit = model.config.max_position_embeddings
        windows = validation_windows(vocabulary, stores["validation"], csv, limit, arguments.eval_limit)
    validation = BitsPerNote(windows, pad) if windows else None
    return new_trainer(model, dataset, tokenizer, arguments, per_step, validation)


@without_bars()
def train(
    recipe: Recipe,
    stores: dict | None = None,
    windows=None,
    tokenizer: MortmTokenizer | None = None,
    stream: Stream | None = None,
) -> PackTrainer:
    """Train (or resume) and return the trainer.

    Args:
        recipe: of this task; its `model` is empty with `init`.
        stores: `{"train": ScoreStore, "validation": ...}` to use instead of opening the recipe's data.
        windows: encoded validation windows instead of those that the arguments name.
        tokenizer: by default that of `init`, else the default one.
        stream: another language, with its source, model and windows.

    Raises:
        TrainingError: the run folder belongs to another recipe, there is nothing to train on, or arguments that do
            not go together.
        DataError: the data cannot be used.
    """
    return carry_out(make_trainer(recipe, stores, windows, tokenizer, stream))
