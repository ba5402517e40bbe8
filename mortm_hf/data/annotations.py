"""Keys and chords that stand beside the MIDI files.

Design decisions
- Every source of a pack has its own spelling of keys (`Gb:maj`, `B- major`, `-3minor`, an ABC `K:` field). Names are
  read by `music_harmony`; a count of sharps needs a mode beside it (lieder: none), and what cannot be read is no key.
- Chord files are read by `midi_chords`; what is particular to a corpus (a clock of its own) stands here.
- A chord file belongs to the MIDI file with its stem. Only POP909's `chord_midi.txt` has none: it belongs to the MIDI
  file that is alone in its folder (sub-folders, such as `versions/`, do not count), and to none where there are more.

Knows: the labels of the training pack, the names of chord files. Must not know: tokens, models, archives.
"""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import PurePosixPath

import numpy as np

from ..models.errors_mortm import VocabularyError
from ..models.music_harmony import MAJOR_KEYS, MINOR_KEYS, split_key
from ..models.music_names import ROOT_NAMES


# openewld counts chord times in seconds at 100 quarters a minute whatever the tempo of the MIDI file is: with it the
# chord tracks agree with the labels in every file, with the file's own tempo (110) in none.
CHORD_CLOCK = {"openewld": 100.0}
CHORD_SUFFIXES = (".aligned.chords.tsv", ".chords.tsv", ".chord_midi.txt", ".chords.txt", ".lab")
FOLDER_CHORDS = "chord_midi.txt"
_LETTERS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_SHARPS = re.compile(r"^(-?\d+)\s*(major|minor)$")


def pitch_class(name: str) -> int:
    """Pitch class of a root or bass by its name ("C#", "/Bb"); -1 where the name is none of a pitch."""
    name = name.lstrip("/")
    return (_LETTERS[name[0]] + name.count("#") - name[1:].count("b")) % 12 if name[0] in _LETTERS else -1


ROOT_PITCH = np.array([pitch_class(name) for name in ROOT_NAMES])
PITCHES = "C Db D Eb E F F# G Ab A Bb B".split()  # how a pitch class is spelled where nothing decides it
PITCH_ROOT = np.array([ROOT_NAMES.index(name) for name in PITCHES])


def key_of_label(text: str) -> tuple[int, bool] | None:
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
    """Token name (without `k_`) of a key: one spelling for each of the 24.

    Args:
        tonic: pitch class of the tonic; any octave.
        minor: the mode.
    """
    return (MINOR_KEYS if minor else MAJOR_KEYS)[tonic % 12]


def transpose_key(name: str | None, semitones: int) -> str | None:
    """A key moved by semitones.

    Args:
        name: token name of the key; `None` and "Unknown" stay what they are.
        semitones: upward.
    """
    parsed = key_of_label(name) if name and name != "Unknown" else None
    return name if parsed is None else key_name(parsed[0] + semitones, parsed[1])


def is_chord_name(name: str) -> bool:
    """Whether a file of this name holds chords."""
    return name.endswith(CHORD_SUFFIXES) or PurePosixPath(name).name == FOLDER_CHORDS


def chord_names(midi: str, alone: bool) -> list[str]:
    """Names that the chord file of a MIDI file may have, the best first.

    Args:
        midi: path of the MIDI file.
        alone: it is the only MIDI file of its folder.
    """
    stem = midi.rpartition(".")[0]
    folder = [PurePosixPath(midi).with_name(FOLDER_CHORDS).as_posix()] if alone else []
    return [*(stem + suffix for suffix in CHORD_SUFFIXES), *folder]


def chord_file_of(midi: str, names: Container[str], alone: bool = False) -> str | None:
    """The chord annotation beside a MIDI file, or `None`.

    Args:
        midi: path of the MIDI file.
        names: paths of all files there are.
        alone: it is the only MIDI file of its folder.
    """
    return next((name for name in chord_names(midi, alone) if name in names), None)
