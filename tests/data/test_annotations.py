"""Keys and chords beside the MIDI files."""

import numpy as np
import pytest

from mortm_hf.data.annotations import (
    chord_changes,
    key_name,
    parse_key,
    read_chords_seconds,
    read_chords_tsv,
    seconds_to_quarters,
    transpose_key,
)
from mortm_hf.data.genres import GENRE_TABLE, genre_of
from mortm_hf.models.metric_harmony import MAJOR_KEYS, MINOR_KEYS
from mortm_hf.models.metric_vocabulary import GENRES, KEY_NAMES


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Gb:maj", "F#M"),
        ("B- major", "BbM"),
        ("-1minor", "Dm"),
        ("2major", "DM"),
        ("0major", "CM"),
        ("Am", "Am"),
        ("D", "DM"),
        ("c# minor", "C#m"),
        ("3", None),
        ("Ador", None),
        ("", None),
    ],
)
def test_keys_of_every_source(text, expected):
    parsed = parse_key(text)
    assert (None if parsed is None else key_name(*parsed)) == expected


def test_key_names_are_those_of_the_estimator():
    assert [key_name(t, False) for t in range(12)] == MAJOR_KEYS
    assert [key_name(t, True) for t in range(12)] == MINOR_KEYS
    assert transpose_key("C#m", 2) == "Ebm"
    assert transpose_key(None, 3) is None
    assert transpose_key("Unknown", 3) == "Unknown"
    for name in KEY_NAMES:
        assert transpose_key(transpose_key(name, 5), -5) == transpose_key(name, 0)


def test_chord_files():
    tsv = "# ticks\nstart_tick\tend_tick\tchord\n480\t960\tC:maj\n960\t1440\tA:min7\n"
    assert read_chords_tsv(tsv) == [(1.0, 2.0, "C:maj"), (2.0, 3.0, "A:min7")]
    assert read_chords_seconds("0.0\t1.8\tN\n1.8\t2.7\tD:min\n") == [(0.0, 1.8, "N"), (1.8, 2.7, "D:min")]


def test_changes_fill_gaps_and_merge_repeats():
    ticks, labels = chord_changes(
        [(0.0, 1.0, "C:maj"), (1.0, 2.0, "C:maj"), (3.0, 4.0, "F:maj"), (4.0, 4.01, "G:maj")]
    )
    # a gap is no chord; a span shorter than half a tick vanishes; nothing sounds after the last span
    assert ticks.tolist() == [0, 48, 72, 96]
    assert labels == ["C:maj", "N", "F:maj", "N"]
    assert chord_changes([])[0].tolist() == []


def test_seconds_follow_the_tempo_map():
    # 2 quarters at 60, then 120
    quarters = seconds_to_quarters(np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 2.0]), np.array([60.0, 120.0]))
    assert quarters.tolist() == [0.0, 1.0, 2.0, 4.0]
    assert seconds_to_quarters(np.array([1.0]), np.zeros(0), np.zeros(0)).tolist() == [2.0]


def test_genres_are_tokens():
    assert set(GENRE_TABLE.values()) <= set(GENRES)
    assert genre_of("drums", "punk") == "punkrock"
    assert genre_of("drums", "latin-samba") == "latin"
    assert genre_of("drums", "neworleans") is None
    assert genre_of("songbook", "Pop|Vocal") is None
    assert genre_of("lied", "Wolf,_Hugo") == "classical"
