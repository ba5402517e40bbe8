"""A model that was never upstream's -> the upstream release that computes the same, if there is one.

Design decisions
- Our configurations are a wider space than upstream's. What upstream cannot compute is listed and refused; what only
  looks different (a tied output layer, no output bias) is written out.
- Tensors that upstream expects and never reads (a second norm, the router's counters) are made as it would make them.

Knows: both sides' options and upstream's types. Must not know: files.
"""

from __future__ import annotations

import torch

from ..models.configuration_mortm import MortmConfig
from ..models.errors_mortm import ConversionError
from .anatomy import EARLY, LATE, MIDDLE, NORMS, Anatomy
from .architecture import NORM_TYPES


def origin_of(config: MortmConfig, kind: str) -> tuple[Anatomy, dict]:
    """The anatomy and JSON options of the upstream checkpoint that computes what `config` does.

    Args:
        kind: "mortm", "actorcritic" or "bertm".

    Raises:
        ConversionError: `conversion.folder`, naming everything that no upstream release can do.
    """
    sparse = set(config.mlp_layer_types) == {"sparse"}
    late = sparse and (
        config.scoring_func == "sigmoid"
        or config.norm_topk_prob
        or config.router_balancing == "bias"
        or config.shared_expert_intermediate_size != config.moe_intermediate_size
    )
    versions = EARLY[-1:] if config.attention_bias else LATE[-1:] if late else MIDDLE[-1:]
    relu = not sparse and not config.gated_mlp
    norm = next(name for name in NORMS if NORM_TYPES[name] == config.norm_type)
    width = config.moe_intermediate_size if sparse else config.intermediate_size
    rope = config.position_embedding_type == "rope"
    told = config.rope_parameters or {}
    rules = {
        "layers of one kind": len(set(config.mlp_layer_types)) == 1,
        "as many key and value heads as heads": config.num_key_value_heads == config.num_attention_heads,
        "heads that share the hidden size": config.head_dim * config.num_attention_heads == config.hidden_size,
        "norm_eps 1e-5": config.norm_type == "dynamic_tanh" or config.norm_eps == 1e-5,
        "rotary base 10000 without scaling": not rope
        or (told.get("rope_theta") == 10000 and told.get("rope_type", "default") == "default"),
        f"hidden_act {'relu' if relu else 'silu'}": config.hidden_act == ("relu" if relu else "silu"),
        "biases in ReLU layers": not relu or config.mlp_bias,
        "mlp_bias as attention_output_bias": relu or config.mlp_bias == config.attention_output_bias,
        "routed_scaling_factor 1": not sparse or config.routed_scaling_factor == 1,
        "a bidirectional model only as BERTM": config.is_causal == (kind != "bertm"),
    }
    if sparse:
        shared = config.hidden_size if late else width
        rules |= {
            f"a shared expert of {shared} hidden units": config.shared_expert_intermediate_size == shared,
            "no groups of experts in 4.7 and later": not late or config.n_group == 1,
            "softmax weights that are normalised, sigmoid weights that are not, in 4.7 and later": not late
            or config.norm_topk_prob == (config.scoring_func == "softmax"),
            "router biases in training only": config.router_balancing != "bias" or not config.router_bias_in_eval,
        }
    if config.attention_bias:
        rules |= {
            "ALiBi, dynamic tanh and biases everywhere, with biases of q, k and v": not rope
            and norm == "tanh"
            and config.attention_output_bias
            and config.mlp_bias
            and (sparse or relu)
        }
    if kind in ("bertm", "actorcritic"):
        rules["one label behind a hidden layer of half the size"] = (
            config.num_labels == 1 and config.classifier_hidden_size == config.hidden_size // 2
        )
    if kind == "bertm":
        rules["pooling by attention"] = getattr(config, "classifier_pooling", None) == "attention"
    broken = [rule for rule, kept in rules.items() if not kept]
    if broken:
        raise ConversionError(
            f"no upstream release computes what this model does; it would need: {'; '.join(broken)}",
            "conversion.folder",
        )
    facts = Anatomy(
        kind=kind,
        versions=versions,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        rows=config.vocab_size,
        feed_forward="moe" if sparse else "relu" if relu else "silu",
        norm=norm,
        width=width,
        experts=config.num_local_experts if sparse else 0,
        shared=config.shared_expert_intermediate_size if sparse else 0,
        gate=("gate" if config.attention_bias else "gate.gate_proj") if sparse else "",
        attention_bias=config.attention_bias,
        output_bias=config.attention_output_bias,
        mlp_bias=config.mlp_bias,
        norm2=not late,
        routing_bias=late,
    )
    options = {
        "d_layer": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "d_model": config.hidden_size,
        "dim_feedforward": width,
        "dropout": config.hidden_dropout,
        "position_length": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "use_moe_decoder": sparse,
        "use_silu": not sparse and not relu,
        "use_rope": rope,
        "norm_type": norm,
        "use_bias": config.attention_output_bias,
    }
    if sparse:
        options |= {"num_experts": config.num_local_experts, "topk_experts": config.num_experts_per_tok}
        options |= {"num_groups": config.n_group, "topk_groups": config.topk_group}
        options |= {"score_type": config.scoring_func, "use_gate_bias": config.router_balancing == "bias"}
    return facts, options


def complete(state: dict[str, torch.Tensor], config: MortmConfig) -> dict[str, torch.Tensor]:
    """Our state dict with the output layer written out: tied weights copied, a missing bias as zeros."""
    state = dict(state)
    if "lm_head.weight" not in state and "score.out_proj.weight" not in state:
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    if "lm_head.weight" in state and "lm_head.bias" not in state:
        state["lm_head.bias"] = torch.zeros(config.vocab_size)
    return state


def unread(names: tuple[str, ...], facts: Anatomy) -> dict[str, torch.Tensor]:
    """Fresh values of upstream's tensors that no forward pass reads."""
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
    """The type that upstream gives a tensor: bf16 attention (and RMS norms from 4.7 on), counters in int64."""
    if name.endswith("zero_streak"):
        return "int64"
    norms = facts.late and facts.norm == "rmsnorm" and ("norm" in name.split(".")[-2])
    return "bfloat16" if ".self_attention." in name or norms else "float32"
