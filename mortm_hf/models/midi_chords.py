"""Chord annotation files -> chords on the grid.

Design decisions
- Two published layouts: tab-separated spans in MIDI ticks (`start_tick  end_tick  chord`, the resolution stated in a
  comment line, else 480 a quarter) and spans in seconds (`start  end  label`, as `.lab` and `chord_midi.txt` files).
- Seconds go through the tempo map of the MIDI file itself, so a chord stands where it sounds.
- A gap of half a tick or more between two spans, and what follows the last one, is no chord. Chords stand at their
  true onset, rounded to the grid; one shorter than half a tick vanishes in the next; repeats merge.

Knows: text, ticks, chord names. Must not know: tokens' ids, archives, models.
"""

from __future__ import annotations

import os
import re

import numpy as np

from .errors_mortm import PromptError
from .music_grid import TICKS_PER_QUARTER
from .music_harmony import chord_table
from .music_score import ChordTable


CHORD_FILES = (".tsv", ".txt", ".lab", ".csv")


def is_chord_file(value) -> bool:
    """Whether a `chords` argument names an annotation file."""
    if isinstance(value, os.PathLike):
        return True
    return isinstance(value, str) and value.lower().endswith(CHORD_FILES)


def read_chord_file(path, midi=None) -> ChordTable | None:
    """An annotation file -> `ChordTable` in absolute grid ticks; None when it holds no span.

    Args:
        path: `.chords.tsv` in ticks, or `.txt` / `.lab` in seconds.
        midi: the `symusic.Score` (in ticks) that the annotation belongs to; needed for seconds.

    Raises:
        PromptError: the file cannot be read (`prompt.material`).
        VocabularyError: a label that is no chord.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PromptError(f"cannot read the chord file {path}: {reason}") from None
    try:
        return parse_chord_text(text, midi)
    except PromptError as error:
        raise PromptError(f"{path}: {error}", error.code) from None


def parse_chord_text(text: str, midi=None, clock: float | None = None) -> ChordTable | None:
    """`read_chord_file` on the text itself.

    Args:
        text: content of an annotation file.
        midi: the `symusic.Score` (in ticks) that it belongs to; needed for seconds without `clock`.
        clock: quarters a minute in which seconds are counted, whatever the tempo of the MIDI file is.

    Returns:
        `ChordTable` in absolute grid ticks; None when the text holds no span.

    Raises:
        PromptError: a line that is no span, or seconds without a MIDI file (`prompt.material`).
        VocabularyError: a label that is no chord.
    """
    in_ticks, resolution, rows = False, 480, []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("#"):
            stated = re.search(r"(\d+) per quarter", line)
            resolution = int(stated.group(1)) if stated else resolution
            continue
        if line.lower().startswith("start_tick"):
            in_ticks = True
            continue
        parts = line.split("\t") if "\t" in line else line.split()
        if not line.strip():
            continue
        try:
            rows.append((float(parts[0]), float(parts[1]), parts[2].strip()))
        except (IndexError, ValueError):
            raise PromptError(f"line {number} is not 'start end chord': {line.strip()!r}") from None
    if not rows:
        return None
    rows.sort(key=lambda row: row[:2])
    edges = np.array([row[:2] for row in rows])
    if in_ticks:
        quarter = edges / resolution
    elif clock is not None:
        quarter = edges * (clock / 60.0)
    elif midi is None:
        raise PromptError("chords in seconds need the MIDI file they belong to: give `song` as a path or bytes")
    else:
        quarter = quarters_of_seconds(edges, midi)
    return _change_points(quarter * TICKS_PER_QUARTER, [row[2] for row in rows])


def quarters_of_seconds(seconds: np.ndarray, midi) -> np.ndarray:
    """Seconds -> quarters, on the tempo map of a file.

    Args:
        seconds: times of any shape.
        midi: `symusic.Score` in ticks; 120 quarters a minute where it states no tempo.

    Returns:
        Times in quarters, of the same shape.
    """
    columns = midi.tempos.numpy() if len(midi.tempos) else {"time": np.zeros(1), "mspq": np.full(1, 5e5)}
    at = np.asarray(columns["time"], dtype=np.float64) / midi.ticks_per_quarter
    per_quarter = np.asarray(columns["mspq"], dtype=np.float64) / 1e6
    if at[0] > 0:
        at, per_quarter = np.append(0.0, at), np.append(0.5, per_quarter)
    clock = np.append(0.0, np.cumsum(np.diff(at) * per_quarter[:-1]))
    index = np.clip(np.searchsorted(clock, seconds, side="right") - 1, 0, len(clock) - 1)
    return at[index] + (seconds - clock[index]) / per_quarter[index]


def _change_points(spans: np.ndarray, labels: list[str]) -> ChordTable | None:
    """Spans `[n, 2]` in grid ticks (float) -> where the chord changes."""
    ends = np.append(spans[1:, 0], np.inf)
    gap = ends - spans[:, 1] >= 0.5
    place = np.concatenate([spans[:, 0], spans[gap, 1]])
    names = [*labels, *["N"] * int(gap.sum())]
    onset = np.floor(place + 0.5).astype(np.int64)
    order = np.argsort(place, kind="stable")
    keep = [i for i in order.tolist() if onset[i] >= 0]
    return chord_table(onset[keep], [names[i] for i in keep]) if keep else None
