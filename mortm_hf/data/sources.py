"""What a user names, and the MIDI in it: the rules by which every command and function recognises its input.

| kind (`kind_of`) | recognised by | MIDI is read (`open_sources`) from |
|---|---|---|
| midi | a file `.mid`, `.midi`, `.kar` | the file, with the chord file beside it |
| archive | a file `.zip`, `.tar`, `.tar.xz`, `.tar.gz`, `.tgz`, `.tar.bz2` | every MIDI file in it |
| table | a file `.parquet`, `.arrow`, `.jsonl`, `.json` | its column of MIDI bytes |
| pack | a folder with a `manifest.csv` | the files that the manifest lists, in archives or beside it |
| saved | a folder that `datasets` saved, as `mortm data build` does | its column of MIDI bytes |
| folder | any other folder | all MIDI files and archives below it; tables where there is neither |
| hub | `owner/name`, with nothing of that name here | its column of MIDI bytes |
| object | a `datasets.Dataset` or `DatasetDict` | its column of MIDI bytes |
| other, missing | a file of another kind, nothing at all | refused |

Design decisions
- The first row that fits decides. What a data set holds (songs, or MIDI bytes to prepare) is a question of its
  columns, not of its kind.
- A path object never names a data set of the Hub.

Knows: files, archives, `datasets`. Must not know: what is in a MIDI file, how songs are stored.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..models.errors_mortm import DataError
from .manifest import Selection
from .midi_sources import (
    MIDI_SUFFIXES,
    TAR_SUFFIXES,
    DatasetSource,
    FilesSource,
    FolderSource,
    PackSource,
    TarSource,
    ZipSource,
)


_FILES = {
    "midi": MIDI_SUFFIXES,
    "archive": (".zip", *TAR_SUFFIXES),
    "table": (".parquet", ".arrow", ".jsonl", ".json"),
}


def kind_of(source) -> str:
    """The kind of what a user names: a row of the table above."""
    if not isinstance(source, (str, os.PathLike)):
        return "object"
    path = Path(source)
    if path.is_dir():
        if (path / "manifest.csv").is_file():
            return "pack"
        saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
        return "saved" if saved else "folder"
    if path.is_file():
        name = path.name.lower()
        return next((kind for kind, suffixes in _FILES.items() if name.endswith(suffixes)), "other")
    named = isinstance(source, str) and source.count("/") == 1 and all(source.split("/")) and source[0] != "."
    return "hub" if named else "missing"


def is_saved_dataset(path: str | Path) -> bool:
    """Whether a folder was written by `datasets`' `save_to_disk`."""
    return kind_of(path) == "saved"


def open_sources(
    source,
    *,
    selection: Selection | None = None,
    split_from_folders: bool = False,
    column: str | None = None,
    config: str | None = None,
    revision: str | None = None,
) -> list:
    """The sources of MIDI in what a user names, in a fixed order.

    Args:
        source: a path, a Hub data set (`owner/name`), a `datasets` object, or a list of these.
        selection: corpora, variants and licences of a training pack; all by default.
        split_from_folders: the names of the folders are the splits.
        column: of the MIDI bytes in data sets; by default found by its name.
        config: configuration of data sets that are loaded by name (a folder of tables has configurations too).
        revision: branch, tag or commit of data sets of the Hub; by default the newest.

    Returns:
        Sources of `midi_sources`, with at least one MIDI file in all.

    Raises:
        DataError: it does not exist, there is no MIDI in it, or an option does not apply to it.
    """
    every = source if isinstance(source, (list, tuple)) else [source]
    if revision and "hub" not in map(kind_of, every):
        raise DataError(f"{source} is no data set of the Hub (owner/name): only those have revisions", "data.option")
    found = []
    for one in every:
        found += _open_one(one, selection, split_from_folders, column, {"name": config, "revision": revision})
    files = [f for f in found if isinstance(f, Path)]
    sources = [f for f in found if not isinstance(f, Path)]
    if files:
        sources.append(FilesSource(files, split_from_folders))
    if selection is not None and selection.corpora and not any(isinstance(s, PackSource) for s in sources):
        raise DataError(f"{source} is no training pack (manifest.csv): its corpora cannot be chosen", "data.option")
    if config and not any(isinstance(s, DatasetSource) for s in sources):
        raise DataError(f"{source} is no data set with MIDI bytes: only those have configurations", "data.option")
    if not sum(len(s) for s in sources):
        raise DataError(f"no MIDI file in {source}: expected {', '.join(MIDI_SUFFIXES)}")
    return sources


def _open_one(source, selection, split_from_folders: bool, column: str | None, hub: dict[str, str | None]) -> list:
    """Sources of one thing that is named; a MIDI file stays a path, to be read together with its like."""
    kind = kind_of(source)
    if kind == "object":
        return [DatasetSource(source, column=column)]
    if kind == "hub":
        return [DatasetSource(load_dataset(source, **hub), source.rpartition("/")[2], column)]
    path = Path(source)
    if kind == "midi":
        return [path]
    if kind == "archive":
        archive = ZipSource if path.name.lower().endswith(".zip") else TarSource
        return [archive(path, split_from_folders)]
    if kind == "table":
        form = {".parquet": "parquet", ".arrow": "arrow"}.get(path.suffix, "json")
        return [DatasetSource(load_dataset(form, data_files=str(path)), path.stem, column)]
    if kind == "pack":
        try:
            return [PackSource.select(path, selection)]
        except ValueError as error:
            manifest = path / "manifest.csv"
            reason = str(error).removeprefix(f"{manifest}: ")
            raise DataError(f"cannot read {manifest}: {reason}", "data.column") from None
    if kind == "saved":
        from datasets import load_from_disk

        return [DatasetSource(load_from_disk(str(path)), path.name, column)]
    if kind == "folder":
        inside = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        folder = FolderSource(path, split_from_folders)
        archives = [p for p in inside if p.name.lower().endswith(_FILES["archive"])]
        tables = any(p.suffix in (".parquet", ".arrow") for p in inside)
        if tables and not len(folder) and not archives:
            return [DatasetSource(load_dataset(str(path), name=hub["name"]), path.name, column)]
        below = [a for p in archives for a in _open_one(p, selection, split_from_folders, column, hub)]
        return [*([folder] if len(folder) or folder.unmatched else []), *below]
    if kind == "other":
        raise DataError(f"{path} is neither MIDI nor an archive nor a table: expected .mid, .zip, .tar.xz or .parquet")
    raise DataError(f"{source} is not there: give a folder of MIDI, an archive or a data set of the Hub (owner/name)")


def load_dataset(path: str, **options):
    """`datasets.load_dataset`, whose dozen kinds of errors become ours.

    Args:
        path: name of a data set of the Hub, of a format, or a folder of tables.
        options: as `datasets.load_dataset` takes them.

    Raises:
        DataError: not found, no network, not allowed, or no configuration named where there are several.
    """
    import datasets

    try:
        return datasets.load_dataset(path, **options)
    except Exception as error:
        reason = " ".join(str(error).partition("Example of usage")[0].split())[:200]
        if "Config name is missing" in reason or "BuilderConfig" in reason:
            raise DataError(f"{path}: {reason} (name one with --config)", "data.option") from None
        at = f" at revision {options['revision']}" if options.get("revision") else ""
        raise DataError(f"cannot load the data set {path}{at}: {reason}", "data.network") from None
