"""A reader of raw MIDI events: what symusic does not keep (the order of note-offs, events per track).

Design decisions
- Strict where upstream's reader is strict: a file that it rejects raises `MidiError` here, so that the `mortm`
  dialect accepts and rejects the same files. The default dialect reads through symusic and is more lenient.
- A MIDI stream has no random access (variable lengths, running status), so one tight loop walks it and keeps only
  notes, program changes, tempo and meter, as columns; pairing and timing are numpy.
- Nothing is allocated from a length that the file merely claims.

Knows: bytes. Must not know: symusic, the grid, tokens.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors_mortm import MidiError


MAX_TICK = 10_000_000  # upstream's reader refuses files that reach further
MAX_MESSAGE = 1_000_000  # and system-exclusive or meta events longer than this
# Length of channel and system messages after the status byte, by status >> 4 and by the low nibble of 0xF0.
_CHANNEL_SIZE = {0x8: 2, 0x9: 2, 0xA: 2, 0xB: 2, 0xC: 1, 0xD: 1, 0xE: 2}
_SYSTEM_SIZE = {0xF1: 1, 0xF2: 2, 0xF3: 1, 0xF6: 0, 0xF8: 0, 0xFA: 0, 0xFB: 0, 0xFC: 0, 0xFE: 0}
_SIZE = [_CHANNEL_SIZE.get(s >> 4, _SYSTEM_SIZE.get(s, -1)) for s in range(256)]
# Meta types that upstream's reader knows; it forgets the delta time of all others.
_KNOWN_META = {0x00, *range(0x01, 0x08), 0x09, 0x20, 0x21, 0x2F, 0x51, 0x54, 0x58, 0x59, 0x7F}


@dataclass(frozen=True)
class TrackEvents:
    """The note and program events of one track chunk, in file order.

    Attributes:
        tick: `[n]` int64 MIDI ticks.
        status: `[n]` int64, 0x80 to 0x9F or 0xC0 to 0xCF, channel in the low nibble.
        data1: `[n]` int64 pitch or program.
        data2: `[n]` int64 velocity; 0 for programs.
    """

    tick: np.ndarray
    status: np.ndarray
    data1: np.ndarray
    data2: np.ndarray


@dataclass(frozen=True)
class MidiEvents:
    """A MIDI file.

    Attributes:
        ticks_per_quarter: resolution.
        tracks: one entry a chunk.
        tempos: (tick, microseconds a quarter) events of the first chunk.
        meters: (tick, numerator, denominator) events of the first chunk.
        name: of the input, for messages.
    """

    ticks_per_quarter: int
    tracks: tuple[TrackEvents, ...]
    tempos: tuple[tuple[int, int], ...]
    meters: tuple[tuple[int, int, int], ...]
    name: str = "the given bytes"


@dataclass(frozen=True)
class NoteTable:
    """Closed notes, in the order in which they were closed (of one note-off: in the order they were struck).

    Attributes:
        start: `[n]` int64 MIDI ticks of the note-on.
        end: `[n]` int64 MIDI ticks of the note-off.
        pitch: `[n]` int64, 0 to 127.
        velocity: `[n]` int64, 1 to 127.
        program: `[n]` int64 program of the channel at the note-off.
        channel: `[n]` int64, 0 to 15.
        track: `[n]` int64 index of the track chunk.
    """

    start: np.ndarray
    end: np.ndarray
    pitch: np.ndarray
    velocity: np.ndarray
    program: np.ndarray
    channel: np.ndarray
    track: np.ndarray

    def take(self, rows: np.ndarray) -> NoteTable:
        """The notes of some rows."""
        return NoteTable(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def midi_bytes(midi, max_bytes: int) -> tuple[bytes, str]:
    """The bytes of a MIDI file.

    Args:
        midi: path or MIDI bytes.
        max_bytes: the cap on their number.

    Returns:
        The bytes, and a name for messages.

    Raises:
        MidiError: neither of the two (`midi.argument`), not a readable regular file, or above the cap
            (`midi.too_large`; the file is not read).
    """
    if isinstance(midi, (bytes, bytearray, memoryview)):
        data, name = bytes(midi), "the given bytes"
    elif isinstance(midi, (str, os.PathLike)):
        name = str(midi)
        try:
            status = os.stat(midi)
            if not stat.S_ISREG(status.st_mode):  # a device or a pipe may never end
                raise MidiError(f"cannot read {name}: not a regular file")
            data = Path(midi).read_bytes() if status.st_size <= max_bytes else b""
        except OSError as error:
            raise MidiError(f"cannot read {name}: {error.strerror or error}") from None
        except MidiError:
            raise
        except ValueError as error:  # a name that no file can have
            raise MidiError(f"cannot read {name!r}: {error}") from None
        if status.st_size > max_bytes:
            raise MidiError(f"{name} has {status.st_size} bytes, more than the cap of {max_bytes}", "midi.too_large")
    else:
        raise MidiError(f"expected a path or MIDI bytes, got {type(midi).__name__}", "midi.argument")
    if len(data) > max_bytes:
        raise MidiError(f"{name} has {len(data)} bytes, more than the cap of {max_bytes}", "midi.too_large")
    return data, name


def read_events(data: bytes, name: str = "the given bytes", max_notes: int = 2_000_000) -> MidiEvents:
    """MIDI bytes -> events.

    Args:
        data: a whole file.
        name: of the input, for messages.
        max_notes: the cap on the number of notes.

    Raises:
        MidiError: `midi.unreadable` (with the byte position; also files without musical time), `midi.too_large` (too
            many notes, or beyond tick 10,000,000).
    """
    if data[:4] != b"MThd" or len(data) < 14:
        raise MidiError(f"{name} is not a MIDI file (no MThd header)")
    at = 8 + int.from_bytes(data[4:8], "big")
    count, division = int.from_bytes(data[10:12], "big", signed=True), int.from_bytes(data[12:14], "big", signed=True)
    if at < 14:
        raise MidiError(f"cannot read {name} as MIDI: its header is {at - 8} bytes long, not 6")
    if division <= 0:
        raise MidiError(f"{name} has no musical time (SMPTE or zero division); export it with ticks per quarter")
    if count <= 0:
        raise MidiError(f"cannot read {name} as MIDI: its header promises no tracks")
    tracks, budget, last = [], 4 * max_notes + 65536, 0
    tempos: list[tuple[int, int]] = []
    meters: list[tuple[int, int, int]] = []
    for index in range(count):
        if data[at : at + 4] != b"MTrk" or at + 8 > len(data):
            raise MidiError(f"cannot read {name} as MIDI: no track chunk at byte {at} (track {index + 1} of {count})")
        stop = at + 8 + int.from_bytes(data[at + 4 : at + 8], "big")
        if stop > len(data):
            raise MidiError(f"cannot read {name} as MIDI: it ends inside track {index + 1} of {count}")
        keep_meta = index == 0
        try:
            columns, end = _walk(data, at + 8, stop, tempos if keep_meta else None, meters if keep_meta else None)
        except IndexError:
            raise MidiError(f"cannot read {name} as MIDI: it ends inside track {index + 1}") from None
        except _BadEventError as error:
            raise MidiError(f"cannot read {name} as MIDI: {error.args[0]} (track {index + 1})") from None
        last = max(last, end)
        budget -= len(columns[0])
        if budget < 0:
            raise MidiError(f"{name} has more than {max_notes} notes, the cap", "midi.too_large")
        if last >= MAX_TICK:
            raise MidiError(f"{name} reaches tick {last}, beyond the limit of {MAX_TICK}", "midi.too_large")
        tracks.append(TrackEvents(*(np.array(column, dtype=np.int64) for column in columns)))
        at = stop
    return MidiEvents(division, tuple(tracks), tuple(tempos), tuple(meters), name)


class _BadEventError(Exception):
    """An event that the format forbids; carries the words for the message."""


def _walk(
    data: bytes, at: int, stop: int, tempos=None, meters=None, escapes=None
) -> tuple[tuple[list, list, list, list], int]:
    """Walks one chunk; returns the columns of its notes and programs, and its last tick."""
    ticks, statuses, firsts, seconds = [], [], [], []
    add_tick, add_status, add_first, add_second = ticks.append, statuses.append, firsts.append, seconds.append
    size_of = _SIZE
    tick = last_tick = running = 0
    if at == stop:
        raise _BadEventError("a track chunk without any event")
    while at < stop:
        delta = data[at]
        at += 1
        if delta > 127:
            delta, at = _number(data, at, delta & 127)
        status = data[at]
        if status > 127:
            at += 1
            if status != 0xFF:
                running = status
        elif running:
            status = running
            if status == 0xF0 or status == 0xF7:
                at += 1  # upstream's reader swallows a data byte that follows a system-exclusive event
        else:
            raise _BadEventError(f"a data byte without a status byte at byte {at}")
        size = size_of[status]
        if size == 2:
            tick += delta
            first, second = data[at], data[at + 1]
            if first > 127 or second > 127:
                raise _BadEventError(f"a data byte above 127 at byte {at}")
            at += 2
            if status < 0xA0:
                add_tick(tick)
                add_status(status)
                add_first(first)
                add_second(second)
        elif size == 1:
            tick += delta
            first = data[at]
            if first > 127:
                raise _BadEventError(f"a data byte above 127 at byte {at}")
            at += 1
            if 0xC0 <= status < 0xD0:
                add_tick(tick)
                add_status(status)
                add_first(first)
                add_second(0)
        elif size == 0:
            tick += delta
            if data[at - 1] != status:
                raise _BadEventError(f"a data byte after a message that has none, at byte {at}")
        elif status == 0xFF:
            kind = data[at]
            length, begin = _number(data, at + 1, 0)
            at = begin + length
            if length > MAX_MESSAGE or at > stop:
                raise _BadEventError(f"a meta event of {length} bytes at byte {begin}")
            if kind in _KNOWN_META:
                tick += delta
            body = data[begin:at]
            _check_meta(kind, body, begin)
            if kind == 0x51 and tempos is not None:
                tempos.append((tick, int.from_bytes(body[:3], "big")))
            elif kind == 0x58 and meters is not None:
                meters.append((tick, body[0], 2 ** body[1]))
        elif status == 0xF0 or status == 0xF7:
            tick += delta
            if escapes is not None and data[at - 1] == 0xF7:
                escapes.append(at - 1)
            length, begin = _number(data, at, 0)
            at = begin + length
            if length > MAX_MESSAGE or at > stop:
                raise _BadEventError(f"a system-exclusive event of {length} bytes at byte {begin}")
        else:
            raise _BadEventError(f"the undefined status byte 0x{status:02x} at byte {at - 1}")
        if tick > last_tick:
            last_tick = tick
            if tick >= MAX_TICK:  # a corrupt delta: stop before the walk gets long
                break
    else:
        if at != stop:
            raise _BadEventError(f"an event runs past the end of its chunk at byte {stop}")
    return (ticks, statuses, firsts, seconds), last_tick


def _may_hold_escapes(data: bytes, at: int, stop: int) -> bool:
    """Whether some 0xF7 in `data[at:stop]` could be a status byte: far quicker than walking the track, where most are
    part of a long delta time.

    A status follows the last byte of a delta time; after its length and bytes come a delta time and another status.
    """
    while (at := data.find(b"\xf7", at, stop)) >= 0:
        if data[at - 1] < 0x80:
            size, next_at = 0, at + 1
            while next_at < stop and next_at <= at + 4:
                size = size * 128 + (data[next_at] & 0x7F)
                next_at += 1
                if data[next_at - 1] < 0x80:
                    break
            next_at += size
            while next_at < stop and data[next_at] >= 0x80:
                next_at += 1
            if next_at + 1 < stop and data[next_at + 1] >= 0x80:
                return True
        at += 1
    return False


def plain_escapes(data: bytes, chunks) -> bytes:
    """The same file with the status 0xF7 replaced by 0xF0.

    0xF7 is a further piece of a system-exclusive message, or an escape. 0xF0 has the same layout and symusic reads it
    right; 0xF7 it takes for something else, and all later events of the track move.

    Args:
        data: a whole file.
        chunks: (begin, end) of the track chunks, headers included. Damaged chunks stay as they are.

    Returns:
        The bytes.
    """
    if data.count(b"\xf7") <= data.count(b"\xf0"):  # each 0xF7 can end a message that an 0xF0 began
        return data
    positions: list[int] = []
    for begin, end in chunks:
        found: list[int] = []
        if not _may_hold_escapes(data, begin + 8, end):
            continue
        try:
            _walk(data, begin + 8, end, escapes=found)
        except (IndexError, _BadEventError):
            continue
        positions += found
    if not positions:
        return data
    mended = bytearray(data)
    for position in positions:
        mended[position] = 0xF0
    return bytes(mended)


def _number(data: bytes, at: int, value: int) -> tuple[int, int]:
    """Variable-length number from byte `at` on, its leading bits given; returns it and the next position."""
    while True:
        byte = data[at]
        at += 1
        value = (value << 7) | (byte & 127)
        if byte < 128:
            return value, at
        if value > 1 << 56:  # no number of a MIDI file is this long: four bytes are the format's limit
            raise _BadEventError(f"an endless number at byte {at}")


def _check_meta(kind: int, body: bytes, at: int) -> None:
    """Refuses the meta events that upstream's reader refuses."""
    short = {0x20: 1, 0x51: 3, 0x54: 5, 0x58: 4, 0x59: 2}.get(kind, 0)
    if len(body) < short or (kind == 0x00 and len(body) == 1):
        raise _BadEventError(f"a meta event 0x{kind:02x} of {len(body)} bytes at byte {at}")
    if kind == 0x59 and not (abs(int.from_bytes(body[:1], "big", signed=True)) <= 7 and body[1] <= 1):
        raise _BadEventError(f"an impossible key signature at byte {at}")
    if kind == 0x54 and (body[0] >> 5 > 3 or body[1] > 59 or body[2] > 59 or body[4] > 99):
        raise _BadEventError(f"an impossible SMPTE offset at byte {at}")


def _pair(track: TrackEvents, index: int) -> NoteTable | None:
    """Notes of one track under upstream's rule.

    A note-off closes every sounding note of its channel and pitch that was struck on an earlier tick; those struck on
    its own tick keep sounding if it closed any, else they are lost. Notes that are never closed are lost.
    """
    order = np.arange(len(track.tick))
    is_program = track.status >= 0xC0
    notes = order[~is_program]
    channel = track.status & 15
    # Grouped by (channel, pitch), in file order inside a group.
    voice = channel[notes] * 128 + track.data1[notes]
    notes = notes[np.argsort(voice, kind="stable")]
    voice = channel[notes] * 128 + track.data1[notes]
    tick = track.tick[notes]
    on = ((track.status[notes] & 0xF0) == 0x90) & (track.data2[notes] > 0)
    offs, ons = np.flatnonzero(~on), np.flatnonzero(on)
    if len(offs) == 0 or len(ons) == 0:
        return None
    off_tick, off_voice = tick[offs], voice[offs]
    # The first note-off after each note-on, if it is of the same voice.
    target = np.searchsorted(offs, ons)
    known = target < len(offs)
    known[known] = off_voice[target[known]] == voice[ons[known]]
    ons, target = ons[known], target[known]
    if len(ons) == 0:
        return None
    same_tick = tick[ons] == off_tick[target]
    # A note-off "closes" if it ends an earlier note: one struck since the previous note-off, or one that this left
    # sounding. It leaves notes sounding if it closes and notes were struck on its own tick. Hence left[j] =
    # distinct[j] and fresh[j] and (older[j] or left[j - 1]), a scan resolved by the last index that decides alone.
    older = np.zeros(len(offs), dtype=bool)
    older[target[~same_tick]] = True
    fresh = np.zeros(len(offs), dtype=bool)
    fresh[target[same_tick]] = True
    first = np.append(True, off_voice[1:] != off_voice[:-1])
    distinct = np.append(True, off_tick[1:] != off_tick[:-1]) | first
    sets = distinct & fresh & older
    carries = distinct & fresh & ~first
    decided = np.maximum.accumulate(np.where(sets | ~carries, np.arange(len(offs)), 0))
    left = sets[decided]
    before = np.append(False, left[:-1]) & ~first
    closes = older | (before & distinct)
    # Notes struck on the tick of their first note-off wait for the second one.
    waits = same_tick & closes[target]
    second = np.minimum(target + 1, len(offs) - 1)
    resolved = (target + 1 < len(offs)) & (off_voice[second] == off_voice[target]) & (off_tick[second] > tick[ons])
    target = np.where(waits, second, target)
    kept = np.flatnonzero(~same_tick | (waits & resolved))
    ons, target = ons[kept], target[kept]
    off_event, on_event = notes[offs[target]], notes[ons]
    done = np.lexsort((on_event, off_event))
    off_event, on_event = off_event[done], on_event[done]
    note_channel = channel[on_event]
    program = np.zeros(len(on_event), dtype=np.int64)
    changes = order[is_program]
    if len(changes):
        size = len(order) + 1
        keys = np.sort(channel[changes] * size + changes)
        found = np.searchsorted(keys, note_channel * size + off_event) - 1
        event = keys[np.maximum(found, 0)]
        valid = (found >= 0) & (event // size == note_channel)
        program = np.where(valid, track.data1[event % size], 0)
    return NoteTable(
        start=track.tick[on_event],
        end=track.tick[off_event],
        pitch=track.data1[on_event],
        velocity=track.data2[on_event],
        program=program,
        channel=note_channel,
        track=np.full(len(on_event), index, dtype=np.int64),
    )


def closed_notes(events: MidiEvents) -> NoteTable:
    """All notes of a file, track by track, in the order of their note-offs."""
    tables = [t for t in (_pair(track, index) for index, track in enumerate(events.tracks)) if t is not None]
    names = NoteTable.__dataclass_fields__
    return NoteTable(
        *(np.concatenate([getattr(t, name) for t in tables] or [np.empty(0, dtype=np.int64)]) for name in names)
    )


def tempo_map(events: MidiEvents) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tempo segments in upstream's float64 arithmetic: `[n]` first tick, its seconds, seconds per tick (SPEC 2.1).

    A change on tick 0 replaces everything before it; a repetition of the tempo is no change.

    Raises:
        MidiError: a tempo of zero (`midi.timing`).
    """
    resolution = events.ticks_per_quarter
    ticks, scales = [0], [60.0 / (120.0 * resolution)]
    for tick, mspq in events.tempos:
        if mspq == 0:
            raise MidiError(f"{events.name} has a tempo of 0 microseconds per quarter at tick {tick}", "midi.timing")
        scale = 60.0 / ((6e7 / mspq) * resolution)
        if tick == 0:
            ticks, scales = [0], [scale]
        elif scale != scales[-1]:
            ticks.append(tick)
            scales.append(scale)
    tick, scale = np.array(ticks, dtype=np.int64), np.array(scales)
    return tick, np.append(0.0, np.cumsum(scale[:-1] * np.diff(tick))), scale


def seconds_of(tick: np.ndarray, segments: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """MIDI ticks -> seconds. A tick on a boundary has the value of the segment it opens.

    Args:
        tick: `[n]` MIDI ticks.
        segments: of `tempo_map`.

    Returns:
        `[n]` float64 seconds.
    """
    first, seconds, scale = segments
    segment = np.searchsorted(first, tick, side="right") - 1
    return seconds[segment] + scale[segment] * (tick - first[segment])
