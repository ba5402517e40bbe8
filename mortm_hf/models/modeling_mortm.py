"""MORTM: a decoder over music tokens with mixture-of-experts or dense layers, rotary or ALiBi positions.

Design decisions
- The structure, flags and parameter names are those of the newest mixture-of-experts models of transformers, so that
  its attention and expert implementations, caches, parallel plans, PEFT and `generate()` apply unchanged.
- Experts are fused 3-D parameters; `grouped_mm` is the default, `padded_mm` (`experts_mortm`) the faster choice for
  training on a CPU in half precision.
- Under autocast a CPU without matrix units attends in fp32: its kernels are slower in half precision.
- The router works in fp32 whatever the model's type: half precision flips the choice of experts.
- An attention implementation that would ignore ALiBi is refused by name.

Knows: tensors. Must not know: which token means what, MIDI, the grammar.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.integrations import use_experts_implementation
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_causal_mask,
    find_packed_sequence_indices,
    packed_sequence_mask_function,
)
from transformers.modeling_flash_attention_utils import FlashAttentionKwargs
from transformers.modeling_layers import GenericForSequenceClassification, GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.models.llama.modeling_llama import (
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention_mortm import ALIBI_IMPLEMENTATIONS, ALL_ATTENTION_FUNCTIONS, alibi_slopes
from .configuration_mortm import MortmConfig
from .experts_mortm import EXPERTS_FUNCTIONS


class MortmAlibi(nn.Module):
    """Linear distance penalties: -slope * |i - j| on the scores, one slope a head, no learned parameters."""

    def __init__(self, config: MortmConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        # Not saved: a function of the number of heads. `_init_weights` writes it too, for models made on "meta".
        self.register_buffer("slopes", alibi_slopes(self.num_heads), persistent=False)

    def _apply(self, fn, recurse=True):
        """Conversion to half precision (`model.to(torch.bfloat16)`) leaves the slopes exact."""
        super()._apply(fn, recurse)
        if self.slopes.dtype != torch.float32:
            self.slopes = alibi_slopes(self.num_heads).to(self.slopes.device)
        return self

    def add_to_mask(
        self,
        mask: torch.Tensor | None,
        query_length: int,
        key_length: int,
        offset: int | torch.Tensor,
        is_causal: bool,
    ) -> torch.Tensor:
        """The additive mask of penalties and a given mask.

        Distances are between places in the row: within one sequence they do not depend on padding or packing.

        Args:
            mask: bool or float [batch or 1, 1, queries, keys], or None.
            query_length: number of queries.
            key_length: number of keys.
            offset: position of the first query among the keys.
            is_causal: hide later keys, where no mask is given.

        Returns:
            fp32 [batch or 1, heads, queries, keys].
        """
        device = self.slopes.device
        keys = torch.arange(key_length, device=device)
        queries = torch.arange(query_length, device=device)[:, None] + offset
        bias = -self.slopes.float()[:, None, None] * (queries - keys).abs()
        if mask is None:
            return bias.masked_fill(keys > queries, torch.finfo(torch.float32).min)[None] if is_causal else bias[None]
        if mask.dtype == torch.bool:
            return torch.where(mask, bias, torch.finfo(torch.float32).min)
        return mask.float() + bias


class MortmRMSNorm(LlamaRMSNorm):
    """`weight * x / rms(x)`; the mean square is taken in fp32."""


class MortmLayerNorm(nn.LayerNorm):
    """Layer norm with bias, under a name of our own so that its class says which model it belongs to."""


class MortmDynamicTanh(nn.Module):
    """`tanh(alpha * x) * weight + bias`: upstream's default in place of a norm (one scalar alpha).

    Args:
        hidden_size: width of x.
        alpha: its first value.
    """

    def __init__(self, hidden_size: int, alpha: float = 0.5):
        super().__init__()
        self.alpha_init = alpha
        self.alpha = nn.Parameter(torch.full((1,), alpha))
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return (torch.tanh(self.alpha * hidden_states) * self.weight + self.bias).to(hidden_states.dtype)


def make_norm(config: MortmConfig) -> nn.Module:
    """The norm the configuration asks for, over the hidden size."""
    if config.norm_type == "rmsnorm":
        return MortmRMSNorm(config.hidden_size, eps=config.norm_eps)
    if config.norm_type == "layernorm":
        return MortmLayerNorm(config.hidden_size, eps=config.norm_eps)
    return MortmDynamicTanh(config.hidden_size, alpha=config.dynamic_tanh_alpha)


class MortmRotaryEmbedding(LlamaRotaryEmbedding):
    """cos and sin tables [batch, length, head_dim] of half-split rotary positions."""


class MortmAttention(nn.Module):
    """Multi-head attention through transformers' attention interface."""

    def __init__(self, config: MortmConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = config.is_causal
        hidden, queries = config.hidden_size, config.num_attention_heads * self.head_dim
        keys = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(hidden, queries, bias=config.attention_bias)
        self.k_proj = nn.Linear(hidden, keys, bias=config.attention_bias)
        self.v_proj = nn.Linear(hidden, keys, bias=config.attention_bias)
        self.o_proj = nn.Linear(queries, hidden, bias=config.attention_output_bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[FlashAttentionKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)
        query = self.q_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        key = self.k_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        if position_embeddings is not None:
            query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)

        slopes = kwargs.get("slopes")
        if slopes is not None and slopes.shape[0] != query.shape[1]:
            raise ValueError("ALiBi does not support tensor parallelism: every rank would use the first heads.")
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention_interface(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(output.reshape(*input_shape, -1).contiguous()), weights


class MortmMLP(nn.Module):
    """A feed-forward layer, gated (`down(act(gate) * up)`) or plain (`down(act(up))`).

    Args:
        intermediate_size: inner width; the configuration's by default.
        gated: which of the two; the configuration's by default.
    """

    def __init__(self, config: MortmConfig, intermediate_size: int | None = None, gated: bool | None = None):
        super().__init__()
        hidden, inner = config.hidden_size, intermediate_size or config.intermediate_size
        self.gated = config.gated_mlp if gated is None else gated
        if self.gated:
            self.gate_proj = nn.Linear(hidden, inner, bias=config.mlp_bias)
        self.up_proj = nn.Linear(hidden, inner, bias=config.mlp_bias)
        self.down_proj = nn.Linear(inner, hidden, bias=config.mlp_bias)
        self.act_fn = ACT2FN[config.hidden_act]
        self.dropout = config.activation_dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.act_fn(self.gate_proj(x)) * self.up_proj(x) if self.gated else self.act_fn(self.up_proj(x))
        return self.down_proj(F.dropout(inner, self.dropout, self.training) if self.dropout else inner)


def choose_experts(scores: torch.Tensor, config: MortmConfig) -> torch.Tensor:
    """The best experts of each token, from the best groups where there are groups.

    Args:
        scores: [tokens, E].
        config: `num_experts_per_tok`, `n_group` and `topk_group`.

    Returns:
        [tokens, k] indices, in no order.
    """
    if config.n_group > 1:
        best = scores.unflatten(-1, (config.n_group, -1)).amax(-1)
        kept = torch.zeros_like(best).scatter_(-1, best.topk(config.topk_group, dim=-1).indices, 1.0)
        kept = kept.repeat_interleave(scores.shape[-1] // config.n_group, dim=-1)
        scores = scores.masked_fill(kept == 0, float("-inf"))
    return scores.topk(config.num_experts_per_tok, dim=-1, sorted=False).indices


@use_experts_implementation(experts_interface=EXPERTS_FUNCTIONS)
class MortmExperts(nn.Module):
    """All experts of a layer in 3-D parameters: `gate_up_proj` [E, 2I, H], `down_proj` [E, H, I], biases if asked."""

    def __init__(self, config: MortmConfig):
        super().__init__()
        self.num_experts = config.num_local_experts
        self.hidden_dim = config.hidden_size
        self.intermediate_dim = config.moe_intermediate_size
        width, hidden = self.intermediate_dim, self.hidden_dim
        self.gate_up_proj = nn.Parameter(torch.empty(self.num_experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, hidden, width))
        if config.mlp_bias:
            self.gate_up_proj_bias = nn.Parameter(torch.empty(self.num_experts, 2 * width))
            self.down_proj_bias = nn.Parameter(torch.empty(self.num_experts, hidden))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """[tokens, H], chosen experts and weights [tokens, k] -> [tokens, H]; the `eager` implementation.

        Tokens are sorted by expert so that each expert sees one contiguous slice; an index equal to the number of
        experts (another rank's expert under expert parallelism) is left out.
        """
        tokens, k = top_k_index.shape
        expert_ids, order = torch.sort(top_k_index.reshape(-1))
        counts = torch.bincount(expert_ids, minlength=self.num_experts)[: self.num_experts].tolist()
        order = order[: sum(counts)]
        token_ids = order // k
        slices = hidden_states[token_ids].split(counts)
        # unbind once: indexing a parameter per expert would make a full-size gradient for each of them.
        gate_up, down = self.gate_up_proj.unbind(0), self.down_proj.unbind(0)
        gate_up_bias = self.gate_up_proj_bias.unbind(0) if self.has_bias else [None] * self.num_experts
        down_bias = self.down_proj_bias.unbind(0) if self.has_bias else [None] * self.num_experts
        outputs = [
            F.linear(self._apply_gate(F.linear(x, gate_up[e], gate_up_bias[e])), down[e], down_bias[e])
            for e, x in enumerate(slices)
            if counts[e]
        ]
        weights = top_k_weights.reshape(-1)[order].unsqueeze(-1)
        weighted = torch.cat(outputs) * weights
        result = torch.zeros((tokens, self.hidden_dim), dtype=weighted.dtype, device=weighted.device)
        return result.index_add_(0, token_ids, weighted).to(hidden_states.dtype)


class MortmTopKRouter(nn.Module):
    """Chooses experts for every token. Returns (logits [tokens, E] fp32, weights [tokens, k], indices [tokens, k]).

    With `router_balancing="bias"` a bias per expert takes part in the choice but not in the weights; it rises for
    experts that saw fewer tokens than the mean and falls for the others (Wang et al. 2024, "Auxiliary-Loss-Free Load
    Balancing"). Choices are counted in the forward pass and applied at the start of the next one, so that gradient
    checkpointing recomputes with the bias it first used. Nothing is copied to the host.
    """

    def __init__(self, config: MortmConfig):
        super().__init__()
        self.config = config
        self.num_experts = config.num_local_experts
        self.weight = nn.Parameter(torch.zeros(self.num_experts, config.hidden_size))
        self.has_bias = config.router_balancing == "bias"
        if self.has_bias:
            self.register_buffer("e_score_correction_bias", torch.zeros(self.num_experts))
            self.register_buffer("expert_counts", torch.zeros(self.num_experts), persistent=False)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        config = self.config
        hidden_states = hidden_states.reshape(-1, hidden_states.shape[-1])
        with torch.autocast(hidden_states.device.type, enabled=False):
            logits = F.linear(hidden_states.float(), self.weight.float())
        scores = logits.softmax(-1) if config.scoring_func == "softmax" else logits.sigmoid()
        choice = scores.detach()
        if self.has_bias and (self.training or config.router_bias_in_eval):
            choice = choice + self.e_score_correction_bias.float()
        indices = choose_experts(choice, config)
        if self.has_bias and self.training:
            hits = torch.zeros_like(choice).scatter_(-1, indices, 1.0)
            self.expert_counts.add_(hits.sum(0))
        weights = scores.gather(-1, indices)
        if config.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + config.norm_topk_eps)
        if config.routed_scaling_factor != 1.0:
            weights = weights * config.routed_scaling_factor
        return logits, weights.to(hidden_states.dtype), indices

    @torch.no_grad()
    def update_bias(self) -> None:
        """Move the bias by the choices counted since the last call (summed over all processes), and start anew."""
        counts = self.expert_counts
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(counts)
        step = torch.sign(counts.mean() - counts) * self.config.router_bias_update_rate
        self.e_score_correction_bias.add_(step.to(self.e_score_correction_bias.dtype))
        counts.zero_()


class MortmSparseMoeBlock(nn.Module):
    """Routed experts plus an optional expert that every token passes through."""

    def __init__(self, config: MortmConfig):
        super().__init__()
        self.gate = MortmTopKRouter(config)
        self.experts = MortmExperts(config)
        self.experts.has_bias = config.mlp_bias  # the decorator knows it per class only
        self.expert_biases = config.mlp_bias
        self.shared_experts = None
        if config.shared_expert_intermediate_size:
            self.shared_experts = MortmMLP(config, config.shared_expert_intermediate_size, gated=True)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        flat = hidden_states.reshape(-1, hidden_states.shape[-1])
        # a sharded parameter (DTensor) knows where it was cut: along experts is fine, within one is not
        # (PEFT wraps the experts and hides their parameters)
        cuts = getattr(getattr(self.experts, "down_proj", None), "placements", ()) if self.expert_biases else ()
        if any(getattr(cut, "dim", 0) != 0 for cut in cuts):
            raise ValueError(
                "mlp_bias of experts with tensor parallelism would be added once per rank: use expert parallelism."
            )
        _, weights, indices = self.gate(flat)
        output = self.experts(flat, indices, weights)
        if self.shared_experts is not None:
            output = output + self.shared_experts(flat)
        return output.reshape(hidden_states.shape)


class MortmDecoderLayer(GradientCheckpointingLayer):
    """Pre-norm attention and feed-forward, each with dropout and a residual."""

    def __init__(self, config: MortmConfig, layer_idx: int):
        super().__init__()
        self.self_attn = MortmAttention(config, layer_idx)
        self.mlp = MortmSparseMoeBlock(config) if config.mlp_layer_types[layer_idx] == "sparse" else MortmMLP(config)
        self.input_layernorm = make_norm(config)
        self.post_attention_layernorm = make_norm(config)
        self.dropout = config.hidden_dropout

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        update, _ = self.self_attn(
            hidden_states=self.input_layernorm(hidden_states),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            position_embeddings=position_embeddings,
            **kwargs,
        )
        hidden_states = hidden_states + F.dropout(update, self.dropout, self.training)
        update = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + F.dropout(update, self.dropout, self.training)


class MortmPreTrainedModel(PreTrainedModel):
    """What all MORTM models share: flags, recorded outputs and initialisation."""

    config_class = MortmConfig
    config: MortmConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MortmDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _supports_attention_backend = True
    _can_record_outputs = {
        "router_logits": OutputRecorder(MortmTopKRouter, index=0),
        "hidden_states": MortmDecoderLayer,
        "attentions": MortmAttention,
    }
    _keep_in_fp32_modules_strict = ["e_score_correction_bias"]

    def __init__(self, config: MortmConfig, *inputs, **kwargs):
        super().__init__(config, *inputs, **kwargs)
        self.add_model_tags([config.model_type, "symbolic-music", "midi"])  # a list of its own: pushing adds to it

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        # transformers looks for the experts' decorator in the file of the class
        return True

    def _routing(self, output_router_logits: bool | None, labels) -> tuple[bool, bool]:
        """Whether the router's logits are returned; whether they are needed for that or for the training loss."""
        config = self.config
        shown = config.output_router_logits if output_router_logits is None else output_router_logits
        balanced = config.router_balancing == "loss" and config.router_aux_loss_coef
        needed = shown or (self.training and labels is not None and balanced)
        return shown, bool(needed) and "sparse" in config.mlp_layer_types

    def _output(
        self, loss, logits, outputs: MoeModelOutputWithPast, attention_mask, shown: bool, counted: bool
    ) -> MoeCausalLMOutputWithPast:
        """What a head returns, the balancing loss added to its loss where the router's logits were `counted`."""
        aux_loss = None
        if counted:
            aux_loss = load_balancing_loss(outputs.router_logits, self.config, attention_mask)
            if loss is not None:
                loss = loss + self.config.router_aux_loss_coef * aux_loss.to(loss.device)
        return MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits if shown else None,
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, MortmExperts):
            init.normal_(module.gate_up_proj, mean=0.0, std=std)
            init.normal_(module.down_proj, mean=0.0, std=std)
            if hasattr(module, "gate_up_proj_bias"):
                init.zeros_(module.gate_up_proj_bias)
                init.zeros_(module.down_proj_bias)
        elif isinstance(module, MortmTopKRouter):
            init.normal_(module.weight, mean=0.0, std=std)
            if hasattr(module, "e_score_correction_bias"):
                init.zeros_(module.e_score_correction_bias)
                init.zeros_(module.expert_counts)
        elif isinstance(module, MortmAlibi):
            init.copy_(module.slopes, alibi_slopes(module.num_heads))
        elif isinstance(module, MortmDynamicTanh):
            init.constant_(module.alpha, module.alpha_init)
            init.ones_(module.weight)
            init.zeros_(module.bias)


class MortmModel(MortmPreTrainedModel):
    """The layers without a head."""

    def __init__(self, config: MortmConfig):
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList([MortmDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = make_norm(config)
        rope = config.position_embedding_type == "rope"
        self.rotary_emb = MortmRotaryEmbedding(config) if rope else None
        self.alibi = None if rope else MortmAlibi(config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MoeModelOutputWithPast:
        """Token ids [batch, length] (or embeddings) -> states [batch, length, hidden_size], and the cache if used.

        `attention_mask` [batch, keys] is 1 for real tokens. `position_ids` that restart at 0 (without attention mask
        and cache) separate several pieces in one row: none sees another.
        """
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if not self.config.is_causal:
            if past_key_values is not None:
                raise ValueError("A bidirectional model (is_causal=False) has no cache: leave past_key_values out.")
            use_cache = False
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if self.training and torch.is_grad_enabled() and self.config.router_balancing == "bias":
            for layer in self.layers:
                if isinstance(layer.mlp, MortmSparseMoeBlock):
                    layer.mlp.gate.update_bias()
        implementation = self.config._attn_implementation
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if implementation == "flex_attention" and inputs_embeds.device.type == "cpu" and past:
            raise ValueError(
                "flex_attention cannot decode with a cache on a CPU (torch fails to compile it): use sdpa or eager."
            )
        if implementation == "flex_attention" and torch.compiler.is_exporting():
            raise ValueError("flex_attention cannot be exported (its block mask is no tensor): use sdpa or eager.")
        shape = inputs_embeds.shape
        given = position_ids
        if position_ids is None:
            position_ids = (torch.arange(shape[1], device=inputs_embeds.device) + past).unsqueeze(0)
        elif implementation == "flash_attention_2" and attention_mask is None and past_key_values is None:
            # Flash attention separates pieces in a batch of one row only; several packed rows become one.
            if shape[0] > 1 and position_ids.shape[0] > 1 and find_packed_sequence_indices(position_ids) is not None:
                inputs_embeds, position_ids = inputs_embeds.reshape(1, -1, shape[-1]), position_ids.reshape(1, -1)
        attention_mask = self._attention_mask(inputs_embeds, attention_mask, past_key_values, position_ids)
        hidden_states = inputs_embeds
        position_embeddings = None
        if self.alibi is None:
            position_embeddings = self.rotary_emb(hidden_states, position_ids=position_ids)
        else:
            attention_mask, alibi = self._alibi(inputs_embeds.shape[1], attention_mask, past_key_values, past)
            kwargs.update(alibi)
        for layer in self.layers[: self.config.num_hidden_layers]:
            hidden_states = layer(
                hidden_states,
                attention_mask=attention_mask,
                position_ids=None if given is None else position_ids,  # flash attention looks for packed pieces in it
                past_key_values=past_key_values,
                use_cache=use_cache,
                position_embeddings=position_embeddings,
                **kwargs,
            )
        hidden_states = self.norm(hidden_states).reshape(shape)
        return MoeModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=past_key_values)

    def _attention_mask(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        position_ids: torch.Tensor,
    ):
        """The mask in the form the attention implementation wants; packed pieces do not see each other."""
        options = dict(config=self.config, inputs_embeds=inputs_embeds, attention_mask=attention_mask)
        if self.config.is_causal:
            return create_causal_mask(**options, past_key_values=past_key_values, position_ids=position_ids)
        # transformers' bidirectional mask knows nothing of packing (flash attention reads position_ids itself)
        pieces = None
        if attention_mask is None and self.config._attn_implementation != "flash_attention_2":
            pieces = find_packed_sequence_indices(position_ids.expand(inputs_embeds.shape[0], -1))
        if pieces is not None:
            options["and_mask_function"] = packed_sequence_mask_function(pieces)
        return create_bidirectional_mask(**options)

    def _alibi(
        self, length: int, mask: torch.Tensor | None, past_key_values: Cache | None, past: int | torch.Tensor
    ) -> tuple[torch.Tensor | None, dict]:
        """ALiBi for `length` queries after `past` keys: (mask, further arguments of the attention function)."""
        implementation, slopes = self.config._attn_implementation, self.alibi.slopes
        if implementation not in ALIBI_IMPLEMENTATIONS:
            raise ValueError(
                f"The attention implementation {implementation!r} would ignore ALiBi: use one of "
                f"{', '.join(ALIBI_IMPLEMENTATIONS)} (set_attn_implementation), or a model with rotary positions."
            )
        if implementation == "flash_attention_2":
            return mask, {"slopes": slopes}
        if implementation == "flex_attention":
            return mask, {"slopes": slopes, "query_offset": past}
        # Up to head_dim queries a bias is smaller than the copies of keys and values that further dimensions need.
        if implementation == "sdpa" and self.config.is_causal and length > self.config.head_dim:
            return mask, {"slopes": slopes, "query_offset": past}
        if mask is not None:
            keys = mask.shape[-1]
        else:
            keys = length if past_key_values is None else past_key_values.get_mask_sizes(length, 0)[0]
        return self.alibi.add_to_mask(mask, length, keys, past, self.config.is_causal), {}


def load_balancing_loss(
    router_logits: tuple[torch.Tensor, ...], config: MortmConfig, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Switch Transformer's balancing loss over all sparse layers: E * sum_e(share of choices * mean probability).

    Args:
        router_logits: per sparse layer [tokens, E].
        config: number and choice of the experts.
        attention_mask: [batch, length] with tokens = batch * length; padding does not count.

    Returns:
        A scalar, 1 where all experts are chosen equally often.
    """
    mask = None if attention_mask is None else attention_mask.reshape(-1, 1).to(router_logits[0].dtype)
    rows = router_logits[0].shape[0] if mask is None else mask.sum()
    chosen = probability = 0.0
    for logits in router_logits:
        logits = logits.to(router_logits[0].device)
        if config.scoring_func == "softmax":
            scores = logits.softmax(-1)
        else:
            scores = logits.sigmoid()
            scores = scores / scores.sum(-1, keepdim=True)
        hits = torch.zeros_like(scores).scatter_(-1, choose_experts(scores.detach(), config), 1.0)
        chosen = chosen + (hits if mask is None else hits * mask).sum(0)
        probability = probability + (scores if mask is None else scores * mask).sum(0)
    total = rows * len(router_logits)
    return config.num_local_experts * torch.sum(chosen / total * probability / total)


class MortmForCausalLM(MortmPreTrainedModel, GenerationMixin):
    """MORTM with an output layer over the vocabulary."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: MortmConfig):
        super().__init__(config)
        self.model = MortmModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MoeCausalLMOutputWithPast:
        """Next-token logits [batch, length, vocab_size], and the loss if `labels` (-100 = not counted) are given.

        With `router_balancing="loss"` the balancing loss is part of the training loss (not of the evaluation loss);
        `output_router_logits=True` adds it always and returns the router's logits.
        """
        shown, counted = self._routing(output_router_logits, labels)
        outputs: MoeModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_router_logits=counted,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, keep, :])
        loss = None if labels is None else self.loss_function(logits, labels, self.vocab_size, **kwargs)
        return self._output(loss, logits, outputs, attention_mask, shown, counted)

    def prepare_inputs_for_generation(self, *args, past_key_values: Cache | None = None, **kwargs):
        """As transformers', which fails on the block masks that flex attention makes for a static cache."""
        static = past_key_values is not None and getattr(past_key_values, "is_compileable", False)
        if static and self.config._attn_implementation == "flex_attention":
            raise ValueError("flex_attention cannot generate with a static cache: use sdpa or eager.")
        return super().prepare_inputs_for_generation(*args, past_key_values=past_key_values, **kwargs)

    def init_continuous_batching(self, *args, **kwargs):
        """As transformers'; rotary positions only.

        Its rows hold pieces of many sequences at once, so the place in a row, which ALiBi counts from, says nothing.
        """
        if self.config.position_embedding_type == "alibi":
            raise ValueError(
                "continuous batching would ignore ALiBi: use generate(), or a model with rotary positions."
            )
        return super().init_continuous_batching(*args, **kwargs)


class MortmScoreHead(nn.Module):
    """States [..., hidden_size] -> scores [..., num_labels] through one hidden layer."""

    def __init__(self, config: MortmConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.classifier_hidden_size)
        self.act_fn = ACT2FN[config.classifier_activation]
        self.out_proj = nn.Linear(config.classifier_hidden_size, config.num_labels)
        self.dropout = config.classifier_dropout

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = F.dropout(hidden_states, self.dropout, self.training)
        return self.out_proj(self.act_fn(self.dense(hidden_states)))


class MortmForSequenceClassification(GenericForSequenceClassification, MortmPreTrainedModel):
    """MORTM with a score of `num_labels` values read at the last real token.

    `score` works on every state, so `num_labels=1` is also a critic that values every position; upstream's has a
    hidden layer (`classifier_hidden_size = hidden_size // 2`).
    """

    def __init__(self, config: MortmConfig):
        MortmPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = MortmModel(config)
        if config.classifier_hidden_size is None:
            self.score = nn.Linear(config.hidden_size, self.num_labels, bias=False)
        else:
            self.score = MortmScoreHead(config)
        self.post_init()
