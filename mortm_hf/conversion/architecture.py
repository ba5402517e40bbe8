"""Upstream's options and a checkpoint's anatomy <-> our configurations.

Design decisions
- Attention dropout is upstream's `dropout`, but acts in training only (upstream's never stops).
- Our configurations are a wider space than upstream's. What upstream cannot compute is listed and refused; what only
  looks different (a tied output layer, no output bias) is written out.

Knows: both sides' options and what upstream's releases make of theirs (SPEC 4 and 5). Must not know: tensors, files.
"""

from __future__ import annotations

from ..models.configuration_bertm import BertmConfig
from ..models.configuration_mortm import MortmConfig
from ..models.errors_mortm import ConversionError
from .anatomy import EARLY, LATE, MIDDLE, NORMS, Anatomy, Options


NORM_TYPES = {"tanh": "dynamic_tanh", "layernorm": "layernorm", "rmsnorm": "rmsnorm"}


def layer_options(anatomy: Anatomy, options: Options) -> dict:
    """The fields of a configuration that MORTM and BERTM share.

    Args:
        anatomy: what the tensors say.
        options: upstream's options.
    """
    moe = anatomy.feed_forward == "moe"
    gated = anatomy.feed_forward != "relu"
    sigmoid = anatomy.late and options.score_type == "sigmoid"
    rope = options.use_rope and not set(anatomy.versions) <= set(EARLY)
    grouped = moe and not anatomy.late
    fields = dict(
        vocab_size=anatomy.rows,
        hidden_size=anatomy.hidden,
        num_hidden_layers=anatomy.layers,
        num_attention_heads=options.num_heads,
        intermediate_size=anatomy.width,
        mlp_layer_types=["sparse" if moe else "dense"] * anatomy.layers,
        gated_mlp=gated,
        hidden_act="silu" if gated else "relu",
        norm_type=NORM_TYPES[anatomy.norm],
        norm_eps=1e-5,
        position_embedding_type="rope" if rope else "alibi",
        attention_bias=anatomy.attention_bias,
        attention_output_bias=anatomy.output_bias,
        mlp_bias=anatomy.mlp_bias,
        hidden_dropout=options.dropout,
        attention_dropout=options.dropout,
        activation_dropout=0.0 if gated else options.dropout,
        max_position_embeddings=options.position_length,
        tie_word_embeddings=False,
        dtype="float32",
    )
    if moe:
        fields |= dict(
            moe_intermediate_size=anatomy.width,
            shared_expert_intermediate_size=anatomy.shared,
            num_local_experts=anatomy.experts,
            num_experts_per_tok=options.topk_experts,
            scoring_func="sigmoid" if sigmoid else "softmax",
            n_group=options.num_groups if grouped else 1,
            topk_group=options.topk_groups if grouped else 1,
            norm_topk_prob=anatomy.late and not sigmoid,
            norm_topk_eps=1e-6,
            router_balancing="bias" if anatomy.routing_bias and options.use_gate_bias else "none",
            router_bias_in_eval=False,
        )
    return fields


def make_configs(anatomy: Anatomy, options: Options, special: dict[str, int | None]) -> dict[str, MortmConfig]:
    """One configuration for each part of the layout (see `mapping.layout_of`).

    Args:
        anatomy: what the tensors say.
        options: upstream's options.
        special: pad_token_id, bos_token_id, eos_token_id of the tokenizer.

    Raises:
        ConversionError: `conversion.config`: no model can have these options.
    """
    fields = layer_options(anatomy, options) | special
    try:
        if anatomy.kind == "bertm":
            labels = dict(id2label={0: "AI"}, label2id={"AI": 0}, problem_type="multi_label_classification")
            labels["negative_label"] = "human"
            config = BertmConfig(
                **fields,
                **labels,
                classifier_hidden_size=anatomy.hidden // 2,
                architectures=["BertmForSequenceClassification"],
            )
            return {"": config}
        configs = {"": MortmConfig(**fields, lm_head_bias=True, architectures=["MortmForCausalLM"])}
        if anatomy.kind == "actorcritic":
            configs["value"] = MortmConfig(
                **fields,
                lm_head_bias=True,
                num_labels=1,
                classifier_hidden_size=anatomy.hidden // 2,
                architectures=["MortmForSequenceClassification"],
            )
        return configs
    except ValueError as error:
        raise ConversionError(f"the options make no model: {error}", "conversion.config") from None


def origin_of(config: MortmConfig, kind: str) -> tuple[Anatomy, dict]:
    """The anatomy and JSON options of the upstream checkpoint that computes what `config` does.

    Args:
        config: configuration of a MORTM or BERTM.
        kind: "mortm", "actorcritic" or "bertm".

    Returns:
        What its tensors would look like, and upstream's options.

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
    rotary = config.rope_parameters or {}
    rules = {
        "layers of one kind": len(set(config.mlp_layer_types)) == 1,
        "as many key and value heads as heads": config.num_key_value_heads == config.num_attention_heads,
        "heads that share the hidden size": config.head_dim * config.num_attention_heads == config.hidden_size,
        "norm_eps 1e-5": config.norm_type == "dynamic_tanh" or config.norm_eps == 1e-5,
        "rotary base 10000 without scaling": not rope
        or (rotary.get("rope_theta") == 10000 and rotary.get("rope_type", "default") == "default"),
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
