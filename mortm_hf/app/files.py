"""Input and output files of the commands.

Design decisions
- An output is staged under a temporary name in its own folder *before* the work starts, so that a folder that cannot
  be written is found at once, and renamed when everything has succeeded: a command writes all of its files or none.
- What a user can mend is a `CommandError` (or another error with a `code`): one line, exit code 2.

Knows: paths. Must not know: music.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from ..models.errors_mortm import CommandError


MIDI_SUFFIXES = (".mid", ".midi", ".kar")


class Outputs:
    """The files a command writes: all of them appear, or none.

    Args:
        inputs: files that are read and must not be overwritten.

    ```python
    with Outputs() as out:
        target = out.stage("song.mid")     # raises CommandError now if it cannot be written later
        ...                                # long work
        target.write_bytes(data)
    ```                                    # renamed here; an exception removes what was staged
    """

    def __init__(self, inputs=()):
        self._inputs = {os.path.realpath(path) for path in inputs}
        self._staged: dict[Path, Path] = {}

    def stage(self, path: str | os.PathLike) -> Path:
        """The temporary file that will become `path`; it has the same suffix.

        Args:
            path: the file that shall appear.

        Raises:
            CommandError: it could not be written later (`command.output`).
        """
        path = Path(path)
        real = os.path.realpath(path)
        if real in self._inputs:
            raise CommandError(f"{path} is the input; choose another output", "command.output")
        if path.is_dir():
            raise CommandError(f"{path} is a folder; name a file in it", "command.output")
        if any(os.path.realpath(other) == real for other in self._staged):
            raise CommandError(f"{path} is named for two outputs", "command.output")
        folder = path.parent
        if not folder.is_dir():
            raise CommandError(f"cannot write {path}: the folder {folder} does not exist", "command.output")
        try:
            handle, name = tempfile.mkstemp(prefix=f".{path.stem[:40]}-", suffix=path.suffix, dir=folder)
        except OSError as error:
            raise CommandError(f"cannot write {path}: {error.strerror or error}", "command.output") from None
        os.close(handle)
        self._staged[path] = Path(name)
        return self._staged[path]

    def __enter__(self) -> Outputs:
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                umask = os.umask(0)
                os.umask(umask)
                for path, staged in self._staged.items():
                    staged.chmod(0o666 & ~umask)  # mkstemp makes files private
                    os.replace(staged, path)
        finally:
            for staged in self._staged.values():
                staged.unlink(missing_ok=True)


def write_json(path: Path, content) -> None:
    """Write indented JSON with a closing newline.

    Args:
        path: the file.
        content: plain JSON types.
    """
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def find_midi(paths) -> list[Path]:
    """The files named, and every MIDI file below the folders named, sorted within each folder; no file twice.

    Args:
        paths: files and folders.

    Raises:
        CommandError: a folder that cannot be listed or holds no MIDI file (`command.input`).
    """
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        inside = [path]
        if path.is_dir():
            try:
                inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in MIDI_SUFFIXES and p.is_file())
            except OSError as error:  # a folder that may not be read, or that vanished meanwhile
                raise CommandError(f"cannot list {path}: {error.strerror or error}", "command.input") from None
            if not inside:
                raise CommandError(f"no MIDI file in the folder {path}", "command.input")
        for file in inside:
            found.setdefault(os.path.realpath(file), file)
    return list(found.values())
