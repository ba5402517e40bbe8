"""Upstream's tensors <-> ours, in both directions from one table.

Design decisions
- A `Group` ties some upstream names to some of ours by an invertible operation; a model is a list of groups. Nothing
  is renamed anywhere else, so that the way back is the same table read the other way.
- Our parameters are fp32 on disk. Upstream's are bf16 (attention) and fp32: the widening is exact, and the narrowing
  on the way back is too as long as the numbers were not changed.
- Tensors that no forward pass reads (the second norm up to 4.6.57, the router's counters of 4.7) are listed as
  `aside`: they travel in a file of their own and return unchanged; for a model of ours they are made anew.

Knows: both sets of names, shapes, upstream's types. Must not know: files, the options in JSON, tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..models.errors_mortm import ConversionError
from .anatomy import Anatomy


@dataclass(frozen=True)
class Group:
    """Some tensors of upstream's, and those of ours that hold the same numbers.

    Attributes:
        sources: upstream's names.
        targets: our names.
        kind: "copy": one to one; "split": [3n, ...] <-> three of [n, ...]; "stack": E of [...] <-> [E, ...];
            "gate_up": w1 of E experts, then w3 of E experts, each [n, ...] <-> [E, 2n, ...].
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    kind: str = "copy"

    def forward(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Upstream's tensors -> ours.

        Args:
            tensors: those of `sources`, in that order.
        """
        if self.kind == "copy":
            return tensors
        if self.kind == "split":
            return [part.contiguous() for part in tensors[0].chunk(3)]
        if self.kind == "stack":
            return [torch.stack(tensors)]
        half = len(tensors) // 2
        return [torch.cat([torch.stack(tensors[:half]), torch.stack(tensors[half:])], dim=1)]

    def backward(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Our tensors -> upstream's.

        Args:
            tensors: those of `targets`, in that order.
        """
        if self.kind == "copy":
            return tensors
        if self.kind == "split":
            return [torch.cat(tensors)]
        if self.kind == "stack":
            return list(tensors[0].unbind(0))
        gate, up = tensors[0].chunk(2, dim=1)
        return [*gate.unbind(0), *up.unbind(0)]


@dataclass(frozen=True)
class Layout:
    """Where everything goes.

    Attributes:
        parts: sub-folder ("" for the main model) -> its groups.
        aside: upstream's names of the tensors that no model reads.
    """

    parts: dict[str, list[Group]]
    aside: tuple[str, ...]

    @property
    def sources(self) -> list[str]:
        """Every upstream name that a model reads."""
        return list(dict.fromkeys(name for groups in self.parts.values() for g in groups for name in g.sources))


def _norm(source: str, target: str, kind: str) -> list[Group]:
    names = {"tanh": ("alpha", "weight", "bias"), "layernorm": ("weight", "bias"), "rmsnorm": ("weight",)}[kind]
    return [Group((f"{source}.{name}",), (f"{target}.{name}",)) for name in names]


def _linear(source: str, target: str, bias: bool) -> list[Group]:
    return [Group((f"{source}.{k}",), (f"{target}.{k}",)) for k in (("weight", "bias") if bias else ("weight",))]


def _layer(a: Anatomy, index: int, balancing: bool) -> list[Group]:
    theirs, ours = f"decoder.layers.{index}", f"model.layers.{index}"
    attention = f"{theirs}.self_attention.qkv_block"
    groups = []
    for kind in ("weight", "bias") if a.attention_bias else ("weight",):
        targets = tuple(f"{ours}.self_attn.{x}_proj.{kind}" for x in "qkv")
        groups.append(Group((f"{attention}.qkv_weight.{kind}",), targets, "split"))
    groups += _linear(f"{attention}.W_o", f"{ours}.self_attn.o_proj", a.output_bias)
    ffn, mlp = f"{theirs}.ffn", f"{ours}.mlp"
    swiglu = (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj"))
    if a.feed_forward == "moe":
        groups.append(Group((f"{ffn}.{a.gate}.weight",), (f"{mlp}.gate.weight",)))
        if balancing:
            groups.append(Group((f"{ffn}.gate.routing_bias",), (f"{mlp}.gate.e_score_correction_bias",)))
        for kind, suffix in (("weight", ""), ("bias", "_bias")) if a.mlp_bias else (("weight", ""),):
            w1, w2, w3 = (
                tuple(f"{ffn}.experts.{e}.{part}.{kind}" for e in range(a.experts)) for part in ("w1", "w2", "w3")
            )
            groups.append(Group(w1 + w3, (f"{mlp}.experts.gate_up_proj{suffix}",), "gate_up"))
            groups.append(Group(w2, (f"{mlp}.experts.down_proj{suffix}",), "stack"))
        for name, part in swiglu:
            groups += _linear(f"{ffn}.shared_experts.{name}", f"{mlp}.shared_experts.{part}", a.mlp_bias)
    else:
        plain = (("linear1", "up_proj"), ("linear2", "down_proj"))
        for name, part in swiglu if a.feed_forward == "silu" else plain:
            groups += _linear(f"{ffn}.{name}", f"{mlp}.{part}", a.mlp_bias)
    groups += _norm(f"{theirs}.norm1", f"{ours}.input_layernorm", a.norm)
    return groups + _norm(f"{theirs}.norm3", f"{ours}.post_attention_layernorm", a.norm)


def layout_of(anatomy: Anatomy, balancing: bool = True) -> Layout:
    """The table of a checkpoint.

    Args:
        anatomy: what the checkpoint is.
        balancing: whether the router's bias of 4.7 is a part of the model (else it is set aside).
    """
    balancing = balancing and anatomy.routing_bias
    layers, aside = decoder_groups(anatomy, balancing)
    base = [Group(("embedding.weight",), ("model.embed_tokens.weight",)), *layers]
    if anatomy.kind == "bertm":
        head = _linear("attn_pool.attention_scorer", "pool.scorer", True)
        head += _linear("hidden", "score.dense", True) + _linear("Wout", "score.out_proj", True)
        return Layout({"": base + head}, aside)
    parts = {"": base + _linear("Wout", "lm_head", True)}
    if anatomy.kind == "actorcritic":
        critic = _linear("critic_hidden", "score.dense", True) + _linear("critic_out", "score.out_proj", True)
        parts["value"] = base + critic
    return Layout(parts, aside)


def decoder_groups(anatomy: Anatomy, balancing: bool = False) -> tuple[list[Group], tuple[str, ...]]:
    """The table of layers and final norm (`decoder.*` -> `model.*`).

    Args:
        anatomy: what the checkpoint is.
        balancing: as in `layout_of`.

    Returns:
        The groups, and upstream's names of the tensors that no forward pass reads.
    """
    base, aside = [], []
    for index in range(anatomy.layers):
        base += _layer(anatomy, index, balancing)
        layer = f"decoder.layers.{index}"
        if anatomy.norm2:
            aside += [g.sources[0] for g in _norm(f"{layer}.norm2", "", anatomy.norm)]
        if anatomy.routing_bias:
            aside += [f"{layer}.ffn.gate.{name}" for name in ("ema_counts", "zero_streak")]
            aside += [] if balancing else [f"{layer}.ffn.gate.routing_bias"]
    base += _norm("decoder.norm", "model.norm", anatomy.norm)
    return base, tuple(aside)


def to_ours(groups: list[Group], tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Upstream's tensors -> our state dict, in fp32. Groups with missing sources are left out.

    Args:
        groups: the table.
        tensors: tensors by upstream's names.

    Raises:
        ConversionError: `conversion.keys`: tensors that belong together differ in shape.
    """
    state = {}
    for group in groups:
        if not all(name in tensors for name in group.sources):
            continue
        try:
            made = group.forward([tensors[name].to(torch.float32) for name in group.sources])
        except RuntimeError as error:
            raise ConversionError(
                f"{group.sources[0]} and its like do not fit together: {error}", "conversion.keys"
            ) from None
        state |= dict(zip(group.targets, made, strict=True))
    return state


def to_upstream(groups: list[Group], state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our state dict -> upstream's tensors, in the type they have here.

    Args:
        groups: the table.
        state: tensors by our names.

    Raises:
        ConversionError: `conversion.folder`: our state dict lacks a parameter.
    """
    tensors = {}
    for group in groups:
        missing = [name for name in group.targets if name not in state]
        if missing:
            raise ConversionError(f"the folder's weights lack {missing[0]}", "conversion.folder")
        made = group.backward([state[name] for name in group.targets])
        tensors |= dict(zip(group.sources, made, strict=True))
    return tensors


def unread(names: tuple[str, ...], facts: Anatomy) -> dict[str, torch.Tensor]:
    """Fresh values of upstream's tensors that no forward pass reads.

    Args:
        names: their names.
        facts: sizes of the checkpoint.
    """
    made = {}
    for name in names:
        last = name.rpartition(".")[2]
        if last in ("ema_counts", "zero_streak", "routing_bias"):
            made[name] = torch.zeros(facts.experts)
        elif last == "alpha":
            made[name] = torch.full((1,), 0.5)
        else:
            made[name] = torch.ones(facts.hidden) if last == "weight" else torch.zeros(facts.hidden)
    return made


def dtype_of(name: str, facts: Anatomy) -> str:
    """The type that upstream gives a tensor: bf16 attention (and RMS norms from 4.7 on), counters in int64.

    Args:
        name: upstream's name of the tensor.
        facts: what the checkpoint is.

    Returns:
        The name of a type of torch.
    """
    if name.endswith("zero_streak"):
        return "int64"
    norms = facts.late and facts.norm == "rmsnorm" and ("norm" in name.split(".")[-2])
    return "bfloat16" if ".self_attention." in name or norms else "float32"
