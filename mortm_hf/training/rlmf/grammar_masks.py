"""The grammar as masks over a policy's logits, in the two forms that reinforcement learning needs.

Design decisions
- Sampling and learning must see the same distribution, or the ratio of the two policies is not 1 before anything was
  learnt. So the masks belong to the policy, not to `generate()`: TRL's update never sees a logits processor.
- Both forms run the machine of `token_grammar`: one token at a time while sampling (`MetricGrammarLogitsProcessor`
  keeps the states), the whole sequence at once while learning (`token_grammar.allowed`).
- What a field must be is read from its prompt (`infer_plan`), for TRL hands on nothing but ids. Plans are kept by the
  prompt's ids, as the same prompts come back every epoch.
- A budget is part of the mask: an answer is always complete within `budget` tokens.

Knows: the grammar, ids. Must not know: models, TRL.
"""

from __future__ import annotations

import numpy as np
import torch

from ...models.errors_mortm import RlmfError
from ...models.generation_mortm import MetricGrammarLogitsProcessor
from ...models.token_automaton import Grammar, VocabularyTables
from ...models.token_grammar import allowed, infer_plan
from ...models.token_plan import GenerationPlan
from ...models.token_vocabulary import GENERATED_KINDS


KEPT_PLANS = 65_536


class GrammarMasks:
    """The masks of one vocabulary.

    Args:
        tokenizer: `MortmTokenizer`. size: `vocab_size` of the model. budget: most tokens of an answer with its `<TE>`;
            None: no limit (an answer cut short is then incomplete).
    """

    def __init__(self, tokenizer, size: int, budget: int | None = None):
        self.tokenizer, self.size, self.budget = tokenizer, size, budget
        self.tables = VocabularyTables(tokenizer.vocabulary, tokenizer.dialect, size)
        self._plans: dict[bytes, GenerationPlan] = {}

    def plan(self, prompt: np.ndarray) -> GenerationPlan:
        """What the field after a prompt (ending with its marker, padding removed) must be."""
        key = prompt.tobytes()
        found = self._plans.get(key)
        if found is None:
            if len(self._plans) >= KEPT_PLANS:
                self._plans.clear()
            found = infer_plan(self.tokenizer.vocabulary, prompt, self.tokenizer.dialect)
            self._plans[key] = found
        return found

    def shortest(self, prompt: np.ndarray) -> int:
        """Tokens of the shortest answer that the grammar allows after a prompt."""
        grammar = Grammar(self.tables, [self.plan(np.asarray(prompt, dtype=np.int64))])
        return int(grammar.closing_cost(grammar.start())[0])

    def sequence(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """`[B, T]` ids (and the mask of real tokens) -> `[B, T, V]` bool, what may follow each position.

        Prompts and padding allow everything: no loss is taken there.

        Raises:
            RlmfError: a row without the marker of a generated field (`rlmf.data`).
        """
        rows = ids.detach().cpu().numpy().astype(np.int64)
        real = np.ones(rows.shape, bool) if mask is None else mask.detach().cpu().numpy().astype(bool)
        is_marker = np.isin(self.tables.kind[rows], GENERATED_KINDS) & real
        if not is_marker.any(1).all():
            row = int(np.flatnonzero(~is_marker.any(1))[0])
            raise RlmfError(
                f"row {row} has no <MGEN>, <CGEN> or <META>: prompts end with the marker of what is to be generated",
                "rlmf.data",
            )
        marker = np.where(is_marker, np.arange(rows.shape[1]), -1).max(1)
        plans = [self.plan(rows[r, : m + 1][real[r, : m + 1]]) for r, m in enumerate(marker.tolist())]
        found = allowed(self.tables, plans, rows, real, self.budget)
        return torch.from_numpy(found).to(ids.device, non_blocking=True)

    def stepwise(self) -> MetricGrammarLogitsProcessor:
        """The incremental form for one call of `generate()`: `.allowed(ids, size)` of every next token."""
        return MetricGrammarLogitsProcessor(self.tokenizer, None, max_new_tokens=self.budget)
