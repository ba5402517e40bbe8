"""Folder -> upstream's files: state dict, JSON options, token table.

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

from ..models.configuration_bertm import BertmConfig
from ..models.configuration_mortm import MortmConfig
from ..models.errors_mortm import ConversionError
from . import lora as lora_tools
from .anatomy import DEFAULTS, Anatomy
from .architecture import origin_of
from .checkpoint_files import ADAPTER, ASIDE, PROVENANCE, new_folder, read_json, read_weights, write_checkpoint
from .mapping import dtype_of, layout_of, to_upstream, unread


@dataclass
class ExportReport:
    """What was written.

    Attributes:
        kind: a key of `anatomy.KINDS`.
        tensors: how many.
        rounded: names of tensors whose numbers the narrower type of upstream changed.
        notes: remarks for the reader, a sentence each.
    """

    kind: str
    tensors: int
    rounded: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Provenance:
    """What upstream's files look like.

    Attributes:
        facts: what the state dict is.
        options: upstream's JSON options.
        vocab: token -> id, as upstream lists it.
        balancing: whether the router's bias is a part of the model.
        lora: "none", "merged" or "kept".
        dtypes: type of each tensor by name, in upstream's order; empty: the model was made here.
        prefix: what every name began with.
        wrapper: the entry of the file that held the state dict, or None.
    """

    facts: Anatomy
    options: dict
    vocab: dict
    balancing: bool
    lora: str = "none"
    dtypes: dict[str, str] = field(default_factory=dict)
    prefix: str = ""
    wrapper: str | None = None


def read_provenance(folder: Path) -> Provenance:
    """`upstream.json` of a converted folder.

    Args:
        folder: the converted folder.

    Raises:
        ConversionError: `conversion.folder`: damaged.
    """
    content = read_json(folder / PROVENANCE, "provenance", "conversion.folder")
    try:
        known = content["anatomy"]
        return Provenance(
            facts=Anatomy(**known | {"versions": tuple(known["versions"]), "lora": tuple(known["lora"])}),
            options=dict(content["options"]),
            vocab=content["vocab_list"],
            balancing=content["balancing"],
            lora=content["lora"],
            dtypes=dict(content["tensors"]),
            prefix=content["prefix"],
            wrapper=content["wrapper"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConversionError(f"{folder / PROVENANCE} is damaged: {error}", "conversion.folder") from None


def read_table(folder: Path) -> dict[str, int]:
    """The token table of a saved folder: token -> id.

    Args:
        folder: a folder with `vocab.json`.
    """
    table = read_json(folder / "vocab.json", "token table", "conversion.folder")
    return table.get("vocab", table)


def invent_provenance(folder: Path, parts: dict) -> tuple[Provenance, dict]:
    """What upstream's files of a model of our own would look like, and its completed state dicts.

    Args:
        folder: the saved model.
        parts: its state dicts by sub-folder.

    Returns:
        The provenance, and `parts` with the output layer written out.

    Raises:
        ConversionError: `conversion.folder`: another kind of model, or one that upstream cannot compute.
    """
    kinds = {"MortmForCausalLM": "mortm", "BertmForSequenceClassification": "bertm"}
    raw = read_json(folder / "config.json", "configuration", "conversion.folder")
    name = (raw.get("architectures") or ["a model without a name"])[0]
    if name not in kinds:
        raise ConversionError(
            f"{folder} holds {name}; upstream has models for {', '.join(kinds)} only", "conversion.folder"
        )
    kind = "actorcritic" if "value" in parts else kinds[name]
    settings = BertmConfig if kind == "bertm" else MortmConfig
    try:
        config = settings.from_pretrained(folder / "value" if kind == "actorcritic" else folder)
    except (OSError, ValueError) as error:
        raise ConversionError(f"cannot read {folder / 'config.json'}: {error}", "conversion.folder") from None
    facts, options = origin_of(config, kind)
    parts = {part: _complete(state, config) for part, state in parts.items()}
    balancing = facts.routing_bias and config.router_balancing == "bias"
    return Provenance(facts, options, read_table(folder), balancing), parts


def _complete(state: dict[str, torch.Tensor], config: MortmConfig) -> dict[str, torch.Tensor]:
    """Our state dict with the output layer written out: tied weights copied, a missing bias as zeros."""
    state = dict(state)
    if "lm_head.weight" not in state and "score.out_proj.weight" not in state:
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    if "lm_head.weight" in state and "lm_head.bias" not in state:
        state["lm_head.bias"] = torch.zeros(config.vocab_size)
    return state


def export_upstream(
    folder: str | os.PathLike,
    output: str | os.PathLike,
    like: str | os.PathLike | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """A folder -> upstream's `model.pth`, `config.json` and `vocab_list.json` in `output`.

    A converted folder goes back as it came. A model that was made here goes if an upstream release can compute it.

    Args:
        folder: the folder of a model.
        output: the folder to write.
        like: the converted folder that this one was trained from, where it has no `upstream.json` itself.
        overwrite: replace `output` if it exists.

    Raises:
        ConversionError: `conversion.folder`, `conversion.lora`, `conversion.output`; nothing is written then.
    """
    folder = Path(folder)
    origin = Path(like) if like is not None else folder
    parts = {part: read_weights(folder / part) for part in ("", "value") if (folder / part / "config.json").is_file()}
    if not parts:
        raise ConversionError(f"{folder} is no model folder: it has no config.json", "conversion.folder")
    report = ExportReport("", 0)
    if (origin / PROVENANCE).is_file():
        source = read_provenance(origin)
    elif like is not None:
        raise ConversionError(f"--like {origin} has no {PROVENANCE}: it was not converted", "conversion.folder")
    else:
        source, parts = invent_provenance(folder, parts)
        report.notes.append(
            f"the folder does not come from upstream: written as {source.facts.version_name} would write it"
        )
    facts, options, vocab = source.facts, source.options, source.vocab
    layout = layout_of(facts, balancing=source.balancing)
    report.kind, tensors = facts.kind, {}
    for part, groups in layout.parts.items():
        if part not in parts:
            raise ConversionError(f"{folder} has no {part}/ with the value model", "conversion.folder")
        made = to_upstream(groups, parts[part])
        if source.lora == "kept":
            if not (folder / part / ADAPTER).is_dir():
                raise ConversionError(f"{folder / part} has no {ADAPTER}/ with the LoRA factors", "conversion.folder")
            made |= lora_tools.from_adapter(groups, read_weights(folder / part / ADAPTER, "adapter_model"))
        differ = [name for name in made if name in tensors and not torch.equal(made[name], tensors[name])]
        if differ:
            raise ConversionError(
                f"the policy and the value model of {folder} have different layers ({differ[0]}, ...), upstream's "
                "ActorCritic has one set for both: export the policy alone, or train with shared layers",
                "conversion.folder",
            )
        tensors |= made
    if facts.lora and source.lora != "kept":
        options |= {k: False for k in ("use_lora", "use_attn_lora", "use_gate_lora", "use_ffn_lora") if k in options}
        report.notes.append("the LoRA deltas are merged: upstream's options are written without LoRA")
    if (origin / ASIDE).is_file():
        tensors |= read_weights(origin, ASIDE.removesuffix(".safetensors"))
    elif not source.dtypes:
        tensors |= unread(layout.aside, facts)
    rows = tensors["embedding.weight"].shape[0]
    if (options.get("vocab_size") or DEFAULTS["vocab_size"]) != rows:
        options["vocab_size"] = rows
        report.notes.append("the token table has grown: vocab_size and vocab_list.json are the new ones")
        vocab = read_table(folder)
    dtypes, prefix, wrapper = source.dtypes, source.prefix, source.wrapper
    if not dtypes:
        dtypes = {name: dtype_of(name, facts) for name in tensors}
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
