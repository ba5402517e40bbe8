"""Wrong notes: which tokens change, that a chord's order gives nothing away, that the same numbers give the same."""

import numpy as np
import pytest

from mortm_hf.data.masking import MaskedPackDataset
from mortm_hf.data.packing import IGNORE, PackDataset
from mortm_hf.data.pieces import PieceSource
from mortm_hf.data.replacing import ReplacingRecipe, replace_pitches
from mortm_hf.models.metric_vocabulary import MetricVocabulary, TokenKind
from mortm_hf.training.arguments import DataRecipe
from tests.sample_songs import store


VOCABULARY = MetricVocabulary.default()
RECIPE = DataRecipe(tasks={"continue": 1.0}, corpora={"band": {"weight": 1}, "lead": {"weight": 1}}, velocity=0.0)


@pytest.fixture(scope="module")
def packs():
    source = PieceSource(store(), VOCABULARY, RECIPE, seed=3, packs=20, bare=1.0, merged=0.5, bare_bars=(2, 6))
    return PackDataset(source, 8, lambda i: (2, 768), 0, seed=3, epochs=4)


def spoiled(packs, index, seed=0, rate=(0.2, 0.2)):
    pack = packs[index]
    ids, starts = pack["input_ids"].numpy().reshape(-1), pack["cu_seq_lens_q"].numpy()[:-1]
    return ids, *replace_pitches(VOCABULARY, ids, starts, ReplacingRecipe(rate), np.random.default_rng(seed))


def test_labels_say_which_pitches_changed_and_nothing_else_does(packs):
    shares, steps = [], set()
    for index in range(8):
        ids, out, labels = spoiled(packs, index, index)
        kind = VOCABULARY.kind[ids]
        head = np.maximum.accumulate(np.where(kind == TokenKind.INSTRUMENT, np.arange(len(ids)), 0))
        drums = ids[head] == VOCABULARY["<INST_DRUMS>"]
        pitched = (kind == TokenKind.PITCH) & ~drums
        assert drums.any() and np.array_equal(labels != IGNORE, pitched)
        assert np.array_equal(out != ids, labels == 1)
        assert (VOCABULARY.kind[out] == kind).all()
        moved = VOCABULARY.value[out[labels == 1]].astype(int) - VOCABULARY.value[ids[labels == 1]]
        steps |= set(np.abs(moved).tolist())
        shares.append((labels == 1).sum() / pitched.sum())
    assert 0.1 < np.mean(shares) < 0.2, "a little below the rate: a chord's notes bar each other's way"
    assert steps == {1, 2, 3, 4, 5, 6, 7}


def test_chords_stay_in_order_and_no_two_neighbours_move():
    rng = np.random.default_rng(1)
    rows = []
    for _ in range(200):
        pitches = np.sort(rng.choice(np.arange(48, 72), 5, replace=False))
        notes = " ".join(f"s_0 p_{p} d_24" for p in pitches) + f" s_24 p_{pitches[-1]} d_24"
        rows += [VOCABULARY[w] for w in f"<EOS> <MGEN> <INST_0> <SME> {notes} <ESEQ> <TE>".split()]
    ids, starts = np.array(rows), np.arange(200) * (len(rows) // 200)
    out, labels = replace_pitches(VOCABULARY, ids, starts, ReplacingRecipe((0.5, 0.5)), rng)
    pitch = VOCABULARY.value[out[labels >= 0]].reshape(200, 6)
    assert (np.diff(pitch[:, :5]) > 0).all()
    wrong = labels[labels >= 0].reshape(200, 6)
    assert not (wrong[:, 1:5] & wrong[:, :4]).any()
    assert 0.4 < wrong[:, 5].mean() < 0.6  # alone at its onset, nothing bars its way
    assert wrong[:, 4].mean() > 0.2


def test_the_share_is_drawn_for_every_document():
    words = "<EOS> <MGEN> <INST_0> <SME> " + " ".join(f"s_{i} p_60 d_1" for i in range(96)) + " <ESEQ> <TE>"
    row = [VOCABULARY[w] for w in words.split()]
    ids, starts = np.array(row * 60), np.arange(60) * len(row)
    _, labels = replace_pitches(VOCABULARY, ids, starts, ReplacingRecipe((0.05, 0.5)), np.random.default_rng(0))
    share = labels[labels >= 0].reshape(60, 96).mean(1)
    assert share.min() < 0.15 and share.max() > 0.4


def test_packs_are_a_function_of_seed_epoch_and_index(packs):
    one, two = (MaskedPackDataset(packs, VOCABULARY, ReplacingRecipe(), replace_pitches) for _ in range(2))
    two[5]
    for index in (0, 3, 9):
        for name in ("input_ids", "labels"):
            assert one[index][name].equal(two[index][name])
    assert set(one[0]["labels"].unique().tolist()) == {IGNORE, 0, 1}
    assert not one[0]["input_ids"].equal(packs[0]["input_ids"])


def test_faults_and_music_without_pitched_notes():
    with pytest.raises(ValueError, match="rate must be"):
        ReplacingRecipe((0.3, 0.2))
    ids = np.array([VOCABULARY[w] for w in "<EOS> <MGEN> <INST_DRUMS> <SME> s_0 p_36 d_1 <ESEQ> <TE>".split()])
    out, labels = replace_pitches(VOCABULARY, ids, np.array([0]), ReplacingRecipe(), np.random.default_rng(0))
    assert np.array_equal(out, ids) and (labels == IGNORE).all()
