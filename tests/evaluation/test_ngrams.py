"""n-grams against a plain reference, and copying."""

from collections import Counter

import numpy as np
import pytest

from benchmarks.ngrams import CopyModel, Corpus, NGram, match_state, previous_bar
from mortm_hf.models.token_vocabulary import MetricVocabulary, TokenKind, default_tokens


VOCABULARY = MetricVocabulary({token: index for index, token in enumerate(default_tokens())})


def reference(documents, context, token, order, strength, size):
    """Witten-Bell probability of one token by dictionaries."""
    p = 1.0 / size
    for n in range(1, order + 1):
        follow = Counter()
        wanted = (["<"] * n + list(context))[len(context) + 1 :] if n > 1 else []
        for d in documents:
            padded = ["<"] * (n - 1) + list(d)
            for i in range(1, len(d)):
                if padded[i : i + n - 1] == wanted:
                    follow[d[i]] += 1
        total, types = sum(follow.values()), len(follow)
        if total:
            p = (follow[token] + strength[n - 1] * types * p) / (total + strength[n - 1] * types)
    return p


def test_ngram_equals_the_reference():
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 5, n) for n in (12, 7, 20)]
    held = [rng.integers(0, 6, 9), rng.integers(0, 5, 4)]
    model = NGram(4, 6).fit(Corpus.of(documents))
    model.strength = np.array([1.0, 0.5, 2.0, 1.5])
    scored = Corpus.of(held)
    found = model.probability(model.evidence(scored))
    wanted = [reference(documents, d[:i], d[i], 4, model.strength, 6) for d in held for i in range(1, len(d))]
    assert found == pytest.approx(wanted, rel=1e-12)
    # counting in parts is counting at once
    parts = NGram(4, 6).fit(*(Corpus.of([d]) for d in documents))
    parts.strength = model.strength
    assert parts.probability(parts.evidence(scored)) == pytest.approx(found, rel=1e-12)


def test_ngram_is_a_distribution_and_tuning_helps():
    rng = np.random.default_rng(1)
    model = NGram(3, 7).fit(Corpus.of([rng.integers(0, 6, 200)]))
    for context in ([1, 2], [6, 6], [3, 0]):
        every = Corpus.of([np.array([*context, t]) for t in range(7)], [np.array([False, False, True])] * 7)
        assert model.probability(model.evidence(every)).sum() == pytest.approx(1.0)
    evidence = model.evidence(Corpus.of([rng.integers(0, 6, 300)]))
    before = -np.log2(model.probability(evidence)).sum()
    model.tune(evidence)
    assert -np.log2(model.probability(evidence)).sum() <= before


def test_previous_bar():
    v = VOCABULARY
    text = (
        "<EOS> <SYSTEM> <INST_0> <TAG_END> <PAST_M> <INST_0> <SME> <TS_4/4> s_0 p_60 d_12 <SME> s_0 p_62 d_12 <ESEQ> "
        "<TAG_END> <MGEN> <INST_0> <SME> <TS_4/4> s_0 p_62 d_24 s_48 <SME> <BLANK> <ESEQ> <TE>"
    ).split()
    ids = np.array([v[t] for t in text])
    heads = v.kind == TokenKind.INSTRUMENT
    stated = v.kind == TokenKind.METER
    found = previous_bar(ids, v["<SME>"], heads, v["<ESEQ>"], stated)
    names = [v.tokens[i] if i >= 0 else "-" for i in found]
    assert names[:12] == ["-"] * 11 + ["<SME>"]  # the first bar has none before it
    assert names[12:15] == ["s_0", "p_60", "d_12"]
    first = text.index("<MGEN>") + 2
    assert names[first : first + 6] == ["<SME>", "-", "s_0", "p_62", "d_12", "<SME>"]  # its past track's last bar
    assert names[first + 6 : first + 9] == ["<SME>", "s_0", "<SME>"]
    state = match_state(found, ids, np.zeros(len(ids), dtype=np.int64))
    assert state[first + 4] == 2 and state[first + 5] == 0 and state[first + 1] == -1


def test_copy_model_is_a_distribution():
    model = CopyModel(np.array([0.2, 0.7]))
    other = np.full(5, 0.2)
    for state in (-1, 0, 1, 3):
        right = np.arange(5) == 2
        assert model.probability(right, np.full(5, state), other).sum() == pytest.approx(1.0)
    rng = np.random.default_rng(2)
    right = rng.random(4000) < 0.6
    tuned = CopyModel.tune(right, np.zeros(4000, dtype=np.int64), np.full(4000, 0.01))
    assert tuned.weight[0] == pytest.approx(0.6, abs=0.03)
