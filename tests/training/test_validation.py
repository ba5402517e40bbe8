"""Validation in bits a note, the best model and early stopping."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mortm_hf.evaluation.bits_per_note import model_bits, summarise
from mortm_hf.evaluation.fixed_windows import Window, fixed_windows, write_windows
from mortm_hf.models.configuration_mortm import MortmConfig
from mortm_hf.models.modeling_mortm import MortmForCausalLM
from mortm_hf.models.tokenization_mortm import MortmTokenizer
from mortm_hf.training import attention, validation
from mortm_hf.training.runlog import RunLog
from mortm_hf.training.validation import METRIC, BitsPerNote, Selection, evenly_spaced, validation_windows, whole_rows
from tests.sample_songs import store
from tests.training.tiny_run import windows


SONGS = store(4, 20)


def tiny():
    torch.manual_seed(0)
    config = MortmConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, moe_intermediate_size=8,
                         shared_expert_intermediate_size=8, num_local_experts=2)  # fmt: skip
    return MortmForCausalLM._from_config(config, attn_implementation=attention.register())


def test_a_limit_takes_every_corpus_and_spreads_over_its_songs():
    listed = [Window(f"a{i}", 0) for i in range(50)] + [Window(f"b{i}", 0) for i in range(4)]
    corpus = {w.path: w.path[0] for w in listed}
    chosen = evenly_spaced(listed, corpus, 20)
    assert len(chosen) == 20 and sum(corpus[w.path] == "b" for w in chosen) == 4
    own = [int(w.path[1:]) for w in chosen if corpus[w.path] == "a"]
    assert own[0] == 0 and own[-1] == 49 and max(np.diff(own)) <= 5
    assert evenly_spaced(listed, corpus, 0) == listed


def test_windows_come_from_the_csv(tmp_path):
    path = tmp_path / "v.csv"
    write_windows(path, fixed_windows(SONGS))
    encoded = validation_windows(MortmTokenizer().vocabulary, SONGS, path, 4096)
    assert len(encoded) == len(fixed_windows(SONGS)) > 0
    write_windows(path, [Window("elsewhere.mid", 0)])
    with pytest.raises(ValueError, match="elsewhere"):
        validation_windows(MortmTokenizer().vocabulary, SONGS, path, 4096)


def test_figures_are_those_of_the_evaluation_and_add_up_over_processes(monkeypatch):
    model, found = tiny(), windows(SONGS)
    with whole_rows(model):
        bits = model_bits(model, found)
    assert model.config._attn_implementation == attention.NAME
    report = summarise(bits, found, resamples=1)
    figures = BitsPerNote(found).measure(model)
    assert figures[METRIC] == pytest.approx(report["macro"]["bits_per_note"])
    assert figures[f"{METRIC}_band"] == pytest.approx(report["band"]["bits_per_note"])
    # two processes: each scores its share, the sum is the whole
    parts = []
    monkeypatch.setattr(validation, "summed", lambda tensor: parts.append(tensor.clone()) or tensor)
    for rank in range(2):
        BitsPerNote(found).measure(model, rank, 2)
    assert all((part == 0).any() for part in parts)
    assert torch.allclose(sum(parts), torch.from_numpy(bits), rtol=1e-5)


def selection(folder, patience=2, every=1000):
    def save(target):
        (folder / "x").mkdir(exist_ok=True)
        (folder / "x").rename(target)

    return Selection(RunLog(folder, lambda step: 100 * step), every, patience, save)


def test_best_is_kept_and_a_run_that_stopped_improving_ends(tmp_path):
    state = SimpleNamespace(global_step=0, max_steps=1000)
    control = SimpleNamespace(should_training_stop=False, should_save=False, should_evaluate=False)
    chosen = selection(tmp_path)
    chosen.on_train_begin(None, state, control)
    for step, value in ((10, 5.0), (20, 4.0), (30, 4.5)):
        state.global_step = step
        chosen.log.write(step=step, tokens=100 * step, **{METRIC: value})
        chosen.on_evaluate(None, state, control, metrics={METRIC: value})
    best = json.loads((tmp_path / "best" / "best.json").read_text())
    assert best["step"] == 20 and best[METRIC] == 4.0 and best["tokens"] == 2000
    assert not control.should_training_stop
    # killed and resumed at step 30: it knows that one validation went by without a new best
    resumed = selection(tmp_path)
    resumed.on_train_begin(None, state, control)
    assert (resumed.best, resumed.since) == (4.0, 1)
    state.global_step = 40
    resumed.on_evaluate(None, state, control, metrics={METRIC: 4.1})
    assert control.should_training_stop and control.should_save
    assert json.loads((tmp_path / "best" / "best.json").read_text())["step"] == 20


def test_validation_is_due_by_tokens_and_at_the_end(tmp_path):
    chosen, due = selection(tmp_path, every=250), []
    for step in range(1, 12):
        control = SimpleNamespace(should_evaluate=False)
        chosen.on_step_end(None, SimpleNamespace(global_step=step, max_steps=11), control)
        due += [step] * control.should_evaluate
    assert due == [3, 5, 8, 10, 11]  # 250, 500, 750, 1000 tokens are passed there
