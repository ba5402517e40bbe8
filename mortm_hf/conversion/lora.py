"""Low-rank deltas of upstream's checkpoints: merged into the weights, or kept as an adapter for PEFT.

Design decisions
- Upstream's library adds the delta to `weight` in eval mode and takes it out again in training mode, so a state dict
  saved in eval mode holds merged weights *and* the factors. Adding the delta twice is silent and wrong, so
  `guess_merged` looks: a weight that contains its own delta projects on it with a factor near 1, one that does not
  with a factor near 0.
- Merging is done in fp32 (upstream's bf16 sum would round).
- The adapter is written in PEFT's format without PEFT; w1 and w3 are one parameter here, so their two deltas of
  rank r become one block-diagonal delta of rank 2r.

Knows: factors, our parameter names, PEFT's file format. Must not know: tokens, options in JSON.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..models.errors_mortm import ConversionError
from .mapping import Group


PEFT_ROOT = "base_model.model."


def delta(tensors: dict[str, torch.Tensor], stem: str, scale: float) -> torch.Tensor:
    """`scale * B @ A` in fp32, [out, in].

    Args:
        tensors: tensors by upstream's names.
        stem: name of the weight without ".weight".
        scale: LoRA's alpha over its rank.

    Raises:
        ConversionError: `conversion.lora`: the factors do not fit the weight.
    """
    a, b = tensors[f"{stem}.lora_A"], tensors.get(f"{stem}.lora_B")
    weight = tensors.get(f"{stem}.weight")
    if b is None or weight is None or a.dim() != 2 or b.dim() != 2 or (b.shape[0], a.shape[1]) != tuple(weight.shape):
        raise ConversionError(f"the LoRA factors of {stem} do not fit its weight", "conversion.lora")
    return scale * (b.float() @ a.float())


def guess_merged(tensors: dict[str, torch.Tensor], stems, scale: float) -> tuple[float, float]:
    """How much of their own deltas the weights contain.

    Args:
        tensors: tensors by upstream's names.
        stems: names of the weights that have factors, without ".weight".
        scale: LoRA's alpha over its rank.

    Returns:
        A factor, near 1 if the deltas are merged already and near 0 if not, and its standard error: infinite where
        all deltas are zero, as before any training.
    """
    product = square = noise = 0.0
    for stem in stems:
        d, weight = delta(tensors, stem, scale), tensors[f"{stem}.weight"].float()
        norm = float(d.square().sum())
        product += float((weight * d).sum())
        square += norm
        noise += float(weight.var()) * norm
    if square == 0:
        return 0.0, math.inf
    return product / square, math.sqrt(noise) / square


def are_merged(tensors: dict[str, torch.Tensor], stems, scale: float, claimed: bool | None, notes: list[str]) -> bool:
    """Whether the weights hold their deltas already.

    Args:
        tensors: tensors by upstream's names.
        stems: names of the weights that have factors, without ".weight".
        scale: LoRA's alpha over its rank.
        claimed: what the user states; None: nothing.
        notes: what was measured is appended here.

    Raises:
        ConversionError: `conversion.lora`: it looks as if they do, and the user did not state it.
    """
    factor, error = guess_merged(tensors, stems, scale)
    looks, clear = factor > 0.5, error < 0.15
    if error == math.inf:
        return bool(claimed)
    measured = f"the weights contain {factor:.2f} of their own LoRA deltas (error {error:.2f}; 1 means merged, 0 not)"
    if claimed is None and (looks or not clear):
        raise ConversionError(
            f"{measured}: was it saved in eval mode? Then say --lora-merged, else --no-lora-merged. "
            "Adding a delta twice gives a wrong model without any error",
            "conversion.lora",
        )
    notes.append(measured)
    if claimed is not None and clear and looks != claimed:
        name = "--lora-merged" if claimed else "--no-lora-merged"
        notes.append(f"WARNING: that speaks against {name}; the option was followed")
    return bool(claimed)


def merge(tensors: dict[str, torch.Tensor], stems, scale: float, merged: bool) -> dict[str, torch.Tensor]:
    """The state dict without factors, their deltas added.

    Args:
        tensors: tensors by upstream's names.
        stems: names of the weights that have factors, without ".weight".
        scale: LoRA's alpha over its rank.
        merged: whether the weights hold their deltas already: nothing is added then.
    """
    result = strip(tensors)
    if not merged:
        for stem in stems:
            result[f"{stem}.weight"] = tensors[f"{stem}.weight"].float() + delta(tensors, stem, scale)
    return result


def unmerge(tensors: dict[str, torch.Tensor], stems, scale: float) -> dict[str, torch.Tensor]:
    """Merged weights minus their deltas, to keep the adapter apart (rounded to the type of the file).

    Args:
        tensors: tensors by upstream's names.
        stems: names of the weights that have factors, without ".weight".
        scale: LoRA's alpha over its rank.
    """
    result = dict(tensors)
    for stem in stems:
        weight = tensors[f"{stem}.weight"]
        result[f"{stem}.weight"] = (weight.float() - delta(tensors, stem, scale)).to(weight.dtype)
    return result


def strip(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict without factors, its weights as they are.

    Args:
        tensors: tensors by upstream's names.
    """
    return {name: t for name, t in tensors.items() if not name.endswith((".lora_A", ".lora_B"))}


def _factors(tensors, source: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    stem = source.removesuffix(".weight")
    if f"{stem}.lora_A" not in tensors:
        return None
    return tensors[f"{stem}.lora_A"].float(), tensors[f"{stem}.lora_B"].float()


def to_adapter(
    groups: list[Group], tensors: dict[str, torch.Tensor], rank: int, alpha: float
) -> tuple[dict, dict[str, torch.Tensor]]:
    """The adapter of a model.

    Args:
        groups: the table of names.
        tensors: tensors by upstream's names.
        rank: LoRA's rank.
        alpha: LoRA's alpha.

    Returns:
        PEFT's configuration, and the adapter's state dict.

    Raises:
        ConversionError: `conversion.lora`: only some experts of a layer have a delta.
    """
    state, modules, parameters, ranks, alphas = {}, [], [], {}, {}
    for group in groups:
        if not group.sources[0].endswith(".weight"):
            continue
        factors = [_factors(tensors, source) for source in group.sources]
        if all(f is None for f in factors):
            continue
        if any(f is None for f in factors):
            raise ConversionError(
                f"{group.sources[0]} has LoRA factors, others of its layer have none: merge them (--lora merge)",
                "conversion.lora",
            )
        if group.kind in ("copy", "split"):
            a, b = factors[0]
            for target, part in zip(group.targets, b.chunk(len(group.targets)), strict=True):
                name = target.removesuffix(".weight")
                (parameters if name.endswith(".gate") else modules).append(target if name.endswith(".gate") else name)
                state[f"{PEFT_ROOT}{name}.lora_A.weight"] = a.clone()
                state[f"{PEFT_ROOT}{name}.lora_B.weight"] = part.contiguous()
            continue
        name = group.targets[0]
        parameters.append(name)
        if group.kind == "gate_up":
            half = len(factors) // 2
            blocks = [
                (torch.cat([a1, a3]), torch.block_diag(b1, b3))
                for (a1, b1), (a3, b3) in zip(factors[:half], factors[half:], strict=True)
            ]
            ranks[name], alphas[name] = 2 * rank, 2 * alpha
        else:
            blocks = factors
        # PEFT: A [E * r, in], B [out, r * E] with the expert running fastest
        experts = name.rpartition(".")[0]
        # PEFT nests the wrappers of one module's parameters: the first one in `target_parameters` is the innermost
        inner = "base_layer." if group.kind == "gate_up" else ""
        state[f"{PEFT_ROOT}{experts}.{inner}lora_A.weight"] = torch.cat([a for a, _ in blocks])
        state[f"{PEFT_ROOT}{experts}.{inner}lora_B.weight"] = (
            torch.stack([b for _, b in blocks]).permute(1, 2, 0).reshape(blocks[0][1].shape[0], -1).contiguous()
        )
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "target_modules": sorted(modules),
        "target_parameters": parameters,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "base_model_name_or_path": None,
    }
    return config, state


def from_adapter(groups: list[Group], state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An adapter's state dict -> upstream's factors.

    Args:
        groups: the table of names.
        state: tensors by PEFT's names.

    Raises:
        ConversionError: `conversion.lora`: the adapter was changed into something that upstream cannot hold.
    """
    factors = {}

    def put(source, a, b):
        stem = source.removesuffix(".weight")
        factors[f"{stem}.lora_A"], factors[f"{stem}.lora_B"] = a.contiguous(), b.contiguous()

    left = dict(state)
    for group in groups:
        if not group.sources[0].endswith(".weight"):
            continue
        names = [target.removesuffix(".weight") for target in group.targets]
        if group.kind in ("stack", "gate_up"):
            inner = ".base_layer" if group.kind == "gate_up" else ""
            names = [group.targets[0].rpartition(".")[0] + inner]
        pairs = [
            (left.pop(f"{PEFT_ROOT}{n}.lora_A.weight", None), left.pop(f"{PEFT_ROOT}{n}.lora_B.weight", None))
            for n in names
        ]
        if all(a is None for a, _ in pairs):
            continue
        if group.kind in ("copy", "split"):
            a = pairs[0][0]
            if any(other is None or not torch.equal(a, other) for other, _ in pairs):
                raise ConversionError(
                    f"{group.sources[0]} is one matrix upstream with one lora_A, the adapter has several: merge it "
                    "into the weights (PEFT: merge_and_unload) before the export",
                    "conversion.lora",
                )
            put(group.sources[0], a, torch.cat([b for _, b in pairs]))
            continue
        a, b = pairs[0]
        experts = len(group.sources) // (2 if group.kind == "gate_up" else 1)
        a = a.reshape(experts, -1, a.shape[-1])
        b = b.reshape(b.shape[0], -1, experts).permute(2, 0, 1)
        if group.kind == "stack":
            for e, source in enumerate(group.sources):
                put(source, a[e], b[e])
            continue
        rank, width = a.shape[1] // 2, b.shape[1] // 2
        if b[:, :width, rank:].any() or b[:, width:, :rank].any():
            raise ConversionError(
                f"the delta of {group.targets[0]} mixes w1 and w3, which upstream keeps apart: merge it into the "
                "weights (PEFT: merge_and_unload) before the export",
                "conversion.lora",
            )
        for e in range(experts):
            put(group.sources[e], a[e, :rank], b[e, :width, :rank])
            put(group.sources[experts + e], a[e, rank:], b[e, width:, rank:])
    if left:
        raise ConversionError(f"upstream has no place for the adapter's {next(iter(left))}", "conversion.lora")
    return factors


def refuse_output_delta(adapter: dict[str, torch.Tensor]) -> None:
    """A delta of the output layer (4.0 to 4.5) has the old table's rows and cannot be kept apart over another.

    Args:
        adapter: tensors by PEFT's names.

    Raises:
        ConversionError: `conversion.lora`: there is one.
    """
    if any(".lm_head." in name for name in adapter):
        raise ConversionError(
            "the LoRA delta of the output layer has the old table's rows: merge it before the table is extended "
            "(--lora merge)",
            "conversion.lora",
        )


def save_adapter(folder: Path, config: dict, state: dict[str, torch.Tensor]) -> None:
    """An adapter folder that PEFT reads.

    Args:
        folder: the folder to make.
        config: PEFT's configuration.
        state: tensors by PEFT's names.
    """
    folder.mkdir()
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
