"""What a trained model has to beat, on the same windows: n-grams and copying the previous bar.

Design decisions
- All baselines read the same tokens as the model and are scored on the same answers. They are counted on the windows
  of the train split, as they are or in all twelve transpositions, whichever is better on validation.
- Everything tunable (interpolation strengths, longest order, copy weights, transposition) is chosen on the validation
  windows for the macro average of bits a note, never on test.

Knows: encoded windows, the n-gram code. Must not know: models, files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..models.token_vocabulary import MetricVocabulary, TokenKind
from .fixed_windows import Encoded
from .ngrams import CopyModel, Corpus, NGram, match_state, previous_bar


@dataclass
class Baselines:
    """Total bits of every test window by baseline, and what was chosen.

    Attributes:
        bits: `{name: [n test windows]}`.
        chosen: settings found on validation, as plain numbers and text.
    """

    bits: dict[str, np.ndarray] = field(default_factory=dict)
    chosen: dict[str, object] = field(default_factory=dict)


def answers(windows: Sequence[Encoded]) -> Corpus:
    """The windows as a corpus whose scored tokens are the answers."""
    counted = [np.arange(len(w.ids)) >= w.answer for w in windows]
    return Corpus.of([w.ids for w in windows], counted)


def window_bits(probability: np.ndarray, windows: Sequence[Encoded]) -> np.ndarray:
    """Total bits of each window.

    Args:
        probability: `[scored tokens]` of all windows, end to end.
        windows: the windows, as `answers` joins them.

    Returns:
        `[n windows]` bits.
    """
    sizes = np.array([len(w.ids) - w.answer for w in windows])
    starts = np.cumsum(sizes) - sizes
    return np.add.reduceat(-np.log2(np.maximum(probability, 1e-300)), starts)


def macro_weights(windows: Sequence[Encoded]) -> np.ndarray:
    """`[scored tokens]` weights under which the sum of bits is the macro average of bits a note."""
    notes: dict[str, int] = {}
    for w in windows:
        notes[w.corpus] = notes.get(w.corpus, 0) + w.notes
    sizes = [len(w.ids) - w.answer for w in windows]
    return np.repeat([1.0 / (len(notes) * notes[w.corpus]) for w in windows], sizes)


def transposed(vocabulary: MetricVocabulary, corpus: Corpus, semitones: int, drums: np.ndarray) -> Corpus:
    """A corpus with its pitch tokens moved (not those of drum tracks); pitches outside the table stay.

    Args:
        vocabulary: the token table.
        corpus: the documents.
        semitones: upward.
        drums: `[n]` bool, tokens of drum tracks.
    """
    pitch = np.where(vocabulary.kind[corpus.tokens] == TokenKind.PITCH, vocabulary.value[corpus.tokens], -1)
    moved = pitch + semitones
    move = (pitch >= 0) & (moved >= 0) & (moved < 128) & ~drums
    lookup = vocabulary.lookup(TokenKind.PITCH)
    return Corpus(np.where(move, lookup[np.clip(moved, 0, 127)], corpus.tokens), corpus.start, corpus.counted)


def drum_tokens(vocabulary: MetricVocabulary, corpus: Corpus) -> np.ndarray:
    """`[n]` bool: tokens after a drum instrument and before the next instrument of their document.

    Args:
        vocabulary: the token table.
        corpus: the documents.
    """
    head = vocabulary.kind[corpus.tokens] == TokenKind.INSTRUMENT
    index = np.arange(len(corpus.tokens))
    last = np.maximum.accumulate(np.where(head | (index == corpus.start), index, 0))
    drum = vocabulary.lookup(TokenKind.INSTRUMENT)[128]
    return corpus.tokens[last] == drum


def run_baselines(
    vocabulary: MetricVocabulary,
    train: Sequence[Encoded],
    validation: Sequence[Encoded],
    test: Sequence[Encoded],
    max_order: int = 10,
    transpositions: Sequence[int] = tuple(range(-5, 7)),
) -> Baselines:
    """Fit on train windows, tune on validation windows, score test windows.

    Baselines: `uniform`, `unigram`, `4-gram`, `5-gram`, `best n-gram` (the order that validation prefers),
    `copy + unigram` (copying the previous bar, a unigram for the rest) and `copy + best n-gram`.

    Args:
        vocabulary: the token table.
        train: windows to count.
        validation: windows to choose settings on.
        test: windows to score.
        max_order: longest n-gram.
        transpositions: semitones in which train windows are counted too.
    """
    size = len(vocabulary)
    result = Baselines()
    base = Corpus.of([w.ids for w in train])
    drums = drum_tokens(vocabulary, base)
    tune_on, score_on = answers(validation), answers(test)
    weight = macro_weights(validation)
    best: tuple[float, NGram, list, str] | None = None
    choices = {"as written": (0,), f"{len(transpositions)} transpositions": tuple(transpositions)}
    for name, steps in choices.items():
        corpora = [transposed(vocabulary, base, s, drums) if s else base for s in steps]
        model = NGram(max_order, size).fit(*corpora)
        evidence = model.evidence(tune_on)
        model.tune(evidence, weight=weight)
        by_order = [float((-np.log2(model.probability(evidence, n)) * weight).sum()) for n in range(1, max_order + 1)]
        result.chosen[f"validation bits a note by order, {name}"] = [round(x, 3) for x in by_order]
        if best is None or min(by_order) < best[0]:
            best = (min(by_order), model, evidence, name)
            order = int(np.argmin(by_order)) + 1
    _, model, evidence, name = best
    result.chosen |= {
        "counted on": name,
        "strengths by order": [float(s) for s in model.strength],
        "best order": order,
    }
    on_test = model.evidence(score_on)
    result.bits["uniform"] = window_bits(np.full(len(on_test[0][0]), 1 / size), test)
    for label, n in (("unigram", 1), ("4-gram", 4), ("5-gram", 5), ("best n-gram", order)):
        result.bits[label] = window_bits(model.probability(on_test, min(n, max_order)), test)

    tuned, scored = _copying(vocabulary, validation, tune_on), _copying(vocabulary, test, score_on)
    for label, n in (("copy + unigram", 1), ("copy + best n-gram", order)):
        copy = CopyModel.tune(*tuned, model.probability(evidence, n), weight)
        result.bits[label] = window_bits(copy.probability(*scored, model.probability(on_test, n)), test)
        result.chosen[f"{label}: weight by number of tokens just copied right"] = [
            round(float(w), 3) for w in copy.weight
        ]
    return result


def _copying(vocabulary, windows: Sequence[Encoded], corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
    """(copy is right, match state) of the scored tokens."""
    heads = vocabulary.kind == TokenKind.INSTRUMENT
    bar, end = vocabulary.id(TokenKind.BAR), vocabulary.id(TokenKind.TRACK_END)
    stated = (vocabulary.kind == TokenKind.METER) | (vocabulary.kind == TokenKind.TEMPO)
    prediction = np.concatenate([previous_bar(w.ids.astype(np.int64), bar, heads, end, stated) for w in windows])
    state = match_state(prediction, corpus.tokens, corpus.start)
    return (prediction == corpus.tokens)[corpus.counted], state[corpus.counted]
