"""The configuration of MORTM: a decoder over music tokens, dense or mixture-of-experts, rotary or ALiBi positions.

Design decisions
- Field names are those of transformers, so that tools which read configurations (parallel plans, PEFT, exporters,
  Trainer) understand this one.
- Every published variant of MORTM is a point of this space: norm, positions, dense or sparse layers, gated or not,
  biases, router scoring, groups, shared expert. Nothing is decided by a model name.
- The complete `auto_map` and `custom_pipelines` are filled in where a configuration is written, not where it is made:
  a folder saved from one head can be loaded as another (transformers alone records the class being saved), and a
  bundled folder, which states neither, runs on the installed code without `trust_remote_code`.
- A model's folder gets a card, unless it has one: every way of saving a model saves its configuration.
- Whoever writes a wrong value reads one line: the errors of strict dataclasses, which are no `ValueError`s, become
  `ConfigurationError`s.

Knows: shapes and options. Must not know: tokens' meaning, MIDI, the grammar.
"""

import math
from functools import wraps
from pathlib import Path
from typing import Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RopeParameters

from .errors_mortm import ConfigurationError
from .families import FAMILIES, auto_map, custom_pipelines, model_card


_SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    "max_position_embeddings",
)


def strict_configuration(cls):
    """`@strict` of huggingface_hub, with `ConfigurationError` (`configuration.value`) for what it refuses."""
    cls = strict(cls)
    checked = cls.__init__

    @wraps(checked)
    def __init__(self, *args, **kwargs):
        try:
            checked(self, *args, **kwargs)
        except StrictDataclassError as error:
            # the first line of theirs names the validator, the cause says what is wrong
            reason = error.__cause__ or error
            raise ConfigurationError(f"{cls.__name__}: {' '.join(str(reason).split())}") from error

    cls.__init__ = __init__
    return cls


@strict_configuration
class MortmConfig(PreTrainedConfig):
    r"""Configuration of [`MortmModel`] and its heads.

    Args:
        vocab_size: number of tokens; 1162 is the default token table.
            hidden_size: width of the states.
        num_hidden_layers: number of layers.
        num_attention_heads: heads of queries.
        num_key_value_heads: heads of keys and values; as many by default.
        head_dim: width of a head; its share of `hidden_size` by default.
        hidden_act: activation in feed-forward layers and experts.
        intermediate_size: width of dense feed-forward layers.
            moe_intermediate_size: width of one expert.
        shared_expert_intermediate_size: width of the expert every token passes through, 0 for none.
        num_local_experts: experts of a sparse layer.
        num_experts_per_tok: how many of them see one token.
            mlp_layer_types: "dense" or "sparse" for each layer; all sparse by default.
        gated_mlp: dense layers are `down(act(gate(x)) * up(x))` if true (SwiGLU with `hidden_act="silu"`), else
            `down(act(up(x)))`. Experts are always gated.
        scoring_func: "softmax" over all experts, or "sigmoid" of each.
        n_group: equal groups that the experts are cut into.
        topk_group: how many of them, those with the best expert, stay in the choice.
        norm_topk_prob: divide the chosen weights by (their sum + `norm_topk_eps`).
        norm_topk_eps: see there.
        routed_scaling_factor: factor on the chosen weights.
        router_balancing: "loss" adds `router_aux_loss_coef` times the load-balancing loss to the training loss,
            "bias" moves a per-expert bias that takes part in the choice only, "none" does neither.
        router_aux_loss_coef: see there.
        router_bias_update_rate: by how much the bias moves in a step.
        router_bias_in_eval: whether that bias also takes part in the choice outside training (MORTM 4.7 to 4.9: no).
        output_router_logits: return the router's logits.
        norm_type: "rmsnorm", "layernorm" or "dynamic_tanh" (`tanh(alpha * x) * weight + bias`).
        norm_eps: of the first two.
        dynamic_tanh_alpha: first value of the third one's alpha.
        position_embedding_type: "rope" or "alibi" (no parameters, any number of heads).
        rope_parameters: of rotary positions, as in transformers.
        attention_bias: biases of the q, k, v projections.
        attention_output_bias: bias of the output projection.
        mlp_bias: biases of all feed-forward layers and experts.
        lm_head_bias: bias of the output layer.
        hidden_dropout: after each sub-layer, in training only.
        activation_dropout: inside dense feed-forward layers, in training only.
        attention_dropout: on attention weights, in training only.
        initializer_range: standard deviation of new weights.
        classifier_hidden_size: width of a hidden layer in the score of [`MortmForSequenceClassification`], with
            biases; None for one matrix without bias.
        classifier_activation: after that layer.
        classifier_dropout: of that layer, in training only.
        is_causal: False makes a bidirectional encoder (no cache).
        use_cache: keep keys and values while generating.
        max_position_embeddings: context length the model is meant for, in tokens.
        tie_word_embeddings: whether the output layer shares the table of embeddings.
        pad_token_id: id of padding.
        bos_token_id: id that begins a sequence.
        eos_token_id: id or ids that end one.
    """

    model_type = "mortm"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {"num_experts": "num_local_experts"}

    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.experts.gate_up_proj": "packed_colwise",
        "layers.*.mlp.experts.down_proj": "rowwise",
        "layers.*.mlp.experts": "moe_tp_experts",
        "layers.*.mlp.shared_experts.gate_proj": "colwise",
        "layers.*.mlp.shared_experts.up_proj": "colwise",
        "layers.*.mlp.shared_experts.down_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_ep_plan = {
        "layers.*.mlp.experts.gate_up_proj": "grouped_gemm",
        "layers.*.mlp.experts.down_proj": "grouped_gemm",
        "layers.*.mlp.experts.gate_up_proj_bias": "grouped_gemm",
        "layers.*.mlp.experts.down_proj_bias": "grouped_gemm",
        "layers.*.mlp.experts": "ep_dispatch_experts",
    }
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 1162
    hidden_size: int = 256
    intermediate_size: int = 1024
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    gated_mlp: bool = True
    max_position_embeddings: int = 4096
    initializer_range: float = 0.02
    norm_type: Literal["rmsnorm", "layernorm", "dynamic_tanh"] = "rmsnorm"
    norm_eps: float = 1e-5
    dynamic_tanh_alpha: float = 0.5
    position_embedding_type: Literal["rope", "alibi"] = "rope"
    rope_parameters: RopeParameters | dict | None = None
    is_causal: bool = True
    attention_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    lm_head_bias: bool = False
    hidden_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    mlp_layer_types: list[str] | None = None
    moe_intermediate_size: int = 256
    shared_expert_intermediate_size: int = 256
    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    scoring_func: Literal["softmax", "sigmoid"] = "softmax"
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = True
    norm_topk_eps: float = 1e-20
    routed_scaling_factor: float | int = 1.0
    router_balancing: Literal["loss", "bias", "none"] = "loss"
    router_aux_loss_coef: float = 0.01
    router_bias_update_rate: float = 1e-3
    router_bias_in_eval: bool = True
    output_router_logits: bool = False
    classifier_hidden_size: int | None = None
    classifier_activation: str = "relu"
    classifier_dropout: float | int = 0.0
    use_cache: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 627

    def __post_init__(self, **kwargs):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // max(self.num_attention_heads, 1)
        if self.mlp_layer_types is None:
            self.mlp_layer_types = ["sparse"] * self.num_hidden_layers
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict:
        """As transformers', with all classes and tasks of the family; entries of one's own go before them.

        Returns:
            Plain values only: `transformers.pipeline` leaves classes in `custom_pipelines` where names were.
        """
        output = super().to_dict()
        own = dict(output.get("custom_pipelines") or {})
        for task, entry in own.items():
            own[task] = {**entry, "pt": [getattr(kind, "__name__", kind) for kind in entry.get("pt", ())]}
        output["auto_map"] = auto_map(self.model_type) | (output.get("auto_map") or {})
        output["custom_pipelines"] = custom_pipelines(self.model_type) | own
        return output

    def save_pretrained(self, save_directory, **kwargs):
        """As transformers', with a card (`README.md`) where a model is saved into a folder without one.

        Args:
            save_directory: folder, made where there is none.
            kwargs: further arguments of transformers' method.
        """
        super().save_pretrained(save_directory, **kwargs)
        card = Path(save_directory) / "README.md"
        if self.architectures and self.model_type in FAMILIES and not card.exists():
            card.write_text(model_card(self.model_type, self.architectures[0]), encoding="utf-8")

    def validate_mortm(self):
        """Refuse combinations that no layer could carry out (runs with the other checks of transformers)."""
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        rope = (self.rope_parameters or {}).get("rope_type", "default")
        if self.position_embedding_type == "rope" and rope not in ("default", *ROPE_INIT_FUNCTIONS):
            raise ValueError(f"rope_type {rope!r} is unknown: use default, {', '.join(ROPE_INIT_FUNCTIONS)}.")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of num_key_value_heads "
                f"({self.num_key_value_heads})."
            )
        if (
            self.head_dim * self.num_attention_heads != self.hidden_size
            and self.hidden_size % self.num_attention_heads
        ):
            raise ValueError(
                f"hidden_size ({self.hidden_size}) is no multiple of num_attention_heads "
                f"({self.num_attention_heads}): change one of them or give head_dim."
            )
        if self.position_embedding_type == "rope" and self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim, got {self.head_dim}; use ALiBi or change it.")
        kinds = self.mlp_layer_types
        if len(kinds) != self.num_hidden_layers or not set(kinds) <= {"dense", "sparse"}:
            raise ValueError(
                f"mlp_layer_types must name dense or sparse for all {self.num_hidden_layers} layers, got {kinds}."
            )
        for kind, name in (("dense", "intermediate_size"), ("sparse", "moe_intermediate_size")):
            if kind in kinds and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1 for {kind} layers, got {getattr(self, name)}.")
        if "sparse" in kinds:
            experts, chosen = self.num_local_experts, self.num_experts_per_tok
            if not 1 <= chosen <= experts:
                raise ValueError(f"num_experts_per_tok ({chosen}) must lie in 1 to num_local_experts ({experts}).")
            if self.n_group < 1 or experts % self.n_group or not 1 <= self.topk_group <= self.n_group:
                raise ValueError(
                    f"{experts} experts cannot form n_group={self.n_group} groups of which "
                    f"topk_group={self.topk_group} are kept."
                )
            if chosen > experts // self.n_group * self.topk_group:
                raise ValueError(
                    f"topk_group={self.topk_group} of n_group={self.n_group} leaves fewer than "
                    f"num_experts_per_tok={chosen} experts to choose from."
                )
        for name in ("hidden_dropout", "activation_dropout", "attention_dropout", "classifier_dropout"):
            if not (0.0 <= getattr(self, name) < 1.0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}.")


__all__ = ["MortmConfig"]
