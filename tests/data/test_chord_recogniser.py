"""The chord recogniser: cadences in every key, off-beat changes, meters, basses; batches do not matter."""

from dataclasses import replace

import numpy as np
import pytest
import symusic

from mortm_hf.data.build import BuildOptions, read_entries
from mortm_hf.data.chord_recogniser import (
    Profiles,
    beats_of,
    count_profiles,
    default_profiles,
    estimate_chords,
    sounding,
)
from mortm_hf.data.midi_sources import Entry, bare_row
from mortm_hf.models.midi_files import read_midi
from mortm_hf.models.music_harmony import NO_CHORD, QUALITY_TONES, chord_symbol, chord_tones, parse_chord
from tests.sample_songs import midi


LETTERS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}


def piece(chords, meter=(4, 4), beat=480, shift=0, drums=False, tail=0):
    """Chords as (symbol, beats): block chords over a bass note, a little melody of chord tones above."""
    score = symusic.Score(480)
    score.time_signatures.append(symusic.TimeSignature(0, *meter))
    piano, voice = symusic.Track("piano", 0, False), symusic.Track("voice", 52, False)
    at = 0
    for symbol, beats in chords:
        root, quality, _ = parse_chord(symbol)
        if root != NO_CHORD[0]:
            tones = [(t + shift) % 12 for t in chord_tones(root, quality)]
            low = symbol.rpartition("/")[2] if "/" in symbol else symbol
            low = (LETTERS[low[0]] + low[1:2].count("#") - (low[1:2] == "b") + shift) % 12
            piano.notes.append(symusic.Note(at, beats * beat - 10, 36 + low, 80))
            for tone in tones:
                piano.notes.append(symusic.Note(at, beats * beat - 10, 60 + tone, 70))
            for n in range(beats):
                voice.notes.append(symusic.Note(at + n * beat, beat - 10, 72 + tones[n % len(tones)], 90))
        at += beats * beat
    if tail:
        piano.notes.append(symusic.Note(at, tail, 36, 80))
    score.tracks.append(piano)
    score.tracks.append(voice)
    if drums:
        kit = symusic.Track("kit", 0, True)
        for n in range(at // beat):
            kit.notes.append(symusic.Note(n * beat, 60, 35 + n % 8, 100))
        score.tracks.append(kit)
    return read_midi(score.dumps_midi())


def named(table) -> list[tuple[int, str]]:
    rows = zip(table.onset.tolist(), table.root.tolist(), table.quality.tolist(), table.bass.tolist())
    return [(at, chord_symbol(*values)) for at, *values in rows]


CADENCE = [("C", 4), ("Am", 4), ("F", 4), ("G", 4)] * 2 + [("C", 4)]


def test_a_cadence_is_read():
    (table,) = estimate_chords([piece(CADENCE)])
    names = ["C", "Am", "F", "G", "C", "Am", "F", "G", "C"]
    assert named(table) == [(96 * i, name) for i, name in enumerate(names)]


@pytest.mark.parametrize("shift", range(12))
def test_every_key_is_alike(shift):
    (table,) = estimate_chords([piece(CADENCE, shift=shift)])
    roots = [(c, q) for _, c, q in zip(table.onset, table.root.tolist(), table.quality.tolist())]
    symbols = "C Db D Eb E F F# G Ab A Bb B".split()
    want = [(symbols[(p + shift) % 12], m) for p, m in ((0, ""), (9, "m"), (5, ""), (7, "")) * 2] + [
        (symbols[shift], "")
    ]
    assert [chord_symbol(r, q, NO_CHORD[2]) for r, q in roots] == [s + m for s, m in want]


def test_changes_stand_where_they_sound():
    (table,) = estimate_chords([piece([("Dm7", 2), ("G7", 2), ("C", 3), ("Am", 1), ("Dm7", 2), ("G7", 2), ("C", 4)])])
    assert [at for at, _ in named(table)] == [0, 48, 96, 168, 192, 240, 288]
    assert [n[0] for _, n in named(table)] == list("DGCADGC")


def test_meters_and_basses():
    (table,) = estimate_chords([piece([("C", 2), ("G/B", 2), ("Am", 2), ("F", 2), ("C/G", 2), ("G", 2)], (6, 8), 720)])
    assert named(table) == list(zip(range(0, 432, 72), ["C", "G/B", "Am", "F", "C/G", "G"]))


def test_silence_and_drums():
    rest = [("C", 4), ("N", 8), ("G", 4), ("C", 4)]
    (table,) = estimate_chords([piece(rest, drums=True)])
    assert named(table) == [(0, "C"), (96, "N"), (288, "G"), (384, "C")]
    (short,) = estimate_chords([piece([("C", 4), ("N", 1), ("C", 3), ("G", 4)])])  # a breath is no chord of its own
    assert named(short) == [(0, "C"), (192, "G")]
    only_drums = piece(CADENCE, drums=True).take_tracks([2])
    assert estimate_chords([only_drums, piece(CADENCE)])[0] is None
    assert estimate_chords([]) == []


def test_annotations_are_not_looked_at():
    score = piece(CADENCE)
    (want,) = estimate_chords([score])
    told = replace(score, key="F#M", chords=replace(want, root=want.root * 0 + 3))
    (got,) = estimate_chords([told])
    assert named(got) == named(want)


def test_a_batch_is_its_songs(monkeypatch):
    """Songs searched together or one by one: the same chords, whatever their lengths."""
    import mortm_hf.data.chord_recogniser as module

    songs = [read_midi(midi(seed, bars)) for seed, bars in enumerate((5, 30, 12, 30, 1))]
    alone = [estimate_chords([song])[0] for song in songs]
    together = estimate_chords(songs)
    monkeypatch.setattr(module, "CELLS", 1)
    apart = estimate_chords(songs)
    assert all(named(a) == named(b) == named(c) for a, b, c in zip(alone, together, apart))


def test_beats_and_sounding_time_are_exact():
    score = read_midi(midi(3, 10))
    beats = beats_of(score)
    assert beats.start[0] == 0 and (np.diff(beats.start) == beats.length[:-1]).all()
    assert beats.start[-1] + beats.length[-1] == score.bars.end
    assert np.array_equal(beats.start[beats.strength == 2], score.bars.start[:-1])
    profile, lowest = sounding(score, beats)
    pitched = score.programs[score.track] != 128
    want = np.zeros_like(profile)
    low = np.full(len(lowest), 128)
    for on, pitch, length in zip(score.onset[pitched], score.pitch[pitched], score.duration[pitched]):
        for b, (start, size) in enumerate(zip(beats.start, beats.length)):
            ticks = min(on + length, start + size, score.bars.end) - max(on, start)
            if ticks > 0:
                want[b, pitch % 12] += ticks
                if 4 * ticks >= min(size, 24):
                    low[b] = min(low[b], pitch)
    assert np.array_equal(profile, want) and np.array_equal(np.where(low < 128, low, -1), lowest)


def test_profiles_are_counted_and_kept(tmp_path):
    songs = []
    for shift in range(12):
        score = piece(CADENCE, shift=shift)
        (table,) = estimate_chords([score])
        songs.append(replace(score, chords=table))
    profiles = count_profiles(songs)
    names = {name: np.exp(row) for name, row in zip(("None", "m"), profiles.tones)}
    for name, row in names.items():
        assert sorted(np.argsort(-row)[:3].tolist()) == sorted(QUALITY_TONES[name])
    assert np.exp(profiles.bass).argmax(axis=1).tolist() == [0, 0]
    assert profiles.change[2] > profiles.change[0]  # on downbeats
    profiles.save(tmp_path / "p.json")
    again = Profiles.load(tmp_path / "p.json")
    assert np.allclose(again.tones, profiles.tones, atol=1e-3) and again.weights == profiles.weights
    assert named(estimate_chords([songs[5]], again)[0]) == named(songs[5].chords)
    ours = default_profiles()
    assert ours.tones.shape == (len(ours.qualities), 12) and ours.degree.shape == (2, 12, len(ours.qualities))
    assert np.allclose(np.exp(ours.tones).sum(axis=1), 1, atol=0.02)


def test_preparation_fills_what_is_missing():
    chords = "start_tick\tend_tick\tchord\n0\t1920\tF#:dim\n"
    entries = [Entry(bare_row(f"{i}.mid", "c"), midi(i, 6), chords if i == 1 else None) for i in range(3)]
    for choice, want in (
        ("estimate", ["estimate", "annotation", "estimate"]),
        ("annotated", [None, "annotation", None]),
        ("none", [None, None, None]),
    ):
        songs, _ = read_entries(entries, BuildOptions(chords=choice))
        assert [s.chord_source for s in songs] == want
        assert [s.score.chords is not None for s in songs] == [w is not None for w in want]
    entries[1] = replace(entries[1], chords="0 1 Hm7\n")
    songs, skipped = read_entries(entries, BuildOptions(chords="annotated"))
    assert len(songs) == 3 and skipped[0]["file"] == "1.mid (chords)" and "Hm7" in skipped[0]["message"]
