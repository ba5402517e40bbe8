"""Writing generated bars into a MIDI file that stays as it is everywhere else.

Design decisions
- The file's own events are kept, not their quantised images: timing, velocities, pedals, names and controllers of
  everything that was not asked to change come out as they went in.
- A MIDI file pairs note-ons and note-offs of one pitch first-in first-out. A generated note is therefore cut where a
  kept note of its pitch starts, and held as long as a kept note of its pitch that it starts inside of: kept notes
  never change their length.

Knows: symusic, the grid. Must not know: tokens, models, prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .midi_files import CHORD_MARK, SEGMENT_MARK, chord_mark, symusic
from .music_grid import TICKS_PER_QUARTER, round_to_grid
from .music_harmony import NO_CHORD
from .music_instruments import GENERAL_MIDI
from .music_names import DRUMS, MAX_BAR_TICKS, METERS, TEMPO_CENTRES, tempo_bin
from .music_score import ChordTable, MetricScore, fit_between


def _sounding_parts(score) -> list[int]:
    """Indices into `score.tracks` in the order of the quantised tracks: those with notes, drums last."""
    used = [i for i, track in enumerate(score.tracks) if len(track.notes)]
    return [i for i in used if not score.tracks[i].is_drum] + [i for i in used if score.tracks[i].is_drum]


def _meter_at(score, tick: int) -> tuple[tuple[int, int], int]:
    """(numerator, denominator) in force at a tick of the file, and the tick since when."""
    found = (4, 4), 0
    for event in sorted(score.time_signatures, key=lambda e: e.time):
        if event.time > tick:
            break
        found = (event.numerator, event.denominator), event.time
    return found


def _holds(score, bars, bar: int, tick: int) -> bool:
    """Whether the meter in force at `tick` is that of a bar, or the long meter of which the bar is a piece."""
    meter, since = _meter_at(score, tick)
    size = meter[0] * 96 // meter[1]
    if size <= MAX_BAR_TICKS:
        return meter == METERS[bars.meter[bar]]
    place = int(bars.start[bar] - round_to_grid(np.array([since]), score.ticks_per_quarter)[0]) % size
    return place % MAX_BAR_TICKS == 0 and int(bars.length[bar]) == min(MAX_BAR_TICKS, size - place)


def write_bars(
    original,
    music: MetricScore,
    start: int,
    stop: int,
    source: Sequence[int],
    targets: Sequence[int],
    old_bars: int,
    inside: bool = True,
):
    """Bars `[start, stop)` of some tracks of `music` written into a copy of `original`.

    Args:
        original: `symusic.Score` in ticks, as `load_score` gives it.
        music: the whole song on the grid, with the new bars; its bars before `start` are those of `original`.
        start: first bar that is written.
        stop: bar after the last one.
        source: for each track of `music` the index of the quantised track of `original` that it is, -1 for a new one.
        targets: tracks of `music` whose notes in these bars are replaced; nothing else is touched.
        old_bars: bars that `original` has; meters and tempi are only written past them.
        inside: keep the bars of `original` from `stop` on; False: those from `start` on are dropped first.

    Returns:
        `symusic.Score`.
    """
    out = original.copy()
    if out.ticks_per_quarter < 4 * TICKS_PER_QUARTER:  # too coarse to hold the grid: an exact multiple does
        out = out.resample(out.ticks_per_quarter * (24 // math.gcd(out.ticks_per_quarter, 24)) * 4)
    tpq = out.ticks_per_quarter

    def file_tick(tick):
        return (2 * np.asarray(tick, dtype=np.int64) * tpq + TICKS_PER_QUARTER) // (2 * TICKS_PER_QUARTER)

    bars = music.bars
    first, last = int(bars.start[start]), int(bars.start[stop])
    parts = _sounding_parts(out)
    if not inside and start < old_bars:
        out = out.clip(0, int(file_tick(first)), clip_end=False)  # notes that ring past the cut stay whole
        old_bars = start
    for target in targets:
        rows = np.flatnonzero((music.track == target) & (music.onset >= first) & (music.onset < last))
        onset, offset = file_tick(music.onset[rows]), file_tick(music.onset[rows] + music.duration[rows])
        pitch, velocity = music.pitch[rows], music.velocity[rows]
        if source[target] >= 0:
            part = out.tracks[parts[source[target]]]
            notes = part.notes.numpy()
            time, length, key, loud = (notes[k].astype(np.int64) for k in ("time", "duration", "pitch", "velocity"))
            on_grid = round_to_grid(time, tpq)
            keep = (on_grid < first) | (on_grid >= last)
            time, length, key, loud = time[keep], length[keep], key[keep], loud[keep]
            offset = np.maximum(fit_between(onset, offset, pitch, time, time + length, key), onset + 1)
            onset, offset = np.append(time, onset), np.append(time + length, offset)
            pitch, velocity = np.append(key, pitch), np.append(loud, velocity)
        else:
            if not len(rows):
                continue
            program = int(music.programs[target])
            name = "Drums" if program == DRUMS else GENERAL_MIDI[min(program, 127)]
            part = symusic.Track(name, 0 if program == DRUMS else min(program, 127), program == DRUMS)
        order = np.lexsort((offset, pitch, onset))
        part.notes = symusic.Note.from_numpy(
            onset[order].astype(np.int32),
            (offset - onset)[order].astype(np.int32),
            pitch[order].astype(np.int8),
            np.clip(velocity, 1, 127)[order].astype(np.int8),
        )
        if source[target] < 0:
            out.tracks.append(part)

    _write_bar_events(out, music, max(start, old_bars), stop, file_tick)
    return out


def _write_bar_events(out, music: MetricScore, start: int, stop: int, file_tick) -> None:
    """Meter and tempo of the bars `[start, stop)` that lie past the old end, and the song's number of bars."""
    bars = music.bars
    own = {int(tempo_bin(event.qpm)): event.mspq for event in out.tempos}  # a tempo of the file is written exactly
    for bar in range(start, stop):
        tick, meter = int(file_tick(bars.start[bar])), METERS[bars.meter[bar]]
        if (bar == start or bars.meter[bar] != bars.meter[bar - 1]) and not _holds(out, bars, bar, tick):
            out.time_signatures.append(symusic.TimeSignature(tick, *meter))
        if bar and music.tempo[bar] >= 0 and music.tempo[bar] != music.tempo[bar - 1]:
            centre = int(round(6e7 / TEMPO_CENTRES[music.tempo[bar]]))
            out.tempos.append(symusic.Tempo(tick, mspq=own.get(int(music.tempo[bar]), centre)))
    fields = [f"bars={music.n_bars}"]
    marks = []
    for mark in out.markers:
        if mark.text.startswith(SEGMENT_MARK):  # what an earlier decode recorded, but for the number of bars
            fields += [field for field in mark.text[len(SEGMENT_MARK) :].split() if not field.startswith("bars=")]
        else:
            marks.append(mark)
    out.markers = [symusic.TextMeta(0, f"{SEGMENT_MARK} {' '.join(fields)}"), *marks]


def write_chords(original, chords: ChordTable, first: int, last: int):
    """A copy of `original` with chord markers in grid ticks `[first, last)`, in place of those that were there.

    A chord holds until the next: where the music continues after `last`, the chord that held there before is stated
    again (no chord, where there was none).

    Args:
        original: `symusic.Score` in ticks.
        chords: the chords, in grid ticks of the song.
        first: grid tick from which chords are replaced.
        last: grid tick up to which they are.

    Returns:
        `symusic.Score`.
    """
    out = original.copy()
    tpq = out.ticks_per_quarter
    marks, held, stated = [], None, False
    for mark in sorted(out.markers, key=lambda mark: mark.time):
        place = round_to_grid(np.array([mark.time]), tpq)[0]
        if mark.text.startswith(f"{CHORD_MARK} "):
            held = mark.text if place <= last else held
            stated |= place == last
            if first <= place < last:
                continue
        marks.append(mark)

    def write(tick, text):
        marks.append(symusic.TextMeta((2 * int(tick) * tpq + TICKS_PER_QUARTER) // (2 * TICKS_PER_QUARTER), text))

    for tick, *chord in zip(chords.onset, chords.root, chords.quality, chords.bass):  # a few a bar
        write(tick, chord_mark(*chord))
    latest = max((int(track.notes.numpy()["time"].max()) for track in out.tracks if len(track.notes)), default=0)
    if len(chords) and not stated and round_to_grid(np.array([latest]), tpq)[0] >= last:
        write(last, held or chord_mark(*NO_CHORD))
    out.markers = sorted(marks, key=lambda mark: mark.time)
    return out
