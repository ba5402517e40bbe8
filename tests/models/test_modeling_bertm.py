"""BERTM: upstream's scores, what a score may depend on, packed pieces, losses, training, saving and loading.

The critic, MORTM's score head with a hidden layer, is here as well: both heads come from the same two checkpoints.
"""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_attention_mortm import eager_flex, flash, switch  # noqa: F401 (fixtures)
from upstream_loader import upstream_config, upstream_weights

from mortm_hf.models.attention_mortm import alibi_slopes
from mortm_hf.models.configuration_bertm import BertmConfig
from mortm_hf.models.configuration_mortm import MortmConfig
from mortm_hf.models.modeling_bertm import (
    BertmForMaskedLM,
    BertmForSequenceClassification,
    BertmForTokenClassification,
    BertmModel,
)
from mortm_hf.models.modeling_mortm import MortmForCausalLM, MortmForSequenceClassification


UPSTREAM = Path(__file__).parents[1] / "fixtures" / "upstream_heads"
BERTM, CRITIC = UPSTREAM / "bertm_alibi_moe_tanh", UPSTREAM / "actorcritic_rope_moe_rmsnorm"
HEADS = [BertmForMaskedLM, BertmForSequenceClassification, BertmForTokenClassification]


def tiny_config(**options) -> BertmConfig:
    defaults = dict(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=24,
        num_local_experts=4,
        mlp_layer_types=["sparse", "dense"],
        initializer_range=0.1,
        eos_token_id=2,
    )
    return BertmConfig(**{**defaults, **options})


def tiny(kind=BertmForSequenceClassification, implementation="sdpa", **options):
    torch.manual_seed(0)
    model = kind(tiny_config(**options)).eval()
    model.set_experts_implementation("eager")
    switch(model, implementation)
    return model


def tokens(*shape):
    return torch.randint(3, 97, shape)


# --- upstream's numbers


def head_weights(folder: Path, names: dict[str, str]) -> dict[str, torch.Tensor]:
    """Base model and score head of an upstream checkpoint: `names` maps its modules to ours."""
    source = torch.load(folder / "model.pth", weights_only=True)
    state = {k: v for k, v in upstream_weights(folder).items() if not k.startswith("lm_head")}
    for theirs, ours in names.items():
        state |= {f"{ours}.{kind}": source[f"{theirs}.{kind}"].float() for kind in ("weight", "bias")}
    return state


def head_config(kind, folder: Path, **options):
    """The upstream options as a configuration of class `kind`."""
    own = ("auto_map", "custom_pipelines", "model_type", "is_causal", "use_cache", "architectures")
    own = {k: v for k, v in upstream_config(folder, "4.6.18").to_dict().items() if k not in own}
    return kind(**{**own, "eos_token_id": None, "num_labels": 1, **options})


@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_upstream_scores(implementation, experts):
    """The published BERTM's logit of "made by a machine"."""
    want = np.load(BERTM / "expected.npz")
    names = {"attn_pool.attention_scorer": "pool.scorer", "hidden": "score.dense", "Wout": "score.out_proj"}
    model = BertmForSequenceClassification(head_config(BertmConfig, BERTM)).eval()
    model.load_state_dict(head_weights(BERTM, names), strict=True)
    model.set_attn_implementation(implementation)
    model.set_experts_implementation(experts)
    ids, mask = torch.tensor(want["input_ids"]), torch.tensor(want["attention_mask"])
    with torch.no_grad():
        scores = model(ids, attention_mask=mask).logits
        alone = torch.cat([model(row[keep][None]).logits for row, keep in zip(ids, mask.bool(), strict=True)])
    assert mask.sum(1).unique().numel() == 3
    assert (scores - torch.tensor(want["score"])).abs().max() < 1e-5
    assert (alone - torch.tensor(want["score"])).abs().max() < 1e-5


def test_upstream_critic():
    """The published ActorCritic is a policy and a value model; the value model answers TRL's questions."""
    want = np.load(CRITIC / "expected.npz")
    ids, mask = torch.tensor(want["input_ids"]), torch.tensor(want["attention_mask"]).bool()
    config = head_config(MortmConfig, CRITIC, classifier_hidden_size=32)
    critic = MortmForSequenceClassification(config).eval()
    names = {"critic_hidden": "score.dense", "critic_out": "score.out_proj"}
    critic.load_state_dict(head_weights(CRITIC, names), strict=True)
    policy = MortmForCausalLM(upstream_config(CRITIC, "4.6.18")).eval()
    weights = upstream_weights(CRITIC)
    policy.load_state_dict({k: v for k, v in weights.items() if not k.startswith("critic")}, strict=True)
    places = mask.long().cumsum(1) - mask.long()
    with torch.no_grad():
        backbone = getattr(critic, critic.base_model_prefix)
        output = backbone(
            input_ids=ids,
            attention_mask=mask,
            position_ids=places,
            return_dict=True,
            output_hidden_states=True,
            use_cache=False,
        )
        values = critic.score(output.hidden_states[-1])
        last = critic(ids, attention_mask=mask).logits
        logits = policy(ids, attention_mask=mask).logits[:, torch.tensor(want["positions"])]
    assert values.shape == (3, 61, 1)
    assert (values - torch.tensor(want["values"]))[mask].abs().max() < 1e-5
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    ends = torch.tensor(want["values"])[torch.arange(3), mask.sum(1) - 1]
    assert (last - ends).abs().max() < 1e-5
    keep = mask[:, torch.tensor(want["positions"])]
    assert (logits - torch.tensor(want["logits"]))[keep].abs().max() < 1e-4


def test_score_without_hidden_layer_is_one_matrix():
    model = MortmForSequenceClassification(MortmConfig(hidden_size=32, num_hidden_layers=1, num_labels=3))
    assert [name for name, _ in model.named_parameters() if name.startswith("score")] == ["score.weight"]
    assert model.score.weight.shape == (3, 32)


# --- what a score may depend on


def pad_each(rows, sides, value):
    """Rows of ids -> (ids, mask) [rows, longest + 5]: every row at its own place, `value` around it."""
    longest = max(map(len, rows)) + 5
    ids, mask = torch.full((len(rows), longest), value), torch.zeros(len(rows), longest, dtype=torch.long)
    for i, (row, side) in enumerate(zip(rows, sides, strict=True)):
        start = {"left": longest - len(row), "right": 0, "both": 3}[side]
        ids[i, start : start + len(row)], mask[i, start : start + len(row)] = row, 1
    return ids, mask


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention", "flash_attention_2"])
@pytest.mark.parametrize("positions", ["rope", "alibi"])
@pytest.mark.parametrize("pooling", ["attention", "mean"])
def test_score_is_that_of_the_piece(pooling, positions, implementation, eager_flex, flash):  # noqa: F811
    """Neither the side of the padding, nor what stands in it, nor other rows change a score."""
    model = tiny(position_embedding_type=positions, classifier_pooling=pooling, num_labels=3)
    rows = [tokens(n) for n in (70, 41, 16, 1)]
    with torch.no_grad():
        alone = torch.cat([model(row[None]).logits for row in rows])
        assert (alone[0] - alone[1]).abs().max() > 1e-2
        switch(model, implementation)
        for sides, value in itertools.product([("left",) * 4, ("right", "left", "both", "both")], (0, 50)):
            ids, mask = pad_each(rows, sides, value)
            got = model(ids, attention_mask=mask).logits
            assert (got - alone).abs().max() < 1e-5
            # as TRL calls it: a boolean mask and the positions it makes, bit for bit
            places = mask.cumsum(1) - mask
            assert torch.equal(model(ids, attention_mask=mask.bool(), position_ids=places).logits, got)
            pooled = model.pool(model.model(ids, attention_mask=mask.bool()).last_hidden_state, mask)
            assert torch.equal(model.score(pooled), got)


def test_padding_without_a_mask_counts():
    """Padding is what the mask says: the ids alone do not make it."""
    model, row = tiny(), tokens(1, 20)
    padded = F.pad(row, (0, 6))
    with torch.no_grad():
        assert (model(padded).logits - model(row).logits).abs().max() > 1e-3


def test_every_token_sees_every_token():
    model, ids = tiny(BertmModel), tokens(1, 12)
    changed = ids.clone()
    changed[0, -1] = (ids[0, -1] + 1 - 3) % 94 + 3
    with torch.no_grad():
        difference = (model(ids).last_hidden_state - model(changed).last_hidden_state).abs().amax(-1)
    assert (difference > 1e-4).all()


def test_pooling_weighs_by_a_learned_score():
    model = tiny()
    states, mask = torch.randn(2, 9, 32), torch.tensor([[0] * 3 + [1] * 6, [1] * 9])
    with torch.no_grad():
        got = model.pool(states, mask)
        for row, keep, vector in zip(states, mask.bool(), got, strict=True):
            weights = (row[keep] @ model.pool.scorer.weight[0] + model.pool.scorer.bias).softmax(0)
            torch.testing.assert_close(vector, weights @ row[keep])
        mean = tiny(classifier_pooling="mean")
        torch.testing.assert_close(mean.pool(states, mask)[0], states[0, 3:].mean(0))
        assert not [name for name, _ in mean.named_parameters() if name.startswith("pool")]
        assert torch.isfinite(model.pool(states, torch.zeros(2, 9))).all()
    with pytest.raises(ValueError, match=r"\[batch, length\]"):
        model.pool(states, torch.ones(2, 1, 9, 9))


# --- packed pieces


def pack(rows):
    """Rows of pieces -> (ids, position ids) [rows, length]."""
    ids = torch.stack([torch.cat(row) for row in rows])
    return ids, torch.stack([torch.cat([torch.arange(len(piece)) for piece in row]) for row in rows])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention", "flash_attention_2"])
@pytest.mark.parametrize("positions", ["rope", "alibi"])
def test_packed_pieces_do_not_see_each_other(positions, implementation, eager_flex, flash):  # noqa: F811
    rows = [[tokens(n) for n in lengths] for lengths in ((30, 1, 33), (40, 24))]
    ids, places = pack(rows)
    pieces = [piece[None] for row in rows for piece in row]
    for head in HEADS:
        model = tiny(head, position_embedding_type=positions, num_labels=3)
        with torch.no_grad():
            alone = torch.cat([model(piece).logits.flatten(0, -2) for piece in pieces])
            leaking = model(ids).logits.flatten(0, -2)
            switch(model, implementation)
            packed = model(ids, position_ids=places).logits.flatten(0, -2)
            one_row = model(ids[:1], position_ids=places[:1]).logits.flatten(0, -2)
        assert packed.shape == alone.shape
        assert (packed - alone).abs().max() < 1e-5
        assert (one_row - alone[: len(one_row)]).abs().max() < 1e-5
        if head is not BertmForSequenceClassification:  # without positions the row is one piece
            assert (leaking - alone).abs().max() > 1e-2


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_other_pieces_change_nothing_at_all(implementation):
    """Whatever stands in its neighbours, a packed piece keeps its states to the last bit."""
    model = tiny(BertmModel, implementation, mlp_layer_types=["dense", "dense"])
    ids, places = pack([[tokens(20), tokens(15), tokens(29)]])
    other = ids.clone()
    other[0, :20], other[0, 35:] = tokens(20), tokens(29)
    with torch.no_grad():
        one, two = (model(x, position_ids=places).last_hidden_state[0] for x in (ids, other))
    assert torch.equal(one[20:35], two[20:35])
    assert (one[:20] - two[:20]).abs().max() > 0.1


def test_packed_rows_train_the_classifier():
    model = tiny(num_labels=3).train()
    ids, places = pack([[tokens(12), tokens(20)], [tokens(25), tokens(7)]])
    output = model(ids, position_ids=places, labels=torch.tensor([0, 2, 1, 1]))
    want = F.cross_entropy(output.logits, torch.tensor([0, 2, 1, 1])) + 0.01 * output.aux_loss
    torch.testing.assert_close(output.loss, want)
    output.loss.backward()
    assert model.pool.scorer.weight.grad.any()


# --- losses


@pytest.mark.parametrize(
    ("problem", "num_labels", "labels", "loss"),
    [
        (None, 1, torch.tensor([0, 1, 1]), lambda x, y: F.mse_loss(x[:, 0], y.float())),
        ("regression", 2, torch.rand(3, 2), F.mse_loss),
        (
            "multi_label_classification",
            1,
            torch.tensor([0, 1, 1]),
            lambda x, y: F.binary_cross_entropy_with_logits(x[:, 0], y.float()),
        ),
        ("multi_label_classification", 3, torch.eye(3), F.binary_cross_entropy_with_logits),
        (None, 3, torch.eye(3), F.binary_cross_entropy_with_logits),
        (None, 3, torch.tensor([2, 0, 1]), F.cross_entropy),
    ],
)
def test_losses_of_the_classifier(problem, num_labels, labels, loss):
    model = tiny(num_labels=num_labels, problem_type=problem)
    with torch.no_grad():
        output = model(tokens(3, 14), labels=labels)
    assert output.logits.shape == (3, num_labels)
    torch.testing.assert_close(output.loss, loss(output.logits, labels))
    assert output.aux_loss is None


@pytest.mark.parametrize("head", [BertmForMaskedLM, BertmForTokenClassification])
def test_losses_of_tokens(head):
    model = tiny(head, num_labels=3)
    ids = tokens(2, 14)
    labels = ids % 3
    labels[:, ::4] = -100
    with torch.no_grad():
        output = model(ids, labels=labels)
    assert output.logits.shape == (2, 14, 97 if head is BertmForMaskedLM else 3)
    keep = labels >= 0  # the label of a place is that place's: nothing is shifted
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits[keep], labels[keep]))


@pytest.mark.parametrize("head", HEADS)
def test_balancing_loss_is_part_of_training_only(head):
    model, ids = tiny(head, router_aux_loss_coef=0.5), tokens(2, 16)
    labels = torch.tensor([0, 1]) if head is BertmForSequenceClassification else ids % 2
    plain = model(ids, labels=labels)
    asked = model(ids, labels=labels, output_router_logits=True)
    train = model.train()(ids, labels=labels)
    assert plain.aux_loss is None and plain.router_logits is None and train.router_logits is None
    assert [x.shape for x in asked.router_logits] == [(32, 4)]
    for output in (asked, train):
        torch.testing.assert_close(output.loss, plain.loss + 0.5 * output.aux_loss)
    dense = tiny(head, mlp_layer_types=["dense", "dense"]).train()
    assert dense(ids, labels=labels).aux_loss is None


# --- training


@pytest.mark.parametrize("positions", ["rope", "alibi"])
def test_every_parameter_learns_its_task(positions):
    """Whether a piece holds token 5 anywhere: needs every token, and the pooling to find it."""
    model = tiny(
        num_labels=1,
        problem_type="multi_label_classification",
        position_embedding_type=positions,
        classifier_dropout=0.1,
        hidden_dropout=0.1,
    ).train()
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for _ in range(60):
        ids = tokens(16, 12).masked_fill(torch.rand(16, 12) < 0.1, 5)
        loss = model(ids, labels=(ids == 5).any(1)).loss
        optimizer.zero_grad()
        loss.backward()
        still = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
        assert still <= {"pool.scorer.bias"}  # a constant on all scores, which softmax ignores; checkpoints have it
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


@pytest.mark.parametrize("head", HEADS)
def test_gradient_checkpointing_changes_nothing(head):
    ids, results = tokens(2, 20), []
    labels = torch.tensor([0, 1]) if head is BertmForSequenceClassification else ids % 2
    for checkpointing in (False, True):
        model = tiny(head).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            assert model.model.layers[0].gradient_checkpointing
        model(ids, attention_mask=torch.ones_like(ids), labels=labels).loss.backward()
        results.append([p.grad for p in model.parameters()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_peft_adapters_keep_the_whole_head(tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS", modules_to_save=["pool", "score"])
    model = get_peft_model(tiny(num_labels=3), config).train()
    ids = tokens(4, 12)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(input_ids=ids, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    optimizer.step()
    model.eval().save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny(num_labels=3), tmp_path).eval()
    with torch.no_grad():
        want, untrained = model(input_ids=ids).logits, tiny(num_labels=3)(ids).logits
        assert (want - untrained).abs().max() > 1e-3
        torch.testing.assert_close(again(input_ids=ids).logits, want)
    fresh, kept = tiny(num_labels=3).pool.scorer.weight, again.base_model.model.pool.scorer.weight
    assert not torch.equal(fresh, kept)


@pytest.mark.parametrize("head", HEADS)
def test_half_precision_follows_fp32(head):
    model, ids = tiny(head, num_labels=3), tokens(2, 30)
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    with torch.no_grad():
        want = model(ids, attention_mask=mask).logits
        with torch.autocast("cpu", torch.bfloat16):
            cast = model(ids, attention_mask=mask).logits
        half = model.to(torch.bfloat16)(ids, attention_mask=mask).logits
    assert half.dtype == torch.bfloat16
    for got in (cast, half):
        assert (got.float() - want)[-1].abs().max() < 0.1 * want.abs().max()


def test_dropout_acts_in_training_only():
    ids = tokens(1, 12)
    for head in (BertmForSequenceClassification, BertmForTokenClassification):
        model = tiny(head, classifier_dropout=0.5)
        assert torch.equal(model(ids).logits, model(ids).logits)
        model.train()
        assert not torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("positions", "padded"), [("rope", True), pytest.param("alibi", False, marks=pytest.mark.slow)]
)
def test_compiles_as_one_graph(positions, padded):
    model, ids = tiny(position_embedding_type=positions), tokens(2, 24)
    model.set_experts_implementation("grouped_mm")
    mask = None
    if padded:
        mask = torch.ones_like(ids)
        mask[0, :5] = 0
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        want = model(ids, attention_mask=mask).logits
        torch.testing.assert_close(compiled(ids, attention_mask=mask).logits, want, atol=1e-5, rtol=1e-4)
    torch._dynamo.reset()


# --- configuration, initialisation, saving


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(is_causal=True), "both directions"),
        (dict(use_cache=True), "no cache"),
        (dict(classifier_pooling="cls"), "classifier_pooling"),
        (dict(classifier_dropout=1.0), "classifier_dropout"),
        (dict(num_attention_heads=4, num_key_value_heads=3), "multiple of num_key_value_heads"),
    ],
)
def test_impossible_configurations_are_refused(options, words):
    with pytest.raises(ValueError, match=words) as refused:
        tiny_config(**options)
    assert refused.value.code == "configuration.value" and "\n" not in str(refused.value)


def test_default_configuration():
    config = BertmConfig()
    assert (config.model_type, config.is_causal, config.classifier_hidden_size) == ("bertm", False, 128)
    assert tiny_config(classifier_hidden_size=7).classifier_hidden_size == 7
    changed = {"is_causal", "use_cache", "lm_head_bias", "classifier_hidden_size", "classifier_pooling"}
    mortm, bertm = MortmConfig().to_dict(), config.to_dict()
    own = {"auto_map", "custom_pipelines", "model_type", "window_bars", "window_form", "negative_label"}
    assert {k for k in bertm if bertm[k] != mortm.get(k, ...)} - own == changed


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("positions", ["rope", "alibi"])
def test_save_and_load(positions, head, tmp_path):
    model = tiny(head, position_embedding_type=positions, num_labels=3, classifier_hidden_size=9)
    ids = tokens(2, 20)
    model.save_pretrained(tmp_path)
    again, info = head.from_pretrained(tmp_path, output_loading_info=True)  # built on the meta device
    again.set_experts_implementation("eager")
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(again.eval()(ids).logits, model(ids).logits)
    if head is BertmForMaskedLM:
        assert again.lm_head.weight is again.model.embed_tokens.weight
        assert again.lm_head.bias.shape == (97,)
        # a classifier starts from the masked language model: the head alone is new
        _, info = BertmForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
        assert all(key.startswith(("pool.", "score.")) for key in info["missing_keys"])
        assert len(info["missing_keys"]) == 6


def test_encoder_starts_from_a_trained_decoder(tmp_path):
    """MORTM and BERTM share their parameters' names, so a decoder's weights can start an encoder."""
    options = tiny_config().to_dict()
    own = ("auto_map", "custom_pipelines", "model_type", "is_causal", "classifier_pooling")
    decoder = MortmForCausalLM(MortmConfig(**{k: v for k, v in options.items() if k not in own}))
    decoder.save_pretrained(tmp_path)
    encoder = BertmModel.from_pretrained(tmp_path, config=tiny_config())
    for name, tensor in decoder.model.state_dict().items():
        assert torch.equal(tensor, encoder.state_dict()[name]), name


def test_every_value_is_initialised_on_the_meta_device():
    options = dict(mlp_bias=True, norm_type="dynamic_tanh", position_embedding_type="alibi", router_balancing="bias")
    for head in HEADS:
        config = tiny_config(**options)
        model = head.from_pretrained(None, config=config, state_dict={})
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            assert tensor.device.type == "cpu" and torch.isfinite(tensor).all(), name
            if name.endswith("alpha"):
                assert tensor.item() == 0.5
            elif name.endswith("slopes"):
                assert torch.equal(tensor, alibi_slopes(4))
            elif "bias" in name or "counts" in name:
                assert not tensor.any(), name
            elif "norm" in name:
                assert (tensor == 1).all(), name
            else:
                assert 0.05 < tensor.std() < 0.15, name


def test_implementations_are_switchable():
    for head in [BertmModel, *HEADS]:
        assert head._can_set_attn_implementation() and head._can_set_experts_implementation()
    model = tiny()
    model.set_experts_implementation("grouped_mm")
    model.set_attn_implementation("eager")
    assert (model.config._experts_implementation, model.config._attn_implementation) == ("grouped_mm", "eager")
    assert len(model(tokens(1, 5), output_attentions=True).attentions) == 2
    assert len(model(tokens(1, 5), output_hidden_states=True).hidden_states) == 3
