"""Shares of the experts, and the alarm for experts that nobody chooses."""

import torch

from mortm_hf.models.configuration_mortm import MortmConfig
from mortm_hf.models.modeling_mortm import MortmForCausalLM
from mortm_hf.training.routing import ExpertAlarm, RouterStatistics


def test_alarm_rings_once_after_its_patience_and_again_after_a_return():
    alarm = ExpertAlarm(share=0.2, patience=3)
    good, bad = [[0.25, 0.25, 0.25, 0.25]], [[0.5, 0.45, 0.04, 0.01]]  # even would be 0.25: under 0.05 is unused
    assert alarm.feed(bad) == [] and alarm.feed(bad) == []
    assert alarm.feed(bad) == [(0, 2, 0.04), (0, 3, 0.01)]
    assert alarm.feed(bad) == [] and alarm.feed(good) == []
    assert [alarm.feed(bad) for _ in range(3)][-1] == [(0, 2, 0.04), (0, 3, 0.01)]
    assert alarm.feed(good) == [] and [alarm.feed(b) for b in (bad, good, bad, bad)] == [[], [], [], []]


def test_statistics_count_the_choices_of_every_layer():
    config = MortmConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, moe_intermediate_size=8,
                         shared_expert_intermediate_size=8, num_local_experts=4, num_experts_per_tok=2)  # fmt: skip
    model = MortmForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:  # expert 3 is everybody's first choice, the others share the second
            layer.mlp.gate.weight.zero_()
            layer.mlp.gate.weight[3] = 1.0
            layer.input_layernorm.weight.zero_()
    statistics = RouterStatistics(model)
    statistics.start()
    ids = torch.randint(2, 500, (2, 30))
    with torch.no_grad():
        logits = model(ids, output_router_logits=True).router_logits
    load = statistics.stop()
    assert len(load) == 2 and all(abs(sum(row) - 1) < 1e-3 for row in load)
    for row, scores in zip(load, logits):
        expected = torch.bincount(scores.topk(2, dim=-1).indices.reshape(-1), minlength=4) / scores.shape[0] / 2
        assert torch.allclose(torch.tensor(row), expected, atol=1e-3)
    with torch.no_grad():
        model(ids)
    assert statistics.stop() == load  # the hooks are gone: nothing was added
