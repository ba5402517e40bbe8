"""Labelled windows for style, genre and quality, in which the label shows in the music alone.

Design decisions
- What surrounds the notes gives a corpus away. So every window has one form whatever its class: no header, no
  tempo, no velocity, the same program, and (style, genre) all its pitched tracks merged into one.
- Within a corpus the labels are the corpus's own (`folk`: kinds of dance tune, `drums`: styles of drumming). Across
  corpora (`genre`) every window is eight bars of 96 ticks written as 4/4: 4/4 and 2/2 as they are, 2/4 two bars in
  one. Triple and compound meters are left out, because pop has none: a meter would name the class.
- Classes are judged by song: a song has one prediction (the mean over its windows), and intervals are drawn over
  clusters (tune families, drummers). A class with fewer than `LEAST_SONGS` test songs is reported, not claimed.
- Splits are the manifest's. A corpus whose licence forbids commercial use takes no part.

Knows: manifests, stores, `MetricScore`, the prompt builder. Must not know: models, features, metrics.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..models.inputs_bertm import bare_segment, clip_durations, condense, merge_tracks
from ..models.music_grid import COMMON_TIME, BarTable
from ..models.music_names import KEY_NAMES, METER_TICKS
from ..models.music_score import MetricScore
from ..models.token_codec import parse_segment
from ..models.token_vocabulary import MetricVocabulary, TokenKind
from .annotations import transpose_key
from .manifest import CorpusFilter, Selection, SongFile, read_manifest
from .open import build_store
from .pitched_notes import pitched_notes
from .schema import Song
from .whole_files import replace_file


LEAST_SONGS = 20
SETS = ("folk", "drums", "genre", "quality")
FORMS = ("field", "full", "mixed", "condensed")  # of the windows of the quality set
FOLK_STYLES = ("reel", "jig", "hornpipe", "waltz", "morris")  # kinds with at least 20 train songs, mixed ones left out
DRUM_STYLES = ("rock", "jazz", "latin", "funk")  # styles that the test split holds more than once
GENRE_CLASSES = ("pop", "folk", "chorale", "lied", "songbook", "game")
_GENRE_OF = {
    ("pop909", "pop"): "pop",
    ("nottingham", "folk"): "folk",
    ("openewld", "folk"): "folk",
    ("chorales", "chorale"): "chorale",
    ("lieder", "lied"): "lied",
    ("openewld", "songbook"): "songbook",
    ("openewld", "jazz"): "songbook",
    ("gamemusic", "game"): "game",
}
_BAR = int(METER_TICKS[COMMON_TIME])
_NO_CONTEXT = np.empty(0, dtype=np.int32)


@dataclass(frozen=True)
class LabelledExample:
    """One labelled window.

    Attributes:
        ids: `[n]` int32, `<EOS> <MGEN> tracks <TE>`; no header, tempo or velocity.
        label: index into the names of its set.
        song: what one prediction is made for.
        cluster: what intervals are drawn over.
        split: "train", "validation" or "test".
        kind: where it comes from (a corpus; for quality "human", "starter T=1.0", "shuffled bars", ...).
        context: `[m]` int32, prompt of the window up to and with `<MGEN>` (quality only, else empty).
    """

    ids: np.ndarray
    label: int
    song: str
    cluster: str
    split: str
    kind: str = ""
    context: np.ndarray = field(default_factory=lambda: _NO_CONTEXT)

    def full(self) -> np.ndarray:
        """`[m + n - 2]` ids of the window behind its prompt: the form of a generated row. Without one, `ids`."""
        return np.concatenate([self.context, self.ids[2:]]) if len(self.context) else self.ids


@dataclass(frozen=True)
class LabelledData:
    """Labelled windows of one or more splits.

    Attributes:
        names: label names; they become a model's `id2label`.
        examples: the windows.
        vocabulary: the token table of `ids`, needed by `augment` only.
    """

    names: tuple[str, ...]
    examples: list[LabelledExample]
    vocabulary: MetricVocabulary | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def split(self, name: str) -> LabelledData:
        """The windows of one split."""
        return replace(self, examples=[e for e in self.examples if e.split == name])

    def of_kinds(self, kinds: Iterable[str]) -> LabelledData:
        """The windows of some kinds."""
        kinds = set(kinds)
        return replace(self, examples=[e for e in self.examples if e.kind in kinds])

    def labels(self) -> np.ndarray:
        """`[n]` int64 label of each window."""
        return np.array([e.label for e in self.examples], dtype=np.int64)

    def column(self, name: str) -> np.ndarray:
        """`[n]` of `song`, `cluster`, `split` or `kind`."""
        return np.array([getattr(e, name) for e in self.examples])

    def support(self) -> dict[str, int]:
        """`{label: number of songs}`."""
        songs = {name: set() for name in self.names}
        for example in self.examples:
            songs[self.names[example.label]].add(example.song)
        return {name: len(found) for name, found in songs.items()}

    def claimed(self, least: int = LEAST_SONGS) -> tuple[str, ...]:
        """Labels with enough songs for a claim."""
        return tuple(name for name, songs in self.support().items() if songs >= least)

    def augment(self, index: int, rng: np.random.Generator, low: int = -5, high: int = 6) -> np.ndarray:
        """A window moved by a random number of semitones (not its drums), inside 0 to 127.

        Args:
            index: of the window.
            rng: decides the semitones.
            low: least semitones.
            high: most semitones.

        Returns:
            `[n]` ids.

        Raises:
            ValueError: the set has no vocabulary.
        """
        if self.vocabulary is None:
            raise ValueError("this set was made without a vocabulary: give one to transpose its windows")
        return transpose_ids(self.vocabulary, self.examples[index].ids, int(rng.integers(low, high + 1)))

    def save(self, path: str | Path) -> None:
        """Write an `.npz` (no pickle), complete or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = self.examples
        text = {name: [getattr(e, name) for e in rows] for name in ("song", "cluster", "split", "kind")}
        arrays = {"names": json.dumps(self.names), "text": json.dumps(text), "label": self.labels().astype(np.int16)}
        for name in ("ids", "context"):
            parts = [getattr(e, name) for e in rows]
            arrays[name] = np.concatenate([*parts, _NO_CONTEXT]).astype(np.int16)
            arrays[f"{name}_end"] = np.cumsum([len(p) for p in parts], dtype=np.int64)
        replace_file(path, lambda partial: np.savez_compressed(partial, **arrays))

    @classmethod
    def load(cls, path: str | Path, vocabulary: MetricVocabulary | None = None) -> LabelledData:
        """Read what `save` wrote.

        Args:
            path: the `.npz` file.
            vocabulary: the token table of its ids, needed by `augment` only.
        """
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        text = json.loads(str(arrays["text"]))
        ids, context = (np.split(arrays[n].astype(np.int32), arrays[f"{n}_end"])[:-1] for n in ("ids", "context"))
        columns = (ids, arrays["label"].tolist(), text["song"], text["cluster"], text["split"], text["kind"], context)
        return cls(
            tuple(json.loads(str(arrays["names"]))), [LabelledExample(*row) for row in zip(*columns)], vocabulary
        )


# ---------------------------------------------------------------------------------------------------------------------
# Loading by name


def load(
    name: str,
    split: str | Sequence[str] = ("train", "validation", "test"),
    *,
    data: str | Path = "",
    cache: str | Path | None = None,
    tokenizer=None,
    vocabulary: MetricVocabulary | None = None,
    form: str = "field",
    **options,
) -> LabelledData:
    """A labelled set by name.

    Args:
        name: "folk", "drums", "genre" or "quality".
        split: one of "train", "validation", "test", or several.
        data: folder of the training pack.
        cache: folder of prepared stores and of `quality.npz`.
        tokenizer: whose token table to use; by default the package's table.
        vocabulary: the token table itself.
        form: quality only; see `in_form`.
        options: `window_bars`, `windows_a_song`, `max_tokens` of `labelled_windows`.

    Raises:
        ValueError: no set of this name or form.
        FileNotFoundError: no pack there, or the quality set has not been made (the message names the command).
    """
    if name not in SETS:
        raise ValueError(f"no labelled set {name!r}: there are {', '.join(SETS)}")
    if vocabulary is None:
        vocabulary = MetricVocabulary.default() if tokenizer is None else tokenizer.vocabulary
    splits = (split,) if isinstance(split, str) else tuple(split)
    if name == "quality":
        path = Path(cache or data) / "quality.npz"
        if not path.is_file():
            raise FileNotFoundError(
                f"no {path}: make it with python -m mortm_hf.evaluation.quality --data PACK --cache {path.parent}"
            )
        stored = LabelledData.load(path, vocabulary)
        stored = replace(stored, examples=[e for e in stored.examples if e.split in splits])
        return in_form(stored, form)
    if form != "field":
        raise ValueError(f"only the quality set has prompts: form must be 'field', got {form!r}")
    build = {"folk": folk_rule, "drums": drum_rule, "genre": genre_rule}[name]()
    return labelled_windows(build, splits, data, cache, vocabulary, **options)


def of_tracks(data: LabelledData, least: int) -> LabelledData:
    """The windows of at least so many tracks.

    Args:
        data: a labelled set.
        least: tracks.
    """
    if least <= 1:
        return data
    vocabulary = data.vocabulary or MetricVocabulary.default()
    counts = (int((vocabulary.kind[e.ids] == TokenKind.INSTRUMENT).sum()) for e in data.examples)
    return replace(data, examples=[e for e, n in zip(data.examples, counts) if n >= least])


def condensed_ids(vocabulary: MetricVocabulary, score: MetricScore, first: int = 0, last: int | None = None):
    """Bare ids (int32) of some bars of a window, all pitched tracks in one (`condense`).

    Args:
        vocabulary: the token table.
        score: the window.
        first: its first bar to take.
        last: the bar after the last one to take; by default all.
    """
    if first or last is not None:
        score = clip_durations(score.window(first, score.n_bars if last is None else min(last, score.n_bars)))
    return bare_segment(vocabulary, condense(score))


def in_form(data: LabelledData, form: str, bars: int | None = None) -> LabelledData:
    """Windows of a quality set as one of `FORMS`.

    Args:
        data: the set, as it is stored.
        form: "field" (bare windows, as they are), "full" (behind their prompts), "mixed" (by turns of each label one
            and the other) or "condensed" (bare windows, all pitched tracks in one: `condense`).
        bars: "condensed" only: the first so many bars; by default all.

    Raises:
        ValueError: no such form.
    """
    if form == "field":
        return data
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    if form == "condensed":
        vocabulary = data.vocabulary or MetricVocabulary.default()
        read = (parse_segment(vocabulary, e.ids).generated for e in data.examples)
        rows = [replace(e, ids=condensed_ids(vocabulary, s, 0, bars)) for e, s in zip(data.examples, read)]
        return replace(data, examples=rows)
    turn = dict.fromkeys(range(len(data.names)), 0)
    examples = []
    for example in data.examples:
        turn[example.label] += 1
        whole = form == "full" or turn[example.label] % 2 == 0
        examples.append(replace(example, ids=example.full()) if whole else example)
    return replace(data, examples=examples)


@dataclass(frozen=True)
class SetRule:
    """How a set is made.

    Attributes:
        names: its labels.
        selection: the files that take part.
        label: row of the manifest -> label name, or `None`.
        cluster: row -> unit of intervals.
        prepare: song -> passages, each a score of which windows are cut.
        window_bars: bars of a window.
        song: row -> what one prediction is made for.
    """

    names: tuple[str, ...]
    selection: Selection
    label: Callable[[SongFile], str | None]
    cluster: Callable[[SongFile], str]
    prepare: Callable[[MetricScore], list[MetricScore]]
    window_bars: int = 8
    song: Callable[[SongFile], str] = lambda row: row.song_id


def folk_rule() -> SetRule:
    """Kinds of dance tune of the nottingham corpus; clusters are tune families."""
    return SetRule(
        FOLK_STYLES,
        Selection({"nottingham": CorpusFilter()}),
        lambda row: row.subgenre if row.subgenre in FOLK_STYLES else None,
        lambda row: row.cluster,
        lambda score: [merge_tracks(p) for p in regular_passages(score)],
    )


def drum_rule() -> SetRule:
    """Styles of drumming of the groove corpus; clusters are drummers (each one plays in a style of his own). Windows
    are four bars long: many recordings are short."""
    return SetRule(
        DRUM_STYLES,
        Selection({"groove": CorpusFilter()}),
        lambda row: row.subgenre if row.subgenre in DRUM_STYLES else None,
        lambda row: row.cluster.rpartition("/")[0] or row.cluster,
        lambda score: [merge_tracks(p, drums=True) for p in regular_passages(score)],
        window_bars=4,
        song=lambda row: row.path,  # a `song_id` of this corpus is a whole session
    )


def genre_rule() -> SetRule:
    """Genres across corpora, all in bars of 96 ticks."""
    return SetRule(
        GENRE_CLASSES,
        Selection(
            {
                "pop909": CorpusFilter(("aligned",)),
                "nottingham": CorpusFilter(),
                "chorales": CorpusFilter(),
                "lieder": CorpusFilter(),
                "openewld": CorpusFilter(),
                "gamemusic": CorpusFilter(licence="BSD"),
            }
        ),
        lambda row: _GENRE_OF.get((row.corpus, row.genre)),
        lambda row: row.cluster,
        lambda score: [merge_tracks(p) for p in duple_passages(score)],
    )


def labelled_windows(
    rule: SetRule,
    splits: Sequence[str],
    data: str | Path,
    cache: str | Path | None,
    vocabulary: MetricVocabulary,
    window_bars: int | None = None,
    windows_a_song: int = 4,
    max_tokens: int = 2048,
) -> LabelledData:
    """The windows of a set, read from the pack.

    Args:
        rule: how the set is made.
        splits: "train", "validation", "test", or some of them.
        data: folder of the training pack.
        cache: folder of prepared stores, or `None`.
        vocabulary: the token table.
        window_bars: bars of a window; by default the rule's.
        windows_a_song: most windows of a song.
        max_tokens: longer windows are left out.
    """
    rows = {row.path: row for row in read_manifest(data)}
    bars = window_bars or rule.window_bars
    examples: list[LabelledExample] = []
    for split in splits:
        for song in build_store(data, rule.selection, split, cache).songs:
            row = rows[song.path]
            label = rule.label(row)
            if label is None:
                continue
            number, cluster = rule.names.index(label), rule.cluster(row)
            for window in windows_of(song, rule.prepare, bars, windows_a_song):
                ids = bare_segment(vocabulary, window)
                if len(ids) <= max_tokens:
                    examples.append(LabelledExample(ids, number, rule.song(row), cluster, split, song.corpus))
    return LabelledData(rule.names, examples, vocabulary)


def windows_of(
    song: Song, prepare: Callable[[MetricScore], list[MetricScore]], bars: int, limit: int
) -> list[MetricScore]:
    """Windows of a song, evenly over its consecutive ones; those in which fewer than half of the bars hold a note are
    left out.

    Args:
        song: the song.
        prepare: score -> passages of which windows are cut.
        bars: of a window.
        limit: most windows.
    """
    found = []
    for passage in prepare(song.score):
        for at in range(0, passage.n_bars - bars + 1, bars):
            window = clip_durations(passage.window(at, at + bars))
            if window.n_notes and len(np.unique(window.bar_of_notes())) * 2 >= bars:
                found.append(window)
    return evenly(found, limit)


def evenly(items: Sequence, count: int) -> list:
    """At most `count` items, evenly spread from the first to the last.

    Args:
        items: any sequence.
        count: how many are wanted.
    """
    if len(items) <= count:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, count).astype(int)]


# ---------------------------------------------------------------------------------------------------------------------
# One form for all


def _runs(bars: BarTable) -> list[tuple[int, int]]:
    """(first, last) of the stretches of regular bars of one meter."""
    change = np.append(True, (bars.meter[1:] != bars.meter[:-1]) | bars.irregular[1:] | bars.irregular[:-1])
    starts = np.flatnonzero(change)
    stops = np.append(starts[1:], bars.n_bars)
    return [(int(a), int(b)) for a, b in zip(starts, stops) if not bars.irregular[a]]


def regular_passages(score: MetricScore) -> list[MetricScore]:
    """The stretches of a song in one meter, without pickups and cut bars."""
    return [score.window(a, b) for a, b in _runs(score.bars)] if score.n_bars else []


def duple_passages(score: MetricScore) -> list[MetricScore]:
    """The stretches in 4/4, 2/2 or 2/4, written as 4/4 (two bars of 2/4 make one)."""
    found = []
    for passage in regular_passages(score):
        length = int(passage.bars.length[0])
        if length not in (_BAR, _BAR // 2):
            continue
        count = passage.bars.end // _BAR
        if not count:
            continue
        passage = passage.window(0, count * _BAR // length)
        bars = BarTable.regular(COMMON_TIME, count)
        found.append(replace(passage, bars=bars, tempo=np.full(count, -1, dtype=np.int16)))
    return found


def transpose_ids(vocabulary: MetricVocabulary, ids: np.ndarray, semitones: int) -> np.ndarray:
    """Ids with their pitches and keys moved (not pitches of drum tracks); unmoved where a pitch would leave 0 to 127.

    Args:
        vocabulary: the token table.
        ids: `[n]` token ids.
        semitones: upward.
    """
    notes = pitched_notes(vocabulary, ids)
    pitch = notes.pitch + semitones
    if not len(pitch) or pitch.min() < 0 or pitch.max() > 127:
        return ids
    out = ids.copy()
    out[notes.at] = vocabulary.lookup(TokenKind.PITCH)[pitch]
    for at in np.flatnonzero(vocabulary.kind[ids] == TokenKind.KEY):  # one, of a header
        name = transpose_key(KEY_NAMES[vocabulary.value[ids[at]]], semitones)
        out[at] = vocabulary.lookup(TokenKind.KEY)[KEY_NAMES.index(name)]
    return out
