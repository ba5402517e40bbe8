"""Answers of a model: seeds, batches, resuming, the grammar as a switch."""

from dataclasses import replace

import numpy as np
import pytest

from mortm_hf.evaluation import model_answers as answers_module
from mortm_hf.evaluation.grammar_errors import violations
from mortm_hf.evaluation.model_answers import AnswerCache, Ask, Sampling, answer, answer_all, batches, fingerprint
from mortm_hf.models.errors_mortm import PromptError
from mortm_hf.models.generation_cpu import FastDecoder
from mortm_hf.models.generation_mortm import MetricGrammarLogitsProcessor
from mortm_hf.models.prompt_building import MetricPrompt, build_prompt
from mortm_hf.models.token_grammar import infer_plan
from mortm_hf.models.tokenization_mortm import MortmTokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return MortmTokenizer()


@pytest.fixture(scope="module")
def asks(tokenizer):
    """Three prompts of unlike lengths: two bars of piano, flute and piano, drums."""
    found = []
    for instruments in (["piano"], ["flute", "piano"], ["drums"]):
        built = build_prompt(tokenizer.vocabulary, MetricPrompt(instruments=instruments, bars=2, key="CM"))
        found.append(Ask(built.ids, built.plan, 60))
    return found


def test_batches_hold_neighbours_and_keep_the_limits():
    found = batches([5, 1, 9, 1, 5], rows=2, tokens=100)
    assert [b.tolist() for b in found] == [[1, 3], [0, 4], [2]]
    assert [b.tolist() for b in batches([5, 5, 5], rows=9, tokens=11)] == [[0, 1], [2]]
    assert [b.tolist() for b in batches([50], rows=9, tokens=11)] == [[0]]  # a row too long runs alone
    assert batches([], 4, 4) == []


def test_an_answer_does_not_depend_on_its_batch(model, tokenizer, asks):
    sampling = Sampling(top_p=0.95)
    together = answer_all(model, tokenizer, asks, sampling, seed=3)
    alone = answer_all(model, tokenizer, asks, sampling, seed=3, batch=1)
    assert [a.tolist() for a in together] == [a.tolist() for a in alone]
    other = answer_all(model, tokenizer, asks, sampling, seed=4)
    assert [a.tolist() for a in together] != [a.tolist() for a in other]
    assert violations(tokenizer, [a.ids for a in asks], together)["broken"]["value"] == 0.0
    assert all(a[-1] == tokenizer.eos_token_id and len(a) <= 60 for a in together)


def test_the_fast_decoder_draws_what_the_model_draws(model, tokenizer, asks):
    sampling = Sampling(temperature=0.9, top_p=0.95)
    model.eval()
    slow = answer(model, tokenizer, asks, sampling, [7, 8, 9])
    fast = answer(model, tokenizer, asks, sampling, [7, 8, 9], FastDecoder(model))
    assert [a.tolist() for a in slow] == [a.tolist() for a in fast]


@pytest.mark.parametrize("beams", [1, 2])
def test_answers_of_one_batch_end_within_their_own_room(model, tokenizer, asks, beams):
    rooms = [24, 40, 60]
    unlike = [replace(ask, room=room) for ask, room in zip(asks, rooms)]
    sampling = Sampling(do_sample=beams == 1, num_beams=beams)
    found = answer(model.eval(), tokenizer, unlike, sampling, [1, 2, 3])
    assert all(len(row) <= room and row[-1] == tokenizer.eos_token_id for row, room in zip(found, rooms))
    assert violations(tokenizer, [a.ids for a in asks], found)["broken"]["value"] == 0.0


def test_without_the_grammar_a_random_model_breaks_it(model, tokenizer, asks):
    free = answer_all(model, tokenizer, asks, Sampling(grammar=False))
    assert violations(tokenizer, [a.ids for a in asks], free)["broken"]["value"] == 1.0
    assert max(map(len, free)) <= 60


def test_the_likeliest_is_drawn_without_noise(model, tokenizer, asks):
    greedy = Sampling(do_sample=False)
    assert [a.tolist() for a in answer_all(model, tokenizer, asks, greedy, seed=1)] == [
        a.tolist() for a in answer_all(model, tokenizer, asks, greedy, seed=2)
    ]


class Stops(Exception):
    pass


def test_a_run_that_was_cut_off_goes_on(model, tokenizer, asks, tmp_path, monkeypatch):
    sampling = Sampling()
    whole = answer_all(model, tokenizer, asks, sampling, seed=5)
    calls = []

    def dies_at_the_second(*args):
        calls.append(1)
        if len(calls) == 2:
            raise Stops
        return answer(*args)

    monkeypatch.setattr(answers_module, "answer", dies_at_the_second)

    def cache():
        return AnswerCache(tmp_path, "set", "model", asks, sampling, 5)

    with pytest.raises(Stops):
        answer_all(model, tokenizer, asks, sampling, seed=5, batch=1, cache=cache())
    assert len(cache().rows) == 1
    again = answer_all(model, tokenizer, asks, sampling, seed=5, batch=1, cache=cache())
    assert len(calls) == 4 and [a.tolist() for a in again] == [a.tolist() for a in whole]
    answer_all(model, tokenizer, asks, sampling, seed=5, cache=cache())
    assert len(calls) == 4  # all of it is there
    assert [p.suffix for p in tmp_path.iterdir()] == [".npz"]


def test_the_cache_is_of_one_model_prompt_seed_and_sampling(asks, tmp_path):
    def path(identity="m", asks=asks, top_p=1.0, seed=0):
        return AnswerCache(tmp_path, "set", identity, asks, Sampling(top_p=top_p), seed).path

    longer = [*asks[:2], Ask(asks[2].ids, asks[2].plan, 61)]
    assert path() == path()
    others = [path("n"), path(asks=asks[:2]), path(asks=longer), path(top_p=0.9), path(seed=1)]
    assert len({path(), *others}) == 6
    assert AnswerCache(None, "set", "m", asks, Sampling(), 0).path is None


def test_names_of_samplings():
    assert str(Sampling(temperature=0.9, top_p=0.95)) == "temperature 0.9, top-p 0.95"
    assert str(Sampling(min_p=0.05, grammar=False)) == "temperature 1, min-p 0.05, no grammar"
    assert str(Sampling(do_sample=False)) == "greedy" and str(Sampling(do_sample=False, num_beams=4)) == "4 beams"


def test_fingerprint_is_of_weights_and_configuration(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    (tmp_path / "config.json").write_text("{}")
    first = fingerprint(tmp_path)
    (tmp_path / "modeling_mortm.py").write_text("# code")
    assert fingerprint(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"abd")
    assert fingerprint(tmp_path) != first


def test_the_plan_of_a_prompt_can_be_read_from_its_ids(tokenizer, asks):
    plan = infer_plan(tokenizer.vocabulary, asks[1].ids)
    assert tuple(plan.instruments) == tuple(asks[1].plan.instruments) and plan.bars.n_bars == 2
    assert np.array_equal(plan.bars.start, asks[1].plan.bars.start)


def test_as_many_budgets_as_plans(tokenizer, asks):
    with pytest.raises(PromptError, match="3 values of max_new_tokens for 1 plans"):
        MetricGrammarLogitsProcessor(tokenizer, asks[0].plan, max_new_tokens=[9, 9, 9])
