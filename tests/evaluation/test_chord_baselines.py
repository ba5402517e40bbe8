"""Constant and template baselines by hand."""

from itertools import product

import numpy as np
import pytest

from mortm_hf.evaluation.chord_baselines import Majority, Templates, _viterbi, profiles
from mortm_hf.evaluation.chord_estimation import compare
from mortm_hf.models.music_harmony import chord_table
from mortm_hf.models.music_names import DRUMS, QUALITY_NAMES, ROOT_NAMES
from tests.evaluation.small_scores import melody, passage


TRIADS = {"C": (60, 64, 67), "Am": (57, 60, 64), "F": (53, 57, 60), "G7": (55, 59, 62, 65)}


def lead(*names, bars=None):
    notes = [(96 * i, p, 96) for i, n in enumerate(names) for p in TRIADS[n]]
    return passage((0, notes), bars=bars or len(names), chords=[(96 * i, n) for i, n in enumerate(names)])


def names(table):
    return [ROOT_NAMES[r] + QUALITY_NAMES[q].replace("None", "") for r, q in zip(table.root, table.quality)]


def test_majority_counts_time_not_chords():
    song = passage(
        (0, melody(60, 62, 64, 65, 67, 69, 71, 72)),
        bars=4,
        chords=[(0, "C"), (48, "G"), (60, "Am"), (96, "G"), (108, "F"), (300, "N")],
    )
    rule = Majority.fit([song])
    assert rule.chord == (5, QUALITY_NAMES.index("None"))  # F: 192 of 300 ticks
    assert rule.degree[0] == (5, QUALITY_NAMES.index("None"))  # a fourth above the tonic of C major
    found = rule.estimate(song)
    assert names(found) == ["F"] and found.onset.tolist() == [0]
    higher = passage((0, melody(62, 64, 66, 67, 69, 71, 73, 74)), bars=4)
    assert names(rule.estimate(higher, by_key=True)) == ["G"]  # the same degree of D major
    assert names(Majority.fit([]).estimate(song)) == ["C"]


def test_profiles_equal_counting_ticks():
    rng = np.random.default_rng(1)
    notes = sorted(
        {
            (int(o), int(p), int(d))
            for o, p, d in zip(*(rng.integers(a, b, 25) for a, b in ((0, 180), (40, 80), (1, 60))))
        }
    )
    score = passage((0, notes), (DRUMS, melody(36, 38)), bars=2)
    edges = np.array([0, 30, 96, 192])
    folded, bass = np.zeros((3, 12)), np.zeros((3, 12))
    for tick in range(192):
        row = int(np.searchsorted(edges, tick, side="right")) - 1
        sounding = [p for o, p, d in notes if o <= tick < o + d]
        for pitch in sounding:
            folded[row, pitch % 12] += 1
        if sounding:
            bass[row, min(sounding) % 12] += 1
    found = profiles(score, edges)
    assert (found[0] == folded).all() and (found[1] == bass).all()


@pytest.mark.parametrize("stretch", ["beat", "half", "bar"])
@pytest.mark.parametrize("change", [0.0, 0.1])
def test_plain_chords_are_found_exactly(stretch, change):
    song = lead("C", "Am", "F", "G7")
    found = Templates(stretch, change=change).estimate(song)
    assert names(found) == ["C", "Am", "F", "G7"] and found.onset.tolist() == [0, 96, 192, 288]


def test_silence_holds_and_a_silent_start_is_no_chord():
    song = passage(
        (0, [(96 + o, p, 96) for o, p in ((0, 60), (0, 64), (0, 67), (192, 57), (192, 60), (192, 64))]), bars=4
    )
    for change in (0.0, 0.2):
        found = Templates("bar", change=change).estimate(song)
        assert names(found)[:1] == ["N"] and names(found)[1:] == ["C", "Am"]
        assert found.onset.tolist() == [0, 96, 288]


def test_the_bass_decides_between_chords_of_the_same_notes():
    # A C E G is Am7 or C6
    song = passage((0, [(0, 48, 96), (0, 57, 96), (0, 64, 96), (0, 67, 96)]), bars=1)
    assert names(Templates("bar", extra=0.0, bass=0.3).estimate(song)) == ["C6"]
    low = passage((0, [(0, 45, 96), (0, 60, 96), (0, 64, 96), (0, 67, 96)]), bars=1)
    assert names(Templates("bar", extra=0.0, bass=0.3).estimate(low)) == ["Am7"]


def test_tuning_never_loses():
    songs = [lead("C", "Am", "F", "G7"), lead("F", "G7", "C", "Am")]
    rng = np.random.default_rng(0)
    noisy = []
    for song in songs:
        extra = [(int(o), int(p), 12) for o, p in zip(rng.integers(0, 380, 30), rng.integers(60, 84, 30))]
        plain = list(zip(song.onset.tolist(), song.pitch.tolist(), song.duration.tolist()))
        noisy.append(passage((0, sorted({*plain, *extra})), bars=4))
    references = [s.chords for s in songs]

    def right(rule):
        return sum(
            sum(compare(r, rule.estimate(s), 384)[m][0] for m in ("root", "root + quality"))
            for s, r in zip(noisy, references)
        )

    assert right(Templates.tune(noisy, references)) >= right(Templates())
    assert Templates.tune([], []) == Templates()


def test_viterbi_equals_trying_every_path():
    rng = np.random.default_rng(2)
    fit, price = rng.random((5, 3)), np.array([9.0, 0.3, 0.1, 0.5, 0.2])

    def value(path):
        changes = sum(price[i + 1] for i in range(4) if path[i] != path[i + 1])
        return sum(fit[i, p] for i, p in enumerate(path)) - changes

    best = max(product(range(3), repeat=5), key=value)
    assert _viterbi(fit, price).tolist() == list(best)


def test_a_hint_counts_for_what_it_is_worth():
    # A C E G: Am7 and C6 are alike; the hint tips it, and only if it has weight
    song = passage((0, [(0, p, 192) for p in (57, 60, 64, 67)]), bars=2)
    hints = {"Am7": chord_table([0], ["Am7"]), "C6": chord_table([0], ["C6"])}
    for name, hint in hints.items():
        assert names(Templates("bar", extra=0.0, hint_chord=0.1).estimate(song, hint)) == [name]
    assert len({tuple(names(Templates("bar", extra=0.0).estimate(song, h))) for h in hints.values()}) == 1
    # changing is dear except where the hint changes
    two = lead("C", "Am")
    dear = Templates("half", change=9.0, hint_change=1.0)
    assert dear.estimate(two).onset.tolist() == [0]
    told = dear.estimate(two, chord_table([0, 96], ["G", "D"]))
    assert told.onset.tolist() == [0, 96] and names(told) == ["C", "Am"]
