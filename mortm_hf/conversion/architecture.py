"""Upstream's options and a checkpoint's anatomy -> our configurations.

Knows: both sides' options and what upstream's releases make of theirs (SPEC 4 and 5). Must not know: tensors, files.
Design decision: attention dropout is upstream's `dropout`, but acts in training only (upstream's never stops).
"""

from __future__ import annotations

from ..models.configuration_bertm import BertmConfig
from ..models.configuration_mortm import MortmConfig
from ..models.errors_mortm import ConversionError
from .anatomy import EARLY, Anatomy, Options


NORM_TYPES = {"tanh": "dynamic_tanh", "layernorm": "layernorm", "rmsnorm": "rmsnorm"}


def layer_options(anatomy: Anatomy, options: Options) -> dict:
    """The fields that MORTM and BERTM share."""
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
