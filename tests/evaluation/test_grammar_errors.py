"""Grammar errors of free answers."""

import numpy as np
import pytest

from mortm_hf.evaluation.fixed_windows import encode_windows, fixed_windows
from mortm_hf.evaluation.grammar_errors import violations
from mortm_hf.models.token_vocabulary import TokenKind
from mortm_hf.models.tokenization_mortm import MortmTokenizer
from tests.sample_songs import store


@pytest.fixture(scope="module")
def written():
    tokenizer = MortmTokenizer()
    songs = store(4, 34)
    encoded = encode_windows(tokenizer.vocabulary, songs, fixed_windows(songs), 4096)[0][:4]
    return tokenizer, [w.ids[: w.answer] for w in encoded], [w.ids[w.answer :].copy() for w in encoded]


def test_what_people_wrote_breaks_nothing(written):
    found = violations(*written)
    assert found["broken"]["value"] == 0.0 and found["unfinished"]["value"] == 0.0 and found["at"] == {}
    assert found["tokens"] == sum(map(len, written[2])) and found["per_1000_tokens"]["value"] == 0.0


def test_a_wrong_token_is_found_where_it_stands(written):
    tokenizer, prompts, answers = written
    answers = [a.copy() for a in answers]
    place = int(np.flatnonzero(tokenizer.vocabulary.kind[answers[1]] == TokenKind.PITCH)[3])
    answers[1][place] = tokenizer.vocabulary["d_24"]
    found = violations(tokenizer, prompts, answers)
    assert found["broken"]["value"] == 0.25 and found["at"] == {"DURATION": 1}
    assert f"position {2 + place}" in found["examples"][0] and found["syntax"]["value"] == 0.25
    tokens = sum(len(a) for i, a in enumerate(answers) if i != 1) + place + 1
    assert found["tokens"] == tokens and found["per_1000_tokens"]["value"] == pytest.approx(1000 / tokens)


def test_a_missing_bar_breaks_the_header_only_if_the_answer_ended(written):
    tokenizer, prompts, answers = written
    bars = np.flatnonzero(tokenizer.vocabulary.kind[answers[0]] == TokenKind.BAR)
    short = np.concatenate([answers[0][: bars[7]], answers[0][-2:]])  # seven bars, closed
    cut = answers[0][: bars[7]]
    found = violations(tokenizer, prompts[:1] * 2, [short, cut])
    assert found["broken"]["value"] == 0.5 and found["unfinished"]["value"] == 0.5
    assert found["syntax"]["value"] == 0.0 and found["prompt"]["value"] == 0.5
    assert "header's" in found["examples"][0] and found["per_1000_tokens"]["value"] == 0.0


def test_a_wrong_token_counts_in_an_unfinished_answer_too(written):
    tokenizer, prompts, answers = written
    cut = np.append(answers[0][:20], [tokenizer.vocabulary["<SYSTEM>"]] * 2)
    found = violations(tokenizer, prompts[:1], [cut])
    assert found["broken"]["value"] == 1.0 and found["unfinished"]["value"] == 0.0
    empty = violations(tokenizer, prompts[:1], [answers[0][:0]])
    assert empty["broken"]["value"] == 0.0 and empty["unfinished"]["value"] == 1.0
