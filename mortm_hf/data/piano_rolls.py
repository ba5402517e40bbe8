"""Piano rolls of songs in slots: what MORTM Live learns from.

Design decisions
- Rolls are made from quantised songs when they are asked for (numpy, a fraction of a millisecond a chunk); nothing is
  stored.
- Roles, not only programs, decide the slot of a track: `assign` maps the names of a corpus's tracks and the programs
  to slots, because a public corpus writes melody and piano with one program.
- A window is a pure function of (seed, index). It begins on a bar line where the bars are whole 4/4, so that the phase
  of every chunk is known; else the phase is unknown.

Knows: songs, the Live processor. Must not know: models, recipes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import Dataset

from ..models.errors_mortm import DataError
from ..models.music_names import METERS
from ..models.music_score import MetricScore
from .packing import generator
from .score_store import ScoreStore


FOUR_FOUR = METERS.index((4, 4))


def assign(score: MetricScore, slots: list[dict]) -> list[int]:
    """Slot of each track, -1 for none.

    Args:
        score: a song.
        slots: one rule a slot, each with `names` (parts of track names, any case) and / or `programs`; the first rule
            that fits a track decides.
    """
    found = []
    for track, program in enumerate(score.programs.tolist()):
        name = score.names[track].lower() if track < len(score.names) else ""
        fits = [
            index
            for index, rule in enumerate(slots)
            if any(part.lower() in name for part in rule.get("names", ())) or program in rule.get("programs", ())
        ]
        found.append(fits[0] if fits else -1)
    return found


class RollWindows(Dataset):
    """Batches of windows: `rolls`, `labels`, `attention_mask`, `phase_ids` and `play` as the model takes them.

    Args:
        store: the songs.
        processor: a `MortmLiveProcessor`.
        slots: rules of `assign`.
        chunks: of a window.
        batch: windows of an item.
        items: length of the data set.
        seed: item i depends on (seed, i) only.
        transpose: least and most semitones; drums stay.
        silence: the largest share of chunks in which the input lacks what the played slot plays (the share is drawn
            for each window, from 0 on). A model that has always been given the true past of its own part keeps
            repeating its own mistakes when it plays.

    Raises:
        DataError: no song has tracks in two slots.
    """

    def __init__(
        self, store: ScoreStore, processor, slots, chunks, batch, items, seed=0, transpose=(-5, 6), silence=0.0
    ):
        self.processor, self.chunks, self.batch, self.items = processor, chunks, batch, items
        self.seed, self.transpose, self.silence = seed, transpose, silence
        self.scores, self.slots, weights = [], [], []
        for index in range(len(store)):
            score = store[index].score
            slot = assign(score, slots)
            sounding = {slot[track] for track in score.sounding_tracks().tolist()} - {-1}
            if len(sounding) > 1:  # a part to answer, and one that answers
                self.scores.append(score)
                self.slots.append(slot)
                weights.append(score.bars.end)
        if not self.scores:
            raise DataError("no song has tracks in two slots: check the recipe's slots against the corpora")
        self.share = np.array(weights, dtype=float) / sum(weights)

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rng = generator(self.seed, index)
        songs = rng.choice(len(self.scores), self.batch, p=self.share)
        batch = stack([self.window(song, rng) for song in songs.tolist()])
        if self.silence:
            share = rng.random((self.batch, 1)) * self.silence
            quiet = torch.from_numpy(rng.random((self.batch, self.chunks)) < share)
            own = (quiet[:, :, None] & batch["play"][:, None]).repeat_interleave(2, dim=2)  # pitch and velocity
            batch["rolls"] = batch["labels"].masked_fill(own[:, :, None, None, :], 0.0)
        return batch

    def window(self, song: int, rng: np.random.Generator, start_bar: int | None = None, shift: int | None = None):
        """One window of a song.

        Args:
            song: index among the songs that have two slots.
            rng: decides what is not given.
            start_bar: first bar.
            shift: semitones.

        Returns:
            Rolls `[chunks, ...]`, mask, phases, and `[slots]` bool the slot that is played.
        """
        score, ticks = self.scores[song], self.chunks * self.processor.chunk_ticks
        if start_bar is None:
            last = int(np.searchsorted(score.bars.start, max(0, score.bars.end - ticks), side="right"))
            start_bar = int(rng.integers(0, max(1, last)))
        if shift is None:
            shift = int(rng.integers(self.transpose[0], self.transpose[1] + 1))
        first = int(score.bars.start[start_bar])
        stop_bar = min(int(np.searchsorted(score.bars.start, first + ticks)), score.n_bars)
        part = score.window(start_bar, stop_bar)
        slot = np.asarray(self.slots[song])[part.track]
        keep = (slot >= 0) & (part.onset < ticks)
        pitch = part.pitch + np.where(part.programs[part.track] < 128, shift, 0)
        keep &= (pitch >= 0) & (pitch < 128)
        length = np.minimum(part.duration, ticks - part.onset)
        columns = (slot, part.onset, pitch, length, part.velocity)
        roll = self.processor.notes_to_roll(*(column[keep] for column in columns))
        rolls = np.zeros((self.chunks, *self.processor.to_chunks(roll).shape[1:]), np.float32)
        real = min(self.chunks, -(-min(int(score.bars.end) - first, ticks) // self.processor.chunk_ticks))
        made = self.processor.to_chunks(roll)[: self.chunks]
        rolls[: len(made)] = made
        mask = (np.arange(self.chunks) < real).astype(np.int64)
        per_bar, rest = divmod(self.processor.ticks_per_measure, self.processor.chunk_ticks)
        regular = (part.bars.meter == FOUR_FOUR).all() and not part.bars.irregular.any() and not rest
        phases = np.arange(self.chunks) % per_bar if regular else np.full(self.chunks, per_bar if not rest else 0)
        present = np.unique(slot[keep])
        play = np.zeros(self.processor.num_slots, bool)
        play[rng.choice(present) if len(present) else 0] = True
        return rolls, mask, phases.astype(np.int64), play


def stack(windows) -> dict[str, torch.Tensor]:
    """Windows -> a batch."""
    rolls, mask, phases, play = (torch.from_numpy(np.stack(column)) for column in zip(*windows))
    return {"rolls": rolls, "labels": rolls, "attention_mask": mask, "phase_ids": phases, "play": play}
