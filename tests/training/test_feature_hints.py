"""What an encoder is asked about a window: counts in deviations, intervals of notes."""

import numpy as np
import torch

from mortm_hf.data.packing import IGNORE
from mortm_hf.evaluation.features import bag_of_features, scores_of
from mortm_hf.models.token_vocabulary import MetricVocabulary, TokenKind
from mortm_hf.training.feature_hints import FAR, HintLayer, HintTable, note_intervals
from tests.sample_songs import store


VOCABULARY = MetricVocabulary.default()


def ids_of(words: str) -> np.ndarray:
    return np.array([VOCABULARY[w] for w in words.split()])


def test_intervals_of_chords_and_melodies():
    row = ids_of(
        "<EOS> <MGEN> <INST_0> <SME> s_0 p_60 d_24 s_0 p_64 d_24 s_0 p_77 d_24 s_24 p_76 d_24 <SME> s_24 p_60 d_24 "
        "<ESEQ> <INST_40> <SME> s_24 p_80 d_9 s_48 p_40 d_9 <ESEQ> "
        "<INST_DRUMS> <SME> s_0 p_36 d_1 s_0 p_38 d_1 <ESEQ> <TE>"
    )
    found = note_intervals(VOCABULARY, row)
    pitches = VOCABULARY.kind[row] == TokenKind.PITCH
    assert (found[~pitches] == IGNORE).all()
    below, step = found[pitches].T.tolist()
    assert below == [12, 4, 1, 12, 12, 12, 12, IGNORE, IGNORE]
    assert step == [IGNORE, IGNORE, IGNORE, 12, 0, IGNORE, 0, IGNORE, IGNORE]  # -1, -16, and from 80 down to 40
    # padding and neighbours change nothing
    batch = np.stack([np.append(row, [0, 0]), np.append(row, [0, 0])])
    assert np.array_equal(note_intervals(VOCABULARY, batch)[1, :-2], found)


def test_intervals_are_those_that_the_bag_counts():
    """Histograms of the notes' intervals are the bag's, of a window of one pitched track."""
    from mortm_hf.models.inputs_bertm import bare_segment, merge_tracks

    for song in store(3, 12).songs:
        score = merge_tracks(song.score)
        row = bare_segment(VOCABULARY, score)
        bag = bag_of_features([score]).of("interval")[0]
        below, step = note_intervals(VOCABULARY, row).T
        step = np.bincount(step[step >= 0], minlength=27) / max((step >= 0).sum(), 1)
        below = np.bincount(below[(below >= 0) & (below < 12)], minlength=12)
        assert np.allclose(step, bag[:27], atol=1e-6) and np.allclose(below / max(below.sum(), 1), bag[27:], atol=1e-6)


def test_features_are_measured_in_deviations():
    rows = [ids_of(f"<EOS> <MGEN> <INST_0> <SME> s_0 p_{60 + i} d_{1 + i} <ESEQ> <TE>") for i in range(6)]
    table = HintTable(VOCABULARY, rows)
    values = bag_of_features(scores_of(VOCABULARY, rows)).values
    told = table(rows).numpy()
    assert told.shape == values.shape == (6, len(table)) and np.abs(told).max() <= FAR
    varies = values.std(0) > 1e-6
    assert np.allclose(told[:, varies].mean(0), 0, atol=1e-4) and (told[:, ~varies] == 0).all()


def test_a_batch_without_such_notes_has_a_loss():
    layer = HintLayer(8, 3)
    layer.kept = torch.randn(2, 5, 8), torch.randn(2, 8)
    features = torch.zeros(2, 3)
    pooled = layer.kept[1]
    loss = layer.loss(features, torch.full((2, 5, 2), IGNORE))
    assert torch.allclose(loss, layer.read(pooled).pow(2).mean()) and layer.kept is None
