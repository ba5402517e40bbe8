"""Fast decoding on a CPU: one token a row and step, in fp32 or with int8 weights.

Design decisions
- At one token a step two things cost: reading the weights, and calling operators. So weights are copied into the
  layout that streams fastest (`[in, out]` for `mm`: twice the speed of `linear` at one row), query, key and value and
  gate and up are one matrix each, and a layer is some twenty operators that write into buffers made once a call.
- int8 is weight only: `torch._weight_int8pack_mm` with one scale an output channel, for linear layers and experts
  alike. Activations are rounded to bfloat16 and multiplied in fp32; dynamic int8 (activations too) is faster from 8
  rows on, but its one scale for the whole batch makes a row depend on its neighbours. Router, norms, attention and
  the output layer stay in fp32.
- The prompt goes through the model itself (fp32 weights, also before int8 decoding): many tokens at once are what it
  is fast at.
- Rotary pairs are stored side by side, so that rotating is one complex product; a dot product does not see the order.
- RMS norm is the layer norm of [x, -x], whose mean is 0: one fused operator where torch's own on a CPU are six.
- Only the chosen experts are read: one product for each of them over the rows that chose it.
- What this path does not do is refused by name, never done another way: see `refusal` and `FastDecoder.generate`.

Knows: tensors, the layers of `modeling_mortm`, processors and streamers of `generate()`. Must not know: MIDI, the
grammar.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache
from transformers.activations import ACT2FN

from .errors_mortm import GenerationError, PromptError


PRECISIONS = ("fp32", "int8")
# rotary tables that do not change with the length of the sequence
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_OWN = {"experts": "MortmExperts", "gate": "MortmTopKRouter"}
# arguments of `generate` that greedy decoding obeys, or that the caller's processors carry out
_OBEYED = {
    *("max_new_tokens", "max_length", "pad_token_id", "eos_token_id", "bos_token_id", "use_cache", "do_sample"),
    *("num_return_sequences", "temperature", "top_k", "top_p", "min_p", "typical_p", "transformers_version"),
    *("logits_processor", "stopping_criteria", "streamer", "generation_config"),
}


def parse_precision(fast) -> str | None:
    """The argument `fast` of the pipelines -> "fp32", "int8" or None.

    Raises:
        GenerationError: any other value.
    """
    if fast is None or fast is False:
        return None
    if fast is True:
        return "fp32"
    if fast in PRECISIONS:
        return fast
    raise GenerationError(f'fast must be True, False, "fp32" or "int8", got {fast!r}', "prompt.argument")


def refusal(model) -> str | None:
    """Why `model` cannot be decoded by `FastDecoder`, or None if it can."""
    config = getattr(model, "config", None)
    if getattr(config, "model_type", None) != "mortm" or not isinstance(getattr(model, "lm_head", None), nn.Module):
        return f"fast decoding is for MortmForCausalLM, got {type(model).__name__}"
    if not config.is_causal:
        return "fast decoding needs a causal model (is_causal=True)"
    if model.training:
        return "fast decoding needs the model in evaluation mode: call model.eval()"
    if config.position_embedding_type == "rope" and config.rope_parameters["rope_type"] not in _ROPE_TYPES:
        return (
            f"fast decoding has rotary positions of type {', '.join(_ROPE_TYPES)}, not "
            f"{config.rope_parameters['rope_type']}"
        )
    for name, parameter in model.named_parameters():
        if parameter.device.type != "cpu":
            return f"fast decoding is for a CPU, but the model is on {parameter.device}"
        if type(parameter) is not nn.Parameter or not parameter.is_floating_point():
            return f"fast decoding needs plain weights, but {name} is sharded or quantised"
    for name, module in model.named_modules():
        last, kind = name.rpartition(".")[2], type(module)
        linear = last == "lm_head" or last.endswith("_proj")
        # adapters of PEFT are called Linear too; ours are told by name, for folders are module trees of their own
        known = kind is nn.Linear if linear else kind.__name__ == _OWN.get(last, kind.__name__)
        if not known:
            return f"fast decoding knows no {kind.__module__}.{kind.__name__} ({name}): merge it (merge_and_unload)"
    return None


def unsupported_arguments(generation_config, arguments: dict) -> list[str]:
    """Names of arguments of `generate` that fast decoding would not obey, among those given and those of a
    `GenerationConfig`."""
    given = {**generation_config.to_diff_dict(), **arguments}
    neutral = {"num_beams": 1, "num_beam_groups": 1}

    def acts(name, value) -> bool:
        without = neutral.get(name, 1.0 if name.endswith("_penalty") else None)
        return value is not None and value is not False and value != 0 and value != without

    return sorted(
        name for name, value in given.items() if name not in _OBEYED and name[0] != "_" and acts(name, value)
    )


class _Matrix:
    """`x @ weight.T + bias` in fp32, the weight stored [in, out]."""

    dtype = torch.float32  # of its inputs

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None):
        self.weight = weight.float().t().contiguous()
        self.bias = None if bias is None else bias.float().clone()
        self.out_features = weight.shape[0]

    def __call__(self, x: torch.Tensor, out: torch.Tensor) -> None:
        torch.mm(x, self.weight, out=out)
        if self.bias is not None:
            out.add_(self.bias)

    def add(self, total: torch.Tensor, x: torch.Tensor, factor: float = 1.0) -> None:
        """total += factor * self(x)."""
        total.addmm_(x, self.weight, alpha=factor)
        if self.bias is not None:
            total.add_(self.bias, alpha=factor)


class _Int8Matrix:
    """`_Matrix` with int8 weights [out, in] and one scale a row."""

    dtype = torch.bfloat16

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None):
        if weight.shape[1] % 16:  # the kernel reads past the end of other rows
            raise GenerationError(
                f"int8 needs widths that are multiples of 16, the model has one of {weight.shape[1]}: use fp32",
                "prompt.argument",
            )
        weight = weight.float()
        # rounded before it divides, so that its rounding costs nothing
        self.scale = (weight.abs().amax(1) / 127).clamp_min(1e-12).to(torch.bfloat16)
        self.weight = (weight / self.scale.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8)
        self.bias = None if bias is None else bias.float().clone()
        self.out_features = weight.shape[0]

    def __call__(self, x: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(torch._weight_int8pack_mm(x, self.weight, self.scale))
        if self.bias is not None:
            out.add_(self.bias)

    def add(self, total: torch.Tensor, x: torch.Tensor, factor: float = 1.0) -> None:
        total.add_(torch._weight_int8pack_mm(x, self.weight, self.scale), alpha=factor)
        if self.bias is not None:
            total.add_(self.bias, alpha=factor)


def _cat_linear(kind, linears: list[nn.Linear], order: torch.Tensor | None = None):
    """Several linear layers of one input as one matrix; `order` [out] rearranges its outputs."""
    weight = torch.cat([linear.weight for linear in linears])
    bias = None if linears[0].bias is None else torch.cat([linear.bias for linear in linears])
    if order is not None:
        weight, bias = weight[order], None if bias is None else bias[order]
    return kind(weight, bias)


class _Norm:
    """A norm of the model as one function of the doubled state [rows, 2 H] that `_State` keeps: x and room for -x."""

    def __init__(self, module: nn.Module, config):
        self.kind, self.size, self.eps = config.norm_type, config.hidden_size, config.norm_eps
        self.weight = module.weight.float().clone()
        self.bias = module.bias.float().clone() if self.kind != "rmsnorm" else None
        self.alpha = float(module.alpha) if self.kind == "dynamic_tanh" else None
        self.shape = (self.size,)
        if self.kind == "rmsnorm":
            self.weight, self.shape = torch.cat([self.weight, self.weight]), (2 * self.size,)

    def __call__(self, doubled: torch.Tensor, x: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        if self.kind == "rmsnorm":
            torch.neg(x, out=negative)
            return F.layer_norm(doubled, self.shape, self.weight, None, self.eps).narrow(1, 0, self.size)
        if self.kind == "layernorm":
            return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)
        return torch.tanh(x * self.alpha).mul_(self.weight).add_(self.bias)


class _MLP:
    """A feed-forward layer, added to the state."""

    def __init__(self, kind, module, config):
        self.gated, self.act = module.gated, _activation(config)
        self.up = _cat_linear(kind, [module.gate_proj, module.up_proj] if module.gated else [module.up_proj])
        self.down = _cat_linear(kind, [module.down_proj])
        self.width = module.up_proj.out_features

    def buffers(self, rows: int):
        inner = torch.empty(rows, self.up.out_features)
        return (
            inner,
            inner[:, : self.width],
            inner[:, self.width :],
            torch.empty(rows, self.width, dtype=self.up.dtype),
        )

    def __call__(self, x: torch.Tensor, h: torch.Tensor, buffers) -> None:
        inner, gate, up, acted = buffers
        self.up(h, inner)
        if self.gated:
            torch.mul(self.act(gate), up, out=acted)
        else:
            acted.copy_(self.act(gate))
        self.down.add(x, acted)


class _SparseBuffers(NamedTuple):
    """Of `rows` states with k experts each; the last `rows` rows of the joint ones are the shared expert's."""

    logits: torch.Tensor  # [rows, E]
    inner: torch.Tensor  # [rows * k (+ rows), 2 I], its halves `gate` and `up`
    gate: torch.Tensor
    up: torch.Tensor
    acted: torch.Tensor  # [rows * k (+ rows), I]
    each: list[tuple[torch.Tensor, torch.Tensor]]  # the routed rows of `inner` and `acted` one by one
    shared: tuple[torch.Tensor, torch.Tensor]
    own: tuple | None
    out: torch.Tensor  # [rows * k, H]


class _SparseMLP:
    """Router, chosen experts and shared expert, added to the state."""

    def __init__(self, kind, module, config, choose):
        gate, experts = module.gate, module.experts
        self.config, self.act, self.choose = config, _activation(config), choose
        self.k, self.width, self.hidden = config.num_experts_per_tok, config.moe_intermediate_size, config.hidden_size
        self.router = gate.weight.float().t().contiguous()
        used = gate.has_bias and config.router_bias_in_eval
        self.correction = gate.e_score_correction_bias.float().clone() if used else None
        # read once: attributes of a configuration are slow
        self.softmax, self.normalised = config.scoring_func == "softmax", config.norm_topk_prob
        self.epsilon, self.factor = config.norm_topk_eps, config.routed_scaling_factor
        # without groups and bias the best scores are the best logits, and normalised they are those logits' softmax
        self.plain = self.softmax and self.normalised and config.n_group == 1 and self.correction is None
        biased = module.expert_biases
        self.up = [
            kind(experts.gate_up_proj[e], experts.gate_up_proj_bias[e] if biased else None)
            for e in range(experts.num_experts)
        ]
        self.down = [
            kind(experts.down_proj[e], experts.down_proj_bias[e] if biased else None)
            for e in range(experts.num_experts)
        ]
        shared = module.shared_experts
        self.shared = None if shared is None else _MLP(kind, shared, config)
        # one activation for routed and shared rows where they are as wide
        self.joint = self.shared is not None and self.shared.width == self.width

    def buffers(self, rows: int) -> _SparseBuffers:
        routed = rows * self.k
        joint = routed + (rows if self.joint else 0)
        inner = torch.empty(joint, 2 * self.width)
        acted = torch.empty(joint, self.width, dtype=self.up[0].dtype)
        return _SparseBuffers(
            logits=torch.empty(rows, self.router.shape[1]),
            inner=inner,
            gate=inner[:, : self.width],
            up=inner[:, self.width :],
            acted=acted,
            each=[*zip(inner[:routed].split(1), acted[:routed].split(1))],
            shared=(inner[routed:], acted[routed:]),
            own=None if self.shared is None or self.joint else self.shared.buffers(rows),
            out=torch.empty(routed, self.hidden),
        )

    def route(self, h: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """States [rows, H] -> (weights, indices) [rows, k], as `MortmTopKRouter`."""
        torch.mm(h, self.router, out=logits)
        if self.plain:
            best, indices = logits.topk(self.k, dim=-1, sorted=False)
            weights = best.softmax(-1)
        else:
            scores = logits.softmax(-1) if self.softmax else logits.sigmoid()
            indices = self.choose(scores if self.correction is None else scores + self.correction, self.config)
            weights = scores.gather(-1, indices)
            if self.normalised:
                weights = weights / (weights.sum(-1, keepdim=True) + self.epsilon)
        if self.factor != 1.0:
            weights = weights * self.factor
        return weights, indices

    def __call__(self, x: torch.Tensor, h: torch.Tensor, hp: torch.Tensor, b: _SparseBuffers) -> None:
        """x += the layer's output for the states h, which are given as fp32 and in the matrices' type."""
        weights, indices = self.route(h, b.logits)
        if len(x) == 1:
            self._one(x, hp, weights, indices, b)
        else:
            self._many(x, hp, weights, indices, b)
        if self.joint:
            self.shared.down.add(x, b.shared[1])
        elif self.shared is not None:
            self.shared(x, hp, b.own)

    def _one(self, x, hp, weights, indices, b: _SparseBuffers) -> None:
        """The chosen experts of one row, one after the other: nothing is gathered."""
        chosen = indices.tolist()[0]
        for e, (inner, _) in zip(chosen, b.each):
            self.up[e](hp, inner)
        if self.joint:
            self.shared.up(hp, b.shared[0])
        torch.mul(self.act(b.gate), b.up, out=b.acted)
        for e, weight, (_, acted) in zip(chosen, weights.tolist()[0], b.each):
            self.down[e].add(x, acted, weight)

    def _many(self, x, hp, weights, indices, b: _SparseBuffers) -> None:
        """Rows sorted by expert, one product for each expert that was chosen."""
        flat = indices.view(-1).numpy()
        order = flat.argsort(kind="stable")
        counts = np.bincount(flat, minlength=len(self.up)).tolist()
        chosen, sizes = [e for e, n in enumerate(counts) if n], [n for n in counts if n]
        tokens, order = torch.from_numpy(order // self.k), torch.from_numpy(order)
        routed = len(order)
        for e, part, inner in zip(chosen, hp.index_select(0, tokens).split(sizes), b.inner[:routed].split(sizes)):
            self.up[e](part, inner)
        if self.joint:
            self.shared.up(hp, b.shared[0])
        torch.mul(self.act(b.gate), b.up, out=b.acted)
        for e, part, out in zip(chosen, b.acted[:routed].split(sizes), b.out.split(sizes)):
            self.down[e](part, out)
        x.index_add_(0, tokens, b.out.mul_(weights.view(-1)[order].unsqueeze(1)))


def _activation(config):
    return F.silu if config.hidden_act == "silu" else ACT2FN[config.hidden_act]


class _Layer:
    """One decoder layer's weights."""

    def __init__(self, kind, module, config, order, choose):
        attention = module.self_attn
        self.norm_1, self.norm_2 = (
            _Norm(m, config) for m in (module.input_layernorm, module.post_attention_layernorm)
        )
        self.qkv = _cat_linear(kind, [attention.q_proj, attention.k_proj, attention.v_proj], order)
        self.out = _cat_linear(kind, [attention.o_proj])
        self.sparse = hasattr(module.mlp, "experts")
        self.mlp = _SparseMLP(kind, module.mlp, config, choose) if self.sparse else _MLP(kind, module.mlp, config)


def _pair_order(heads: int, head_dim: int) -> torch.Tensor:
    """[heads * head_dim]: half-split rotary dimensions (i, i + d/2) -> side by side."""
    pairs = torch.arange(head_dim).view(2, -1).t().reshape(-1)
    return (torch.arange(heads)[:, None] * head_dim + pairs).reshape(-1)


class FastDecoder:
    """A copy of a model's weights, laid out for decoding on a CPU.

    ```python
    decoder = FastDecoder(model, "int8")
    ids = decoder.generate(input_ids, attention_mask, max_new_tokens=512, logits_processor=[grammar])
    ```

    Args:
        model: `MortmForCausalLM` in evaluation mode on a CPU; kept for reading prompts.
        precision: "fp32" (logits within 2e-5 of the model's) or "int8" (weights only; a quarter of the memory).

    Raises:
        GenerationError: a model that `refusal` names, an unknown precision, int8 with widths that are no multiple of
            16.
    """

    @torch.no_grad()
    def __init__(self, model, precision: str = "fp32"):
        if precision not in PRECISIONS:
            raise GenerationError(
                f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}", "prompt.argument"
            )
        reason = refusal(model)
        if reason is not None:
            raise GenerationError(reason, "prompt.argument")
        config = model.config
        self.model, self.precision, self.config, self.fingerprint = model, precision, config, weights_of(model)
        self.matrix = _Int8Matrix if precision == "int8" else _Matrix
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.rope = config.position_embedding_type == "rope"
        self.order = None
        if self.rope:
            turned = (self.heads + self.kv_heads) * self.head_dim
            straight = torch.arange(turned, turned + self.kv_heads * self.head_dim)
            self.order = torch.cat([_pair_order(self.heads + self.kv_heads, self.head_dim), straight])
        from .modeling_mortm import choose_experts

        base = model.model
        layers = base.layers[: config.num_hidden_layers]
        self.layers = [_Layer(self.matrix, layer, config, self.order, choose_experts) for layer in layers]
        self.norm = _Norm(base.norm, config)
        self.embedding = base.embed_tokens.weight.float().clone()
        self.head = _cat_linear(_Matrix, [model.lm_head])

    def rotations(self, length: int) -> torch.Tensor:
        """[length, head_dim / 2] complex: cos + i sin of every position, from the model's own tables."""
        cos, sin = self.model.model.rotary_emb(torch.empty(1), position_ids=torch.arange(length)[None])
        half = self.head_dim // 2
        return torch.complex(cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous())

    def start(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, max_new_tokens: int = 512
    ) -> DecodingState:
        """Read the prompts [batch, length] (left-padded) -> a state with `logits` [batch, vocab] and room for
        `max_new_tokens` steps."""
        return DecodingState(self, input_ids, attention_mask, max_new_tokens)

    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        max_new_tokens: int,
        logits_processor=(),
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        streamer=None,
        stopping_criteria=(),
    ) -> torch.Tensor:
        """Prompts [batch, length] -> prompts and answers [batch, length + new], as greedy `model.generate`.

        The processors are called as `generate` calls them, so one that adds noise samples (`SeededChoice`). Rows that
        have ended are filled with `pad_token_id`; all ends when all have.
        """
        config = self.config
        ends = config.eos_token_id if eos_token_id is None else eos_token_id
        ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        pad = config.pad_token_id if pad_token_id is None else pad_token_id
        pad = pad if pad is not None else ends[0] if ends else 0
        batch, length = input_ids.shape
        if streamer is not None:
            streamer.put(input_ids)
        with torch.inference_mode():
            state = self.start(input_ids, attention_mask, max_new_tokens)
            ids = torch.full((batch, length + max_new_tokens), pad, dtype=torch.long)
            ids[:, :length] = input_ids
            done = torch.zeros(batch, dtype=torch.bool)
            ends = torch.tensor(ends, dtype=torch.long)
            scores = state.logits
            for at in range(length, length + max_new_tokens):
                so_far = ids[:, :at]
                for processor in logits_processor:
                    scores = processor(so_far, scores)
                token = scores.argmax(-1).masked_fill_(done, pad)
                ids[:, at] = token
                if streamer is not None:
                    streamer.put(token)
                done |= torch.isin(token, ends)
                for criterion in stopping_criteria:
                    done |= criterion(ids[:, : at + 1], scores)
                if done.all() or at + 1 == ids.shape[1]:
                    break
                scores = state.step(token)
        if streamer is not None:
            streamer.end()
        return ids[:, : at + 1].clone()


class DecodingState:
    """The cache and the buffers of one batch of sequences. `logits` [batch, vocab] are those of the last tokens."""

    @torch.inference_mode()
    def __init__(self, decoder: FastDecoder, input_ids, attention_mask, max_new_tokens: int):
        self.decoder, d = decoder, decoder
        rows, length = input_ids.shape
        room = length + max_new_tokens
        hidden, heads, kv, dim = d.config.hidden_size, d.heads, d.kv_heads, d.head_dim
        self.length, self.room = length, room
        self.shape, self.heard_as = (rows, d.head.out_features), (rows, heads * dim)
        # untouched pages of a buffer take no memory, so room is cheap
        self.cache = torch.empty(len(d.layers), rows, 2, kv, room, dim)
        self.keys, self.values = self.cache.unbind(2)
        self.doubled = torch.zeros(rows, 2 * hidden)
        self.x, self.negative = self.doubled[:, :hidden], self.doubled[:, hidden:]
        qkv = self.qkv = torch.empty(rows, (heads + 2 * kv) * dim)
        self.turned = torch.view_as_complex(qkv.view(rows, heads + 2 * kv, -1, 2)[:, : heads + kv]) if d.rope else None
        self.query = qkv[:, : heads * dim].view(rows, kv, heads // kv, dim)
        self.fresh = qkv[:, heads * dim :].view(rows, 2, kv, dim)  # the new key and value
        self.inner = [layer.mlp.buffers(rows) for layer in d.layers]
        self.logits = self._read(input_ids, attention_mask)

    def _read(self, input_ids, attention_mask) -> torch.Tensor:
        """The prompts through the model; its cache is copied into ours."""
        d, model, length = self.decoder, self.decoder.model, self.length
        attention_mask = None if attention_mask is None else attention_mask.long()
        padded = attention_mask is not None and not bool(attention_mask.all())
        if padded and not bool((attention_mask[:, -1] == 1).all() and (attention_mask.diff(dim=1) >= 0).all()):
            raise GenerationError(
                "fast decoding takes prompts that are padded on the left (padding_side='left')", "prompt.argument"
            )
        # versions of one song have one prompt: it is read once
        mask = attention_mask if padded else torch.ones_like(input_ids)
        rows, place = torch.cat([input_ids, mask], dim=1).unique(dim=0, return_inverse=True)
        ids, mask = rows.chunk(2, dim=1)
        cache = DynamicCache(config=d.config)
        logits = model(
            ids,
            attention_mask=mask if padded else None,
            position_ids=(mask.cumsum(1) - 1).clamp_min(0) if padded else None,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        pairs = None if d.order is None else torch.arange(d.head_dim).view(2, -1).t().reshape(-1)
        for i in range(len(d.layers)):
            key, value = cache.layers[i].keys, cache.layers[i].values
            self.keys[i, :, :, :length] = (key if pairs is None else key[..., pairs])[place]
            self.values[i, :, :, :length] = value[place]
        # what depends on the place only, for all steps
        self.turns = self.bias = None
        first = torch.zeros(1, dtype=torch.long)
        if padded:
            first = (attention_mask == 0).sum(1)
            self.bias = torch.zeros(len(input_ids), 1, 1, self.room)
            self.bias[:, 0, 0, :length].masked_fill_(attention_mask == 0, -torch.inf)
        if d.rope:
            table = d.rotations(self.room)
            self.turns = table[(torch.arange(self.room)[:, None] - first).clamp_min(0)].unsqueeze(2)
        else:
            # -slope * (distance to the last key), read from the end: exact at any length
            slopes = model.model.alibi.slopes.float().view(d.kv_heads, -1, 1)
            self.penalty = slopes * torch.arange(1 - self.room, 1)
        return logits[place].float()

    def _bias(self, n: int) -> torch.Tensor | None:
        """What is added to the scores of `n` keys."""
        bias = None if self.bias is None else self.bias[..., :n]
        if self.decoder.rope:
            return bias
        penalty = self.penalty[None, ..., self.room - n :]
        return penalty if bias is None else penalty + bias

    @torch.inference_mode()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """One more token a row [batch] -> `logits` [batch, vocab].

        Raises:
            PromptError: there is no room left.
        """
        d, at = self.decoder, self.length
        if at >= self.room:
            raise PromptError(f"no room for more than {self.room} tokens: raise max_new_tokens", "prompt.too_long")
        n = self.length = at + 1
        doubled, x, negative, qkv, fresh = self.doubled, self.x, self.negative, self.qkv, self.fresh
        query, turned, heard_as = self.query, self.turned, self.heard_as
        half, bias = d.matrix.dtype != torch.float32, self._bias(n)
        turn = None if turned is None else self.turns[at]
        x.copy_(F.embedding(tokens, d.embedding))
        keys, values = self.keys.narrow(3, 0, n).unbind(0), self.values.narrow(3, 0, n).unbind(0)
        places = self.cache.select(4, at).unbind(0)
        for layer, key, value, place, inner in zip(d.layers, keys, values, places, self.inner):
            h = layer.norm_1(doubled, x, negative)
            layer.qkv(h.bfloat16() if half else h, qkv)
            if turn is not None:
                turned.mul_(turn)
            place.copy_(fresh)
            # the heads that share a key are the queries of one product
            heard = F.scaled_dot_product_attention(query, key, value, attn_mask=bias).reshape(heard_as)
            layer.out.add(x, heard.bfloat16() if half else heard)
            h = layer.norm_2(doubled, x, negative)
            hp = h.bfloat16() if half else h
            if layer.sparse:
                layer.mlp(x, h, hp, inner)
            else:
                layer.mlp(x, hp, inner)
        self.logits = torch.empty(self.shape)
        d.head(d.norm(doubled, x, negative), self.logits)
        return self.logits


def weights_of(model) -> tuple:
    """Changes whenever a weight of the model is replaced or written to."""
    tensors = (*model.parameters(), *model.buffers())
    # tensors made in inference mode count no versions, and cannot be written to outside it
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)


__all__ = ["DecodingState", "FastDecoder", "parse_precision", "refusal", "unsupported_arguments", "weights_of"]
