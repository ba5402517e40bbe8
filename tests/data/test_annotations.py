"""Keys and chords beside the MIDI files."""

import pytest

from mortm_hf.data.annotations import CHORD_CLOCK, key_name, key_of_label, transpose_key
from mortm_hf.data.genres import GENRE_TABLE, genre_of, label_name
from mortm_hf.models.midi_chords import parse_chord_text
from mortm_hf.models.music_harmony import MAJOR_KEYS, MINOR_KEYS
from mortm_hf.models.music_names import GENRES, KEY_NAMES


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
    parsed = key_of_label(text)
    assert (None if parsed is None else key_name(*parsed)) == expected


def test_key_names_are_those_of_the_estimator():
    assert [key_name(t, False) for t in range(12)] == MAJOR_KEYS
    assert [key_name(t, True) for t in range(12)] == MINOR_KEYS
    assert transpose_key("C#m", 2) == "Ebm"
    assert transpose_key(None, 3) is None
    assert transpose_key("Unknown", 3) == "Unknown"
    for name in KEY_NAMES:
        assert transpose_key(transpose_key(name, 5), -5) == transpose_key(name, 0)


def test_a_corpus_clock_counts_its_seconds():
    table = parse_chord_text("0.0\t1.2\tC:maj\n1.2\t2.4\tF:maj\n", clock=CHORD_CLOCK["openewld"])
    assert table.onset.tolist() == [0, 48, 96]  # two quarters each at 100 a minute, then none


def test_genres_are_tokens():
    assert set(GENRE_TABLE.values()) <= set(GENRES)
    assert genre_of("drums", "punk") == "punkrock"
    assert genre_of("drums", "latin-samba") == "latin"
    assert genre_of("drums", "neworleans") is None
    assert genre_of("songbook", "Pop|Vocal") is None
    assert genre_of("lied", "Wolf,_Hugo") == "classical"


def test_names_of_genre_tokens_are_genres():
    assert [genre_of(name) for name in GENRES] == GENRES
    assert [genre_of(n) for n in ("Hip-Hop", "hip hop", "Synth_Pop", " Punk Rock ", "Classical Piano")] == [
        "hiphop",
        "hiphop",
        "synthpop",
        "punkrock",
        "classical",
    ]
    assert genre_of("polka") is None and genre_of("") is None and genre_of("rock and roll") is None
    assert [label_name("polka"), label_name("drums", "soul-3"), label_name("songbook", "Pop|Vocal")] == [
        "polka",
        "drums/soul",
        "songbook/pop",
    ]
