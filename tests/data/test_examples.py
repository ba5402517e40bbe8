"""Drawn documents: grammatical, reproducible, in the shares that were asked for; packs keep them apart."""

from collections import Counter

import numpy as np
import pytest

from mortm_hf.data.examples import TASKS, ExampleSource, transpose, transposition_range
from mortm_hf.data.packing import IGNORE, Document, PackDataset, generator, pack_rows, single_pack
from mortm_hf.models.metric_grammar import check
from mortm_hf.models.metric_vocabulary import CHORD_ROOTS, DRUMS, MetricVocabulary, TokenKind, default_tokens
from mortm_hf.models.midi_codec import parse_segment
from mortm_hf.training.arguments import DataRecipe
from tests.sample_songs import store


VOCABULARY = MetricVocabulary({token: index for index, token in enumerate(default_tokens())})
MIX = dict(zip(TASKS, (40.0, 20.0, 10.0, 15.0, 15.0)))
RECIPE = DataRecipe(tasks=MIX, corpora={"band": {"weight": 1}, "lead": {"weight": 3}}, row_length=1024, rows=1)


@pytest.fixture(scope="module")
def source():
    return ExampleSource(store(), VOCABULARY, RECIPE, seed=3, packs=60)


@pytest.fixture(scope="module")
def documents(source):
    dataset = PackDataset(source, 80, lambda i: (1, 1024), 0, seed=3)
    return [d for i in range(80) for row in dataset.documents(i) for d in row]


def test_every_task_is_grammatical(documents):
    for task in TASKS:
        some = [d for d in documents if d.task == task][:3]
        assert some, task
        for document in some:
            check(VOCABULARY, document.ids, complete=True)
    kinds = VOCABULARY.kind
    for d in documents:
        given = set(kinds[d.ids].tolist())
        assert (TokenKind.CGEN in given) == (d.task == "chords")
        assert (TokenKind.CONST_C in given) == (d.task == "over_chords")
        assert TokenKind.FUTURE not in given or d.task == "infill"
    assert all(
        any(kind in set(kinds[d.ids].tolist()) for d in documents if d.task == task)
        for task, kind in (("infill", TokenKind.FUTURE), ("accompany", TokenKind.CONST_M))
    )


def test_shares_of_tokens_and_of_tasks(source, documents):
    tokens, tasks = Counter(), Counter()
    for d in documents:
        tokens[source.store[d.source].corpus] += len(d.ids)
        tasks[d.task] += 1
    assert tokens["lead"] / tokens.total() == pytest.approx(0.75, abs=0.1)
    assert tasks["chords"] > 0.04 * tasks.total() and tasks["continue"] > 0.3 * tasks.total()


def test_targets_are_the_answer(documents):
    for d in documents:
        kinds = VOCABULARY.kind[d.ids]
        marker = np.flatnonzero(np.isin(kinds, (TokenKind.MGEN, TokenKind.CGEN)))[0]
        assert d.target[marker + 1 :].all()
        before = np.flatnonzero(d.target[: marker + 1])
        if d.task == "continue" and TokenKind.PAST in kinds:
            assert before[0] == np.flatnonzero(kinds == TokenKind.PAST)[0] + 1
        else:
            assert not len(before)
        if d.task != "chords":
            assert parse_segment(VOCABULARY, d.ids).generated.n_notes == d.notes


def test_items_are_pure(source):
    shape = lambda i: (2, 512)
    a = PackDataset(source, 4, shape, 0, seed=5, epochs=3)
    b = PackDataset(source, 4, shape, 0, seed=5, epochs=3)
    _ = [b[i] for i in (9, 2)]  # another order of access
    for i in (0, 5, 11):
        assert all((x == y).all() for x, y in zip(a[i].values(), b[i].values()))
    assert len({a[i]["input_ids"].numpy().tobytes() for i in range(12)}) == 12  # epochs differ
    other = PackDataset(source, 4, shape, 0, seed=6)[0]["input_ids"]
    assert (other != a[0]["input_ids"]).any()
    with pytest.raises(IndexError):
        a[12]


def test_documents_fit_any_space(source):
    for limit in (130, 200, 400, 2048):
        sizes = [len(d.ids) for k in range(40) if (d := source.draw(generator(1, limit, k), limit)) is not None]
        assert sizes and max(sizes) <= limit


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


def test_transposition_moves_all_but_drums():
    score = next(s.score for s in store().songs if s.score.programs[-1] == DRUMS)
    moved = transpose(score, 3)
    drum = score.programs[score.track] == DRUMS
    assert (moved.pitch[~drum] == score.pitch[~drum] + 3).all() and (moved.pitch[drum] == score.pitch[drum]).all()
    lead = next(s.score for s in store().songs if s.score.chords is not None)
    up = transpose(lead, 2)
    names = [CHORD_ROOTS[r] for r in up.chords.root[:4]]
    assert names == ["D", "B", "G", "C"] and up.key == "DM"
    assert (transpose(up, -2).chords.root == lead.chords.root).all()
    assert transpose(lead, 0) is lead
    low, high = transposition_range(lead, -80, 80)
    assert lead.pitch.min() + low == 0 and lead.pitch.max() + high == 127


def test_unknown_task_is_refused():
    with pytest.raises(ValueError, match="hum"):
        ExampleSource(store(2, 4), VOCABULARY, DataRecipe(tasks={"hum": 1.0}))
