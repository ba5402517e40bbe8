"""Files and folders that appear whole or not at all.

Design decisions
- A file is written under a name of this process beside its place and renamed: neither a reader nor a run that goes on
  after a kill ever sees half of it. The temporary name keeps the suffix, which numpy would otherwise add.
- A folder that takes long is made in `NAME.partial/`. `plan.json` in it states what decides the content; a partial
  folder of another plan is thrown away, a finished one of the same plan is simply opened.

Knows: paths, JSON, Arrow tables. Must not know: songs, tokens.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow as pa

from ..models.errors_mortm import DataError


def replace_file(path: str | Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place and rename it.

    Args:
        path: the file to make or replace.
        write: called with the temporary path, which it fills.
    """
    path = Path(path)
    partial = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()


def write_json(path: str | Path, content, indent: int | None = None) -> None:
    """Write JSON, whole or not at all.

    Args:
        path: the file to make or replace.
        content: what `json.dumps` takes.
        indent: spaces a level; by default all on one line.
    """
    replace_file(path, lambda partial: partial.write_text(json.dumps(content, indent=indent), encoding="utf-8"))


def read_json(path: str | Path) -> dict:
    """The object in a JSON file; empty where there is none, or it is damaged."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_arrow(path: str | Path, table: pa.Table) -> None:
    """Write an Arrow stream that `datasets.Dataset.from_file` reads, whole or not at all.

    Args:
        path: the file to make or replace.
        table: its content.
    """

    def write(partial: Path) -> None:
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)

    replace_file(path, write)


class FolderInSteps:
    """A folder that is made step by step in `NAME.partial/` and then appears in one rename.

    Args:
        target: the folder to make.
        plan: what decides its content, with a `digest` of all of it.
        stated: name of the JSON file of the finished folder that repeats the digest.
    """

    def __init__(self, target: str | Path, plan: dict, stated: str):
        self.target, self.plan, self.stated = Path(target), plan, stated
        self.work = self.target.with_name(f"{self.target.name}.partial")

    @property
    def finished(self) -> bool:
        """Whether the folder is there and of this plan."""
        return read_json(self.target / self.stated).get("digest") == self.plan["digest"]

    def begin(self, overwrite: bool, other: str) -> Path:
        """Make the partial folder, or go on with the one that is there.

        Args:
            overwrite: a finished folder of another plan may be replaced.
            other: what the message calls a finished folder of another plan.

        Returns:
            The partial folder.

        Raises:
            DataError: `data.output`, the place is taken or cannot be written.
        """
        known = bool(read_json(self.target / self.stated))
        if self.target.exists() and not (known and overwrite):
            if any(self.target.iterdir() if self.target.is_dir() else [self.target]):
                what = f"{other}: choose another folder, or overwrite it (--overwrite)"
                what = what if known else "something else: choose another folder"
                raise DataError(f"{self.target} holds {what}", "data.output")
        if self.work.exists() and read_json(self.work / "plan.json").get("digest") != self.plan["digest"]:
            shutil.rmtree(self.work)
        try:
            self.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"cannot write {self.work}: {error.strerror or error}", "data.output") from None
        write_json(self.work / "plan.json", self.plan, indent=1)
        return self.work

    def finish(self, write: Callable[[Path], object]) -> None:
        """Let `write` fill an empty folder of the given path, and put it in place of the target."""
        ready = self.work / "ready"
        if ready.exists():
            shutil.rmtree(ready)
        write(ready)
        if self.target.exists():
            self.target.rename(self.work / "replaced")
        ready.rename(self.target)
        shutil.rmtree(self.work)
