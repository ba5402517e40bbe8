"""Which songs a checkpoint was made with: `songs.json` in its folder.

Design decisions
- Songs are recognised by their notes (`fingerprint`), so a copy under another name or in another key counts too.
- Only songs that were trained on or selected by are listed; any other is as good as one held out.
- The list stays with the user: what is pushed to the Hub is an allow-list that does not name it.

Knows: songs. Must not know: where they come from, models.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..models.errors_mortm import DataError
from .schema import Song
from .song_reading import fingerprint
from .whole_files import write_json


FILE = "songs.json"
USED = ("train", "validation")


def members_of(splits: Mapping[str, Iterable[Song]]) -> dict[str, str]:
    """`{fingerprint: split}` of the songs of `train` and `validation`; what is in both is trained on."""
    return {fingerprint(song.score): name for name in reversed(USED) for song in splits.get(name, ())}


def joined(*parts: Mapping[str, str] | None) -> dict[str, str]:
    """The members of all parts; what any of them was trained on is "train"."""
    every = [item for part in parts if part for item in part.items()]
    return dict(sorted(every, key=lambda item: item[1], reverse=True))  # "train" comes after "validation" and stays


def write_members(folder: str | Path, members: Mapping[str, str]) -> None:
    """State them in a folder, whole or not at all.

    Args:
        folder: of a checkpoint or a run.
        members: `{fingerprint: "train" or "validation"}`.
    """
    found = {name: sorted(mark for mark, split in members.items() if split == name) for name in USED}
    write_json(Path(folder) / FILE, found)


def read_members(folder: str | Path) -> dict[str, str] | None:
    """What `write_members` stated; of a checkpoint inside a run what is stated of the run.

    Args:
        folder: of a checkpoint or a run.

    Returns:
        `{fingerprint: "train" or "validation"}`, or `None` where nothing is stated.

    Raises:
        DataError: the file is damaged.
    """
    folder = Path(folder)
    path = folder / FILE
    if not path.is_file() and (folder.resolve().parent / "recipe.json").is_file():
        path = folder.resolve().parent / FILE
    if not path.is_file():
        return None
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        return {mark: name for name in reversed(USED) for mark in stated[name]}
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f"{path} is damaged: without it the songs that were trained on are unknown", "data.format"
        ) from None
