"""The token table is append-only: this file pins every id."""

import json
from pathlib import Path

import numpy as np
import pytest

from mortm_hf.models.errors_mortm import VocabularyError
from mortm_hf.models.music_names import DRUMS, METER_TICKS, METERS, TEMPO_CENTRES
from mortm_hf.models.token_vocabulary import (
    VOCABULARY_VERSION,
    MetricVocabulary,
    TokenKind,
    default_tokens,
    token_meaning,
)


FIXTURE = Path(__file__).parents[1] / "fixtures" / "vocab.json"


def test_every_id_is_pinned():
    pinned = json.loads(FIXTURE.read_text())
    assert pinned["version"] == VOCABULARY_VERSION
    assert {token: index for index, token in enumerate(default_tokens())} == pinned["vocab"]


def test_size_and_special_places():
    vocabulary = MetricVocabulary.default()
    assert len(vocabulary) == 1162
    assert [vocabulary[t] for t in ("<PAD>", "<EOS>", "<TE>", "<SME>", "<LENGTH>")] == [0, 1, 627, 49, 693]


def test_meaning_and_lookup_are_inverse():
    vocabulary = MetricVocabulary.default()
    for index, token in enumerate(vocabulary.tokens):
        kind, value = token_meaning(token)
        if kind != TokenKind.OTHER:
            assert vocabulary.id(kind, value if value >= 0 else None) == index
    assert vocabulary.value[vocabulary["<INST_DRUMS>"]] == DRUMS
    assert METERS[vocabulary.value[vocabulary["<TS_12/8>"]]] == (12, 8)


def test_tables():
    assert METER_TICKS[METERS.index((4, 4))] == 96 and METER_TICKS[METERS.index((7, 8))] == 84
    assert np.allclose([TEMPO_CENTRES[0], TEMPO_CENTRES[-1]], [30, 240])


def test_unknown_names_raise():
    vocabulary = MetricVocabulary.default()
    with pytest.raises(VocabularyError, match="k_CbM"):
        vocabulary["k_CbM"]
    with pytest.raises(VocabularyError):
        vocabulary.id(TokenKind.PITCH, 128)
    with pytest.raises(VocabularyError):
        MetricVocabulary({})


def test_two_names_on_one_id_resolve_to_the_first():
    vocabulary = MetricVocabulary({"<PAD>": 0, "k_Abm": 1, "<QUERY_CROSS>": 1})
    assert vocabulary.tokens[1] == "k_Abm" and vocabulary.kind[1] == TokenKind.KEY
    assert vocabulary["<QUERY_CROSS>"] == 1
