"""Rendered music as mel frames: what V_MORTM learns from.

Design decisions
- Sound is rendered from the quantised songs of a store by the synthesiser, one piece a song: so many bars from a bar
  drawn by the seed, until the minutes are full. Nothing but the frames is kept (float16), and a few whole waves for
  listening are made anew when they are asked for.
- A window is a pure function of (seed, index): resuming is exact.
- A store of frames is one file, written at once; its name states what it was made from.

Knows: songs, the synthesiser, the feature extractor. Must not know: models, recipes.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from ..models.errors_mortm import DataError, MidiError
from ..models.midi_files import to_midi_score
from .packing import generator
from .score_store import ScoreStore
from .synthesis import synthesize
from .whole_files import replace_file


@dataclass(frozen=True)
class SoundPiece:
    """A piece of a song that is rendered.

    Attributes:
        path: of the song.
        corpus: of the song.
        bars: first bar, and the bar after the last.
        ends: the song ends there.
    """

    path: str
    corpus: str
    bars: tuple[int, int]
    ends: bool


@dataclass(frozen=True)
class SoundStore:
    """Rendered pieces.

    Attributes:
        frames: `[all, bins]` float16, end to end.
        edges: `[pieces + 1]` int64 first frame of each piece.
        pieces: what they are.
        skipped: `(path, reason)` of pieces that could not be rendered.
    """

    frames: np.ndarray
    edges: np.ndarray
    pieces: tuple[SoundPiece, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, index: int) -> np.ndarray:
        """Frames [n, bins] of a piece, float32."""
        return self.frames[self.edges[index] : self.edges[index + 1]].astype(np.float32)

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation of all values."""
        values = self.frames.astype(np.float32)
        return float(values.mean()), float(values.std())


def choose_pieces(store: ScoreStore, bars: int = 16, seed: int = 0) -> list[tuple[int, SoundPiece]]:
    """A piece of every song, in the order in which they are rendered.

    Args:
        store: the songs.
        bars: of a piece.
        seed: of order and place.

    Returns:
        `[(index of the song, piece)]`.
    """
    rng = generator(seed, 0x50D)
    order = rng.permutation(len(store))
    lengths = store.n_bars()
    paths, corpora = store.labels("path"), store.labels("corpus")
    chosen = []
    for index in order.tolist():
        start = int(rng.integers(0, max(1, lengths[index] - bars + 1)))
        stop = min(start + bars, int(lengths[index]))
        piece = SoundPiece(paths[index], corpora[index], (start, stop), stop == int(lengths[index]))
        chosen.append((index, piece))
    return chosen


def wave_of(store: ScoreStore, index: int, piece: SoundPiece, sampling_rate: int) -> np.ndarray:
    """A piece as sound.

    Args:
        store: the songs.
        index: of the song.
        piece: which bars of it.
        sampling_rate: in Hz.

    Returns:
        `[samples]` float32.

    Raises:
        MidiError: nothing sounds in it.
        AudioError: no soundfont.
    """
    window = store[index].score.window(*piece.bars)
    if not window.n_notes:
        raise MidiError(f"{piece.path}: bars {piece.bars[0]} to {piece.bars[1] - 1} are silent", "midi.empty")
    sound = synthesize(to_midi_score(window, markers=False), sampling_rate=sampling_rate, stereo=False)
    return sound[:, 0].astype(np.float32) / 32767


def build_sound(
    store: ScoreStore, extractor, minutes: float, cache: str | os.PathLike, bars: int = 16, seed: int = 0
) -> SoundStore:
    """Frames of rendered music, from the cache where they were made before; pieces that cannot be rendered are listed
    in `skipped`.

    Args:
        store: the songs.
        extractor: a `VMortmFeatureExtractor`.
        minutes: about how much music.
        cache: folder of finished stores.
        bars: of a piece.
        seed: of the choice of pieces.

    Raises:
        AudioError: no soundfont.
        DataError: no songs, or none that can be rendered.
    """
    if not len(store):
        raise DataError("no song to render: check the recipe's corpora against the manifest")
    stated = {"extractor": extractor.to_dict(), "minutes": minutes, "bars": bars, "seed": seed}
    stated["songs"] = store.labels("path")
    digest = hashlib.sha256(json.dumps(stated, sort_keys=True, default=str).encode()).hexdigest()[:16]
    path = Path(cache) / f"sound-{digest}.npz"
    if path.is_file():
        return _load(path)
    wanted = minutes * 60 * extractor.sampling_rate / extractor.hop_length
    parts, pieces, skipped, total = [], [], [], 0
    with tqdm(total=int(wanted), desc="rendering", unit="frame") as bar:
        for index, piece in choose_pieces(store, bars, seed):
            if total >= wanted:
                break
            try:
                frames = extractor.frames(wave_of(store, index, piece, extractor.sampling_rate))
            except MidiError as error:
                skipped.append((piece.path, str(error)))
                continue
            parts.append(frames.astype(np.float16))
            pieces.append(piece)
            total += len(frames)
            bar.update(len(frames))
    if not parts:
        raise DataError(f"no song could be rendered; the first: {skipped[0][1] if skipped else 'minutes is 0'}")
    made = SoundStore(np.concatenate(parts), np.cumsum([0, *map(len, parts)]), tuple(pieces), tuple(skipped))
    _save(made, path)
    return made


def _save(store: SoundStore, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = json.dumps([[p.path, p.corpus, list(p.bars), p.ends] for p in store.pieces])
    arrays = {"frames": store.frames, "edges": store.edges, "pieces": table, "skipped": json.dumps(store.skipped)}
    replace_file(path, lambda partial: np.savez(partial, **arrays))


def _load(path: Path) -> SoundStore:
    with np.load(path) as file:
        pieces = tuple(SoundPiece(p, c, tuple(b), e) for p, c, b, e in json.loads(str(file["pieces"])))
        skipped = tuple((name, reason) for name, reason in json.loads(str(file["skipped"])))
        return SoundStore(file["frames"], file["edges"], pieces, skipped)


class SoundWindows(Dataset):
    """Batches of windows: item i holds `input_features` and `labels` [batch, frames, bins], `attention_mask`, `ends`.

    Args:
        store: rendered pieces.
        frames: of a window, a multiple of the patch.
        batch: windows of an item.
        items: length of the data set.
        seed: item i depends on (seed, i) only.
    """

    def __init__(self, store: SoundStore, frames: int, batch: int, items: int, seed: int = 0):
        self.store, self.frames, self.batch, self.items, self.seed = store, frames, batch, items, seed
        lengths = np.diff(store.edges)
        self.share = lengths / lengths.sum()

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rng = generator(self.seed, index)
        bins = self.store.frames.shape[1]
        features = np.zeros((self.batch, self.frames, bins), np.float32)
        mask = np.zeros((self.batch, self.frames), np.int64)
        ends = np.zeros(self.batch, bool)
        for row, piece in enumerate(rng.choice(len(self.store), self.batch, p=self.share).tolist()):
            whole = self.store[piece]
            start = int(rng.integers(0, max(1, len(whole) - self.frames + 1)))
            part = whole[start : start + self.frames]
            features[row, : len(part)], mask[row, : len(part)] = part, 1
            ends[row] = self.store.pieces[piece].ends and start + self.frames >= len(whole)
        found = {"input_features": features, "labels": features.copy(), "attention_mask": mask, "ends": ends}
        return {name: torch.from_numpy(values) for name, values in found.items()}
