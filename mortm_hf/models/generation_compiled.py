"""Where compiled code comes from: numba, and a folder that keeps what it compiled.

Design decisions
- Compiling takes seconds, so its result is kept. numba keeps it beside the source file, but that folder may be
  read-only (an installed package) or new every time (a checkpoint that carries its code). So the source is written
  once, named by its own hash, into the user's cache folder and imported from there: one copy, compiled once, for the
  package and all checkpoints of the same code.
- Nothing of numba is imported before the first use: it is optional, and importing it takes a fifth of a second.

Knows: files, numba's cache. Must not know: what is compiled.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

from transformers.utils import logging


logger = logging.get_logger(__name__)


def missing() -> str | None:
    """Why nothing can be compiled here, in a line, or None."""
    if importlib.util.find_spec("numba") is None:
        return "fast decoding needs numba (pip install numba)"
    return None


def cache_folder() -> Path:
    """The user's folder for compiled code, made if need be; a temporary one where that cannot be written."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or ("~/Library/Caches" if sys.platform == "darwin" else "~/.cache")
    folder = Path(base).expanduser() / "mortm_hf" / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        # private and new: what a stranger could write to must not be loaded
        return Path(tempfile.mkdtemp(prefix="mortm_hf-"))


def load_compiled(name: str):
    """The module of the sibling file `<name>.py`, as kept in the cache folder; the same one at every call.

    Args:
        name: of a file that imports nothing of the package.

    Raises:
        ImportError: numba is not installed.
    """
    source = Path(__file__).with_name(f"{name}.py").read_bytes()
    kept = f"{name}_{hashlib.sha256(source).hexdigest()[:16]}"
    module = sys.modules.get(kept)
    if module is None:
        path = cache_folder() / f"{kept}.py"
        if not path.is_file() or path.read_bytes() != source:
            part = path.with_suffix(f".{os.getpid()}")
            part.write_bytes(source)
            part.replace(path)
        spec = importlib.util.spec_from_file_location(kept, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[kept] = module  # compiled code is found again by this name
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[kept]
            raise
    return module


def announce(function) -> None:
    """Logs that compiling begins, where nothing of `function` (numba's) is kept yet."""
    folder = function.stats.cache_path
    module = function.py_func.__module__
    if not function.signatures and not any(Path(folder).glob(f"{module}.{function.py_func.__name__}-*.nbi")):
        logger.warning("Compiling the decoder for this machine, once: about 15 s. It is kept in %s.", folder)


__all__ = ["announce", "cache_folder", "load_compiled", "missing"]
