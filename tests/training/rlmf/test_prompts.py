"""Prompts from the first bars of songs."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from mortm_hf.models.errors_mortm import RlmfError
from mortm_hf.models.token_grammar import check, infer_plan
from mortm_hf.training.rlmf.grammar_masks import GrammarMasks
from mortm_hf.training.rlmf.prompts import (
    Prompt,
    PromptRecipe,
    first_bar_prompts,
    left_padded,
    prompt_dataset,
    take_turns,
)


def song(tokenizer, name, corpus="a", bars=8, silent=0, notes_a_bar=4, instruments=("<INST_0>",)):
    """A song of regular notes after some silent bars."""
    full = " ".join(f"s_{96 // notes_a_bar * i} p_{60 + i} d_{96 // notes_a_bar}" for i in range(notes_a_bar))
    body = " ".join(["<SME> <BLANK>"] * silent + [f"<SME> {full}"] * (bars - silent))
    text = "<EOS> <MGEN> " + " ".join(f"{i} {body} <ESEQ>" for i in instruments) + " <TE>"
    score = tokenizer.decode_score(tokenizer.convert_tokens_to_ids(text.split()))
    score = replace(score, key="CM")
    return SimpleNamespace(score=score, path=name, corpus=corpus, cluster=name, genre=None, split="train")


def store(*songs):
    return SimpleNamespace(songs=list(songs))


def test_a_prompt_gives_the_first_sounding_bars_and_asks_for_a_fixed_number(tokenizer):
    recipe = PromptRecipe(past=3, bars=2, tracks=1, prompt_length=128, response_length=96)
    prompts, skipped = first_bar_prompts(store(song(tokenizer, "x", silent=2, bars=9)), tokenizer, recipe)
    assert not skipped and len(prompts) == 1
    prompt = prompts[0]
    assert prompt.start == 5 and prompt.bars == 2 and len(prompt.ids) <= 128
    plan = infer_plan(tokenizer.vocabulary, prompt.ids)
    assert plan.bars.n_bars == 2 and plan.instruments == (0,)
    names = tokenizer.convert_ids_to_tokens(prompt.ids.tolist())
    past = names[names.index("<PAST_M>") :]
    assert past.count("<SME>") == 3 and "<BLANK>" not in past and names[-1] == "<MGEN>"
    assert not any(n.startswith("<NOTE_DENSE") for n in names), "the density is derived from the answer"
    check(tokenizer.vocabulary, np.concatenate([prompt.ids, prompt.answer]), complete=True)


def test_songs_of_too_few_tracks_give_no_prompt(tokenizer):
    recipe = PromptRecipe(past=2, bars=2, tracks=0, least_tracks=2, prompt_length=200)
    songs = store(song(tokenizer, "one"), song(tokenizer, "two", instruments=("<INST_0>", "<INST_40>")))
    prompts, skipped = first_bar_prompts(songs, tokenizer, recipe)
    assert [p.path for p in prompts] == ["two"]
    assert skipped == [("one", "1 tracks sound both before and after, 2 are needed")]


def test_long_prompts_give_fewer_bars_and_say_why_where_none_fits(tokenizer):
    dense = song(tokenizer, "dense", notes_a_bar=8)
    recipe = PromptRecipe(past=4, bars=2, prompt_length=70, response_length=96)
    (prompt,), _ = first_bar_prompts(store(dense), tokenizer, recipe)
    assert len(prompt.ids) <= 70
    assert tokenizer.convert_ids_to_tokens(prompt.ids.tolist()).count("<SME>") == 2
    _, skipped = first_bar_prompts(store(dense), tokenizer, replace(recipe, prompt_length=30))
    assert skipped[0][0] == "dense" and "of 30 with 1 bars" in skipped[0][1]
    _, skipped = first_bar_prompts(store(dense), tokenizer, replace(recipe, response_length=8))
    assert "shortest answer takes 10 tokens of 8" in skipped[0][1]
    _, skipped = first_bar_prompts(store(song(tokenizer, "short", bars=4)), tokenizer, recipe)
    assert "6 are needed" in skipped[0][1]


def test_the_shortest_answer_is_what_the_grammar_says(tokenizer):
    masks = GrammarMasks(tokenizer, len(tokenizer.vocabulary), None)
    ids = tokenizer.convert_tokens_to_ids("<EOS> <SYSTEM> <INST_0> <GEN_MEASURE_COUNT_1> <TAG_END> <MGEN>".split())
    # <INST_0> <SME> <TS_4/4> s p d <ESEQ> <TE>
    assert masks.shortest(np.array(ids)) == 8


def test_tracks_and_corpora_take_turns(tokenizer):
    two = song(tokenizer, "two", instruments=("<INST_0>", "<INST_40>"))
    for tracks, expected in ((1, (0,)), (2, (0, 40)), (0, (0, 40))):
        recipe = PromptRecipe(past=2, bars=1, tracks=tracks, prompt_length=128, response_length=96)
        (prompt,), _ = first_bar_prompts(store(two), tokenizer, recipe)
        assert infer_plan(tokenizer.vocabulary, prompt.ids).instruments == expected

    def of(corpus, count):
        return [Prompt(np.arange(3), np.arange(1), f"{corpus}{i}", corpus, "", 0, 1) for i in range(count)]

    groups = [of("a", 10), of("b", 2), of("c", 5)]
    picked = take_turns(groups, 9)
    assert [p.corpus for p in picked].count("b") == 2 and len(picked) == 9
    assert [p.corpus for p in picked[:3]] == ["a", "b", "c"] and picked[0].path == "a0"
    assert max(int(p.path[1:]) for p in picked if p.corpus == "a") == 9, "spread over the whole corpus"
    assert len(take_turns(groups)) == 17 and take_turns([]) == []


def test_data_sets_and_batches(tokenizer, prompts):
    dataset = prompt_dataset(prompts)
    assert dataset.column_names == ["input_ids"] and dataset[0]["input_ids"] == prompts[0].ids.tolist()
    texts = prompt_dataset(prompts, text=True, tokenizer=tokenizer)
    assert tokenizer(texts[1]["prompt"])["input_ids"] == texts[1]["prompt_ids"] == prompts[1].ids.tolist()
    ids, mask = left_padded(prompts[:4], tokenizer.pad_token_id)
    for row, prompt in zip(range(4), prompts):
        assert np.array_equal(ids[row][mask[row]], prompt.ids) and mask[row, -1]
    with pytest.raises(RlmfError, match="no song gives a prompt"):
        prompt_dataset([])
