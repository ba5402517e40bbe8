"""How often a model breaks the grammar when nothing holds it back.

Design decisions
- Answers are drawn without the grammar and checked by the same machine that would have constrained them
  (`metric_grammar.find_errors`). Only the first error of an answer counts: what follows it is beside the point.
- An answer that did not end in the room it had is counted apart (`unfinished`) unless a token of it was wrong. It is
  checked without its prompt: that bars or instruments of the header are missing says nothing about it yet.

Knows: ids, the grammar. Must not know: models, sampling.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..models.metric_grammar import find_errors
from ..models.metric_vocabulary import TokenKind
from .intervals import ratio, share


def violations(tokenizer, prompts: Sequence[np.ndarray], answers: Sequence[np.ndarray]) -> dict:
    """Grammar errors of free answers.

    Returns:
        `broken` (share of answers with an error), `unfinished` (share without one that did not end), `per_1000_tokens`
        (errors over the tokens written up to the first error of each answer), `at` (how often each kind of token was
        the wrong one), `examples` (up to five messages).
    """
    vocabulary = tokenizer.vocabulary
    ended = np.array([len(a) > 0 and a[-1] == tokenizer.eos_token_id for a in answers])
    before = [p if done else np.array([p[0], p[-1]]) for p, done in zip(prompts, ended)]
    whole = [np.concatenate([p, a]).astype(np.int64) for p, a in zip(before, answers)]
    errors = find_errors(vocabulary, whole, dialect=tokenizer.dialect)
    broken = np.array([e is not None and (done or e.position < len(w)) for e, done, w in zip(errors, ended, whole)])
    written = np.array([
        max(e.position - len(p) + 1, 1) if bad else len(a)
        for e, bad, p, a in zip(errors, broken, before, answers)
    ])  # fmt: skip
    kinds: Counter = Counter()
    for error, bad, ids in zip(errors, broken, whole):
        if bad:
            token = int(ids[min(error.position, len(ids) - 1)])
            kinds[TokenKind(int(vocabulary.kind[token])).name] += 1
    rate = ratio(1000.0 * broken, written)
    return {
        "broken": share(int(broken.sum()), len(broken)),
        "unfinished": share(int((~broken & ~ended).sum()), len(broken)),
        "per_1000_tokens": rate,
        "tokens": int(written.sum()),
        "at": dict(kinds.most_common()),
        "examples": [str(e) for e, bad in zip(errors, broken) if bad][:5],
    }
