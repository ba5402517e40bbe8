"""Output folders that appear whole or not at all.

Knows: paths. Must not know: what is written.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

from ..models.errors_mortm import ConversionError


@contextmanager
def new_folder(output: str | os.PathLike, overwrite: bool = False):
    """A temporary folder beside `output` that is renamed to it when the block ends, and removed if it fails.

    Raises:
        ConversionError: `conversion.output`: it exists (and is not empty) without `overwrite`, or cannot be written.
    """
    output = Path(os.path.abspath(output))
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise ConversionError(f"{output} exists and is no folder: choose another output", "conversion.output")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise ConversionError(f"{output} is not empty: choose another folder or --overwrite it", "conversion.output")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".tmp", dir=output.parent))
    except OSError as error:
        raise ConversionError(f"cannot write {output}: {error.strerror or error}", "conversion.output") from None
    try:
        yield staged
        try:
            os.chmod(staged, 0o777 & ~_umask())
            if output.is_dir():
                old = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".old", dir=output.parent))
                os.replace(output, old)
                try:
                    os.replace(staged, output)
                except OSError:
                    os.replace(old, output)
                    raise
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.replace(staged, output)
        except OSError as error:
            raise ConversionError(f"cannot write {output}: {error.strerror or error}", "conversion.output") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
