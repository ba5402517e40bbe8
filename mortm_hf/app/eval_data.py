"""What `mortm eval` measures on: a training pack, a prepared data set, or a folder of MIDI files.

Design decisions
- A pack has the corpora and windows that a recipe names; a data set has its own splits; both are measured on the
  consecutive windows of every song where no file lists them.
- A folder of MIDI files has no splits. A checkpoint that `mortm finetune` made says which songs it was trained on
  (`finetune.json`, by their notes): those are not measured on, under whatever name they come.

Knows: stores, recipes, fixed windows. Must not know: metrics, models.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from .files import CommandError, find_midi


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
        cache: folder for what is prepared. model: folder of the checkpoint; its `finetune.json` keeps songs apart.

    Raises:
        CommandError, DataError: nothing there, no such split, or no song of 16 bars.
    """
    from ..data.sources import is_pack, is_saved_dataset
    from ..data.store import ScoreStore, load_songs
    from ..evaluation.suite import EvalData
    from ..evaluation.windows import fixed_windows

    if is_pack(data):
        return _checked(_pack(data, split or SPLIT, recipe or RECIPE, cache), data)
    parts = songs_of_finetune(model)
    if is_saved_dataset(data) or (not data.exists() and not data.is_absolute() and len(data.parts) == 2):
        if parts is None:
            return _checked(_prepared(str(data), split or SPLIT, recipe), data)
        store = load_songs(str(data))
    elif data.is_dir():
        store = ScoreStore(*_read_songs(data))
    else:
        raise CommandError(
            f"{data} is no folder: give a training pack, a prepared data set or MIDI files", "command.input"
        )
    if parts is not None:
        return _checked(_held_out(store, parts, split or SPLIT, model), data)
    if split is not None:
        raise CommandError(
            f"{data} holds plain MIDI files, which have no splits: leave --split out, or prepare them with "
            f"`mortm data build {data} -o FOLDER`",
            "command.input",
        )
    return _checked(EvalData(store, fixed_windows(store), "all songs"), data)


def _pack(root: Path, split: str, recipe: str, cache: Path | None):
    from ..data import build_store
    from ..evaluation.suite import EvalData
    from ..evaluation.windows import fixed_windows, read_windows
    from ..training.arguments import find_recipe, read_recipe

    _, chosen, _ = read_recipe(recipe)
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


def _prepared(source: str, split: str, recipe: str | None):
    from ..data import load_songs, open_dataset
    from ..evaluation.suite import EvalData
    from ..evaluation.windows import fixed_windows
    from ..training.arguments import read_recipe

    data = open_dataset(source)
    selection = read_recipe(recipe)[1].selection() if recipe else None

    def songs(name: str):
        return load_songs(data, name, selection)

    if split not in data:
        raise CommandError(f"{source} has no split {split}: --split takes {', '.join(data)}", "command.input")
    store = songs(split)
    train = (lambda: songs("train")) if split != "train" and "train" in data else None
    held = (lambda: songs("validation")) if split == "test" and "validation" in data else None
    return EvalData(store, fixed_windows(store), f"split {split}", train, held)


def _held_out(store, parts: dict[str, list[str]], split: str, model: Path):
    """One part of the songs, as fine-tuning parted them; what took no part is as good as held out."""
    from ..data.reading import fingerprint
    from ..data.store import ScoreStore
    from ..evaluation.suite import EvalData
    from ..evaluation.windows import fixed_windows

    place = {mark: name for name, marks in parts.items() for mark in marks}
    songs: dict[str, list] = {}
    for song in store.songs:
        name = place.get(fingerprint(song.score), "test")
        songs.setdefault(name, []).append(replace(song, split=name))
    if split not in songs:
        raise CommandError(f"{model} was fine-tuned on all of these songs: none is left for {split}", "command.input")
    train = (lambda: ScoreStore(songs["train"])) if split != "train" and "train" in songs else None
    held = (lambda: ScoreStore(songs["validation"])) if split == "test" and "validation" in songs else None
    words = "songs that fine-tuning held out" if split == "test" else f"{split} songs of fine-tuning"
    found = ScoreStore(songs[split], store.skipped)
    return EvalData(found, fixed_windows(found), words, train, held)


def songs_of_finetune(model: Path | None) -> dict[str, list[str]] | None:
    """`{split: fingerprints}` of the songs that a checkpoint of `mortm finetune` was made with; None for any other."""
    path = None if model is None else model / "finetune.json"
    if path is None or not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))["fingerprints"]
    except (ValueError, KeyError) as error:
        raise CommandError(f"{path} does not say which songs were held out ({error})", "command.input") from None


def _checked(data, path: Path):
    """The data, if there is anything to measure on."""
    if not data.windows:
        raise CommandError(f"{path} has no song of 16 bars ({data.name}): nothing to measure", "command.input")
    return data


def _read_songs(folder: Path):
    """Every MIDI file below a folder as a song of one corpus; what cannot be read is listed."""
    from ..data.reading import fingerprint
    from ..data.store import Song

    files = find_midi([folder])
    scores, unread = read_files(files)
    refused = {name for name, _ in unread}
    names = [path.relative_to(folder).as_posix() for path in files if str(path) not in refused]
    if not names:
        raise CommandError(f"no MIDI file in {folder} can be read: {unread[0][1]}", "command.input")
    songs = [Song(n, folder.name, n, fingerprint(s), "", None, s) for n, s in zip(names, scores)]
    return songs, unread


def read_files(files) -> tuple[list, list[list[str]]]:
    """(quantised music of the files that have notes, [path, reason] of the others)."""
    from ..models.midi_codec import read_midi

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
