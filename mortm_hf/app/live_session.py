"""Playing with MORTM Live: note events with times go in, the next chunk comes out before it begins.

Design decisions
- The session has no thread and no clock of its own: `advance(now)` does what is due. A real clock, a simulated one and
  a file are three ways to call it.
- Time is a line through a reference: a chunk's start is computed, never summed up from waits, so that nothing drifts
  or jitters. A change of tempo begins a new line at the next chunk that is not yet decided.
- A chunk is cut `lead` seconds before it ends: what the other players do after that counts one chunk later, and in
  return the answer is there on time. Late notes move to the start of the next chunk and are counted.
- Everything is bounded: events waiting, notes at a time, the length of the memory.
- Tempo following is a phase-locked loop on the sixteenth grid: each onset pulls phase and tempo a little.

Knows: the processor's rolls, the model's step. Must not know: MIDI ports, files.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import torch

from ..models.errors_mortm import LiveError
from ..models.music_grid import TICKS_PER_QUARTER


GRID = TICKS_PER_QUARTER // 4  # ticks of a sixteenth
PHASE_GAIN, TEMPO_GAIN = 0.15, 0.04
FOLLOW_RANGE = 0.25  # the tempo stays within this share of the one that was set


@dataclass(frozen=True)
class LiveEvent:
    """A note begins or ends.

    Attributes:
        time: seconds of the session's clock.
        slot: instrument of the model, from 0.
        pitch: MIDI pitch.
        velocity: 1 to 127; 0: the note ends.
    """

    time: float
    slot: int
    pitch: int
    velocity: int


@dataclass
class LiveStatistics:
    """What happened.

    Attributes:
        chunks: chunks that the model answered.
        misses: answers that came after their chunk began.
        skipped: chunks left out because the process slept.
        late_events: notes of others that were moved to the next chunk.
        dropped_events: notes of others that found no room.
        latencies: seconds from the cut of a chunk to its answer, the last 10,000.
    """

    chunks: int = 0
    misses: int = 0
    skipped: int = 0
    late_events: int = 0
    dropped_events: int = 0
    latencies: deque = field(default_factory=lambda: deque(maxlen=10_000))

    def summary(self) -> dict:
        """Counts, and median, 95th percentile and maximum of the latency in milliseconds."""
        found = {k: getattr(self, k) for k in ("chunks", "misses", "skipped", "late_events", "dropped_events")}
        if self.latencies:
            times = 1000 * np.array(self.latencies)
            found |= {"p50_ms": float(np.median(times)), "p95_ms": float(np.percentile(times, 95))}
            found["max_ms"] = float(times.max())
        return found


class LiveSession:
    """One performance.

    Args:
        model: a `MortmLiveForCausalGeneration`.
        processor: its `MortmLiveProcessor`.
        play: slots that the model plays; the others are played to it.
        bpm: quarters a minute.
        lead: seconds before the end of a chunk at which it is cut.
        threshold: probability above which a cell sounds.
        polyphony: pitches at a time in a slot.
        history: chunks that the model remembers.
        follow: adapt tempo and phase to the others' onsets.
        max_events: events waiting at most; further ones are dropped and counted.

    Raises:
        LiveError: slots, tempo or lead make no sense.
    """

    def __init__(
        self,
        model,
        processor,
        play=(0,),
        bpm: float = 120.0,
        lead: float = 0.08,
        threshold: float = 0.5,
        polyphony: int = 8,
        history: int = 128,
        follow: bool = False,
        max_events: int = 512,
    ):
        self.model, self.processor = model.eval(), processor
        self.play = sorted({int(slot) for slot in play})
        slots = processor.num_slots
        if not self.play or self.play[0] < 0 or self.play[-1] >= slots:
            raise LiveError(f"play must name slots of 0 to {slots - 1}, got {list(play)}")
        if list(processor.instruments) != list(model.config.instruments):
            raise LiveError("the processor's instruments are not the model's: load both from one folder")
        self.ticks = model.config.chunk_ticks
        self.threshold, self.polyphony = threshold, polyphony
        self.history, self.follow, self.max_events = max(1, history), follow, max_events
        if lead < 0:
            raise LiveError(f"lead must not be negative, got {lead}")
        self.lead = lead
        self._set_bpm = self._checked(bpm)
        self._roles = torch.zeros(1, slots, dtype=torch.bool)
        self._roles[0, self.play] = True
        self.statistics = LiveStatistics()
        self.reset()

    # -------------------------------------------------------------------------------------------------- time

    def start(self, now: float) -> None:
        """Begin the first chunk.

        Args:
            now: seconds of the session's clock.
        """
        self.reset()
        self._reference = (float(now), 0.0, 60.0 / (self._set_bpm * TICKS_PER_QUARTER))

    @property
    def bpm(self) -> float:
        """The tempo, as it is followed."""
        return 60.0 / (self._reference[2] * TICKS_PER_QUARTER)

    def set_tempo(self, bpm: float) -> None:
        """A new tempo from the next undecided chunk on.

        Args:
            bpm: quarters a minute.

        Raises:
            LiveError: outside 20 to 400.
        """
        self._set_bpm = self._checked(bpm)
        self._set_speed(60.0 / (self._set_bpm * TICKS_PER_QUARTER), 0.0)

    def time_of(self, tick: float) -> float:
        """Seconds of the session's clock.

        Args:
            tick: ticks since the start.
        """
        at, reference, seconds = self._reference
        return at + (tick - reference) * seconds

    def tick_of(self, time: float) -> float:
        """Ticks since the start, with a fraction.

        Args:
            time: seconds of the session's clock.
        """
        at, reference, seconds = self._reference
        return reference + (time - at) / seconds

    def next_cut(self) -> float:
        """When `advance` has something to do."""
        return self.time_of((self._chunk + 1) * self.ticks) - self.lead

    def _set_speed(self, seconds: float, shift: float) -> None:
        """Another speed, and a shift in seconds, from the first chunk that is not decided yet."""
        tick = float((self._chunk + 1) * self.ticks)
        self._reference = (self.time_of(tick) + shift, tick, seconds)

    @staticmethod
    def _checked(bpm: float) -> float:
        if not 20 <= bpm <= 400:
            raise LiveError(f"bpm must lie in 20 to 400, got {bpm}")
        return float(bpm)

    # -------------------------------------------------------------------------------------------------- events

    def push(self, time: float, slot: int, pitch: int, velocity: int) -> bool:
        """Take a note event of another player.

        Args:
            time: seconds of the session's clock.
            slot: one of `others`.
            pitch: MIDI pitch.
            velocity: 1 to 127; 0 ends the note.

        Returns:
            False if there was no room for it.

        Raises:
            LiveError: no such slot, or one that the model plays; no such pitch.
        """
        if not 0 <= slot < self.processor.num_slots or slot in self.play:
            raise LiveError(f"slot {slot} is not one of the others: {self.others}")
        if not 0 <= pitch <= 127:
            raise LiveError(f"pitch must lie in 0 to 127, got {pitch}")
        if len(self._events) >= self.max_events:
            self.statistics.dropped_events += 1
            if velocity <= 0:
                self._lost_ends.add((slot, pitch))  # else the note would be held for ever
            return False
        self._events.append(LiveEvent(float(time), slot, pitch, max(0, min(127, int(velocity)))))
        if self.follow and velocity:
            self._follow(time)
        return True

    @property
    def others(self) -> list[int]:
        """Slots of the other players."""
        return [slot for slot in range(self.processor.num_slots) if slot not in self.play]

    def _follow(self, time: float) -> None:
        error = (self.tick_of(time) + GRID / 2) % GRID - GRID / 2  # ticks after the nearest sixteenth
        if abs(error) > GRID / 3:
            return  # nobody knows which side it belongs to
        seconds = self._reference[2]
        wanted = 60.0 / (self._set_bpm * TICKS_PER_QUARTER)
        changed = seconds * (1 + TEMPO_GAIN * error / GRID)
        changed = min(max(changed, wanted * (1 - FOLLOW_RANGE)), wanted * (1 + FOLLOW_RANGE))
        self._set_speed(changed, PHASE_GAIN * error * seconds)

    # -------------------------------------------------------------------------------------------------- answers

    def advance(self, now: float, finished=None) -> list[LiveEvent]:
        """What the model plays in the chunks that are due, in order of time.

        Args:
            now: seconds of the session's clock.
            finished: called after the model's step, gives the clock's time then (to measure latencies and
                deadlines); without it a step takes no time, and no latency is kept.
        """
        answer: list[LiveEvent] = []
        behind = int((self.tick_of(now) - self._chunk * self.ticks) // self.ticks)
        if behind > 8:  # the process slept: the missed bars are silence, and are not made up for
            self.statistics.skipped += behind - 1
            answer += self.panic(now)
            self._forget()
            self._chunk += behind - 1
        while now >= self.next_cut():
            cut = self.next_cut()
            roll = self._running_chunk()
            events = self._answer(roll)
            done = finished() if finished is not None else now
            self.statistics.chunks += 1
            if finished is not None:
                self.statistics.latencies.append(max(0.0, done - max(cut, now)))
            if done > self.time_of(self._chunk * self.ticks):
                self.statistics.misses += 1
            answer += events
        return answer

    def _running_chunk(self) -> np.ndarray:
        """Roll [ticks, 128, slots * 2] of the running chunk: notes of the others, and what the model played."""
        roll = self._own.copy()
        on = dict.fromkeys(self._held, (0, 0))  # sounding since before: no onset here
        cells = []
        later: deque[LiveEvent] = deque()
        start = self._chunk * self.ticks
        for event in self._events:
            tick = int(np.floor(self.tick_of(event.time) + 0.5)) - start
            if tick >= self.ticks:
                later.append(event)
                continue
            if tick < 0:
                self.statistics.late_events += 1
                tick = 0
            key = (event.slot, event.pitch)
            if key in on:
                cells.append((key, *on.pop(key), max(tick, 0)))
            if event.velocity:
                on[key] = (tick, event.velocity)
        coming = {(event.slot, event.pitch) for event in later}
        cells += [(key, *on.pop(key), self.ticks) for key in self._lost_ends - coming if key in on]
        self._lost_ends &= coming
        held = set(on)
        cells += [(key, first, velocity, self.ticks) for key, (first, velocity) in on.items()]
        for (slot, pitch), first, velocity, last in cells:
            # a note that ends in the tick of its onset still sounds for one
            roll[first : max(last, first + 1 if velocity else first), pitch, 2 * slot] = 1.0
            if velocity:
                roll[first, pitch, 2 * slot + 1] = velocity / 127
        if self.processor.velocity == "sustain":
            for (slot, pitch), first, velocity, last in cells:
                roll[first:last, pitch, 2 * slot + 1] = (velocity or self._held.get((slot, pitch), 64)) / 127
        self._held = {key: on[key][1] or self._held.get(key, 64) for key in held}
        self._events = later
        return roll

    @torch.no_grad()
    def _answer(self, roll: np.ndarray) -> list[LiveEvent]:
        """The model reads the running chunk and plays the next one; the session moves on to it."""
        per_bar = self.model.config.chunks_per_measure
        phase = self._chunk % per_bar if per_bar else per_bar
        output = self.model(
            torch.from_numpy(roll)[None, None].to(self.model.device),
            play=self._roles.to(self.model.device),
            phase_ids=torch.tensor([[phase]], device=self.model.device),
            position_ids=torch.tensor([[self._chunk]], device=self.model.device),
            past_key_values=self._cache,
            use_cache=True,
            last_only=True,
        )
        self._cache = output.past_key_values
        for layer in self._cache.layers:
            if layer.keys.shape[-2] > self.history:
                layer.keys = layer.keys[..., -self.history :, :]
                layer.values = layer.values[..., -self.history :, :]
        made = self.processor.from_logits(
            output.logits[0, 0].float().cpu().numpy(), self.threshold, polyphony=self.polyphony, before=self._sounding
        )
        silent = [2 * slot + part for slot in self.others for part in (0, 1)]
        made[..., silent] = 0.0
        self._chunk += 1
        events = self._events_of(made)
        self._own = made
        self._sounding = made[-1, :, 0::2] > 0.5
        return events

    def _events_of(self, roll: np.ndarray) -> list[LiveEvent]:
        """Beginnings and ends of notes in the chunk that begins now."""
        on, loud = roll[..., 0::2] > 0.5, roll[..., 1::2]
        before = np.concatenate([self._sounding[None], on[:-1]])
        begins = on & (~before | (loud > 0)) if self.processor.velocity == "onset" else on & ~before
        ends = before & (~on | begins)
        start = self._chunk * self.ticks
        events = []
        for kind, table in ((0, ends), (1, begins)):
            for tick, pitch, slot in zip(*(x.tolist() for x in np.nonzero(table)), strict=True):
                velocity = int(np.clip(round(float(loud[tick, pitch, slot]) * 127), 1, 127)) if kind else 0
                events.append((start + tick, kind, slot, pitch, velocity))
        return [
            LiveEvent(self.time_of(tick), slot, pitch, velocity) for tick, _, slot, pitch, velocity in sorted(events)
        ]

    # -------------------------------------------------------------------------------------------------- resets

    def panic(self, now: float) -> list[LiveEvent]:
        """Ends of all notes that sound in the model's slots; what the others hold is forgotten.

        Args:
            now: seconds of the session's clock.
        """
        pitches, slots = np.nonzero(self._sounding)
        events = [LiveEvent(now, int(slot), int(pitch), 0) for pitch, slot in zip(pitches, slots, strict=True)]
        self._sounding = np.zeros_like(self._sounding)
        self._own = np.zeros_like(self._own)
        self._held = {}
        self._lost_ends = set()
        return events

    def reset(self) -> None:
        """Back to the beginning: nobody has played anything."""
        self._chunk = 0
        self._reference = (0.0, 0.0, 60.0 / (self._set_bpm * TICKS_PER_QUARTER))
        self._events: deque[LiveEvent] = deque()
        self._held: dict[tuple[int, int], int] = {}
        self._lost_ends: set[tuple[int, int]] = set()  # of notes whose end was dropped
        self._own = np.zeros((self.ticks, 128, 2 * self.processor.num_slots), dtype=np.float32)
        self._sounding = np.zeros((128, self.processor.num_slots), dtype=bool)
        self._forget()

    def _forget(self) -> None:
        self._cache = None
        self._events.clear()


def play_along(session: LiveSession, score, slots: list[int] | None = None, on_chunk=None):
    """A quantised score played into a session in simulated time.

    Args:
        session: the session; it starts anew.
        score: what the processor's `score_to_roll` takes; its tracks in the slots of the others are played to it.
        slots: slot of each track; by program if not given.
        on_chunk: called with (chunks done, chunks in all).

    Returns:
        `RollNotes` of all slots, the others' and the model's, in ticks from the start.
    """
    processor = session.processor
    roll = processor.score_to_roll(score, slots)
    for slot in session.play:
        roll[..., 2 * slot : 2 * slot + 2] = 0.0
    given = processor.roll_to_notes(roll)
    session.start(0.0)
    edges = [(int(o), int(s), int(p), int(v)) for s, o, p, v in zip(*_columns(given, "onset"), strict=True)]
    edges += [(int(o + d), int(s), int(p), 0) for s, o, p, d in zip(*_columns(given, "duration"), strict=True)]
    edges.sort(key=lambda e: (e[0], e[3] > 0))  # ends before beginnings
    chunks, answer, at = len(roll) // session.ticks, [], 0
    for chunk in range(chunks):
        while at < len(edges) and edges[at][0] < (chunk + 1) * session.ticks:
            tick, slot, pitch, velocity = edges[at]
            session.push(session.time_of(tick), slot, pitch, velocity)
            at += 1
        answer += session.advance(session.next_cut())
        if on_chunk is not None:
            on_chunk(chunk + 1, chunks)
    played = notes_of_events(answer, session, (chunks + 1) * session.ticks)
    both = [np.concatenate([getattr(given, k), getattr(played, k)]) for k in given.__dataclass_fields__]
    order = np.lexsort((both[2], both[1], both[0]))
    return type(given)(*(column[order] for column in both))


def _columns(notes, last: str):
    return (notes.slot, notes.onset, notes.pitch, notes.velocity if last == "onset" else notes.duration)


def notes_of_events(events: list[LiveEvent], session: LiveSession, end: int):
    """`RollNotes` of a session's answers.

    Args:
        events: what the model played.
        session: the session that did; it knows the times.
        end: tick at which notes end that nothing else ends.
    """
    from ..models.processing_mortm_live import RollNotes

    open_, notes = {}, []
    for event in events:
        key, tick = (event.slot, event.pitch), round(session.tick_of(event.time))
        if key in open_:
            first, velocity = open_.pop(key)
            notes.append((event.slot, first, event.pitch, max(1, tick - first), velocity))
        if event.velocity:
            open_[key] = (tick, event.velocity)
    notes += [(s, first, p, max(1, end - first), velocity) for (s, p), (first, velocity) in open_.items()]
    table = np.array(sorted(notes, key=lambda n: (n[0], n[1], n[2])), dtype=np.int64).reshape(-1, 5)
    return RollNotes(*table.T)
