"""Quantised music: the form between MIDI files and token ids.

Design decisions
- Columns of numpy arrays, sorted once; windows, track subsets and transposition are index operations.
- Immutable: every operation gives a new object that shares what it did not change.
- Writing generated bars into a song leaves all notes outside them and all other tracks exactly as they are. A MIDI
  file pairs the notes of one pitch first-in first-out, so kept notes would change if a generated note of their pitch
  ended before one that began earlier, or rang past one that begins later: generated notes are cut where a kept note of
  the same pitch starts, and one that falls inside a kept note lasts to that note's end. Generated notes without
  velocities take the median of their track.

Knows: the grid. Must not know: MIDI files, tokens, torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from .errors_mortm import PromptError
from .music_grid import BarTable
from .music_names import DRUMS, MAX_DURATION


@dataclass
class CodecReport:
    """What quantisation changed.

    Attributes:
        notes: notes of the file.
        duplicates: notes that became equal on the grid and were merged.
        zero_length: notes without duration in the file, written with one tick.
        clipped: notes that were shortened to the longest duration.
        cut_bars: bars that a meter change or a bar line inside them cut short.
        ignored_meters: meter events that no bar can have.
    """

    notes: int = 0
    duplicates: int = 0
    zero_length: int = 0
    clipped: int = 0
    cut_bars: int = 0
    ignored_meters: int = 0


@dataclass(frozen=True)
class ChordTable:
    """Chords; each holds until the next.

    Attributes:
        onset: `[n]` int64 ticks, ascending.
        root: `[n]` int16 values of CHORD_ROOT.
        quality: `[n]` int16 values of CHORD_QUALITY.
        bass: `[n]` int16 values of CHORD_BASS.
    """

    onset: np.ndarray
    root: np.ndarray
    quality: np.ndarray
    bass: np.ndarray

    def __len__(self) -> int:
        return len(self.onset)

    def window(self, start: int, stop: int) -> ChordTable:
        """Chords in some ticks, re-based to 0; the one sounding at `start` is restated there.

        Args:
            start: first tick.
            stop: tick after the last.
        """
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
        track: `[n_notes]` int64 indices into `programs`; notes are sorted by (track, onset, pitch, duration) and none
            occurs twice.
        onset: `[n_notes]` int64 ticks from the first bar line.
        pitch: `[n_notes]` int64 MIDI pitches.
        duration: `[n_notes]` int64 ticks.
        velocity: `[n_notes]` int64, 1 to 127.
        programs: `[n_tracks]` int16 General MIDI programs, `DRUMS` for drums; drums last.
        tempo: `[n_bars]` int16 tempo bins, -1 where none is known.
        key: token name without `k_`, or None.
        chords: `ChordTable` or None.
        genres: GENRE values.
        names: of the tracks; empty where they have none.
        explicit_velocity: what an earlier decode recorded about velocity tokens, else None.
        report: what quantisation changed.
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
        """How many bars."""
        return self.bars.n_bars

    @property
    def n_tracks(self) -> int:
        """How many tracks, silent ones among them."""
        return len(self.programs)

    @property
    def n_notes(self) -> int:
        """How many notes."""
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
        """Some bars, re-based to tick 0: the notes whose onset lies inside, with whole durations.

        Args:
            start: first bar.
            stop: bar after the last.
            tracks: keep the notes of these tracks only; track indices stay as they are.
        """
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
        """Only some tracks, renumbered.

        Args:
            tracks: their indices, in the new order.
        """
        tracks = np.asarray(tracks, dtype=np.int64)
        new_index = np.full(self.n_tracks + 1, -1, dtype=np.int64)
        new_index[tracks] = np.arange(len(tracks))
        rows = np.flatnonzero(new_index[self.track] >= 0)
        moved = new_index[self.track[rows]]
        order = np.argsort(moved, kind="stable")
        names = tuple(self.names[t] for t in tracks) if self.names else ()
        chosen = self._select(rows[order], 0, programs=self.programs[tracks], names=names)
        return replace(chosen, track=moved[order])


def is_score(value) -> bool:
    """Whether a value is a `MetricScore`, of this copy of the code or of another one beside a checkpoint."""
    return hasattr(value, "programs") and hasattr(value, "bars")


def is_chord_table(value) -> bool:
    """Whether a value is a `ChordTable`, of this copy of the code or of another one beside a checkpoint."""
    return hasattr(value, "onset") and hasattr(value, "root")


# ---------------------------------------------------------------------------------------------------------------------
# Generated bars into a song

_COLUMNS = ("track", "onset", "pitch", "duration", "velocity")


def merge_infill(
    song: MetricScore, generated: MetricScore, start: int, targets: Sequence[int] | None = None
) -> MetricScore:
    """The song with some bars of the target tracks replaced by generated ones.

    Args:
        song: the song.
        generated: music of the generated bars, from tick 0.
        start: their first bar in the song.
        targets: for each track of `generated` the track of `song` it replaces, -1 for a new one; by default the n-th
            track of a program replaces the song's n-th of it.

    Raises:
        PromptError: `prompt.bars`, when the generated bars are not as long as the song's or lie outside it.
    """
    stop = start + generated.n_bars
    if not 0 <= start < stop <= song.n_bars:
        raise PromptError(f"bars {start} to {stop} are not within the song's {song.n_bars} bars", "prompt.bars")
    if (song.bars.length[start:stop] != generated.bars.length).any():
        raise PromptError(
            f"the generated bars are not as long as bars {start} to {stop} of the song: generate them in its meters",
            "prompt.bars",
        )
    return _insert(song, generated, int(song.bars.start[start]), int(song.bars.start[stop]), targets)


def append_bars(
    song: MetricScore, generated: MetricScore, start: int | None = None, targets: Sequence[int] | None = None
) -> MetricScore:
    """The song's bars before `start`, then the generated ones; what came after is dropped.

    Args:
        song: the song.
        generated: music of the generated bars, from tick 0.
        start: their first bar; by default the song's end.
        targets: as in `merge_infill`.

    Raises:
        PromptError: `start` lies outside the song (`prompt.bars`).
    """
    start = song.n_bars if start is None else start
    if not 0 <= start <= song.n_bars:
        raise PromptError(f"bar {start} is not within the song's {song.n_bars} bars", "prompt.bars")
    if start == 0:
        return generated
    head = song if start == song.n_bars else song.window(0, start)
    tempo = np.where(generated.tempo < 0, head.tempo[-1], generated.tempo).astype(head.tempo.dtype)
    first = head.bars.end
    chords = head.chords
    head = replace(
        head,
        bars=BarTable.concat(head.bars, generated.bars),
        tempo=np.concatenate([head.tempo, tempo]),
        chords=chords,
    )
    return _insert(head, generated, first, head.bars.end, targets)


def match_tracks(programs: np.ndarray, song_programs: np.ndarray) -> tuple[int, ...]:
    """The song's tracks of some programs, the n-th of a program for the n-th.

    Args:
        programs: `[n]` programs of generated tracks.
        song_programs: `[n_tracks]` programs of the song.

    Returns:
        `[n]` track indices, -1 where the song has none left.
    """
    free = list(range(len(song_programs)))
    found = []
    for program in programs.tolist():
        track = next((t for t in free if song_programs[t] == program), -1)
        if track >= 0:
            free.remove(track)
        found.append(track)
    return tuple(found)


def fit_between(
    onset: np.ndarray,
    offset: np.ndarray,
    voice: np.ndarray,
    kept_onset: np.ndarray,
    kept_offset: np.ndarray,
    kept_voice: np.ndarray,
) -> np.ndarray:
    """Offsets of new notes, so that first-in first-out pairing leaves kept notes as they are.

    A new note ends where the next kept note of its voice starts, and not before a kept note of its voice ends that was
    sounding at its onset. A voice is a pitch of one track; times are in any one unit.

    Args:
        onset: `[n]` onsets of the new notes.
        offset: `[n]` their offsets.
        voice: `[n]` their voices.
        kept_onset: `[m]` onsets of the kept notes.
        kept_offset: `[m]` their offsets.
        kept_voice: `[m]` their voices.

    Returns:
        `[n]` offsets of the new notes.
    """
    if not len(onset) or not len(kept_onset):
        return offset
    span = int(max(offset.max(), kept_offset.max(), kept_onset.max())) + 1
    order = np.lexsort((kept_onset, kept_voice))
    kept, ends = kept_voice[order], kept_offset[order]
    place = kept * span + kept_onset[order]
    # the latest end of the kept notes so far, within each voice
    latest = np.maximum.accumulate(kept * (span + 1) + ends) - kept * (span + 1)
    after = np.searchsorted(place, voice * span + onset, side="right")
    inside = np.minimum(after, len(place) - 1)
    follows = (after < len(place)) & (kept[inside] == voice)
    offset = np.where(follows, np.minimum(offset, kept_onset[order][inside]), offset)
    before = np.maximum(after - 1, 0)
    held = (after > 0) & (kept[before] == voice) & (latest[before] > onset)
    return np.where(held, np.maximum(offset, latest[before]), offset)


def _insert(song: MetricScore, generated: MetricScore, first: int, last: int, targets) -> MetricScore:
    if targets is None:
        targets = match_tracks(generated.programs, song.programs)
    if len(targets) < generated.n_tracks:
        raise PromptError(f"got {len(targets)} target tracks for {generated.n_tracks} generated ones")
    targets = np.asarray(targets, dtype=np.int64)[: generated.n_tracks]

    # New tracks follow the melodic ones, drums stay last.
    new = np.flatnonzero(targets < 0)
    programs = np.concatenate([song.programs, generated.programs[new]])
    place = targets.copy()
    place[new] = song.n_tracks + np.arange(len(new))
    order = np.argsort(programs == DRUMS, kind="stable")
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))

    replaced = np.zeros(len(programs), dtype=bool)
    replaced[place] = True
    kept = ~(replaced[song.track] & (song.onset >= first) & (song.onset < last))
    old = {name: getattr(song, name)[kept] for name in _COLUMNS}
    made = {name: getattr(generated, name) for name in _COLUMNS}
    made["track"] = place[generated.track]
    made["onset"] = generated.onset + first
    if generated.explicit_velocity is False:
        made["velocity"] = _median_velocity(song, len(programs))[made["track"]]

    voice, offset = made["track"] * 128 + made["pitch"], made["onset"] + made["duration"]
    fitted = fit_between(
        made["onset"], offset, voice, old["onset"], old["onset"] + old["duration"], old["track"] * 128 + old["pitch"]
    )
    longest = made["onset"] + MAX_DURATION
    good = (fitted <= longest) | (fitted <= offset)  # else it cannot last to the end of the kept note it starts in
    made["duration"] = np.minimum(fitted, longest) - made["onset"]
    made = {name: column[good] for name, column in made.items()}

    notes = {name: np.concatenate([old[name], made[name]]).astype(np.int64) for name in _COLUMNS}
    notes["track"] = rank[notes["track"]]
    sort = np.lexsort((notes["duration"], notes["pitch"], notes["onset"], notes["track"]))
    notes = {name: column[sort] for name, column in notes.items()}
    same = np.ones(max(len(sort) - 1, 0), dtype=bool)
    for name in ("track", "onset", "pitch", "duration"):
        same &= notes[name][1:] == notes[name][:-1]
    unique = np.append(True, ~same)[: len(sort)]
    names = (*song.names, *([""] * (song.n_tracks - len(song.names))), *([""] * len(new)))
    return replace(
        song,
        **{name: column[unique] for name, column in notes.items()},
        programs=programs[order].astype(np.int16),
        names=tuple(names[t] for t in order),
    )


def _median_velocity(song: MetricScore, n_tracks: int) -> np.ndarray:
    """`[n_tracks]` median velocity of each track, the song's for silent and new ones (90 without any note)."""
    overall = int(np.median(song.velocity)) if song.n_notes else 90
    edges = np.searchsorted(song.track, np.arange(n_tracks + 1))
    return np.array(
        [int(np.median(song.velocity[a:b])) if b > a else overall for a, b in zip(edges, edges[1:])], dtype=np.int64
    )
