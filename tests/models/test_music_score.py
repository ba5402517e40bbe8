"""Generated bars into songs: what must stay stays, exactly, also after a MIDI file."""

from dataclasses import replace

import numpy as np
import pytest

from mortm_hf.models.midi_files import quantize, to_midi_score
from mortm_hf.models.music_grid import BarTable
from mortm_hf.models.music_names import DRUMS, METERS
from mortm_hf.models.music_score import MetricScore, append_bars, fit_between, match_tracks, merge_infill
from mortm_hf.models.prompt_building import MetricPrompt, build_prompt
from mortm_hf.models.token_vocabulary import MetricVocabulary


COMMON = METERS.index((4, 4))


def score(notes, n_bars, programs, velocity=70, explicit=None, bars=None):
    """`notes`: (track, onset, pitch, duration)."""
    columns = np.array(sorted(notes), dtype=np.int64).reshape(-1, 4).T
    return MetricScore(
        bars=BarTable.regular(COMMON, n_bars) if bars is None else bars,
        track=columns[0],
        onset=columns[1],
        pitch=columns[2],
        duration=columns[3],
        velocity=np.full(columns.shape[1], velocity),
        programs=np.array(programs, dtype=np.int16),
        tempo=np.full(n_bars, 20, dtype=np.int16),
        explicit_velocity=explicit,
        names=tuple(f"part {i}" for i in range(len(programs))),
    )


def notes(song, track=None):
    rows = slice(None) if track is None else song.track == track
    return list(zip(*(c[rows].tolist() for c in (song.track, song.onset, song.pitch, song.duration))))


SONG = score(
    [(0, 96 * b + 24 * k, 60 + k, 24) for b in range(4) for k in range(4)]
    + [(1, 96 * b, 40, 96) for b in range(4)]
    + [(2, 96 * b + 48, 38, 6) for b in range(4)],
    4,
    [0, 33, DRUMS],
)


def test_infill_replaces_the_bars_of_its_tracks_only():
    new = score([(0, 0, 72, 24), (0, 96, 74, 24)], 2, [0])
    merged = merge_infill(SONG, new, 1)
    assert notes(merged, 1) == notes(SONG, 1) and notes(merged, 2) == notes(SONG, 2)
    inside = [(0, 96, 72, 24), (0, 192, 74, 24)]
    assert notes(merged, 0) == sorted([n for n in notes(SONG, 0) if not 96 <= n[1] < 288] + inside)
    assert (merged.bars.start == SONG.bars.start).all() and merged.names == SONG.names


def test_ringing_notes_are_cut_where_a_kept_note_of_their_pitch_starts():
    new = score([(0, 72, 60, 500), (0, 72, 61, 500), (0, 72, 99, 500)], 1, [0])
    merged = merge_infill(SONG, new, 1)
    made = {p: (o, d) for t, o, p, d in notes(merged, 0) if o == 168}
    assert made[60] == (168, 24)  # until bar 2 begins with a 60
    assert made[61] == (168, 48)  # until the 61 of bar 2
    assert made[99] == (168, 500)  # nothing in the way


def test_notes_inside_a_kept_note_last_to_its_end():
    """Else a MIDI file would give the kept note's end to the generated one."""
    song = score([(0, 0, 60, 200), (0, 300, 62, 24)], 4, [0])
    new = score([(0, 10, 60, 12), (0, 60, 60, 400), (0, 10, 64, 12)], 2, [0])
    merged = merge_infill(song, new, 1)
    assert (0, 0, 60, 200) in notes(merged)
    assert {(o, d) for _, o, p, d in notes(merged) if p == 60} == {(0, 200), (106, 94), (156, 400)}
    assert (0, 106, 64, 12) in notes(merged)


def test_untouched_notes_survive_the_midi_file():
    rng = np.random.default_rng(3)
    for _ in range(20):

        def draw(n_bars, count):
            rows = {}
            columns = rng.integers([0, 0, 60], [2, 96 * n_bars, 66], (count, 3))
            for t, o, p in columns.tolist():
                rows[t, o, p] = int(rng.integers(1, 120))
            made = score([(*k, d) for k, d in rows.items()], n_bars, [0, 33])
            return quantize(to_midi_score(made))  # pairs overlapping notes as every file does

        song, new = draw(6, 60), draw(2, 25)
        if song.n_tracks < 2 or new.n_tracks < 2 or song.n_bars < 6 or new.n_bars < 2:
            continue
        merged = merge_infill(song, new.window(0, 2), 2)
        kept = {n for n in notes(song) if not 192 <= n[1] < 384}
        again = quantize(to_midi_score(merged))
        assert notes(again) == notes(merged)
        assert kept <= set(notes(again))


def test_new_tracks_come_before_the_drums_and_velocities_follow_the_song():
    new = score([(0, 0, 72, 24), (1, 0, 50, 24), (2, 0, 36, 6)], 1, [0, 73, DRUMS], velocity=90, explicit=False)
    merged = merge_infill(SONG, new, 3)
    assert merged.programs.tolist() == [0, 33, 73, DRUMS] and merged.names == ("part 0", "part 1", "", "part 2")
    assert (merged.velocity == 70).all()
    assert notes(merged, 2) == [(2, 288, 50, 24)]
    assert notes(merged, 3)[-1] == (3, 288, 36, 6)
    loud = merge_infill(SONG, replace(new, explicit_velocity=True), 3)
    assert set(loud.velocity[loud.onset >= 288].tolist()) == {70, 90}  # the bass was not generated
    second = merge_infill(SONG, score([(0, 0, 50, 24)], 1, [0]), 3, targets=[1])
    assert (1, 288, 50, 24) in notes(second) and (1, 288, 40, 96) not in notes(second)
    assert match_tracks(np.array([0, 0, 5]), np.array([5, 0, 0])) == (1, 2, 0)


def test_append_keeps_what_was_before_and_drops_what_came_after():
    new = score([(0, 0, 72, 24), (1, 0, 41, 24)], 2, [0, 33])
    longer = append_bars(SONG, new)
    assert longer.n_bars == 6 and notes(longer)[: len(notes(SONG, 0))] == notes(SONG, 0)
    assert [n for n in notes(longer) if n[1] >= 384] == [(0, 384, 72, 24), (1, 384, 41, 24)]
    shorter = append_bars(SONG, new, start=1)
    assert shorter.n_bars == 3 and max(n[1] for n in notes(shorter, 2)) == 48
    ringing = append_bars(score([(0, 90, 60, 60)], 1, [0]), score([(0, 10, 60, 20)], 1, [0]))
    assert notes(ringing) == [(0, 90, 60, 60), (0, 106, 60, 44)]
    unknown = append_bars(SONG, replace(new, tempo=np.full(2, -1, dtype=np.int16)))
    assert (unknown.tempo == 20).all()
    assert append_bars(SONG, new, start=0) is new


def test_wrong_lengths_and_places_are_refused():
    new = score([(0, 0, 72, 24)], 2, [0])
    with pytest.raises(ValueError, match="not within the song") as caught:
        merge_infill(SONG, new, 3)
    assert caught.value.code == "prompt.bars"
    waltz = score([(0, 0, 72, 24)], 2, [0], bars=BarTable.regular(METERS.index((3, 4)), 2))
    with pytest.raises(ValueError, match="not as long"):
        merge_infill(SONG, waltz, 1)
    with pytest.raises(ValueError, match="not within the song"):
        append_bars(SONG, new, start=9)


def test_a_built_prompt_knows_how_to_merge():
    vocabulary = MetricVocabulary.default()
    two = score([(0, 0, 72, 24), (1, 0, 41, 24)], 1, [0, 33])
    infill = build_prompt(vocabulary, MetricPrompt(song=SONG, start=1, bars=1, past=1, future=1, targets=[0, 1]))
    assert infill.merge(two).n_bars == 4
    only_bass = infill.merge(score([(0, 0, 41, 24)], 1, [33]))
    assert (1, 96, 41, 24) in notes(only_bass)
    going_on = build_prompt(vocabulary, MetricPrompt(song=SONG, past=2, bars=1, targets=[0, 1]))
    assert going_on.merge(two).n_bars == 5
    nothing = build_prompt(vocabulary, MetricPrompt(instruments=[0, 33], bars=1))
    assert nothing.merge(two) is two


def test_kept_notes_survive_first_in_first_out_pairing():
    rng = np.random.default_rng(0)
    for _ in range(200):
        # kept notes without nesting on one pitch, around a gap in which the new ones start
        before = np.sort(rng.integers(0, 50, 4))
        after = np.sort(rng.integers(100, 150, 4))
        kept_on = np.unique(np.concatenate([before, after]))
        kept_off = np.maximum.accumulate(kept_on + rng.integers(1, 70, len(kept_on)))
        onset = np.unique(rng.integers(50, 100, 5))
        offset = np.maximum.accumulate(onset + rng.integers(1, 90, len(onset)))
        pitch = np.full(len(onset), 60)
        fitted = fit_between(onset, offset, pitch, kept_on, kept_off, np.full(len(kept_on), 60))
        ons = np.concatenate([kept_on, onset])
        offs = np.sort(np.concatenate([kept_off, fitted]))  # what a reader pairs with the onsets in order
        order = np.argsort(ons, kind="stable")
        paired = dict(zip(ons[order].tolist(), offs.tolist()))
        assert [paired[on] for on in kept_on.tolist()] == kept_off.tolist()
