"""The token table: which strings exist, what each means, and its id.

Design decisions
- The default table is append-only: ids 0 to 693 are upstream 4.9's `pro` table, new tokens follow and never move.
- Every token has a *kind* (`TokenKind`) and an integer *value* (tick, pitch, program, table index ...), so that codec,
  grammar and prompt work on two numpy arrays and never parse strings.
- Works for any flavour: a table loaded from a checkpoint gets its kinds and values from the token names.

Knows: names and numbers. Must not know: MIDI, torch, tokenizers, what order tokens may come in (that is
`token_grammar`).
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from .errors_mortm import VocabularyError
from .music_names import (
    CATEGORY_PIANO,
    CATEGORY_SAX,
    CHORD_BASSES,
    CHORD_QUALITIES,
    CHORD_ROOTS,
    DRUMS,
    EXTRA_CHORD_QUALITIES,
    EXTRA_CHORD_ROOTS,
    GENRES,
    KEY_NAMES,
    MAX_BAR_TICKS,
    MAX_DURATION,
    METER_TICKS,
    METERS,
    TEMPO_CENTRES,
    TEMPO_NAMES,
)
from .token_controls import all_controls


VOCABULARY_VERSION = "1"

LONG_DURATIONS = tuple(range(312, 769, 24))


# What a token is, apart from controls. The numbers are internal (never stored).
_LANGUAGE = {
    "OTHER": 0,
    "PAD": 1,
    "BOS": 2,  # <EOS>: upstream's start token
    "END": 3,  # <TE>
    "TRACK_END": 4,  # <ESEQ>
    "TAG_END": 5,
    "SYSTEM": 6,
    "PAST": 7,
    "FUTURE": 8,
    "CONST_M": 9,
    "CONST_C": 10,
    "MGEN": 11,
    "CGEN": 12,
    "META": 13,
    "BAR": 14,  # <SME>
    "BLANK": 15,
    "ONSET": 16,
    "PITCH": 17,
    "DURATION": 18,
    "VELOCITY": 19,
    "CHORD_ROOT": 20,
    "CHORD_QUALITY": 21,
    "CHORD_BASS": 22,
}
CONTROLS = all_controls()
_KINDS_OF_CONTROLS = {control.kind: len(_LANGUAGE) + place for place, control in enumerate(CONTROLS)}
TokenKind = IntEnum("TokenKind", {**_LANGUAGE, **_KINDS_OF_CONTROLS}, module=__name__)
TokenKind.__doc__ = "What a token is: a part of the language, or a control (`token_controls`)."
CONTROL_KINDS = {control.name: TokenKind[control.kind] for control in CONTROLS}
# markers of the blocks of a prompt, and of the generated field behind them, in their order
BLOCK_KINDS = (TokenKind.PAST, TokenKind.FUTURE, TokenKind.CONST_M, TokenKind.CONST_C)
GENERATED_KINDS = (TokenKind.MGEN, TokenKind.CGEN, TokenKind.META)


_FIXED = {
    "<PAD>": TokenKind.PAD,
    "<EOS>": TokenKind.BOS,
    "<TE>": TokenKind.END,
    "<ESEQ>": TokenKind.TRACK_END,
    "<TAG_END>": TokenKind.TAG_END,
    "<SYSTEM>": TokenKind.SYSTEM,
    "<PAST_M>": TokenKind.PAST,
    "<FUTURE_M>": TokenKind.FUTURE,
    "<CONST_M>": TokenKind.CONST_M,
    "<CONST_C>": TokenKind.CONST_C,
    "<MGEN>": TokenKind.MGEN,
    "<CGEN>": TokenKind.CGEN,
    "<META>": TokenKind.META,
    "<SME>": TokenKind.BAR,
    "<BLANK>": TokenKind.BLANK,
}

# kind -> (token prefix, token suffix, number of values the lookup array covers)
_VALUED = {
    TokenKind.ONSET: ("s_", "", MAX_BAR_TICKS),
    TokenKind.PITCH: ("p_", "", 128),
    TokenKind.DURATION: ("d_", "", MAX_DURATION + 1),
    TokenKind.VELOCITY: ("v_", "", 128),
}
_NAMED = {
    TokenKind.CHORD_ROOT: ("CR_", "", CHORD_ROOTS + EXTRA_CHORD_ROOTS),
    TokenKind.CHORD_QUALITY: ("CQ_", "", CHORD_QUALITIES + EXTRA_CHORD_QUALITIES),
    TokenKind.CHORD_BASS: ("CB_", "", CHORD_BASSES),
    **{TokenKind[c.kind]: (*c.form, list(c.names)) for c in CONTROLS},
}


def token_meaning(token: str) -> tuple[TokenKind, int]:
    """(kind, value) of a token name; `(OTHER, -1)` for names outside the language."""
    fixed = _FIXED.get(token)
    if fixed is not None:
        return fixed, -1
    for kind, (prefix, suffix, names) in _NAMED.items():
        if token.startswith(prefix) and token.endswith(suffix):
            body = token[len(prefix) : len(token) - len(suffix)]
            if body in names:  # None stands for values without a token
                return kind, names.index(body)
    for kind, (prefix, suffix, size) in _VALUED.items():
        if token.startswith(prefix) and token.endswith(suffix):
            body = token[len(prefix) : len(token) - len(suffix)]
            if body.isdigit() and int(body) < size:
                return kind, int(body)
    return TokenKind.OTHER, -1


def upstream_pro_tokens() -> list[str]:
    """Upstream 4.9's `pro` table in id order (SPEC 1.2): 694 tokens."""
    tokens = "<PAD> <EOS> <TAG_END> <PAST_M> <CONST_C> <CONST_M> <FUTURE_M> <Motif> <SYSTEM> <INST_SAX>".split()
    tokens += "<INST_PIANO> <MotifGen> <MGEN> <CGEN>".split()
    tokens += [f"k_{k}" for k in KEY_NAMES] + ["<SME>", "<BLANK>"] + [f"s_{i}" for i in range(97)]
    tokens += [f"CR_{r}" for r in CHORD_ROOTS] + [f"CQ_{q}" for q in CHORD_QUALITIES]
    tokens += [f"CB_{b}" for b in CHORD_BASSES] + [f"p_{i}" for i in range(128)] + [f"d_{i}" for i in range(289)]
    tokens += ["<ESEQ>", "<TE>", "<META>"] + [f"<GEN_MEASURE_COUNT_{i}>" for i in range(1, 9)]
    tokens += [f"<NOTE_DENSE_{i}>" for i in range(1, 11)] + [f"<GENRE_{g}>" for g in GENRES]
    return tokens + "<thinking> <KEY> <DENCE> <GENRE> <LENGTH>".split()


def default_tokens() -> list[str]:
    """The default, append-only table in id order (DESIGN 4)."""
    tokens = upstream_pro_tokens() + [f"s_{i}" for i in range(97, MAX_BAR_TICKS)]
    tokens += [f"d_{i}" for i in LONG_DURATIONS] + [f"v_{i}" for i in range(128)]
    tokens += [f"<INST_{i}>" for i in range(128)] + ["<INST_DRUMS>"]
    tokens += [f"<TS_{n}/{d}>" for n, d in METERS] + [f"<BPM_{x}>" for x in TEMPO_NAMES]
    tokens += [f"<GEN_MEASURE_COUNT_{i}>" for i in range(9, 17)]
    tokens += [f"CR_{r}" for r in EXTRA_CHORD_ROOTS] + [f"CQ_{q}" for q in EXTRA_CHORD_QUALITIES]
    tokens += "<EVAL> <HUMAN> <AI> <UNK> <MASK> <CLS> <SEP>".split()
    known = set(tokens)
    return tokens + [token for control in CONTROLS for token in control.tokens() if token not in known]


class MetricVocabulary:
    """Kinds and values of every id, and the id of every (kind, value).

    Args:
        ids: token name -> id. Two names on one id (upstream's `base` table) resolve to the first name.

    Attributes:
        kind: `[size]` int16, `TokenKind` of each id. value: `[size]` int32, its number (-1 where it has none).
        tokens: `[size]` token names in id order (holes are "").
    """

    def __init__(self, ids: dict[str, int]):
        if not ids or min(ids.values()) < 0:
            raise VocabularyError("the vocabulary is empty or has negative ids", code="vocabulary.table")
        size = max(ids.values()) + 1
        self.ids = dict(ids)
        self.tokens = [""] * size
        self.kind = np.zeros(size, dtype=np.int16)
        self.value = np.full(size, -1, dtype=np.int32)
        self._lookup = {k: np.full(v[2], -1, dtype=np.int32) for k, v in _VALUED.items()}
        self._lookup |= {k: np.full(len(v[2]), -1, dtype=np.int32) for k, v in _NAMED.items()}
        self._single: dict[TokenKind, int] = {}
        for token, index in ids.items():
            kind, value = token_meaning(token)
            if not self.tokens[index]:
                self.tokens[index], self.kind[index], self.value[index] = token, kind, value
            if value >= 0:
                self._lookup[kind][value] = index
            elif kind != TokenKind.OTHER:
                self._single[kind] = index

    @classmethod
    def default(cls) -> MetricVocabulary:
        """The default table."""
        return cls({token: index for index, token in enumerate(default_tokens())})

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: str) -> bool:
        return token in self.ids

    def __getitem__(self, token: str) -> int:
        """Id of a token name; raises `VocabularyError` for unknown names."""
        try:
            return self.ids[token]
        except KeyError:
            raise VocabularyError(f"no token {token!r} in this vocabulary of {len(self.ids)} tokens") from None

    def id(self, kind: TokenKind, value: int | None = None) -> int:
        """Id of a token.

        Args:
            kind: of the token.
            value: its value; None for a kind without values.

        Raises:
            VocabularyError: the table has no such token (`vocabulary.token`).
        """
        if value is None:
            found = self._single.get(kind, -1)
        else:
            table = self._lookup[kind]
            found = int(table[value]) if 0 <= value < len(table) else -1
        if found < 0:
            raise VocabularyError(
                f"this vocabulary has no {kind.name} token" + ("" if value is None else f" for {value}")
            )
        return found

    def has(self, kind: TokenKind, value: int | None = None) -> bool:
        """Whether the table has a token.

        Args:
            kind: of the token.
            value: its value; None for a kind without values.
        """
        if value is None:
            return kind in self._single
        return 0 <= value < len(self._lookup[kind]) and self._lookup[kind][value] >= 0

    def lookup(self, kind: TokenKind) -> np.ndarray:
        """Array value -> id, -1 where the table has no such token: `vocabulary.lookup(TokenKind.PITCH)[pitch]`."""
        return self._lookup[kind]


__all__ = [
    "BLOCK_KINDS",
    "CATEGORY_PIANO",
    "CATEGORY_SAX",
    "CHORD_BASSES",
    "CHORD_QUALITIES",
    "CHORD_ROOTS",
    "CONTROLS",
    "CONTROL_KINDS",
    "DRUMS",
    "EXTRA_CHORD_QUALITIES",
    "EXTRA_CHORD_ROOTS",
    "GENERATED_KINDS",
    "GENRES",
    "KEY_NAMES",
    "LONG_DURATIONS",
    "MAX_BAR_TICKS",
    "MAX_DURATION",
    "METERS",
    "METER_TICKS",
    "TEMPO_CENTRES",
    "VOCABULARY_VERSION",
    "MetricVocabulary",
    "TokenKind",
    "default_tokens",
    "token_meaning",
    "upstream_pro_tokens",
]
