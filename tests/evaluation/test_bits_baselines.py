"""Baselines on small windows, and their parts by hand."""

import numpy as np

from mortm_hf.evaluation.bits_baselines import answers, drum_tokens, run_baselines, transposed
from mortm_hf.evaluation.ngrams import Corpus


def test_baselines_run_and_are_in_order(windows, vocabulary):
    encoded = windows[1]
    found = run_baselines(vocabulary, encoded, encoded, encoded, max_order=5, transpositions=(0, 2))
    total = {name: bits.sum() for name, bits in found.bits.items()}
    assert total["5-gram"] < total["4-gram"] < total["unigram"] < total["uniform"]
    assert total["copy + unigram"] < total["unigram"]
    assert found.chosen["counted on"] == "as written"  # tuned on what it was counted on


def test_transposed_moves_pitches_but_not_drums(vocabulary):
    text = (
        "<EOS> <MGEN> <INST_0> <SME> s_0 p_60 d_12 s_0 p_127 d_12 <ESEQ> <INST_DRUMS> <SME> s_0 p_36 d_6 <ESEQ> <TE>"
    )
    corpus = Corpus.of([np.array([vocabulary[t] for t in text.split()])])
    drums = drum_tokens(vocabulary, corpus)
    words = text.split()
    assert drums.tolist() == [i >= words.index("<INST_DRUMS>") for i in range(len(words))]
    moved = [vocabulary.tokens[i] for i in transposed(vocabulary, corpus, 3, drums).tokens]
    # 127 has nowhere to go and stays
    assert moved == [{"p_60": "p_63"}.get(w, w) for w in words]


def test_only_answers_are_scored(windows):
    encoded = windows[1][:2]
    corpus = answers(encoded)
    assert corpus.counted.sum() == sum(len(w.ids) - w.answer for w in encoded)
    assert not corpus.counted[: encoded[0].answer].any() and corpus.counted[encoded[0].answer]
