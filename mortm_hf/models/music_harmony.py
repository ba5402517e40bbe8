"""Keys and chords: estimation, names and token values.

Design decisions
- A key is estimated by correlating a duration-weighted pitch-class histogram with 24 profiles (12 tonics, two modes):
  one matrix product for any number of passages. Three published profile sets are kept: Krumhansl & Kessler's
  probe-tone ratings (the Krumhansl-Schmuckler algorithm), Temperley's and Albrecht & Shanahan's corpus counts. The
  last is the default: it agrees best with annotated keys (`benchmarks/key_estimation.py`). Drums never count.
- Estimated keys have one spelling each; names given by a user keep theirs where it has a token and else go to the
  enharmonic twin.
- A chord label is read into its root, the *set of pitch classes* above it, and its bass. A quality outside the token
  table goes to the quality of `QUALITY_TONES` whose tones differ least (`nearest_quality` states the weights), so that
  nothing becomes major by default. A label that is no chord at all raises.

Knows: pitch classes, the names of the token table. Must not know: files, ids, torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from .errors_mortm import VocabularyError
from .music_names import BASS_NAMES, DRUMS, KEY_NAMES, QUALITY_NAMES, ROOT_NAMES
from .music_score import ChordTable, MetricScore


# ---------------------------------------------------------------------------------------------------------------------
# Keys

# C. Krumhansl, Cognitive Foundations of Musical Pitch (1990), table 2.1; D. Temperley, Music and Probability (2007),
# Kostka-Payne corpus; J. Albrecht & D. Shanahan, Music Perception 31 (2013). Tonic first.
KEY_PROFILES = {
    "krumhansl": (
        (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
        (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
    ),
    "temperley": (
        (0.748, 0.060, 0.488, 0.082, 0.670, 0.460, 0.096, 0.715, 0.104, 0.366, 0.057, 0.400),
        (0.712, 0.084, 0.474, 0.618, 0.049, 0.460, 0.105, 0.747, 0.404, 0.067, 0.133, 0.330),
    ),
    "albrecht": (
        (0.238, 0.006, 0.111, 0.006, 0.137, 0.094, 0.016, 0.214, 0.009, 0.080, 0.008, 0.081),
        (0.220, 0.006, 0.104, 0.123, 0.019, 0.103, 0.012, 0.214, 0.062, 0.022, 0.061, 0.052),
    ),
}
DEFAULT_PROFILE = "albrecht"
MAJOR_KEYS = "CM DbM DM EbM EM FM F#M GM AbM AM BbM BM".split()
MINOR_KEYS = "Cm C#m Dm Ebm Em Fm F#m Gm G#m Am Bbm Bm".split()
ESTIMATED_KEYS = tuple(MAJOR_KEYS + MINOR_KEYS)  # index = 12 * minor + pitch class of the tonic

_LETTER = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_ACCIDENTALS = {"#": 1, "♯": 1, "b": -1, "♭": -1, "-": -1, "x": 2}


@lru_cache(maxsize=8)
def _profile_matrix(profile: str) -> np.ndarray:
    """`[12, 24]` centred, unit-length profiles of all keys, in the order of `ESTIMATED_KEYS`."""
    try:
        modes = np.array(KEY_PROFILES[profile])
    except KeyError:
        raise VocabularyError(f"no key profile {profile!r}: use {', '.join(KEY_PROFILES)}") from None
    modes = modes - modes.mean(axis=1, keepdims=True)
    modes /= np.linalg.norm(modes, axis=1, keepdims=True)
    rows = [np.roll(mode, tonic) for mode in modes for tonic in range(12)]
    return np.array(rows).T


def pitch_class_histogram(score: MetricScore, bars: np.ndarray | None = None, n_rows: int = 1) -> np.ndarray:
    """Ticks sounded by each pitch class, drums left out.

    Args:
        score: the music.
        bars: `[n_notes]` row of every note (below 0: left out), e.g. `score.bar_of_notes() // 4` for windows of four
            bars; by default all notes make one row.
        n_rows: how many rows there are.

    Returns:
        `[n_rows, 12]` sums.
    """
    pitch, duration = score.pitch, score.duration
    keep = None
    if DRUMS in score.programs:
        keep = (score.programs != DRUMS)[score.track]
    row = None
    if bars is not None:
        row = np.asarray(bars, dtype=np.int64)
        keep = row >= 0 if keep is None else keep & (row >= 0)
    if keep is not None:
        pitch, duration = pitch[keep], duration[keep]
        row = None if row is None else row[keep]
    # By pitch first, 132 of them a row: folding eleven octaves is cheaper than taking every note's pitch class.
    cell = pitch if row is None else row * 132 + pitch
    sums = np.bincount(cell, weights=duration, minlength=132 * n_rows)[: 132 * n_rows]
    return sums.reshape(-1, 11, 12).sum(axis=1)


def key_correlations(histogram: np.ndarray, profile: str = DEFAULT_PROFILE) -> np.ndarray:
    """How well each key fits.

    Args:
        histogram: `[..., 12]` ticks of each pitch class.
        profile: a name of `KEY_PROFILES`.

    Returns:
        `[..., 24]` Pearson correlations with the keys of `ESTIMATED_KEYS`; 0 where a histogram is flat or empty.
    """
    centred = histogram - histogram.mean(axis=-1, keepdims=True)
    norm = np.linalg.norm(centred, axis=-1, keepdims=True)
    return (centred / np.where(norm > 0, norm, 1.0)) @ _profile_matrix(profile)


def estimate_keys(histogram: np.ndarray, profile: str = DEFAULT_PROFILE) -> np.ndarray:
    """The key that fits best.

    Args:
        histogram: `[n, 12]` ticks of each pitch class.
        profile: a name of `KEY_PROFILES`.

    Returns:
        `[n]` indices into `ESTIMATED_KEYS`, -1 where a histogram is flat or empty.
    """
    # Profiles are centred and of unit length: the histogram's own mean and length do not change which is best.
    best = np.argmax(histogram @ _profile_matrix(profile), axis=-1)
    return np.where(histogram.max(axis=-1) > histogram.min(axis=-1), best, -1)


def estimate_key(score: MetricScore, profile: str = DEFAULT_PROFILE) -> str | None:
    """The estimated key of a passage.

    Args:
        score: the music.
        profile: a name of `KEY_PROFILES`.

    Returns:
        Token name without `k_`; None when nothing pitched sounds.
    """
    found = int(estimate_keys(pitch_class_histogram(score), profile)[0])
    return ESTIMATED_KEYS[found] if found >= 0 else None


def _accidental(text: str) -> int:
    return sum(_ACCIDENTALS[c] for c in text)


_KEY = re.compile(
    r"^(?:k_)?([A-Ga-g])((?:#|♯|b|♭|-|x)*)[\s:_-]*(major|minor|maj|min|dur|moll|ionian|aeolian|M|m)?$", re.IGNORECASE
)


def split_key(name: str) -> tuple[int, bool]:
    """Tonic and mode of a key.

    Args:
        name: see `parse_key`, but not "Unknown".

    Returns:
        Pitch class of the tonic, and whether the mode is minor.

    Raises:
        VocabularyError: `vocabulary.key`.
    """
    letter, accidentals, minor = _spelled_key(name)
    return (_LETTER[letter] + _accidental(accidentals)) % 12, minor


def _spelled_key(name: str) -> tuple[str, str, bool]:
    """Letter and accidentals (of `#` and `b`) of the tonic, and whether the mode is minor."""
    found = _KEY.match(name.strip()) if isinstance(name, str) else None
    if not found:
        raise VocabularyError(
            f"unknown key {name!r}: write e.g. 'C major', 'F# minor', 'Am', 'BbM' or 'k_AM'", "vocabulary.key"
        )
    letter, accidentals, mode = found.groups()
    for sign, plain in (("♯", "#"), ("♭", "b"), ("-", "b"), ("x", "##")):
        accidentals = accidentals.lower().replace(sign, plain)
    return letter.upper(), accidentals, mode == "m" or (mode or "").lower() in ("minor", "min", "moll", "aeolian")


def parse_key(name: str) -> str:
    """Token name (without `k_`) of a key: `"C major"`, `"Am"`, `"k_AM"`, `"Gb:maj"`, `"B- minor"`, `"Unknown"`.

    A spelling without a token goes to its enharmonic twin (`"Cb major"` -> `"BM"`).

    Args:
        name: in any of these spellings.

    Raises:
        VocabularyError: `vocabulary.key`.
    """
    if isinstance(name, str) and name.strip().removeprefix("k_").lower() == "unknown":
        return "Unknown"
    letter, accidentals, minor = _spelled_key(name)
    spelled = letter + accidentals + ("m" if minor else "M")
    return spelled if spelled in KEY_NAMES else (MINOR_KEYS if minor else MAJOR_KEYS)[split_key(name)[0]]


def key_twins(name: str) -> tuple[str, ...]:
    """All key tokens of the same tonic and mode, the estimator's spelling first."""
    if name == "Unknown":
        return ("Unknown",)
    tonic, minor = split_key(name)
    first = (MINOR_KEYS if minor else MAJOR_KEYS)[tonic]
    return (first, *(k for k in KEY_NAMES if k not in (first, "Unknown") and split_key(k) == (tonic, minor)))


# ---------------------------------------------------------------------------------------------------------------------
# Chords

NO_CHORD = (ROOT_NAMES.index("N"), QUALITY_NAMES.index("None"), BASS_NAMES.index("None"))

# Spellings of qualities (case matters only in M/m) -> tones, before added, altered and omitted degrees.
_SPELLINGS = {
    "maj major M": (0, 4, 7),
    "min minor m - mi": (0, 3, 7),
    "dim o °": (0, 3, 6),
    "aug +": (0, 4, 8),
    "5": (0, 7),
    "1": (0,),
    "sus sus4": (0, 5, 7),
    "sus2": (0, 2, 7),
    "sus24 sus2sus4": (0, 2, 5, 7),
    "6 maj6 M6": (0, 4, 7, 9),
    "min6 m6 -6": (0, 3, 7, 9),
    "69 6/9": (0, 2, 4, 7, 9),
    "m69": (0, 2, 3, 7, 9),
    "7 dom7": (0, 4, 7, 10),
    "maj7 major7 M7 Maj7 j7 ^7 ^ Δ Δ7": (0, 4, 7, 11),
    "min7 minor7 mi7 m7 -7": (0, 3, 7, 10),
    "minmaj7 mM7 mmaj7 mMaj7 -^7": (0, 3, 7, 11),
    "dim7 o7 °7": (0, 3, 6, 9),
    "hdim7 hdim m7b5 min7b5 -7b5 ø ø7 h7": (0, 3, 6, 10),
    "dimmaj7": (0, 3, 6, 11),
    "aug7 +7": (0, 4, 8, 10),
    "augmaj7 +maj7": (0, 4, 8, 11),
    "b5": (0, 4, 6),
    "7sus4 7sus": (0, 5, 7, 10),
    "7sus2": (0, 2, 7, 10),
    "9sus4 9sus": (0, 2, 5, 7, 10),
    "13sus4 13sus": (0, 2, 5, 7, 9, 10),
    "maj7sus4": (0, 5, 7, 11),
    "maj7sus2": (0, 2, 7, 11),
    "9": (0, 2, 4, 7, 10),
    "maj9 M9": (0, 2, 4, 7, 11),
    "min9 m9 -9": (0, 2, 3, 7, 10),
    "mmaj9": (0, 2, 3, 7, 11),
    "11": (0, 2, 4, 5, 7, 10),
    "maj11": (0, 2, 4, 5, 7, 11),
    "min11 m11 -11": (0, 2, 3, 5, 7, 10),
    "13": (0, 2, 4, 7, 9, 10),
    "maj13 M13": (0, 2, 4, 7, 9, 11),
    "min13 m13": (0, 2, 3, 7, 9, 10),
    "add9 add2 2": (0, 2, 4, 7),
    "madd9 madd2": (0, 2, 3, 7),
    "add4 add11": (0, 4, 5, 7),
    "alt 7alt": (0, 3, 4, 8, 10),
}
_BASE = {"": (0, 4, 7), **{name: tones for names, tones in _SPELLINGS.items() for name in names.split()}}
# The published table: tones above the root of every quality token ("None" is the major triad).
QUALITY_TONES = {name: _BASE["" if name == "None" else name] for name in QUALITY_NAMES}
# How much a tone matters when qualities are compared: thirds decide the mode, fifths and sevenths the function.
TONE_WEIGHTS = np.array([8.0, 1.0, 1.5, 4.0, 4.0, 1.5, 2.0, 2.0, 2.0, 1.5, 2.5, 2.5])
_TONES = np.array([[t in QUALITY_TONES[q] for t in range(12)] for q in QUALITY_NAMES], dtype=float)

_BASES = sorted(_BASE, key=len, reverse=True)
_DEGREES = {1: 0, 2: 2, 3: 4, 4: 5, 5: 7, 6: 9, 7: 11, 9: 2, 10: 4, 11: 5, 12: 7, 13: 9}
_NONE = {"n", "n.c.", "nc", "n.c", "none", "x", "no chord"}
_ROOT = re.compile(r"^([A-G])((?:#|♯|b(?!5(?![0-9]))|♭)*)(.*)$")
_DEGREE = re.compile(r"(\*|no|omit|add)?([b#♭♯+-]*)(\d+)")


def nearest_quality(tones: Sequence[int], among: Sequence[bool] | None = None) -> int:
    """The quality token for a set of tones above a root.

    The exact set where the table has it; else the quality with the least total `TONE_WEIGHTS` of the tones that one
    has and the other lacks, the smaller chord on a tie.

    Args:
        tones: semitones above the root, modulo 12; the root counts as present.
        among: a flag for each of `QUALITY_NAMES` that may be chosen; all by default.

    Returns:
        Index into `QUALITY_NAMES`.
    """
    wanted = np.zeros(12)
    wanted[[t % 12 for t in tones]] = 1.0
    wanted[0] = 1.0
    distance = np.abs(_TONES - wanted) @ TONE_WEIGHTS + 0.01 * _TONES.sum(axis=1)
    if among is not None:
        distance = np.where(among, distance, np.inf)
    return int(np.argmin(distance))


def _tones_of(quality: str, label: str) -> tuple[int, ...]:
    """Tones above the root of the quality part of a label."""
    text = quality.replace(" ", "")
    if text in _BASE:
        return _BASE[text]
    text = re.sub(r"\(((?:maj|min|M)\d*)\)", r"\1", text.replace("△", "Δ"))  # "m(maj7)"
    lowered = text if text[:1] == "M" and not text.upper().startswith(("MAJ", "MIN")) else text.lower()
    for spelled in (text, lowered):
        if spelled in _BASE:
            return _BASE[spelled]
    # longest base, then degrees: "7(b9,#11)", "maj(9)", "min7(*5)", "7b9", "m7add11", "(1,5)"
    for base in _BASES:
        if not text.startswith(base):
            continue
        rest = text[len(base) :].replace("(", "").replace(")", "").replace(",", " ").replace("/", " ").strip()
        parts = list(_DEGREE.finditer(rest))
        if "".join(m.group(0) for m in parts) != rest.replace(" ", "") or not parts:
            continue
        if any(int(m.group(3)) not in _DEGREES for m in parts):
            continue
        # a bare parenthesis of a Harte label is the whole chord: "C:(1,5)"
        tones = {0} if base == "" and ":(" in label.replace(" ", "") else set(_BASE[base])
        for match in parts:
            kind, marks, degree = match.group(1), match.group(2), int(match.group(3))
            shift = sum({"b": -1, "♭": -1, "-": -1}.get(c, 1) for c in marks)
            tone = (_DEGREES[degree] + shift) % 12
            if degree == 7 and not marks and kind == "add" and 11 not in tones:
                tone = 11
            if kind in ("*", "no", "omit"):
                tones -= {3, 4} if degree == 3 else {6, 7, 8} if degree == 5 else {tone}
                continue
            if degree == 5 and marks:  # an altered fifth replaces the fifth
                tones.discard(7)
            tones.add(tone)
        return tuple(sorted(tones))
    raise VocabularyError(
        f"unknown chord {label!r}: write a symbol such as 'Am7/G' or a Harte label such as 'C:maj7/3' or 'N'",
        "vocabulary.chord",
    )


def _spell(letter: str, accidental: int, names: Sequence[str], prefix: str = "") -> int:
    """Index of a note name among the names of a token kind, its enharmonic twin where that spelling has no token."""
    spelled = prefix + letter + ("#" * accidental if accidental >= 0 else "b" * -accidental)
    if spelled in names:
        return names.index(spelled)
    pitch = (_LETTER[letter] + accidental) % 12
    for name in ("C Db D Eb E F F# G Ab A Bb B").split():
        if (_LETTER[name[0]] + _accidental(name[1:])) % 12 == pitch:
            return names.index(prefix + name)
    raise AssertionError  # twelve names cover twelve pitch classes


_ENHARMONIC_LETTERS = "CDEFGAB"


@lru_cache(maxsize=4096)
def parse_chord(label: str) -> tuple[int, int, int]:
    """A chord symbol or Harte label -> (root, quality, bass): values of the three chord token kinds.

    Args:
        label: `"Am7/G"`, `"C:maj7/3"` (bass as a degree), `"F#dim"`, `"Bb6/9"`, `"G:7(b9)"`; no chord is `"N"`,
            `"N.C."`, `"X"`.

    Raises:
        VocabularyError: `vocabulary.chord`, for text that names no chord.
    """
    if not isinstance(label, str):
        raise VocabularyError(f"a chord is written as text such as 'Am7', got {label!r}", "vocabulary.chord")
    text = label.strip()
    if text.lower() in _NONE:
        return NO_CHORD
    found = _ROOT.match(text)
    if not found:
        _tones_of("?", label)
    letter, marks, rest = found.groups()
    rest = rest.strip()
    harte = rest.startswith(":")
    body = rest[1:] if harte else rest
    quality, slash, bass = body.rpartition("/")
    if not slash:
        quality, bass = body, ""
    elif not harte and quality in ("6", "m6", "maj6", "min6") and bass == "9":
        quality, bass = quality + "9", ""
    elif "(" in bass or ")" in bass:  # a slash inside parentheses belongs to the quality
        quality, bass = body, ""
    root_shift = _accidental(marks)
    root = _spell(letter, root_shift, ROOT_NAMES)
    root_pitch = (_LETTER[letter] + root_shift) % 12
    tones = _tones_of(quality, label)
    bass_value = BASS_NAMES.index("None")
    if bass:
        note = re.match(r"^([A-G])([#♯b♭]*)$", bass.strip())
        degree = re.match(r"^([b#♭♯]*)(\d+)$", bass.strip())
        if note:
            bass_letter, bass_shift = note.group(1), _accidental(note.group(2))
        elif degree and int(degree.group(2)) in _DEGREES:
            number = int(degree.group(2))
            pitch = root_pitch + _DEGREES[number] + _accidental(degree.group(1))
            bass_letter = _ENHARMONIC_LETTERS[(_ENHARMONIC_LETTERS.index(letter) + number - 1) % 7]
            bass_shift = (pitch - _LETTER[bass_letter] + 6) % 12 - 6
        else:
            _tones_of("?", label)
        if (_LETTER[bass_letter] + bass_shift) % 12 != root_pitch:
            bass_value = _spell(bass_letter, bass_shift, BASS_NAMES, "/")
    return root, nearest_quality(tones), bass_value


def chord_values(labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`[n]` labels -> `(root, quality, bass)`, each `[n]` int16 values of the chord token kinds."""
    columns = np.array([parse_chord(label) for label in labels], dtype=np.int16).reshape(-1, 3)
    return columns[:, 0], columns[:, 1], columns[:, 2]


def chord_symbol(root: int, quality: int, bass: int) -> str:
    """Chord values -> symbol: `"Am7/G"`, `"C"`, `"N"`.

    Args:
        root: index into `ROOT_NAMES`.
        quality: index into `QUALITY_NAMES`.
        bass: index into `BASS_NAMES`.
    """
    if root == NO_CHORD[0]:
        return "N"
    name, low = QUALITY_NAMES[quality], BASS_NAMES[bass]
    # "Cb5" is C with a lowered fifth: the fifth chord of Cb takes Harte's colon
    colon = ":" if name == "5" and ROOT_NAMES[root].endswith("b") else ""
    return ROOT_NAMES[root] + colon + ("" if name == "None" else name) + ("" if low == "None" else low)


def chord_table(onset, labels: Sequence[str]) -> ChordTable:
    """Chords at some ticks.

    Args:
        onset: `[n]` ticks, in any order.
        labels: `[n]` symbols or Harte labels.

    Returns:
        `ChordTable`, sorted; repeats of the sounding chord are merged.

    Raises:
        VocabularyError: `vocabulary.chord`, for text that names no chord.
    """
    onset = np.asarray(onset, dtype=np.int64).reshape(-1)
    root, quality, bass = chord_values(labels)
    order = np.argsort(onset, kind="stable")
    return merge_repeats(ChordTable(onset[order], root[order], quality[order], bass[order]))


def merge_repeats(table: ChordTable) -> ChordTable:
    """Without chords that repeat the one before; of several at one tick the last stays."""
    if len(table) < 2:
        return table
    last = np.append(table.onset[1:] != table.onset[:-1], True)
    rows = np.flatnonzero(last)
    columns = np.stack([table.root[rows], table.quality[rows], table.bass[rows]])
    rows = rows[np.append(True, (columns[:, 1:] != columns[:, :-1]).any(axis=0))]
    return ChordTable(table.onset[rows], table.root[rows], table.quality[rows], table.bass[rows])


def chord_tones(root: int, quality: int) -> tuple[int, ...]:
    """Pitch classes of a chord.

    Args:
        root: index into `ROOT_NAMES`.
        quality: index into `QUALITY_NAMES`.

    Returns:
        0 to 11, sorted; empty for "no chord".
    """
    if root == NO_CHORD[0]:
        return ()
    name = ROOT_NAMES[root]
    base = _LETTER[name[0]] + _accidental(name[1:])
    return tuple(sorted((base + t) % 12 for t in QUALITY_TONES[QUALITY_NAMES[quality]]))


def with_chords(window: MetricScore) -> MetricScore | None:
    """A window with chords from its first tick on (no chord is stated where none sounds yet).

    Args:
        window: music with chords.

    Returns:
        None where it has no chord at all.
    """
    table = window.chords
    if table is None or not len(table):
        return None
    if table.onset[0] > 0:
        columns = zip(NO_CHORD, (table.root, table.quality, table.bass))
        silence = (np.append(value, column).astype(np.int16) for value, column in columns)
        table = ChordTable(np.append(0, table.onset), *silence)
    table = merge_repeats(table)
    if len(table) == 1 and int(table.root[0]) == NO_CHORD[0]:
        return None
    return replace(window, chords=table)
