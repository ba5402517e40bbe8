"""`padded_mm`: the same experts as `eager`, forward and backward, whatever the router chose."""

import pytest
import torch
from transformers.integrations.moe import ExpertsInterface

from mortm_hf.models.configuration_mortm import MortmConfig
from mortm_hf.models.experts_mortm import GRANULE, PADDED_MM, padded_groups
from mortm_hf.models.modeling_mortm import MortmForCausalLM


def small(**options):
    torch.manual_seed(0)
    sizes = dict(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, moe_intermediate_size=16)
    config = MortmConfig(**sizes, shared_expert_intermediate_size=24, initializer_range=0.1, eos_token_id=2, **options)
    return MortmForCausalLM(config)


def experts_of(model):
    experts = model.model.layers[0].mlp.experts
    with torch.no_grad():
        for name, parameter in experts.named_parameters():
            if "bias" in name:
                parameter.normal_(std=0.3)
    return experts


def result(model, implementation, x, index, weights, half=False):
    """Output and the gradients of states, weights and parameters."""
    model.set_experts_implementation(implementation)
    experts = model.model.layers[0].mlp.experts
    leaves = [x.clone().requires_grad_(), weights.clone().requires_grad_()]
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        output = experts(leaves[0], index, leaves[1])
    assert output.dtype == x.dtype
    parameters = list(experts.parameters())
    torch.manual_seed(1)
    gradients = torch.autograd.grad(output, leaves + parameters, torch.randn(output.shape))
    assert [g.dtype for g in gradients] == [torch.float32] * len(gradients)
    return [output, *gradients]


CHOICES = {
    "even": lambda: torch.rand(77, 8).topk(2).indices,
    "some experts empty": lambda: torch.rand(77, 3).topk(2).indices + 2,
    "all on one": lambda: torch.full((77, 1), 7),
    "one token": lambda: torch.tensor([[6, 1]]),
    "no token": lambda: torch.empty(0, 2, dtype=torch.long),
    "every expert": lambda: torch.rand(5, 8).argsort(),
}


@pytest.mark.parametrize("options", [{}, dict(mlp_bias=True, hidden_act="gelu")], ids=["plain", "biases gelu"])
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "autocast"])
def test_padded_is_eager(choice, options, half):
    model = small(**options)
    experts_of(model)
    index = CHOICES[choice]()
    x, weights = torch.randn(len(index), 32), torch.rand(index.shape)
    want = result(model, "eager", x, index, weights) if len(index) else [torch.zeros(0, 32)]
    got = result(model, PADDED_MM, x, index, weights, half)
    for a, b in zip(got, want, strict=bool(len(index))):
        scale = b.abs().max().item() if b.numel() else 0.0
        torch.testing.assert_close(a, b, rtol=0, atol=max(scale, 1e-3) * (3e-2 if half else 2e-6))


def test_padded_in_half_precision_is_as_near_as_eager():
    """Both under autocast against fp32: filling and weighting earlier cost no digits."""
    model = small()
    x, index, weights = torch.randn(500, 32), torch.rand(500, 8).topk(2).indices, torch.rand(500, 2)
    exact = result(model, "eager", x, index, weights)
    eager, padded = (result(model, name, x, index, weights, half=True) for name in ("eager", PADDED_MM))
    for a, b, c in zip(exact, eager, padded, strict=True):
        assert (c - a).norm() < 1.2 * (b - a).norm()


@pytest.mark.parametrize("granule", [1, GRANULE])
def test_groups(granule):
    ids = torch.tensor([3, 1, 1, 3, 3, 0, 3])
    places, experts, kept, ends = padded_groups(ids, 5, granule)
    assert ends.dtype == torch.int32 and (ends.diff(prepend=torch.zeros(1)) % granule == 0).all()
    assert len(places) == len(experts) == len(kept) == ends[-1]
    assert torch.equal(ids[places], experts)  # filling repeats a place of its own group
    assert torch.equal(places[kept], torch.tensor([5, 1, 2, 0, 3, 4, 6]))
    assert kept.all() or granule > 1


def test_few_shapes_reach_the_products(monkeypatch):
    """In half precision every size of a group is a multiple of the granule: kernels are compiled once."""
    import mortm_hf.models.experts_mortm as module

    seen, grouped = set(), module.grouped_mm

    def spy(x, weight, offs):
        seen.update((x.dtype, weight.dtype, int(n) % GRANULE) for n in offs.diff())
        return grouped(x, weight, offs=offs)

    monkeypatch.setattr(module, "grouped_mm", spy)
    model = small().train()
    model.set_experts_implementation(PADDED_MM)
    ids = torch.randint(3, 97, (2, 90))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, labels=ids).loss
    loss.backward()
    assert seen == {(torch.bfloat16, torch.bfloat16, 0)}
    with torch.no_grad():
        model.to(torch.bfloat16)(ids)
    assert len(seen) == 1


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    # (reentrant checkpointing drops the gradient of the balancing loss, whatever computes the experts)
    model, gradients = small(router_balancing="none").train(), []
    model.set_experts_implementation(PADDED_MM)
    ids = torch.randint(3, 97, (2, 40))
    for again in (False, True):
        if again:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_other_ranks_experts_are_left_out():
    experts = experts_of(small())
    x, index, weights = torch.randn(5, 32), torch.randint(0, 8, (5, 2)), torch.rand(5, 2)
    index[:, 1], weights[:, 1] = 8, 0.0
    experts._is_expert_parallel = True
    results = []
    for name in ("eager", PADDED_MM):
        experts.config._experts_implementation = name
        results.append(experts(x, index, weights))
    torch.testing.assert_close(*results)


def test_compiling_takes_grouped_mm():
    model = small().eval()
    ids = torch.randint(3, 97, (2, 12))
    with torch.no_grad():
        model.set_experts_implementation("grouped_mm")
        want = model(ids).logits
        model.set_experts_implementation(PADDED_MM)
        got = torch.compile(model, fullgraph=True, backend="eager")(ids).logits
    torch.testing.assert_close(got, want)


def test_chosen_by_name():
    model = small()
    assert model.config._experts_implementation == "grouped_mm"
    assert PADDED_MM in ExpertsInterface()
    model.set_experts_implementation(PADDED_MM)
    with pytest.raises(ValueError, match=PADDED_MM):
        model.set_experts_implementation("padded")
