"""Experts on a CPU in training: `padded_mm`, groups of rows of few different sizes.

Design decisions
- Rows sorted by expert go through one grouped product for each of the two layers, never through a loop of our own.
- oneDNN compiles a kernel for every shape it meets in half precision, and the number of tokens that an expert gets is
  another one in every step: compiling cost more than multiplying. Here each group is filled up to a multiple of 32
  rows, so that a few dozen kernels, compiled once, serve the whole run. fp32 needs no kernels of its own and is not
  filled up.
- A filling row repeats a row of the same group with weight zero: it adds nothing, to no gradient either, and brings no
  values into the expert that were not there.
- The routing weight is applied between the two layers, where a row is narrowest, so that gathering and scattering are
  one `index_select` and one `index_add`, each the gradient of the other.
- Weights and states are converted once a layer, not once an expert; the sum over experts is in the states' type.

Knows: transformers' experts interface. Must not know: routers, configurations, what a token means.
"""

import torch
from torch import nn
from torch.nn.functional import grouped_mm
from transformers.integrations.moe import ExpertsInterface, grouped_mm_experts_forward


PADDED_MM = "padded_mm"
# rows; whole tiles of the matrix units, and 3 % more rows at 500 tokens an expert
GRANULE = 32


class _ExpertsInHalf:
    """Experts seen through autocast: weights in its type, everything else as in the module."""

    def __init__(self, experts: nn.Module, dtype: torch.dtype):
        self.experts = experts
        self.gate_up_proj = experts.gate_up_proj.to(dtype)
        self.down_proj = experts.down_proj.to(dtype)

    def __getattr__(self, name: str):
        return getattr(self.experts, name)


def computing_type(hidden_states: torch.Tensor) -> torch.dtype:
    """The type in which autocast, where it is on, would multiply these states.

    Args:
        hidden_states: of any shape.
    """
    device_type = hidden_states.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return hidden_states.dtype


def grouped_mm_autocast(
    experts: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """`grouped_mm` that follows autocast, as linear layers do; torch's own operator stays in the weights' type.

    Args:
        experts: the module with the weights.
        hidden_states: [tokens, H].
        top_k_index: chosen experts [tokens, k].
        top_k_weights: their weights [tokens, k].

    Returns:
        [tokens, H].
    """
    if torch.is_autocast_enabled(hidden_states.device.type):
        dtype = computing_type(hidden_states)
        experts = _ExpertsInHalf(experts, dtype)
        output = grouped_mm_experts_forward(experts, hidden_states.to(dtype), top_k_index, top_k_weights.to(dtype))
        return output.to(hidden_states.dtype)
    return grouped_mm_experts_forward(experts, hidden_states, top_k_index, top_k_weights)


def padded_groups(expert_ids: torch.Tensor, num_experts: int, granule: int) -> tuple[torch.Tensor, ...]:
    """Places sorted by expert, each group filled up with its last place.

    Args:
        expert_ids: the expert of every place [places], 0 to `num_experts` - 1.
        num_experts: how many there are; those without a place get an empty group.
        granule: what the size of a group is a multiple of.

    Returns:
        The places [rows], the expert of every row [rows], whether a row is none of the filling [rows], and where the
        groups end [num_experts] int32.
    """
    device = expert_ids.device
    _, order = torch.sort(expert_ids, stable=True)
    counts = torch.bincount(expert_ids, minlength=num_experts)
    sizes = (counts + (granule - 1)) // granule * granule
    starts, ends = counts.cumsum(0) - counts, sizes.cumsum(0)
    experts = torch.repeat_interleave(torch.arange(num_experts, device=device), sizes)
    inside = torch.arange(len(experts), device=device) - (ends - sizes)[experts]
    kept = inside < counts[experts]
    places = order[starts[experts] + torch.minimum(inside, counts[experts] - 1)]
    return places, experts, kept, ends.to(torch.int32)


def padded_mm_experts_forward(
    experts: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Experts as two grouped products over padded groups; under autocast in its type.

    `grouped_mm` takes over while torch compiles (sizes of groups are no constants) and where other ranks hold some of
    the experts.

    Args:
        experts: the module with the weights.
        hidden_states: [tokens, H].
        top_k_index: chosen experts [tokens, k].
        top_k_weights: their weights [tokens, k].

    Returns:
        [tokens, H].
    """
    # older transformers spread experts without saying so on the module
    if torch.compiler.is_compiling() or getattr(experts, "_is_expert_parallel", False):
        return grouped_mm_autocast(experts, hidden_states, top_k_index, top_k_weights)
    dtype = computing_type(hidden_states)
    granule = GRANULE if dtype in (torch.bfloat16, torch.float16) else 1
    places, expert_ids, kept, ends = padded_groups(top_k_index.reshape(-1), experts.num_experts, granule)
    token_ids = places // top_k_index.shape[-1]
    weights = torch.where(kept, top_k_weights.reshape(-1)[places], 0.0).to(dtype).unsqueeze(-1)
    states = hidden_states.to(dtype).index_select(0, token_ids)
    inner = grouped_mm(states, experts.gate_up_proj.to(dtype).transpose(1, 2), offs=ends)
    if experts.has_bias:
        inner = inner + experts.gate_up_proj_bias.to(dtype)[expert_ids]
    inner = experts._apply_gate(inner) * weights
    output = grouped_mm(inner, experts.down_proj.to(dtype).transpose(1, 2), offs=ends)
    if experts.has_bias:
        output = output + experts.down_proj_bias.to(dtype)[expert_ids] * weights
    result = torch.zeros_like(hidden_states)
    return result.index_add_(0, token_ids, output.to(hidden_states.dtype))


EXPERTS_FUNCTIONS = ExpertsInterface()
EXPERTS_FUNCTIONS["grouped_mm"] = grouped_mm_autocast
ExpertsInterface.register(PADDED_MM, padded_mm_experts_forward)
