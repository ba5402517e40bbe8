"""How often a model breaks the grammar when nothing constrains it.

Design decisions
- Answers are drawn without the grammar and checked by the same machine that would have constrained them
  (`token_grammar.find_errors`). Only the first error of an answer counts: what follows it is beside the point.
- Two errors are distinguished: wrong syntax (the answer is checked without its prompt), and good syntax that does not
  fit the prompt (another number of bars, other instruments, another meter than the header's). The second is judged
  where the answer ended; an answer that did not end in the room it had is counted as `unfinished`.

Knows: ids, the grammar. Must not know: models, sampling.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..models.token_grammar import find_errors
from ..models.token_vocabulary import TokenKind
from .intervals import ratio, share


def violations(tokenizer, prompts: Sequence[np.ndarray], answers: Sequence[np.ndarray]) -> dict:
    """Grammar errors of free answers.

    Args:
        tokenizer: whose table and dialect the ids are of.
        prompts: ids of each prompt, up to and with the marker of the answer.
        answers: ids of each answer.

    Returns:
        `syntax` (share of answers with wrong syntax), `prompt` (share of the others that do not fit their prompt),
        `broken` (share with either), `unfinished` (share with neither that did not end), `per_1000_tokens` (syntax
        errors over the tokens written up to the first of each answer), `at` (how often each kind of token was the
        wrong one), `examples` (up to five messages of each kind; positions of syntax errors count from the answer's
        marker).
    """
    vocabulary = tokenizer.vocabulary
    ended = np.array([len(a) > 0 and a[-1] == tokenizer.eos_token_id for a in answers])

    def check(before) -> list:
        whole = [np.concatenate([p, a]).astype(np.int64) for p, a in zip(before, answers)]
        return find_errors(vocabulary, whole, dialect=tokenizer.dialect)

    bare = check([np.array([p[0], p[-1]]) for p in prompts])
    fitting = check(prompts)
    # at its end an unfinished answer is only unfinished
    wrong = np.array([
        e is not None and (done or e.position < len(a) + 2) for e, done, a in zip(bare, ended, answers)
    ])  # fmt: skip
    misfit = np.array([e is not None and done and not bad for e, done, bad in zip(fitting, ended, wrong)])
    written = np.array([max(e.position - 1, 1) if bad else len(a) for e, bad, a in zip(bare, wrong, answers)])
    kinds: Counter = Counter()
    for error, bad, ids in zip(bare, wrong, answers):
        if bad:
            token = int(ids[min(max(error.position - 2, 0), len(ids) - 1)])
            kinds[TokenKind(int(vocabulary.kind[token])).name] += 1
    broken, count = wrong | misfit, len(answers)
    messages = [[str(e) for e, bad in zip(*pair) if bad][:5] for pair in ((bare, wrong), (fitting, misfit))]
    return {
        "syntax": share(int(wrong.sum()), count),
        "prompt": share(int(misfit.sum()), count),
        "broken": share(int(broken.sum()), count),
        "unfinished": share(int((~broken & ~ended).sum()), count),
        "per_1000_tokens": ratio(1000.0 * wrong, written),
        "tokens": int(written.sum()),
        "at": dict(kinds.most_common()),
        "examples": [*messages[0], *messages[1]],
    }
