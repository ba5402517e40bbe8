"""The bundled generator in transformers' own pipelines: text in token names, features."""

from pathlib import Path

import pytest
import torch
import transformers

import mortm_hf


SONG = next((Path(mortm_hf.__file__).parent / "app" / "demo").glob("*.mid"))


@pytest.fixture(scope="module")
def text():
    return mortm_hf.pipeline("text-generation", device="cpu")


@pytest.fixture(scope="module")
def prompts(text):
    tokenizer = text.tokenizer
    rows = [
        tokenizer.encode_prompt(tokenizer.prompt(song=str(SONG), start=n, past=n, bars=1, targets=[0])) for n in (1, 2)
    ]
    assert len(rows[0]) < len(rows[1])
    # text is glued to what is generated: it ends with a space
    return rows, [tokenizer.decode(row) + " " for row in rows]


def test_text_generation(text, prompts):
    """Greedy text is the greedy answer of the model, alone and in a batch."""
    rows, words = prompts
    assert type(text.model) is mortm_hf.MortmForCausalLM and type(text.tokenizer) is mortm_hf.MortmTokenizer
    want = []
    for row in rows:
        ids = torch.tensor([row])
        made = text.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        want.append(made[0, len(row) :].tolist())
    options = dict(max_new_tokens=6, do_sample=False, return_full_text=False)
    alone = [text(word, **options)[0]["generated_text"] for word in words]
    assert [text.tokenizer(said)["input_ids"] for said in alone] == want
    assert [found[0]["generated_text"] for found in text(words, batch_size=2, **options)] == alone
    whole = text(words[0], max_new_tokens=6, do_sample=False)[0]["generated_text"]
    assert whole == words[0] + alone[0]
    assert text.tokenizer(whole)["input_ids"] == rows[0] + want[0]


def test_text_generation_draws_with_a_seed(text, prompts):
    options = dict(max_new_tokens=12, do_sample=True, num_return_sequences=2, return_full_text=False)
    found = []
    for _ in range(2):
        transformers.set_seed(3)
        found.append([one["generated_text"] for one in text(prompts[1][0], **options)])
    assert found[0] == found[1] and found[0][0] != found[0][1]


def test_feature_extraction(prompts):
    rows, words = prompts
    features = mortm_hf.pipeline("feature-extraction", device="cpu")
    assert type(features.model) is mortm_hf.MortmModel
    found = [torch.tensor(one[0]) for one in features(words)]
    size = features.model.config.hidden_size
    assert [tuple(one.shape) for one in found] == [(len(row), size) for row in rows]
    with torch.no_grad():
        want = features.model(torch.tensor([rows[1]])).last_hidden_state[0]
    torch.testing.assert_close(found[1], want, atol=1e-5, rtol=1e-4)
