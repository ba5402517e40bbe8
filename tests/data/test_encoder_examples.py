"""Bare windows among the documents of an encoder."""

import numpy as np
import pytest

from mortm_hf.data.encoder_examples import PieceSource
from mortm_hf.data.examples import ExampleSource
from mortm_hf.models.inputs_bertm import bare_segment
from mortm_hf.models.inputs_bertm import bare_segment as labelled_form
from mortm_hf.models.music_names import DRUMS
from mortm_hf.models.token_codec import parse_segment
from mortm_hf.models.token_grammar import check
from mortm_hf.models.token_vocabulary import MetricVocabulary, TokenKind
from mortm_hf.training.arguments import DataRecipe
from tests.sample_songs import store


VOCABULARY = MetricVocabulary.default()
RECIPE = DataRecipe(tasks={"continue": 1.0}, corpora={"band": {"weight": 1}, "lead": {"weight": 1}})


def documents(n=120, **options):
    source = PieceSource(store(), VOCABULARY, RECIPE, packs=20, **options)
    rng = np.random.default_rng(0)
    return [d for d in (source.draw(rng, 700) for _ in range(n)) if d is not None]


def test_bare_windows_hold_nothing_but_notes():
    made = documents(bare=1.0, bare_bars=(2, 6))
    assert len(made) > 60 and {d.task for d in made} == {"bare"}
    merged = 0
    for document in made:
        assert len(document.ids) <= 700
        check(VOCABULARY, document.ids, complete=True)
        kind = VOCABULARY.kind[document.ids]
        hidden = (
            TokenKind.SYSTEM,
            TokenKind.TEMPO,
            TokenKind.VELOCITY,
            TokenKind.KEY,
            TokenKind.GENRE,
            TokenKind.PAST,
        )
        assert not np.isin(kind, hidden).any()
        music = parse_segment(VOCABULARY, document.ids).generated
        assert music.n_notes == document.notes and 1 <= music.n_bars <= 6
        merged += music.programs.tolist() == [0]
        if (music.programs == DRUMS).all():
            assert music.n_tracks == 1
    assert 20 < merged


def test_shares_of_bare_and_merged_windows():
    made = documents(200, bare=0.5, merged=0.0)
    assert np.mean([d.task == "bare" for d in made]) == pytest.approx(0.5, abs=0.12)
    assert not [d for d in documents(60, bare=0.0) if d.task == "bare"]
    songs = {tuple(parse_segment(VOCABULARY, d.ids).generated.programs) for d in made if d.task == "bare"}
    assert (73, 0, DRUMS) in songs  # tracks are kept


def test_without_bare_windows_it_draws_what_pretraining_draws():
    ours = PieceSource(store(), VOCABULARY, RECIPE, packs=20, bare=0.0)
    theirs = ExampleSource(store(), VOCABULARY, RECIPE, packs=20)
    theirs.corpus_chances = ours.corpus_chances
    for seed in range(10):
        a, b = np.random.default_rng(seed), np.random.default_rng(seed)
        b.random()  # one number decides the form
        one, two = ours.draw(a, 700), theirs.draw(b, 700)
        assert (one is None) == (two is None)
        if one is not None:
            assert np.array_equal(one.ids, two.ids)


def test_the_form_is_that_of_labelled_windows():
    score = store().songs[0].score.window(0, 4)
    assert np.array_equal(bare_segment(VOCABULARY, score), labelled_form(VOCABULARY, score))


def test_shares_out_of_range_are_refused():
    for options in ({"bare": 1.5}, {"merged": -0.1}, {"bare_bars": (4, 2)}):
        with pytest.raises(ValueError, match="bare"):
            PieceSource(store(2), VOCABULARY, RECIPE, packs=1, **options)
