"""What the state machine of `token_automaton` works on: the plan of a generated field, and the state of a batch.

Design decisions
- A plan is what a prompt asks for, in values of tokens; it holds for a field from its marker to `<TE>`.
- A state is columns of integers, a row for each sequence: beams reorder it, rewinding keeps old ones.

Knows: bar tables, kinds of tokens, arrays. Must not know: ids, prompts, what may follow what.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .music_grid import BarTable
from .token_vocabulary import TokenKind


@dataclass(frozen=True)
class GenerationPlan:
    """What a generated field must be.

    Attributes:
        kind: `TokenKind.MGEN`, `CGEN` or `META`.
        bars: the generated bars; lengths and meters are forced. Unused for META.
        instruments: INSTRUMENT values in track order (MGEN), drums last.
        tempo: `[n_bars]` forced tempo bins (-1: none), or None: free.
        velocity: True: every note carries one, False: none does, None: the first note decides.
        pitch_range: lowest and highest pitch of melodic tracks, or None. Drums are never limited.
        scale: pitch classes of melodic tracks, 0 to 11, or None.
    """

    kind: TokenKind
    bars: BarTable | None = None
    instruments: tuple[int, ...] = ()
    tempo: np.ndarray | None = None
    velocity: bool | None = None
    pitch_range: tuple[int, int] | None = None
    scale: tuple[int, ...] | None = None


class GrammarState(NamedTuple):
    """State of a batch of rows: int64 arrays, `[B]` where no shape is given. Never changed in place.

    Attributes:
        phase: what was written last.
        track: index of the current track, -1 before the first.
        onset: onset of the current note in its bar, -1 before the first.
        pitch: its pitch, -1 while none at this onset (chord rows: the root; headers: the last instrument).
        total: ticks of its duration written so far.
        room: largest duration token that may follow.
        need: its smallest legal total.
        sounding: 1: the current track has a note.
        velocity: -1 undecided, 0 none, 1 every note.
        tempo: tempo bin in force, -1 none.
        bar: index of the current bar, -1 before the first.
        ends: `[B, 128]` last offset of every pitch in this track, ticks from its start (huge: a pitch not to be used).
        bars: `[B, n]` constants of the current bar, see `token_automaton`.
        tracks: `[B, n]` constants of the current track, see `token_automaton`.
    """

    phase: np.ndarray
    track: np.ndarray
    onset: np.ndarray
    pitch: np.ndarray
    total: np.ndarray
    room: np.ndarray
    need: np.ndarray
    sounding: np.ndarray
    velocity: np.ndarray
    tempo: np.ndarray
    bar: np.ndarray
    ends: np.ndarray
    bars: np.ndarray
    tracks: np.ndarray

    def select(self, index: np.ndarray) -> GrammarState:
        """The state of the rows `index` (beams reorder rows)."""
        return GrammarState(*(a[index] for a in self))

    def where(self, rows: np.ndarray, other: GrammarState) -> GrammarState:
        """Rows of two states.

        Args:
            rows: `[B]` bool.
            other: a state of as many rows.

        Returns:
            `self` where `rows` is set, `other` elsewhere.
        """
        return GrammarState(*(np.where(rows if a.ndim == 1 else rows[:, None], a, b) for a, b in zip(self, other)))
