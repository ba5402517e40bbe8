"""Scores to piano rolls of slots and back, on the metric grid (SPEC 4.5, DESIGN 3).

Design decisions
- One cell is one tick, 24 a quarter: 96 in a 4/4 bar, whatever the tempo and wherever the piece ends (upstream
  stretched the grid by the last note's end, SPEC D-L1).
- A cell holds a pitch channel (0 or 1) and a velocity channel (velocity / 127). With `velocity="onset"` the velocity
  stands in a note's first cell only, so that repeated notes stay apart and the way back is exact; "sustain" writes it
  as long as the note sounds, as upstream does, and repeats of the same velocity melt together.
- A track goes to the slot of its program, else to the first slot of its family, else nowhere (reported); the caller
  may assign tracks itself.

Knows: the grid, quantised scores, rolls. Must not know: models, clocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from transformers.feature_extraction_utils import BatchFeature, FeatureExtractionMixin

from .errors_mortm import MidiError
from .families import FAMILIES
from .midi_files import read_midi
from .music_grid import TICKS_PER_QUARTER
from .music_names import DRUMS
from .music_score import MetricScore


try:
    import symusic
except ImportError:  # named when a score is asked for
    symusic = None

PITCHES = 128
OUTPUT_TPQ = 480


@dataclass
class RollNotes:
    """Notes of a roll, sorted by slot, onset and pitch.

    Attributes:
        slot: int64 [notes].
        onset: int64 [notes] ticks from the start of the roll.
        pitch: int64 [notes], 0 to 127.
        duration: int64 [notes] ticks.
        velocity: int64 [notes], 1 to 127.
    """

    slot: np.ndarray
    onset: np.ndarray
    pitch: np.ndarray
    duration: np.ndarray
    velocity: np.ndarray

    def __len__(self) -> int:
        return len(self.onset)


class MortmLiveProcessor(FeatureExtractionMixin):
    r"""Music to `rolls` [batch, chunks, ticks, 128, slots * 2] with `attention_mask` [batch, chunks], and back.

    Args:
        instruments: General MIDI program of each slot, 128 for drums.
        chunk_ticks: ticks of a chunk.
        ticks_per_measure: ticks of a 4/4 bar; fixed by the grid.
        velocity: "onset" writes a velocity where a note begins, "sustain" as long as it sounds.
        kwargs: those of `FeatureExtractionMixin`.

    Raises:
        ValueError: another `velocity`.
    """

    model_input_names = ["rolls", "attention_mask"]

    def __init__(
        self,
        instruments: list[int] | None = None,
        chunk_ticks: int = 16,
        ticks_per_measure: int = 96,
        velocity: str = "onset",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if velocity not in ("onset", "sustain"):
            raise ValueError(f"velocity must be 'onset' or 'sustain', got {velocity!r}")
        self.instruments = list(instruments) if instruments is not None else [1, 5, 19, 27, 34, 65, 10, 74]
        self.chunk_ticks = chunk_ticks
        self.ticks_per_measure = ticks_per_measure
        self.velocity = velocity

    def to_dict(self) -> dict:
        """The parameters and the classes' names."""
        output = super().to_dict()
        return output | {"auto_map": FAMILIES["mortm_live"].readers | output.get("auto_map", {})}

    @property
    def num_slots(self) -> int:
        """Instruments of the roll."""
        return len(self.instruments)

    # ------------------------------------------------------------------------------------------------------- to rolls

    def slot_of_tracks(self, programs) -> list[int]:
        """Slot of each track by its program, -1 where there is none."""
        slots = []
        for program in (int(p) for p in programs):
            same = [i for i, slot in enumerate(self.instruments) if slot == program]
            family = [
                i
                for i, slot in enumerate(self.instruments)
                if program != DRUMS and slot != DRUMS and slot // 8 == program // 8
            ]
            slots.append((same or family or [-1])[0])
        return slots

    def score_to_roll(self, midi, slots: list[int] | None = None) -> np.ndarray:
        """The roll of a piece.

        Args:
            midi: path, MIDI bytes, `symusic.Score` or `MetricScore`.
            slots: slot of each track of the quantised score, -1 to leave it out; by program if not given.

        Returns:
            [ticks, 128, slots * 2] float32, whole chunks.

        Raises:
            MidiError: the file cannot be read; unknown slots (`midi.argument`); no track has a slot (`midi.empty`).
        """
        score = midi if isinstance(midi, MetricScore) else read_midi(midi)
        slots = self.slot_of_tracks(score.programs) if slots is None else list(slots)
        if len(slots) != score.n_tracks or any(not -1 <= s < self.num_slots for s in slots):
            raise MidiError(
                f"slots must name one of 0 to {self.num_slots - 1} (or -1) for each of {score.n_tracks} tracks, got "
                f"{slots}",
                "midi.argument",
            )
        slot = np.asarray(slots, dtype=np.int64)[score.track]
        keep = slot >= 0
        if not keep.any():
            raise MidiError(
                f"no track has a slot: programs {sorted(set(score.programs.tolist()))}, slots {self.instruments}; "
                "assign the tracks with slots=[...]",
                "midi.empty",
            )
        notes = (slot[keep], score.onset[keep], score.pitch[keep], score.duration[keep], score.velocity[keep])
        return self.notes_to_roll(*notes, ticks=int(score.bars.end))

    def notes_to_roll(self, slot, onset, pitch, duration, velocity, ticks: int | None = None) -> np.ndarray:
        """The roll of some notes.

        A note is cut where the next of its slot and pitch begins; of notes that begin together the longest is kept,
        with the greatest velocity.

        Args:
            slot: [notes].
            onset: [notes] ticks from the start of the roll.
            pitch: [notes], 0 to 127.
            duration: [notes] ticks.
            velocity: [notes], 1 to 127.
            ticks: least length of the roll; by default it ends with the last note.

        Returns:
            [ticks, 128, slots * 2] float32, whole chunks.
        """
        slot, onset, pitch, duration, velocity = (
            np.asarray(column, dtype=np.int64) for column in (slot, onset, pitch, duration, velocity)
        )
        last = int((onset + duration).max(initial=0))
        ticks = max(ticks or 0, last)
        ticks = -(-ticks // self.chunk_ticks) * self.chunk_ticks
        roll = np.zeros((ticks, PITCHES, 2 * self.num_slots), dtype=np.float32)
        if not len(onset):
            return roll
        order = np.lexsort((-duration, onset, pitch, slot))
        slot, onset, pitch, duration, velocity = (c[order] for c in (slot, onset, pitch, duration, velocity))
        voice = slot * PITCHES + pitch
        first = np.append(True, (voice[1:] != voice[:-1]) | (onset[1:] != onset[:-1]))
        velocity = np.maximum.reduceat(velocity, np.flatnonzero(first))
        slot, onset, pitch, duration, voice = (c[first] for c in (slot, onset, pitch, duration, voice))
        follows = np.append(
            np.where(voice[1:] == voice[:-1], onset[1:], np.iinfo(np.int64).max), np.iinfo(np.int64).max
        )
        length = np.minimum(onset + duration, follows) - onset
        note = np.repeat(np.arange(len(onset)), length)
        cell = np.arange(len(note)) - np.repeat(np.cumsum(length) - length, length) + onset[note]
        roll[cell, pitch[note], 2 * slot[note]] = 1.0
        loud = (np.clip(velocity, 1, 127) / 127).astype(np.float32)
        if self.velocity == "onset":
            roll[onset, pitch, 2 * slot + 1] = loud
        else:
            roll[cell, pitch[note], 2 * slot[note] + 1] = loud[note]
        return roll

    def __call__(self, midi, slots=None, return_tensors: str | None = None) -> BatchFeature:
        """`rolls` and `attention_mask` of one piece or a list of pieces, padded at the end.

        Args:
            midi: what `score_to_roll` takes, or a roll [ticks, 128, slots * 2]; or a list of these.
            slots: slot of each track, see `score_to_roll`.
            return_tensors: "pt" or "np"; numpy arrays by default.

        Raises:
            MidiError: see `score_to_roll`.
        """
        items = list(midi) if isinstance(midi, (list, tuple)) else [midi]
        rolls = [item if isinstance(item, np.ndarray) else self.score_to_roll(item, slots) for item in items]
        chunks = [self.to_chunks(roll) for roll in rolls]
        longest = max(len(c) for c in chunks)
        batch = np.zeros((len(chunks), longest, *chunks[0].shape[1:]), dtype=np.float32)
        mask = np.zeros((len(chunks), longest), dtype=np.int64)
        for row, piece in enumerate(chunks):
            batch[row, : len(piece)], mask[row, : len(piece)] = piece, 1
        return BatchFeature({"rolls": batch, "attention_mask": mask}, tensor_type=return_tensors)

    def to_chunks(self, roll: np.ndarray) -> np.ndarray:
        """Roll [ticks, 128, channels] -> [chunks, chunk_ticks, 128, channels], padded with silence."""
        missing = -len(roll) % self.chunk_ticks
        if missing:
            roll = np.concatenate([roll, np.zeros((missing, *roll.shape[1:]), dtype=roll.dtype)])
        return roll.reshape(-1, self.chunk_ticks, *roll.shape[1:])

    # ----------------------------------------------------------------------------------------------------- from rolls

    def from_logits(
        self, logits, threshold: float = 0.5, onset_threshold: float = 0.15, polyphony: int | None = None, before=None
    ) -> np.ndarray:
        """The roll that a model predicts.

        Args:
            logits: [..., slots * 2, 128, ticks].
            threshold: a cell sounds where its pitch probability exceeds this.
            onset_threshold: with `velocity="onset"` a sounding cell begins a note where it follows silence, or where
                its velocity (0 to 1) exceeds this.
            polyphony: at most so many pitches of a slot at a time, the likeliest.
            before: bool [..., 128, slots], what sounds just before the first tick; silence if not given.

        Returns:
            [..., ticks, 128, slots * 2] float32.
        """
        values = 1 / (1 + np.exp(-np.asarray(logits, dtype=np.float32)))
        values = np.moveaxis(values, (-3, -2, -1), (-1, -2, -3))
        on = values[..., 0::2] > threshold
        if polyphony is not None:
            least = np.sort(values[..., 0::2], axis=-2)[..., -polyphony, None, :]
            on &= values[..., 0::2] >= least
        loud = np.clip(values[..., 1::2], 1 / 127, 1.0)
        if self.velocity == "onset":
            first = np.zeros_like(on[..., :1, :, :])
            if before is not None:
                first[..., 0, :, :] = before
            sounding = np.concatenate([first, on[..., :-1, :, :]], axis=-3)
            loud = loud * (~sounding | (values[..., 1::2] > onset_threshold))
        roll = np.zeros(values.shape, dtype=np.float32)
        roll[..., 0::2] = on
        roll[..., 1::2] = loud * on
        return roll

    def roll_to_notes(self, roll: np.ndarray) -> RollNotes:
        """Roll [ticks, 128, slots * 2] (or chunks of it) -> notes, sorted by slot, onset and pitch."""
        roll = np.asarray(roll)
        if roll.ndim == 4:
            roll = roll.reshape(-1, *roll.shape[2:])
        on = np.moveaxis(roll[..., 0::2] > 0.5, (2, 1, 0), (0, 1, 2))  # [slots, 128, ticks]
        loud = np.moveaxis(np.rint(roll[..., 1::2] * 127).astype(np.int64), (2, 1, 0), (0, 1, 2))
        before = np.concatenate([np.zeros_like(on[..., :1]), on[..., :-1]], axis=-1)
        if self.velocity == "onset":
            begins = on & (~before | (loud > 0))
        else:
            louder = np.concatenate([loud[..., :1], np.diff(loud, axis=-1)], axis=-1) != 0
            begins = on & (~before | louder)
        after = np.concatenate([on[..., 1:], np.zeros_like(on[..., :1])], axis=-1)
        next_begins = np.concatenate([begins[..., 1:], np.zeros_like(begins[..., :1])], axis=-1)
        ends = on & (~after | next_begins)
        slot, pitch, onset = np.nonzero(begins)
        duration = np.nonzero(ends)[2] + 1 - onset  # both in the same order: as many ends as begins in each row
        velocity = np.clip(loud[slot, pitch, onset], 1, 127)
        order = np.lexsort((pitch, onset, slot))
        return RollNotes(*(column[order] for column in (slot, onset, pitch, duration, velocity)))

    def roll_to_score(self, roll: np.ndarray, bpm: float = 120.0):
        """The file of a roll, one track for each slot that sounds.

        Args:
            roll: [ticks, 128, slots * 2], or chunks of it.
            bpm: quarters a minute.

        Returns:
            `symusic.Score` at 480 ticks a quarter.

        Raises:
            MidiError: symusic is not installed.
        """
        if symusic is None:
            raise MidiError(
                "writing MIDI needs the package symusic: pip install 'symusic>=0.5.9,<0.6'", "midi.symusic"
            )
        notes, step = self.roll_to_notes(roll), OUTPUT_TPQ // TICKS_PER_QUARTER
        score = symusic.Score(OUTPUT_TPQ)
        score.tempos.append(symusic.Tempo(0, bpm))
        score.time_signatures.append(symusic.TimeSignature(0, 4, 4))
        for slot in np.unique(notes.slot).tolist():
            rows = notes.slot == slot
            program = self.instruments[slot]
            track = symusic.Track(f"slot {slot}", 0 if program == DRUMS else program, program == DRUMS)
            track.notes = symusic.Note.from_numpy(
                (notes.onset[rows] * step).astype(np.int32),
                (notes.duration[rows] * step).astype(np.int32),
                notes.pitch[rows].astype(np.int8),
                notes.velocity[rows].astype(np.int8),
            )
            score.tracks.append(track)
        return score


__all__ = ["MortmLiveProcessor", "RollNotes"]
