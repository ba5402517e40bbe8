"""Attention: every implementation, position type, padding and direction gives the same states, cached or not."""

import math
import sys
import types

import pytest
import torch
import torch.nn.functional as F

from mortm_hf.models.attention_mortm import alibi_as_dimensions, alibi_slopes, flash_functions
from mortm_hf.models.configuration_mortm import MortmConfig
from mortm_hf.models.modeling_mortm import MortmForCausalLM, MortmModel


def tiny_config(**options) -> MortmConfig:
    """Two small layers, one of each kind, grouped key/value heads, weights large enough for peaked attention."""
    defaults = dict(
        vocab_size=97,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        intermediate_size=64,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=16,
        num_local_experts=4,
        mlp_layer_types=["sparse", "dense"],
        initializer_range=0.1,
        eos_token_id=2,
    )
    return MortmConfig(**{**defaults, **options})


def build(kind=MortmModel, implementation="eager", seed=0, **options):
    torch.manual_seed(seed)
    model = kind(tiny_config(**options)).eval()
    switch(model, implementation)
    return model


def switch(model, implementation):
    """Set the attention implementation without transformers' check for installed kernels."""
    model.config._attn_implementation_internal = implementation


def pad(rows, side, value=0):
    """Rows of ids -> (ids, mask) [rows, longest]; side None wants rows of one length."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), value)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(longest - len(row), None) if side == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = row, 1
    return ids, mask


@pytest.fixture
def eager_flex():
    """Flex attention without compiling it: the same function, seconds faster for each shape."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("positions", ["rope", "alibi"])
def test_implementations_agree(positions, padding, is_causal, eager_flex):
    model = build(position_embedding_type=positions, is_causal=is_causal)
    rows = [torch.randint(3, 97, (n,)) for n in ((256, 256) if padding is None else (256, 131))]
    with torch.no_grad():
        alone = [model(row[None]).last_hidden_state[0] for row in rows]
        for implementation in ("eager", "sdpa", "flex_attention"):
            switch(model, implementation)
            ids, mask = pad(rows, padding)
            states = model(ids, attention_mask=None if padding is None else mask).last_hidden_state
            for got, keep, want in zip(states, mask.bool(), alone, strict=True):
                assert (got[keep] - want).abs().max() < 1e-5, implementation
    order = torch.randperm(256)
    with torch.no_grad():
        other = model(rows[0][order][None]).last_hidden_state[0][order.argsort()]
    assert (other - alone[0]).abs().max() > 0.05  # order matters: positions really act


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("positions", ["rope", "alibi"])
def test_implementations_agree_at_8k(positions, padding, is_causal, eager_flex):
    """A whole model over rows of 8192 tokens; small, as eager attention holds all the scores at once."""
    shape = dict(num_attention_heads=2, num_key_value_heads=1, hidden_size=32, max_position_embeddings=8192)
    shape |= dict(num_hidden_layers=1, mlp_layer_types=["sparse"])
    model = build(position_embedding_type=positions, is_causal=is_causal, **shape)
    lengths = (8192,) if padding is None else (8192, 5000)
    ids, mask = pad([torch.randint(3, 97, (n,)) for n in lengths], padding)
    states = {}
    with torch.no_grad():
        for implementation in ("eager", "sdpa", "flex_attention"):
            switch(model, implementation)
            output = model(ids, attention_mask=None if padding is None else mask).last_hidden_state
            states[implementation] = output[mask.bool()]
    for implementation in ("sdpa", "flex_attention"):
        assert (states[implementation] - states["eager"]).abs().max() < 3e-4, implementation


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["rope", "alibi"])
def test_compiled_flex_agrees(positions):
    model = build(position_embedding_type=positions, num_attention_heads=4, num_key_value_heads=2)
    ids, mask = pad([torch.randint(3, 97, (n,)) for n in (150, 128)], "left")
    with torch.no_grad():
        want = model(ids, attention_mask=mask).last_hidden_state[mask.bool()]
        switch(model, "flex_attention")
        got = model(ids, attention_mask=mask).last_hidden_state[mask.bool()]
    assert (got - want).abs().max() < 1e-5


@pytest.mark.parametrize("heads", [4, 6])
def test_alibi_is_exact_at_8k(heads):
    torch.manual_seed(0)
    slopes, scaling, length = alibi_slopes(heads), 0.25, 8192
    query, key, value = torch.randn(3, 1, heads, length, 16)
    far = torch.tensor([1, 100, 4000, 8000, 8191])
    scores = (query[:, :, far] @ key.transpose(2, 3)).double() * scaling
    distance = far[:, None] - torch.arange(length)
    scores = (scores - slopes.double()[:, None, None] * distance).masked_fill(distance < 0, -math.inf)
    want = scores.softmax(-1) @ value.double()
    q, k, v = alibi_as_dimensions(query, key, value, slopes, scaling)
    got = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)[..., :16]
    assert (got[:, :, far] - want).abs().max() < 2e-6  # as close as attention without any bias


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", [4, 6])
def test_half_precision_alibi_is_as_exact_as_half_precision(dtype, heads):
    """Far from the start of a row the index has more digits than bf16 holds: the penalty must still be right."""
    torch.manual_seed(0)
    slopes, scaling, length = alibi_slopes(heads), 0.25, 3000
    query, key, value = torch.randn(3, 1, heads, length, 16).to(dtype)
    last = slice(length - 8, None)
    scores = query[:, :, last].double() @ key.double().transpose(2, 3) * scaling
    distance = torch.arange(length)[last, None] - torch.arange(length)
    scores = (scores - slopes.double()[:, None, None] * distance).masked_fill(distance < 0, -math.inf)
    want = scores.softmax(-1) @ value.double()
    q, k, v = alibi_as_dimensions(query, key, value, slopes, scaling)
    got = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)[..., :16]
    assert got.dtype == dtype
    assert (got[:, :, last].double() - want).abs().max() < 0.02
    if dtype == torch.bfloat16:  # one plain dimension, for comparison: the test can fail
        index = (torch.arange(length) - length // 2).to(dtype).expand(1, heads, length)[..., None]
        factor = (slopes / scaling).to(dtype)[None, :, None, None].expand(1, heads, length, 1)
        bad = F.scaled_dot_product_attention(
            torch.cat([query, factor], -1),
            torch.cat([key, index], -1),
            F.pad(value, (0, 1)),
            is_causal=True,
            scale=scaling,
        )[..., :16]
        assert (bad[:, :, last].double() - want).abs().max() > 0.1


def test_half_precision_alibi_refuses_too_many_keys():
    x = torch.zeros(1, 1, 65537, 1, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="65536 keys"):
        alibi_as_dimensions(x, x, x, alibi_slopes(1), 1.0)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_bf16_model_with_alibi_follows_fp32(implementation):
    """The error of bf16 with ALiBi is that of bf16 with rotary positions, in the model and under autocast."""
    ids = torch.randint(3, 97, (1, 700))
    errors = {}
    for positions in ("rope", "alibi"):
        options = dict(position_embedding_type=positions, mlp_layer_types=["dense"] * 2)
        model = build(implementation=implementation, **options)
        with torch.no_grad():
            want = model(ids).last_hidden_state
            with torch.autocast("cpu", torch.bfloat16):
                cast = model(ids).last_hidden_state
            half = model.to(torch.bfloat16)(ids).last_hidden_state
        errors[positions] = [(x.float() - want).abs().mean().item() for x in (cast, half)]
    for rope, alibi in zip(*errors.values(), strict=True):
        assert 0 < alibi < 2 * rope + 1e-3


def test_sdpa_alibi_makes_no_square_bias(monkeypatch):
    """Causal and unpadded: sdpa is called with its causal flag and no mask."""
    model = build(implementation="sdpa", position_embedding_type="alibi")
    calls = []
    real = F.scaled_dot_product_attention

    def spy(*args, **kwargs):
        calls.append((kwargs.get("attn_mask"), kwargs.get("is_causal")))
        return real(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    with torch.no_grad():
        model(torch.randint(3, 97, (1, 64)))
    assert calls == [(None, True)] * 2


def test_slopes_follow_the_paper():
    torch.testing.assert_close(alibi_slopes(8), torch.tensor([2.0**-i for i in range(1, 9)]))
    want = [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3]
    torch.testing.assert_close(alibi_slopes(6), torch.tensor(want))
    assert alibi_slopes(12).shape == (12,)
    torch.testing.assert_close(alibi_slopes(12)[8:], torch.tensor([2.0 ** -(i + 0.5) for i in range(4)]))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("positions", ["rope", "alibi"])
@pytest.mark.parametrize("batch", [1, 8])
def test_cached_equals_uncached(batch, positions, implementation):
    model = build(MortmForCausalLM, implementation, position_embedding_type=positions)
    ids, mask = pad([torch.randint(3, 97, (70 - 3 * i,)) for i in range(batch)], "left")
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        want = model(ids, attention_mask=mask, position_ids=places, use_cache=False).logits
        cache, got = None, []
        for start, stop in [(0, 40), (40, 60), (60, 61), (61, 62), (62, 70)]:  # prefill, chunk, steps, verification
            output = model(
                ids[:, start:stop],
                attention_mask=mask[:, :stop],
                position_ids=places[:, start:stop],
                past_key_values=cache,
                use_cache=True,
            )
            cache = output.past_key_values
            got.append(output.logits)
    keep = mask.bool()
    assert (torch.cat(got, 1)[keep] - want[keep]).abs().max() < 2e-5


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("positions", ["rope", "alibi"])
def test_packed_equals_unpacked(positions, is_causal, implementation, eager_flex):
    model = build(implementation=implementation, position_embedding_type=positions, is_causal=is_causal)
    rows = [[torch.randint(3, 97, (n,)) for n in lengths] for lengths in ((30, 1, 33), (40, 24))]
    ids = torch.stack([torch.cat(row) for row in rows])
    places = torch.stack([torch.cat([torch.arange(len(piece)) for piece in row]) for row in rows])
    with torch.no_grad():
        packed = model(ids, position_ids=places, use_cache=False).last_hidden_state
        switch(model, "eager")
        alone = [torch.cat([model(piece[None]).last_hidden_state[0] for piece in row]) for row in rows]
    assert (packed - torch.stack(alone)).abs().max() < 1e-5


# --- flash attention: reference functions stand in for the kernels, so this shows the wiring, not the kernels


def reference_flash(query, key, value, dropout_p=0.0, softmax_scale=None, causal=False, alibi_slopes=None, **_):
    """flash_attn_func written out: [batch, length, heads, head_dim], masks aligned to the last query and key."""
    groups = query.shape[2] // key.shape[2]
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    queries, keys = query.shape[2], key.shape[2]
    distance = torch.arange(queries)[:, None] + keys - queries - torch.arange(keys)
    scores = query @ key.transpose(2, 3) * softmax_scale
    if alibi_slopes is not None:
        scores = scores - alibi_slopes[:, None, None] * distance.abs()
    if causal:
        scores = scores.masked_fill(distance < 0, -math.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


def reference_flash_varlen(query, key, value, cu_seqlens_q=None, cu_seqlens_k=None, **options):
    """flash_attn_varlen_func: pieces [tokens, heads, head_dim] between the given bounds."""
    bounds = zip(cu_seqlens_q[:-1], cu_seqlens_q[1:], cu_seqlens_k[:-1], cu_seqlens_k[1:], strict=True)
    pieces = [
        reference_flash(query[None, a:b], key[None, c:d], value[None, c:d], **options)[0] for a, b, c, d in bounds
    ]
    return torch.cat(pieces)


@pytest.fixture
def flash(monkeypatch):
    """Puts the reference functions where transformers and our ALiBi path look for flash-attn."""
    import transformers.modeling_flash_attention_utils as utils

    module = types.ModuleType("flash_attn")
    module.flash_attn_func, module.flash_attn_varlen_func = reference_flash, reference_flash_varlen
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    flash_functions.cache_clear()
    functions = (reference_flash, reference_flash_varlen, None, utils._pad_input, utils._unpad_input)
    monkeypatch.setattr(utils, "_lazy_imports", lambda *args, **kwargs: functions)
    monkeypatch.setattr(utils, "_loaded_implementation", None)
    yield
    flash_functions.cache_clear()
    utils._loaded_implementation = None


@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("positions", ["rope", "alibi"])
def test_flash_wiring(positions, padding, is_causal, flash):
    model = build(position_embedding_type=positions, is_causal=is_causal)
    ids, mask = pad([torch.randint(3, 97, (n,)) for n in ((40, 40) if padding is None else (40, 23))], padding)
    kwargs = {} if padding is None else {"attention_mask": mask}
    with torch.no_grad():
        want = model(ids, **kwargs).last_hidden_state[mask.bool()]
        switch(model, "flash_attention_2")
        got = model(ids, **kwargs).last_hidden_state[mask.bool()]
    assert (got - want).abs().max() < 1e-5


@pytest.mark.parametrize("how", ["position_ids", "several rows", "cu_seq_lens"])
@pytest.mark.parametrize("positions", ["rope", "alibi"])
def test_flash_wiring_packed(positions, how, flash):
    model = build(position_embedding_type=positions)
    rows = 2 if how == "several rows" else 1
    ids, places = torch.randint(3, 97, (rows, 40)), torch.cat([torch.arange(25), torch.arange(15)]).expand(rows, -1)
    lengths = {}
    if how == "cu_seq_lens":
        bounds = torch.tensor([0, 25, 40], dtype=torch.int32)
        lengths = dict(cu_seq_lens_q=bounds, cu_seq_lens_k=bounds, max_length_q=25, max_length_k=25)
    with torch.no_grad():
        want = model(ids, position_ids=places, use_cache=False).last_hidden_state
        switch(model, "flash_attention_2")
        got = model(ids, position_ids=places, use_cache=False, **lengths).last_hidden_state
    assert (got - want).abs().max() < 1e-5


@pytest.mark.parametrize("positions", ["rope", "alibi"])
def test_flash_wiring_cached(positions, flash):
    model = build(MortmForCausalLM, position_embedding_type=positions)
    ids, mask = pad([torch.randint(3, 97, (n,)) for n in (20, 13)], "left")
    want = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    switch(model, "flash_attention_2")
    got = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    assert want.shape == (2, 28)
    assert torch.equal(got, want)


def test_flash_without_the_package_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    flash_functions.cache_clear()
    model = build(implementation="flash_attention_2", position_embedding_type="alibi")
    with pytest.raises(ValueError, match="needs the flash-attn package"):
        model(torch.randint(3, 97, (1, 8)), use_cache=False)


@pytest.mark.parametrize("name", ["flash_attention_3", "paged|sdpa", "kernels-community/flash-attn2"])
def test_implementations_that_ignore_alibi_are_refused(name):
    model = build(implementation=name, position_embedding_type="alibi")
    with pytest.raises(ValueError, match="would ignore ALiBi"):
        model(torch.randint(3, 97, (1, 8)), attention_mask=torch.ones(1, 1, 8, 8, dtype=torch.bool))


def test_refusals_name_the_flag(eager_flex):
    ids = torch.randint(3, 97, (1, 8))
    model = build(MortmForCausalLM, "flex_attention")
    with pytest.raises(ValueError, match="flex_attention cannot decode"):
        model.generate(ids, max_new_tokens=3)
    model = build(implementation="flex_attention", position_embedding_type="alibi", attention_dropout=0.1).train()
    with pytest.raises(ValueError, match="no attention dropout"):
        model(ids, use_cache=False)
    model = build(is_causal=False)
    cached = build()(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="no cache"):
        model(ids, past_key_values=cached)
    assert model(ids, use_cache=True).past_key_values is None
