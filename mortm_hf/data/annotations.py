"""Keys and chords that stand beside the MIDI files.

Design decisions
- Every source of a pack has its own spelling of keys (`Gb:maj`, `B- major`, `-3minor`, an ABC `K:` field); all are
  read into (pitch class, minor). A value without a mode (lieder: sharps only) or one that cannot be read is no key.
- Chords come as spans in ticks (`.aligned.chords.tsv`, 480 a quarter) or in seconds (`.chord_midi.txt`); spans become
  change points in grid ticks. Seconds go through the tempo map of the MIDI file, or a corpus's own clock.
- Labels are kept as text here; turning a label into tokens is `metric_harmony`'s business.

Knows: the annotation files of the training pack. Must not know: tokens, models, archives.
"""

from __future__ import annotations

import re

import numpy as np


# openewld counts chord times in seconds at 100 quarters a minute whatever the tempo of the MIDI file is: with it the
# chord tracks agree with the labels in every file, with the file's own tempo (110) in none.
CHORD_CLOCK = {"openewld": 100.0}
GRID = 24  # ticks a quarter of the metric grid
_LETTERS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_MAJOR_NAMES = "CM DbM DM EbM EM FM F#M GM AbM AM BbM BM".split()
_MINOR_NAMES = "Cm C#m Dm Ebm Em Fm F#m Gm G#m Am Bbm Bm".split()
_KEY = re.compile(r"^([A-Ga-g])([#b\-]*)\s*:?\s*(major|minor|maj|min|mix|dor|m|M|)", re.ASCII)
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
    found = _KEY.match(text)
    if not found or found.group(3) in ("mix", "dor"):
        return None
    letter, accidentals, mode = found.groups()
    shift = accidentals.count("#") - accidentals.count("b") - accidentals.count("-")
    return (_LETTERS[letter.upper()] + shift) % 12, mode in ("m", "min", "minor")


def key_name(tonic: int, minor: bool) -> str:
    """Token name (without `k_`) of a key: one spelling for each of the 24."""
    return (_MINOR_NAMES if minor else _MAJOR_NAMES)[tonic % 12]


def transpose_key(name: str | None, semitones: int) -> str | None:
    """A key token name moved by semitones; `None` and `Unknown` stay what they are."""
    parsed = parse_key(name) if name and name != "Unknown" else None
    return name if parsed is None else key_name(parsed[0] + semitones, parsed[1])


def read_chords_tsv(text: str) -> list[tuple[float, float, str]]:
    """Spans (start, end, label) of an `.aligned.chords.tsv`, in quarters (its header states 480 ticks a quarter)."""
    spans = []
    for line in text.splitlines():
        if line.startswith(("#", "start_tick")) or not line.strip():
            continue
        start, end, label = line.split("\t")[:3]
        spans.append((float(start) / 480.0, float(end) / 480.0, label.strip()))
    return spans


def read_chords_seconds(text: str) -> list[tuple[float, float, str]]:
    """Spans (start, end, label) of a `chord_midi.txt`, in seconds."""
    rows = (line.split() for line in text.splitlines())
    return [(float(row[0]), float(row[1]), row[2]) for row in rows if len(row) >= 3]


def seconds_to_quarters(seconds: np.ndarray, tempo_quarter: np.ndarray, tempo_bpm: np.ndarray) -> np.ndarray:
    """Times in seconds -> quarters under a tempo map.

    Args:
        seconds: `[n]`.
        tempo_quarter, tempo_bpm: `[k]` onset (quarters) and quarters a minute of each tempo event, ascending; an
            empty map means 120 from the start.
    """
    quarter = np.asarray(tempo_quarter, dtype=np.float64)
    bpm = np.asarray(tempo_bpm, dtype=np.float64)
    if not len(quarter) or quarter[0] > 0:
        quarter, bpm = np.r_[0.0, quarter], np.r_[120.0, bpm]
    at = np.r_[0.0, np.cumsum(np.diff(quarter) * 60.0 / bpm[:-1])]
    index = np.clip(np.searchsorted(at, seconds, side="right") - 1, 0, len(at) - 1)
    return quarter[index] + (np.asarray(seconds) - at[index]) * bpm[index] / 60.0


def chord_changes(spans: list[tuple[float, float, str]]) -> tuple[np.ndarray, list[str]]:
    """Spans in quarters -> change points: grid ticks `[n]` (int64, ascending, unique) and their labels.

    A gap of half a tick or more between spans is no chord (`N`), as is everything after the last span. A span shorter
    than half a tick vanishes in its successor; repeated labels merge.
    """
    ticks: list[int] = []
    labels: list[str] = []

    def add(quarter: float, label: str) -> None:
        tick = int(np.floor(quarter * GRID + 0.5))
        if ticks and ticks[-1] == tick:
            labels[-1] = label
        elif not labels or labels[-1] != label:
            ticks.append(tick)
            labels.append(label)

    end = None
    for start, stop, label in sorted(spans):
        if end is not None and (start - end) * GRID >= 0.5:
            add(end, "N")
        add(start, label)
        end = stop
    if end is not None:
        add(end, "N")
    return np.array(ticks, dtype=np.int64), labels
