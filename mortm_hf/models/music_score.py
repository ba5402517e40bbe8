"""Quantised music: the form between MIDI files and token ids.

Design decisions
- Columns of numpy arrays, sorted once; windows, track subsets and transposition are index operations.
- Immutable: every operation gives a new object that shares what it did not change.

Knows: the grid. Must not know: MIDI files, tokens, torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from .music_grid import BarTable


@dataclass
class CodecReport:
    """What quantisation changed: counts of notes, bars and events."""

    notes: int = 0
    duplicates: int = 0
    zero_length: int = 0
    clipped: int = 0
    cut_bars: int = 0
    ignored_meters: int = 0


@dataclass(frozen=True)
class ChordTable:
    """Chords: `onset [n]` int64 ticks, and `root`, `quality`, `bass` `[n]` int16 values of the chord token kinds.
    Each holds until the next."""

    onset: np.ndarray
    root: np.ndarray
    quality: np.ndarray
    bass: np.ndarray

    def __len__(self) -> int:
        return len(self.onset)

    def window(self, start: int, stop: int) -> ChordTable:
        """Chords in ticks `[start, stop)` re-based to 0; the one sounding at `start` is restated there."""
        first = int(np.searchsorted(self.onset, start, side="right")) - 1
        last = int(np.searchsorted(self.onset, stop, side="left"))
        rows = slice(max(first, 0), last)
        onset = np.maximum(self.onset[rows] - start, 0)
        return ChordTable(onset, self.root[rows], self.quality[rows], self.bass[rows])


@dataclass(frozen=True)
class MetricScore:
    """Quantised music.

    Attributes:
        bars: the bar table.
        track, onset, pitch, duration, velocity: `[n_notes]` int64; ticks are absolute, rows sorted by (track, onset,
            pitch, duration) without duplicates; track is an index into `programs`.
        programs: `[n_tracks]` int16 General MIDI programs, `DRUMS` for drums; drums last.
        tempo: `[n_bars]` int16 tempo bins, -1 where none is known.
        key: token name without `k_`, or None. chords: `ChordTable` or None. genres: genre values. names: of tracks.
        explicit_velocity: what an earlier decode recorded about velocity tokens, else None.
    """

    bars: BarTable
    track: np.ndarray
    onset: np.ndarray
    pitch: np.ndarray
    duration: np.ndarray
    velocity: np.ndarray
    programs: np.ndarray
    tempo: np.ndarray
    key: str | None = None
    chords: ChordTable | None = None
    genres: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    explicit_velocity: bool | None = None
    report: CodecReport = field(default_factory=CodecReport, compare=False)

    @property
    def n_bars(self) -> int:
        return self.bars.n_bars

    @property
    def n_tracks(self) -> int:
        return len(self.programs)

    @property
    def n_notes(self) -> int:
        return len(self.onset)

    def bar_of_notes(self) -> np.ndarray:
        """`[n_notes]` bar of each onset."""
        return self.bars.of(self.onset)

    def sounding_tracks(self) -> np.ndarray:
        """Indices of the tracks that have notes."""
        return np.flatnonzero(np.bincount(self.track, minlength=self.n_tracks))

    def _select(self, rows: np.ndarray, shift: int, **changes) -> MetricScore:
        notes = {name: getattr(self, name)[rows] for name in ("track", "pitch", "duration", "velocity")}
        return replace(self, onset=self.onset[rows] - shift, **notes, **changes)

    def window(self, start: int, stop: int, tracks=None) -> MetricScore:
        """Bars `[start, stop)` re-based to tick 0: the notes whose onset lies inside, with whole durations. Track
        indices stay; `tracks` keeps the notes of some of them only."""
        first, last = int(self.bars.start[start]), int(self.bars.start[stop])
        rows = (self.onset >= first) & (self.onset < last)
        if tracks is not None:
            rows &= np.isin(self.track, tracks)
        chords = None if self.chords is None else self.chords.window(first, last)
        return self._select(
            np.flatnonzero(rows),
            first,
            bars=self.bars.window(start, stop),
            tempo=self.tempo[start:stop],
            chords=chords,
        )

    def take_tracks(self, tracks) -> MetricScore:
        """Only these tracks, renumbered in the given order."""
        tracks = np.asarray(tracks, dtype=np.int64)
        new_index = np.full(self.n_tracks + 1, -1, dtype=np.int64)
        new_index[tracks] = np.arange(len(tracks))
        rows = np.flatnonzero(new_index[self.track] >= 0)
        moved = new_index[self.track[rows]]
        order = np.argsort(moved, kind="stable")
        names = tuple(self.names[t] for t in tracks) if self.names else ()
        chosen = self._select(rows[order], 0, programs=self.programs[tracks], names=names)
        return replace(chosen, track=moved[order])
