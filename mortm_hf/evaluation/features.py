"""Simple features of a window, without any notion of order, and classifiers over them.

Design decisions
- This is the baseline that a trained encoder has to beat, so it is made strong: histograms of everything that can be
  counted, plus density, range and likeness of bars, under logistic regression and a random forest, settings chosen on
  the validation split.
- Groups of columns have names, so that a single group ("duration", "meter") shows how easily a label is read off.
- Windows are stacked into one table of notes and counted with `bincount`; nothing loops over notes.

Knows: `MetricScore`, scikit-learn. Must not know: models of this package, corpora.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..models.music_names import METERS
from ..models.music_score import MetricScore
from ..models.token_codec import parse_segment
from ..models.token_vocabulary import MetricVocabulary


_TIME_EDGES = np.array([*range(1, 25), 30, 36, 42, 48, 60, 72, 96, 144, 192])


@dataclass(frozen=True)
class Features:
    """Features of windows.

    Attributes:
        values: `[n, columns]` float32.
        groups: the columns of each group.
    """

    values: np.ndarray
    groups: dict[str, slice]

    def of(self, *names: str) -> np.ndarray:
        """The columns of some groups."""
        return np.concatenate([self.values[:, self.groups[name]] for name in names], axis=1)


def scores_of(vocabulary: MetricVocabulary, rows: Sequence[np.ndarray]) -> list[MetricScore]:
    """The generated fields of id sequences; an unreadable one is an empty score.

    Args:
        vocabulary: the token table.
        rows: ids of each window.
    """
    return [parse_segment(vocabulary, row).generated for row in rows]


def bag_of_features(scores: Sequence[MetricScore]) -> Features:
    """Features of windows; every histogram is a share of its own counts.

    Groups: `pitch` (128), `pitch class` (12 as written, 12 from the commonest upward), `interval` (melodic steps of a
    track -13..13, simultaneous ones mod 12), `duration`, `step` (between onsets), `onset` (phase in a quarter, beat),
    `meter` (as written), `density`, `range`, `repetition`.
    """
    n = len(scores)
    count = np.array([s.n_notes for s in scores])
    row = np.repeat(np.arange(n), count)

    def stack(name: str) -> np.ndarray:
        parts = [getattr(s, name) for s in scores]
        return np.concatenate([*parts, np.zeros(0, np.int64)]).astype(np.int64)

    track, onset, pitch, duration = (stack(c) for c in ("track", "onset", "pitch", "duration"))
    bar = np.concatenate([*(s.bar_of_notes() for s in scores), np.zeros(0, np.int64)]).astype(np.int64)
    lines = np.concatenate([*(s.bars.start[:-1][s.bar_of_notes()] for s in scores), np.zeros(0, np.int64)])
    inside = onset - lines.astype(np.int64)

    def shares(rows, values, size: int) -> np.ndarray:
        table = np.bincount(rows * size + values, minlength=n * size).reshape(n, size)
        return table / np.maximum(table.sum(axis=1, keepdims=True), 1)

    def times(rows, values) -> np.ndarray:
        return shares(rows, np.searchsorted(_TIME_EDGES, values, side="right"), len(_TIME_EDGES) + 1)

    classes = shares(row, pitch % 12, 12)
    from_commonest = classes[np.arange(n)[:, None], (classes.argmax(axis=1)[:, None] + np.arange(12)) % 12]
    # The highest note of each onset of a track is its melody; intervals run between successive ones.
    top = np.append((row[1:] != row[:-1]) | (track[1:] != track[:-1]) | (onset[1:] != onset[:-1]), True)[: len(row)]
    m_row, m_track, m_pitch = row[top], track[top], pitch[top]
    follows = (m_row[1:] == m_row[:-1]) & (m_track[1:] == m_track[:-1])
    melodic = np.clip(np.diff(m_pitch), -13, 13)[follows] + 13
    order = np.lexsort((pitch, onset, row))
    o_row, o_onset, o_pitch = row[order], onset[order], pitch[order]
    together = (o_row[1:] == o_row[:-1]) & (o_onset[1:] == o_onset[:-1])
    harmonic = (np.diff(o_pitch) % 12)[together]
    new = np.append(True, ~together)[: len(o_row)]
    u_row, u_onset = o_row[new], o_onset[new]
    step_row = u_row[1:][u_row[1:] == u_row[:-1]]
    step = np.diff(u_onset)[u_row[1:] == u_row[:-1]]

    bars = np.array([s.n_bars for s in scores])
    quarters = np.maximum([s.bars.end / 24 for s in scores], 1)
    onsets = np.bincount(u_row, minlength=n)
    bar_rows = np.repeat(np.arange(n), bars)
    meters = np.concatenate([*(s.bars.meter for s in scores), np.zeros(0, np.int64)]).astype(np.int64)
    groups = {
        "pitch": shares(row, pitch, 128),
        "pitch class": np.concatenate([classes, from_commonest], axis=1),
        "interval": np.concatenate(
            [shares(m_row[1:][follows], melodic, 27), shares(o_row[1:][together], harmonic, 12)], axis=1
        ),
        "duration": times(row, duration),
        "step": times(step_row, step),
        "onset": np.concatenate([shares(row, inside % 24, 24), shares(row, inside // 24, 8)], axis=1),
        "meter": shares(bar_rows, meters, len(METERS)),
        "density": np.stack(
            [
                np.log1p(count / quarters),
                np.log1p(onsets / quarters),
                count / np.maximum(onsets, 1),
                [s.n_tracks for s in scores],
            ],
            axis=1,
        ),
        "range": _range(n, row, pitch),
        "repetition": _likeness(n, row, bar, inside, pitch, bars),
    }
    at, slices = 0, {}
    for name, values in groups.items():
        slices[name] = slice(at, at + values.shape[1])
        at += values.shape[1]
    return Features(np.concatenate(list(groups.values()), axis=1).astype(np.float32), slices)


def _range(n: int, row: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    """`[n, 5]` lowest, highest, mean, spread of the pitches, and how many there are."""
    count = np.maximum(np.bincount(row, minlength=n), 1)
    low, high = np.full(n, 128), np.full(n, -1)
    np.minimum.at(low, row, pitch)
    np.maximum.at(high, row, pitch)
    mean = np.bincount(row, pitch, minlength=n) / count
    spread = np.sqrt(np.maximum(np.bincount(row, pitch.astype(float) ** 2, minlength=n) / count - mean**2, 0))
    distinct = np.bincount(np.unique(row * 128 + pitch) // 128, minlength=n)
    return np.stack([low, high, mean, spread, distinct], axis=1)


def _likeness(n: int, row, bar, inside, pitch, bars) -> np.ndarray:
    """`[n, 7]` how alike the bars of a window are: cosine of pitch classes and of onset patterns of neighbouring bars
    (mean, least) and of each bar with the whole (mean, least of pitch classes), and the share of bars that repeat an
    earlier one note for note."""
    most = int(bars.max(initial=1))
    cell = row * most + bar
    classes = np.bincount(cell * 12 + pitch % 12, minlength=n * most * 12).reshape(n, most, 12).astype(float)
    rhythm = np.bincount(cell * 64 + np.minimum(inside // 3, 63), minlength=n * most * 64)
    rhythm = rhythm.reshape(n, most, 64).astype(float)
    filled = classes.sum(-1) > 0

    def cosine(a, b) -> np.ndarray:
        size = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
        return (a * b).sum(-1) / np.maximum(size, 1e-9)

    def summary(values, valid, least: bool = True) -> list[np.ndarray]:
        mean = (values * valid).sum(1) / np.maximum(valid.sum(1), 1)
        return [mean, np.where(valid.any(1), np.where(valid, values, 2).min(1, initial=2), 0)] if least else [mean]

    pairs = filled[:, 1:] & filled[:, :-1]
    columns = summary(cosine(classes[:, 1:], classes[:, :-1]), pairs)
    columns += summary(cosine(rhythm[:, 1:], rhythm[:, :-1]), pairs)
    columns += summary(cosine(classes, classes.sum(1, keepdims=True)), filled)
    # a bar's content as one number: a sum of hashes of its notes (order does not matter, notes are distinct)
    mixed = (inside * 128 + pitch + 1).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    content = np.zeros(n * most, dtype=np.uint64)
    np.add.at(content, cell, mixed * np.uint64(0xBF58476D1CE4E5B9))
    content = content.reshape(n, most)
    same = (content[:, :, None] == content[:, None, :]) & filled[:, :, None] & filled[:, None, :]
    repeats = np.tril(same, -1).any(-1).sum(1) / np.maximum(filled.sum(1), 1)
    return np.stack([*columns, repeats], axis=1)


@dataclass(frozen=True)
class Baseline:
    """A fitted baseline.

    Attributes:
        model: of scikit-learn.
        names: groups of columns that it reads.
        n_labels: how many labels there are.
        chosen: name of the settings that won on validation.
    """

    model: object
    names: tuple[str, ...]
    n_labels: int
    chosen: str

    def predict(self, features: Features) -> np.ndarray:
        """`[n, labels]` log-probabilities."""
        probability = self.model.predict_proba(features.of(*self.names))
        full = np.full((len(probability), self.n_labels), 1e-6)
        full[:, self.model.classes_] = np.maximum(probability, 1e-6)
        return np.log(full)


def fit_baseline(
    train: Features,
    labels: np.ndarray,
    validation: Features,
    validation_labels: np.ndarray,
    n_labels: int,
    names: Sequence[str] | None = None,
    forest: bool = True,
    seed: int = 0,
) -> Baseline:
    """Logistic regressions of two strengths, with and without balanced classes, and a random forest; the one with the
    best macro-F1 on validation.

    Args:
        train: features to fit on.
        labels: `[n]` of these.
        validation: features to choose on.
        validation_labels: `[m]` of these.
        n_labels: how many labels there are.
        names: groups of columns to use; by default all.
        forest: try a random forest too.
        seed: of the forest.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    names = tuple(names or train.groups)
    x, held = train.of(*names), validation.of(*names)
    candidates = {
        f"logistic regression, C={c}, {weight or 'unbalanced'}": make_pipeline(
            StandardScaler(), LogisticRegression(C=c, max_iter=500, class_weight=weight)
        )
        for c in (0.01, 0.1)
        for weight in ("balanced", None)
    }
    if forest:
        candidates["random forest"] = RandomForestClassifier(
            300, min_samples_leaf=2, class_weight="balanced_subsample", random_state=seed, n_jobs=1
        )
    best: tuple[float, str] | None = None
    for name, model in candidates.items():
        model.fit(x, labels)
        score = f1_score(validation_labels, model.predict(held), average="macro", zero_division=0)
        if best is None or score > best[0]:
            best = (score, name)
    return Baseline(candidates[best[1]], names, n_labels, best[1])
