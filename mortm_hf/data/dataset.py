"""Data sets of songs: opening, loading, pushing to the Hub.

Design decisions
- On disk a data set is what `datasets` writes (`save_to_disk`), on the Hub Parquet files with a card: plain
  `datasets.load_from_disk` and `datasets.load_dataset` read both, without any code of ours.
- `load_songs` gives the songs as the rest of the package reads them. They stay on disk, memory-mapped.

Knows: `datasets`, `huggingface_hub`. Must not know: tokens, models, training.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from pathlib import Path

from ..models.errors_mortm import DataError
from .midi_sources import SPLITS
from .schema import FORMAT_VERSION, LABELS, SongRows
from .sources import kind_of, load_dataset
from .whole_files import read_json


def open_dataset(source, revision: str | None = None):
    """Open a data set of songs.

    Args:
        source: a folder that `build_dataset` made, `owner/name` of the Hub, or a `datasets` object.
        revision: branch, tag or commit on the Hub; a commit pins the data. By default the newest.

    Returns:
        `datasets.DatasetDict`, a song a row.

    Raises:
        DataError: not there, or no data set of songs of this version.
    """
    from datasets import Dataset, DatasetDict, load_from_disk

    kind = kind_of(source)
    if kind == "object":
        found = source
    elif kind == "saved":
        _check_version(Path(source))
        found = load_from_disk(str(source))
    elif kind == "hub":
        found = load_dataset(source, revision=revision)
    elif Path(source).is_dir():
        raise DataError(f"{source} is no data set: prepare one with `mortm data build SOURCE -o {source}`")
    else:
        raise DataError(f"{source} is not there: give a prepared folder or a data set of the Hub (owner/name)")
    if isinstance(found, Dataset):
        found = DatasetDict({_only_split(found): found})
    for part in found.values():
        missing = [name for name in (*LABELS, "note_pitch") if name not in part.column_names]
        if missing:
            raise DataError(
                f"{source} is no data set of songs (no column {missing[0]}): prepare it with `mortm data build`",
                "data.column",
            )
    return found


def _check_version(path: Path) -> None:
    version = read_json(path / "report.json").get("version", FORMAT_VERSION)  # saved by hand: the columns decide
    if version != FORMAT_VERSION:
        raise DataError(f"{path} is of version {version}, not {FORMAT_VERSION}: build it again", "data.format")


def _only_split(data) -> str:
    names = set(data.unique("split")) if "split" in data.column_names else set()
    return names.pop() if len(names) == 1 else "train"


def song_rows(source, split: str | None = None, revision: str | None = None) -> SongRows:
    """The songs of a data set as a sequence.

    Args:
        source: as `open_dataset` takes it.
        split: "train", "validation" or "test"; by default all, in this order.
        revision: as `open_dataset` takes it.

    Returns:
        `SongRows`: item `i` is the `Song` of row `i`.

    Raises:
        DataError: no data set of songs, or no such split.
    """
    from datasets import concatenate_datasets

    data = open_dataset(source, revision)
    if split is None:
        return SongRows(concatenate_datasets([data[s] for s in dict.fromkeys((*SPLITS, *data)) if s in data]))
    if split not in data:
        raise DataError(
            f"{source} has no split {split!r}, only {', '.join(data)}: `mortm data build` draws larger ones by "
            "--validation and --test, or takes those of a metadata.csv",
            "data.option",
        )
    return SongRows(data[split])


def read_report(path: str | Path) -> dict:
    """`report.json` of a prepared data set; empty where there is none.

    Args:
        path: folder of a data set, or anything else that `open_dataset` takes.

    Raises:
        json.JSONDecodeError: the file is damaged.
    """
    file = Path(path) / "report.json" if isinstance(path, (str, os.PathLike)) else None
    return json.loads(file.read_text(encoding="utf-8")) if file is not None and file.is_file() else {}


def save_splits(splits: dict, folder: Path) -> None:
    """Write splits as `datasets.load_from_disk` reads them, without progress bars.

    Args:
        splits: `{split: datasets.Dataset}`.
        folder: the folder to make.
    """
    from datasets import DatasetDict
    from datasets.utils import disable_progress_bars, enable_progress_bars, is_progress_bar_enabled

    shown = is_progress_bar_enabled()
    disable_progress_bars()
    try:
        DatasetDict(splits).save_to_disk(str(folder))
    finally:
        if shown:
            enable_progress_bars()


def write_report(
    folder: Path, plan: dict, files: int, splits: dict, skipped: list[dict[str, str]], ineffective: dict | None = None
) -> None:
    """Write `report.json` and `skipped.csv` into the folder of a data set of songs.

    Args:
        folder: of the data set.
        plan: what decided its content, with its `digest`.
        files: how many files were read.
        splits: `{split: datasets.Dataset}` of songs, which are counted.
        skipped: `{"file", "code", "message"}` of each file that could not be used.
        ineffective: labels that had no effect, by kind.
    """
    counts = {}
    for name, data in splits.items():
        table = data.data.table
        counts[name] = {
            "songs": data.num_rows,
            "notes": int(sum(len(c.flatten()) for c in table["note_pitch"].chunks)),
            "bars": int(sum(len(c.flatten()) for c in table["bar_length"].chunks)),
            "corpora": dict(sorted(Counter(table["corpus"].to_pylist()).items())),
            "chords": dict(sorted(Counter(v or "none" for v in table["chord_source"].to_pylist()).items())),
            "keys": dict(sorted(Counter(v or "none" for v in table["key_source"].to_pylist()).items())),
        }
    report = {
        "version": FORMAT_VERSION,
        "digest": plan["digest"],
        "plan": {k: v for k, v in plan.items() if k != "digest"},
        "files": files,
        "splits": counts,
        **(ineffective or {}),
        "skipped": skipped,
    }
    (folder / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with open(folder / "skipped.csv", "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, ["file", "code", "message"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(skipped)


CARD = """---
pretty_name: {title}
tags:
- music
- midi
- symbolic-music
- mortm
size_categories:
- {size}
---

# {title}

Songs as quantised notes, bar by bar, prepared by `mortm_hf` ({files} MIDI files, {skipped} of them left out).
One row is one song; nothing in it is a token.

| split | songs | bars | notes | corpora |
|---|---|---|---|---|
{rows}

```python
from datasets import load_dataset
from mortm_hf import load_songs

songs = load_songs("{repo}", split="train")      # songs[0].score: notes, bars, chords
rows = load_dataset("{repo}")                     # the plain columns, no code needed
```

## Columns
`path`, `corpus`, `song_id`, `cluster` (shared by variants and duplicates), `split`, `genre`, `variant`, `licence`,
`key`, `key_source`, `chord_source` ("annotation", "file" or "estimate"), `names` and `program` (General MIDI, 128 for
drums) of the tracks. Time is in ticks, 24 to the quarter.
`bar_length` (ticks), `bar_meter` and `bar_tempo` (values of the token table; -1: unknown tempo).
`note_track`, `note_bar`, `note_tick` (onset inside the bar), `note_pitch`, `note_duration` (ticks), `note_velocity`.
`chord_bar`, `chord_tick`, `chord_root`, `chord_quality`, `chord_bass` (values of the token table); a chord holds until
the next one.

## Licences
{licences}
"""


def dataset_card(source, repo: str, title: str | None = None) -> str:
    """The text of a data set card: counts, columns, how to load it, licences as the songs state them.

    Args:
        source: a data set of songs, as `open_dataset` takes it.
        repo: `owner/name` that the card shows how to load.
        title: by default the name.
    """
    data = open_dataset(source)
    report = read_report(source)
    rows, licences, songs = [], {}, 0
    for split, part in data.items():
        view = SongRows(part)
        songs += len(view)
        bars, notes = int(view.lengths("bar_length").sum()), int(view.lengths("note_pitch").sum())
        corpora = sorted(set(view.labels("corpus")))
        rows.append(f"| {split} | {len(view)} | {bars} | {notes} | {', '.join(corpora[:12])} |")
        for corpus, licence in zip(view.labels("corpus"), view.labels("licence")):
            licences.setdefault((corpus, licence or "not stated"), 0)
            licences[corpus, licence or "not stated"] += 1
    size = next(
        name
        for limit, name in (
            (1e3, "n<1K"),
            (1e4, "1K<n<10K"),
            (1e5, "10K<n<100K"),
            (1e6, "100K<n<1M"),
            (1e18, "1M<n<10M"),
        )
        if songs < limit
    )
    return CARD.format(
        title=title or repo.rpartition("/")[2],
        size=size,
        files=report.get("files", songs),
        skipped=len(report.get("skipped", ())),
        rows="\n".join(rows),
        repo=repo,
        licences="\n".join(f"- {corpus}: {licence} ({n} songs)" for (corpus, licence), n in sorted(licences.items())),
    )


def push_dataset(source, repo: str, *, private: bool = False, token: str | None = None, title: str | None = None):
    """Push a prepared data set to the Hub as Parquet, with a card and the report of its preparation.

    Args:
        source: a data set of songs, as `open_dataset` takes it.
        repo: `owner/name` to push to.
        private: make the repository private.
        token: of the Hub; by default the one that is logged in.
        title: of the card; by default the name.

    Returns:
        The URL of the data set.

    Raises:
        DataError: `repo` is no `owner/name`, or the Hub refuses it (`data.network`).
    """
    from huggingface_hub import DatasetCard, HfApi

    if repo.count("/") != 1:
        raise DataError(f"{repo!r} is no repository: write owner/name", "data.option")
    data = open_dataset(source)
    text = dataset_card(source, repo, title)
    try:
        data.push_to_hub(repo, private=private, token=token)
        api = HfApi(token=token)
        # `datasets` has written the files of each split into the card's header: keep it, add ours.
        header = DatasetCard.load(repo, token=token, ignore_metadata_errors=True).data.to_dict()
        card = DatasetCard(text)
        for name, value in header.items():
            if name not in card.data.to_dict():
                setattr(card.data, name, value)
        card.push_to_hub(repo, token=token, repo_type="dataset", commit_message="Add the card")
        if isinstance(source, (str, os.PathLike)):
            for name in ("report.json", "skipped.csv"):
                file = Path(source) / name
                if file.is_file():
                    api.upload_file(path_or_fileobj=str(file), path_in_repo=name, repo_id=repo, repo_type="dataset")
    except Exception as error:  # refused, no token, no network: a dozen kinds
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"cannot push {source} to {repo}: {reason}", "data.network") from None
    return f"{api.endpoint}/datasets/{repo}"
