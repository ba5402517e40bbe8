"""Figures of single passages of music: entropy, scale, groove, polyphony, self-similarity.

Which library holds which figure
- `muspy`: pitch-class entropy, scale consistency, polyphony rate (time with more than two pitches at once), empty-beat
  rate, called on the passage at 24 ticks a quarter.
- Our own: groove consistency. `muspy.groove_consistency` takes one length for all bars and counts bars by the last
  note-off, so a passage with a change of meter, or one whose last note ends on the bar line, is cut wrongly; where all
  bars are of one length and the last note ends inside the last bar both agree (a test). With 96 places a bar its value
  lies near 1 for all music, since most places are empty in any two bars; `groove_overlap` (shared onsets over all
  onsets of two neighbouring bars) has no such ceiling.
- Our own: self-similarity, over bars of true length.

Knows: quantised music, muspy. Must not know: models, tokens, files.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..models.music_names import DRUMS
from ..models.music_score import MetricScore


TICKS = 24  # a quarter
FIGURES = (
    "pitch_class_entropy",
    "scale_consistency",
    "groove_consistency",
    "groove_overlap",
    "polyphony_rate",
    "empty_beat_rate",
    "self_similarity",
    "notes_per_bar",
)


def to_muspy(score: MetricScore):
    """A passage as `muspy.Music` at 24 ticks a quarter."""
    import muspy

    tracks = []
    columns = np.stack([score.onset, score.pitch, score.duration, score.velocity], axis=1)
    for index, program in enumerate(score.programs.tolist()):
        notes = [muspy.Note(*row) for row in columns[score.track == index].tolist()]
        drums = program == DRUMS
        tracks.append(muspy.Track(program=0 if drums else program, is_drum=drums, notes=notes))
    return muspy.Music(resolution=TICKS, tracks=tracks)


def onset_patterns(score: MetricScore) -> np.ndarray:
    """`[n_bars, longest bar in ticks]` bool: where some note (drums too) begins."""
    bar = score.bar_of_notes()
    pattern = np.zeros((score.n_bars, int(score.bars.length.max(initial=1))), dtype=bool)
    pattern[bar, score.onset - score.bars.start[bar]] = True
    return pattern


def groove_consistency(score: MetricScore) -> float:
    """1 - mean share of the bar's ticks at which two neighbouring bars of one length differ in having an onset
    (Wu & Yang 2020); nan with no such pair."""
    pattern, length = onset_patterns(score), score.bars.length
    pairs = np.flatnonzero(length[1:] == length[:-1])
    if not len(pairs):
        return float("nan")
    differ = (pattern[pairs] != pattern[pairs + 1]).sum(axis=1)
    return float(1.0 - differ.sum() / length[pairs].sum())


def groove_overlap(score: MetricScore) -> float:
    """Onset places that two neighbouring bars of one length share, over the places where either has one, pooled;
    nan with no onset in any pair."""
    pattern, length = onset_patterns(score), score.bars.length
    pairs = np.flatnonzero(length[1:] == length[:-1])
    either = (pattern[pairs] | pattern[pairs + 1]).sum()
    return float((pattern[pairs] & pattern[pairs + 1]).sum() / either) if either else float("nan")


def bar_rolls(score: MetricScore) -> np.ndarray:
    """`[n_bars, cells]` unit vectors of what begins in each bar: one cell a pitch and sixteenth (six ticks), drums
    apart from pitched notes; zeros for a bar where nothing begins."""
    bar = score.bar_of_notes()
    place = (score.onset - score.bars.start[bar]) // 6
    drum = (score.programs == DRUMS)[score.track].astype(np.int64)
    width = int(place.max(initial=0)) + 1
    roll = np.zeros((score.n_bars, 2 * 128 * width))
    np.add.at(roll, (bar, (drum * 128 + score.pitch) * width + place), 1.0)
    norm = np.linalg.norm(roll, axis=1, keepdims=True)
    return roll / np.where(norm > 0, norm, 1.0)


def self_similarity(score: MetricScore) -> float:
    """Mean over the bars but the first of the greatest cosine with an earlier bar (1: every bar has been there
    before); bars where nothing begins are left out; nan with fewer than two bars."""
    rolls = bar_rolls(score)
    rolls = rolls[rolls.any(axis=1)]
    if len(rolls) < 2:
        return float("nan")
    cosine = np.tril(rolls @ rolls.T, k=-1)
    return float(cosine.max(axis=1)[1:].mean())


def figures(score: MetricScore) -> dict[str, float]:
    """All figures of `FIGURES` of one passage; nan where one is not defined (drums have no pitch classes)."""
    import muspy

    music = to_muspy(score)
    empty = score.n_notes == 0
    return {
        "pitch_class_entropy": float(muspy.pitch_class_entropy(music)),
        "scale_consistency": float(muspy.scale_consistency(music)),
        "groove_consistency": groove_consistency(score),
        "groove_overlap": groove_overlap(score),
        "polyphony_rate": float("nan") if empty else float(muspy.polyphony_rate(music)),
        "empty_beat_rate": float("nan") if empty else float(muspy.empty_beat_rate(music)),
        "self_similarity": self_similarity(score),
        "notes_per_bar": score.n_notes / max(score.n_bars, 1),
    }


def table_of_figures(scores: Sequence[MetricScore], progress: str | None = None) -> dict[str, np.ndarray]:
    """Figures of passages.

    Args:
        scores: the passages.
        progress: title of a progress bar; `None`: no bar.

    Returns:
        `{figure: [n]}`.
    """
    from tqdm import tqdm

    rows = [figures(s) for s in tqdm(scores, desc=progress, unit="passage", disable=progress is None)]
    return {name: np.array([row[name] for row in rows]) for name in FIGURES}
