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
