"""Pitched notes in ids: where they stand, and which of them sound together.

Knows: kinds of tokens. Must not know: models, labels, recipes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..models.music_names import DRUMS
from ..models.token_vocabulary import MetricVocabulary, TokenKind


@dataclass(frozen=True)
class PitchedNotes:
    """The notes of pitched tracks of flat ids, in their order.

    Attributes:
        at: `[n]` positions of their pitch tokens.
        pitch: `[n]` int64.
        track: `[n]` position of the track's instrument.
        chord: `[n - 1]` bool, whether a note begins at the onset of the one before, in its track.
    """

    at: np.ndarray
    pitch: np.ndarray
    track: np.ndarray
    chord: np.ndarray


def pitched_notes(vocabulary: MetricVocabulary, ids: np.ndarray) -> PitchedNotes:
    """The pitched notes of ids.

    Args:
        vocabulary: the token table.
        ids: `[n]`, which may be several documents or padded rows, one after the other.
    """
    kind = vocabulary.kind[ids]
    head = np.maximum.accumulate(np.where(kind == TokenKind.INSTRUMENT, np.arange(len(ids)), 0))
    drums = ids[head] == vocabulary.id(TokenKind.INSTRUMENT, DRUMS)
    at = np.flatnonzero((kind == TokenKind.PITCH) & ~drums)
    bar, onset = np.cumsum(kind == TokenKind.BAR)[at], vocabulary.value[ids[at - 1]]  # an onset stands before a pitch
    track = head[at]
    chord = (bar[1:] == bar[:-1]) & (onset[1:] == onset[:-1]) & (track[1:] == track[:-1])
    return PitchedNotes(at, vocabulary.value[ids[at]].astype(np.int64), track, chord)
