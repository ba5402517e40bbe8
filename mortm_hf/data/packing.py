"""Documents -> rows of equal length that never see each other.

Design decisions
- One item of the dataset is one *pack*: `[rows, length]`, a pure function of (seed, epoch, index). The sampler hands
  out indices in order, so that a run resumed at any step sees exactly what an unbroken run would have seen.
- A row is filled with whole documents: each next one is drawn for the space that is left (fewer bars where it is
  short). What remains is padding.
- The bounds of all documents in the flattened rows go with every pack, under the four names by which transformers
  knows variable-length attention (`cu_seq_lens_q`, `cu_seq_lens_k`, `max_length_q`, `max_length_k`): flash attention
  with several rows, and implementations that take documents one by one, need all of them.
- Documents are kept apart by `position_ids` that restart at 0: transformers' mask builder turns them into a
  block-diagonal causal mask (eager, sdpa, flex) or variable-length kernels (flash). The first token of a document is
  never a target; neither is padding.

Knows: documents as arrays of ids and targets. Must not know: music, models, the Trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Dataset


IGNORE = -100
LEAST = 128  # tokens that are worth a document


@dataclass(frozen=True)
class Document:
    """One training sequence.

    Attributes:
        ids: `[n]` token ids.
        target: `[n]` bool, tokens whose prediction counts in the loss (never the first).
        source: index of the song.
        task: name of the task.
        notes: distinct notes among the targets.
    """

    ids: np.ndarray
    target: np.ndarray
    source: int = -1
    task: str = ""
    notes: int = 0


class DocumentSource(Protocol):
    """Anything that draws documents."""

    def draw(self, rng: np.random.Generator, limit: int) -> Document | None:
        """One document, or `None` where none was found.

        Args:
            rng: decides everything.
            limit: most tokens.
        """


def generator(*key: int) -> np.random.Generator:
    """The random generator of one (seed, epoch, index, ...): independent of every other key."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([int(k) & 0xFFFFFFFF for k in key])))


def fill_row(
    source: DocumentSource, rng: np.random.Generator, length: int, least: int = LEAST, tries: int = 3
) -> list[Document]:
    """Whole documents for one row; stops when little is left or nothing fits.

    Args:
        source: draws documents.
        rng: decides everything.
        length: tokens of the row.
        least: tokens that are worth a document.
        tries: documents in a row that may not fit.
    """
    row: list[Document] = []
    left, failed = length, 0
    while left >= least and failed < tries:
        document = source.draw(rng, left)
        if document is None or len(document.ids) > left:
            failed += 1
            continue
        row.append(document)
        left -= len(document.ids)
        failed = 0
    return row


def pack_rows(rows: Sequence[Sequence[Document]], length: int, pad: int) -> dict[str, torch.Tensor]:
    """Rows of documents as one pack. Padding is a document of its own (positions restart), has label -100 and is
    attended to by nothing else.

    Args:
        rows: documents of each row.
        length: tokens of a row.
        pad: id of padding.

    Returns:
        `input_ids`, `position_ids`, `labels`, each `[rows, length]` int64; `cu_seq_lens_q` and `cu_seq_lens_k`
        `[documents + 1]` int32; `max_length_q` and `max_length_k`, tokens of the longest document.
    """
    ids = np.full((len(rows), length), pad, dtype=np.int64)
    position = np.zeros((len(rows), length), dtype=np.int64)
    labels = np.full((len(rows), length), IGNORE, dtype=np.int64)
    bounds = [0]
    for r, row in enumerate(rows):
        at = 0
        for document in row:
            n = len(document.ids)
            ids[r, at : at + n] = document.ids
            position[r, at : at + n] = np.arange(n)
            target = document.target.copy()
            target[0] = False
            labels[r, at : at + n] = np.where(target, document.ids, IGNORE)
            at += n
            bounds.append(r * length + at)
        position[r, at:] = np.arange(length - at)
        if at < length:
            bounds.append((r + 1) * length)
    columns = {"input_ids": ids, "position_ids": position, "labels": labels}
    pack = {name: torch.from_numpy(column) for name, column in columns.items()}
    edges = torch.tensor(bounds, dtype=torch.int32)
    longest = max(b - a for a, b in zip(bounds, bounds[1:]))
    return pack | {"cu_seq_lens_q": edges, "cu_seq_lens_k": edges, "max_length_q": longest, "max_length_k": longest}


class PackDataset(Dataset):
    """Map-style dataset of packs: item `i` depends on (seed, epoch, i) and the shape of that pack only.

    Args:
        source: draws documents.
        packs: number of packs of one epoch. The dataset spans `epochs` of them: item `i` is pack `i % packs` of
            epoch `i // packs`, so one sequential sampler hands out (epoch, index).
        shape_of: item -> (rows, length); lets a recipe lengthen the rows late in a run.
        pad: id of padding.
        seed: of the drawing.
        epochs: how many.
    """

    def __init__(
        self,
        source: DocumentSource,
        packs: int,
        shape_of: Callable[[int], tuple[int, int]],
        pad: int,
        seed: int = 0,
        epochs: int = 1,
    ):
        self.source, self.packs, self.shape_of, self.pad = source, packs, shape_of, pad
        self.seed, self.epochs = seed, epochs

    def __len__(self) -> int:
        return self.packs * self.epochs

    def documents(self, index: int) -> list[list[Document]]:
        """The documents of item `index`, row by row."""
        if not 0 <= index < len(self):
            raise IndexError(f"pack {index} of {len(self)}")
        epoch, pack = divmod(index, self.packs)
        rows, length = self.shape_of(index)
        return [fill_row(self.source, generator(self.seed, epoch, pack, r), length) for r in range(rows)]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rows = self.documents(index)
        return pack_rows(rows, self.shape_of(index)[1], self.pad)


def single_pack(items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Collator: a batch is one pack, packs are batches already."""
    if len(items) != 1:
        raise ValueError("one pack is one batch: set per_device_train_batch_size to 1 and change the recipe's rows")
    return items[0]
