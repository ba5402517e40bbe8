"""Instrument names: General MIDI programs, families and drums.

Design decisions
- One table of the 128 General MIDI names and the 16 families of eight. Matching ignores case, spaces and punctuation.
- A family name asked for means its first program ("guitar" is program 24); used as a filter it means all eight.
- An exact instrument name wins over a family of the same spelling; drums are value 128 everywhere.
- In the `mortm` dialect there are two categories only, PIANO and SAX.

Knows: names and numbers. Must not know: tokens' ids, MIDI files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .errors_mortm import VocabularyError
from .music_names import CATEGORY_PIANO, CATEGORY_SAX, DRUMS


# General MIDI Level 1 Sound Set, program 0 to 127, eight a family.
GENERAL_MIDI = tuple(
    name.strip()
    for name in """
    Acoustic Grand Piano, Bright Acoustic Piano, Electric Grand Piano, Honky-tonk Piano, Electric Piano 1,
    Electric Piano 2, Harpsichord, Clavinet,
    Celesta, Glockenspiel, Music Box, Vibraphone, Marimba, Xylophone, Tubular Bells, Dulcimer,
    Drawbar Organ, Percussive Organ, Rock Organ, Church Organ, Reed Organ, Accordion, Harmonica, Tango Accordion,
    Acoustic Guitar (nylon), Acoustic Guitar (steel), Electric Guitar (jazz), Electric Guitar (clean),
    Electric Guitar (muted), Overdriven Guitar, Distortion Guitar, Guitar Harmonics,
    Acoustic Bass, Electric Bass (finger), Electric Bass (pick), Fretless Bass, Slap Bass 1, Slap Bass 2,
    Synth Bass 1, Synth Bass 2,
    Violin, Viola, Cello, Contrabass, Tremolo Strings, Pizzicato Strings, Orchestral Harp, Timpani,
    String Ensemble 1, String Ensemble 2, Synth Strings 1, Synth Strings 2, Choir Aahs, Voice Oohs, Synth Voice,
    Orchestra Hit,
    Trumpet, Trombone, Tuba, Muted Trumpet, French Horn, Brass Section, Synth Brass 1, Synth Brass 2,
    Soprano Sax, Alto Sax, Tenor Sax, Baritone Sax, Oboe, English Horn, Bassoon, Clarinet,
    Piccolo, Flute, Recorder, Pan Flute, Blown Bottle, Shakuhachi, Whistle, Ocarina,
    Lead 1 (square), Lead 2 (sawtooth), Lead 3 (calliope), Lead 4 (chiff), Lead 5 (charang), Lead 6 (voice),
    Lead 7 (fifths), Lead 8 (bass + lead),
    Pad 1 (new age), Pad 2 (warm), Pad 3 (polysynth), Pad 4 (choir), Pad 5 (bowed), Pad 6 (metallic), Pad 7 (halo),
    Pad 8 (sweep),
    FX 1 (rain), FX 2 (soundtrack), FX 3 (crystal), FX 4 (atmosphere), FX 5 (brightness), FX 6 (goblins),
    FX 7 (echoes), FX 8 (sci-fi),
    Sitar, Banjo, Shamisen, Koto, Kalimba, Bagpipe, Fiddle, Shanai,
    Tinkle Bell, Agogo, Steel Drums, Woodblock, Taiko Drum, Melodic Tom, Synth Drum, Reverse Cymbal,
    Guitar Fret Noise, Breath Noise, Seashore, Bird Tweet, Telephone Ring, Helicopter, Applause, Gunshot
    """.split(",")
)
FAMILIES = (
    "Piano",
    "Chromatic Percussion",
    "Organ",
    "Guitar",
    "Bass",
    "Strings",
    "Ensemble",
    "Brass",
    "Reed",
    "Pipe",
    "Synth Lead",
    "Synth Pad",
    "Synth Effects",
    "Ethnic",
    "Percussive",
    "Sound Effects",
)
PIANO_PROGRAMS, SAX_PROGRAMS = range(8), range(64, 68)


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


_DRUM_NAMES = {"drums", "drum", "drumkit", "drumset", "percussion", "instdrums"}
# spellings people use -> program
_ALIASES = {
    "grandpiano": 0,
    "electricpiano": 4,
    "rhodes": 4,
    "epiano": 4,
    "nylonguitar": 24,
    "acousticguitar": 24,
    "steelguitar": 25,
    "electricguitar": 27,
    "doublebass": 43,
    "uprightbass": 32,
    "bassguitar": 33,
    "electricbass": 33,
    "fretless": 35,
    "slapbass": 36,
    "synthbass": 38,
    "violoncello": 42,
    "harp": 46,
    "stringensemble": 48,
    "synthstrings": 50,
    "choir": 52,
    "voice": 53,
    "vocals": 53,
    "horn": 60,
    "synthbrass": 62,
    "sopranosaxophone": 64,
    "altosaxophone": 65,
    "tenorsaxophone": 66,
    "baritonesaxophone": 67,
    "coranglais": 69,
    "panpipes": 75,
    "squarelead": 80,
    "sawlead": 81,
}
_FAMILY_ALIASES = {
    "keys": range(8),
    "mallets": range(8, 16),
    "sax": SAX_PROGRAMS,
    "saxophone": SAX_PROGRAMS,
    "lead": range(80, 88),
    "pad": range(88, 96),
    "fx": range(96, 104),
    "synth": range(80, 88),
    "string": range(40, 48),
}
_NAMES = {_plain(name): program for program, name in enumerate(GENERAL_MIDI)}
_FAMILY_PROGRAMS = {_plain(name): range(8 * i, 8 * i + 8) for i, name in enumerate(FAMILIES)}


def programs_of(instrument: int | str) -> tuple[int, ...]:
    """All programs a number, name or family name stands for: `"violin"` -> `(40,)`, `"piano"` -> `(0, .., 7)`.

    Args:
        instrument: General MIDI number (128: drums), name or family name.

    Raises:
        VocabularyError: `vocabulary.instrument`, for a name or number that General MIDI does not have.
    """
    if isinstance(instrument, str):
        name = _plain(instrument)
        name = name[4:] if name.startswith("inst") and name[4:].isdigit() else name
        if name in _DRUM_NAMES:
            return (DRUMS,)
        if name in _NAMES:
            return (_NAMES[name],)
        if name in _ALIASES:
            return (_ALIASES[name],)
        # plural and singular forms of families: "pianos", "guitars"
        for family in (name, name[:-1] if name.endswith("s") else name + "s"):
            found = _FAMILY_PROGRAMS.get(family, _FAMILY_ALIASES.get(family))
            if found is not None:
                return tuple(found)
        if name.endswith("s") and name[:-1] in _NAMES:
            return (_NAMES[name[:-1]],)
        if not name.isdigit():
            near = [n for n in (*GENERAL_MIDI, *FAMILIES) if name and name in _plain(n)][:4]
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise VocabularyError(
                f"unknown instrument {instrument!r}: use a General MIDI number (0 to 127), a name such as 'violin', a "
                f"family such as 'piano', or 'drums'{hint}",
                "vocabulary.instrument",
            )
        instrument = int(name)
    try:
        number = int(instrument)
    except (TypeError, ValueError):
        number = -1
    if isinstance(instrument, (bool, float)) or not 0 <= number <= DRUMS:
        raise VocabularyError(
            f"unknown instrument {instrument!r}: General MIDI programs are 0 to 127, drums are 128 or 'drums'",
            "vocabulary.instrument",
        )
    return (number,)


def parse_instrument(instrument: int | str, dialect: str = "metric") -> int:
    """The INSTRUMENT value of a number, name or family name.

    Args:
        instrument: General MIDI number (128: drums), name or family name.
        dialect: "metric" or "mortm".

    Returns:
        A program (of a family the first), or the category of it (`mortm`).

    Raises:
        VocabularyError: `vocabulary.instrument`, for an unknown name or number, or an instrument that the dialect
            does not have.
    """
    if dialect == "mortm":
        if instrument in (CATEGORY_PIANO, CATEGORY_SAX):
            return int(instrument)
        programs = programs_of(instrument)
        category = category_of(programs[0])
        if category is None:
            raise VocabularyError(
                f"the mortm dialect has the instruments PIANO and SAX only, not {instrument!r}",
                "vocabulary.instrument",
            )
        return category
    return programs_of(instrument)[0]


def category_of(program: int) -> int | None:
    """Upstream's category of a program, or None."""
    if program in PIANO_PROGRAMS or program == CATEGORY_PIANO:
        return CATEGORY_PIANO
    if program in SAX_PROGRAMS or program == CATEGORY_SAX:
        return CATEGORY_SAX
    return None


def parse_instruments(instruments: Iterable[int | str] | int | str, dialect: str = "metric") -> tuple[int, ...]:
    """INSTRUMENT values of one or several instruments.

    Args:
        instruments: what `parse_instrument` takes, or several of it.
        dialect: "metric" or "mortm".

    Returns:
        The values in order, repeats kept, drums last.

    Raises:
        VocabularyError: `vocabulary.instrument`.
    """
    if isinstance(instruments, (int, str)):
        instruments = (instruments,)
    values = [parse_instrument(i, dialect) for i in instruments]
    return tuple(sorted(values, key=lambda v: v == DRUMS))


def match_programs(instruments: Iterable[int | str] | int | str) -> tuple[int, ...]:
    """Every program that a filter stands for: families stand for all of their programs."""
    if isinstance(instruments, (int, str)):
        instruments = (instruments,)
    return tuple(dict.fromkeys(p for i in instruments for p in programs_of(i)))


def instrument_name(value: int) -> str:
    """The name of an INSTRUMENT value: `"Violin"`, `"Drums"`, `"PIANO"`."""
    special = {DRUMS: "Drums", CATEGORY_PIANO: "PIANO", CATEGORY_SAX: "SAX"}
    return special[value] if value in special else GENERAL_MIDI[value]
