"""Quantised passages written down note by note."""

import numpy as np

from mortm_hf.models.music_grid import COMMON_TIME, BarTable
from mortm_hf.models.music_harmony import chord_table
from mortm_hf.models.music_names import METERS
from mortm_hf.models.music_score import MetricScore


def passage(*tracks, bars=2, meter=(4, 4), chords=None, lengths=None, key=None, names=()):
    """Tracks are `(program, [(onset, pitch, duration), ...])`; chords `[(onset, label), ...]`."""
    rows = sorted((t, *note) for t, (_, notes) in enumerate(tracks) for note in notes)
    track, onset, pitch, duration = (np.array(c, dtype=np.int64) for c in (zip(*rows) if rows else ([], [], [], [])))
    number = COMMON_TIME if meter == (4, 4) else METERS.index(meter)
    table = BarTable.regular(number, bars)
    if lengths is not None:
        table = BarTable.from_lengths(np.array(lengths), np.full(len(lengths), number))
    return MetricScore(
        bars=table,
        track=track,
        onset=onset,
        pitch=pitch,
        duration=duration,
        velocity=np.full(len(onset), 90),
        programs=np.array([p for p, _ in tracks], dtype=np.int16),
        tempo=np.full(table.n_bars, 20, dtype=np.int16),
        chords=None if chords is None else chord_table([o for o, _ in chords], [c for _, c in chords]),
        key=key,
        names=names,
    )


def melody(*pitches, step=24, length=12, start=0):
    """Notes one after the other."""
    return [(start + step * i, pitch, length) for i, pitch in enumerate(pitches)]
