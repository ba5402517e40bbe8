"""Hub folder -> upstream's files: state dict, JSON options, token table.

Design decisions
- The folder's own `upstream.json` (or that of the folder it was trained from, `like`) says which names, types and
  unread tensors upstream expects; an untouched folder gives back the same state dict, bit for bit, in the same order.
- Numbers are narrowed to upstream's types (bf16 attention); how many that changes is reported, not hidden.

Knows: the table of names, saved folders. Must not know: tokens' meaning.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from . import lora as lora_tools
from .anatomy import Anatomy
from .checkpoint import ADAPTER, ASIDE, PROVENANCE, read_json, write_checkpoint
from .errors import ConversionError
from .mapping import layout_of, to_upstream
from .output import new_folder


@dataclass
class ExportReport:
    """`rounded`: tensors whose numbers the narrower type of upstream changed; `notes` for the reader."""

    kind: str
    tensors: int
    rounded: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_weights(folder: Path, stem: str = "model") -> dict[str, torch.Tensor]:
    """All tensors of a saved folder, sharded or not.

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


def export_upstream(
    folder: str | os.PathLike,
    output: str | os.PathLike,
    like: str | os.PathLike | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """A converted folder, trained further or not -> `model.pth`, `config.json` and `vocab_list.json` in `output`.

    Args:
        like: the converted folder that this one was trained from, where it has no `upstream.json` itself.

    Raises:
        ConversionError: `conversion.folder`, `conversion.lora`, `conversion.output`; nothing is written then.
    """
    folder = Path(folder)
    origin = Path(like) if like is not None else folder
    if not (origin / PROVENANCE).is_file():
        raise ConversionError(
            f"{origin} has no {PROVENANCE}: name the converted folder it was trained from with --like",
            "conversion.folder",
        )
    provenance = read_json(origin / PROVENANCE, "provenance", "conversion.folder")
    try:
        known = provenance["anatomy"]
        facts = Anatomy(**known | {"versions": tuple(known["versions"]), "lora": tuple(known["lora"])})
        dtypes, options, kept_lora = provenance["tensors"], dict(provenance["options"]), provenance["lora"] == "kept"
        layout = layout_of(facts, balancing=provenance["balancing"])
        prefix, wrapper, vocab = provenance["prefix"], provenance["wrapper"], provenance["vocab_list"]
    except (KeyError, TypeError) as error:
        raise ConversionError(f"{origin / PROVENANCE} is damaged: {error}", "conversion.folder") from None
    tensors, report = {}, ExportReport(facts.kind, 0)
    for part, groups in layout.parts.items():
        made = to_upstream(groups, read_weights(folder / part))
        differ = [name for name in made if name in tensors and not torch.equal(made[name], tensors[name])]
        if differ:
            raise ConversionError(
                f"the policy and the value model of {folder} have different layers ({differ[0]}, ...), upstream's "
                "ActorCritic has one set for both: export the policy alone, or train with shared layers",
                "conversion.folder",
            )
        tensors |= made
    if kept_lora:
        if not (folder / ADAPTER).is_dir():
            raise ConversionError(f"{folder} has no {ADAPTER}/ with the LoRA factors", "conversion.folder")
        tensors |= lora_tools.from_adapter(layout.parts[""], read_weights(folder / ADAPTER, "adapter_model"))
    elif facts.lora:
        options |= {k: False for k in ("use_lora", "use_attn_lora", "use_gate_lora", "use_ffn_lora") if k in options}
        report.notes.append("the LoRA deltas are merged: upstream's options are written without LoRA")
    if (origin / ASIDE).is_file():
        tensors |= load_file(origin / ASIDE)
    if options.get("vocab_size") != tensors["embedding.weight"].shape[0]:
        options["vocab_size"] = tensors["embedding.weight"].shape[0]
        report.notes.append("the token table has grown: vocab_size and vocab_list.json are the new ones")
        own = read_json(folder / "vocab.json", "token table", "conversion.folder")
        vocab = own.get("vocab", own)
    result = {}
    for name in [*(n for n in dtypes if n in tensors), *(n for n in tensors if n not in dtypes)]:
        dtype = getattr(torch, dtypes.get(name, "float32"))
        result[prefix + name] = tensors[name].to(dtype).contiguous()
        if not torch.equal(result[prefix + name].to(tensors[name].dtype), tensors[name]):
            report.rounded.append(name)
    report.tensors = len(result)
    with new_folder(output, overwrite) as staged:
        write_checkpoint(staged / "model.pth", result, wrapper)
        for name, content in (("config.json", options), ("vocab_list.json", vocab)):
            (staged / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return report
