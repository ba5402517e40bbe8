"""ALiBi inside the attention implementations of transformers.

Design decisions
- ALiBi needs no length x length bias where attention is causal: a softmax ignores what is constant in a row, so
  -slope * (i - j) may be replaced by slope * j, which is a dot product with one further key dimension (sdpa). Flash
  attention and flex attention compute the bias inside their kernels. Bias matrices remain for eager, for
  bidirectional sdpa and for the few queries of a decoding step.

Knows: tensors, attention functions of transformers. Must not know: layers, configurations.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.integrations.flex_attention import compile_friendly_flex_attention, flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import find_packed_sequence_indices
from transformers.modeling_utils import AttentionInterface
from transformers.models.llama.modeling_llama import repeat_kv


def alibi_slopes(num_heads: int) -> torch.Tensor:
    """Slopes [num_heads] of "Train Short, Test Long" (Press et al. 2022), largest first for powers of two.

    For n a power of two: 2^(-8/n), its square, ... Other counts take all slopes of the next lower power of two, then
    every second one of the next higher.
    """
    lower = 2 ** (num_heads.bit_length() - 1)
    first = [2.0 ** (-8.0 * (i + 1) / lower) for i in range(lower)]
    rest = [2.0 ** (-4.0 * (i + 1) / lower) for i in range(0, 2 * (num_heads - lower), 2)]
    return torch.tensor(first + rest, dtype=torch.float32)


def alibi_as_dimensions(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    slopes: torch.Tensor,
    scaling: float,
    offset: int | torch.Tensor = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Causal ALiBi as further dimensions of query and key; the value is padded with zeros to the same size.

    Key j carries j, query i carries slope / scaling, so that their product adds slope * j to the score. The slope
    stands on the query's side, so that grouped heads keep sharing their keys.

    In fp32, slope * j alone would cost digits where j is large. Therefore -slope * i is added too, the slope is cut
    into a part of 11 bits (whose products are exact) and a rest, and these dimensions come first: kernels sum in
    order, so what reaches the content's part of the sum is the small and exact -slope * (i - j).

    In half precision j is not exact, so it is written in base 256, counted from the middle of the row, and the slope
    as a sum of three halves; kernels sum products in fp32.

    Args:
        query: [batch, heads, queries, head_dim].
        key: [batch, kv_heads, keys, head_dim].
        value: [batch, kv_heads, keys, head_dim].
        slopes: [heads].
        scaling: factor on the scores.
        offset: place of the first query among the keys.

    Returns:
        Query, key and value with more dimensions.

    Raises:
        ValueError: more keys than half precision can count.
    """
    device_type = query.device.type
    if torch.is_autocast_enabled(device_type):  # sdpa would cast later, and round the index
        dtype = torch.get_autocast_dtype(device_type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    length, dtype = key.shape[2], query.dtype
    index = torch.arange(length, device=query.device)
    factor = slopes.float() / scaling
    if dtype in (torch.float32, torch.float64):
        coarse = (factor.view(torch.int32) & -(1 << 13)).view(torch.float32)
        pair = torch.stack([coarse, factor - coarse], dim=-1)
        places = torch.arange(query.shape[2], device=query.device) + offset
        query_side = torch.stack([pair[:, None].expand(-1, len(places), -1), -pair[:, None] * places[:, None]], dim=-1)
        query_side = query_side.flatten(-2)
        key_side = torch.stack([index, torch.ones_like(index)] * 2, dim=-1)
    else:
        if length > 1 << 16:
            raise ValueError(f"ALiBi in {dtype} is exact up to 65536 keys, got {length}: use float32.")
        index = index - length // 2
        high = torch.div(index, 256, rounding_mode="floor")
        parts, rest = [], factor
        for _ in range(3):
            parts.append(rest.to(dtype).float())
            rest = rest - parts[-1]
        digits = torch.stack(parts, dim=-1)
        query_side = torch.cat([digits * 256, digits], dim=-1)[:, None].expand(-1, query.shape[2], -1)
        key_side = torch.stack([high] * 3 + [index - 256 * high] * 3, dim=-1)
    width = key_side.shape[-1]
    if query.device.type == "cuda":  # its kernels want head sizes in multiples of 8
        padding = -(query.shape[-1] + width) % 8
        query_side, key_side = F.pad(query_side, (0, padding)), F.pad(key_side, (0, padding))
        width += padding
    query = torch.cat([query_side.to(dtype).expand(len(query), -1, -1, -1), query], dim=-1)
    key = torch.cat([key_side.to(dtype).expand(*key.shape[:2], -1, -1), key], dim=-1)
    return query, key, F.pad(value, (0, width))


# What follows serves slopes; `with_alibi` says what the arguments are.


def _sdpa_alibi(module, query, key, value, attention_mask, slopes, scaling, query_offset=0, **kwargs):
    head_dim = value.shape[-1]
    query, key, value = alibi_as_dimensions(query, key, value, slopes, scaling, query_offset)
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    return output[..., :head_dim], None


def _flex_alibi(module, query, key, value, attention_mask, slopes, scaling, query_offset=0, **kwargs):
    if kwargs.get("dropout", 0.0) > 0:
        raise ValueError("flex_attention has no attention dropout: set attention_dropout=0 or use sdpa.")
    if isinstance(attention_mask, torch.Tensor):
        raise ValueError("flex_attention with ALiBi takes no ready-made 4-D mask: give a 2-D mask or use sdpa.")
    heads = query.shape[1]
    if heads & (heads - 1):  # as transformers does: grouped heads need a power of two
        key, value = (repeat_kv(x, module.num_key_value_groups) for x in (key, value))

    def score_mod(score, batch, head, query_index, key_index):
        return score - slopes[head] * (query_index + query_offset - key_index).abs()

    options = dict(enable_gqa=True, scale=scaling, kernel_options=kwargs.get("kernel_options"))
    output = compile_friendly_flex_attention(
        query, key, value, score_mod=score_mod, block_mask=attention_mask, training=module.training, **options
    )
    return output.transpose(1, 2).contiguous(), None


@lru_cache
def flash_functions() -> tuple[Callable, Callable]:
    """flash-attn's dense and variable-length functions, the ones that take ALiBi slopes.

    Raises:
        ValueError: flash-attn is not installed.
    """
    try:
        from flash_attn import flash_attn_func, flash_attn_varlen_func
    except ImportError as error:
        raise ValueError("ALiBi with flash_attention_2 needs the flash-attn package; use sdpa instead.") from error
    return flash_attn_func, flash_attn_varlen_func


def _flash_alibi(module, query, key, value, attention_mask, slopes, scaling, dropout=0.0, position_ids=None, **kwargs):
    """transformers' own wrapper drops `alibi_slopes` without a word, so flash-attn is called here."""
    dense, varlen = flash_functions()
    batch, _, length, _ = query.shape
    if query.dtype == torch.float32:  # layer norms kept in fp32 must not push the kernel out of half precision
        device_type = query.device.type
        autocast = torch.is_autocast_enabled(device_type)
        dtype = torch.get_autocast_dtype(device_type) if autocast else module.q_proj.weight.dtype
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    options = dict(dropout_p=dropout, softmax_scale=scaling, causal=module.is_causal, alibi_slopes=slopes.float())

    def of_pieces(query, key, value, begins_q, begins_k, longest_q, longest_k):
        lengths = dict(cu_seqlens_q=begins_q, cu_seqlens_k=begins_k, max_seqlen_q=longest_q, max_seqlen_k=longest_k)
        return varlen(query, key, value, **lengths, **options)

    if attention_mask is not None:
        mask = attention_mask.bool()
        key, value = key[:, : mask.shape[1]], value[:, : mask.shape[1]]  # a static cache is longer than its content
        query_mask = mask[:, -length:]
        counts = [m.sum(1, dtype=torch.int32) for m in (query_mask, mask)]
        begins = [F.pad(c.cumsum(0, dtype=torch.int32), (1, 0)) for c in counts]
        longest = [int(c.max()) for c in counts]
        output = torch.zeros_like(query)
        output[query_mask] = of_pieces(query[query_mask], key[mask], value[mask], *begins, *longest)
        return output, None
    packed = [kwargs.get(name) for name in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")]
    if packed[0] is None and position_ids is not None and length > 1 and length == key.shape[1]:
        rows = find_packed_sequence_indices(position_ids)
        if rows is not None:  # one row of several pieces (`MortmModel` flattens batches of them)
            starts = (position_ids.reshape(-1).diff() != 1).nonzero().reshape(-1) + 1
            ends = torch.tensor([position_ids.numel()], device=starts.device)
            begins = F.pad(torch.cat([starts, ends]), (1, 0)).to(torch.int32)
            packed = [begins, begins, *[int(begins.diff().max())] * 2]
    if packed[0] is not None:
        output = of_pieces(*(x.reshape(-1, *x.shape[2:]) for x in (query, key, value)), *packed)
        return output.reshape(batch, length, *output.shape[1:]), None
    return dense(query, key, value, **options), None


def _sdpa(module, query, key, value, attention_mask, **kwargs):
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.to(query.dtype)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


# Asked once: compiled code cannot ask.
_MATRIX_UNITS = torch.cpu._is_amx_tile_supported()


def attends_in_fp32(device_type: str) -> bool:
    """Whether sdpa leaves autocast: on CPUs without matrix units it is slower in half precision than in fp32.

    Args:
        device_type: where the queries are.
    """
    return device_type == "cpu" and not _MATRIX_UNITS and torch.is_autocast_enabled("cpu")


def with_alibi(plain: Callable, alibi: Callable) -> Callable:
    """An attention function in the form of transformers': `plain`, or `alibi` where slopes are given.

    Both take the layer, query [batch, heads, queries, head_dim], key and value [batch, kv_heads, keys, head_dim], the
    mask in the implementation's own form, `scaling` (factor on the scores) and transformers' further arguments; they
    return the output [batch, queries, heads, head_dim], and weights or None. ALiBi's two arguments are `slopes`
    [heads] and `query_offset`, the place of the first query among the keys.

    Under autocast a CPU without matrix units attends in fp32 by sdpa, which is faster there.

    Args:
        plain: transformers' function.
        alibi: ours, with `slopes` behind the mask.

    Returns:
        The function of both.
    """

    def forward(module, query, key, value, attention_mask, slopes=None, **kwargs):
        if plain is _sdpa and attends_in_fp32(query.device.type):
            with torch.autocast("cpu", enabled=False):
                return forward(module, query.float(), key.float(), value.float(), attention_mask, slopes, **kwargs)
        if slopes is None:
            return plain(module, query, key, value, attention_mask, **kwargs)
        return alibi(module, query, key, value, attention_mask, slopes, **kwargs)

    return forward


# Overrides for MORTM's layers only; every other implementation is transformers' own.
ALL_ATTENTION_FUNCTIONS = AttentionInterface()
ALL_ATTENTION_FUNCTIONS["sdpa"] = with_alibi(_sdpa, _sdpa_alibi)
ALL_ATTENTION_FUNCTIONS["flex_attention"] = with_alibi(flex_attention_forward, _flex_alibi)
ALL_ATTENTION_FUNCTIONS["flash_attention_2"] = with_alibi(flash_attention_forward, _flash_alibi)
ALIBI_IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention", "flash_attention_2")
