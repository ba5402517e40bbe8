"""Wrong notes to be found: pitches of packed windows exchanged for others, and which ones they were.

Design decisions
- The task of ELECTRA (Clark et al. 2020) with notes as units: every pitched note has a target, whether it was
  exchanged, so an encoder learns which notes go together from far less music than from one label a window.
- Where the new pitches come from is handed in: a step or a leap of at most a fifth, or (`ReplacedPackDataset` with
  `propose`) what a generator would have written there, so that the notes to be found are those of a machine.
- A pitch stays between its neighbours in the chord that it belongs to, and no two neighbours move, so that the order
  of a chord's notes gives nothing away. How many notes are wrong is drawn for every document. Drums are left alone.
- Notes are exchanged in tracks as a generator writes them; then the windows are condensed, as a critic reads them. Of
  notes that fall together, one that was there before counts.
- All randomness comes from (seed, epoch, index), as in `masking`.

Knows: kinds of tokens, bounds of documents, windows. Must not know: models, training, MIDI.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from ..models.inputs_bertm import bare_segment, clip_durations, condense
from ..models.music_names import DRUMS
from ..models.token_codec import parse_segment
from ..models.token_vocabulary import MetricVocabulary, TokenKind
from .packing import IGNORE, Document, PackDataset, generator, pack_rows
from .pitched_notes import pitched_notes


LABELS = ("right", "wrong")
_STEPS = np.array([1, 2, 3, 4, 5, 6, 7])
_CHANCES = np.array([4, 2, 1, 1, 1, 1, 1]) / 11


@dataclass(frozen=True)
class ReplacingRecipe:
    """How notes of documents are exchanged.

    Attributes:
        rate: least and most share of a document's pitched notes that are exchanged.
        generator: a checkpoint of MORTM (folder, or "starter") that writes the new pitches; "": small steps and leaps.
        temperature: least and most temperature of the generator, drawn for every document.

    Raises:
        ValueError: bounds out of order or out of range.
    """

    rate: tuple[float, float] = (0.03, 0.25)
    generator: str = ""
    temperature: tuple[float, float] = (0.8, 1.2)

    def __post_init__(self):
        for name, most in (("rate", 1.0), ("temperature", np.inf)):
            bounds = getattr(self, name)
            if np.shape(bounds) != (2,) or not 0 < bounds[0] <= bounds[1] < most:
                raise ValueError(f"{name} must be two numbers in (0, {most}), the smaller first, got {bounds}")


def replace_pitches(
    vocabulary: MetricVocabulary,
    ids: np.ndarray,
    starts: np.ndarray,
    recipe: ReplacingRecipe,
    rng: np.random.Generator,
    logits: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Exchange pitches of a flat batch.

    Args:
        vocabulary: the token table.
        ids: `[n]` token ids of all documents one after the other.
        starts: `[documents]` their first positions, ascending, beginning with 0.
        recipe: how many notes, and by what.
        rng: decides which.
        logits: `[n, vocabulary]` a generator's, of the token behind each position; `None`: steps and leaps.

    Returns:
        Changed ids and labels, both `[n]` int64. Labels stand on the pitches of pitched tracks: 1 where it was
        exchanged, else 0; -100 everywhere else.
    """
    ids = np.asarray(ids, dtype=np.int64)
    notes = pitched_notes(vocabulary, ids)
    note, pitch, chord = notes.at, notes.pitch, notes.chord
    labels = np.full(len(ids), IGNORE, dtype=np.int64)
    out = ids.copy()
    if not len(note):
        return out, labels
    labels[note] = 0
    document = np.searchsorted(starts, note, side="right") - 1
    rate = rng.uniform(*recipe.rate, len(starts))[document]
    chosen = rng.random(len(note)) < rate

    low = np.where(np.append(False, chord), np.append(-1, pitch[:-1]), -1)
    high = np.where(np.append(chord, False), np.append(pitch[1:], 128), 128)
    chosen[1:] &= ~(chord & chosen[:-1])
    if logits is None:
        step = rng.choice(_STEPS, len(note), p=_CHANCES) * rng.choice((-1, 1), len(note))
        up = (pitch + step > low) & (pitch + step < high)
        moved = np.where(up, pitch + step, pitch - step)  # where one way is barred, the other
        wrong = chosen & (moved > low) & (moved < high)
    else:
        heat = rng.uniform(*recipe.temperature, len(starts))[document]
        scores = logits[note - 1][:, vocabulary.lookup(TokenKind.PITCH)] / heat[:, None]
        allowed = (np.arange(128) > low[:, None]) & (np.arange(128) < high[:, None])
        moved = np.where(allowed, scores + rng.gumbel(size=scores.shape), -np.inf).argmax(1)
        wrong = chosen & (moved != pitch)
    out[note[wrong]] = vocabulary.lookup(TokenKind.PITCH)[moved[wrong]]
    labels[note[wrong]] = 1
    return out, labels


def condensed_documents(
    vocabulary: MetricVocabulary, ids: np.ndarray, labels: np.ndarray, starts: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Every document of a flat batch with all pitched tracks in one; those without notes are left out.

    Args:
        vocabulary: the token table.
        ids: `[n]` as `replace_pitches` gives them.
        labels: `[n]` as `replace_pitches` gives them.
        starts: `[documents]` first positions.

    Returns:
        `[(ids, labels)]`, a document each.
    """
    found = []
    for first, last in zip(starts, [*starts[1:], len(ids)]):
        music = parse_segment(vocabulary, ids[first:last]).generated
        kind = vocabulary.kind[ids[first:last]]
        marks = labels[first:last][kind == TokenKind.PITCH]
        if music is None or not music.n_notes or len(marks) != music.n_notes:
            continue
        written = condense(clip_durations(music))
        row = bare_segment(vocabulary, written)
        pitched = marks >= 0
        wrong = np.ones(music.bars.end * 128, dtype=np.int64)
        np.minimum.at(wrong, music.onset[pitched] * 128 + music.pitch[pitched], marks[pitched])
        target = np.full(len(row), IGNORE, dtype=np.int64)
        target[vocabulary.kind[row] == TokenKind.PITCH] = np.where(
            written.programs[written.track] == DRUMS, IGNORE, wrong[written.onset * 128 + written.pitch]
        )
        found.append((row, target))
    return found


class ReplacedPackDataset(Dataset):
    """Packs of bare windows in tracks with wrong notes, condensed: item `i` depends on (seed, epoch, i) only.

    Args:
        packs: bare windows in tracks.
        vocabulary: the token table.
        recipe: how notes are exchanged.
        propose: pack -> `[rows, length, vocabulary]` logits of a generator; `None`: steps and leaps.
    """

    def __init__(
        self,
        packs: PackDataset,
        vocabulary: MetricVocabulary,
        recipe: ReplacingRecipe,
        propose: Callable | None = None,
    ):
        self.packs, self.vocabulary, self.recipe, self.propose = packs, vocabulary, recipe, propose

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        pack = self.packs[index]
        epoch, number = divmod(index, self.packs.packs)
        rng = generator(self.packs.seed, epoch, number, 0x5E1D)
        logits = None if self.propose is None else self.propose(pack).reshape(-1, len(self.vocabulary))
        ids, starts = pack["input_ids"].numpy().reshape(-1), pack["cu_seq_lens_q"].numpy()[:-1]
        replaced, labels = replace_pitches(self.vocabulary, ids, starts, self.recipe, rng, logits)
        rows, length = pack["input_ids"].shape
        written, marks = [], []
        for r in range(rows):
            here = starts[(starts >= r * length) & (starts < (r + 1) * length)]
            part = slice(r * length, (r + 1) * length)
            documents = condensed_documents(self.vocabulary, replaced[part], labels[part], here - r * length)
            written.append([Document(row, target >= 0, 0, "bare", 0) for row, target in documents])
            marks += [target[target >= 0] for _, target in documents]
        pack = pack_rows(written, length, self.packs.pad)
        pack["labels"][pack["labels"] != IGNORE] = torch.from_numpy(np.concatenate([*marks, np.zeros(0, np.int64)]))
        return pack


__all__ = ["LABELS", "ReplacedPackDataset", "ReplacingRecipe", "condensed_documents", "replace_pitches"]
