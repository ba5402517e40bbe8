"""Controls: what a header can say of the music it stands before, one row each.

Design decisions
- A control is one row of `CONTROLS`: its word, its tokens, how a word becomes a value, how the value is measured from
  music, how it is left out in training, whether it can only be known from the answer, and how an answer is marked.
  Vocabulary, codec, state machine, prompts, tokenizer, pipelines, command line, data, masking, evaluation and reports
  loop over the rows; none of them names a control that is not also part of the music itself (instruments, bars, meter,
  tempo).
- A value is an index into the row's `names`; a header (`token_headers`) holds values, by the row's word.
- The order of the rows is the order in a header: instruments with the controls of each track, then the others.
  Tokens of a new row are appended to the token table, so rows are added at the end and never moved or removed.
- Rows are complete when the token table is made: `register` refuses to add one later.

To add a control: write its row at the end of `CONTROLS` and its tokens into the test's table of ids
(`tests/fixtures/vocab.json`); CONTRIBUTING.md shows one.

Knows: quantised music, names of the field. Must not know: ids, sequences of tokens, requests, models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors_mortm import PromptError, VocabularyError
from .music_grid import BarTable, parse_meter
from .music_harmony import ESTIMATED_KEYS, estimate_key, estimate_keys, parse_key, pitch_class_histogram, split_key
from .music_instruments import parse_instrument
from .music_names import GENRES, KEY_NAMES, MAX_COUNTED_BARS, METERS, TEMPO_CENTRES, TEMPO_NAMES, tempo_bin
from .music_score import MetricScore, match_tracks


@dataclass(frozen=True)
class Described:
    """The music that a header stands before, as far as it is known.

    Attributes:
        bars: `BarTable` of the generated bars.
        instruments: INSTRUMENT values of the generated tracks, in track order.
        tempo: `[n_bars]` tempo bins (-1: none known), or None.
        music: `MetricScore` of the generated tracks; None in a request, which asks for them.
        given: the blocks of the prompt in which something sounds (`MetricScore`s).
        sources: the music that the blocks were cut from (`MetricScore`s); their labels hold for the generated bars.
    """

    bars: BarTable
    instruments: tuple[int, ...] = ()
    tempo: np.ndarray | None = None
    music: MetricScore | None = None
    given: tuple[MetricScore, ...] = ()
    sources: tuple[MetricScore, ...] = ()


@dataclass(frozen=True)
class Figure:
    """One figure of evaluation that marks how well a control was followed.

    Attributes:
        label: its name in reports.
        share: True: a share of requests (yes or no each); False: a pooled ratio of (part, whole).
    """

    label: str
    share: bool = True


@dataclass(frozen=True)
class Control:
    """One row: a field of the header.

    Attributes:
        name: its word in requests, recipes, `omit` and on the command line.
        kind: name of its member of `TokenKind`.
        form: `(prefix, suffix)` of its tokens' names.
        names: what stands between them, by value; None where a value has no token.
        level: "piece" (once in a header), "track" (behind each instrument), "bar" (as the first generated bar states
            it; later bars state changes themselves).
        parse: word of a request -> value; None: the word is one of `names`.
        measure: `Described` -> value (level track: a value or None for each instrument), or None where not known.
        word: value -> a word that is read as that value; None: its name.
        help: the command line's line about it.
        option: kind of its command line option: "text", "names" (comma-separated), "count" (at least 1), "number".
        metavar: placeholder of the option, or None.
        repeats: a header may hold several values (a tuple).
        drop: how often training leaves it out, as a multiple of the recipe's `header_dropout`.
        from_answer: it can only be measured from the answer, so prompts of test music leave it out.
        masked: masked language modeling may hide its tokens.
        upstream: headers of the `mortm` dialect have it.
        figures: `{name: Figure}` of the marks that `score` gives.
        score: `(asked value, asked instruments, answer)` -> `{figure: mark}`; a mark is a bool (a share) or `(part,
            whole)`; the answer is a `MetricScore` whose tracks all sound, or None where nothing can be read.
    """

    name: str
    kind: str
    form: tuple[str, str]
    names: Sequence[str | None]
    level: str = "piece"
    parse: Callable[[Any], int] | None = None
    measure: Callable[[Described], Any] = lambda described: None
    word: Callable[[int], Any] | None = None
    help: str = ""
    option: str = "text"
    metavar: str | None = None
    repeats: bool = False
    drop: float = 1.0
    from_answer: bool = False
    masked: bool = True
    upstream: bool = True
    figures: Mapping[str, Figure] = field(default_factory=dict)
    score: Callable[[Any, tuple[int, ...], MetricScore | None], dict] = lambda asked, instruments, answer: {}

    def __post_init__(self):
        for name, default in (("parse", self._value_of_name), ("word", self.names.__getitem__)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)

    def _value_of_name(self, word) -> int:
        if word is None or word not in self.names:
            known = ", ".join(name for name in self.names if name is not None)
            raise VocabularyError(f"{self.name} must be one of {known}, got {word!r}")
        return self.names.index(word)

    def tokens(self) -> list[str]:
        """Names of the tokens, in the order of their values."""
        prefix, suffix = self.form
        return [f"{prefix}{name}{suffix}" for name in self.names if name is not None]

    def each(self, value) -> tuple[int, ...]:
        """The values of a header's entry.

        Args:
            value: a value, a tuple of them (None: not stated), or None.
        """
        if value is None:
            return ()
        return tuple(v for v in value if v is not None) if isinstance(value, tuple) else (value,)

    def read(self, word):
        """A word of a request -> what a header holds of it.

        Args:
            word: what was asked for; several where the control repeats or belongs to tracks (None: not stated).

        Returns:
            A value; a tuple of values where the control repeats; for a control of tracks a value for all of them, or a
            tuple with a value or None for each.

        Raises:
            VocabularyError: a name without a token.
            PromptError: a number out of range.
        """
        several = isinstance(word, (list, tuple, np.ndarray))
        if self.level == "track" and several:
            return tuple(None if w is None else self.parse(w) for w in word)
        if self.repeats:
            several = several or isinstance(word, (set, frozenset, range))
            return tuple(dict.fromkeys(self.parse(w) for w in (word if several else (word,))))
        return self.parse(word)

    def for_each(self, value, count: int) -> tuple[int | None, ...]:
        """The value of a control of tracks for each instrument.

        Args:
            value: of `read`.
            count: number of instruments.

        Returns:
            `count` values; None where nothing is stated.

        Raises:
            PromptError: there are not as many values as instruments.
        """
        if not isinstance(value, tuple):
            return (value,) * count
        if len(value) != count:
            raise PromptError(
                f"{self.name}: got {len(value)} values for {count} instruments: give one, or one for each"
            )
        return value


# ---------------------------------------------------------------------------------------------------------------------
# Instruments, bars, meter, tempo: the music itself states them too


def _score_instruments(asked, instruments, answer) -> dict:
    return {"instruments": answer is not None and sorted(answer.programs.tolist()) == sorted(asked)}


def _score_meter(asked, instruments, answer) -> dict:
    bars = None if answer is None else answer.bars
    return {"meter": bars is not None and bool((bars.meter == asked).all() and not bars.irregular.any())}


def parse_tempo(tempo) -> int:
    """Quarters a minute -> tempo bin.

    Args:
        tempo: a number from 10 to 500.

    Raises:
        PromptError: `prompt.tempo`.
    """
    try:
        value = float(tempo)
    except (TypeError, ValueError):
        value = float("nan")
    if not 10.0 <= value <= 500.0:
        raise PromptError(
            f"tempo must be between 10 and 500 quarters a minute, got {tempo!r} (the nearest of 32 values from "
            "30 to 240 is used)",
            "prompt.tempo",
        )
    return int(tempo_bin(value))


# ---------------------------------------------------------------------------------------------------------------------
# Density

DENSITY_EDGES = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24])


def density_of(score: MetricScore) -> np.ndarray:
    """`[n_tracks]` density class of each track: distinct onsets per four quarters, in ten classes from 1.

    Args:
        score: the music; its tracks are measured over all of its bars.
    """
    onsets = np.bincount(score.track, minlength=score.n_tracks)
    again = (score.onset[1:] == score.onset[:-1]) & (score.track[1:] == score.track[:-1])
    onsets = onsets - np.bincount(score.track[1:][again], minlength=score.n_tracks)
    return np.searchsorted(DENSITY_EDGES, onsets * 96 / max(score.bars.end, 1), side="right") + 1


def _parse_density(word) -> int:
    if isinstance(word, bool) or word not in range(1, 11):
        raise PromptError(f"density must be 1 (sparse) to 10 (dense), got {word!r}")
    return int(word)


def track_pairs(asked: Sequence, instruments: Sequence[int], answer: MetricScore, found: Sequence) -> list[tuple]:
    """What was asked of each track beside what its answer has, the n-th track of a program with the n-th.

    Args:
        asked: a value for each instrument; None: not asked.
        instruments: INSTRUMENT values that were asked for.
        answer: the music.
        found: the measured value of each of its tracks.

    Returns:
        `(asked, found)` pairs; tracks that are missing are left out.
    """
    places = match_tracks(instruments, answer.programs)
    return [(value, found[at]) for value, at in zip(asked, places) if at >= 0 and value is not None]


def _score_density(asked, instruments, answer) -> dict:
    count = len(instruments)
    pairs = [] if answer is None else track_pairs(asked, instruments, answer, density_of(answer).tolist())
    return {
        "density_exact": (sum(a == b for a, b in pairs), count),
        "density_within_1": (sum(abs(a - b) <= 1 for a, b in pairs), count),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Genre


def _parse_genre(name) -> int:
    if isinstance(name, (int, np.integer)) and not isinstance(name, bool) and 0 <= name < len(GENRES):
        return int(name)
    text = "".join(c for c in str(name).lower().replace("&", "n") if c.isalnum())
    if text not in GENRES:
        raise VocabularyError(f"unknown genre {name!r}: use one of {', '.join(GENRES)}", "vocabulary.genre")
    return GENRES.index(text)


def _measure_genre(described: Described) -> tuple[int, ...] | None:
    return next((tuple(s.genres) for s in described.sources if s.genres), None)


# ---------------------------------------------------------------------------------------------------------------------
# Key


def common_key(scores: Sequence[MetricScore]) -> str | None:
    """Estimated key of several passages together.

    Args:
        scores: at least one passage.

    Returns:
        Token name without `k_`; None where nothing pitched sounds.
    """
    found = int(estimate_keys(sum(pitch_class_histogram(s) for s in scores))[0])
    return ESTIMATED_KEYS[found] if found >= 0 else None


def _measure_key(described: Described) -> int | None:
    # a label decides, then what is given; where nothing is given, the key is a wish about the answer
    name = next((s.key for s in described.sources if s.key is not None), None)
    known = described.given or (described.sources if described.music is None else (described.music,))
    if name is None and known:
        name = common_key(known)
    return None if name is None else KEY_NAMES.index(name)


def key_marks(asked: str, found: str | None) -> dict[str, bool | tuple[float, float]]:
    """How near one key is to another.

    Args:
        asked: token name of a key, without `k_`.
        found: another one; None: there is none.

    Returns:
        `key`, whether tonic and mode are the same; `key_mirex` (where mir_eval is installed), its weighted score of 1
        (fifths 0.5, relative 0.3, parallel 0.2).
    """
    if found is None:
        return {"key": False, "key_mirex": (0.0, 1.0)}
    same = {"key": split_key(asked) == split_key(found)}
    try:  # of the packages of evaluation
        from mir_eval.key import weighted_score
    except ImportError:
        return same
    names = [_mir_name(*split_key(key)) for key in (asked, found)]
    return same | {"key_mirex": (float(weighted_score(*names)), 1.0)}


def _score_key(asked, instruments, answer) -> dict:
    return key_marks(KEY_NAMES[asked], None if answer is None else estimate_key(answer))


def _mir_name(tonic: int, minor: bool) -> str:
    return f"{'C Db D Eb E F F# G Ab A Bb B'.split()[tonic]} {'minor' if minor else 'major'}"


# ---------------------------------------------------------------------------------------------------------------------
# The rows

_CONTROLS: list[Control] = [
    Control(
        name="instruments",
        kind="INSTRUMENT",
        form=("<INST_", ">"),
        names=[*map(str, range(128)), "DRUMS", "PIANO", "SAX"],
        repeats=True,
        parse=parse_instrument,
        word=int,
        measure=lambda d: d.instruments or None,
        help='e.g. "piano,drums" (default: those of the file)',
        option="names",
        drop=0.5,
        figures={"instruments": Figure("instruments")},
        score=_score_instruments,
    ),
    Control(
        name="density",
        kind="DENSITY",
        form=("<NOTE_DENSE_", ">"),
        names=[None, *map(str, range(1, 11))],
        level="track",
        parse=_parse_density,
        word=int,
        measure=lambda d: None if d.music is None else tuple(density_of(d.music).tolist()),
        help="how busy each instrument is",
        option="count",
        metavar="1-10",
        drop=2.0,
        from_answer=True,
        figures={
            "density_exact": Figure("density class", share=False),
            "density_within_1": Figure("density within one class", share=False),
        },
        score=_score_density,
    ),
    Control(
        name="bars",
        kind="BAR_COUNT",
        form=("<GEN_MEASURE_COUNT_", ">"),
        names=[None, *map(str, range(1, MAX_COUNTED_BARS + 1))],
        parse=int,
        word=int,
        measure=lambda d: d.bars.n_bars if d.bars.n_bars <= MAX_COUNTED_BARS else None,
        help="how many bars to generate (default: 8)",
        option="count",
        figures={"bars": Figure("bar count")},
        score=lambda asked, instruments, answer: {"bars": answer is not None and answer.n_bars == asked},
    ),
    Control(
        name="genre",
        kind="GENRE",
        form=("<GENRE_", ">"),
        names=GENRES,
        repeats=True,
        parse=_parse_genre,
        measure=_measure_genre,
        help='e.g. "classical" or "jazz,swing"',
        option="names",
    ),
    Control(
        name="meter",
        kind="METER",
        form=("<TS_", ">"),
        names=[f"{n}/{d}" for n, d in METERS],
        level="bar",
        parse=parse_meter,
        measure=lambda d: int(d.bars.meter[0]),
        word=lambda value: METERS[value],
        help='e.g. "3/4" (default: that of the file)',
        upstream=False,
        figures={"meter": Figure("meter")},
        score=_score_meter,
    ),
    Control(
        name="tempo",
        kind="TEMPO",
        form=("<BPM_", ">"),
        names=[str(x) for x in TEMPO_NAMES],
        level="bar",
        parse=parse_tempo,
        measure=lambda d: int(d.tempo[0]) if d.tempo is not None and len(d.tempo) and d.tempo[0] >= 0 else None,
        word=lambda value: float(TEMPO_CENTRES[value]),
        help="quarter notes a minute",
        option="number",
        upstream=False,
    ),
    Control(
        name="key",
        kind="KEY",
        form=("k_", ""),
        names=KEY_NAMES,
        parse=lambda word: KEY_NAMES.index(parse_key(word)),
        measure=_measure_key,
        help='e.g. "C major", "F# minor"',
        figures={
            "key": Figure("key (tonic and mode)"),
            "key_mirex": Figure("key, MIREX weighted (mir_eval)", share=False),
        },
        score=_score_key,
    ),
]
_sealed = False


def register(control: Control) -> None:
    """Add a control behind the others, before the token table is made (before a tokenizer or a model is imported).

    Args:
        control: its `name` and `kind` must be new.

    Raises:
        VocabularyError: the token table exists already, or the name or kind is taken.
    """
    if _sealed:
        raise VocabularyError(
            f"the token table is made already: register {control.name!r} before a tokenizer is imported",
            "vocabulary.table",
        )
    if control.name in {c.name for c in _CONTROLS} or control.kind in {c.kind for c in _CONTROLS}:
        raise VocabularyError(f"there is a control {control.name!r} or a kind {control.kind!r}", "vocabulary.table")
    _CONTROLS.append(control)


def all_controls() -> tuple[Control, ...]:
    """All rows in the order of a header; none can be added afterwards."""
    global _sealed
    _sealed = True
    return tuple(_CONTROLS)
