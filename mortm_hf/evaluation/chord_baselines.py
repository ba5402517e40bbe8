"""What a chord estimator has to beat: the commonest chord, and matching templates.

Design decisions
- *Majority*: the chord that sounds longest in the annotated train songs, as it is and relative to the estimated key
  (its commonest degree): two constants.
- *Template matching* (Fujishima 1999): the duration-weighted pitch-class profile of a stretch is compared with the
  binary profile of every chord by the cosine; chords of four notes pay, the pitch class of the lowest sounding notes
  may count for the root, and changing the chord may cost something (Viterbi). Length of the stretch and the three
  weights are chosen on the validation split for the mean of root and root + quality, so that it is no straw man.
- *Templates with a hint*: the same, given another estimate (a model's): its chord may count for something, and
changing
  where it changes may cost less. With both weights 0 it is the template matcher, so what it gains is the hint's.

Knows: quantised music, chord tables. Must not know: models, tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..data.annotations import PITCH_ROOT, ROOT_PITCH
from ..models.music_harmony import (
    ESTIMATED_KEYS,
    NO_CHORD,
    QUALITY_TONES,
    estimate_keys,
    merge_repeats,
    pitch_class_histogram,
)
from ..models.music_names import DRUMS, QUALITY_NAMES
from ..models.music_score import ChordTable, MetricScore
from .chord_estimation import METRICS, compare


TEMPLATE_QUALITIES = ("None", "m", "7", "maj7", "m7", "dim", "m7b5", "dim7", "aug", "sus4", "sus2", "6", "m6")


def _constant(root: int, quality: int) -> ChordTable:
    return ChordTable(*(np.array([v]) for v in (0, root, quality, NO_CHORD[2])))


@dataclass(frozen=True)
class Majority:
    """The commonest chord of the train songs; by key mode its commonest degree.

    Attributes:
        chord: (root pitch class, quality).
        degree: for major and minor keys (semitones above the tonic, quality).
    """

    chord: tuple[int, int]
    degree: tuple[tuple[int, int], tuple[int, int]]

    @classmethod
    def fit(cls, songs: Iterable[MetricScore]) -> Majority:
        """Count annotated chords by duration."""
        plain: Counter = Counter()
        degrees: tuple[Counter, Counter] = (Counter(), Counter())
        for song in songs:
            if song.chords is None:
                continue
            key = int(estimate_keys(pitch_class_histogram(song))[0])
            length = np.diff(np.append(song.chords.onset, song.bars.end))
            pitches = ROOT_PITCH[song.chords.root]
            for pitch, quality, ticks in zip(pitches.tolist(), song.chords.quality.tolist(), length.tolist()):
                if pitch < 0:
                    continue
                plain[pitch, quality] += ticks
                if key >= 0:
                    degrees[key // 12][(pitch - key) % 12, quality] += ticks
        tonic = ((0, QUALITY_NAMES.index("None")), (0, QUALITY_NAMES.index("m")))
        return cls(
            plain.most_common(1)[0][0] if plain else tonic[0],
            tuple(c.most_common(1)[0][0] if c else tonic[i] for i, c in enumerate(degrees)),
        )

    def estimate(self, song: MetricScore, by_key: bool = False) -> ChordTable:
        """One chord for the whole song.

        Args:
            song: quantised music.
            by_key: the commonest degree of the song's estimated key, instead of the commonest chord.
        """
        pitch, quality = self.chord
        if by_key:
            key = max(int(estimate_keys(pitch_class_histogram(song))[0]), 0)
            step, quality = self.degree[key // 12]
            pitch = (key + step) % 12
        return _constant(int(PITCH_ROOT[pitch]), quality)

    def __str__(self) -> str:
        return f"{ESTIMATED_KEYS[self.chord[0]][:-1]}:{QUALITY_NAMES[self.chord[1]]}"


def profiles(song: MetricScore, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What sounds between neighbouring edges; drums do not count.

    Args:
        song: quantised music.
        edges: `[n + 1]` ascending ticks.

    Returns:
        `[n, 12]` ticks sounded by each pitch class, and the same of the lowest sounding notes alone.
    """
    pitched = song.programs[song.track] != DRUMS if song.n_notes else np.zeros(0, bool)
    onset, pitch, stop = song.onset[pitched], song.pitch[pitched], (song.onset + song.duration)[pitched]
    end = int(edges[-1])
    change = np.zeros((128, end + 1), dtype=np.int32)
    np.add.at(change, (pitch, np.minimum(onset, end)), 1)
    np.add.at(change, (pitch, np.minimum(stop, end)), -1)
    sounding = np.cumsum(change[:, :-1], axis=1)
    starts = edges[:-1]
    folded = np.zeros((12, end), dtype=np.int32)
    np.add.at(folded, np.arange(128) % 12, sounding)
    lowest = np.argmax(sounding > 0, axis=0)
    bass = np.zeros((12, end), dtype=np.int32)
    ticks = np.flatnonzero(sounding.any(axis=0))
    bass[lowest[ticks] % 12, ticks] = 1
    return np.add.reduceat(folded, starts, axis=1).T, np.add.reduceat(bass, starts, axis=1).T


@dataclass(frozen=True)
class Templates:
    """Template matching.

    Attributes:
        stretch: "beat" (a quarter), "half" (half a bar) or "bar".
        extra: price of every chord tone beyond three.
        bass: weight of the lowest notes.
        change: price of a change.
        hint_root: worth of the hint's root.
        hint_chord: worth of the hint's whole chord.
        hint_change: share of the price that a change saves where the hint changes.
    """

    stretch: str = "bar"
    extra: float = 0.05
    bass: float = 0.0
    change: float = 0.0
    hint_root: float = 0.0
    hint_chord: float = 0.0
    hint_change: float = 0.0

    def edges(self, song: MetricScore) -> np.ndarray:
        """Ticks where stretches begin, and the end."""
        start = song.bars.start
        if self.stretch == "bar":
            return start
        if self.stretch == "half":
            middle = start[:-1] + (np.diff(start) + 1) // 2
            return np.unique(np.concatenate([start, middle]))
        beats = np.concatenate([np.arange(a, b, 24) for a, b in zip(start[:-1].tolist(), start[1:].tolist())])
        return np.append(beats, start[-1])

    def estimate(self, song: MetricScore, hint: ChordTable | None = None) -> ChordTable:
        """The chords of a song.

        Args:
            song: quantised music.
            hint: another estimate of its chords.
        """
        edges = self.edges(song)
        profile, bass = profiles(song, edges)
        return self._decode(edges, profile, bass, hint)

    def _decode(
        self, edges: np.ndarray, profile: np.ndarray, bass: np.ndarray, hint: ChordTable | None = None
    ) -> ChordTable:
        root, quality, shape, size = _templates()
        norm = np.linalg.norm(profile, axis=1, keepdims=True)
        fit = (profile / np.maximum(norm, 1e-9)) @ shape.T
        lowest = bass / np.maximum(bass.sum(axis=1, keepdims=True), 1)
        fit = fit - self.extra * (size - 3) + self.bass * lowest[:, root]
        sounding = np.flatnonzero(norm[:, 0] > 0)
        if not len(sounding):
            return _constant(*NO_CHORD[:2])
        price = np.full(len(sounding), self.change)
        if hint is not None and len(hint):
            hinted = np.searchsorted(hint.onset, edges[:-1][sounding], side="right") - 1
            same = (ROOT_PITCH[hint.root[hinted]][:, None] == root) & (hinted >= 0)[:, None]
            fit[sounding] += self.hint_root * same + self.hint_chord * (
                same & (hint.quality[hinted][:, None] == quality)
            )
            changes = np.append(True, hinted[1:] != hinted[:-1])
            price = price * np.where(changes, 1 - self.hint_change, 1.0)
        path = _viterbi(fit[sounding], price) if self.change else fit[sounding].argmax(axis=1)
        last = np.searchsorted(sounding, np.arange(len(fit)), side="right") - 1  # silence holds what was
        path, sounds = path[np.maximum(last, 0)], last >= 0
        chord_root, chord_quality = PITCH_ROOT[root[path]], quality[path]
        chord_root = np.where(sounds, chord_root, NO_CHORD[0])
        chord_quality = np.where(sounds, chord_quality, NO_CHORD[1])
        return merge_repeats(ChordTable(edges[:-1], chord_root, chord_quality, np.full(len(path), NO_CHORD[2])))

    @classmethod
    def tune(
        cls,
        songs: Sequence[MetricScore],
        references: Sequence[ChordTable],
        hints: Sequence[ChordTable | None] | None = None,
    ) -> Templates:
        """The best settings on some songs (mean of root and root + quality over all their quarters), found one setting
        at a time, twice round; those of the hint where there are hints.

        Args:
            songs: quantised music.
            references: their annotated chords.
            hints: other estimates of their chords.
        """
        grid = {"stretch": ("bar", "half", "beat"), "bass": (0.0, 0.1, 0.2, 0.4)}
        grid |= {"change": (0.0, 0.05, 0.1, 0.25, 0.5), "extra": (0.0, 0.03, 0.06, 0.1)}
        if hints is not None:
            grid |= {"hint_root": (0.0, 0.05, 0.1, 0.2), "hint_chord": (0.0, 0.03, 0.06, 0.12)}
            grid |= {"hint_change": (0.0, 0.4, 0.7, 1.0)}
        hints = [None] * len(songs) if hints is None else hints
        seen = {}
        for stretch in grid["stretch"]:
            edges = [cls(stretch).edges(song) for song in songs]
            seen[stretch] = [(e, *profiles(song, e)) for song, e in zip(songs, edges)]

        def value(rule: Templates) -> float:
            scores = [
                compare(reference, rule._decode(*parts, hint), int(parts[0][-1]))
                for parts, reference, hint in zip(seen[rule.stretch], references, hints)
            ]
            return sum(sum(s[m][0] for s in scores) / sum(s[m][1] for s in scores) for m in list(METRICS)[:2])

        chosen = cls()
        if not songs:
            return chosen
        best = value(chosen)
        for name in (*grid, *grid):
            for option in grid[name]:
                rule = replace(chosen, **{name: option})
                if rule != chosen and (found := value(rule)) > best:
                    best, chosen = found, rule
        return chosen


def _templates() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(root pitch class, quality, `[n, 12]` unit template, number of tones) of every chord that is matched."""
    chords = [(pitch, QUALITY_NAMES.index(name)) for name in TEMPLATE_QUALITIES for pitch in range(12)]
    tones = [[(pitch + t) % 12 for t in QUALITY_TONES[QUALITY_NAMES[quality]]] for pitch, quality in chords]
    table = np.array([np.isin(np.arange(12), some) for some in tones], dtype=np.float64)
    size = table.sum(axis=1)
    root, quality = np.array(chords).T
    return root, quality, table / np.sqrt(size)[:, None], size


def _viterbi(fit: np.ndarray, price: np.ndarray) -> np.ndarray:
    """`[n, chords]` fits -> the path with the greatest sum, where a change into row i costs `price[i]`."""
    back = np.zeros(fit.shape, dtype=np.int32)
    total = fit[0]
    stay = np.arange(fit.shape[1])
    for step in range(1, len(fit)):
        leap = int(total.argmax())
        moves = total[leap] - price[step] > total
        back[step] = np.where(moves, leap, stay)
        total = np.where(moves, total[leap] - price[step], total) + fit[step]
    path = np.zeros(len(fit), dtype=np.int64)
    path[-1] = int(total.argmax())
    for step in range(len(fit) - 1, 0, -1):
        path[step - 1] = back[step, path[step]]
    return path
