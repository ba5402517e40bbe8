"""Copied runs: against a plain search, in other keys, at other places."""

import numpy as np

from mortm_hf.evaluation.copying import copied_from
from mortm_hf.models.music_names import DRUMS
from tests.evaluation.small_scores import melody, passage


TUNE = (60, 62, 64, 60, 67, 65, 64, 62, 60, 72)


def test_a_transposed_and_moved_copy_is_found_whole():
    train = passage((0, melody(50, 51) + melody(*TUNE, start=48)), bars=4)
    copy = passage((40, melody(*(p + 5 for p in TUNE), start=96)), bars=4)
    report = copied_from([train], [copy])
    assert report.longest.tolist() == [10]
    assert [n.tolist() for n in report.shared[8]] == [[3], [3]]
    assert report.summary()["longest_run_max"] == 10 and report.summary()["4_note_runs_in_train"] == 1.0
    assert report.summary()["16_note_runs_in_train"] is None  # no run is that long


def test_a_changed_note_rhythm_or_duration_ends_the_run():
    train = passage((0, melody(*TUNE)), bars=4)
    wrong = list(TUNE)
    wrong[4] += 1
    rhythm = [(24 * i + (6 if i >= 7 else 0), p, 12) for i, p in enumerate(TUNE)]
    length = [(24 * i, p, 12 if i != 2 else 18) for i, p in enumerate(TUNE)]
    report = copied_from([train], [passage((0, n), bars=4) for n in (melody(*wrong), rhythm, length)])
    assert report.longest.tolist() == [5, 7, 7]


def test_runs_stay_inside_a_track_and_kits_do_not_transpose():
    train = passage((0, melody(60, 62)), (1, melody(64, 65)), bars=2)
    assert copied_from([train], [passage((0, melody(60, 62, 64, 65)), bars=2)]).longest.tolist() == [2]
    kit = passage((DRUMS, melody(36, 38, 42)), bars=1)
    higher = passage((DRUMS, melody(38, 40, 44)), bars=1)
    assert copied_from([kit], [kit, higher]).longest.tolist() == [3, 1]
    # a drum pattern is not a melody of the same numbers
    assert copied_from([kit], [passage((0, melody(36, 38, 42)), bars=1)]).longest.tolist() == [0]


def plain(train, score):
    """Longest run and number of 4-note runs found, by comparing everything with everything."""

    def lines(s):
        for t in range(s.n_tracks):
            rows = s.track == t
            yield list(zip(s.pitch[rows].tolist(), s.onset[rows].tolist(), s.duration[rows].tolist()))

    def shape(notes):
        first = notes[0]
        return tuple((p - first[0], o - first[1], d) for p, o, d in notes)

    sizes = range(1, 40)
    theirs = {n: {shape(l[i : i + n]) for s in train for l in lines(s) for i in range(len(l) - n + 1)} for n in sizes}
    longest = four = 0
    for line in lines(score):
        for n in sizes:
            found = sum(shape(line[i : i + n]) in theirs[n] for i in range(len(line) - n + 1))
            longest = max(longest, n if found else 0)
            four += found if n == 4 else 0
    return longest, four


def test_equals_a_plain_search():
    rng = np.random.default_rng(3)

    def random(bars):
        tracks = []
        for program in (0, 40):
            onsets = np.cumsum(rng.integers(1, 3, 30) * 12).tolist()
            pitches = rng.integers(60, 62, 30).tolist()
            notes = {(onset, pitch, 12) for onset, pitch in zip(onsets, pitches)}
            tracks.append((program, sorted(notes)))
        return passage(*tracks, bars=bars)

    train, ours = [random(12) for _ in range(6)], [random(12) for _ in range(3)]
    report = copied_from(train, ours)
    wanted = [plain(train, s) for s in ours]
    assert [(int(a), int(b)) for a, b in zip(report.longest, report.shared[4][0])] == wanted
    assert max(w[0] for w in wanted) >= 5


def test_nothing_to_compare():
    empty = passage((0, []), bars=1)
    assert copied_from([empty], [empty]).longest.tolist() == [0]
    assert copied_from([], [passage((0, melody(60)), bars=1)]).longest.tolist() == [0]
    assert copied_from([empty], []).summary() == {}
