"""MIDI files <-> quantised music (through symusic).

Design decisions
- Every input that cannot be used raises `MidiError`; caps bound time and memory, so loading never stalls a process.
- Rounding is integer arithmetic on the file's ticks; notes of one pitch are paired first-in first-out. A note that is
  never ended is no note, and type 2 files (independent patterns) are refused.
- Writing leaves marker events for what MIDI has no event for (irregular bar lines, chords, the bar count), and
  reading prefers them over guessing: writing and reading give the same music.
- What does not fit the grid is counted in `CodecReport`, never dropped in silence.

Knows: symusic, the grid. Must not know: token ids, torch, prompts.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors_mortm import MidiError
from .midi_events import midi_bytes, plain_escapes
from .music_grid import TICKS_PER_QUARTER, BarTable, bars_of_meters, round_to_grid
from .music_names import (
    BASS_NAMES,
    DRUMS,
    GENRES,
    KEY_NAMES,
    MAX_DURATION,
    METERS,
    QUALITY_NAMES,
    ROOT_NAMES,
    TEMPO_CENTRES,
    tempo_bin,
)
from .music_score import ChordTable, CodecReport, MetricScore


try:
    import symusic
except ImportError:  # a folder loaded from the Hub may run where only ids are needed
    symusic = None

OUTPUT_TPQ = 480
# marker events of ours
SEGMENT_MARK, LINE_MARK, CHORD_MARK = "mortm:segment", "mortm:line", "mortm:chord"
_CHORD_NAMES = ROOT_NAMES, QUALITY_NAMES, BASS_NAMES
_MAJOR_BY_SHARPS = "BM GbM DbM AbM EbM BbM FM CM GM DM AM EM BM F#M C#M".split()  # CbM has no token: BM
_MINOR_BY_SHARPS = "Abm Ebm Bbm Fm Cm Gm Dm Am Em Bm F#m C#m G#m D#m A#m".split()


@dataclass(frozen=True)
class Caps:
    """Limits on a MIDI input, so that loading one never stalls or fills the machine.

    Attributes:
        bytes: of the file.
        notes: of all tracks.
        tracks: of the file.
        bars: of the song.
        cells: tracks times bars.
        ticks: grid ticks of the song; a later note could not be written again, as delta times have 28 bits.
    """

    bytes: int = 64 << 20
    notes: int = 2_000_000
    tracks: int = 4096
    bars: int = 200_000
    cells: int = 20_000_000
    ticks: int = 13_000_000


def is_symusic(value) -> bool:
    """Whether a value is a `symusic.Score`, whatever its time unit."""
    return hasattr(value, "tracks") and hasattr(value, "ticks_per_quarter")


def _clean_container(data: bytes, name: str) -> bytes:
    """The same tracks in a well-formed container, so that the parser never leaves the buffer: RIFF wrapping, foreign
    chunks and wrong track counts are mended, a track that ends past the end of the file raises `MidiError`."""
    if data[:4] == b"RIFF" and data[8:12] == b"RMID":
        data = data[20:]
    if data[:4] != b"MThd" or len(data) < 14:
        raise MidiError(f"{name} is not a MIDI file (no MThd header)")
    if data[8:10] == b"\x00\x02":
        raise MidiError(f"{name} is a type 2 file (independent patterns); save each pattern as a file of its own")
    if data[12] & 0x80 or data[12:14] == b"\x00\x00":
        raise MidiError(f"{name} has no musical time (SMPTE or zero division); export it with ticks per quarter")
    position, tracks = 8 + int.from_bytes(data[4:8], "big"), []
    while position + 8 <= len(data):
        size = int.from_bytes(data[position + 4 : position + 8], "big")
        end = position + 8 + size
        is_track = data[position : position + 4] == b"MTrk"
        if is_track and end > len(data):
            raise MidiError(f"{name} is damaged: a track ends {end - len(data)} bytes past the end of the file")
        if is_track:
            tracks.append((position, end))
        position = end
    if len(tracks) > 0xFFFF:
        raise MidiError(f"{name} has {len(tracks)} track chunks, more than a MIDI file can announce", "midi.too_large")
    data = plain_escapes(data, tracks)
    head = b"MThd\0\0\0\6" + data[8:10] + len(tracks).to_bytes(2, "big") + data[12:14]
    # A damaged last event may make the parser look a few bytes further: let it find zeros, not memory.
    return b"".join([head, *(data[a:b] for a, b in tracks), bytes(16)])


def need_symusic(doing: str) -> None:
    """Refuse where symusic is missing.

    Args:
        doing: what needs it, for the message.

    Raises:
        MidiError: symusic is missing (`midi.symusic`).
    """
    if symusic is None:
        raise MidiError(f"{doing} MIDI needs the package symusic: pip install 'symusic>=0.5.9,<0.6'", "midi.symusic")


def empty_track(name: str, program: int):
    """A `symusic.Track` without notes.

    Args:
        name: of the track.
        program: General MIDI program, or `DRUMS`.
    """
    drums = program == DRUMS
    return symusic.Track(name, 0 if drums else min(program, 127), drums)


def midi_notes(onset: np.ndarray, duration: np.ndarray, pitch: np.ndarray, velocity: np.ndarray):
    """Notes of a `symusic.Track`.

    Args:
        onset: `[n]` ticks of the file.
        duration: `[n]` ticks of the file.
        pitch: `[n]` MIDI pitches.
        velocity: `[n]`, clipped to 1 to 127.
    """
    times = onset.astype(np.int32), duration.astype(np.int32)
    return symusic.Note.from_numpy(*times, pitch.astype(np.int8), np.clip(velocity, 1, 127).astype(np.int8))


def load_score(midi, caps: Caps = Caps()):
    """Read a MIDI file.

    Args:
        midi: path, MIDI bytes or `symusic.Score`.
        caps: limits of size.

    Returns:
        `symusic.Score` in ticks.

    Raises:
        MidiError: symusic is missing (`midi.symusic`), or the input is unreadable, without musical time
            (`midi.timing`) or too large (`midi.too_large`).
    """
    need_symusic("reading")
    if is_symusic(midi):
        score, name = (midi if str(midi.ttype) in ("Tick", "TimeUnit.Tick") else midi.to("tick")), "the given score"
    else:
        if not isinstance(midi, (bytes, bytearray, memoryview, str, os.PathLike)):
            raise MidiError(f"expected a path, bytes or a symusic.Score, got {type(midi).__name__}")
        data, name = midi_bytes(midi, caps.bytes)
        data = _clean_container(data, name)
        try:
            # Clamped data bytes: symusic 0.5 indexes a table by the raw pitch, and one above 127 ends the process.
            score = symusic.Score.from_midi(data, sanitize_data=True)
        except Exception as error:  # symusic raises plain RuntimeError, and more on odd files
            raise MidiError(f"cannot read {name} as MIDI: {' '.join(str(error).split())[:200]}") from None
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


def _meter_changes(score, report: CodecReport) -> list[tuple[int, int, int]]:
    """(tick, numerator, denominator) of the real changes, from tick 0 on (4/4 where the file says nothing)."""
    events = [(e.time, e.numerator, e.denominator) for e in score.time_signatures]
    # A usable meter has a bar of at least one grid tick; the last of several on one tick wins, as in playback.
    usable = sorted((e for e in events if e[0] >= 0 < e[1] and 0 < e[2] <= 96 * e[1]), key=lambda e: e[0])
    report.ignored_meters = len(events) - len(usable)
    at = {0: (4, 4)} | {tick: (num, den) for tick, num, den in usable}
    changes, before = [], None
    for tick, meter in at.items():
        if meter != before:
            changes.append((tick, *meter))
        before = meter
    return changes


def _tempo_bins(score, bars: BarTable) -> np.ndarray:
    """Tempo bin of each bar: quarters x 60 / seconds of the bar, on the file's tempo map."""
    events = score.tempos.numpy()
    tick, mspq = events["time"].astype(np.float64), events["mspq"].astype(np.float64)
    usable = (mspq > 0) & (tick >= 0)
    if not usable.any():
        return np.full(bars.n_bars, -1, dtype=np.int16)
    tick, mspq = tick[usable], mspq[usable]
    if len(tick) == 1 and tick[0] == 0:
        return np.full(bars.n_bars, int(tempo_bin(6e7 / mspq[0])), dtype=np.int16)
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


def _file_key(score) -> str | None:
    for event in score.key_signatures:
        if -7 <= event.key <= 7 and event.tonality in (0, 1):
            return (_MINOR_BY_SHARPS if event.tonality else _MAJOR_BY_SHARPS)[event.key + 7]
    return None


def chord_mark(root: int, quality: int, bass: int) -> str:
    """The text of the marker event that states a chord.

    Args:
        root: index into `ROOT_NAMES`.
        quality: index into `QUALITY_NAMES`.
        bass: index into `BASS_NAMES`.
    """
    return f"{CHORD_MARK} {ROOT_NAMES[root]} {QUALITY_NAMES[quality]} {BASS_NAMES[bass]}"


def _whole(text: str) -> int | None:
    """A plain number in a marker, which anyone may have written; None for everything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _read_markers(score):
    """(segment fields, bar lines, chords) that an earlier decode left as marker events; all empty otherwise."""
    fields, lines, chords = {}, [], []
    scale = TICKS_PER_QUARTER / score.ticks_per_quarter
    for event in score.markers:
        kind, _, body = event.text.partition(" ")
        if kind == SEGMENT_MARK:
            fields = dict(part.partition("=")[::2] for part in body.split())
        elif kind == LINE_MARK:
            lines.append(round(event.time * scale))
        elif kind == CHORD_MARK:
            names = body.split()
            if len(names) == 3 and all(name in known for known, name in zip(_CHORD_NAMES, names)):
                found = (known.index(name) for known, name in zip(_CHORD_NAMES, names))
                chords.append((round(event.time * scale), *found))
    table = None
    if chords:
        columns = np.array(sorted(chords), dtype=np.int64).T
        table = ChordTable(columns[0], *(c.astype(np.int16) for c in columns[1:]))
    return fields, np.array(lines, dtype=np.int64), table


def quantize(score, caps: Caps = Caps(), pedal: str = "ignore", paired: bool = False) -> MetricScore:
    """A `symusic.Score` in ticks -> `MetricScore` (DESIGN 3 and 4).

    Args:
        score: of `load_score`.
        caps: limits of size.
        pedal: "ignore" keeps durations as played, "extend" lets notes ring while the pedal is down (not drums).
        paired: the notes of one pitch are known to be paired first-in first-out, as a MIDI file's always are.

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
    played = np.concatenate([c["duration"] for c in columns])
    pitch = np.concatenate([c["pitch"] for c in columns]).astype(np.int64) & 127
    velocity = np.maximum(np.concatenate([c["velocity"] for c in columns]).astype(np.int64), 1)
    track = np.repeat(np.arange(len(parts)), sizes)
    if tick.min() < 0 or played.min() < 0:
        raise MidiError("the MIDI file has notes at negative times or of negative length", "midi.timing")
    ending = tick + played
    if pedal == "extend":
        paired = False
        edges = np.cumsum([0, *sizes])
        for part, first, last in zip(parts, edges, edges[1:]):
            if not part.is_drum:
                rows = slice(first, last)
                ending[rows] = _extend_by_pedal(part, tick[rows], ending[rows], pitch[rows])
    elif pedal != "ignore":
        raise MidiError(f"pedal must be 'ignore' or 'extend', got {pedal!r}", "midi.argument")
    report.notes = len(tick)
    report.zero_length = len(tick) - int(np.count_nonzero(played))
    onset, offset = round_to_grid(tick, tpq), round_to_grid(ending, tpq)
    last_offset = int(offset.max())
    span = last_offset + 2
    if not paired:  # the k-th onset of a pitch gets its k-th offset
        voice = track * 128 + pitch
        order = np.lexsort((onset, voice))
        onset, offset, voice, velocity = onset[order], offset[order], voice[order], velocity[order]
        nested = (voice[1:] == voice[:-1]) & (offset[1:] < offset[:-1])
        if nested.any():
            offset = offset[np.lexsort((offset, voice))]
        track, pitch = voice >> 7, voice & 127
    duration = np.maximum(offset - onset, 1)
    if duration.max() > MAX_DURATION:
        report.clipped = int(np.count_nonzero(duration > MAX_DURATION))
        duration = np.minimum(duration, MAX_DURATION)
        last_offset = int((onset + duration).max())
    place = ((track * span + onset) << 7) | pitch
    order = np.argsort(place * (MAX_DURATION + 1) + duration, kind="stable")
    place, track, onset, pitch, duration, velocity = (
        a.take(order) for a in (place, track, onset, pitch, duration, velocity)
    )
    twin = (place[1:] == place[:-1]) & (duration[1:] == duration[:-1])
    if twin.any():
        report.duplicates = int(np.count_nonzero(twin))
        starts = np.flatnonzero(np.append(True, ~twin))
        velocity = np.maximum.reduceat(velocity, starts)  # merged notes sound as loud as the loudest of them
        track, onset, pitch, duration = (a[starts] for a in (track, onset, pitch, duration))

    if span > caps.ticks:
        raise MidiError(
            f"the MIDI file is {span / (96 * 1000):.0f} thousand bars long, more than the cap of {caps.ticks} ticks "
            "(24 a quarter); cut it first",
            "midi.too_large",
        )
    fields, lines, chords = _read_markers(score) if len(score.markers) else ({}, np.empty(0, np.int64), None)
    count = _whole(fields.get("bars", "")) or 0
    if count > caps.bars:
        count = 0
    until = int(onset.max()) + 1 if count else max(last_offset, int(onset.max()) + 1)
    made = bars_of_meters(
        _meter_changes(score, report), tpq, lines, until, count, max_bars=min(caps.bars, caps.cells // len(parts))
    )
    if made is None:
        raise MidiError(
            f"the MIDI file is longer than {caps.bars} bars (or {caps.cells} bars x tracks); cut it first",
            "midi.too_large",
        )
    bars, report.cut_bars = made
    if chords is not None and chords.onset[-1] >= bars.end:  # the song ends with the bar of its last note
        chords = chords.window(0, bars.end) if chords.onset[0] < bars.end else None
    key = fields.get("key")
    if key not in KEY_NAMES:  # drums have no key: one that their file states is its template's
        key = None if all(part.is_drum for part in parts) else _file_key(score)
    return MetricScore(
        bars=bars,
        track=track,
        onset=onset,
        pitch=pitch,
        duration=duration,
        velocity=velocity,
        programs=np.array([DRUMS if t.is_drum else t.program & 127 for t in parts], dtype=np.int16),
        tempo=_tempo_bins(score, bars),
        key=key,
        chords=chords,
        genres=tuple(g for g in map(_whole, fields.get("genres", "").split(",")) if g is not None and g < len(GENRES)),
        names=tuple(t.name for t in parts),
        explicit_velocity={"0": False, "1": True}.get(fields.get("velocity", "")),
        report=report,
    )


@dataclass(frozen=True)
class OpenedMidi:
    """A file that was read already: pipelines take it in place of a path.

    Attributes:
        score: `symusic.Score` in ticks, as the file is.
        music: `MetricScore` of it.
    """

    score: Any
    music: MetricScore


def open_midi(midi, caps: Caps = Caps(), pedal: str = "ignore"):
    """A file as it is and on the grid, parsed once.

    Args:
        midi: path, bytes or `symusic.Score`.
        caps: limits of size.
        pedal: "ignore" keeps durations as played, "extend" lets notes ring while the pedal is down (not drums).

    Returns:
        `symusic.Score` in ticks, and the `MetricScore` of it.

    Raises:
        MidiError: unreadable, empty or too large; the message names the path.
    """
    try:
        score = load_score(midi, caps)
        return score, quantize(score, caps, pedal, paired=not is_symusic(midi))
    except MidiError as error:
        if isinstance(midi, (str, os.PathLike)) and str(midi) not in str(error):
            raise MidiError(f"{midi}: {error}", error.code) from None
        raise


def read_midi(midi, caps: Caps = Caps(), pedal: str = "ignore") -> MetricScore:
    """A file on the grid.

    Args:
        midi: path, bytes or `symusic.Score`.
        caps: limits of size.
        pedal: "ignore" keeps durations as played, "extend" lets notes ring while the pedal is down (not drums).

    Raises:
        MidiError: as `open_midi`.
    """
    return open_midi(midi, caps, pedal)[1]


def to_midi_score(score: MetricScore, markers: bool = True):
    """`MetricScore` -> `symusic.Score` at 480 ticks a quarter.

    Meter, tempo, key and chords become events.

    Args:
        score: the music.
        markers: write a marker with the bar count, key, genres and the velocity choice, and one on each bar line that
            the meters alone would not put there, so that encoding the result gives the same ids.

    Returns:
        `symusic.Score`.

    Raises:
        MidiError: symusic is missing (`midi.symusic`).
    """
    need_symusic("writing")
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
        out.markers.append(symusic.TextMeta(0, f"{SEGMENT_MARK} {' '.join(fields)}"))
        for bar in np.flatnonzero(bars.irregular).tolist():
            out.markers.append(symusic.TextMeta(int(bars.start[bar + 1]) * step, LINE_MARK))
    if score.chords is not None:
        table = score.chords
        for tick, *chord in zip(table.onset, table.root, table.quality, table.bass):
            out.markers.append(symusic.TextMeta(int(tick) * step, chord_mark(*chord)))
    edges = np.searchsorted(score.track, np.arange(score.n_tracks + 1))
    for index, program in enumerate(score.programs.tolist()):
        rows = slice(edges[index], edges[index + 1])
        if rows.start == rows.stop:
            continue
        part = empty_track(score.names[index] if index < len(score.names) else "", program)
        times = score.onset[rows] * step, score.duration[rows] * step
        part.notes = midi_notes(*times, score.pitch[rows], score.velocity[rows])
        out.tracks.append(part)
    return out
