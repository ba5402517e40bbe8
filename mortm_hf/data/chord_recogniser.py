"""A chord recogniser for songs without annotations: quantised notes -> chords.

Design decisions
- A hidden Markov model over beats, as in Sheh & Ellis (ISMIR 2003) and the statistical line after them, with counted
  instead of drawn templates: for each quality how its sounding time spreads over the twelve tones above the root, and
  which of them is lowest. Both were counted on annotated train songs (`benchmarks/chord_recognition.py --fit`) and
  stand in `chord_profiles.json`.
- A chord is expected by its degree in the estimated key, and changes are expected on downbeats more than between
  them. Where a chord comes from does not matter, only where it goes: a step of the search then costs as much as there
  are chords, not its square, and whole batches of songs are searched together.
- All notes count but the drums'. The lowest tone decides the bass where it is a chord tone other than the root.

Knows: `MetricScore`, chord and key values. Must not know: files, tokens, models.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..models.music_grid import TICKS_PER_QUARTER
from ..models.music_harmony import (
    BASS_NAMES,
    NO_CHORD,
    QUALITY_NAMES,
    QUALITY_TONES,
    estimate_keys,
    merge_repeats,
    pitch_class_histogram,
)
from ..models.music_names import DRUMS, METERS
from ..models.music_score import ChordTable, MetricScore
from .annotations import PITCH_ROOT, PITCHES


PROFILES = Path(__file__).with_name("chord_profiles.json")
BASS_OF_PITCH = np.array([BASS_NAMES.index(f"/{n}") for n in PITCHES], dtype=np.int16)
_COMPOUND = np.array([d >= 8 and n > 3 and n % 3 == 0 for n, d in METERS])
SILENT_BEATS = 4  # a rest this long ends a chord
CELLS = 3_000_000  # beats x chords that are searched at once


@dataclass(frozen=True)
class Beats:
    """The beats of a song.

    Attributes:
        start: `[n]` ticks.
        length: `[n]` ticks.
        strength: `[n]` 2 for the first beat of a bar, 1 for its middle, 0 for any other.
    """

    start: np.ndarray
    length: np.ndarray
    strength: np.ndarray


def beats_of(score: MetricScore) -> Beats:
    """A quarter each, a dotted one in compound meters; a bar's last beat takes what is left."""
    length = score.bars.length
    beat = np.where(_COMPOUND[score.bars.meter], 36, TICKS_PER_QUARTER)
    count = np.maximum(-(-length // beat), 1)
    first = np.cumsum(count) - count
    bar = np.repeat(np.arange(len(count)), count)
    nth = np.arange(len(bar)) - first[bar]
    start = score.bars.start[bar] + nth * beat[bar]
    stop = np.minimum(start + beat[bar], score.bars.start[bar + 1])
    middle = (2 * nth == count[bar]) & (count[bar] > 2)
    strength = np.where(nth == 0, 2, np.where(middle, 1, 0))
    return Beats(start, stop - start, strength)


def sounding(score: MetricScore, beats: Beats) -> tuple[np.ndarray, np.ndarray]:
    """What sounds in each beat; drums do not count.

    Args:
        score: quantised music.
        beats: of this music.

    Returns:
        `[n_beats, 12]` ticks sounded by each pitch class, and `[n_beats]` the lowest pitch (-1 in silence).
    """
    keep = np.flatnonzero(score.programs[score.track] != DRUMS) if score.n_notes else np.zeros(0, np.int64)
    onset, pitch = score.onset[keep], score.pitch[keep]
    offset = np.minimum(onset + score.duration[keep], score.bars.end)
    n = len(beats.start)
    first = np.searchsorted(beats.start, onset, side="right") - 1
    last = np.maximum(np.searchsorted(beats.start, offset, side="left"), first + 1)
    spans = last - first
    note = np.repeat(np.arange(len(onset)), spans)
    beat = first[note] + np.arange(len(note)) - np.repeat(np.cumsum(spans) - spans, spans)
    begin = np.maximum(onset[note], beats.start[beat])
    ticks = np.minimum(offset[note], beats.start[beat] + beats.length[beat]) - begin
    profile = np.bincount(beat * 12 + pitch[note] % 12, weights=ticks, minlength=12 * n).reshape(n, 12)
    lowest = np.full(n, 128, dtype=np.int64)
    # what only touches the beat (a released pedal, a grace note) is no bass
    real = 4 * ticks >= np.minimum(beats.length[beat], TICKS_PER_QUARTER)
    np.minimum.at(lowest, beat[real], pitch[note[real]])
    return profile, np.where(lowest < 128, lowest, -1)


@dataclass(frozen=True)
class Profiles:
    """What the recogniser was fitted to, all natural logarithms of counted shares.

    Attributes:
        qualities: `[q]` indices of quality tokens.
        tones: `[q, 12]` sounding time by semitones above the root.
        bass: `[q, 12]` the lowest tone, in semitones above the root.
        degree: `[2, 12, q]` share of each chord by its root above the tonic, in major and minor.
        change: `[3]` log-odds that the chord changes at a beat of each strength.
        weights: of sounding time, bass, degree and change, chosen on train songs.
    """

    qualities: np.ndarray
    tones: np.ndarray
    bass: np.ndarray
    degree: np.ndarray
    change: np.ndarray
    weights: tuple[float, float, float, float]

    @classmethod
    def load(cls, path: str | Path = PROFILES) -> Profiles:
        """The profiles of a JSON file that `save` wrote."""
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        arrays = {name: np.array(content[name]) for name in ("tones", "bass", "degree", "change")}
        qualities = np.array([QUALITY_NAMES.index(name) for name in content["qualities"]])
        return cls(qualities=qualities, **arrays, weights=tuple(content["weights"]))

    def save(self, path: str | Path) -> None:
        """Write them with three decimals."""
        content = {"qualities": [QUALITY_NAMES[q] for q in self.qualities]}
        content |= {name: np.round(getattr(self, name), 3).tolist() for name in ("tones", "bass", "degree", "change")}
        content["weights"] = list(self.weights)
        Path(path).write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


@lru_cache(maxsize=1)
def default_profiles() -> Profiles:
    """The profiles that come with the package."""
    return Profiles.load()


# ---------------------------------------------------------------------------------------------------------------------
# Estimation


@dataclass(frozen=True)
class SongSound:
    """What the search needs of one song.

    Attributes:
        beats: its beats.
        profile: `[n_beats, 12]` ticks sounded by each pitch class.
        lowest: `[n_beats]` the lowest pitch, -1 in silence.
        key: index into `ESTIMATED_KEYS`, -1 where there is none.
    """

    beats: Beats
    profile: np.ndarray
    lowest: np.ndarray
    key: int

    @classmethod
    def of(cls, score: MetricScore) -> SongSound:
        """What sounds in a song."""
        beats = beats_of(score)
        profile, lowest = sounding(score, beats)
        return cls(beats, profile, lowest, int(estimate_keys(pitch_class_histogram(score))[0]))


def _rotations(table: np.ndarray) -> np.ndarray:
    """`[q, 12]` above the root -> `[12 roots x q, 12]` by pitch class."""
    return np.concatenate([np.roll(table, root, axis=1) for root in range(12)])


def _fits(songs: Sequence[SongSound], profiles: Profiles) -> list[np.ndarray]:
    """`[n_beats, 12 q]` log-likelihood of every beat under every chord (root-major)."""
    tones, bass = _rotations(profiles.tones), _rotations(profiles.bass)
    sound, low = profiles.weights[:2]
    fits = []
    for song in songs:
        total = song.profile.sum(axis=1, keepdims=True)
        share = song.profile / np.maximum(total, 1)
        weight = song.beats.length[:, None] / TICKS_PER_QUARTER
        fit = sound * weight * (share @ tones.T)
        fit += low * weight * np.where(song.lowest[:, None] >= 0, bass.T[song.lowest % 12], 0.0)
        fits.append(np.where(total > 0, fit, 0.0).astype(np.float32))
    return fits


def _expected(songs: Sequence[SongSound], profiles: Profiles) -> np.ndarray:
    """`[songs, 12 q]` log share of every chord in the key of each song."""
    out = []
    for song in songs:
        if song.key < 0:
            degree = np.log(np.exp(profiles.degree).mean(axis=(0, 1)))
            out.append(np.tile(degree, 12))
        else:
            out.append(np.roll(profiles.degree[song.key // 12], song.key % 12, axis=0).reshape(-1))
    return profiles.weights[2] * np.array(out, dtype=np.float32)


def _search(songs: Sequence[SongSound], profiles: Profiles) -> list[np.ndarray]:
    """The likeliest chord of every beat (index into 12 roots x q), by Viterbi over all songs at once."""
    fits, expected = _fits(songs, profiles), _expected(songs, profiles)
    n, longest, chords = len(songs), max(map(len, fits)), expected.shape[1]
    fit = np.zeros((longest, n, chords), dtype=np.float32)
    change = np.zeros((longest, n, 1), dtype=np.float32)
    for i, song in enumerate(songs):
        fit[: len(fits[i]), i] = fits[i]
        change[: len(fits[i]), i, 0] = profiles.weights[3] * profiles.change[song.beats.strength]
    stays = np.zeros((longest, n, chords), dtype=bool)
    source = np.zeros((longest, n), dtype=np.int32)
    total = fit[0] + expected
    rows = np.arange(n)
    for step in range(1, longest):
        best = total.argmax(axis=1)
        arrive = total[rows, best][:, None] + change[step] + expected
        source[step], stays[step] = best, total >= arrive
        total = np.maximum(total, arrive) + fit[step]
        total -= total.max(axis=1, keepdims=True)  # keep float32 near zero, where it is exact
    # The padding after a short song holds its last chord: nothing fits better there, and changing costs.
    paths = np.zeros((longest, n), dtype=np.int64)
    paths[-1] = total.argmax(axis=1)
    for step in range(longest - 1, 0, -1):
        now = paths[step]
        paths[step - 1] = np.where(stays[step, rows, now], now, source[step])
    return [paths[: len(f), i] for i, f in enumerate(fits)]


def _table(song: SongSound, path: np.ndarray, profiles: Profiles) -> ChordTable | None:
    """Chords of beats -> where they change, with basses; long rests are no chord."""
    root, quality = path // len(profiles.qualities), profiles.qualities[path % len(profiles.qualities)]
    silent = song.profile.sum(axis=1) == 0
    run = _run_lengths(silent)
    none = silent & ((run >= SILENT_BEATS) | (np.cumsum(~silent) == 0))
    edge = np.append(True, (path[1:] != path[:-1]) | (none[1:] != none[:-1]))
    part = np.cumsum(edge) - 1
    # the lowest tone of each stretch, by time
    n = part[-1] + 1
    low = np.zeros((n, 12))
    pitched = song.lowest >= 0
    np.add.at(low, (part[pitched], song.lowest[pitched] % 12), song.beats.length[pitched])
    first = np.flatnonzero(edge)
    root, quality, none = root[first], quality[first], none[first]
    bass_pitch = low.argmax(axis=1)
    sure = low.max(axis=1) > 0.6 * np.maximum(low.sum(axis=1), 1)
    inside = _chord_tone_table()[quality, (bass_pitch - root) % 12]
    slash = sure & inside & (bass_pitch != root) & ~none
    table = ChordTable(
        song.beats.start[first],
        np.where(none, NO_CHORD[0], PITCH_ROOT[root]).astype(np.int16),
        np.where(none, NO_CHORD[1], quality).astype(np.int16),
        np.where(slash, BASS_OF_PITCH[bass_pitch], NO_CHORD[2]).astype(np.int16),
    )
    table = merge_repeats(table)
    return None if (table.root == NO_CHORD[0]).all() else table


@lru_cache(maxsize=1)
def _chord_tone_table() -> np.ndarray:
    return np.array([[t in QUALITY_TONES[name] for t in range(12)] for name in QUALITY_NAMES])


def _run_lengths(flags: np.ndarray) -> np.ndarray:
    """`[n]` length of the run of equal flags in which each place lies."""
    edges = np.flatnonzero(np.append(True, flags[1:] != flags[:-1]))
    sizes = np.diff(np.append(edges, len(flags)))
    return np.repeat(sizes, sizes)


def estimate_chords(scores: Sequence[MetricScore], profiles: Profiles | None = None) -> list[ChordTable | None]:
    """The chords of songs, estimated from their notes.

    Args:
        scores: whole songs or passages; annotated keys and chords are not looked at.
        profiles: instead of those of the package.

    Returns:
        One `ChordTable` each, from tick 0 on; `None` where nothing pitched sounds.
    """
    profiles = profiles or default_profiles()
    tables: list[ChordTable | None] = [None] * len(scores)
    songs = {i: SongSound.of(score) for i, score in enumerate(scores) if score.n_notes and score.n_bars}
    order = sorted((i for i, song in songs.items() if song.profile.any()), key=lambda i: len(songs[i].beats.start))
    chords = 12 * len(profiles.qualities)
    while order:  # longest first: songs of about one length share a batch, so that little of it is padding
        batch, longest = [], len(songs[order[-1]].beats.start)
        while order and (not batch or (len(batch) + 1) * longest * chords <= CELLS):
            batch.append(order.pop())
        paths = _search([songs[i] for i in batch], profiles)
        for i, path in zip(batch, paths):
            tables[i] = _table(songs[i], path, profiles)
    return tables
