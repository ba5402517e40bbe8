"""Answers of a masked policy to prompts: under a seed of their own, and as music.

Design decisions
- Sampling here never disturbs a run: the random numbers are put back as they were.
- Prompts are sampled in batches of similar length; seed and place of the batch decide the random numbers, so that two
  policies compared on the same prompts use the same ones.

Knows: policies, prompts, the tokenizer. Must not know: TRL, rewards.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...models.midi_files import to_midi_score
from ...models.music_score import append_bars
from ...models.token_codec import parse_segment
from ...models.token_vocabulary import TokenKind
from .policy import MortmPolicy
from .prompts import Prompt, left_padded


@torch.no_grad()
def sample(
    policy: MortmPolicy,
    tokenizer,
    prompts: Sequence[Prompt],
    response_length: int,
    seed: int = 0,
    batch: int = 32,
    temperature: float = 1.0,
) -> list[np.ndarray]:
    """The answer's ids (without padding) of every prompt, sampled from the masked policy under a seed of their own.

    Rows are sampled in batches of prompts of similar length; the random numbers depend on seed and batch alone.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
    device = next(policy.parameters()).device
    found: list[np.ndarray] = [np.zeros(0, np.int64)] * len(prompts)
    kept = torch.get_rng_state()
    kept_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    try:
        for at in range(0, len(order), batch):
            rows = order[at : at + batch]
            ids, mask = left_padded([prompts[i] for i in rows], tokenizer.pad_token_id)
            torch.manual_seed(seed * 100_003 + at)
            out = policy.generate(
                input_ids=torch.from_numpy(ids).to(device),
                attention_mask=torch.from_numpy(mask).long().to(device),
                max_new_tokens=response_length,
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
            answers = out[:, ids.shape[1] :].cpu().numpy()
            for i, row in zip(rows, answers):
                found[i] = row[row != tokenizer.pad_token_id]
    finally:
        torch.set_rng_state(kept)
        if kept_cuda is not None:
            torch.cuda.set_rng_state_all(kept_cuda)
    return found


def passage(tokenizer, prompt: np.ndarray, answer: np.ndarray):
    """The given bars and the answer as one `symusic.Score`, and how many bars were given."""
    segment = parse_segment(tokenizer.vocabulary, np.concatenate([prompt, answer]))
    past, new = segment.blocks.get(int(TokenKind.PAST)), segment.generated
    if past is None:
        return to_midi_score(new), 0
    return to_midi_score(append_bars(past, new)), past.n_bars
