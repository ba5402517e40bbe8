"""How varied a model's continuations are, beside what composers wrote in the very same windows.

Knows: songs, windows, `generate`. Must not know: training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import LogitsProcessorList

from mortm_hf.data.score_store import ScoreStore
from mortm_hf.evaluation.fixed_windows import GENERATED, GIVEN, Encoded
from mortm_hf.evaluation.variety import spread_windows, variety
from mortm_hf.models.generation_mortm import MetricGrammarLogitsProcessor
from mortm_hf.models.inputs_bertm import pad_rows
from mortm_hf.models.token_codec import parse_segment


def human_variety(store: ScoreStore, windows: Sequence[Encoded], count: int) -> dict[str, float]:
    """The figures of what the composers wrote in some of the windows.

    Args:
        store: the songs.
        windows: of these songs.
        count: how many of them.
    """
    songs = {song.path: song.score for song in store.songs}
    passages = []
    for item in spread_windows(windows, count):
        start = item.window.start
        score = songs[item.window.path]
        answer = score.window(start + GIVEN, start + GIVEN + GENERATED)
        passages.append((answer, score.window(start, start + GIVEN)))
    return variety(passages)


@torch.no_grad()
def sample_answers(
    model, tokenizer, windows: Sequence[Encoded], seed: int = 0, top_p: float = 0.95, batch: int = 16
) -> list[np.ndarray]:
    """Grammatical continuations of the windows' prompts, sampled at temperature 1.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        windows: whose prompts are continued.
        seed: of the drawing.
        top_p: of the drawing.
        batch: windows that run together.

    Returns:
        Prompt and answer ids of each.
    """
    answers: list[np.ndarray] = []
    order = sorted(range(len(windows)), key=lambda i: len(windows[i].ids))
    device = next(model.parameters()).device
    limit = model.config.max_position_embeddings
    for at in range(0, len(order), batch):
        rows = [windows[i] for i in order[at : at + batch]]
        prompts = [row.ids[: row.answer] for row in rows]
        ids, mask = pad_rows(prompts, tokenizer.pad_token_id, device, side="left")
        width = ids.shape[1]
        length = min(limit, width + 2 * max(len(r.ids) - r.answer for r in rows) + 64)
        torch.manual_seed(seed + at)
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            logits_processor=LogitsProcessorList([MetricGrammarLogitsProcessor(tokenizer, None, max_length=length)]),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=top_p,
            max_length=length,
            pad_token_id=tokenizer.pad_token_id,
        ).cpu()
        answers += [row[width - r.answer :].numpy() for row, r in zip(out, rows)]
    return [answers[i] for i in np.argsort(order)]


def sample_variety(
    model, tokenizer, store: ScoreStore, windows: Sequence[Encoded], count: int, seed: int = 0
) -> dict[str, float]:
    """The figures of sampled continuations of some of the windows (the same ones as `human_variety`).

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        store: the songs.
        windows: of these songs.
        count: how many of them.
        seed: of the drawing.
    """
    picked = spread_windows(windows, count)
    songs = {song.path: song.score for song in store.songs}
    passages = []
    for item, ids in zip(picked, sample_answers(model, tokenizer, picked, seed)):
        answer = parse_segment(tokenizer.vocabulary, ids[ids != tokenizer.pad_token_id]).generated
        start = item.window.start
        if answer is not None:
            passages.append((answer, songs[item.window.path].window(start, start + GIVEN)))
    return variety(passages)
