"""What a checkpoint is measured on: songs of a split, and the fixed windows in them.

Design decisions
- Which songs these are is the business of `data.open`: a pack and a data set have splits, plain files have none, and
  what the checkpoint was made with is left out of what is called test.
- Where no file lists the windows they are the consecutive ones of every song. A window that is listed and not there is
  reported, as a file that cannot be read is.

Knows: songs, fixed windows. Must not know: metrics, models, recipes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..data.checkpoint_songs import read_members
from ..data.manifest import Selection
from ..data.open import open_split
from ..data.score_store import ScoreStore
from ..models.errors_mortm import DataError
from .fixed_windows import GENERATED, GIVEN, Window, fixed_windows, read_windows


@dataclass
class EvalData:
    """What a checkpoint is measured on.

    Attributes:
        songs: of the split.
        windows: the fixed windows in them.
        name: of what is measured on, for reports.
        train: gives the songs of the train split when they are needed, or `None`.
        validation: the same of the validation split.
    """

    songs: ScoreStore
    windows: Sequence[Window]
    name: str = "split test"
    train: Callable[[], ScoreStore] | None = None
    validation: Callable[[], ScoreStore] | None = None

    @cached_property
    def train_songs(self) -> ScoreStore | None:
        """The songs of the train split, read once."""
        return None if self.train is None else self.train()

    @cached_property
    def validation_songs(self) -> ScoreStore | None:
        """The songs of the validation split, read once."""
        return None if self.validation is None else self.validation()


def open_data(
    source: str | os.PathLike,
    split: str | None = None,
    selection: Selection | None = None,
    listed: Path | None = None,
    cache: Path | None = None,
    model: Path | None = None,
) -> EvalData:
    """The songs and fixed windows that a checkpoint is measured on.

    Args:
        source: a training pack, a prepared data set (folder or `owner/name`), MIDI files, a folder or an archive.
        split: "train", "validation" or "test" (the default where there are splits).
        selection: corpora of a pack or a data set; all by default.
        listed: a CSV of the windows to measure on; by default the consecutive ones of every song.
        cache: folder for what is prepared.
        model: folder of the checkpoint, which may say what it was made with.

    Raises:
        DataError: nothing there, no such split, or no song of 16 bars.
    """
    members = read_members(model) if model is not None else None
    try:
        found = open_split(source, split, selection, None if cache is None else cache / "stores", members)
    except (OSError, KeyError) as error:
        raise DataError(f"cannot read {source}: {' '.join(str(error).split())}") from None
    windows, songs = fixed_windows(found.songs) if listed is None else read_windows(listed), found.songs
    names = set(songs.labels("path"))
    for window in windows:
        if window.path not in names:
            stop = window.start + GIVEN + GENERATED
            songs.skipped.append((window.path, f"bars {window.start} to {stop} are listed, not there"))
    windows = [window for window in windows if window.path in names]
    if listed is not None and not windows:
        raise DataError(f"no song of {listed.name} is in {source}: give a recipe for this data")
    if members and split in (None, "test"):
        found = found.without(members)
        names = set(found.songs.labels("path"))
        windows = [window for window in windows if window.path in names]
    if not windows:
        raise DataError(f"{source} has no song of 16 bars ({found.name}): nothing to measure")
    return EvalData(found.songs, windows, found.name, found.train, found.validation)
