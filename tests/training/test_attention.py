"""Attention by documents equals attention with a mask."""

import pytest
import torch

from mortm_hf.models.configuration_mortm import MortmConfig
from mortm_hf.models.modeling_mortm import MortmForCausalLM
from mortm_hf.training import attention


def test_attention_by_document_equals_the_mask():
    torch.manual_seed(0)
    config = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                  moe_intermediate_size=16, shared_expert_intermediate_size=16, num_local_experts=4)  # fmt: skip
    masked = MortmForCausalLM(MortmConfig(**config))
    by_document = MortmForCausalLM._from_config(MortmConfig(**config), attn_implementation=attention.register())
    by_document.load_state_dict(masked.state_dict())
    ids = torch.randint(2, 1000, (2, 60))
    position = torch.stack([torch.cat([torch.arange(25), torch.arange(35)]), torch.arange(60)])
    bounds = torch.tensor([0, 25, 60, 120])
    a = masked(input_ids=ids, position_ids=position, labels=ids, use_cache=False)
    b = by_document(input_ids=ids, position_ids=position, labels=ids, use_cache=False, cu_seq_lens_q=bounds)
    assert (a.logits - b.logits).abs().max() < 1e-5
    a.loss.backward()
    b.loss.backward()
    for p, q in zip(masked.parameters(), by_document.parameters()):
        assert p.grad is None or torch.allclose(p.grad, q.grad, atol=1e-5)
    with pytest.raises(ValueError, match="cu_seq_lens_q"):
        by_document(input_ids=ids, position_ids=position, use_cache=False)


@pytest.mark.parametrize("causal", [True, False])
def test_all_documents_in_one_call_where_there_is_flash_attention(causal, monkeypatch):
    """The way to torch's variable-length kernel and back, with the kernel written out for a CPU."""
    calls = []

    def varlen(query, key, value, bounds, bounds_of_keys, longest, longest_key, *, scale, window_size):
        calls.append((longest, window_size))
        assert query.dtype == torch.bfloat16 and bounds is bounds_of_keys and longest == longest_key
        out = torch.zeros_like(query)
        for a, b in zip(bounds.tolist(), bounds.tolist()[1:]):
            q, k, v = (x[a:b].transpose(0, 1).float() for x in (query, key, value))
            part = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=window_size[1] == 0, scale=scale
            )
            out[a:b] = part.transpose(0, 1)
        return out

    module = torch.nn.Module()
    module.is_causal = causal
    query, key, value = torch.randn(3, 2, 4, 30, 8).bfloat16()
    words = {"cu_seq_lens_q": torch.tensor([0, 12, 30, 60], dtype=torch.int32), "max_length_q": 30, "scaling": 0.2}
    by_document, _ = attention.sdpa_documents(module, query, key, value, **words)
    monkeypatch.setattr(attention, "half_on_cuda", lambda tensor: torch.bfloat16)
    monkeypatch.setattr(attention, "varlen_attn", varlen)
    at_once, _ = attention.sdpa_documents(module, query, key, value, **words)
    assert calls == [(30, (-1, 0) if causal else (-1, -1))]
    assert at_once.shape == by_document.shape and (at_once - by_document).abs().max() < 0.05


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [True, False])
def test_the_kernel_itself_equals_a_call_a_document(causal, monkeypatch):
    module = torch.nn.Module()
    module.is_causal = causal
    words = {"cu_seq_lens_q": torch.tensor([0, 12, 30, 60], dtype=torch.int32).cuda(), "max_length_q": 30}
    states = torch.randn(3, 2, 4, 30, 64, device="cuda", dtype=torch.bfloat16)
    found = []
    for serve in (attention.half_on_cuda, lambda tensor: None):
        monkeypatch.setattr(attention, "half_on_cuda", serve)
        mine = states.clone().requires_grad_()
        out, _ = attention.sdpa_documents(module, *mine, **words)
        out.float().square().sum().backward()
        found.append((out, mine.grad))
    for a, b in zip(*found):
        assert (a - b).abs().max() < 0.05 * b.abs().max()
