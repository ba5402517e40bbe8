"""Probes change one axis and leave the rest."""

import numpy as np
import pytest

from mortm_hf.data.corruptions import same_notes, tidy
from mortm_hf.evaluation import reward_probes as probes
from mortm_hf.models.inputs_bertm import bare_segment
from mortm_hf.models.midi_files import read_midi
from mortm_hf.models.token_vocabulary import MetricVocabulary
from tests.grammar_validator import validate
from tests.sample_songs import midi


@pytest.fixture(scope="module")
def window():
    return tidy(read_midi(midi(3)).window(8, 16))


@pytest.mark.parametrize("factor", probes.DENSITIES)
def test_density(window, factor):
    changed = probes.with_density(window, factor, np.random.default_rng(0))
    assert changed.n_notes == pytest.approx(factor * window.n_notes, rel=0.15, abs=window.n_tracks)
    assert len(changed.sounding_tracks()) == len(window.sounding_tracks()) and changed.n_bars == 8
    if factor == 1:
        assert same_notes(changed, window)


@pytest.mark.parametrize("bars", probes.LOOPS)
def test_loops(window, bars):
    changed = probes.looped(window, bars)
    first, second = changed.window(0, bars), changed.window(8 - bars, 8)
    assert same_notes(tidy(first), tidy(second)) and same_notes(tidy(first), tidy(window.window(0, bars)))


def test_shortened(window):
    assert probes.shortened(window, 2).n_bars == 2
    assert same_notes(probes.shortened(window, 8), window)


def test_cheap_answers(window):
    held = probes.held_notes(window)
    bar = held.bar_of_notes()
    assert np.array_equal(held.onset, held.bars.start[bar]) and (held.duration == 96).all()
    assert held.n_notes <= held.n_bars * held.n_tracks
    flat = probes.one_pitch(window)
    assert all(len(set(flat.pitch[flat.track == t].tolist())) == 1 for t in range(flat.n_tracks))
    assert set(flat.onset.tolist()) == set(window.onset.tolist())


def test_all_are_grammatical(window):
    vocabulary = MetricVocabulary.default()
    made = [probes.with_density(window, f, np.random.default_rng(1)) for f in (0.1, 2.0)]
    made += [
        probes.looped(window, 1),
        probes.held_notes(window),
        probes.one_pitch(window),
        probes.shortened(window, 1),
    ]
    for score in made:
        validate([vocabulary.tokens[i] for i in bare_segment(vocabulary, score)])
