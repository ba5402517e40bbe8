"""MIDI <-> quantised music <-> token ids: the default dialect's codec.

Design decisions
- Two steps each way: `symusic.Score -> MetricScore` (notes, bars and tempi on the grid) and
  `MetricScore -> ids`; back again through `Segment`. Windows, tasks and transposition work on `MetricScore`.
- Everything is columns of numpy arrays: the tokens of a whole song are scattered into place by computed positions;
  no Python loop runs over notes or bars.
- What does not fit is counted in `CodecReport`, never dropped in silence.

Knows: MIDI (through symusic), the grid, the token table. Must not know: torch, tokenizers, prompts, legality of
sequences (`metric_grammar`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from .errors_mortm import MidiError
from .metric_grid import COMMON_TIME, TICKS_PER_QUARTER, BarTable, bars_of_meters, round_to_grid
from .metric_vocabulary import (
    DRUMS,
    KEY_NAMES,
    LONG_DURATIONS,
    MAX_BAR_TICKS,
    MAX_DURATION,
    METERS,
    TEMPO_CENTRES,
    MetricVocabulary,
    TokenKind,
)


try:
    import symusic
except ImportError:  # a folder loaded from the Hub may run where only ids are needed
    symusic = None

DEFAULT_VELOCITY = 90
OUTPUT_TPQ = 480
_MARK = "mortm:"
_MAJOR_BY_SHARPS = "BM GbM DbM AbM EbM BbM FM CM GM DM AM EM BM F#M C#M".split()  # CbM has no token: BM
_MINOR_BY_SHARPS = "Abm Ebm Bbm Fm Cm Gm Dm Am Em Bm F#m C#m G#m D#m A#m".split()
DENSITY_EDGES = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24])


@dataclass(frozen=True)
class Caps:
    """Limits on a MIDI input, so that loading one never stalls or fills the machine."""

    bytes: int = 64 << 20
    notes: int = 2_000_000
    tracks: int = 4096
    bars: int = 200_000
    cells: int = 20_000_000  # tracks x bars


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


# ---------------------------------------------------------------------------------------------------------------------
# MIDI -> MetricScore


def load_score(midi, caps: Caps = Caps()):
    """A path, MIDI bytes or a `symusic.Score` -> `symusic.Score` in ticks; anything unusable raises `MidiError`."""
    if symusic is None:
        raise MidiError("reading MIDI needs the package symusic: pip install 'symusic>=0.5.9,<0.6'", "midi.symusic")
    if hasattr(midi, "tracks") and hasattr(midi, "ticks_per_quarter"):
        score, name = (midi if str(midi.ttype) in ("Tick", "TimeUnit.Tick") else midi.to("tick")), "the given score"
    else:
        if isinstance(midi, (bytes, bytearray, memoryview)):
            data, name = bytes(midi), "the given bytes"
        elif isinstance(midi, (str, os.PathLike)):
            name = str(midi)
            try:
                size = os.stat(midi).st_size
                data = Path(midi).read_bytes() if size <= caps.bytes else b""
            except OSError as error:
                raise MidiError(f"cannot read {name}: {error.strerror or error}") from None
            if size > caps.bytes:
                raise MidiError(f"{name} has {size} bytes, more than the cap of {caps.bytes}", "midi.too_large")
        else:
            raise MidiError(f"expected a path, bytes or a symusic.Score, got {type(midi).__name__}")
        if len(data) > caps.bytes:
            raise MidiError(f"{name} has {len(data)} bytes, more than the cap of {caps.bytes}", "midi.too_large")
        if data[:4] != b"MThd" or len(data) < 14:
            raise MidiError(f"{name} is not a MIDI file (no MThd header)")
        if data[8:10] == b"\x00\x02":
            raise MidiError(f"{name} is a type 2 file (independent patterns); save each pattern as a file of its own")
        if data[12] & 0x80 or data[12:14] == b"\x00\x00":
            raise MidiError(f"{name} has no musical time (SMPTE or zero division); export it with ticks per quarter")
        try:
            score = symusic.Score.from_midi(data)
        except Exception as error:  # symusic raises plain RuntimeError, and more on odd files
            raise MidiError(f"cannot read {name} as MIDI: {str(error).strip()[:200]}") from None
    if score.ticks_per_quarter <= 0:
        raise MidiError(f"{name} has no musical time (zero ticks per quarter)", "midi.timing")
    if len(score.tracks) > caps.tracks:
        raise MidiError(f"{name} has {len(score.tracks)} tracks, more than the cap of {caps.tracks}", "midi.too_large")
    notes = score.note_num()
    if notes > caps.notes:
        raise MidiError(f"{name} has {notes} notes, more than the cap of {caps.notes}", "midi.too_large")
    return score


def _extend_by_pedal(track, onset, offset, pitch):
    """Offsets moved to the release of a pedal that is down at them, but not past the next onset of the same pitch."""
    pedals = track.pedals.numpy()
    if not len(pedals["time"]):
        return offset
    down = pedals["time"].astype(np.int64)
    up = down + pedals["duration"]
    index = np.searchsorted(down, offset, side="right") - 1
    held = (index >= 0) & (offset < up[np.maximum(index, 0)])
    longer = np.where(held, up[np.maximum(index, 0)], offset)
    order = np.lexsort((onset, pitch))
    same = pitch[order[1:]] == pitch[order[:-1]]
    limit = np.full(len(onset), np.iinfo(np.int64).max)
    limit[order[:-1][same]] = onset[order[1:][same]]
    return np.maximum(np.minimum(longer, limit), offset)


def _meter_changes(score, report: CodecReport) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    events = score.time_signatures.numpy()
    tick, num, den = (events[k].astype(np.int64) for k in ("time", "numerator", "denominator"))
    # A usable meter has a bar of at least one grid tick; the last of several on one tick wins, as in playback.
    usable = (num > 0) & (den > 0) & (num * 96 >= den) & (tick >= 0)
    report.ignored_meters = int((~usable).sum())
    tick, num, den = tick[usable], num[usable], den[usable]
    order = np.argsort(tick, kind="stable")
    tick, num, den = tick[order], num[order], den[order]
    if len(tick) == 0 or tick[0] > 0:
        tick, num, den = np.append(0, tick), np.append(4, num), np.append(4, den)
    if len(tick) > 1:
        keep = np.append(tick[1:] != tick[:-1], True)
        tick, num, den = tick[keep], num[keep], den[keep]
        keep = np.append(True, (num[1:] != num[:-1]) | (den[1:] != den[:-1]))
        tick, num, den = tick[keep], num[keep], den[keep]
    return tick, num, den


def _tempo_bins(score, bars: BarTable) -> np.ndarray:
    """Tempo bin of each bar: quarters x 60 / seconds of the bar, on the file's tempo map."""
    events = score.tempos.numpy()
    tick, mspq = events["time"].astype(np.float64), events["mspq"].astype(np.float64)
    usable = (mspq > 0) & (tick >= 0)
    if not usable.any():
        return np.full(bars.n_bars, -1, dtype=np.int16)
    tick, mspq = tick[usable], mspq[usable]
    if len(tick) == 1 and tick[0] == 0:
        return np.full(bars.n_bars, tempo_bin(6e7 / mspq[0]), dtype=np.int16)
    order = np.argsort(tick, kind="stable")
    tick, mspq = tick[order], mspq[order]
    if tick[0] > 0:
        tick, mspq = np.append(0.0, tick), np.append(500_000.0, mspq)
    keep = np.append(tick[1:] != tick[:-1], True)
    tick, mspq = tick[keep], mspq[keep]
    seconds = np.append(0.0, np.cumsum(np.diff(tick) * mspq[:-1]))  # in tick x microseconds per quarter
    line = bars.start * (score.ticks_per_quarter / TICKS_PER_QUARTER)
    segment = np.searchsorted(tick, line, side="right") - 1
    time = seconds[segment] + (line - tick[segment]) * mspq[segment]
    # quarters x 60 / seconds: the ticks per quarter cancel out
    return tempo_bin(6e7 * np.diff(line) / np.diff(time)).astype(np.int16)


def tempo_bin(bpm):
    """Nearest of the 32 log-spaced tempo bins (quarters a minute, clamped to 30 to 240)."""
    return np.clip(np.floor(np.log(np.asarray(bpm) / 30.0) * (31.0 / np.log(8.0)) + 0.5), 0, 31).astype(np.int64)


def _file_key(score) -> str | None:
    for event in score.key_signatures:
        if -7 <= event.key <= 7 and event.tonality in (0, 1):
            return (_MINOR_BY_SHARPS if event.tonality else _MAJOR_BY_SHARPS)[event.key + 7]
    return None


@lru_cache(maxsize=1)
def _chord_names() -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    from .metric_vocabulary import (
        CHORD_BASSES,
        CHORD_QUALITIES,
        CHORD_ROOTS,
        EXTRA_CHORD_QUALITIES,
        EXTRA_CHORD_ROOTS,
    )

    tables = (CHORD_ROOTS + EXTRA_CHORD_ROOTS, CHORD_QUALITIES + EXTRA_CHORD_QUALITIES, CHORD_BASSES)
    return tuple({name: i for i, name in enumerate(names)} for names in tables)


def _read_markers(score):
    """(segment fields, bar lines, chords) that an earlier decode left as marker events; all empty otherwise."""
    fields, lines, chords = {}, [], []
    scale = TICKS_PER_QUARTER / score.ticks_per_quarter
    for event in score.markers:
        if not event.text.startswith(_MARK):
            continue
        kind, _, body = event.text[len(_MARK) :].partition(" ")
        if kind == "segment":
            fields = dict(part.partition("=")[::2] for part in body.split())
        elif kind == "line":
            lines.append(round(event.time * scale))
        elif kind == "chord":
            names = body.split()
            if len(names) == 3:
                found = [table.get(name) for table, name in zip(_chord_names(), names)]
                if None not in found:
                    chords.append((round(event.time * scale), *found))
    table = None
    if chords:
        columns = np.array(sorted(chords), dtype=np.int64).T
        table = ChordTable(columns[0], *(c.astype(np.int16) for c in columns[1:]))
    return fields, np.array(lines, dtype=np.int64), table


def quantize(score, caps: Caps = Caps(), pedal: str = "ignore") -> MetricScore:
    """A `symusic.Score` in ticks -> `MetricScore` (DESIGN 3 and 4).

    Args:
        pedal: "ignore" keeps durations as played, "extend" lets notes ring while the sustain pedal is down (not drums).

    Raises:
        MidiError: no notes (`midi.empty`), or longer than the caps (`midi.too_large`).
    """
    tpq = score.ticks_per_quarter
    report = CodecReport()
    parts = [t for t in score.tracks if len(t.notes)]
    if not parts:
        raise MidiError("the MIDI file has no notes: there is nothing to tokenise", "midi.empty")
    parts = [t for t in parts if not t.is_drum] + [t for t in parts if t.is_drum]
    columns = [t.notes.numpy() for t in parts]
    sizes = [len(c["time"]) for c in columns]
    tick = np.concatenate([c["time"] for c in columns]).astype(np.int64)
    ending = tick + np.concatenate([c["duration"] for c in columns])
    pitch = np.concatenate([c["pitch"] for c in columns]).astype(np.int64) & 127
    velocity = np.clip(np.concatenate([c["velocity"] for c in columns]).astype(np.int64), 1, 127)
    track = np.repeat(np.arange(len(parts)), sizes)
    if tick.min() < 0 or (ending < tick).any():
        raise MidiError("the MIDI file has notes at negative times or of negative length", "midi.timing")
    if pedal == "extend":
        edges = np.cumsum([0, *sizes])
        for part, first, last in zip(parts, edges, edges[1:]):
            if not part.is_drum:
                rows = slice(first, last)
                ending[rows] = _extend_by_pedal(part, tick[rows], ending[rows], pitch[rows])
    elif pedal != "ignore":
        raise MidiError(f"pedal must be 'ignore' or 'extend', got {pedal!r}", "midi.argument")
    report.notes = len(tick)
    onset, offset = round_to_grid(tick, tpq), round_to_grid(ending, tpq)
    report.zero_length = int((ending == tick).sum())

    # First-in first-out pairing of the notes of one pitch: the k-th onset gets the k-th offset.
    voice = track * 128 + pitch
    span = int(offset.max()) + 2
    if span * (len(parts) * 128) < 1 << 62:
        order = np.argsort(voice * span + onset, kind="stable")
    else:
        order = np.lexsort((onset, voice))
    onset, offset, voice, velocity = onset[order], offset[order], voice[order], velocity[order]
    nested = (voice[1:] == voice[:-1]) & (offset[1:] < offset[:-1])
    if nested.any():
        offset = offset[np.lexsort((offset, voice))]
    duration = np.maximum(offset - onset, 1)
    report.clipped = int((duration > MAX_DURATION).sum())
    if report.clipped:
        duration = np.minimum(duration, MAX_DURATION)
    track, pitch = voice >> 7, voice & 127
    # (track, onset, pitch, duration): within one voice rows are already in (onset, duration) order
    order = np.argsort(((track * span + onset) << 7) | pitch, kind="stable")
    track, onset, pitch, duration, velocity = (a[order] for a in (track, onset, pitch, duration, velocity))
    if len(onset) > 1:
        twin = (np.diff(onset) == 0) & (np.diff(pitch) == 0) & (np.diff(duration) == 0) & (np.diff(track) == 0)
        if twin.any():
            report.duplicates = int(twin.sum())
            starts = np.flatnonzero(np.append(True, ~twin))
            velocity = np.maximum.reduceat(velocity, starts)  # the loudest of the merged notes is what one hears
            track, onset, pitch, duration = (a[starts] for a in (track, onset, pitch, duration))

    fields, lines, chords = _read_markers(score) if len(score.markers) else ({}, np.empty(0, np.int64), None)
    count = int(fields["bars"]) if fields.get("bars", "").isdigit() else 0
    if count > caps.bars:
        count = 0
    until = int(onset.max()) + 1 if count else int((onset + duration).max())
    meter_events = _meter_changes(score, report)
    made = bars_of_meters(*meter_events, tpq, lines, until, count, max_bars=min(caps.bars, caps.cells // len(parts)))
    if made is None:
        raise MidiError(
            f"the MIDI file is longer than {caps.bars} bars (or {caps.cells} bars x tracks); cut it first",
            "midi.too_large",
        )
    bars, report.cut_bars = made
    key = fields.get("key")
    return MetricScore(
        bars=bars,
        track=track,
        onset=onset,
        pitch=pitch,
        duration=duration,
        velocity=velocity,
        programs=np.array([DRUMS if t.is_drum else t.program & 127 for t in parts], dtype=np.int16),
        tempo=_tempo_bins(score, bars),
        key=key if key in KEY_NAMES else _file_key(score),
        chords=chords,
        genres=tuple(int(g) for g in fields.get("genres", "").split(",") if g.isdigit()),
        names=tuple(t.name for t in parts),
        explicit_velocity={"0": False, "1": True}.get(fields.get("velocity", "")),
        report=report,
    )


def read_midi(midi, caps: Caps = Caps(), pedal: str = "ignore") -> MetricScore:
    """Path, bytes or Score -> `MetricScore`."""
    try:
        return quantize(load_score(midi, caps), caps, pedal)
    except MidiError as error:
        if isinstance(midi, (str, os.PathLike)) and str(midi) not in str(error):
            raise MidiError(f"{midi}: {error}", error.code) from None
        raise


# ---------------------------------------------------------------------------------------------------------------------
# MetricScore -> ids


@dataclass
class Header:
    """The description in front of a generated field (values of the token kinds; None or empty: not written)."""

    instruments: tuple[int, ...] = ()
    densities: tuple[int | None, ...] = ()
    bars: int | None = None
    genres: tuple[int, ...] = ()
    meter: int | None = None
    tempo: int | None = None
    key: str | None = None


def encode_header(vocabulary: MetricVocabulary, header: Header) -> np.ndarray:
    """`<SYSTEM> ... <TAG_END>` ids; a field without a token in this vocabulary raises `VocabularyError`."""
    ids = [vocabulary.id(TokenKind.SYSTEM)]
    densities = header.densities or (None,) * len(header.instruments)
    for instrument, density in zip(header.instruments, densities):
        ids.append(vocabulary.id(TokenKind.INSTRUMENT, instrument))
        if density is not None:
            ids.append(vocabulary.id(TokenKind.DENSITY, density))
    if header.bars is not None:
        ids.append(vocabulary.id(TokenKind.BAR_COUNT, header.bars))
    ids += [vocabulary.id(TokenKind.GENRE, genre) for genre in header.genres]
    if header.meter is not None:
        ids.append(vocabulary.id(TokenKind.METER, header.meter))
    if header.tempo is not None:
        ids.append(vocabulary.id(TokenKind.TEMPO, header.tempo))
    if header.key is not None:
        ids.append(vocabulary[f"k_{header.key}"])
    ids.append(vocabulary.id(TokenKind.TAG_END))
    return np.array(ids, dtype=np.int32)


def density_of(score: MetricScore) -> np.ndarray:
    """`[n_tracks]` `<NOTE_DENSE_n>` value of each track: distinct onsets per four quarters, in ten bins."""
    key = score.track * (score.bars.end + 1) + score.onset
    first = np.append(True, key[1:] != key[:-1])[: len(key)]
    onsets = np.bincount(score.track[first], minlength=score.n_tracks)
    return np.searchsorted(DENSITY_EDGES, onsets * 96 / max(score.bars.end, 1), side="right") + 1


def velocity_bin(velocity: np.ndarray) -> np.ndarray:
    """Velocities 1..127 -> the centre of their bin of four (2, 6, .. 126)."""
    return (np.asarray(velocity) & ~3) + 2


@lru_cache(maxsize=1)
def _duration_sums() -> tuple[np.ndarray, np.ndarray]:
    """`[2593, 4]` greedy decomposition of every duration into table values (-1 padded), and the `[2593]` counts."""
    table = np.array([0, *range(1, 289), *LONG_DURATIONS])
    rest = np.arange(MAX_DURATION + 1)
    parts = np.full((MAX_DURATION + 1, 4), -1, dtype=np.int64)
    for column in range(4):
        value = table[np.searchsorted(table, rest, side="right") - 1]
        parts[:, column] = np.where(rest > 0, value, -1)
        rest = rest - value
    return parts, (parts > 0).sum(axis=1)


@lru_cache(maxsize=8)
def _duration_ids(vocabulary: MetricVocabulary) -> tuple[np.ndarray, np.ndarray]:
    parts, counts = _duration_sums()
    ids = vocabulary.lookup(TokenKind.DURATION)[np.maximum(parts, 0)]
    return np.where(parts > 0, ids, -1).astype(np.int32), counts


def _bar_prefix(vocabulary, bars: BarTable, tempo: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """`[n_bars, 4]` ids of `<SME> [<TS> [d_len]] [<BPM>]` and a mask of those present (the blank is not among them)."""
    n = bars.n_bars
    ids = np.zeros((n, 4), dtype=np.int32)
    mask = np.zeros((n, 4), dtype=bool)
    ids[:, 0], mask[:, 0] = vocabulary.id(TokenKind.BAR), True
    mask[:, 1] = bars.states_meter()
    ids[:, 1] = vocabulary.lookup(TokenKind.METER)[bars.meter]
    odd = bars.irregular
    if odd.any():
        mask[:, 2] = odd
        ids[odd, 2] = vocabulary.lookup(TokenKind.DURATION)[bars.length[odd]]
    if tempo is not None and len(tempo):
        changed = np.append(True, tempo[1:] != tempo[:-1])
        mask[:, 3] = changed & (tempo >= 0)
        ids[:, 3] = vocabulary.lookup(TokenKind.TEMPO)[np.maximum(tempo, 0)]
    return ids, mask


def encode_tracks(
    vocabulary, score: MetricScore, velocity: bool = False, tracks=None, state: bool = True
) -> np.ndarray:
    """`(<INST_x> bar* <ESEQ>)*` over all bars of `score` (cut it with `score.window` first).

    Args:
        velocity: write a `v_` with every note.
        tracks: which tracks, in this order; by default all. Tracks without notes are left out.
        state: the first track states meter and tempo (every block's does).

    Returns:
        int32 ids; empty when no track sounds.
    """
    if tracks is not None:
        score = score.take_tracks(tracks)
    sounding = score.sounding_tracks()
    if len(sounding) == 0:
        return np.empty(0, dtype=np.int32)
    n_bars, n_tracks = score.n_bars, len(sounding)
    dense = np.zeros(score.n_tracks, dtype=np.int64)
    dense[sounding] = np.arange(n_tracks)
    row = dense[score.track]
    bar = score.bar_of_notes()
    cell = row * n_bars + bar

    note_ids, note_counts = _duration_ids(vocabulary)
    pieces = note_counts[score.duration]
    size = pieces + (3 if velocity else 2)
    filled = np.bincount(cell, minlength=n_tracks * n_bars) > 0

    prefix_ids, prefix_mask = _bar_prefix(vocabulary, score.bars, score.tempo)
    prefix = np.ones((n_tracks, n_bars), dtype=np.int64)
    if state:
        prefix[0] = prefix_mask.sum(axis=1)
    prefix = prefix.reshape(-1) + ~filled  # <BLANK>
    prefix_end = np.cumsum(prefix)
    note_end = np.cumsum(size)
    note_start = note_end - size + prefix_end[cell] + 2 * row + 1
    before = np.zeros(n_tracks * n_bars + 1, dtype=np.int64)
    before[1:] = np.cumsum(np.bincount(cell, weights=size, minlength=n_tracks * n_bars))
    track_of_cell = np.repeat(np.arange(n_tracks), n_bars)
    cell_start = prefix_end - prefix + before[:-1] + 2 * track_of_cell + 1
    out = np.empty(int(prefix_end[-1] + note_end[-1]) + 2 * n_tracks, dtype=np.int32)

    # instruments and ends
    first_cell = np.arange(n_tracks) * n_bars
    heads = cell_start[first_cell] - 1
    out[heads] = vocabulary.lookup(TokenKind.INSTRUMENT)[score.programs[sounding]]
    out[np.append(heads[1:], len(out)) - 1] = vocabulary.id(TokenKind.TRACK_END)
    # bars
    out[cell_start] = vocabulary.id(TokenKind.BAR)
    if state:
        where = cell_start[:n_bars, None] + np.cumsum(prefix_mask, axis=1) - 1
        out[where[prefix_mask]] = prefix_ids[prefix_mask]
    empty = np.flatnonzero(~filled)
    out[cell_start[empty] + prefix[empty] - 1] = vocabulary.id(TokenKind.BLANK)
    # notes
    out[note_start] = vocabulary.lookup(TokenKind.ONSET)[score.onset - score.bars.start[bar]]
    out[note_start + 1] = vocabulary.lookup(TokenKind.PITCH)[score.pitch]
    out[note_start + 2] = note_ids[score.duration, 0]
    long = np.flatnonzero(pieces > 1)
    for piece in range(1, 4) if len(long) else ():
        rows = long[pieces[long] > piece]
        out[note_start[rows] + 2 + piece] = note_ids[score.duration[rows], piece]
    if velocity:
        out[note_start + 2 + pieces] = vocabulary.lookup(TokenKind.VELOCITY)[velocity_bin(score.velocity)]
    return out


def encode_chords(vocabulary, score: MetricScore) -> np.ndarray:
    """`chordbar* <ESEQ>` over all bars of `score`; bars in which no chord starts hold `<BLANK>`."""
    n_bars = score.n_bars
    chords = score.chords
    onset = np.empty(0, np.int64) if chords is None else chords.onset
    bar = score.bars.of(onset)
    prefix_ids, prefix_mask = _bar_prefix(vocabulary, score.bars, None)
    filled = np.bincount(bar, minlength=n_bars) > 0
    prefix = prefix_mask.sum(axis=1) + ~filled
    prefix_end = np.cumsum(prefix)
    start = 4 * np.arange(len(onset)) + prefix_end[bar]
    counts = np.bincount(bar, minlength=n_bars)
    cell_start = prefix_end - prefix + 4 * (np.cumsum(counts) - counts)
    out = np.empty(int(prefix_end[-1]) + 4 * len(onset) + 1, dtype=np.int32)
    where = cell_start[:, None] + np.cumsum(prefix_mask, axis=1) - 1
    out[where[prefix_mask]] = prefix_ids[prefix_mask]
    empty = np.flatnonzero(~filled)
    out[cell_start[empty] + prefix[empty] - 1] = vocabulary.id(TokenKind.BLANK)
    if len(onset):
        out[start] = vocabulary.lookup(TokenKind.ONSET)[onset - score.bars.start[bar]]
        out[start + 1] = vocabulary.lookup(TokenKind.CHORD_ROOT)[chords.root]
        out[start + 2] = vocabulary.lookup(TokenKind.CHORD_QUALITY)[chords.quality]
        out[start + 3] = vocabulary.lookup(TokenKind.CHORD_BASS)[chords.bass]
    out[-1] = vocabulary.id(TokenKind.TRACK_END)
    return out


def uses_velocity(score: MetricScore) -> bool:
    """Whether a segment of this music carries velocity by default: unless it is constant after binning."""
    if score.explicit_velocity is not None:
        return score.explicit_velocity
    bins = score.velocity >> 2
    return len(bins) > 0 and bool((bins != bins[0]).any())


# ---------------------------------------------------------------------------------------------------------------------
# ids -> MetricScore


@dataclass
class Segment:
    """A parsed segment: its header, the prompt's blocks (by `TokenKind`), the generated field, and META's header.
    Every block is a `MetricScore` of its own, from tick 0; chord blocks have `chords` and no notes."""

    header: Header | None = None
    blocks: dict[int, MetricScore] = field(default_factory=dict)
    generated_kind: int | None = None
    generated: MetricScore | None = None
    meta: Header | None = None


_BLOCKS = (
    TokenKind.PAST,
    TokenKind.FUTURE,
    TokenKind.CONST_M,
    TokenKind.CONST_C,
    TokenKind.MGEN,
    TokenKind.CGEN,
    TokenKind.META,
)


def parse_segment(vocabulary: MetricVocabulary, ids) -> Segment:
    """Ids -> `Segment`; lenient: malformed notes are dropped. Ids without a block marker count as a generated field."""
    ids = np.asarray(ids, dtype=np.int64).reshape(-1)
    ids = ids[(ids >= 0) & (ids < len(vocabulary))]
    kind, value = vocabulary.kind[ids].astype(np.int64), vocabulary.value[ids].astype(np.int64)
    keep = kind != TokenKind.PAD
    kind, value = kind[keep], value[keep]
    ends = np.flatnonzero(kind == TokenKind.END)
    segment = Segment()
    marks = np.flatnonzero(np.isin(kind, _BLOCKS))
    systems = np.flatnonzero(kind == TokenKind.SYSTEM)
    closes = np.flatnonzero(kind == TokenKind.TAG_END)
    body_from = 0
    for system in systems:
        later = closes[closes > system]
        stop = int(later[0]) if len(later) else len(kind)
        header = _parse_header(kind[system + 1 : stop], value[system + 1 : stop])
        if len(marks) and kind[max(system - 1, 0)] == TokenKind.META:
            segment.meta = header
        else:
            segment.header = header
        body_from = max(body_from, min(stop + 1, len(kind))) if not len(marks) else 0
    if not len(marks):
        stop = int(ends[0]) if len(ends) and kind[-1] == TokenKind.END else len(kind)
        has_notes = (kind[body_from:stop] == TokenKind.PITCH).any()
        segment.generated_kind = TokenKind.MGEN if has_notes or not len(systems) else None
        segment.generated = _parse_block(kind[body_from:stop], value[body_from:stop])
        return segment
    edges = np.append(marks, len(kind))
    for mark, edge in zip(edges, edges[1:]):
        name = int(kind[mark])
        if name == TokenKind.META:
            segment.generated_kind = name
            continue
        block = _parse_block(kind[mark + 1 : edge], value[mark + 1 : edge])
        if name in (TokenKind.MGEN, TokenKind.CGEN):
            segment.generated_kind, segment.generated = name, block
        else:
            segment.blocks[name] = block
    return segment


def _parse_header(kind: np.ndarray, value: np.ndarray) -> Header:
    instruments, densities = [], []
    header = Header()
    for k, v in zip(kind.tolist(), value.tolist()):  # a header has a dozen tokens
        if k == TokenKind.INSTRUMENT:
            instruments.append(v)
            densities.append(None)
        elif k == TokenKind.DENSITY and densities:
            densities[-1] = v
        elif k == TokenKind.BAR_COUNT:
            header.bars = v
        elif k == TokenKind.GENRE:
            header.genres += (v,)
        elif k == TokenKind.METER:
            header.meter = v
        elif k == TokenKind.TEMPO:
            header.tempo = v
        elif k == TokenKind.KEY:
            header.key = KEY_NAMES[v]
    header.instruments, header.densities = tuple(instruments), tuple(densities)
    return header


def _parse_block(kind: np.ndarray, value: np.ndarray) -> MetricScore:
    n = len(kind)
    track_of = np.cumsum(kind == TokenKind.INSTRUMENT) - 1
    heads = np.flatnonzero(kind == TokenKind.INSTRUMENT)
    bar_count = np.cumsum(kind == TokenKind.BAR)
    base = np.append(bar_count[heads], 0) if len(heads) else np.zeros(1, dtype=np.int64)
    bar_of = bar_count - base[np.maximum(track_of, 0)] - 1  # -1 before a track's first <SME>
    bar_of = np.maximum(bar_of, 0)  # the mortm dialect has no <SME> in front of bar 0

    here = np.flatnonzero(kind == TokenKind.BAR)
    n_bars = int(bar_of[here].max()) + 1 if len(here) else 1
    meter = np.full(n_bars, -1, dtype=np.int64)
    at = np.flatnonzero(kind == TokenKind.METER)
    meter[bar_of[at][::-1]] = value[at][::-1]  # the first track to state a bar's meter wins
    own_length = np.zeros(n_bars, dtype=np.int64)
    sized = at[at + 1 < n]
    sized = sized[kind[sized + 1] == TokenKind.DURATION]
    own_length[bar_of[sized][::-1]] = value[sized + 1][::-1]
    stated = np.maximum.accumulate(np.where(meter >= 0, np.arange(n_bars), -1))
    meter = np.where(stated >= 0, meter[np.maximum(stated, 0)], COMMON_TIME)
    from .metric_grid import METER_TICKS

    length = np.where((own_length > 0) & (own_length <= MAX_BAR_TICKS), own_length, METER_TICKS[meter])
    bars = BarTable.from_lengths(length, meter)

    tempo = np.full(n_bars, -1, dtype=np.int64)
    at = np.flatnonzero(kind == TokenKind.TEMPO)
    tempo[bar_of[at][::-1]] = value[at][::-1]
    stated = np.maximum.accumulate(np.where(tempo >= 0, np.arange(n_bars), -1))
    tempo = np.where(stated >= 0, tempo[np.maximum(stated, 0)], -1).astype(np.int16)

    # notes: s p d+ [v]
    padded = np.append(kind, (0, 0))
    at = np.flatnonzero(kind == TokenKind.PITCH)
    at = at[(at > 0) & (padded[at - 1] == TokenKind.ONSET) & (padded[at + 1] == TokenKind.DURATION)]
    is_duration = kind == TokenKind.DURATION
    sums = np.append(0, np.cumsum(np.where(is_duration, value, 0)))
    run_end = np.minimum.accumulate(np.where(is_duration, n, np.arange(n))[::-1])[::-1] if n else np.empty(0, np.int64)
    ending = run_end[at + 1]
    duration = sums[ending] - sums[at + 1]
    loud = padded[ending] == TokenKind.VELOCITY
    velocity = np.where(loud, np.append(value, 0)[ending], DEFAULT_VELOCITY)
    onset = bars.start[bar_of[at]] + value[at - 1]
    track = np.maximum(track_of[at], 0)
    order = np.lexsort((duration, value[at], onset, track))
    good = duration[order] > 0
    order = order[good]

    chords = None
    at_chord = np.flatnonzero(kind == TokenKind.CHORD_ROOT)
    at_chord = at_chord[(at_chord > 0) & (padded[at_chord - 1] == TokenKind.ONSET)]
    at_chord = at_chord[
        (padded[at_chord + 1] == TokenKind.CHORD_QUALITY)
        & (np.append(padded, 0)[at_chord + 2] == TokenKind.CHORD_BASS)
    ]
    if len(at_chord):
        chords = ChordTable(
            bars.start[bar_of[at_chord]] + value[at_chord - 1],
            value[at_chord].astype(np.int16),
            value[at_chord + 1].astype(np.int16),
            value[at_chord + 2].astype(np.int16),
        )
    programs = value[heads] if len(heads) else np.zeros(1, dtype=np.int64)
    return MetricScore(
        bars=bars,
        track=track[order],
        onset=onset[order],
        pitch=value[at][order],
        duration=np.minimum(duration[order], MAX_DURATION),
        velocity=np.maximum(velocity[order], 1),
        programs=programs.astype(np.int16),
        tempo=tempo,
        chords=chords,
        names=(),
        explicit_velocity=bool(loud.any()) if len(at) else None,
    )


# ---------------------------------------------------------------------------------------------------------------------
# MetricScore -> MIDI


def to_midi_score(score: MetricScore, markers: bool = True):
    """`MetricScore` -> `symusic.Score` at 480 ticks a quarter.

    Meter, tempo, key and chords become events; with `markers` one marker keeps the bar count, key, genres and the
    velocity choice, and one stands on each line that the meters alone would not put there, so that encoding the
    result gives the same ids.
    """
    if symusic is None:
        raise MidiError("writing MIDI needs the package symusic: pip install 'symusic>=0.5.9,<0.6'", "midi.symusic")
    step = OUTPUT_TPQ // TICKS_PER_QUARTER
    out = symusic.Score(OUTPUT_TPQ)
    bars = score.bars
    changes = np.append(True, bars.meter[1:] != bars.meter[:-1]) if bars.n_bars else np.empty(0, bool)
    for bar in np.flatnonzero(changes).tolist():
        n, d = METERS[bars.meter[bar]]
        out.time_signatures.append(symusic.TimeSignature(int(bars.start[bar]) * step, n, d))
    tempo = score.tempo
    if len(tempo):
        changed = np.append(True, tempo[1:] != tempo[:-1]) & (tempo >= 0)
        for bar in np.flatnonzero(changed).tolist():
            mspq = int(round(6e7 / TEMPO_CENTRES[tempo[bar]]))
            out.tempos.append(symusic.Tempo(int(bars.start[bar]) * step, mspq=mspq))
    if score.key is not None and score.key != "Unknown":
        names = _MINOR_BY_SHARPS if score.key.endswith("m") else _MAJOR_BY_SHARPS
        if score.key in names:
            # the spelling nearest to no accidentals
            sharps = min((i - 7 for i, name in enumerate(names) if name == score.key), key=abs)
            out.key_signatures.append(symusic.KeySignature(0, sharps, int(score.key.endswith("m"))))
    if markers:
        fields = [f"bars={bars.n_bars}"]
        if score.key is not None:
            fields.append(f"key={score.key}")
        if score.genres:
            fields.append("genres=" + ",".join(str(g) for g in score.genres))
        if score.explicit_velocity is not None:
            fields.append(f"velocity={int(score.explicit_velocity)}")
        out.markers.append(symusic.TextMeta(0, f"{_MARK}segment {' '.join(fields)}"))
        for bar in np.flatnonzero(bars.irregular).tolist():
            out.markers.append(symusic.TextMeta(int(bars.start[bar + 1]) * step, f"{_MARK}line"))
    if score.chords is not None:
        roots, qualities, basses = (list(table) for table in _chord_names())
        for t, r, q, b in zip(score.chords.onset, score.chords.root, score.chords.quality, score.chords.bass):
            text = f"{_MARK}chord {roots[r]} {qualities[q]} {basses[b]}"
            out.markers.append(symusic.TextMeta(int(t) * step, text))
    edges = np.searchsorted(score.track, np.arange(score.n_tracks + 1))
    time, length = (score.onset * step).astype(np.int32), (score.duration * step).astype(np.int32)
    pitch, velocity = score.pitch.astype(np.int8), np.clip(score.velocity, 1, 127).astype(np.int8)
    for index, program in enumerate(score.programs.tolist()):
        rows = slice(edges[index], edges[index + 1])
        if rows.start == rows.stop:
            continue
        drums = program == DRUMS
        name = score.names[index] if index < len(score.names) else ""
        part = symusic.Track(name, 0 if drums else min(program, 127), drums)
        part.notes = symusic.Note.from_numpy(time[rows], length[rows], pitch[rows], velocity[rows])
        out.tracks.append(part)
    return out
