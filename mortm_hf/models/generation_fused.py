"""Grammar, filters and noise of a call of `generate` as one compiled function.

Design decisions
- The processors of a call are read, not replaced: a chain of those that `generation_choice` knows, in `generate`'s
  order, is carried out compiled with the same result; any other chain is left to its caller.
- The grammar processor reads the prompt, checks the budget and raises its errors as ever. Only what it does once a
  token is compiled, on its own tables.
- Our own processors are known by name: a checkpoint's files are module trees of their own.

Knows: processors of `generate()`, the tables of `token_automaton`. Must not know: models, MIDI.
"""

from __future__ import annotations

import numpy as np
import torch

from .generation_compiled import load_compiled
from .generation_sampling import NOISE_BLOCK
from .music_names import DRUMS
from .token_automaton import _S_ENOUGH, _S_PHASE, _S_SOUNDING, _S_VELOCITY
from .token_vocabulary import TokenKind


# Processors in the order of `generate`: name -> (attribute, place in `options`)
_CHAIN = {
    "FiniteLogits": None,
    "MetricGrammarLogitsProcessor": None,
    "TemperatureLogitsWarper": ("temperature", "TEMPERATURE"),
    "TopKLogitsWarper": ("top_k", "TOP_K"),
    "TopPLogitsWarper": ("top_p", "TOP_P"),
    "MinPLogitsWarper": ("min_p", "MIN_P"),
    "SeededChoice": None,
}


def read_chain(processors) -> dict | None:
    """Processors by name, or None where one is unknown, out of order or set to keep more than one token."""
    names = [type(processor).__name__ for processor in processors]
    order = [name for name in _CHAIN if name in names]
    if names != order or any(getattr(p, "min_tokens_to_keep", 1) != 1 for p in processors):
        return None
    if any(getattr(p, "filter_value", -np.inf) != -np.inf for p in processors):
        return None
    return dict(zip(names, processors))


class FusedChoice:
    """Chooses the next token of every row of one call.

    Args:
        chain: of `read_chain`.
        ids: [batch, length] the prompts.
        size: the model's `vocab_size`.

    Raises:
        PromptError: what the grammar raises at its first step.
    """

    def __init__(self, chain: dict, ids: torch.Tensor, size: int):
        self.compiled = c = load_compiled("generation_choice")
        batch, self.length = ids.shape
        options = np.zeros(c.N_OPTIONS)
        options[c.TEMPERATURE] = options[c.TOP_P] = 1.0
        for name, place in _CHAIN.items():
            if place is not None and name in chain:
                options[getattr(c, place[1])] = getattr(chain[name], place[0])
        self.noise = chain.get("SeededChoice")
        grammar = chain.get("MetricGrammarLogitsProcessor")
        options[c.FINITE], options[c.NOISE] = "FiniteLogits" in chain, self.noise is not None
        options[c.GRAMMAR] = grammar is not None
        self.no_noise = np.zeros((batch, 1, size), dtype=np.float32)
        if grammar is None:
            self.ends = None
            ints = lambda *shape: np.zeros(shape, dtype=np.int64)
            tables = (ints(1),) * 5 + (ints(1, 1),) + (ints(1),) + (ints(1, 1),) + (ints(1),) * 4
            plan = ints(1), ints(1, 1), ints(1, 1), ints(1, 1), np.zeros((1, 1), dtype=np.int32)
            rows = (ints(batch, c.N_OWNER),) + tuple(ints(batch, 1) for _ in range(4))
        else:
            machine, state, self.ends = grammar.begin(ids, size)
            tables, plan, owners = machine_tables(machine, c)
            rows = owners, *state_arrays(state)
        self.unlimited = np.full(batch, -1)
        self.fixed = (options, *tables, *plan, *rows)

    def __call__(self, logits: np.ndarray, length: int, rows: np.ndarray, tokens: np.ndarray) -> None:
        """The next tokens of some rows.

        Args:
            logits: [batch, vocab] fp32.
            length: columns so far.
            rows: [n] the rows that go on.
            tokens: [batch] the last tokens, replaced by the new ones (after the prompt anything).
        """
        noise, place = self.no_noise, 0
        if self.noise is not None:
            block, place = divmod(length - self.noise.start, NOISE_BLOCK)
            noise = self.noise.block(block, logits.shape[1]).numpy()
        remaining = self.unlimited if self.ends is None else np.maximum(self.ends - length, 0)
        self.compiled.choose(*self.fixed, remaining, logits, noise, place, rows, length > self.length, tokens)


def machine_tables(machine, compiled) -> tuple[tuple, tuple, np.ndarray]:
    """A `Grammar` as `generation_choice` reads it.

    Args:
        machine: the `Grammar`.
        compiled: the module `generation_choice`, from `load_compiled`.

    Returns:
        Tables of its vocabulary, tables of its plans, constants of its rows [batch, N_OWNER].
    """
    c, t = compiled, machine.tables
    numbers = np.zeros(c.N_NUMBERS, dtype=np.int64)
    numbers[[c.TOP, c.LONGEST, c.STRICT, c.LOOSE]] = t.top, t.longest, machine._strict, machine.loose
    numbers[[c.ANY_FREE, c.ANY_CHORD]] = machine._any_free, machine._any_chord
    numbers[[c.N_BARS, c.N_TRACKS]] = machine.n_bars, machine.n_tracks
    numbers[[c.NO_ROOT, c.NO_QUALITY, c.NO_BASS]] = t.no_chord
    numbers[[c.DRUMS, c.KIND_ONSET, c.KIND_VELOCITY]] = DRUMS, TokenKind.ONSET, TokenKind.VELOCITY
    numbers[[c.S_PHASE, c.S_SOUNDING, c.S_ENOUGH, c.S_VELOCITY]] = _S_PHASE, _S_SOUNDING, _S_ENOUGH, _S_VELOCITY
    columns = t.kind, t.value, t.follow, t.gap, t.neighbour, t.past, t.bound, t.coefficients
    columns += t.mask_kind, t.mask_value, t.pitch_of, t.tempo_id
    vocabulary = tuple(np.ascontiguousarray(column, dtype=np.int64) for column in columns)
    owners = np.zeros((len(machine._owner), c.N_OWNER), dtype=np.int64)
    for place, column in (
        (c.O_SIDE, machine._side),
        (c.O_NUMBER, machine._number),
        (c.O_BARS, machine._bar_row),
        (c.O_TRACKS, machine._track_row),
    ):
        owners[:, place] = column
    return vocabulary, (numbers, machine._bars, machine._tracks, machine._ends, machine._prices), owners


def state_arrays(state) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A `GrammarState` as copies to write in: its columns [batch, 11], ends, bars, tracks."""
    columns = np.stack(state[:-3], axis=1).astype(np.int64)
    return columns, *(np.array(a, dtype=np.int64, order="C") for a in state[-3:])


__all__ = ["FusedChoice", "machine_tables", "read_chain", "state_arrays"]
