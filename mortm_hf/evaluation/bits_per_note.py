"""Bits per note: what a model pays for the notes of the fixed windows.

Design decisions
- Total negative log2-likelihood of the generated field (all its tokens, no grammar mask) over its distinct notes:
  independent of the tokenizer. Per corpus it is the ratio of sums; the headline is the mean over corpora.
- Intervals by bootstrap over songs (clusters), inside each corpus: windows of one song are not independent.
- Windows are batched by length; padding is on the right and changes nothing for a causal model.

Knows: encoded windows, a causal language model. Must not know: how windows were made.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..models.inputs_bertm import pad_rows
from .fixed_windows import Encoded
from .intervals import FEW, ratio_by_group
from .model_answers import batches


@torch.no_grad()
def model_bits(
    model, windows: Sequence[Encoded], pad: int = 0, tokens_per_batch: int = 8192, progress: str | None = None
) -> np.ndarray:
    """Total bits of the answer of each window under a causal model (fp32 log-softmax).

    Args:
        model: a causal language model.
        windows: encoded windows.
        pad: id of padding.
        tokens_per_batch: most tokens of a batch, padding included.
        progress: title of a progress bar; `None`: no bar.

    Returns:
        `[n]` bits.
    """
    from tqdm import tqdm

    bits = np.zeros(len(windows))
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    with tqdm(total=len(windows), desc=progress, unit="window", disable=progress is None) as bar:
        for rows in batches([len(w.ids) for w in windows], len(windows), tokens_per_batch):
            ids, mask = pad_rows([windows[r].ids for r in rows], pad, device)
            answers = np.array([windows[r].answer for r in rows])
            scored = mask.cpu().numpy().astype(bool) & (np.arange(ids.shape[1]) >= answers[:, None])
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
            bits[rows] = (loss.cpu().numpy() * scored[:, 1:]).sum(axis=1) / np.log(2)
            bar.update(len(rows))
    model.train(was_training)
    return bits


def summarise(
    bits: np.ndarray,
    windows: Sequence[Encoded],
    resamples: int = 2000,
    seed: int = 0,
    against: np.ndarray | None = None,
) -> dict[str, dict[str, float]]:
    """Bits a note by corpus and their macro average, with 95 % intervals over songs.

    Args:
        bits: `[n]` total bits of each window.
        windows: the windows.
        resamples: draws of the bootstrap.
        seed: of the draws.
        against: `[n]` bits of another model: the figures are then paired differences (this minus other).

    Returns:
        `{corpus or "macro": {"bits_per_note", "low", "high", "windows", "songs", "notes"}}`.
    """
    value = bits if against is None else bits - against
    found = ratio_by_group(
        value,
        [w.notes for w in windows],
        [w.corpus for w in windows],
        [w.cluster for w in windows],
        seed=seed,
        resamples=resamples,
    )
    return {
        name: {
            "bits_per_note": entry["value"],
            "low": entry["low"],
            "high": entry["high"],
            "windows": entry["n"],
            "songs": entry["clusters"],
            "notes": int(entry["total"]),
        }
        for name, entry in found.items()
    }


def in_words(entry: dict, form: str = ".3f") -> str:
    """An entry of `summarise` as `value [low, high]`, or with the number of songs where they are too few.

    Args:
        entry: a value of `summarise`.
        form: format of the figures.
    """
    value, low, high = (format(entry[name], form) for name in ("bits_per_note", "low", "high"))
    few = entry["songs"] < FEW
    return f"{value} ({entry['songs']} songs: no interval)" if few else f"{value} [{low}, {high}]"
