"""Documents in one row never see each other: under every attention that training may use."""

import numpy as np
import pytest
import torch

from mortm_hf.data.packing import IGNORE, Document, PackDataset, fill_row, generator, pack_rows, single_pack
from mortm_hf.models.modeling_mortm import MortmForCausalLM
from mortm_hf.training import attention
from tests.models.test_attention_mortm import flash, switch, tiny_config  # noqa: F401


SIZES = ((30, 1, 17), (40, 24), (64,))
ROW = 64


def documents(seed=0):
    rng = np.random.default_rng(seed)
    return [[Document(rng.integers(3, 97, n).astype(np.int32), rng.random(n) < 0.7) for n in sizes] for sizes in SIZES]


def test_pack_keeps_documents_apart():
    a = Document(np.arange(2, 7), np.array([True] * 5))
    b = Document(np.arange(20, 23), np.array([False, False, True]))
    pack = pack_rows([[a, b], [b]], 10, pad=0)
    assert pack["input_ids"].tolist() == [[2, 3, 4, 5, 6, 20, 21, 22, 0, 0], [20, 21, 22] + [0] * 7]
    assert pack["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0, 1], [0, 1, 2, 0, 1, 2, 3, 4, 5, 6]]
    x = IGNORE
    assert pack["labels"].tolist() == [[x, 3, 4, 5, 6, x, x, 22, x, x], [x, x, 22] + [x] * 7]
    assert pack["cu_seq_lens_q"].tolist() == [0, 5, 8, 10, 13, 20]
    assert single_pack([pack]) is pack
    with pytest.raises(ValueError, match="one pack"):
        single_pack([pack, pack])


def test_bounds_fit_variable_length_kernels():
    pack = pack_rows(documents(), ROW, pad=0)
    edges = pack["cu_seq_lens_q"]
    assert edges.dtype == torch.int32 and edges[0] == 0 and edges[-1] == len(SIZES) * ROW
    assert edges.tolist() == [0, 30, 31, 48, 64, 104, 128, 192]  # the first row has padding, the others none
    assert torch.equal(edges, pack["cu_seq_lens_k"])
    assert pack["max_length_q"] == pack["max_length_k"] == 64
    # they say the same as the positions
    assert torch.equal((pack["position_ids"].flatten() == 0).nonzero().flatten(), edges[:-1].long())


def model(positions="rope"):
    torch.manual_seed(0)
    return MortmForCausalLM(tiny_config(position_embedding_type=positions)).eval()


def run(net, pack, implementation):
    """Logits `[rows, length, vocabulary]` of a pack, with everything that a training step passes."""
    if implementation == attention.NAME:
        attention.register()
    switch(net, implementation)
    inputs = {k: v for k, v in pack.items() if k != "labels"}
    if implementation == "position_ids only":
        switch(net, "sdpa")
        inputs = {k: pack[k] for k in ("input_ids", "position_ids")}
    with torch.no_grad():
        return net(**inputs, use_cache=False).logits


WAYS = ["eager", "sdpa", "position_ids only", attention.NAME, "flash_attention_2"]


CASES = [(way, kind) for way in WAYS for kind in ("rope", "alibi") if (way, kind) != (attention.NAME, "alibi")]


@pytest.mark.parametrize(("implementation", "positions"), CASES)
def test_documents_never_see_each_other(implementation, positions, flash):  # noqa: F811
    """What a document's tokens predict is what they predict alone; changing one document changes no other."""
    net, rows = model(positions), documents()
    packed = run(net, pack_rows(rows, ROW, pad=0), implementation)
    switch(net, "eager")
    for r, row in enumerate(rows):
        at = 0
        for document in row:
            ids = torch.from_numpy(document.ids.astype(np.int64))[None]
            with torch.no_grad():
                alone = net(ids, use_cache=False).logits[0]
            assert (packed[r, at : at + len(document.ids)] - alone).abs().max() < 2e-5
            at += len(document.ids)
    # the second document of each row is rewritten
    changed = [[*row[:1], *(Document(d.ids[::-1].copy() + 1, d.target) for d in row[1:2]), *row[2:]] for row in rows]
    other = run(net, pack_rows(changed, ROW, pad=1), implementation)
    same = torch.ones(len(rows), ROW, dtype=torch.bool)
    for r, row in enumerate(rows):
        if len(row) > 1:
            start = len(row[0].ids)
            same[r, start : start + len(row[1].ids)] = False
        same[r, sum(len(d.ids) for d in row) :] = False  # padding has another id here
    assert torch.equal(packed[same], other[same])
    assert (packed[~same] - other[~same]).abs().max() > 0.01


def test_rows_without_bounds_would_see_each_other():
    """The counter-proof: rows as plain text, without positions or bounds, mix documents."""
    net, rows = model(), documents()
    pack = pack_rows(rows, ROW, pad=0)
    with torch.no_grad():
        mixed = net(pack["input_ids"], use_cache=False).logits
    assert (mixed - run(net, pack, "sdpa")).abs().max() > 0.01
    attention.register()
    switch(net, attention.NAME)
    with pytest.raises(ValueError, match="cu_seq_lens_q"):
        net(pack["input_ids"], position_ids=pack["position_ids"], use_cache=False)


def test_attention_that_has_no_alibi_is_refused():
    with pytest.raises(ValueError, match="would ignore ALiBi"):
        run(model("alibi"), pack_rows(documents(), ROW, pad=0), attention.NAME)


def test_no_target_crosses_a_bound():
    """The token that starts a document is never predicted from the end of the one before it."""
    rows = [[Document(d.ids, np.ones(len(d.ids), bool)) for d in row] for row in documents()]
    pack = pack_rows(rows, ROW, pad=0)
    starts = pack["position_ids"] == 0
    assert (pack["labels"][starts] == IGNORE).all()
    assert (pack["labels"][~starts] != IGNORE).sum() == sum(n - 1 for sizes in SIZES for n in sizes)


def test_rows_end_when_nothing_fits():
    class Source:
        asked = []

        def draw(self, rng, limit):
            self.asked.append(limit)
            return Document(np.zeros(300, np.int32), np.ones(300, bool)) if limit >= 300 else None

    row = fill_row(Source(), generator(0), 1000)
    assert [len(d.ids) for d in row] == [300, 300, 300]
    assert Source.asked == [1000, 700, 400]  # 100 are left: less than `least`
    Source.asked.clear()
    assert len(fill_row(Source(), generator(0), 850)) == 2 and Source.asked == [850, 550, 250, 250, 250]


def test_a_pack_depends_on_its_index_only():
    class Source:
        def draw(self, rng, limit):
            n = int(rng.integers(20, 60))
            return Document(rng.integers(3, 97, n).astype(np.int32), np.ones(n, bool))

    data = PackDataset(Source(), packs=3, shape_of=lambda i: (2, 256), pad=0, seed=1, epochs=4)
    first = [data[i]["input_ids"] for i in range(12)]
    assert all(torch.equal(data[i]["input_ids"], first[i]) for i in reversed(range(12)))
    assert len({x.numpy().tobytes() for x in first}) == 12
    with pytest.raises(IndexError):
        data[12]
