"""Drawn documents: grammatical, reproducible, in the shares that were asked for; packs keep them apart."""

import hashlib
from collections import Counter

import numpy as np
import pytest
import torch

from mortm_hf.data import load_songs
from mortm_hf.data.examples import TASKS, ExampleSource, transpose, transposition_range
from mortm_hf.data.packing import PackDataset, generator
from mortm_hf.models.music_names import CHORD_ROOTS, DRUMS
from mortm_hf.models.token_codec import parse_segment
from mortm_hf.models.token_grammar import check
from mortm_hf.models.token_vocabulary import MetricVocabulary, TokenKind, default_tokens
from mortm_hf.training.arguments import DataRecipe
from tests.sample_songs import store


VOCABULARY = MetricVocabulary({token: index for index, token in enumerate(default_tokens())})
MIX = dict(zip(TASKS, (30.0, 15.0, 10.0, 15.0, 10.0, 12.0, 8.0, 8.0)))
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
        assert (TokenKind.META in given) == (d.task == "meta")
        assert TokenKind.CONST_C not in given or d.task in ("over_chords", "full")
        assert TokenKind.CONST_C in given or d.task != "over_chords"
        assert TokenKind.FUTURE not in given or d.task in ("infill", "full")
        blocks = {TokenKind.PAST, TokenKind.FUTURE, TokenKind.CONST_M, TokenKind.CONST_C}
        assert d.task != "from_nothing" or not given & blocks
    assert all(
        any(kind in set(kinds[d.ids].tolist()) for d in documents if d.task == task)
        for task, kind in (("infill", TokenKind.FUTURE), ("accompany", TokenKind.CONST_M))
    )


def test_full_constraint_gives_everything(documents):
    """Upstream's task 8: past, future, the other tracks and the chords are given, in this order."""
    blocks = [TokenKind.PAST, TokenKind.FUTURE, TokenKind.CONST_M, TokenKind.CONST_C, TokenKind.MGEN]
    whole = 0
    for d in documents:
        if d.task != "full":
            continue
        kinds = VOCABULARY.kind[d.ids]
        order = [k for k in kinds.tolist() if k in blocks]
        assert TokenKind.CONST_M in order or TokenKind.CONST_C in order
        assert order == sorted(order, key=blocks.index)
        whole += order == blocks
    assert whole > 5


def test_analysis_answers_with_the_header(source, documents):
    """`<META>` is followed by the whole description of what was given, and nothing else counts in the loss."""
    some = [d for d in documents if d.task == "meta"]
    assert len(some) > 5
    for d in some:
        segment = parse_segment(VOCABULARY, d.ids)
        given, header = segment.blocks[TokenKind.CONST_M], segment.meta
        assert segment.header is None and header.instruments == tuple(given.programs.tolist())
        assert header["bars"] == given.n_bars
        assert header["meter"] == given.bars.meter[0] and header["tempo"] == given.tempo[0]
        assert header.key is not None or set(header.instruments) == {DRUMS}  # drums alone are in no key
        assert header.genres == source.genres[d.source]
        assert all(density is not None for density in header["density"])
        assert d.notes == 0


def test_shares_of_tokens_and_of_tasks(source, documents):
    tokens, tasks = Counter(), Counter()
    for d in documents:
        tokens[source.store[d.source].corpus] += len(d.ids)
        tasks[d.task] += 1
    assert tokens["lead"] / tokens.total() == pytest.approx(0.75, abs=0.1)
    assert tasks["chords"] > 0.03 * tasks.total() and tasks["continue"] > 0.25 * tasks.total()
    assert tasks["full"] > 0.03 * tasks.total() and tasks["meta"] > 0.03 * tasks.total()


def test_targets_are_the_answer(documents):
    for d in documents:
        kinds = VOCABULARY.kind[d.ids]
        marker = np.flatnonzero(np.isin(kinds, (TokenKind.MGEN, TokenKind.CGEN, TokenKind.META)))[0]
        assert d.target[marker + 1 :].all()
        before = np.flatnonzero(d.target[: marker + 1])
        if d.task == "continue" and TokenKind.PAST in kinds:
            assert before[0] == np.flatnonzero(kinds == TokenKind.PAST)[0] + 1
        else:
            assert not len(before)
        if d.task not in ("chords", "meta"):
            assert parse_segment(VOCABULARY, d.ids).generated.n_notes == d.notes


def test_the_stream_of_a_recipe_never_changes():
    """A run that is resumed years later must go on with the examples it would have seen: the stream of a store, a
    recipe and a seed is pinned. A change here breaks every unfinished run."""
    tasks = {"continue": 55.0, "infill": 20.0, "accompany": 7.5, "over_chords": 7.5, "chords": 10.0}
    recipe = DataRecipe(tasks=tasks, corpora=RECIPE.corpora, row_length=1024, rows=1)
    dataset = PackDataset(
        ExampleSource(store(), VOCABULARY, recipe, seed=3, packs=30), 8, lambda i: (2, 1024), 0, 3, 2
    )
    digest = hashlib.sha256()
    for i in range(16):
        pack = dataset[i]
        for name in ("input_ids", "labels", "position_ids"):
            digest.update(pack[name].numpy().astype("<i8").tobytes())
    assert digest.hexdigest() == "8519dde21c21d650fc0c493ee83d0a818896249c2a1eec28fa88e0b610decb88"


def test_the_stream_from_disk_is_the_same(source, tmp_path):
    store().save(tmp_path / "songs")
    again = ExampleSource(load_songs(tmp_path / "songs"), VOCABULARY, RECIPE, seed=3, packs=60)
    assert (again.corpus_chances == source.corpus_chances).all()
    shape = lambda i: (1, 1024)
    for i in (0, 3):
        a, b = (PackDataset(s, 4, shape, 0, seed=5)[i]["input_ids"] for s in (source, again))
        assert (a == b).all()


def test_items_are_pure(source):
    shape = lambda i: (2, 512)
    a = PackDataset(source, 4, shape, 0, seed=5, epochs=3)
    b = PackDataset(source, 4, shape, 0, seed=5, epochs=3)
    _ = [b[i] for i in (9, 2)]  # another order of access
    for i in (0, 5, 11):
        assert all(torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x, y in zip(a[i].values(), b[i].values()))
    assert len({a[i]["input_ids"].numpy().tobytes() for i in range(12)}) == 12  # epochs differ
    other = PackDataset(source, 4, shape, 0, seed=6)[0]["input_ids"]
    assert (other != a[0]["input_ids"]).any()
    with pytest.raises(IndexError):
        a[12]


def test_documents_fit_any_space(source):
    for limit in (130, 200, 400, 2048):
        sizes = [len(d.ids) for k in range(40) if (d := source.draw(generator(1, limit, k), limit)) is not None]
        assert sizes and max(sizes) <= limit


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


def test_a_corpus_without_weight_is_refused():
    with pytest.raises(ValueError, match="no weight to the corpora lead"):
        ExampleSource(store(2, 4), VOCABULARY, DataRecipe(corpora={"band": {"weight": 1}}))


def test_unknown_task_is_refused():
    with pytest.raises(ValueError, match="hum"):
        ExampleSource(store(2, 4), VOCABULARY, DataRecipe(tasks={"hum": 1.0}))
