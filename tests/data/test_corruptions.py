"""Corruptions break what they say and nothing else, and always leave a legal score."""

import numpy as np
import pytest

from mortm_hf.data.corruptions import CORRUPTIONS, JITTER_TICKS, corrupt, same_notes, tidy
from mortm_hf.models.inputs_bertm import bare_segment
from mortm_hf.models.midi_files import read_midi
from mortm_hf.models.music_grid import BarTable
from mortm_hf.models.music_names import DRUMS
from mortm_hf.models.music_score import MetricScore
from mortm_hf.models.token_vocabulary import MetricVocabulary
from tests.grammar_validator import validate
from tests.sample_songs import midi


def window(seed: int = 1) -> MetricScore:
    """Six bars of 4/4 with melody, chords and drums."""
    return tidy(read_midi(midi(seed)).window(0, 6))


def score_of(notes, programs=(0,), bars=2) -> MetricScore:
    columns = np.array(sorted(notes), dtype=np.int64).reshape(-1, 4).T
    track, onset, pitch, duration = columns
    return MetricScore(
        bars=BarTable.regular(_common(), bars),
        track=track,
        onset=onset,
        pitch=pitch,
        duration=duration,
        velocity=np.full(len(track), 64),
        programs=np.array(programs, dtype=np.int16),
        tempo=np.full(bars, 3, dtype=np.int16),
        key="CM",
    )


def _common() -> int:
    from mortm_hf.models.music_grid import COMMON_TIME

    return COMMON_TIME


def test_tidy_cuts_at_the_next_note_of_a_pitch_and_at_the_closing_line():
    score = score_of([(0, 0, 60, 50), (0, 24, 60, 10), (0, 24, 60, 30), (0, 180, 62, 90)])
    clean = tidy(score)
    assert clean.onset.tolist() == [0, 24, 180]
    assert clean.duration.tolist() == [24, 30, 12]  # cut at the next 60; the longest of two; cut at tick 192
    assert clean.key is None and (clean.tempo == -1).all() and (clean.velocity == 90).all()


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("seed", range(4))
def test_corruptions_change_the_music_and_stay_legal(kind, seed):
    vocabulary, clean = MetricVocabulary.default(), window(seed)
    broken = corrupt(kind, clean, np.random.default_rng(seed))
    assert not same_notes(broken, clean)
    assert broken.n_bars == clean.n_bars and np.array_equal(broken.programs, clean.programs)
    assert set(broken.track.tolist()) == set(clean.track.tolist())
    assert (broken.onset + broken.duration <= broken.bars.end).all()
    ids = bare_segment(vocabulary, broken)
    validate([vocabulary.tokens[i] for i in ids])  # raises where the grammar is broken
    again = corrupt(kind, clean, np.random.default_rng(seed))
    assert same_notes(broken, again)


def test_shuffled_bars_keep_every_bar():
    clean = window()
    broken = corrupt("shuffled bars", clean, np.random.default_rng(0))

    def contents(score):
        bar = score.bar_of_notes()
        inside = score.onset - score.bars.start[bar]
        columns = np.stack([score.track, inside, score.pitch], 1)
        return sorted(columns[bar == b].tolist() for b in range(score.n_bars))

    assert contents(broken) == contents(clean)


def test_a_transposed_voice_moves_one_pitched_track_by_one_interval():
    clean = window()
    broken = corrupt("transposed voice", clean, np.random.default_rng(3))
    moved = [t for t in range(clean.n_tracks) if not _same_track(clean, broken, t)]
    assert len(moved) == 1 and clean.programs[moved[0]] != DRUMS
    step = broken.pitch[broken.track == moved[0]] - clean.pitch[clean.track == moved[0]]
    assert len(set(step.tolist())) == 1 and 1 <= abs(step[0]) <= 6


def _same_track(one, other, track) -> bool:
    return np.array_equal(one.pitch[one.track == track], other.pitch[other.track == track])


def test_one_track_alone_is_split_at_its_median():
    clean = score_of([(0, 24 * i, 60 + i, 20) for i in range(8)])
    broken = corrupt("transposed voice", clean, np.random.default_rng(0))
    before, after = np.sort(clean.pitch), np.array(sorted(broken.pitch.tolist()))
    assert (np.isin(before[:4], after)).all() and not same_notes(tidy(clean), broken)


def test_jitter_moves_onsets_a_little_and_keeps_pitches_and_chords():
    clean = score_of([(0, 24 * i, 60 + 3 * i + k, 20) for i in range(8) for k in (0, 1)])
    broken = corrupt("jittered onsets", clean, np.random.default_rng(0))
    order = np.argsort(broken.pitch)
    step = broken.onset[order] - np.sort(clean.onset)
    assert np.array_equal(broken.pitch[order], np.sort(clean.pitch))
    assert np.abs(step).max() <= JITTER_TICKS and np.abs(step).max() > 0
    assert np.array_equal(step[0::2], step[1::2])  # the two notes of a chord move together


def test_a_key_clash_moves_half_of_the_bars_and_no_drums():
    clean = window()
    broken = corrupt("key clash", clean, np.random.default_rng(0))
    drums = clean.programs[clean.track] == DRUMS
    assert np.array_equal(clean.pitch[drums], broken.pitch[broken.programs[broken.track] == DRUMS])
    changed = set()
    for bar in range(clean.n_bars):
        one = np.sort(clean.pitch[(clean.bar_of_notes() == bar) & ~drums])
        two = np.sort(broken.pitch[(broken.bar_of_notes() == bar) & (broken.programs[broken.track] != DRUMS)])
        changed |= {bar} if not np.array_equal(one, two) else set()
    assert len(changed) == clean.n_bars // 2


def test_music_that_cannot_be_broken_is_left_out():
    alike = score_of([(0, 96 * i, 60, 24) for i in range(2)])
    assert corrupt("shuffled bars", alike, np.random.default_rng(0)) is None
    drums = score_of([(0, 0, 36, 6), (0, 96, 38, 6)], programs=(DRUMS,))
    assert corrupt("transposed voice", drums, np.random.default_rng(0)) is None
    assert corrupt("key clash", drums, np.random.default_rng(0)) is None
