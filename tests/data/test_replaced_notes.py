"""Wrong notes: which tokens change, that a chord's order gives nothing away, that the same numbers give the same."""

import numpy as np
import pytest

from mortm_hf.data.encoder_examples import PieceSource
from mortm_hf.data.packing import IGNORE, PackDataset
from mortm_hf.data.replaced_notes import ReplacedPackDataset, ReplacingRecipe, condensed_documents, replace_pitches
from mortm_hf.models.token_codec import parse_segment
from mortm_hf.models.token_vocabulary import MetricVocabulary, TokenKind
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


def test_a_generator_writes_the_new_pitches_and_may_write_the_old_ones(packs):
    ids, _, labels = spoiled(packs, 0)
    starts = packs[0]["cu_seq_lens_q"].numpy()[:-1]
    note = np.flatnonzero(labels >= 0)
    logits = np.zeros((len(ids), len(VOCABULARY)), dtype=np.float32)
    sure = np.where(np.arange(len(note)) % 2, VOCABULARY["<SME>"], ids[note])  # of every other note the old pitch
    logits[note - 1, sure] = 100.0
    rng = np.random.default_rng(0)
    out, found = replace_pitches(VOCABULARY, ids, starts, ReplacingRecipe((0.8, 0.8)), rng, logits)
    wrong = found[note] == 1
    assert np.array_equal(out != ids, found == 1) and not wrong[::2].any() and wrong[1::2].mean() > 0.4
    moved = VOCABULARY.value[out[note]].astype(int) - VOCABULARY.value[ids[note]]
    assert np.abs(moved).max() > 7  # anywhere between its neighbours, as the generator likes


def test_windows_are_condensed_with_their_labels():
    words = (
        "<EOS> <MGEN> <INST_0> <SME> s_0 p_60 d_24 s_24 p_64 d_24 <ESEQ> <INST_40> <SME> s_0 p_60 d_48 s_0 p_72 d_9 "
    )
    words += "<ESEQ> <INST_DRUMS> <SME> s_0 p_36 d_1 <ESEQ> <TE>"
    ids = np.array([VOCABULARY[w] for w in words.split()])
    labels = np.full(len(ids), IGNORE)
    labels[np.flatnonzero(VOCABULARY.kind[ids] == TokenKind.PITCH)] = [1, 1, 0, 1, IGNORE]
    twice, marks = np.tile(ids, 2), np.tile(labels, 2)
    documents = condensed_documents(VOCABULARY, twice, marks, np.array([0, len(ids)]))
    assert len(documents) == 2
    row, target = documents[1]
    score = parse_segment(VOCABULARY, row).generated
    assert score.programs.tolist() == [0, 128] and score.pitch.tolist() == [60, 72, 64, 36]
    pitched = VOCABULARY.kind[row] == TokenKind.PITCH
    assert target[pitched].tolist() == [0, 1, 1, IGNORE]  # 60 stands in the other track as well: it is no mistake
    assert (target[~pitched] == IGNORE).all()


def test_packs_are_a_function_of_seed_epoch_and_index(packs):
    def propose(pack):
        ids = pack["input_ids"].numpy()
        return np.random.default_rng(int(ids.sum())).normal(size=(*ids.shape, len(VOCABULARY)))

    for given in (None, propose):
        one, two = (ReplacedPackDataset(packs, VOCABULARY, ReplacingRecipe((0.3, 0.5)), given) for _ in range(2))
        two[5]
        for index in (0, 3, 9):
            for name in ("input_ids", "labels", "position_ids", "cu_seq_lens_q"):
                assert one[index][name].equal(two[index][name])
        pack = one[0]
        assert pack["input_ids"].shape == packs[0]["input_ids"].shape
        ids, labels = pack["input_ids"].numpy(), pack["labels"].numpy()
        assert (
            set(np.unique(labels)) == {IGNORE, 0, 1} and (VOCABULARY.kind[ids[labels >= 0]] == TokenKind.PITCH).all()
        )
        instruments = ids[VOCABULARY.kind[ids] == TokenKind.INSTRUMENT]
        assert set(instruments.tolist()) == {VOCABULARY["<INST_0>"], VOCABULARY["<INST_DRUMS>"]}


def test_faults_and_music_without_pitched_notes():
    with pytest.raises(ValueError, match="rate must be"):
        ReplacingRecipe((0.3, 0.2))
    ids = np.array([VOCABULARY[w] for w in "<EOS> <MGEN> <INST_DRUMS> <SME> s_0 p_36 d_1 <ESEQ> <TE>".split()])
    out, labels = replace_pitches(VOCABULARY, ids, np.array([0]), ReplacingRecipe(), np.random.default_rng(0))
    assert np.array_equal(out, ids) and (labels == IGNORE).all()
