"""Baselines: interpolated n-grams and copying the previous bar, vectorised.

Design decisions
- Counts are sorted arrays of 64-bit keys; a look-up is a binary search. No Python loop runs
  over tokens. The hash of a context is rolled order by order, so order n costs one sort of the training tokens.
- Interpolation is Witten-Bell with a strength: `P_n = (c(h, w) + s T(h) P_{n-1}) / (N(h) + s T(h))`, where `T` is the
  number of distinct continuations; `s` (one per order) is tuned on validation. Order 0 is uniform.
- The copying baseline is a proper distribution: with a weight that depends on how many of the last tokens the copy
  got right, it puts its mass on the token at the aligned place of the previous bar, and the rest on another model.
  Weights are tuned on validation.

Knows: token ids and, for copying, where bars begin. Must not know: models, music beyond that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


_MIX = np.uint64(0x9E3779B97F4A7C15)
_MIX2 = np.uint64(0xC2B2AE3D27D4EB4F)


def rolled(state: np.ndarray, token: np.ndarray) -> np.ndarray:
    """`[n]` hashes (uint64) extended by one value each.

    Args:
        state: `[n]` uint64 hashes.
        token: `[n]` integers.
    """
    x = (state ^ (token.astype(np.uint64) + np.uint64(1))) * _MIX
    return (x ^ (x >> np.uint64(29))) * _MIX2


def _contexts(tokens: np.ndarray, start: np.ndarray, order: int) -> np.ndarray:
    """Hash of the `order - 1` tokens before each position; those before a document's start count as one padding."""
    state = np.full(len(tokens), 0x51ED, dtype=np.uint64)
    index = np.arange(len(tokens))
    for back in range(1, order):
        older = np.where(index - back >= start, tokens[np.maximum(index - back, 0)].astype(np.int64) + 1, 0)
        state = rolled(state, older)
    return state


@dataclass(frozen=True)
class Corpus:
    """Documents end to end.

    Attributes:
        tokens: `[n]` ids.
        start: `[n]` first position of each token's document.
        counted: `[n]` bool, tokens that are scored (when scoring) or learnt from (when counting).
    """

    tokens: np.ndarray
    start: np.ndarray
    counted: np.ndarray

    @classmethod
    def of(cls, documents: list[np.ndarray], counted: list[np.ndarray] | None = None) -> Corpus:
        """Join documents.

        Args:
            documents: ids of each.
            counted: which tokens of each count; by default all but the first.
        """
        sizes = np.array([len(d) for d in documents], dtype=np.int64)
        first = np.concatenate([[0], np.cumsum(sizes)[:-1]]) if len(sizes) else np.zeros(0, np.int64)
        start = np.repeat(first, sizes)
        tokens = np.concatenate(documents).astype(np.int64) if documents else np.zeros(0, np.int64)
        mask = np.arange(len(tokens)) > start if counted is None else np.concatenate(counted)
        return cls(tokens, start, mask)


class NGram:
    """Interpolated n-gram model up to `order`.

    Args:
        order: the longest n-gram (1: unigram).
        vocab_size: for the uniform floor.
    """

    def __init__(self, order: int, vocab_size: int):
        self.order, self.vocab_size = order, vocab_size
        self.strength = np.ones(order)
        self.tables: list[tuple[np.ndarray, ...]] = []

    def fit(self, *corpora: Corpus) -> NGram:
        """Count all n-grams up to the order, over one corpus or several (each is reduced before they are joined)."""
        self.tables = []
        for order in range(1, self.order + 1):
            parts = [self._counts(corpus, order) for corpus in corpora]
            pair, context, count = (np.concatenate(column) for column in zip(*parts))
            if len(parts) > 1:
                pair, context, count = _reduce(pair, context, count)
            sequence = np.argsort(context, kind="stable")
            grouped = context[sequence]
            edges = np.flatnonzero(np.append(True, grouped[1:] != grouped[:-1]))
            total = np.add.reduceat(count[sequence], edges)
            types = np.diff(np.append(edges, len(grouped)))
            self.tables.append((pair, count, grouped[edges], total, types))
        return self

    @staticmethod
    def _counts(corpus: Corpus, order: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        context = _contexts(corpus.tokens, corpus.start, order)[corpus.counted]
        pair = rolled(context, corpus.tokens[corpus.counted])
        return _reduce(pair, context, np.ones(len(pair), dtype=np.int64))

    def evidence(self, corpus: Corpus) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For every scored token and order: (count of the n-gram, count of its context, types of its context)."""
        tokens = corpus.tokens[corpus.counted]
        found = []
        for order, (pairs, pair_count, contexts, total, types) in enumerate(self.tables, 1):
            context = _contexts(corpus.tokens, corpus.start, order)[corpus.counted]
            c = _look_up(pairs, pair_count, rolled(context, tokens))
            found.append((c, _look_up(contexts, total, context), _look_up(contexts, types, context)))
        return found

    def probability(self, evidence, order: int | None = None) -> np.ndarray:
        """`[scored tokens]` probability of each token.

        Args:
            evidence: of `NGram.evidence`.
            order: interpolated up to this order; by default all.
        """
        p = np.full(len(evidence[0][0]), 1.0 / self.vocab_size)
        for s, (c, n, t) in zip(self.strength[: order or self.order], evidence):
            p = np.where(n > 0, (c + s * t * p) / np.maximum(n + s * t, 1e-300), p)
        return p

    def tune(self, evidence, grid=(0.25, 0.5, 1.0, 1.5, 2.5, 4.0, 6.0, 10.0, 16.0, 30.0), weight=None) -> None:
        """Choose the strength of each order in turn (lowest weighted log loss).

        Args:
            evidence: of validation documents.
            grid: strengths to try.
            weight: `[scored tokens]`; by default all alike.
        """
        for order in range(1, self.order + 1):
            losses = []
            for value in grid:
                self.strength[order - 1] = value
                loss = -np.log2(self.probability(evidence, order))
                losses.append(float(loss.sum() if weight is None else (loss * weight).sum()))
            self.strength[order - 1] = grid[int(np.argmin(losses))]


def _reduce(pair: np.ndarray, context: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct pairs in ascending order with their contexts and summed counts."""
    sequence = np.argsort(pair, kind="stable")
    pair = pair[sequence]
    edges = np.flatnonzero(np.append(True, pair[1:] != pair[:-1]))
    return pair[edges], context[sequence[edges]], np.add.reduceat(count[sequence], edges)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    if not len(keys):
        return np.zeros(len(wanted))
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0).astype(np.float64)


def previous_bar(
    ids: np.ndarray, bar: int, track_starts: np.ndarray, track_end: int, stated: np.ndarray | None = None
) -> np.ndarray:
    """What copying the previous bar predicts at every position of a document.

    Bars are aligned by the index of the token in the bar; past the previous bar's end it predicts the bar's end. The
    bar before the first generated bar of a track is the last bar of the past track with the same instrument and the
    same place among its namesakes.

    Args:
        ids: `[n]` one document.
        bar: id of `<SME>`.
        track_starts: `[vocab]` bool, ids of instrument tokens.
        track_end: id of `<ESEQ>`.
        stated: `[vocab]` bool, ids of meter and tempo tokens: left out of the alignment and never predicted.

    Returns:
        `[n]` predicted id, -1 where there is no previous bar of that track (nothing is copied there).
    """
    prediction = np.full(len(ids), -1, dtype=np.int64)
    heads = np.flatnonzero((ids == bar) | track_starts[ids] | (ids == track_end))
    copied = np.ones(len(ids), dtype=bool) if stated is None else ~stated[ids]
    last: dict[tuple[int, int], np.ndarray] = {}  # (instrument, nth of that name in its block) -> tokens of a bar
    seen: dict[int, int] = {}
    track, here = None, None
    any_bar = False
    for k, at in enumerate(heads):
        token = ids[at]
        stop = heads[k + 1] if k + 1 < len(heads) else len(ids)
        if track_starts[token]:
            if stop == at + 1 and stop < len(ids) and ids[stop] == bar:
                nth = seen.get(int(token), 0)
                seen[int(token)] = nth + 1
                track = (int(token), nth)
                here = last.get(track)
            else:  # an instrument of the header, not the head of a track
                track = None
            continue
        if token == track_end:
            if track is not None and any_bar:
                prediction[at] = bar
                last[track] = here
            following = ids[at + 1] if at + 1 < len(ids) else -1
            if following >= 0 and not track_starts[following]:
                seen = {}
            any_bar, track = False, None
            continue
        if track is None:
            continue
        places = at + np.flatnonzero(copied[at:stop])
        if here is not None:
            size = min(len(places), len(here))
            prediction[places[:size]] = here[:size]
            if size < len(places):
                prediction[places[size]] = bar
        any_bar, here = True, ids[places]
    return prediction


def match_state(prediction: np.ndarray, tokens: np.ndarray, start: np.ndarray, depth: int = 4) -> np.ndarray:
    """How many of the tokens just before were copied right.

    Args:
        prediction: `[n]` of `previous_bar`, documents end to end.
        tokens: `[n]` what is there.
        start: `[n]` first position of each token's document.
        depth: most that are counted.

    Returns:
        `[n]` counts, -1 where there is no prediction.
    """
    right = (prediction == tokens) & (prediction >= 0)
    index = np.arange(len(tokens))
    wrong = np.where(right, -1, index)
    before = np.concatenate([[-1], np.maximum.accumulate(wrong)[:-1]]) if len(tokens) else wrong
    run = np.minimum(index - np.maximum(before, start - 1) - 1, depth)
    return np.where(prediction >= 0, run, -1)


@dataclass
class CopyModel:
    """Copy with a probability that depends on the state, else ask the other model.

    Attributes:
        weight: `[states]` probability of copying.
    """

    weight: np.ndarray

    @classmethod
    def tune(cls, right: np.ndarray, state: np.ndarray, other: np.ndarray, emphasis: np.ndarray | None = None):
        """Best weight of each state by expectation maximisation on validation.

        Args:
            right: `[n]` bool, the copy predicts the token.
            state: `[n]` of `match_state`.
            other: `[n]` probability by the other model.
            emphasis: `[n]` weight of each token; by default all alike.
        """
        depth = int(state.max(initial=0)) + 1
        weight = np.full(depth, 0.5)
        w = np.ones(len(right)) if emphasis is None else emphasis
        for s in range(depth):
            rows = state == s
            if not rows.any():
                continue
            hit, p, mass = right[rows], other[rows], w[rows]
            for _ in range(50):
                copied = np.where(hit, weight[s], 0.0)
                share = copied / (copied + (1 - weight[s]) * p)
                weight[s] = np.clip((share * mass).sum() / mass.sum(), 1e-6, 1 - 1e-6)
        return cls(weight)

    def probability(self, right: np.ndarray, state: np.ndarray, other: np.ndarray) -> np.ndarray:
        """`[n]` probability of each token under the mixture.

        Args:
            right: `[n]` bool, the copy predicts the token.
            state: `[n]` of `match_state`.
            other: `[n]` probability by the other model.
        """
        w = np.where(state >= 0, self.weight[np.minimum(np.maximum(state, 0), len(self.weight) - 1)], 0.0)
        return np.where(right & (state >= 0), w, 0.0) + (1 - w) * other
