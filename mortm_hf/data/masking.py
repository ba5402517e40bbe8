"""Masks made for music: whole notes, whole bars, one attribute of many notes, single tokens.

Design decisions
- A masked token alone is a poor task in this language: of `s_48 p_60 d_24` grammar and neighbours nearly determine
  any one. So a *way* of masking is drawn for every document, and its units are what a musician would take away: a
  note with all its tokens, a bar with all its notes, or one attribute (onset, pitch, duration, velocity) of all notes
  in a run of bars, up to the whole document. Single tokens remain one way, and the only one that hides header fields.
- Structure is never hidden (`<SME>`, `<ESEQ>`, block markers, `<EOS>`, `<TE>`, padding): it shows where the notes of a
  hidden bar belong, and predicting it teaches nothing.
- Of the chosen units 80 % become `<MASK>`, 10 % are exchanged and 10 % stay (BERT's shares), whole units at a time.
  An exchanged token becomes a token of its own kind that stands elsewhere in the batch: a random id out of the whole
  table would be seen at once.
- Everything is arithmetic on flat arrays of a batch: no loop over tokens, notes, bars or documents. All randomness
  comes from the generator that is given, so a masked pack is a pure function of (seed, epoch, index).

Knows: kinds of tokens, bounds of documents. Must not know: models, training, MIDI.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from ..models.token_vocabulary import CONTROLS, MetricVocabulary, TokenKind
from .packing import IGNORE, PackDataset, generator


ATTRIBUTES = {
    "onset": TokenKind.ONSET,
    "pitch": TokenKind.PITCH,
    "duration": TokenKind.DURATION,
    "velocity": TokenKind.VELOCITY,
}
WAYS = ("token", "note", "bar", *ATTRIBUTES)
NOTE_KINDS = tuple(ATTRIBUTES.values())
# what single-token masking may hide: notes, chords and what the header and the bars state of the music
CONTENT_KINDS = (
    *NOTE_KINDS,
    TokenKind.CHORD_ROOT,
    TokenKind.CHORD_QUALITY,
    TokenKind.CHORD_BASS,
    *(TokenKind[control.kind] for control in CONTROLS if control.masked),
)


@dataclass(frozen=True)
class MaskingRecipe:
    """How documents are masked.

    Args:
        ways: weight of each way (`WAYS`); a document whose drawn way finds nothing to hide falls back to "token".
        rate: share of the units hidden by "token", "note" and "bar" (at least one unit).
        attribute_span: smallest and largest share of a document's bars whose notes lose the attribute.
        mask: share of the hidden units that become `<MASK>`.
        exchange: share of the hidden units that are exchanged; the rest stays.
    """

    ways: Mapping[str, float] = field(
        default_factory=lambda: {
            "note": 35.0,
            "bar": 20.0,
            "token": 15.0,
            "pitch": 12.0,
            "onset": 8.0,
            "duration": 8.0,
            "velocity": 2.0,
        }
    )
    rate: float = 0.2
    attribute_span: tuple[float, float] = (0.25, 1.0)
    mask: float = 0.8
    exchange: float = 0.1

    def __post_init__(self):
        unknown = set(self.ways) - set(WAYS)
        if unknown or not self.ways or min(self.ways.values()) < 0 or not sum(self.ways.values()) > 0:
            raise ValueError(
                f"masking ways must be weights of {', '.join(WAYS)} with a positive sum, got {dict(self.ways)}"
            )
        low, high = self.attribute_span
        if not (0 < self.rate <= 1 and 0 < low <= high <= 1):
            raise ValueError("masking rate and attribute_span must lie in (0, 1]")
        if not (self.mask >= 0 and self.exchange >= 0 and self.mask + self.exchange <= 1):
            raise ValueError("masking shares mask and exchange must be at least 0 and at most 1 together")


@dataclass(frozen=True)
class _Layout:
    """Where every token of a flat batch stands.

    Attributes:
        kind: `[n]` kind of each token.
        document: `[n]` running number of its document in the batch.
        bar: `[n]` running number of its bar in the batch.
        note: `[n]` running number of its note (an onset token and all that follows it), -1 outside notes.
        first_bar: `[documents]` number of the document's first bar.
        bars: `[documents]` how many bars it has.
    """

    kind: np.ndarray
    document: np.ndarray
    bar: np.ndarray
    note: np.ndarray
    first_bar: np.ndarray
    bars: np.ndarray


def _layout(kind: np.ndarray, starts: np.ndarray) -> _Layout:
    """Numbers of documents, bars and notes for tokens of these kinds; `starts` are the documents' first positions."""
    n = len(kind)
    first = np.zeros(n, dtype=np.int64)
    first[starts] = 1
    document = np.cumsum(first) - 1
    # bars of all tracks one after the other; what stands before a document's first bar is a bar of its own
    bar = np.cumsum((kind == TokenKind.BAR) | (first == 1)) - 1
    in_note = np.isin(kind, NOTE_KINDS)
    # an onset without a pitch behind it begins a chord, not a note
    onset = kind == TokenKind.ONSET
    followed = np.append(kind[1:] == TokenKind.PITCH, False)
    begins = onset & followed
    in_note &= ~(onset & ~followed)
    in_note[1:] &= ~((kind[1:] == TokenKind.DURATION) & (kind[:-1] == TokenKind.METER))  # the length of a cut bar
    note = np.where(in_note, np.cumsum(begins) - 1, -1)
    first_bar = bar[starts]
    bars = np.diff(np.append(first_bar, bar[-1] + 1))
    return _Layout(kind, document, bar, note, first_bar, bars)


def _per_document_choice(values: np.ndarray, group: np.ndarray, rate: float, groups: int) -> np.ndarray:
    """Which units are hidden: those whose random number is below `rate`, and always the smallest of each document.

    Args:
        values: `[units]` random numbers.
        group: `[units]` document of each.
        rate: share of the units that are hidden.
        groups: number of documents.
    """
    least = np.full(groups, np.inf)
    np.minimum.at(least, group, values)
    return (values < rate) | (values == least[group])


def choose_tokens(
    vocabulary: MetricVocabulary, ids: np.ndarray, starts: np.ndarray, recipe: MaskingRecipe, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which tokens of a flat batch are hidden.

    Args:
        vocabulary: the token table.
        ids: `[n]` token ids of all documents one after the other (padding counts as a document of its own).
        starts: `[documents]` first position of each document, ascending, beginning with 0.
        recipe: how to mask.
        rng: source of every choice.

    Returns:
        `[n]` bool hidden; `[n]` int64 unit of each token (its note, bar or itself: exchanged and kept together);
        `[documents]` way of each document as an index into `WAYS`.
    """
    n, documents = len(ids), len(starts)
    place = _layout(vocabulary.kind[ids], np.asarray(starts, dtype=np.int64))
    weights = np.array([float(recipe.ways.get(way, 0.0)) for way in WAYS])
    way = np.searchsorted(np.cumsum(weights / weights.sum())[:-1], rng.random(documents), side="right")

    content = np.isin(place.kind, CONTENT_KINDS)
    in_note = place.note >= 0
    # a document without notes (or without velocities) cannot lose them
    has = np.zeros((len(WAYS), documents), dtype=bool)
    has[WAYS.index("token")] = True
    for name, where in (("note", in_note), ("bar", in_note)):
        has[WAYS.index(name)] = np.bincount(place.document[where], minlength=documents) > 0
    for name, kind in ATTRIBUTES.items():
        where = in_note & (place.kind == kind)
        has[WAYS.index(name)] = np.bincount(place.document[where], minlength=documents) > 0
    way = np.where(has[way, np.arange(documents)], way, WAYS.index("token"))
    way_of = way[place.document]

    hidden = np.zeros(n, dtype=bool)
    unit = np.arange(n, dtype=np.int64)
    for name, where, number in (
        ("token", content, unit),
        ("note", in_note, place.note),
        ("bar", in_note, place.bar),
    ):
        rows = np.flatnonzero(where & (way_of == WAYS.index(name)))
        found, first, back = np.unique(number[rows], return_index=True, return_inverse=True)
        if not len(found):
            continue
        owner = place.document[rows[first]]
        chosen = _per_document_choice(rng.random(len(found)), owner, recipe.rate, documents)
        hidden[rows] = chosen[back]
        unit[rows] = rows[first][back]

    low, high = recipe.attribute_span
    span = np.ceil(place.bars * rng.uniform(low, high, documents)).astype(np.int64)
    begin = place.first_bar + np.floor((place.bars - span + 1) * rng.random(documents)).astype(np.int64)
    inside = (place.bar >= begin[place.document]) & (place.bar < (begin + span)[place.document])
    for name, kind in ATTRIBUTES.items():
        rows = in_note & (place.kind == kind) & (way_of == WAYS.index(name))
        here = rows & inside
        # a span without such a note: the whole document instead
        empty = np.bincount(place.document[here], minlength=documents) == 0
        hidden |= here | (rows & empty[place.document])
    return hidden, unit, way


def mask_tokens(
    vocabulary: MetricVocabulary,
    ids: np.ndarray,
    starts: np.ndarray,
    recipe: MaskingRecipe,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """A flat batch with hidden tokens, and what is to be predicted.

    Args:
        vocabulary: the token table.
        ids: `[n]` token ids of all documents one after the other (padding counts as a document of its own).
        starts: `[documents]` first position of each document, ascending, beginning with 0.
        recipe: how to mask.
        rng: source of every choice.

    Returns:
        Masked ids and labels, both `[n]` int64; labels are -100 where nothing is to be predicted.

    Raises:
        VocabularyError: the table has no `<MASK>`.
    """
    ids = np.asarray(ids, dtype=np.int64)
    hidden, unit, _ = choose_tokens(vocabulary, ids, starts, recipe, rng)
    labels = np.where(hidden, ids, IGNORE)
    fate = rng.random(len(ids))[unit]  # the tokens of one unit share theirs
    out = ids.copy()
    out[hidden & (fate < recipe.mask)] = vocabulary["<MASK>"]
    rows = np.flatnonzero(hidden & (fate >= recipe.mask) & (fate < recipe.mask + recipe.exchange))
    if len(rows):
        kind = vocabulary.kind[ids]
        order = np.argsort(kind, kind="stable")
        counts = np.bincount(kind, minlength=int(kind.max()) + 1)
        first = np.cumsum(counts) - counts
        pick = first[kind[rows]] + np.floor(rng.random(len(rows)) * counts[kind[rows]]).astype(np.int64)
        out[rows] = ids[order[pick]]
    return out, labels


class MaskedPackDataset(Dataset):
    """Packs with masks: item `i` depends on (seed, epoch, i) only, so a resumed run sees the same.

    Documents are those of the packs; labels of the packs are replaced by those of the masks.

    Args:
        packs: the packs.
        vocabulary: the token table.
        recipe: how to mask.
    """

    def __init__(self, packs: PackDataset, vocabulary: MetricVocabulary, recipe: MaskingRecipe):
        self.packs, self.vocabulary, self.recipe = packs, vocabulary, recipe

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        pack = dict(self.packs[index])
        epoch, number = divmod(index, self.packs.packs)
        rng = generator(self.packs.seed, epoch, number, 0x3A5C)
        shape = pack["input_ids"].shape
        starts = pack["cu_seq_lens_q"].numpy()[:-1]
        ids, labels = mask_tokens(self.vocabulary, pack["input_ids"].numpy().reshape(-1), starts, self.recipe, rng)
        pack["input_ids"] = torch.from_numpy(ids).reshape(shape)
        pack["labels"] = torch.from_numpy(labels).reshape(shape)
        return pack


class MusicMaskingCollator:
    """Collator for `Trainer`: documents (lists of ids) -> padded, masked batch.

    Args:
        tokenizer: a `MortmTokenizer` (its table and its padding).
        recipe: how to mask; by default `MaskingRecipe()`.
        seed: the n-th batch of a worker depends on (seed, worker, n) and the documents only.
        pad_to_multiple_of: as in transformers' collators.

    A batch holds `input_ids`, `attention_mask` and `labels`, `[batch, longest]` int64.
    """

    def __init__(self, tokenizer, recipe: MaskingRecipe | None = None, seed: int = 0, pad_to_multiple_of=None):
        self.tokenizer, self.recipe, self.seed = tokenizer, recipe or MaskingRecipe(), seed
        self.pad_to_multiple_of = pad_to_multiple_of
        self.calls = 0

    def __call__(self, examples) -> dict[str, torch.Tensor]:
        rows = [np.asarray(e["input_ids"] if isinstance(e, Mapping) else e, dtype=np.int64) for e in examples]
        if not rows or min(map(len, rows)) == 0:
            raise ValueError("cannot mask an empty batch or an empty document")
        worker = get_worker_info()
        rng = generator(self.seed, 0 if worker is None else worker.id + 1, self.calls)
        self.calls += 1
        sizes = np.array([len(row) for row in rows])
        ends = np.cumsum(sizes)
        ids, labels = mask_tokens(self.tokenizer.vocabulary, np.concatenate(rows), ends - sizes, self.recipe, rng)
        batch = self.tokenizer.pad(
            {"input_ids": [row.tolist() for row in np.split(ids, ends[:-1])]},
            pad_to_multiple_of=self.pad_to_multiple_of,
            return_tensors="pt",
        )
        padded = torch.full_like(batch["input_ids"], IGNORE)
        padded[batch["attention_mask"].bool()] = torch.from_numpy(labels)
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": padded}


__all__ = ["WAYS", "MaskedPackDataset", "MaskingRecipe", "MusicMaskingCollator", "choose_tokens", "mask_tokens"]
