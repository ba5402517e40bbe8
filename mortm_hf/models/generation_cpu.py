"""Fast decoding on a CPU: one compiled call a token, for all rows of a batch.

Design decisions
- At one token a row, the operators of a tensor library cost more than the arithmetic: the whole step is one compiled
  function (`generation_kernels`), some ten times as fast as the model's own and at the pace at which a core reads.
- Weights are copied once into two arrays (matrices of the layers; embedding, output layer and routers) and one of
  norms, biases and scales. They are kept in bfloat16 where every one of them is exact in it, as in checkpoints saved
  in bfloat16: the same numbers, half the bytes.
- "int8" rounds the layers' matrices, with one scale an output, for models too large for the caches. Activations,
  routers, norms, attention and the output layer stay in fp32.
- The prompt goes through the model itself (fp32 weights, also before int8 decoding): many tokens at once are what it
  is fast at. Rows with one prompt (versions of a song) share its keys and values: in a batch these are what is read
  most.
- Rows that have ended are not computed. Several threads share the rows of a batch, never one row's arithmetic.
- Grammar and sampling run compiled, too, where `generation_fused` knows every processor; others are called as
  `generate` calls them.
- What this path does not do is refused by name, never done another way: see `refusal` and `FastDecoder.generate`.

Knows: tensors, the layers of `modeling_mortm`, processors and streamers of `generate()`. Must not know: MIDI, the
grammar.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache
from transformers.utils import logging

from .errors_mortm import GenerationError, PromptError
from .generation_compiled import announce, load_compiled, missing
from .generation_fused import FusedChoice, read_chain


logger = logging.get_logger(__name__)
PRECISIONS = ("fp32", "int8")
# rotary tables that do not change with the length of the sequence
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_OWN = {"experts": "MortmExperts", "gate": "MortmTopKRouter"}
# `hidden_act` -> the number that `generation_kernels` knows it by; several are names of one function
ACTIVATIONS = {"silu": 0, "swish": 0, "gelu": 1, "gelu_new": 2, "gelu_pytorch_tanh": 2, "gelu_fast": 2}
ACTIVATIONS |= {"quick_gelu": 3, "relu": 4, "relu2": 5, "tanh": 6, "sigmoid": 7, "mish": 8, "linear": 9}
NORMS = ("rmsnorm", "layernorm", "dynamic_tanh")  # in the order of `generation_kernels`
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
    reason = missing()
    if reason is not None:
        return reason
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
    if config.hidden_act not in ACTIVATIONS:
        return f"fast decoding has the activations {', '.join(ACTIVATIONS)}, not {config.hidden_act}"
    for name, parameter in model.named_parameters():
        if parameter.device.type != "cpu":
            return f"fast decoding is for a CPU, but the model is on {parameter.device}"
        if type(parameter) is not nn.Parameter or not parameter.is_floating_point():
            return f"fast decoding needs plain weights, but {name} is sharded or quantised"
    for name, module in model.named_modules():
        last, kind = name.rpartition(".")[2], type(module)
        linear = last == "lm_head" or last.endswith("_proj")
        # adapters of PEFT are called Linear too; ours are known by name, for folders are module trees of their own
        known = kind is nn.Linear if linear else kind.__name__ == _OWN.get(last, kind.__name__)
        if not known:
            return f"fast decoding knows no {kind.__module__}.{kind.__name__} ({name}): merge it (merge_and_unload)"
    return None


def unsupported_arguments(generation_config, arguments: dict) -> list[str]:
    """Names of arguments of `generate` that fast decoding would not obey.

    Args:
        generation_config: a `GenerationConfig`, of which the values that differ from the default count.
        arguments: those given in a call, by name.

    Returns:
        Sorted names.
    """
    given = {**generation_config.to_diff_dict(), **arguments}
    neutral = {"num_beams": 1, "num_beam_groups": 1}

    def acts(name, value) -> bool:
        without = neutral.get(name, 1.0 if name.endswith("_penalty") else None)
        return value is not None and value is not False and value != 0 and value != without

    return sorted(
        name for name, value in given.items() if name not in _OBEYED and name[0] != "_" and acts(name, value)
    )


class _Arrays:
    """The weights of a model as `generation_kernels.step` reads them.

    Attributes:
        weights: [n] matrices of the layers.
        tables: [n] embedding, output layer, routers.
        vectors: [n] norms, biases, scales.
        sizes: whole numbers and places.
        reals: other numbers.
        layers: [layers, N_LAYER] places of each layer's parts.
    """

    def __init__(self, model, precision: str):
        self.places = p = load_compiled("generation_kernels")
        config, base = model.config, model.model
        self.int8 = precision == "int8"
        self.parts: dict[str, list[torch.Tensor]] = {"weights": [], "tables": [], "vectors": []}
        self.used = dict.fromkeys(self.parts, 0)
        sizes, reals = np.zeros(p.N_SIZES, dtype=np.int64), np.zeros(p.N_REALS, dtype=np.float32)
        for place, value in (
            (p.HIDDEN, config.hidden_size),
            (p.HEADS, config.num_attention_heads),
            (p.KV_HEADS, config.num_key_value_heads),
            (p.HEAD_DIM, config.head_dim),
            (p.VOCAB, model.lm_head.out_features),
            (p.NORM, NORMS.index(config.norm_type)),
            (p.ACT, ACTIVATIONS[config.hidden_act]),
            (p.GATED, config.gated_mlp),
            (p.INNER, config.intermediate_size),
            (p.EXPERTS, config.num_local_experts),
            (p.CHOSEN, config.num_experts_per_tok),
            (p.EXPERT_INNER, config.moe_intermediate_size),
            (p.SHARED_INNER, config.shared_expert_intermediate_size),
            (p.SIGMOID, config.scoring_func == "sigmoid"),
            (p.GROUPS, config.n_group),
            (p.KEPT_GROUPS, config.topk_group),
            (p.NORMALISED, config.norm_topk_prob),
            (p.ROPE, config.position_embedding_type == "rope"),
        ):
            sizes[place] = value
        for place, value in (
            (p.NORM_EPS, config.norm_eps),
            (p.WEIGHT_EPS, config.norm_topk_eps),
            (p.FACTOR, config.routed_scaling_factor),
            (p.SCALE, config.head_dim**-0.5),
        ):
            reals[place] = value
        layers = [self._layer(layer, config) for layer in base.layers[: config.num_hidden_layers]]
        sizes[p.LAST_NORM] = self._norm(base.norm)
        head = self._linear("tables", [model.lm_head])
        sizes[p.HEAD : p.HEAD + 3] = head
        tied = model.lm_head.weight is base.embed_tokens.weight
        sizes[p.EMBED] = head[0] if tied else self._place("tables", base.embed_tokens.weight)
        self.sizes, self.reals, self.layers = sizes, reals, np.array(layers, dtype=np.int64)
        exact = all((t.view(torch.int32) & 0xFFFF == 0).all() for n in ("weights", "tables") for t in self.parts[n])
        half = exact and not self.int8
        self.weights, self.tables = (self._joined(name, half) for name in ("weights", "tables"))
        self.vectors = self._joined("vectors", False)
        del self.parts

    def _joined(self, name: str, half: bool) -> np.ndarray:
        if name == "weights" and self.int8:
            return torch.cat(self.parts[name]).to(torch.int8).numpy()
        joined = torch.cat([torch.zeros(0), *self.parts[name]]).numpy()
        return (joined.view(np.uint32) >> np.uint32(16)).astype(np.uint16) if half else joined

    def _place(self, name: str, tensor: torch.Tensor) -> int:
        place = self.used[name]
        self.parts[name].append(tensor.detach().float().reshape(-1))
        self.used[name] += tensor.numel()
        return place

    def _matrix(self, name: str, weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[int, int, int]:
        """Weights [..., out, in] and biases [..., out] -> (place, place of biases, place of scales)."""
        weight, scale = weight.detach().float(), -1
        if name == "weights" and self.int8:
            # rounded before it divides, so that its rounding costs nothing
            factors = (weight.abs().amax(-1) / 127).clamp_min(1e-12).bfloat16().float()
            weight = (weight / factors[..., None]).round_().clamp_(-127, 127)
            scale = self._place("vectors", factors)
        return self._place(name, weight), -1 if bias is None else self._place("vectors", bias), scale

    def _linear(self, name: str, linears: list[nn.Linear]) -> tuple[int, int, int]:
        """Linear layers of one input as one matrix."""
        bias = None if linears[0].bias is None else torch.cat([linear.bias for linear in linears])
        weights = [linear.weight for linear in linears]
        return self._matrix(name, weights[0] if len(weights) == 1 else torch.cat(weights), bias)

    def _norm(self, module: nn.Module) -> int:
        own = [getattr(module, name, None) for name in ("weight", "bias", "alpha")]
        return self._place("vectors", torch.cat([t.detach().float() for t in own if t is not None]))

    def _layer(self, layer: nn.Module, config) -> np.ndarray:
        p, attention, mlp = self.places, layer.self_attn, layer.mlp
        row = np.full(p.N_LAYER, -1, dtype=np.int64)

        def put(column, *linears):
            row[column : column + 3] = self._linear("weights", [linear for linear in linears if linear is not None])

        def put_mlp(module, up, down):
            put(up, getattr(module, "gate_proj", None), module.up_proj)
            put(down, module.down_proj)

        row[p.NORM_1], row[p.NORM_2] = self._norm(layer.input_layernorm), self._norm(layer.post_attention_layernorm)
        put(p.QKV, attention.q_proj, attention.k_proj, attention.v_proj)
        put(p.OUT, attention.o_proj)
        row[p.SPARSE] = sparse = hasattr(mlp, "experts")
        if not sparse:
            put_mlp(mlp, p.UP, p.DOWN)
            return row
        experts, biased = mlp.experts, mlp.expert_biases
        row[p.ROUTER : p.ROUTER + 3] = self._matrix("tables", mlp.gate.weight, None)
        if mlp.gate.has_bias and config.router_bias_in_eval:
            row[p.CORRECTION] = self._place("vectors", mlp.gate.e_score_correction_bias)
        for column, name in ((p.UP, "gate_up_proj"), (p.DOWN, "down_proj")):
            bias = getattr(experts, f"{name}_bias") if biased else None
            row[column : column + 3] = self._matrix("weights", getattr(experts, name), bias)
        if mlp.shared_experts is not None:
            put_mlp(mlp.shared_experts, p.SHARED_UP, p.SHARED_DOWN)
        return row


class FastDecoder:
    """A copy of a model's weights, laid out for decoding on a CPU.

    ```python
    decoder = FastDecoder(model)
    ids = decoder.generate(input_ids, attention_mask, max_new_tokens=512, logits_processor=[grammar])
    ```

    Args:
        model: `MortmForCausalLM` in evaluation mode on a CPU; kept for reading prompts.
        precision: "fp32" (logits within 2e-5 of the model's) or "int8" (weights only; a quarter of the memory).
        threads: how many share the rows of a batch; None: as many as torch may use.

    Raises:
        GenerationError: a model that `refusal` names, an unknown precision.
    """

    @torch.no_grad()
    def __init__(self, model, precision: str = "fp32", threads: int | None = None):
        if precision not in PRECISIONS:
            raise GenerationError(
                f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}", "prompt.argument"
            )
        reason = refusal(model)
        if reason is not None:
            raise GenerationError(reason, "prompt.argument")
        self.model, self.precision, self.config, self.fingerprint = model, precision, model.config, weights_of(model)
        self.threads = torch.get_num_threads() if threads is None else max(int(threads), 1)
        self.arrays = _Arrays(model, precision)
        self.kernel = self.arrays.places.step
        config = model.config
        self.rope = config.position_embedding_type == "rope"
        self.slopes = np.zeros(config.num_attention_heads, dtype=np.float32)
        if not self.rope:
            self.slopes = model.model.alibi.slopes.float().numpy().copy()

    def rotations(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Rotary tables of the model.

        Args:
            length: how many positions.

        Returns:
            cos and sin, each [length, head_dim / 2]; empty ones with ALiBi.
        """
        if not self.rope:
            return np.zeros((1, 0), dtype=np.float32), np.zeros((1, 0), dtype=np.float32)
        tables = self.model.model.rotary_emb(torch.empty(1), position_ids=torch.arange(length)[None])
        cos, sin = (table[0, :, : self.config.head_dim // 2].contiguous().numpy() for table in tables)
        return cos, sin

    def start(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, max_new_tokens: int = 512
    ) -> DecodingState:
        """Read the prompts.

        Args:
            input_ids: [batch, length] the prompts, padded on the left.
            attention_mask: [batch, length], 0 on padding; None: there is none.
            max_new_tokens: how many tokens a row the state has room for.

        Returns:
            A state with the `logits` [batch, vocab] of the first new tokens.

        Raises:
            GenerationError: padding that is not on the left.
        """
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
        """Continue prompts until every row has ended, as greedy `model.generate`.

        Args:
            input_ids: [batch, length] the prompts, padded on the left.
            attention_mask: [batch, length], 0 on padding; None: there is none.
            max_new_tokens: most tokens of an answer.
            logits_processor: as of `generate`; one that adds noise makes it sampling (`SeededChoice`).
            eos_token_id: ids that end a row; the configuration's by default, [] for none.
            pad_token_id: fills rows that have ended; the configuration's by default.
            streamer: as of `generate`.
            stopping_criteria: as of `generate`.

        Returns:
            [batch, length + new] prompts and answers.

        Raises:
            GenerationError: padding that is not on the left.
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
            token, rows = np.full(batch, pad), np.arange(batch)
            columns, logits = ids.numpy(), state.logits.numpy()
            chain = read_chain(logits_processor)
            choose = None if chain is None else FusedChoice(chain, input_ids, logits.shape[1])
            for at in range(length, length + max_new_tokens):
                scores = state.logits
                if choose is not None:
                    choose(logits, at, rows, token)
                else:
                    for processor in logits_processor:
                        scores = processor(ids[:, :at], scores)
                    token[rows] = scores.argmax(-1).numpy()[rows]
                columns[:, at] = token
                if streamer is not None:
                    streamer.put(torch.from_numpy(token.copy()))
                ended = [token == end for end in ends]
                ended += [criterion(ids[:, : at + 1], scores).numpy() for criterion in stopping_criteria]
                stop = np.logical_or.reduce(ended)[rows] if ended else np.zeros(len(rows), dtype=bool)
                if stop.any():
                    token[rows[stop]] = pad
                    rows = rows[~stop]
                if not len(rows) or at + 1 == ids.shape[1]:
                    break
                state.advance(token, rows)
        if streamer is not None:
            streamer.end()
        return ids[:, : at + 1].clone()


class DecodingState:
    """The cache and the buffers of one batch of sequences. `logits` [batch, vocab] are those of the last tokens.

    Args:
        decoder: whose weights are used.
        input_ids: [batch, length] the prompts, padded on the left.
        attention_mask: [batch, length], 0 on padding; None: there is none.
        max_new_tokens: how many steps there is room for.

    Raises:
        GenerationError: padding that is not on the left.
    """

    @torch.inference_mode()
    def __init__(self, decoder: FastDecoder, input_ids, attention_mask, max_new_tokens: int):
        self.decoder, config = decoder, decoder.config
        batch, length = input_ids.shape
        self.room, self.made = max_new_tokens, 0
        heads, kv, dim, k = (
            *(config.num_attention_heads, config.num_key_value_heads, config.head_dim),
            config.num_experts_per_tok,
        )
        # untouched pages of a buffer take no memory, so room is cheap
        shape = (2 * config.num_hidden_layers, batch, kv, max_new_tokens, dim)
        self.cache = np.empty(shape, dtype=np.float32)
        widest = max(
            *(config.intermediate_size, config.moe_intermediate_size, config.shared_expert_intermediate_size),
        )
        self.buffers = (
            *(np.zeros((batch, config.hidden_size), dtype=np.float32) for _ in range(2)),
            np.zeros((batch, (heads + 2 * kv) * dim), dtype=np.float32),
            *(np.zeros((heads, batch, dim), dtype=np.float32) for _ in range(2)),
            np.zeros((batch, heads * dim), dtype=np.float32),
            np.zeros((batch, max(length + self.room, config.num_local_experts)), dtype=np.float32),
            np.zeros((batch * k, 2 * widest), dtype=np.float32),
            np.zeros((batch * k, config.hidden_size), dtype=np.float32),
            np.zeros((batch, k), dtype=np.int64),
            np.zeros((batch, k), dtype=np.float32),
        )
        self.cos, self.sin = decoder.rotations(length + self.room)
        self.logits = self._read(input_ids, attention_mask)
        announce(decoder.kernel)

    def _read(self, input_ids, attention_mask) -> torch.Tensor:
        """The prompts through the model; its cache is copied into ours."""
        model = self.decoder.model
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
        cache = DynamicCache(config=self.decoder.config)
        logits = model(
            ids,
            attention_mask=mask if padded else None,
            position_ids=(mask.cumsum(1) - 1).clamp_min(0) if padded else None,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        both = [getattr(layer, name) for name in ("keys", "values") for layer in cache.layers]
        self.prompt = torch.stack(both).float().numpy()
        self.source = place.numpy()
        self.first = (mask == 0).sum(1)[place].numpy()
        return logits[place].float().contiguous()

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """One more token a row.

        Args:
            tokens: [batch] ids.

        Returns:
            `logits` [batch, vocab].

        Raises:
            PromptError: there is no room left (`prompt.too_long`).
        """
        self.advance(np.ascontiguousarray(tokens.numpy()), np.arange(len(tokens)))
        return self.logits

    def advance(self, tokens: np.ndarray, rows: np.ndarray) -> None:
        """`step` for some rows; the others' logits stay as they are.

        Args:
            tokens: [batch] ids.
            rows: [n] the rows that go on.
        """
        d, a = self.decoder, self.decoder.arrays
        if self.made >= self.room:
            raise PromptError(f"no room for more than {self.room} tokens: raise max_new_tokens", "prompt.too_long")
        given = a.weights, a.tables, a.vectors, a.sizes, a.reals, a.layers, d.slopes, self.cos, self.sin
        given += self.prompt, self.source, self.first, self.cache, self.made
        rest = tokens, *self.buffers, self.logits.numpy()
        if d.threads == 1 or len(rows) == 1:
            d.kernel(*given, rows, *rest)
        else:
            list(_pool(d.threads).map(lambda part: d.kernel(*given, part, *rest), np.array_split(rows, d.threads)))
        self.made += 1


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def weights_of(model) -> tuple:
    """Changes whenever a weight of the model is replaced or written to."""
    tensors = (*model.parameters(), *model.buffers())
    # tensors made in inference mode count no versions, and cannot be written to outside it
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)


def decoder_for(model, fast, unsupported: list[str], known: dict[str, FastDecoder]) -> FastDecoder | None:
    """The decoder of a call of a pipeline, or None where `generate` decodes.

    Args:
        model: the pipeline's.
        fast: its argument: None (wherever the music is the same), False (never), True, "fp32" or "int8".
        unsupported: names of the call's arguments that a decoder would not obey (`unsupported_arguments`).
        known: decoders made so far by precision; a new one takes the place of one whose weights have changed.

    Raises:
        GenerationError: `fast` with a model or with arguments that it does not serve, or another value of it.
    """
    precision = parse_precision(fast)
    if fast is None:  # models of half precision compute in it, a decoder would not
        if unsupported or refusal(model) is not None or any(p.dtype != torch.float32 for p in model.parameters()):
            return None
        precision = "fp32"
    if precision is None:
        return None
    if unsupported:
        raise GenerationError(
            f"fast decoding does not serve {', '.join(dict.fromkeys(unsupported))}: leave that out, or leave out fast",
            "prompt.argument",
        )
    if missing() is not None:
        logger.warning_once(f"{missing()}; generate() decodes")
        return None
    decoder = known.get(precision)
    if decoder is None or decoder.model is not model or decoder.fingerprint != weights_of(model):
        known.pop(precision, None)  # before the new one takes its memory
        decoder = known[precision] = FastDecoder(model, precision)
    return decoder


__all__ = [
    "DecodingState",
    "FastDecoder",
    "decoder_for",
    "parse_precision",
    "refusal",
    "unsupported_arguments",
    "weights_of",
]
