"""What `mortm eval` measures on: a training pack, a prepared data set, or a folder of MIDI files.

Design decisions
- A pack has the corpora and windows that a recipe names; a data set has its own splits; a folder has none, and all of
  it is measured on. Where no file lists the windows they are the consecutive ones of every song.
- Songs that a checkpoint was trained on or selected by (`songs.json` in its folder, which `mortm train` and `mortm
  finetune` write) are never in what is called test, whatever they are called and wherever they lie.
- Only annotated chords are held against a model, never guesses of the recogniser.

Knows: stores, recipes, fixed windows. Must not know: metrics, models.
"""

from __future__ import annotations

from pathlib import Path

from .files import CommandError


SPLIT, RECIPE = "test", "starter"


def open_data(
    data: Path,
    split: str | None = None,
    recipe: str | None = None,
    cache: Path | None = None,
    model: Path | None = None,
):
    """The songs and fixed windows that a model is measured on.

    Args:
        data: a training pack, a data set that `mortm data build` prepared (or `owner/name`), a folder of MIDI files.
        split: "train", "validation" or "test" (the default). recipe: names the corpora (and windows) of a pack.
        cache: folder for what is prepared. model: folder of the checkpoint, which may say what it was made with.

    Raises:
        CommandError, DataError, TrainingError: nothing there, no such split, or no song of 16 bars.
    """
    from ..data.membership import read_members
    from ..data.sources import is_hub_name, is_pack, is_saved_dataset

    members = read_members(model) if model is not None else None
    if is_pack(data):
        found = _pack(data, split or SPLIT, recipe or RECIPE, cache)
    elif is_saved_dataset(data) or is_hub_name(str(data)):
        found = _prepared(str(data), split, recipe, members)
    elif data.is_dir():
        found = _folder(data, split, members)
    else:
        raise CommandError(
            f"{data} is no folder: give a training pack, a prepared data set or MIDI files", "command.input"
        )
    if members and split in (None, SPLIT):
        found = _without(found, members)
    if not found.windows:
        raise CommandError(f"{data} has no song of 16 bars ({found.name}): nothing to measure", "command.input")
    return found


def _without(found, members: dict[str, str]):
    """The data without the songs that a checkpoint was made with."""
    from ..data.reading import fingerprint
    from ..data.store import ScoreStore
    from ..evaluation.suite import EvalData

    songs = [song for song in found.songs.songs if fingerprint(song.score) not in members]
    gone = len(found.songs) - len(songs)
    if not gone:
        return found
    names = {song.path for song in songs}
    windows = [window for window in found.windows if window.path in names]
    words = f"{found.name} but {gone} songs that the model was made with"
    return EvalData(ScoreStore(songs, found.songs.skipped), windows, words, found.train, found.validation)


def _pack(root: Path, split: str, recipe: str, cache: Path | None):
    from ..data import build_store
    from ..evaluation.suite import EvalData
    from ..evaluation.windows import fixed_windows, read_windows
    from ..training.recipe import find_recipe
    from ..training.tasks import read_data

    chosen = read_data(recipe)
    stores = None if cache is None else cache / "stores"

    def songs(name: str):
        try:
            return build_store(root, chosen.selection(), name, stores)
        except (OSError, KeyError) as error:
            raise CommandError(f"cannot read {root}: {' '.join(str(error).split())}", "command.input") from None

    store = songs(split)
    listed = find_recipe(recipe).with_suffix(f".{split}.csv")
    windows = read_windows(listed) if listed.is_file() else fixed_windows(store)
    known = {song.path for song in store.songs}
    here = [w for w in windows if w.path in known]
    if listed.is_file() and not here:
        raise CommandError(f"no song of {listed.name} is in {root}: give a recipe for this data", "command.input")
    for window in windows:
        if window.path not in known:
            store.skipped.append((window.path, f"bars {window.start} to {window.start + 16} are listed, not there"))
    train = (lambda: songs("train")) if split != "train" else None
    held = (lambda: songs("validation")) if split == "test" else None
    return EvalData(store, here, f"split {split}", train, held)


def _prepared(source: str, split: str | None, recipe: str | None, members: dict[str, str] | None):
    from ..data import load_songs, open_dataset
    from ..evaluation.suite import EvalData
    from ..evaluation.windows import fixed_windows
    from ..training.tasks import read_data

    there = open_dataset(source)
    selection = read_data(recipe).selection() if recipe else None

    def songs(name: str | None):
        return load_songs(source, name, selection, estimated_chords=False)

    if split is None and SPLIT not in there and members is not None:
        return _parted(songs(None), None, members)  # the splits are those that fine-tuning drew
    split = split or SPLIT
    if split not in there:
        raise CommandError(f"{source} has no split {split}: --split takes {', '.join(there)}", "command.input")
    store = songs(split)
    train = (lambda: songs("train")) if split != "train" and "train" in there else None
    held = (lambda: songs("validation")) if split == "test" and "validation" in there else None
    return EvalData(store, fixed_windows(store), f"split {split}", train, held)


def _folder(folder: Path, split: str | None, members: dict[str, str] | None):
    from ..data.store import ScoreStore
    from ..training.own_songs import read_songs

    songs, skipped = read_songs([folder], chords="annotated")
    if not songs:
        raise CommandError(f"no MIDI file in {folder} can be read: {skipped[0]['reason']}", "command.input")
    store = ScoreStore(songs, [(item["file"], item["reason"]) for item in skipped])
    if members is None and split is not None:
        raise CommandError(
            f"{folder} holds plain MIDI files, which have no splits: leave --split out, or prepare them with "
            f"`mortm data build {folder} -o FOLDER`",
            "command.input",
        )
    return _parted(store, split, members)


def _parted(store, split: str | None, members: dict[str, str] | None):
    """All songs, or the part that a checkpoint was trained on or selected by."""
    from ..data.reading import fingerprint
    from ..data.store import ScoreStore
    from ..evaluation.suite import EvalData
    from ..evaluation.windows import fixed_windows

    if not members:
        return EvalData(store, fixed_windows(store), "all songs")
    parts: dict[str, list] = {"train": [], "validation": []}
    for song in store.songs:
        parts.get(members.get(fingerprint(song.score)), []).append(song)
    train, held = (ScoreStore(parts[name]) if parts[name] else None for name in ("train", "validation"))
    if split in parts:
        store = ScoreStore(parts[split], store.skipped)
        return EvalData(store, fixed_windows(store), f"{split} songs of the model")
    more = [None if part is None else (lambda part=part: part) for part in (train, held)]
    return EvalData(store, fixed_windows(store), "all songs", *more)


def read_files(files) -> tuple[list, list[list[str]]]:
    """(quantised music of the files that have notes, [path, reason] of the others)."""
    from ..models.token_codec import read_midi

    scores, unread = [], []
    for path in files:
        try:
            score = read_midi(path)
            if not score.n_notes:
                raise CommandError("it has no notes")
            scores.append(score)
        except ValueError as error:
            if not isinstance(getattr(error, "code", None), str):
                raise
            unread.append([str(path), " ".join(str(error).split())])
    return scores, unread
