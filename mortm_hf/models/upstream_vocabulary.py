"""The token tables of every upstream release, built from their layout.

Design decisions
- A table is the ordered list of its token classes, as upstream builds it; nothing is read from a file.
- A table is named by flavour and release ("pro@4.9"); releases with equal tables share one layout.
- Upstream's late `omega` tables (4.6.57 and later) move eight tokens and leave holes: they are refused.
- `base` (4.0, 4.1) is reproduced with its defects: two misspelt keys leave holes at 592 and 609, and two ids carry two
  names. `MetricVocabulary` resolves such an id to its first name.

Knows: token names and ids of upstream 4.0 to 4.9. Must not know: MIDI, checkpoints, the default table's appendix.
"""

from __future__ import annotations

from functools import cache

from .errors_mortm import VocabularyError
from .music_names import KEY_NAMES
from .token_vocabulary import upstream_pro_tokens


VERSIONS = ("4.0.45", "4.1.33", "4.5", "4.5.116", "4.6.18", "4.6.57", "4.7", "4.8.29", "4.9")
_SHORT_VERSIONS = {"4.0": "4.0.45", "4.1": "4.1.33", "4.8": "4.8.29"}
_EVAL = ["<EVAL>", "<HUMAN>", "<AI>"]
# How much of 4.9's `pro` table each release has.
_PRO_SIZE = {"4.5": 628, "4.5.116": 628, "4.6.18": 629, "4.6.57": 647, "4.7": 647, "4.8.29": 689, "4.9": 694}
_LATE = tuple(_PRO_SIZE)
# flavour -> the releases that publish it
FLAVOURS = {
    "pro": _LATE,
    "pro2": ("4.6.18",),
    "omega": ("4.5.116", "4.6.18"),
    "bertm": ("4.0.45", "4.1.33", *_LATE),
    "melody_only": _LATE,
    "melody_only_research45": ("4.5", "4.5.116"),
    "base": ("4.0.45", "4.1.33"),
}
_DEFAULT_VERSION = {"melody_only_research45": "4.5", "base": "4.0.45"}  # the others: 4.6.18
_HOLED_OMEGA = ("4.6.57", "4.7", "4.8.29", "4.9")

PRESETS = tuple(FLAVOURS) + tuple(f"{flavour}@{version}" for flavour, known in FLAVOURS.items() for version in known)


def _grid() -> list[str]:
    """The bar tokens, positions, pitches and durations that every table has in this order."""
    tokens = ["<SME>", "<BLANK>"] + [f"s_{i}" for i in range(97)]
    return tokens + [f"p_{i}" for i in range(128)] + [f"d_{i}" for i in range(289)] + ["<ESEQ>", "<TE>"]


def _pro_tokens(version: str) -> list[str]:
    return upstream_pro_tokens()[: _PRO_SIZE[version]]


def _numbered(tokens: list[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(tokens)}


def _base_table() -> dict[str, int]:
    """4.0's table. A class numbers its strings onward from the number of names so far; `A#` is misspelt `A` in both
    modes, so two names move to the later id and the next class starts two ids too early."""
    pro = upstream_pro_tokens()
    grid = _grid()
    chords = [t for t in pro if t.startswith(("CR_", "CQ_", "CB_"))]
    tokens = "<PAD> <TS> <QUERY_M> </QUERY_M> <QUERY_C> </QUERY_C> <MGEN> <CGEN>".split()
    tokens += grid[: grid.index("p_0")] + chords + grid[grid.index("p_0") :]
    keys = [f"k_{key}".replace("A#", "A") for key in KEY_NAMES if key != "Unknown"]
    table: dict[str, int] = {}
    for group in (tokens, keys, ["<QUERY_CROSS>", "</QUERY_CROSS>"], "<Motif> </Motif> <MotifGen>".split()):
        first = len(table)
        for index, token in enumerate(group):
            table[token] = first + index
    return table


@cache
def _table(flavour: str, version: str) -> dict[str, int]:
    keys = [f"k_{key}" for key in KEY_NAMES]
    if flavour == "base":
        return _base_table()
    if flavour == "melody_only":
        return _numbered(["<PAD>", "<EOS>", "<MGEN>", "<CGEN>", *keys, *_grid()])
    if flavour == "melody_only_research45":
        head = "<PAD> <EOS> <SYSTEM> <TAG_END> <MGEN> <CGEN>".split()
        return _numbered([*head, *keys, "<INST_SAX>", "<INST_PIANO>", *_grid()])
    if flavour == "bertm" and version in ("4.0.45", "4.1.33"):
        return _numbered(["<PAD>", "<CLS>", "<TS>", "<MGEN>", *_grid()])
    pro = _pro_tokens(version)
    if flavour == "omega":
        return _numbered(pro + [f"<GEN_MEASURE_COUNT_{i}>" for i in range(1, 9)])
    if flavour == "bertm":
        return _numbered(pro + _EVAL)
    if flavour == "pro2":
        cut = pro.index("<ESEQ>")
        return _numbered(pro[:cut] + [f"v_{i}" for i in range(128)] + pro[cut:])
    return _numbered(pro)


def upstream_vocabulary(flavour: str, version: str | None = None) -> dict[str, int]:
    """Token name -> id of one upstream table, in upstream's order of insertion.

    Args:
        flavour: "pro", "pro2", "omega", "bertm", "melody_only", "melody_only_research45" or "base"; also
            "flavour@version".
        version: an upstream release ("4.9", "4.6.18", ...; "4.0", "4.1" and "4.8" are short forms). By default
            4.6.18 where it has the flavour, else the first release that does.

    Raises:
        VocabularyError: unknown flavour or release (`vocabulary.table`), or a late `omega` table, which has holes.

    Source: SPEC 1.2; equal to the tables that the releases write (tests).
    """
    flavour, _, suffix = str(flavour).partition("@")
    version = version or suffix or _DEFAULT_VERSION.get(flavour, "4.6.18")
    version = _SHORT_VERSIONS.get(version, version)
    known = FLAVOURS.get(flavour)
    if known is None:
        raise VocabularyError(f"no upstream table {flavour!r}; there are {', '.join(FLAVOURS)}", "vocabulary.table")
    if flavour == "omega" and version in _HOLED_OMEGA:
        raise VocabularyError(
            f"upstream's omega table of {version} has holes at 629 to 636 (it numbers <GEN_MEASURE_COUNT_x> twice) "
            f"and cannot be used; 'pro@{version}' has the same names without holes",
            "vocabulary.table",
        )
    if version not in known:
        raise VocabularyError(
            f"upstream {version} has no table {flavour!r}; releases that do: {', '.join(known)}", "vocabulary.table"
        )
    return dict(_table(flavour, version))
