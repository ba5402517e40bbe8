"""Telling an encoder what can be counted in a window, so that it need not find out from labels.

Design decisions
- A few thousand labels do not teach an encoder to count intervals, though a forest over such counts tells machine from
  human easily. The counts need no label: a second loss asks the pooled state for the window's bag of features
  (`evaluation.features`), which is exact for every window, transposed and cut ones included.
- Features are measured in deviations over the training windows, at most `FAR` of them; one that never varies asks
  nothing.

Knows: the bag of features. Must not know: labels, trainers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..evaluation.features import bag_of_features, scores_of
from ..models.metric_vocabulary import MetricVocabulary


FAR = 5.0


class HintTable:
    """Windows -> features in deviations.

    Args:
        vocabulary: the token table. rows: ids of windows, from which mean and deviation are taken.
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
    """Reads features off a pooled state: one linear layer."""

    def __init__(self, hidden_size: int, features: int):
        super().__init__()
        self.read = torch.nn.Linear(hidden_size, features)
        self.pooled: torch.Tensor | None = None

    def listen(self, pool: torch.nn.Module):
        """A hook that keeps what `pool` gives."""

        def keep(_module, _given, pooled):
            self.pooled = pooled

        return pool.register_forward_hook(keep)

    def loss(self, hints: torch.Tensor) -> torch.Tensor:
        """Mean squared error of `[rows, features]`, in deviations."""
        pooled, self.pooled = self.pooled, None
        return torch.nn.functional.mse_loss(self.read(pooled.float()), hints)
