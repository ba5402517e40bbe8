"""How varied generated bars are, beside what a human wrote on the same windows.

Design decisions
- Figures are taken from quantised notes, never from tokens, so that any model can be measured.
- The human figures come from the very windows that the samples continue; a figure is read as a difference, since
  neither more nor less is better by itself.

Knows: quantised music, windows, `generate`. Must not know: training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import LogitsProcessorList

from ..data.labelled_windows import evenly
from ..data.score_store import ScoreStore
from ..models.generation_mortm import MetricGrammarLogitsProcessor
from ..models.inputs_bertm import pad_rows
from ..models.music_names import DRUMS
from ..models.music_score import MetricScore
from ..models.token_codec import parse_segment
from .fixed_windows import GENERATED, GIVEN, Encoded


def spread_windows(windows: Sequence[Encoded], count: int) -> list[Encoded]:
    """Windows taken from the corpora in turn, evenly over each.

    Args:
        windows: encoded windows.
        count: how many.
    """
    groups: dict[str, list[Encoded]] = {}
    for window in windows:
        groups.setdefault(window.corpus, []).append(window)
    share = max(1, -(-count // max(len(groups), 1)))
    return [window for group in groups.values() for window in evenly(group, share)][:count]


def variety(passages: Sequence[tuple[MetricScore, MetricScore | None]]) -> dict[str, float]:
    """Figures of (answer, past) passages.

    Returns:
        `notes_per_bar`; `pitch_class_entropy` (bits, mean over passages, drums left out); `distinct_bars` (share of
        track bars with notes that differ from every earlier bar of their passage); `copied_bars` (share that equals a
        bar of the same place in the past's tracks); `distinct_4grams` (share of distinct among all successions of
        four (interval, onset step) in a track, pooled).
    """
    entropy, bars, notes, fresh, copied, total = [], 0, 0, 0, 0, 0
    grams: list[np.ndarray] = []
    for answer, past in passages:
        bars += answer.n_bars
        notes += answer.n_notes
        pitched = answer.programs[answer.track] != DRUMS if answer.n_notes else np.zeros(0, bool)
        if pitched.any():
            share = np.bincount(answer.pitch[pitched] % 12, minlength=12) / pitched.sum()
            share = share[share > 0]
            entropy.append(float(-(share * np.log2(share)).sum()))
        before = set() if past is None else {content for _, content in _bars(past)}
        seen: set[bytes] = set()
        for _, content in _bars(answer):
            total += 1
            fresh += content not in seen
            copied += content in before
            seen.add(content)
        grams.append(_fourgrams(answer))
    pooled = np.concatenate(grams) if grams else np.zeros((0, 6), np.int64)
    return {
        "notes_per_bar": notes / max(bars, 1),
        "pitch_class_entropy": float(np.mean(entropy)) if entropy else 0.0,
        "distinct_bars": fresh / max(total, 1),
        "copied_bars": copied / max(total, 1),
        "distinct_4grams": len(np.unique(pooled, axis=0)) / max(len(pooled), 1),
    }


def _bars(score: MetricScore):
    """(cell, content) of every track bar with notes; equal contents are equal bars, whatever the track."""
    bar = score.bar_of_notes()
    cell = score.track * score.n_bars + bar
    columns = np.stack([score.onset - score.bars.start[bar], score.pitch, score.duration], axis=1)
    edges = np.flatnonzero(np.append(True, cell[1:] != cell[:-1])) if len(cell) else []
    for first, last in zip(edges, np.append(edges[1:], len(cell)) if len(cell) else []):
        yield int(cell[first]), columns[first:last].tobytes()


def _fourgrams(score: MetricScore) -> np.ndarray:
    """`[n, 6]` three successive (interval, onset step) pairs inside each track."""
    if score.n_notes < 4:
        return np.zeros((0, 6), np.int64)
    steps = np.stack([np.diff(score.pitch), np.diff(score.onset)], axis=1)
    same = score.track[3:] == score.track[:-3]
    return np.concatenate([steps[:-2], steps[1:-1], steps[2:]], axis=1)[same]


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
