"""Seeded sampling and streaming for `generate`.

Design decisions
- Sampling is the Gumbel-max form of `softmax(logits / temperature)` after the usual filters. The noise is a pure
  function of (seed, stream, position): the same seed gives the same tokens whatever else is in the batch, no global
  random state is read or changed, and assisted decoding draws the same tokens.

Knows: `generate`'s processor and streamer interfaces. Must not know: prompts, songs, models.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import LogitsProcessor
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from .generation_mortm import BarStreamer


NOISE_BLOCK = 64  # positions whose noise is drawn at once
SAMPLING_NAMES = ("temperature", "top_k", "top_p", "min_p", "typical_p")


class FiniteLogits(LogitsProcessor):
    """Half-precision overflow (inf, nan) becomes large finite scores, so that sampling never fails on it."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        return torch.nan_to_num(scores.float(), nan=-1e4, posinf=1e4, neginf=-1e4)


class SeededChoice(LogitsProcessor):
    """Adds Gumbel noise, so that the arg max of the scores is a sample of their softmax (Gumbel-max trick).

    Args:
        seeds: one a row.
        stream: a further number, another one for each call with one seed.
        start: length of the prompts in tokens.
    """

    def __init__(self, seeds: Sequence[int], stream: int, start: int):
        self.seeds, self.stream, self.start = list(seeds), stream, start
        self._block, self._noise = -1, None

    def block(self, index: int, size: int) -> torch.Tensor:
        """The noise of one block of positions.

        Args:
            index: of the block, counted from the first new token.
            size: width of the scores.

        Returns:
            [rows, `NOISE_BLOCK`, size] fp32.
        """
        if index != self._block:
            noise = torch.empty(len(self.seeds), NOISE_BLOCK, size)
            for row, seed in enumerate(self.seeds):
                mixed = np.random.SeedSequence([seed, self.stream, index]).generate_state(1, np.uint64)
                noise[row].exponential_(generator=torch.Generator().manual_seed(int(mixed[0] >> np.uint64(1))))
            self._block, self._noise = index, noise.clamp_min_(1e-30).log_().neg_()
        return self._noise

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        index, place = divmod(input_ids.shape[1] - self.start, NOISE_BLOCK)
        if self.block(index, scores.shape[1]).device != scores.device:
            self._noise = self._noise.to(scores.device)
        return scores + self._noise[:, place]


def sampling_filters(parameters: dict) -> list[LogitsProcessor]:
    """The filters that `generate` itself applies when it samples, in its order."""
    found = []
    if parameters.get("temperature") not in (None, 1.0):
        found.append(TemperatureLogitsWarper(float(parameters["temperature"])))
    if parameters.get("top_k"):
        found.append(TopKLogitsWarper(int(parameters["top_k"])))
    if parameters.get("top_p") is not None and parameters["top_p"] < 1.0:
        found.append(TopPLogitsWarper(float(parameters["top_p"])))
    if parameters.get("min_p") is not None:
        found.append(MinPLogitsWarper(float(parameters["min_p"])))
    if parameters.get("typical_p") is not None and parameters["typical_p"] < 1.0:
        found.append(TypicalLogitsWarper(float(parameters["typical_p"])))
    return found


class BarListener(BaseStreamer):
    """Calls a function with every finished bar at once, and hands all tokens on to a streamer of the caller.

    Args:
        tokenizer: `MortmTokenizer`.
        on_bar: called with each bar that `BarStreamer` yields, or None.
        streamer: of the caller, or None.
    """

    def __init__(self, tokenizer, on_bar: Callable | None, streamer):
        self.bars, self.on_bar, self.streamer = BarStreamer(tokenizer, timeout=0), on_bar, streamer

    def _drain(self) -> None:
        while True:
            try:
                bar = next(self.bars)
            except (queue.Empty, StopIteration):
                return
            self.on_bar(bar)

    def put(self, value) -> None:
        if self.streamer is not None:
            self.streamer.put(value)
        if self.on_bar is not None:
            self.bars.put(value)
            self._drain()

    def end(self) -> None:
        if self.streamer is not None:
            self.streamer.end()
        if self.on_bar is not None:
            self.bars.end()
            self._drain()
