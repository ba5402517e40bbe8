"""The songs of a recipe: opened by what its `data` names, and remembered in the run's `songs.json`.

Design decisions
- A recipe names a training pack, a prepared data set, MIDI files, or a folder of fixed examples, which lies in the
  data set it was drawn from.

Knows: stores, fixed examples. Must not know: models, the Trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..data.checkpoint_songs import joined, members_of, read_members, write_members
from ..data.fixed_examples import FixedPacks
from ..data.open import build_store
from ..data.score_store import ScoreStore, load_songs
from ..data.sources import is_saved_dataset
from ..models.errors_mortm import TrainingError
from ..models.tokenization_mortm import MortmTokenizer
from .arguments import EPOCHS, DataRecipe, RunArguments
from .refusals import refused_as
from .run import holds_run


_MISSING = {  # what to do about a split without songs
    "corpora": "the recipe's corpora name what is trained on (none: everything)",
    "train": "prepare more songs",
    "validation": "mortm finetune does with few songs; --eval_windows '' --early_stopping 0 trains without validation",
}


def cache_of(recipe: DataRecipe, arguments: RunArguments) -> str:
    """The folder of what is prepared from the recipe's data."""
    return recipe.cache or str(Path(arguments.output_dir) / "stores")


def require_data(recipe: DataRecipe) -> None:
    """Refuse a recipe that names no data.

    Raises:
        TrainingError: it names none.
    """
    if not recipe.data:
        raise TrainingError("no data: give a training pack, a data set or MIDI files with --data")


def open_songs(
    recipe: DataRecipe, arguments: RunArguments, source: str = "", splits: Sequence[str] = ()
) -> dict[str, ScoreStore]:
    """`{split: songs}` of a recipe's data: `train`, and `validation` where the run validates.

    Args:
        recipe: the section `data`.
        arguments: of the run.
        source: data instead of what the recipe names.
        splits: those to open instead.

    Raises:
        TrainingError: no data named, or none there, or a split without songs.
    """
    require_data(recipe)
    source = source or recipe.data
    splits = splits or ["train"] + ["validation"] * bool(arguments.eval_windows)
    with arguments.main_process_first(desc="reading the data"), refused_as("data"):
        stores = {name: build_store(source, recipe.selection(), name, cache_of(recipe, arguments)) for name in splits}
    for split, store in stores.items():
        if not len(store):
            asked = f" of {', '.join(recipe.corpora)}" if recipe.corpora else ""
            raise TrainingError(
                f"{source} has no {split} song{asked}: " + _MISSING["corpora" if recipe.corpora else split]
            )
    return stores


def fixed_examples(recipe: DataRecipe, tokenizer: MortmTokenizer) -> FixedPacks | None:
    """The examples that `mortm data build --materialize` kept, where the data is a folder of them.

    Args:
        recipe: the section `data`.
        tokenizer: of the model.

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


def source_of_fixed(folder: str | Path, required: bool = True) -> str | None:
    """The data set that fixed examples (of all splits, or of one) were drawn from: they lie in it.

    Args:
        folder: of the examples.
        required: raise where they lie elsewhere, instead of returning None.

    Raises:
        TrainingError: they have been moved.
    """
    folder = Path(folder).resolve()
    source = folder.parents[1] if (folder / "examples.json").is_file() else folder.parent
    if is_saved_dataset(source):
        return str(source)
    if required:
        raise TrainingError(
            f"{folder} does not lie in the data set it was drawn from, so there are no songs to validate on: "
            "--eval_windows '' (and --early_stopping 0) do without"
        )
    return None


def state_members(
    folder: Path, stores: dict[str, ScoreStore], fixed: FixedPacks | None, recipe: DataRecipe, arguments: RunArguments
) -> None:
    """Writes `songs.json` of a run: what it trains on now, what it did before, and what the model it starts from was
    made with.

    Args:
        folder: of the run.
        stores: `{split: songs}`.
        fixed: the fixed examples that are trained on, or None.
        recipe: the section `data`.
        arguments: of the run.
    """
    songs = {split: store.songs for split, store in stores.items()}
    if fixed is not None:
        source = source_of_fixed(recipe.data, required=False)
        songs["train"] = load_songs(source, "train").songs if source else ()
    before = read_members(folder) if holds_run(folder) and not arguments.fresh else None
    base = read_members(arguments.init) if arguments.init else None
    write_members(folder, joined(members_of(songs), before, base))
