"""A second loss for an encoder: what can be counted in a window, so that it need not find out from labels.

Design decisions
- A few thousand labels do not teach an encoder to count intervals, though a forest over such counts tells machine from
  human easily. The counts need no label: a second loss asks the pooled state for the window's bag of features
  (`evaluation.features`), which is exact for every window, transposed and cut ones included.
- Features are measured in deviations over the training windows, at most `FAR` of them; one that never varies asks
  nothing.
- A count can only be learnt from what the notes' own states hold. So every note is asked for its intervals too: to the
  note below it at its onset, and, where it is the highest, from the highest one before.

Knows: the bag of features, notes in ids. Must not know: labels, trainers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..data.packing import IGNORE
from ..data.pitched_notes import pitched_notes
from ..evaluation.features import bag_of_features, scores_of
from ..models.token_vocabulary import MetricVocabulary


FAR = 5.0
HARMONIC, MELODIC = 13, 27  # semitones modulo 12 and "none below"; -13 (or more) to 13 (or more)


def note_intervals(vocabulary: MetricVocabulary, ids: np.ndarray) -> np.ndarray:
    """`[..., 2]` int64 intervals of every pitched note, on its pitch token, of rows of ids `[..., length]`.

    First the semitones modulo 12 to the note before it at its onset in its track (12: it is the lowest), then those
    from the highest note of the onset before to the highest of this one, as 0 (-13 or less) to 26; -100 elsewhere.
    """
    flat = np.asarray(ids).reshape(-1)
    notes = pitched_notes(vocabulary, flat)
    note, pitch, track, chord = notes.at, notes.pitch, notes.track, notes.chord
    found = np.full((flat.size, 2), IGNORE, dtype=np.int64)
    found[note, 0] = np.where(np.append(False, chord), np.diff(pitch, prepend=0) % 12, 12)[: len(note)]
    top = np.flatnonzero(np.append(~chord, True)[: len(note)])
    step = np.clip(np.diff(pitch[top]), -13, 13) + 13
    found[note[top[1:]], 1] = np.where(track[top[1:]] == track[top[:-1]], step, IGNORE)
    return found.reshape(*np.shape(ids), 2)


class HintTable:
    """Windows -> features in deviations.

    Args:
        vocabulary: the token table.
        rows: ids of windows, from which mean and deviation are taken.
    """

    def __init__(self, vocabulary: MetricVocabulary, rows: Sequence[np.ndarray]):
        self.vocabulary = vocabulary
        values = self._bag(rows)
        spread = values.std(0)
        self.mean, self.spread = values.mean(0), np.where(spread > 1e-6, spread, np.inf).astype(np.float32)

    def __len__(self) -> int:
        return len(self.mean)

    def __call__(self, rows: Sequence[np.ndarray]) -> torch.Tensor:
        """`[rows, features]` float32."""
        return torch.from_numpy(((self._bag(rows) - self.mean) / self.spread).clip(-FAR, FAR))

    def _bag(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        return bag_of_features(scores_of(self.vocabulary, rows)).values


class HintLayer(torch.nn.Module):
    """Reads features off a pooled state, and intervals off the notes' states: linear layers.

    Args:
        hidden_size: of the encoder.
        features: of a window.
    """

    def __init__(self, hidden_size: int, features: int):
        super().__init__()
        self.read = torch.nn.Linear(hidden_size, features)
        self.notes = torch.nn.Linear(hidden_size, HARMONIC + MELODIC)
        self.kept: tuple[torch.Tensor, torch.Tensor] | None = None

    def watch(self, pool: torch.nn.Module):
        """A hook that keeps what `pool` takes and gives."""

        def keep(_module, given, pooled):
            self.kept = given[0], pooled

        return pool.register_forward_hook(keep)

    def loss(self, features: torch.Tensor, intervals: torch.Tensor) -> torch.Tensor:
        """Mean squared error of the features plus cross-entropy (in nats) of the intervals, the two as halves.

        Args:
            features: `[rows, features]`, in deviations.
            intervals: `[rows, length, 2]` (`note_intervals`).
        """
        (states, pooled), self.kept = self.kept, None
        loss = torch.nn.functional.mse_loss(self.read(pooled.float()), features)
        logits = self.notes(states.float()).split((HARMONIC, MELODIC), dim=-1)
        for number, scores in enumerate(logits):
            target = intervals[..., number]
            # a batch may hold no such note: the sum of nothing is 0, its mean is not
            total = torch.nn.functional.cross_entropy(
                scores.flatten(0, 1), target.flatten(), ignore_index=IGNORE, reduction="sum"
            )
            loss = loss + 0.5 * total / (target != IGNORE).sum().clamp(min=1)
        return loss
