"""The names and numbers of the field that everything else counts on: keys, chords, genres, meters, tempi, drums.

Design decisions
- A table is a tuple, and a *value* is an index into it: music, tokens and requests speak of the same numbers.
- Tables only grow at their end: checkpoints and stored data hold values.

Knows: names and numbers. Must not know: tokens, MIDI, torch.
"""

from __future__ import annotations

import numpy as np


KEY_NAMES = (
    "CM DM EM FM GM AM BM C#M D#M F#M G#M A#M DbM EbM GbM AbM BbM Unknown "
    "Cm Dm Em Fm Gm Am Bm C#m D#m F#m G#m A#m Dbm Ebm Gbm Abm Bbm"
).split()
CHORD_ROOTS = "C C# D D# E E# F F# G G# A A# B Cb Db Eb Fb Gb Ab Bb".split()
CHORD_QUALITIES = "None m 7 maj7 m7 dim aug m7b5 b5 sus2 sus4 6 m6 9 maj9 m9 11 13 add9".split()
CHORD_BASSES = "/C /C# /D /D# /E /E# /F /F# /G /G# /A /A# /B /B# /Db /Eb /Fb /Gb /Ab /Bb /Cb None".split()
GENRES = (
    "80s 90s alternative ambient blues celtic chillout classical country dance drumnbass easylistening electronic "
    "electropop experimental folk funk hiphop house indie instrumentalpop instrumentalrock jazz jazzfusion latin "
    "lounge metal newage orchestral pop popfolk poprock punkrock reggae rock soundtrack swing symphonic synthpop "
    "techno trance world"
).split()
EXTRA_CHORD_ROOTS = ["N"]
EXTRA_CHORD_QUALITIES = ["dim7", "mmaj7", "7sus4", "5"]

# The meter table (numerator, denominator): n/2 (1-4), n/4 (1-8), n/8 (1-16), n/16 (1-16). 24 ticks a quarter.
METERS = tuple((n, d) for d, top in ((2, 4), (4, 8), (8, 16), (16, 16)) for n in range(1, top + 1))
METER_TICKS = np.array([96 * n // d for n, d in METERS], dtype=np.int64)

# 32 log-spaced tempo bins from 30 to 240 quarters a minute; a bin is named by its rounded centre.
TEMPO_CENTRES = 30.0 * 8.0 ** (np.arange(32) / 31.0)
TEMPO_NAMES = tuple(int(round(x)) for x in TEMPO_CENTRES)

DRUMS = 128  # the program of drum tracks; 0-127 are General MIDI programs
CATEGORY_PIANO, CATEGORY_SAX = 129, 130  # upstream's two categories

MAX_BAR_TICKS = 192
MAX_DURATION = 2592
MAX_COUNTED_BARS = 16  # more bars than this are generated in windows


def tempo_bin(bpm):
    """The nearest of the 32 tempo bins.

    Args:
        bpm: quarters a minute, a number or an array; clamped to 30 to 240.

    Returns:
        int64 index into `TEMPO_CENTRES`.
    """
    bins = np.floor(np.log(np.asarray(bpm) / 30.0) * (31.0 / np.log(8.0)) + 0.5)
    return np.minimum(np.maximum(bins, 0), 31).astype(np.int64)
