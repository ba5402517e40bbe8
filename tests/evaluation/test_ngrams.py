"""n-grams against a plain reference, copying, and bits a note by hand."""

from collections import Counter

import numpy as np
import pytest
import torch

from mortm_hf.evaluation.baselines import macro_weights, run_baselines, window_bits
from mortm_hf.evaluation.bits import model_bits, summarise
from mortm_hf.evaluation.ngrams import CopyModel, Corpus, NGram, match_state, previous_bar
from mortm_hf.evaluation.variety import human_variety, sample_variety, variety
from mortm_hf.evaluation.windows import Encoded, Window, encode_windows, fixed_windows, read_windows, write_windows
from mortm_hf.models.configuration_mortm import MortmConfig
from mortm_hf.models.metric_vocabulary import MetricVocabulary, TokenKind, default_tokens
from mortm_hf.models.modeling_mortm import MortmForCausalLM
from mortm_hf.models.tokenization_mortm import MortmTokenizer
from tests.sample_songs import store


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


@pytest.fixture(scope="module")
def windows():
    songs = store(4, 34)
    return songs, encode_windows(VOCABULARY, songs, fixed_windows(songs), 4096)[0]


def test_windows_are_the_consecutive_ones(windows, tmp_path):
    songs, encoded = windows
    listed = fixed_windows(songs)
    assert [(w.path, w.start) for w in listed[:2]] == [("band/0.mid", 0), ("band/0.mid", 16)] and len(listed) == 8
    write_windows(tmp_path / "w.csv", listed)
    assert read_windows(tmp_path / "w.csv") == listed
    for item, window in zip(encoded, listed):
        score = next(s.score for s in songs.songs if s.path == window.path)
        assert item.notes == score.window(window.start + 8, window.start + 16).n_notes
        kinds = VOCABULARY.kind[item.ids]
        assert kinds[item.answer - 1] == TokenKind.MGEN and kinds[-1] == TokenKind.END
        assert TokenKind.DENSITY not in kinds and TokenKind.VELOCITY not in kinds
        assert (kinds[item.answer :] == TokenKind.ONSET).sum() == item.notes
    again = encode_windows(VOCABULARY, songs, listed, 4096)[0]
    assert all((a.ids == b.ids).all() for a, b in zip(encoded, again))
    short, left_out = encode_windows(VOCABULARY, songs, listed, 100)
    assert not short and len(left_out) == 8 and "tokens" in left_out[0][1]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = MortmConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, moe_intermediate_size=16,
                         shared_expert_intermediate_size=16, num_local_experts=2)  # fmt: skip
    return MortmForCausalLM(config)


def test_model_bits_by_hand(model, windows):
    encoded = windows[1][:3]
    bits = model_bits(model, encoded, tokens_per_batch=3000)
    assert model.training  # left as it was
    model.eval()
    for item, found in zip(encoded, bits):
        logits = model(torch.from_numpy(item.ids.astype(np.int64))[None]).logits[0].double()
        p = logits.log_softmax(-1)[torch.arange(item.answer - 1, len(item.ids) - 1), item.ids[item.answer :]]
        assert found == pytest.approx(float(-p.detach().sum() / np.log(2)), rel=1e-5)
    assert 10 <= bits.sum() / sum(len(w.ids) - w.answer for w in encoded) <= 10.4  # about log2(1162) untrained
    model.train()


def _window(corpus, song, notes, size=3):
    return Encoded(Window(song, 0), corpus, song, np.zeros(size + 2, dtype=np.int32), 2, notes)


def test_summary_is_a_ratio_of_sums_and_macro_a_mean():
    items = [_window("a", "1", 10), _window("a", "2", 30), _window("b", "3", 5)]
    report = summarise(np.array([100.0, 100.0, 50.0]), items)
    assert report["a"]["bits_per_note"] == 5.0 and report["b"]["bits_per_note"] == 10.0
    assert report["macro"]["bits_per_note"] == 7.5 and report["macro"]["windows"] == 3
    assert report["a"]["low"] == pytest.approx(100 / 30) and report["a"]["high"] == 10.0
    assert report["b"]["low"] == report["b"]["high"] == 10.0  # one song: nothing to resample
    paired = summarise(np.array([90.0, 80.0, 50.0]), items, against=np.array([100.0, 100.0, 50.0]))
    assert paired["a"]["bits_per_note"] == -0.75 and paired["b"]["bits_per_note"] == 0.0
    weights = macro_weights(items)
    assert (weights * np.repeat([100 / 3, 100 / 3, 50 / 3], 3)).sum() == pytest.approx(7.5)
    assert window_bits(np.full(9, 0.5), items).tolist() == [3.0, 3.0, 3.0]


def test_baselines_run_and_are_in_order(windows):
    encoded = windows[1]
    found = run_baselines(VOCABULARY, encoded, encoded, encoded, max_order=5, transpositions=(0, 2))
    total = {name: bits.sum() for name, bits in found.bits.items()}
    assert total["5-gram"] < total["4-gram"] < total["unigram"] < total["uniform"]
    assert total["copy + unigram"] < total["unigram"]
    assert found.chosen["counted on"] == "as written"  # tuned on what it was counted on


def test_variety(model, windows):
    songs, encoded = windows
    score = songs.songs[0].score
    bar = score.window(2, 3)
    human = human_variety(songs, encoded, 4)
    assert human["copied_bars"] < 1 and 0 < human["pitch_class_entropy"] <= np.log2(12)
    assert variety([(bar, bar)])["copied_bars"] == 1.0
    sampled = sample_variety(model, MortmTokenizer(), songs, encoded[:1], 1)
    assert sampled["notes_per_bar"] > 0
