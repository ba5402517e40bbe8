"""Attention over packed documents without a mask: `sdpa_documents`.

Design decisions
- sdpa with a block-diagonal mask computes every pair of a row and throws most away; on CPU that is a third of a
  training step. Here each document gets its own causal call: the loop runs over the few documents of a pack, never
  over tokens, and nothing is masked.
- On CUDA in half precision (under autocast too) all documents go through one call of torch's own variable-length
  FlashAttention-2, which needs no package besides torch and never asks the GPU where documents end.
- Under autocast a CPU without matrix units attends in fp32, which is faster there.
- Registered in transformers' attention interface, so the model stays as it is: `attn_implementation="sdpa_documents"`
  and the keyword `cu_seq_lens_q` (as flash attention's packed form has it) with every batch.
- The mask function returns nothing; without `cu_seq_lens_q` the call is refused, because it would attend across
  documents in silence.

Knows: transformers' attention interface. Must not know: the model, music.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from ..models.attention_mortm import attends_in_fp32


NAME = "sdpa_documents"


def half_on_cuda(tensor: torch.Tensor) -> torch.dtype | None:
    """The half precision that attention on this tensor [..., head_dim] is computed in; None where torch's
    FlashAttention-2 does not serve it: other devices, GPUs before Ampere, fp32, odd or wide heads."""
    if not tensor.is_cuda or tensor.shape[-1] % 8 or tensor.shape[-1] > 256:
        return None
    if torch.cuda.get_device_capability(tensor.device) < (8, 0):
        return None
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else tensor.dtype
    return dtype if dtype in (torch.bfloat16, torch.float16) else None


def sdpa_documents(module, query, key, value, attention_mask=None, scaling=None, dropout=0.0, **kwargs):
    """Causal attention inside each document of flattened rows.

    Args:
        module: the attention layer; its `is_causal` counts.
        query: `[rows, heads, length, head_dim]`; all documents of a row fill it from 0 to `length`.
        key: of the same shape, or of fewer heads.
        value: as `key`.
        attention_mask: must be None.
        scaling: of the scores; None: by the width of a head.
        dropout: of the probabilities.
        cu_seq_lens_q: `[documents + 1]` int32, bounds of the documents in the flattened `rows * length` tokens.
        max_length_q: tokens of the longest document (used on CUDA).

    Returns:
        `[rows, length, heads, head_dim]` and `None`.
    """
    bounds, longest = kwargs.get("cu_seq_lens_q"), kwargs.get("max_length_q")
    if bounds is None or attention_mask is not None:
        raise ValueError(f"{NAME} attends inside documents only: pass cu_seq_lens_q with packed rows, and no mask")
    rows, heads, length, width = query.shape
    dtype = half_on_cuda(query)
    if dtype is not None and longest is not None and key.shape[1] == heads and not dropout:
        flat = [x.transpose(1, 2).reshape(rows * length, heads, width).to(dtype) for x in (query, key, value)]
        window = (-1, 0) if module.is_causal else (-1, -1)
        out = varlen_attn(*flat, bounds, bounds, longest, longest, scale=scaling, window_size=window)
        return out.reshape(rows, length, heads, width), None
    sizes = torch.diff(bounds).tolist()
    grouped = {"enable_gqa": True} if key.shape[1] != heads else {}

    def documents(x):
        flat = x.transpose(0, 1).reshape(1, x.shape[1], rows * length, width)
        return flat.split(sizes, dim=2)

    in_fp32 = attends_in_fp32(query.device.type)
    if in_fp32:
        query, key, value = query.float(), key.float(), value.float()
    options = dict(is_causal=module.is_causal, scale=scaling, dropout_p=dropout, **grouped)
    with torch.autocast("cpu", enabled=False) if in_fp32 else nullcontext():
        parts = [
            scaled_dot_product_attention(q, k, v, **options)
            for q, k, v in zip(documents(query), documents(key), documents(value))
        ]
    out = torch.cat(parts, dim=2).reshape(heads, rows, length, width)
    return out.permute(1, 2, 0, 3).contiguous(), None


def register() -> str:
    """Make the implementation known to transformers; returns its name."""
    AttentionInterface.register(NAME, sdpa_documents)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
    return NAME
