"""Bits a note by hand."""

import numpy as np
import pytest
import torch

from mortm_hf.evaluation.bits_baselines import macro_weights, window_bits
from mortm_hf.evaluation.bits_per_note import model_bits, summarise
from mortm_hf.evaluation.fixed_windows import Encoded, Window


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


def test_batching_and_padding_change_nothing(model, windows):
    encoded = windows[1]
    one_by_one = model_bits(model, encoded, tokens_per_batch=1)
    together = model_bits(model, encoded[::-1], tokens_per_batch=1 << 20)[::-1]
    assert together == pytest.approx(one_by_one, rel=1e-5)


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


def test_intervals_are_over_songs_not_windows():
    # ten windows of one song say no more than one
    many = [_window("a", "1", 10) for _ in range(10)] + [_window("a", "2", 10)]
    report = summarise(np.array([10.0] * 10 + [30.0]), many)
    assert report["a"]["songs"] == 2 and report["a"]["low"] == 1.0 and report["a"]["high"] == 3.0
    assert summarise(np.zeros(0), []) == {}
