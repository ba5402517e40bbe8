"""A checkpoint keeps the token table it was trained with; controls that came later are left out of its headers."""

import pytest

from mortm_hf.models.errors_mortm import VocabularyError
from mortm_hf.models.prompt_building import MetricPrompt, build_prompt, training_example
from mortm_hf.models.token_vocabulary import MetricVocabulary, TokenKind, default_tokens
from mortm_hf.models.tokenization_mortm import MortmTokenizer
from tests.sample_songs import store


TABLE = {token: index for index, token in enumerate(default_tokens())}
# as if density had been added after the checkpoint was made
OLDER = MetricVocabulary({token: index for token, index in TABLE.items() if not token.startswith("<NOTE_DENSE_")})


def test_what_is_measured_is_left_out():
    song = store(2, 12).songs[0].score
    tokenizer = MortmTokenizer()
    newer, tokenizer.vocabulary = tokenizer.encode_score(song), OLDER
    assert tokenizer.encode_score(song).tolist() == [
        i for i in newer.tolist() if MetricVocabulary.default().kind[i] != TokenKind.DENSITY
    ]
    for task in ("melody", "meta"):
        ids = training_example(OLDER, song, 0, 4, task=task, const=() if task == "melody" else (0,)).ids
        assert not (OLDER.kind[ids] == TokenKind.DENSITY).any() and (OLDER.kind[ids] == TokenKind.INSTRUMENT).any()


def test_what_is_asked_for_is_refused():
    build_prompt(OLDER, MetricPrompt(instruments=["piano"], bars=1))
    with pytest.raises(VocabularyError, match="density 3: the checkpoint"):
        build_prompt(OLDER, MetricPrompt(instruments=["piano"], bars=1, density=3))
