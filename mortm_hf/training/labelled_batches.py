"""Batches of labelled windows for a classifier: which windows take part, how they are drawn and moved.

Design decisions
- A batch is a pure function of (seed, epoch, index): which windows, in which form, how far transposed. So a run that
  was stopped goes on exactly where it was, as in pretraining.
- Draws may be balanced: first the label, then one of its examples; or first the label, then the kind of example, then
  one of these.
- Twins: every machine window is set beside the human one that answers the same prompt, moved alike, so that what the
  two share (song, texture, key) cancels in the gradient.

Knows: labelled sets, tokens. Must not know: models, the Trainer, what a label means.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from ..data import labelled_windows as labelled
from ..data.labelled_windows import LabelledData
from ..data.packing import generator
from ..models.errors_mortm import TrainingError
from ..models.inputs_bertm import pad_rows
from ..models.token_codec import parse_segment
from .arguments import EPOCHS
from .feature_hints import HintTable, note_intervals


HALVES = ("first", "second")


def without(data: LabelledData, leave_out: Sequence[str]) -> LabelledData:
    """A set without some labels and kinds of examples; the remaining labels are renumbered.

    Raises:
        TrainingError: fewer than two labels remain, or a name that is neither.
    """
    if not leave_out:
        return data
    unknown = set(leave_out) - set(data.names) - {e.kind for e in data.examples}
    if unknown:
        raise TrainingError(f"leave_out names no label or kind of the set: {', '.join(sorted(unknown))}")
    names = tuple(name for name in data.names if name not in leave_out)
    if len(names) < 2:
        raise TrainingError(f"only {len(names)} label remains of {', '.join(data.names)}: leave out fewer")
    new = {data.names.index(name): i for i, name in enumerate(names)}
    kept = [
        dataclasses.replace(e, label=new[e.label]) for e in data.examples if e.label in new and e.kind not in leave_out
    ]
    return dataclasses.replace(data, names=names, examples=kept)


def half_of(data: LabelledData, half: str) -> LabelledData:
    """The first or second half of a set's clusters of songs, by a hash of their names; "" keeps them all.

    Raises:
        TrainingError: another word.
    """
    if not half:
        return data
    if half not in HALVES:
        raise TrainingError(f"half is {' or '.join(HALVES)}, got {half!r}")
    side = HALVES.index(half)
    kept = [e for e in data.examples if hashlib.sha256(e.cluster.encode()).digest()[0] % 2 == side]
    return dataclasses.replace(data, examples=kept)


def draw_weights(data: LabelledData, balance: str) -> np.ndarray:
    """`[n]` chance of each example to be drawn: for "label" equal labels, for "sampler" also equal kinds within them,
    else all alike."""
    label = data.labels()
    if balance == "label":
        weights = 1 / np.bincount(label)[label]
    elif balance == "sampler":
        kinds = np.unique(data.column("kind"), return_inverse=True)[1]
        cell = label * (kinds.max() + 1) + kinds
        cells, index, counts = np.unique(cell, return_inverse=True, return_counts=True)
        kinds_of = np.bincount(cells // (kinds.max() + 1), minlength=label.max() + 1)
        weights = 1 / (kinds_of[label] * counts[index])
    else:
        weights = np.ones(len(data))
    return weights / weights.sum()


def twins_of(data: LabelledData) -> np.ndarray:
    """`[n]` place of the human window that answers the prompt of each machine window, -1 where there is none.

    Raises:
        TrainingError: no window has one.
    """
    label = data.labels()
    key = [(e.song, e.context.tobytes()) for e in data.examples]
    human = {key[i]: i for i, e in enumerate(data.examples) if label[i] == 0 and len(e.context)}
    twins = np.array([human.get(key[i], -1) if label[i] else -1 for i in range(len(data))])
    if not (twins >= 0).any():
        raise TrainingError("pairs need windows of two origins behind the same prompts: only the quality set has them")
    return twins


class LabelledBatches(Dataset):
    """Batches of labelled windows: item `i` depends on (seed, epoch, i) only.

    An epoch draws as many windows as there are: each once, or by `weights` with replacement. Windows of similar length
    go together (pools of `POOL` batches are sorted), which saves padding.
    """

    POOL = 8

    def __init__(self, data: LabelledData, recipe, pad: int, seed: int = 0, weights=None):
        self.data, self.recipe, self.pad, self.seed, self.weights = data, recipe, pad, seed, weights
        self.lengths = np.array([len(e.ids) for e in data.examples])
        self.labels = data.labels()
        self.twins, self.rows = None, recipe.rows
        if recipe.pairs:
            self.twins, self.rows = twins_of(data), recipe.rows // 2
            paired = (self.twins >= 0) * (np.ones(len(data)) if weights is None else weights)
            self.weights = paired / paired.sum()
        self.scores = None
        if recipe.form == "condensed":
            self.scores = [parse_segment(data.vocabulary, e.ids).generated for e in data.examples]
        self.hints = None
        if recipe.hints:
            some = np.linspace(0, len(data) - 1, min(2000, len(data))).astype(int)
            self.hints = HintTable(data.vocabulary, [self._row(i, False, 0, (0, EPOCHS)) for i in some])
        self.per_epoch = max(1, len(data) // recipe.rows)
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])

    def __len__(self) -> int:
        return self.per_epoch * EPOCHS

    def _batches(self, epoch: int) -> list[np.ndarray]:
        if self._epoch[0] != epoch:
            rng, rows = generator(self.seed, epoch, 0xB47C), self.rows
            n = self.per_epoch * rows if self.twins is not None else len(self.data)
            order = rng.permutation(n) if self.weights is None else rng.choice(len(self.data), size=n, p=self.weights)
            batches = []
            for at in range(0, n, rows * self.POOL):
                pool = order[at : at + rows * self.POOL]
                pool = pool[np.argsort(self.lengths[pool], kind="stable")]
                batches += [pool[i : i + rows] for i in range(0, len(pool), rows)]
            batches = [b for b in batches if len(b) == rows] or [order]
            self._epoch = epoch, [batches[i] for i in rng.permutation(len(batches))]
        return self._epoch[1]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        epoch, number = divmod(index, self.per_epoch)
        batches = self._batches(epoch)
        chosen = batches[number % len(batches)]
        rng = generator(self.seed, epoch, number, 0xF0A1)
        # all rows of a batch in one form: bare windows beside whole rows would be mostly padding
        whole = bool(rng.random() < 0.5) if self.recipe.form == "mixed" else self.recipe.form == "full"
        shifts = rng.integers(-5, 7, len(chosen)) if self.recipe.augment else np.zeros(len(chosen), dtype=int)
        spans = self._spans(chosen, rng)
        if self.twins is not None:  # what is done to a machine window is done to its twin
            chosen, shifts = np.concatenate([chosen, self.twins[chosen]]), np.tile(shifts, 2)
            spans = np.tile(spans, (2, 1))
        rows = [
            self._row(i, whole, shift, span)[: self.recipe.max_length]
            for i, shift, span in zip(chosen.tolist(), shifts.tolist(), spans.tolist())
        ]
        ids, mask = pad_rows(rows, self.pad)
        batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.from_numpy(self.labels[chosen])}
        if self.hints is not None:
            batch["hints"] = self.hints(rows)
            batch["intervals"] = torch.from_numpy(note_intervals(self.data.vocabulary, ids.numpy()))
        return batch

    def _spans(self, chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """`[rows, 2]` first bar and bar after the last of each window, as `recipe.bars` allows."""
        if self.scores is None or not self.recipe.bars:
            return np.tile([0, EPOCHS], (len(chosen), 1))
        n_bars = np.array([self.scores[i].n_bars for i in chosen])
        bars = np.minimum(rng.integers(self.recipe.bars[0], self.recipe.bars[-1] + 1, len(chosen)), n_bars)
        first = rng.integers(0, n_bars - bars + 1)
        return np.stack([first, first + bars], axis=1)

    def _row(self, index: int, whole: bool, shift: int, span: Sequence[int]) -> np.ndarray:
        example = self.data.examples[index]
        ids = example.full() if whole else example.ids
        if self.scores is not None:
            ids = labelled.condensed_ids(self.data.vocabulary, self.scores[index], *span)
        elif len(ids) > self.recipe.max_length:  # rather without its prompt than without its end
            ids = example.ids
        return labelled.transpose_ids(self.data.vocabulary, ids, shift) if shift else ids


def evenly_chosen(data: LabelledData, limit: int) -> LabelledData:
    """At most about `limit` windows, spread evenly over the set."""
    if not limit or len(data) <= limit:
        return data
    rows = np.linspace(0, len(data) - 1, limit).astype(int)
    return dataclasses.replace(data, examples=[data.examples[i] for i in rows])
