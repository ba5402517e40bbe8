"""Files of both sides: upstream's `.pth` and JSON, weights of our folders, folders that appear whole.

Design decisions
- `torch.load(weights_only=True)` is the only reader: code hidden in a pickle is never run, and says so.
- What comes back are plain CPU tensors under upstream's own names; a wrapper (`{"state_dict": ...}`) or a common
  prefix (`module.`) is taken off and remembered, so that the way back can put it on again.
- Everything unusual in a file is refused here, so that the rest may rely on it.
- A folder is written under a temporary name beside its place and renamed when all of it is there.

Knows: files and folders. Must not know: what a tensor is for.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..models.errors_mortm import ConversionError


WRAPPERS = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")
# what a converted folder holds for the way back, and the adapter where LoRA is kept
PROVENANCE, ASIDE, ADAPTER = "upstream.json", "upstream_aside.safetensors", "adapter"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32)


@dataclass(frozen=True)
class Checkpoint:
    """A state dict of upstream's.

    Attributes:
        path: the file it was read from.
        tensors: tensors on the CPU by upstream's names, without `prefix`.
        sha256: hash of the file, hexadecimal.
        prefix: what every name began with ("module." and the like).
        wrapper: the entry of the file that held the state dict, or None.
    """

    path: Path
    tensors: dict[str, torch.Tensor]
    sha256: str
    prefix: str = ""
    wrapper: str | None = None


def file_hash(path) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Args:
        path: the file.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """The state dict in a `.pth` file.

    Args:
        path: the file.

    Returns:
        Its tensors, and what was taken off around them.

    Raises:
        ConversionError: `conversion.file`: missing, truncated, not written by torch, or with more than tensors in it.
    """
    path = Path(path)
    try:
        digest = file_hash(path)
    except OSError as error:
        raise ConversionError(f"cannot read {path}: {error.strerror or error}") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if any(sign in str(error) for sign in ("nsupported global", "nsupported class", "not an allowed")):
            raise ConversionError(
                f"{path} holds more than tensors and was not loaded, because a pickle can run code. If you trust its "
                "author, let them save it anew with torch.save(model.state_dict(), FILE)"
            ) from None
        raise ConversionError(f"{path} is no checkpoint of torch, or damaged: {_first_line(error)}") from None
    except Exception as error:  # zip, pickle and storage errors of every kind come from a damaged file
        raise ConversionError(f"{path} is no checkpoint of torch, or damaged: {_first_line(error)}") from None
    wrapper = None
    if isinstance(content, dict):
        for name in WRAPPERS:
            if isinstance(content.get(name), dict):
                wrapper, content = name, content[name]
                break
    if not isinstance(content, dict) or not content:
        raise ConversionError(
            f"{path} holds a {type(content).__name__}, not a state dict: save it with "
            "torch.save(model.state_dict(), FILE)"
        )
    tensors = {}
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise ConversionError(
                f"{path}: the entry {name!r} is a {type(tensor).__name__}, not a tensor: give the model's state dict "
                "alone (torch.save(model.state_dict(), FILE))"
            )
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.dtype not in DTYPES or tensor.is_meta:
            raise ConversionError(f"{path}: {name} is {tensor.dtype} ({tensor.layout}), which no MORTM has")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ConversionError(
                f"{path}: {name} holds NaN or infinite numbers: take a checkpoint from before training broke down"
            )
        tensors[name] = tensor.detach().contiguous()
    prefix = ""
    for known in PREFIXES:
        if all(name.startswith(known) for name in tensors):
            prefix += known
            tensors = {name[len(known) :]: tensor for name, tensor in tensors.items()}
    return Checkpoint(path, tensors, digest, prefix, wrapper)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0]}"[:200]


def read_json(path: str | os.PathLike, what: str, code: str = "conversion.config") -> dict:
    """A JSON object.

    Args:
        path: the file.
        what: what it is to the user; stands in messages.
        code: code of the error.

    Raises:
        ConversionError: `code`: missing, not JSON, or no object.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise ConversionError(f"cannot read the {what} {path}: {error}", code) from None
    if not isinstance(content, dict):
        raise ConversionError(f"the {what} {path} is a JSON {type(content).__name__}, not an object", code)
    return content


def write_checkpoint(path: str | os.PathLike, tensors: dict[str, torch.Tensor], wrapper: str | None = None) -> None:
    """A state dict as upstream saves it (each tensor with storage of its own).

    Args:
        path: the `.pth` file to write.
        tensors: tensors by upstream's names.
        wrapper: the entry of the file that shall hold them; None: they are the file.
    """
    state = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    torch.save(state if wrapper is None else {wrapper: state}, path)


def read_weights(folder: Path, stem: str = "model") -> dict[str, torch.Tensor]:
    """All tensors of a saved folder, sharded or not.

    Args:
        folder: a folder that `save_pretrained` wrote.
        stem: name of the weights without suffix.

    Raises:
        ConversionError: `conversion.folder`: there are none, or they cannot be read.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        names = sorted(
            set(read_json(index, "index of the weights", "conversion.folder").get("weight_map", {}).values())
        )
    else:
        names = [f"{stem}.safetensors"]
    state = {}
    for name in names:
        try:
            state |= load_file(folder / os.path.basename(name))
        except (OSError, SafetensorError) as error:
            raise ConversionError(f"cannot read the weights {folder / name}: {error}", "conversion.folder") from None
    return state


@contextmanager
def new_folder(output: str | os.PathLike, overwrite: bool = False):
    """A temporary folder beside `output` that is renamed to it when the block ends, and removed if it fails.

    Args:
        output: the folder to make.
        overwrite: replace it if it exists.

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
