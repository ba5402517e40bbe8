"""General MIDI names, families, drums, and upstream's categories."""

import pytest

from mortm_hf.models.music_instruments import (
    FAMILIES,
    GENERAL_MIDI,
    category_of,
    instrument_name,
    match_programs,
    parse_instrument,
    parse_instruments,
    programs_of,
)
from mortm_hf.models.music_names import CATEGORY_PIANO, CATEGORY_SAX, DRUMS


def test_the_table_is_general_midi():
    assert len(GENERAL_MIDI) == 128 and len(set(GENERAL_MIDI)) == 128 and len(FAMILIES) == 16
    known = {0: "Acoustic Grand Piano", 24: "Acoustic Guitar (nylon)", 33: "Electric Bass (finger)", 40: "Violin"}
    known |= {56: "Trumpet", 66: "Tenor Sax", 73: "Flute", 87: "Lead 8 (bass + lead)", 127: "Gunshot"}
    assert {p: GENERAL_MIDI[p] for p in known} == known


@pytest.mark.parametrize(
    "asked, program",
    [
        (0, 0),
        ("0", 0),
        (127, 127),
        ("violin", 40),
        ("  VIOLIN ", 40),
        ("tenor sax", 66),
        ("TenorSax", 66),
        ("honky-tonk piano", 3),
        ("piano", 0),
        ("guitars", 24),
        ("bass", 32),
        ("strings", 40),
        ("brass", 56),
        ("sax", 64),
        ("synth lead", 80),
        ("drums", DRUMS),
        ("Percussion", DRUMS),
        (128, DRUMS),
        ("<INST_7>", 7),
    ],
)
def test_numbers_names_and_families(asked, program):
    assert parse_instrument(asked) == program


def test_every_printed_name_reads_back():
    for program in range(129):
        assert parse_instrument(instrument_name(program)) == program


def test_a_family_asked_for_is_its_first_program_and_filters_all_of_it():
    for index, family in enumerate(FAMILIES):
        assert programs_of(family) == tuple(range(8 * index, 8 * index + 8))
    assert match_programs(["piano", "violin"]) == (*range(8), 40)


def test_lists_keep_repeats_and_put_drums_last():
    assert parse_instruments(["drums", "piano", 33, "piano"]) == (0, 33, 0, DRUMS)
    assert parse_instruments("piano") == (0,)


@pytest.mark.parametrize("asked", ["kazoo", "", 129, -1, 1.5, None, True, "200"])
def test_unknown_instruments_say_what_to_write(asked):
    with pytest.raises(ValueError, match="instrument") as caught:
        parse_instrument(asked)
    assert caught.value.code == "vocabulary.instrument"
    assert "drums" in str(caught.value)


def test_an_unknown_name_suggests_near_ones():
    with pytest.raises(ValueError, match=r"Trumpet"):
        parse_instrument("trump")


def test_the_mortm_dialect_has_two_categories():
    assert parse_instruments(["sax", "piano", 5, "Alto Sax"], "mortm") == (
        CATEGORY_SAX,
        CATEGORY_PIANO,
        CATEGORY_PIANO,
        CATEGORY_SAX,
    )
    assert category_of(40) is None and category_of(DRUMS) is None
    with pytest.raises(ValueError, match="PIANO and SAX"):
        parse_instrument("violin", "mortm")
