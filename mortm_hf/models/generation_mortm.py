"""Grammatical generation with `generate()`: the logits processor and a streamer of finished bars.

Design decisions
- The processor is a function of `input_ids` alone. Its states are a cache keyed by the ids they were made from: the
  usual call adds one token to a known prefix and costs one step; beams reorder rows, so rows are matched to cached
  rows by their ids; assisted decoding rewinds, so the last lengths' states are kept; anything else is replayed.
- It masks before the sampling warpers run (transformers' own order), so top-p and top-k see legal tokens only.
- States live on the host (`token_automaton` says why): a step on an accelerator brings the ids over and sends
  the mask.
- The length budget is part of the grammar: with `max_length` (or `max_new_tokens`) a token is legal only if the field
  can still be finished after it; a budget that cannot hold the shortest answer is refused at the first step.

Knows: the grammar, `generate()`'s processor and streamer interfaces. Must not know: models, MIDI, prompt building.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from queue import Queue
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor
from transformers.generation.streamers import BaseStreamer

from .errors_mortm import PromptError
from .token_automaton import Grammar, VocabularyTables
from .token_grammar import infer_plan
from .token_plan import GenerationPlan, GrammarState
from .token_vocabulary import GENERATED_KINDS, TokenKind


HISTORY = 48  # lengths whose states are kept: more than assisted decoding rewinds


class MetricGrammarLogitsProcessor(LogitsProcessor):
    """Lets only grammatical continuations through: exactly the asked bars, every asked instrument sounding.

    Args:
        tokenizer: `MortmTokenizer` (its `vocabulary` and `dialect` are used).
        plan_or_prompt: `GenerationPlan`, `MetricPrompt`, a list of them (one a prompt of the batch; `generate`'s
            copies of a row share its plan), or None: read from the prompt's ids (`infer_plan`).
        max_length: most tokens of prompt and answer together. Use what is given to `generate()`; without this and
            `max_new_tokens`, an answer that `generate()` cuts short is incomplete.
        max_new_tokens: most tokens of the answer, one number or one a plan. Use what is given to `generate()` (of
            several, the largest).

    Raises:
        PromptError: another number of budgets than plans; at the first step, if a row has no
            `<MGEN>`/`<CGEN>`/`<META>` or the budget is too small.
    """

    def __init__(
        self,
        tokenizer,
        plan_or_prompt: Any = None,
        max_length: int | None = None,
        max_new_tokens: int | Sequence[int] | None = None,
    ):
        self.vocabulary = getattr(tokenizer, "vocabulary", tokenizer)
        self.dialect = getattr(tokenizer, "dialect", "metric")
        self.max_length, self.max_new_tokens = max_length, max_new_tokens
        many = isinstance(plan_or_prompt, (list, tuple))
        given = list(plan_or_prompt) if many else [plan_or_prompt]
        if not given:
            raise PromptError("no plan given: pass one plan or prompt, or one a row", code="prompt.empty")
        self.plans: list[GenerationPlan | None] = [self._plan(item) for item in given]
        if np.ndim(max_new_tokens) and len(max_new_tokens) != len(self.plans):
            raise PromptError(
                f"{len(max_new_tokens)} values of max_new_tokens for {len(self.plans)} plans: give one number, or one "
                "a plan",
                code="prompt.material",
            )
        self._tables: VocabularyTables | None = None
        self._forget()

    def _plan(self, item) -> GenerationPlan | None:
        # Entry files of a checkpoint folder are module trees of their own: fields show what it is, not its class.
        if item is None or (hasattr(item, "kind") and hasattr(item, "pitch_range")):
            return item
        if hasattr(item, "plan"):
            return item.plan
        from .prompt_building import build_prompt

        return build_prompt(self.vocabulary, item, dialect=self.dialect).plan

    def _forget(self) -> None:
        self._history: OrderedDict[int, tuple[np.ndarray, GrammarState]] = OrderedDict()
        self._grammar: Grammar | None = None
        self._marker: np.ndarray | None = None  # [rows] column of each row's <MGEN>, <CGEN> or <META>
        self._group: np.ndarray | None = None  # [rows] plan of each row

    # ------------------------------------------------------------------ states

    def _begin(self, ids: np.ndarray) -> None:
        """Find the generated field of every row and compile the plans."""
        rows, length = ids.shape
        kinds = self._tables.kind[ids]
        self._marker = np.where(np.isin(kinds, GENERATED_KINDS), np.arange(length), -1).max(1)
        if self._marker.min() < 0:
            raise PromptError(
                f"row {self._marker.argmin()} of the prompt has no <MGEN>, <CGEN> or <META>: make prompts with "
                "tokenizer.encode_prompt",
                code="prompt.material",
            )
        if rows % len(self.plans):
            raise PromptError(f"{len(self.plans)} plans do not fit a batch of {rows} rows", code="prompt.material")
        copies = rows // len(self.plans)
        plans: list[GenerationPlan] = []
        for row, place in enumerate(self._marker.tolist()):
            plan, prompt, inside = self.plans[row // copies], ids[row, : place + 1], kinds[row, : place + 1]
            if plan is None:
                plan = infer_plan(self.vocabulary, prompt, self.dialect)
            elif int(plan.kind) != int(inside[-1]):
                raise PromptError(
                    f"row {row}: the prompt asks for {self.vocabulary.tokens[int(prompt[-1])]}, its plan for "
                    f"{TokenKind(int(plan.kind)).name}",
                    code="prompt.task",
                )
            if plan.velocity is None and (inside == TokenKind.PITCH).any():  # as in the given music: all or none
                plan = replace(plan, velocity=bool((inside == TokenKind.VELOCITY).any()))
            plans.append(plan)
        self._grammar = Grammar(self._tables, plans)
        self._group = np.arange(rows) // copies

    def _replay(self, state: GrammarState, ids: np.ndarray, start: int) -> GrammarState:
        """The states after `ids[:, start:]`, rows whose field has not begun yet staying where they are."""
        for column in range(start, ids.shape[1]):
            after = self._grammar.step(state, ids[:, column])
            begun = column > self._marker
            state = after if begun.all() else after.where(begun, state)
        return state

    def _state(self, ids: np.ndarray) -> GrammarState:
        length = ids.shape[1]
        known = self._history.get(length - 1)
        if known is not None and np.array_equal(known[0], ids[:, :-1]):
            state = self._grammar.step(known[1], ids[:, -1])
        else:
            state = self._recover(ids)
        self._history[length] = (ids.copy(), state)
        self._history.move_to_end(length)
        if len(self._history) > HISTORY:
            self._history.popitem(last=False)
        return state

    def _recover(self, ids: np.ndarray) -> GrammarState:
        """Match every row to a cached row with the same prefix (longest first), else replay from the marker."""
        for cached in sorted((n for n in self._history if n <= ids.shape[1]), reverse=True):
            past, state = self._history[cached]
            if past.shape[0] != ids.shape[0]:
                break
            same = (past[None] == ids[:, None, :cached]).all(-1) & (self._group[None] == self._group[:, None])
            if same.any(1).all():
                return self._replay(state.select(same.argmax(1)), ids, cached)
        self._history.clear()
        self._begin(ids)
        state = self._replay(self._grammar.start(), ids, int(self._marker.min()) + 1)
        self._check_budget(state, ids.shape[1])
        return state

    # ------------------------------------------------------------------ budget

    def _remaining(self, length: int) -> np.ndarray | None:
        """`[rows]` tokens that may still be written after `length` columns."""
        if self.max_length is None and self.max_new_tokens is None:
            return None
        ends = np.full(len(self._marker), self.max_length if self.max_length is not None else length + (1 << 20))
        if self.max_new_tokens is not None:
            most = np.asarray(self.max_new_tokens)
            ends = np.minimum(ends, self._marker + 1 + (most[self._group] if most.ndim else most))
        return np.maximum(ends - length, 0)

    def _check_budget(self, state: GrammarState, length: int) -> None:
        cost, room = self._grammar.closing_cost(state), self._remaining(length)
        if room is not None and (cost > room).any():
            row = int((cost - room).argmax())
            raise PromptError(
                f"row {row}: {int(room[row])} tokens are left for the answer, but the shortest one takes "
                f"{int(cost[row])}; ask for fewer bars or instruments, or raise max_length or max_new_tokens",
                code="prompt.too_long",
            )

    def begin(self, input_ids: torch.LongTensor, size: int) -> tuple[Grammar, GrammarState, np.ndarray | None]:
        """For callers that step the grammar themselves, what stands after the prompts `[B, T]`.

        Args:
            input_ids: `[B, T]` prompts.
            size: the model's `vocab_size`.

        Returns:
            The machine, the rows' states, and `[B]` the column at which each row's budget ends (None: no budget).

        Raises:
            PromptError: see the class.
        """
        tables = self._tables
        if tables is None or tables.size != size:
            self._tables = VocabularyTables(self.vocabulary, self.dialect, size)
            self._forget()
        state, left = self._state(input_ids.cpu().numpy()), self._remaining(input_ids.shape[1])
        return self._grammar, state, None if left is None else left + input_ids.shape[1]

    def allowed(self, input_ids: torch.LongTensor, size: int) -> np.ndarray:
        """The tokens that may come next.

        Args:
            input_ids: `[B, T]` prompts and what was generated so far.
            size: the model's `vocab_size`.

        Returns:
            `[B, size]` bool.

        Raises:
            PromptError: see the class.
        """
        grammar, state, ends = self.begin(input_ids, size)
        mask = grammar.allowed(state, None if ends is None else ends - input_ids.shape[1])
        lost = ~mask.any(1)  # a beam of probability zero: keep its scores finite
        mask[lost, 0] = True
        return mask

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Close every illegal token.

        Args:
            input_ids: `[B, T]` prompts and what was generated so far.
            scores: `[B, V]` logits of the next token.

        Returns:
            The scores, -inf for every illegal token.
        """
        illegal = np.logical_not(self.allowed(input_ids, scores.shape[1]))
        return scores.masked_fill(torch.from_numpy(illegal).to(scores.device, non_blocking=True), -torch.inf)


@dataclass(frozen=True)
class FinishedBar:
    """One bar that has just been completed.

    Attributes:
        row: of the batch.
        track: index of its track in the generated field.
        bar: its index in the generated field.
        instrument: INSTRUMENT value of its track, -1 for chords.
        ids: `[n]` its ids, from `<SME>` on.
    """

    row: int
    track: int
    bar: int
    instrument: int
    ids: np.ndarray


class BarStreamer(BaseStreamer):
    """Yields finished bars while `generate(..., streamer=streamer)` runs in another thread.

    ```python
    streamer = BarStreamer(tokenizer)
    Thread(target=model.generate, kwargs=dict(inputs, streamer=streamer, logits_processor=[processor])).start()
    for bar in streamer:
        play(bar.ids)
    ```

    Args:
        tokenizer: `MortmTokenizer`.
        timeout: seconds to wait for the next bar before `queue.Empty` is raised; None: as long as it takes.
    """

    _DONE = object()

    def __init__(self, tokenizer, timeout: float | None = None):
        vocabulary = getattr(tokenizer, "vocabulary", tokenizer)
        self._kind, self._value = vocabulary.kind, vocabulary.value
        self.timeout = timeout
        self._queue: Queue = Queue()
        self._reset()

    def _reset(self) -> None:
        self._prompt_seen = False
        self._open: list[list[int]] = []
        self._place: list[list[int]] = []  # [track, bar, instrument] of every row

    def put(self, value: torch.Tensor) -> None:
        """Take in what `generate` hands over.

        Args:
            value: first the prompts `[B, T]`, then the new token of every row `[B]`.
        """
        ids = value.detach().cpu().numpy()
        if not self._prompt_seen:
            rows = ids.shape[0] if ids.ndim > 1 else 1
            self._prompt_seen = True
            self._open, self._place = [[] for _ in range(rows)], [[-1, -1, -1] for _ in range(rows)]
            return
        for row, token in enumerate(ids.reshape(len(self._open), -1)[:, 0].tolist()):
            kind, place = int(self._kind[token]), self._place[row]
            if kind in (TokenKind.BAR, TokenKind.TRACK_END, TokenKind.INSTRUMENT, TokenKind.END):
                self._close(row)
            if kind == TokenKind.BAR:
                place[1] += 1
                self._open[row] = [token]
            elif kind == TokenKind.INSTRUMENT:
                place[:] = [place[0] + 1, -1, int(self._value[token])]
            elif self._open[row]:
                self._open[row].append(token)

    def _close(self, row: int) -> None:
        if self._open[row]:
            track, bar, instrument = self._place[row]
            self._queue.put(FinishedBar(row, max(track, 0), bar, instrument, np.array(self._open[row])))
            self._open[row] = []

    def end(self) -> None:
        """Called by `generate` at the end; unfinished bars (a cut answer) are dropped."""
        self._reset()
        self._queue.put(self._DONE)

    def __iter__(self) -> Iterator[FinishedBar]:
        return self

    def __next__(self) -> FinishedBar:
        item = self._queue.get(timeout=self.timeout)
        if item is self._DONE:
            raise StopIteration
        return item
