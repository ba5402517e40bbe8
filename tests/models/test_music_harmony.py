"""Keys and chords: estimation, names, the nearest-quality table, annotation files."""

import numpy as np
import pytest

from mortm_hf.models.midi_chords import is_chord_file, parse_chord_text, read_chord_file
from mortm_hf.models.music_grid import BarTable
from mortm_hf.models.music_harmony import (
    ESTIMATED_KEYS,
    KEY_PROFILES,
    NO_CHORD,
    QUALITY_TONES,
    chord_symbol,
    chord_table,
    chord_tones,
    chord_values,
    estimate_key,
    estimate_keys,
    key_correlations,
    key_twins,
    merge_repeats,
    nearest_quality,
    parse_chord,
    parse_key,
    pitch_class_histogram,
    split_key,
)
from mortm_hf.models.music_names import BASS_NAMES, DRUMS, KEY_NAMES, METERS, QUALITY_NAMES, ROOT_NAMES
from mortm_hf.models.music_score import MetricScore


def music(pitch, onset=None, duration=24, programs=(0,), track=None):
    pitch = np.asarray(pitch, dtype=np.int64)
    onset = np.arange(len(pitch)) * 24 if onset is None else np.asarray(onset)
    n_bars = max(int(onset.max()) // 96 + 1, 1) if len(onset) else 1
    return MetricScore(
        bars=BarTable.regular(METERS.index((4, 4)), n_bars),
        track=np.zeros(len(pitch), dtype=np.int64) if track is None else np.asarray(track),
        onset=onset,
        pitch=pitch,
        duration=np.broadcast_to(np.asarray(duration, dtype=np.int64), pitch.shape).copy(),
        velocity=np.full(len(pitch), 80),
        programs=np.array(programs, dtype=np.int16),
        tempo=np.full(n_bars, -1, dtype=np.int16),
    )


MAJOR_TUNE = [60, 64, 67, 72, 65, 69, 67, 71, 62, 67, 60, 64, 60, 60]  # C major, ends on C
MINOR_TUNE = [57, 60, 64, 69, 62, 65, 64, 68, 59, 64, 57, 60, 57, 57]  # A minor with its leading note


# ---------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize("profile", list(KEY_PROFILES))
def test_tunes_are_heard_in_their_key_in_every_transposition(profile):
    for step in range(-6, 6):
        major, minor = music(np.array(MAJOR_TUNE) + step), music(np.array(MINOR_TUNE) + step)
        assert split_key(estimate_key(major, profile)) == (step % 12, False)
        assert split_key(estimate_key(minor, profile)) == ((9 + step) % 12, True)


def test_the_fast_choice_is_the_best_pearson_correlation():
    """`estimate_keys` leaves out what cannot change the maximum; the plain definition decides here."""
    rng = np.random.default_rng(0)
    histogram = rng.gamma(1.0, 20.0, (60, 12))
    for profile, modes in KEY_PROFILES.items():
        plain = np.array(
            [
                [np.corrcoef(row, np.roll(mode, tonic))[0, 1] for mode in modes for tonic in range(12)]
                for row in histogram
            ]
        )
        assert np.allclose(key_correlations(histogram, profile), plain, atol=1e-12)
        assert (estimate_keys(histogram, profile) == plain.argmax(axis=1)).all()


def test_histograms_weigh_by_duration_and_leave_drums_out():
    score = music([60, 72, 61, 36], duration=[10, 20, 5, 99], programs=(0, DRUMS), track=[0, 0, 0, 1])
    histogram = pitch_class_histogram(score)
    assert histogram.shape == (1, 12)
    assert histogram[0, 0] == 30 and histogram[0, 1] == 5 and histogram.sum() == 35


def test_histograms_of_windows_come_in_one_pass():
    score = music([60, 62, 64, 65, 67, 69, 71, 72, 60], duration=[1, 2, 3, 4, 5, 6, 7, 8, 9])
    rows = pitch_class_histogram(score, score.bar_of_notes(), score.n_bars)
    for bar in range(score.n_bars):
        assert (rows[bar] == pitch_class_histogram(score.window(bar, bar + 1))[0]).all()
    left_out = pitch_class_histogram(score, np.where(score.bar_of_notes() == 1, -1, 0))
    assert left_out[0].sum() == rows[[0, 2]].sum()


def test_music_without_pitched_notes_has_no_key():
    assert estimate_key(music([])) is None
    assert estimate_key(music([36, 38], programs=(DRUMS,))) is None
    assert (estimate_keys(np.zeros((3, 12))) == -1).all()
    assert (key_correlations(np.zeros((1, 12))) == 0).all()
    with pytest.raises(ValueError, match="albrecht"):
        estimate_key(music([60]), "nobody")


def test_estimated_keys_are_tokens_one_a_tonic_and_mode():
    assert set(ESTIMATED_KEYS) <= set(KEY_NAMES)
    assert [split_key(k) for k in ESTIMATED_KEYS] == [(t, m) for m in (False, True) for t in range(12)]


@pytest.mark.parametrize(
    "name, token",
    [
        ("C major", "CM"),
        ("CM", "CM"),
        ("C", "CM"),
        ("k_AM", "AM"),
        ("Am", "Am"),
        ("a minor", "Am"),
        ("A min", "Am"),
        ("F#m", "F#m"),
        ("f# moll", "F#m"),
        ("Gb:maj", "GbM"),
        ("B- major", "BbM"),
        ("E- minor", "Ebm"),
        ("B♭ minor", "Bbm"),
        ("Bb", "BbM"),
        ("Cb major", "BM"),
        ("E# minor", "Fm"),
        ("B#", "CM"),
        ("Fbm", "Em"),
        ("k_Unknown", "Unknown"),
    ],
)
def test_key_names(name, token):
    assert parse_key(name) == token and token in KEY_NAMES


def test_every_key_token_reads_back_and_knows_its_twins():
    for name in KEY_NAMES:
        assert parse_key("k_" + name) == name
        assert name in key_twins(name) and all(t in KEY_NAMES for t in key_twins(name))
    assert key_twins("GbM") == ("F#M", "GbM") and key_twins("CM") == ("CM",)


@pytest.mark.parametrize("name", ["H major", "", "C dorian", "major", "k_", None, 3, "Cmm"])
def test_unknown_keys_raise(name):
    with pytest.raises(ValueError, match="unknown key") as caught:
        parse_key(name)
    assert caught.value.code == "vocabulary.key"


# ---------------------------------------------------------------------------------------------------- chords


@pytest.mark.parametrize(
    "label, symbol",
    [
        ("C", "C"),
        ("C:maj", "C"),
        ("Am", "Am"),
        ("A:min", "Am"),
        ("A-", "Am"),
        ("Am7/G", "Am7/G"),
        ("C:maj7/3", "Cmaj7/E"),
        ("A:min/b3", "Am/C"),
        ("Bb:7/b7", "Bb7/Ab"),
        ("F#:maj/5", "F#/C#"),
        ("C/C", "C"),
        ("E:hdim7", "Em7b5"),
        ("Eø", "Em7b5"),
        ("Bo7", "Bdim7"),
        ("G7sus4", "G7sus4"),
        ("G:sus4(b7)", "G7sus4"),
        ("G:sus4(b7,9)", "G7sus4"),
        ("F:maj(9)", "Fadd9"),
        ("C6/9", "C6"),
        ("Gm(maj7)", "Gmmaj7"),
        ("Gm/maj7", None),
        ("D:(1,5)", "D5"),
        ("D5", "D5"),
        ("Ebmaj9", "Ebmaj9"),
        ("C:maj13", "Cmaj9"),
        ("C7(b9)", "C7"),
        ("C7#9", "C7"),
        ("Caug", "Caug"),
        ("C+", "Caug"),
        ("CΔ7", "Cmaj7"),
        ("B#", "C"),
        ("E#m", "E#m"),
        ("Cb", "Cb"),
        ("C/Fb", "C/Fb"),
        ("Cb5", "Cb5"),
        ("Cb:5", "Cb:5"),
        ("N", "N"),
        ("N.C.", "N"),
        ("X", "N"),
    ],
)
def test_chord_labels(label, symbol):
    if symbol is None:
        with pytest.raises(ValueError, match="unknown chord"):
            parse_chord(label)
    else:
        assert chord_symbol(*parse_chord(label)) == symbol


def test_every_chord_of_the_table_reads_back():
    for root in range(len(ROOT_NAMES) - 1):
        for quality in range(len(QUALITY_NAMES)):
            for bass in range(0, len(BASS_NAMES), 5):
                values = parse_chord(chord_symbol(root, quality, bass))
                name = chord_symbol(root, quality, bass)
                assert values[:2] == (root, quality), name
    assert chord_symbol(*NO_CHORD) == "N" and chord_tones(*NO_CHORD[:2]) == ()
    assert chord_tones(*parse_chord("Bb7")[:2]) == (2, 5, 8, 10)


def test_exact_tone_sets_find_their_quality_and_others_keep_the_third():
    for name, tones in QUALITY_TONES.items():
        assert QUALITY_NAMES[nearest_quality(tones)] == name
    rng = np.random.default_rng(1)
    minor = [QUALITY_NAMES.index(q) for q in QUALITY_NAMES if 3 in QUALITY_TONES[q]]
    for _ in range(200):
        others = rng.choice([2, 5, 7, 9, 10], 3, replace=False).tolist()
        assert nearest_quality([0, 3, *others]) in minor  # a minor third never becomes major
    only = [q in ("None", "m", "sus4") for q in QUALITY_NAMES]
    assert QUALITY_NAMES[nearest_quality(QUALITY_TONES["7sus4"], only)] == "sus4"


@pytest.mark.parametrize("label", ["H", "Cfoo", "C:majj", "C/Q", "C7(b", "C:maj/15", "", "-", "c", None, 7])
def test_what_is_no_chord_raises(label):
    with pytest.raises(ValueError, match="chord") as caught:
        parse_chord(label)
    assert caught.value.code == "vocabulary.chord"


def test_tables_sort_and_merge_repeats():
    table = chord_table([96, 0, 48, 192, 192], ["C", "C", "C", "G", "F"])
    assert table.onset.tolist() == [0, 192]  # of two chords at one place the last stays
    assert [chord_symbol(*c) for c in zip(table.root, table.quality, table.bass)] == ["C", "F"]
    assert len(merge_repeats(chord_table([0], ["C"]))) == 1
    columns = chord_values([])
    assert all(len(c) == 0 and c.dtype == np.int16 for c in columns)


TICKS = """# ticks at 480 per quarter in song.mid
start_tick\tend_tick\tchord
0\t480\tN
480\t1930\tB:maj
1930\t2400\tF#:min7/b3
2880\t3360\tB:maj
"""


def test_annotations_in_ticks():
    table = parse_chord_text(TICKS)
    names = [chord_symbol(*c) for c in zip(table.root, table.quality, table.bass)]
    # 1930 ticks are 96.5 grid ticks: halves go up; the gap and the end are no chord
    assert list(zip(table.onset.tolist(), names)) == [
        (0, "N"),
        (24, "B"),
        (97, "F#m7/A"),
        (120, "N"),
        (144, "B"),
        (168, "N"),
    ]
    other = parse_chord_text(TICKS.replace("480 per", "960 per"))
    assert other.onset.tolist() == [0, 12, 48, 60, 72, 84]


def test_annotations_in_seconds_go_through_the_tempo_map(tmp_path):
    symusic = pytest.importorskip("symusic")
    midi = symusic.Score(480)
    midi.tempos.append(symusic.Tempo(0, 120.0))
    midi.tempos.append(symusic.Tempo(960, 60.0))  # from quarter 2, one second a quarter
    path = tmp_path / "song.lab"
    path.write_text("0.0 1.0 C:maj\n1.0 3.0 G:7\n3.0 4.0 C:maj\n", encoding="utf-8")
    table = read_chord_file(path, midi)
    assert table.onset.tolist() == [0, 48, 96, 120]
    assert is_chord_file(path) and is_chord_file("a.chords.tsv") and not is_chord_file("C Am F G")
    with pytest.raises(ValueError, match="seconds need the MIDI file"):
        read_chord_file(path)


def test_bad_annotation_files_say_where(tmp_path):
    with pytest.raises(ValueError, match="cannot read the chord file"):
        read_chord_file(tmp_path / "none.lab")
    path = tmp_path / "bad.lab"
    path.write_text("0.0 1.0 C\nfoo\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"bad.lab: line 2") as caught:
        read_chord_file(path)
    assert caught.value.code == "prompt.material"
    assert parse_chord_text("") is None
