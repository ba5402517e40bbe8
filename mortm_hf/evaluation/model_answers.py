"""Answers of a model to many prompts, for measuring: batched, seeded row by row, resumable.

Design decisions
- The noise of a row is a pure function of its seed (`generation_sampling.SeededChoice`), so an answer does not depend
  on what else was in its batch, and a run that was cut off goes on where it was.
- Rows of one length run together; every finished batch is written to the cache (temporary name, then rename).
- On a CPU the fast decoder runs where it serves the model (`generation_cpu`): the same greedy choice in less time.
- The grammar is a switch: with it every answer is legal by construction; without it what the model itself has learnt
  shows.

Knows: ids, plans, `generate`. Must not know: music, metrics.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LogitsProcessorList

from ..data.whole_files import replace_file
from ..models.generation_cpu import FastDecoder, refusal
from ..models.generation_mortm import MetricGrammarLogitsProcessor
from ..models.generation_sampling import FiniteLogits, SeededChoice, sampling_filters
from ..models.inputs_bertm import pad_rows


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        do_sample: draw; else take the likeliest token, or the best of `num_beams` beams.
        temperature: of the drawing.
        top_k: only so many likeliest tokens; 0: all.
        top_p: only the likeliest tokens up to this share.
        min_p: only tokens of at least this share of the likeliest one's; `None`: all.
        typical_p: only the most typical tokens up to this share.
        num_beams: 1 is greedy.
        grammar: constrain answers by the grammar.
    """

    do_sample: bool = True
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float | None = None
    typical_p: float = 1.0
    num_beams: int = 1
    grammar: bool = True

    def __str__(self) -> str:
        if not self.do_sample:
            name = "greedy" if self.num_beams == 1 else f"{self.num_beams} beams"
        else:
            named = {"top-k": self.top_k or None, "top-p": self.top_p if self.top_p < 1 else None}
            named |= {"min-p": self.min_p, "typical": self.typical_p if self.typical_p < 1 else None}
            name = ", ".join([f"temperature {self.temperature:g}", *(f"{k} {v:g}" for k, v in named.items() if v)])
        return name if self.grammar else f"{name}, no grammar"


@dataclass(frozen=True)
class Ask:
    """One prompt.

    Attributes:
        ids: up to the marker of the answer.
        plan: its `GenerationPlan`.
        room: most tokens of the answer.
    """

    ids: np.ndarray
    plan: object
    room: int


def batches(sizes: Sequence[int], rows: int, tokens: int) -> list[np.ndarray]:
    """Indices of rows that run together: neighbours in size.

    Args:
        sizes: tokens of each row.
        rows: most rows of a batch.
        tokens: most tokens of a batch, padding included (one row at least).
    """
    order = np.argsort(np.asarray(sizes, dtype=np.int64), kind="stable")
    found, at = [], 0
    while at < len(order):
        count = 1
        while at + count < len(order) and count < rows and (count + 1) * int(sizes[order[at + count]]) <= tokens:
            count += 1
        found.append(order[at : at + count])
        at += count
    return found


@torch.no_grad()
def answer(
    model, tokenizer, asks: Sequence[Ask], sampling: Sampling, seeds: Sequence[int], decoder: FastDecoder | None = None
) -> list[np.ndarray]:
    """Answers of one batch, each up to and including its end token (missing where the room ran out).

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        asks: the prompts.
        sampling: how answers are drawn.
        seeds: one a row.
        decoder: of the model, used instead of its `generate` where there are no beams.
    """
    device = next(model.parameters()).device
    ids, mask = pad_rows([a.ids for a in asks], tokenizer.pad_token_id, device, side="left")
    width = ids.shape[1]
    context = int(getattr(model.config, "max_position_embeddings", None) or 4096)
    length = min(width + max(a.room for a in asks), max(context, width + 1))
    processors = [FiniteLogits()]
    if sampling.grammar:
        plans = [a.plan for a in asks]
        rooms = [a.room for a in asks]  # each answer ends within its own
        processors.append(MetricGrammarLogitsProcessor(tokenizer, plans, max_length=length, max_new_tokens=rooms))
    if sampling.do_sample:
        processors += [*sampling_filters(asdict(sampling)), SeededChoice(list(seeds), 0, width)]
    beams = 1 if sampling.do_sample else sampling.num_beams
    options = {"do_sample": False, "num_beams": beams, "temperature": 1.0, "top_k": 50, "top_p": 1.0}
    if decoder is not None and beams == 1:
        generate, options = decoder.generate, {}
    else:
        generate = model.generate
    out = generate(
        input_ids=ids,
        attention_mask=mask,
        logits_processor=LogitsProcessorList(processors),  # which sample, too
        max_new_tokens=length - width,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **options,
    )
    rows = out[:, width:].cpu().numpy()
    return [_until(row[: ask.room], tokenizer.eos_token_id) for row, ask in zip(rows, asks)]


def _until(row: np.ndarray, end: int) -> np.ndarray:
    stop = np.flatnonzero(row == end)
    return row[: int(stop[0]) + 1] if len(stop) else row


class AnswerCache:
    """Finished answers of one list of prompts, as one `.npz`; without a folder nothing is kept.

    The file is named by what the answers depend on: `identity`, the prompts, the sampling, the seed.

    Args:
        folder: of the file, or `None`.
        name: of the list, begins the name of the file.
        identity: of the model.
        asks: the prompts.
        sampling: how answers are drawn.
        seed: of the drawing.
    """

    def __init__(self, folder: str | Path | None, name: str, identity: str, asks, sampling: Sampling, seed: int):
        self.path, self.rows = None, {}
        if folder is None:
            return
        digest = hashlib.sha256(json.dumps([identity, asdict(sampling), seed]).encode())
        for ask in asks:
            digest.update(np.asarray(ask.ids, dtype=np.int32).tobytes() + ask.room.to_bytes(4, "little"))
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.path = Path(folder) / f"{name}-{digest.hexdigest()[:16]}.npz"
        if self.path.is_file():
            with np.load(self.path, allow_pickle=False) as content:
                parts = np.split(content["ids"], np.cumsum(content["sizes"])[:-1])
                self.rows = dict(zip(content["rows"].tolist(), parts))

    def add(self, rows: Sequence[int], found: Sequence[np.ndarray]) -> None:
        """Keep more answers, and write all of them.

        Args:
            rows: indices of their prompts.
            found: the answers.
        """
        self.rows |= {int(r): np.asarray(a, dtype=np.int32) for r, a in zip(rows, found)}
        if self.path is None:
            return
        kept = list(self.rows.values())
        arrays = {
            "rows": list(self.rows),
            "sizes": [len(a) for a in kept],
            "ids": np.concatenate(kept).astype(np.int32),
        }
        replace_file(self.path, lambda partial: np.savez_compressed(partial, **arrays))


def answer_all(
    model,
    tokenizer,
    asks: Sequence[Ask],
    sampling: Sampling,
    seed: int = 0,
    *,
    batch: int = 32,
    tokens_per_batch: int = 65536,
    cache: AnswerCache | None = None,
    progress: str | None = None,
) -> list[np.ndarray]:
    """The answer of every prompt; row i has the seed `seed * 1000003 + i`.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        asks: the prompts.
        sampling: how answers are drawn.
        seed: of the drawing.
        batch: most rows that run together.
        tokens_per_batch: most tokens of prompts and answers that run together.
        cache: of finished answers.
        progress: title of a progress bar; `None`: no bar.
    """
    from tqdm import tqdm

    done = {} if cache is None else cache.rows
    was_training = model.training
    model.eval()
    left = [i for i in range(len(asks)) if i not in done]
    plan = batches([len(asks[i].ids) + asks[i].room for i in left], batch, tokens_per_batch)
    bar = tqdm(total=len(asks), initial=len(asks) - len(left), desc=progress, unit="answer", disable=progress is None)
    found = dict(done)
    decoder = FastDecoder(model) if plan and refusal(model) is None else None
    for group in plan:
        rows = [left[i] for i in group]
        seeds = [seed * 1000003 + i for i in rows]
        answers = answer(model, tokenizer, [asks[i] for i in rows], sampling, seeds, decoder)
        found |= dict(zip(rows, answers))
        if cache is not None:
            cache.add(rows, answers)
        bar.update(len(rows))
    bar.close()
    model.train(was_training)
    return [np.asarray(found[i], dtype=np.int64) for i in range(len(asks))]


def fingerprint(folder: str | Path) -> str:
    """Identity of a checkpoint folder: its weights and configuration, not its code."""
    digest = hashlib.sha256()
    names = ("*.safetensors", "*.safetensors.index.json", "config.json", "vocab.json")
    for path in sorted({p for name in names for p in Path(folder).glob(name)}):
        digest.update(path.name.encode())
        with open(path, "rb") as handle:
            while chunk := handle.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()[:16]
