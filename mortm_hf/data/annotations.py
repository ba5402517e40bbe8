"""Keys and chords that stand beside the MIDI files.

Design decisions
- Every source of a pack has its own spelling of keys (`Gb:maj`, `B- major`, `-3minor`, an ABC `K:` field). Names are
  read by `metric_harmony`; a count of sharps needs a mode beside it (lieder: none), and what cannot be read is no key.
- Chord files are read by `metric_chords`; what is particular to a corpus (a clock of its own) stands here.

Knows: the labels of the training pack. Must not know: tokens, models, archives.
"""

from __future__ import annotations

import re

from ..models.errors_mortm import VocabularyError
from ..models.metric_harmony import MAJOR_KEYS, MINOR_KEYS, split_key


# openewld counts chord times in seconds at 100 quarters a minute whatever the tempo of the MIDI file is: with it the
# chord tracks agree with the labels in every file, with the file's own tempo (110) in none.
CHORD_CLOCK = {"openewld": 100.0}
_SHARPS = re.compile(r"^(-?\d+)\s*(major|minor)$")


def parse_key(text: str) -> tuple[int, bool] | None:
    """(pitch class of the tonic, minor) of a key as the manifest spells it; `None` if it names no mode or is empty.

    Church modes of ABC fields (`Ador`, `Gmix`) have no key token and give `None`.
    """
    text = text.strip()
    sharps = _SHARPS.match(text)
    if sharps:
        minor = sharps.group(2) == "minor"
        return (int(sharps.group(1)) * 7 + (9 if minor else 0)) % 12, minor
    try:
        return split_key(text)
    except VocabularyError:
        return None


def key_name(tonic: int, minor: bool) -> str:
    """Token name (without `k_`) of a key: one spelling for each of the 24."""
    return (MINOR_KEYS if minor else MAJOR_KEYS)[tonic % 12]


def transpose_key(name: str | None, semitones: int) -> str | None:
    """A key token name moved by semitones; `None` and `Unknown` stay what they are."""
    parsed = parse_key(name) if name and name != "Unknown" else None
    return name if parsed is None else key_name(parsed[0] + semitones, parsed[1])
