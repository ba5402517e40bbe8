"""Wrong notes to be found: pitches of a packed batch exchanged for others, and which ones they were.

Design decisions
- The task of ELECTRA (Clark et al. 2020) with notes as units: every pitched note has a target, whether it was
  exchanged, so an encoder learns which notes go together from far less music than from one label a window.
- A pitch moves by a step or a leap of at most a fifth, steps more often. It stays between its neighbours in the chord
  that it belongs to, and no two neighbours move, so that the order of a chord's notes tells nothing.
- How many notes are wrong is drawn for every document. Drums are left alone.
- Arithmetic on flat arrays, and all randomness from the generator that is given, as in `masking`.

Knows: kinds of tokens, bounds of documents. Must not know: models, training, MIDI.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..models.metric_vocabulary import DRUMS, MetricVocabulary, TokenKind
from .packing import IGNORE


LABELS = ("right", "wrong")
_STEPS = np.array([1, 2, 3, 4, 5, 6, 7])
_CHANCES = np.array([4, 2, 1, 1, 1, 1, 1]) / 11


@dataclass(frozen=True)
class ReplacingRecipe:
    """How documents are spoiled. `rate`: least and most share of a document's pitched notes that are exchanged."""

    rate: tuple[float, float] = (0.03, 0.25)

    def __post_init__(self):
        if not 0 < self.rate[0] <= self.rate[1] < 1:
            raise ValueError(f"rate must be two shares in (0, 1), the smaller first, got {self.rate}")


def replace_pitches(
    vocabulary: MetricVocabulary,
    ids: np.ndarray,
    starts: np.ndarray,
    recipe: ReplacingRecipe,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """(spoiled ids, labels), both `[n]` int64, of a flat batch.

    Labels stand on the pitches of pitched tracks: 1 where it was exchanged, else 0; -100 everywhere else.

    Args:
        ids: `[n]` token ids of all documents one after the other. starts: `[documents]` their first positions,
            ascending, beginning with 0.
    """
    ids = np.asarray(ids, dtype=np.int64)
    kind, place = vocabulary.kind[ids], np.arange(len(ids))
    head = np.maximum.accumulate(np.where(kind == TokenKind.INSTRUMENT, place, 0))
    bar = np.cumsum((kind == TokenKind.BAR) | (kind == TokenKind.INSTRUMENT))
    note = np.flatnonzero((kind == TokenKind.PITCH) & (ids[head] != vocabulary.id(TokenKind.INSTRUMENT, DRUMS)))
    labels = np.full(len(ids), IGNORE, dtype=np.int64)
    out = ids.copy()
    if not len(note):
        return out, labels
    labels[note] = 0
    document = np.searchsorted(starts, note, side="right") - 1
    rate = rng.uniform(*recipe.rate, len(starts))[document]
    chosen = rng.random(len(note)) < rate

    pitch = vocabulary.value[ids[note]].astype(np.int64)
    onset = vocabulary.value[ids[note - 1]]  # the token before a pitch is its onset
    chord = (bar[note[1:]] == bar[note[:-1]]) & (onset[1:] == onset[:-1]) & (head[note[1:]] == head[note[:-1]])
    low = np.where(np.append(False, chord), np.append(-1, pitch[:-1]), -1)
    high = np.where(np.append(chord, False), np.append(pitch[1:], 128), 128)
    chosen[1:] &= ~(chord & chosen[:-1])
    step = rng.choice(_STEPS, len(note), p=_CHANCES) * rng.choice((-1, 1), len(note))

    def fits(moved: np.ndarray) -> np.ndarray:
        return (moved > low) & (moved < high)

    moved = np.where(fits(pitch + step), pitch + step, pitch - step)  # where one way is barred, the other
    wrong = chosen & fits(moved)
    out[note[wrong]] = vocabulary.lookup(TokenKind.PITCH)[moved[wrong]]
    labels[note[wrong]] = 1
    return out, labels


__all__ = ["LABELS", "ReplacingRecipe", "replace_pitches"]
