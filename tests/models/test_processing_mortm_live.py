"""Scores to rolls of slots and back, exactly on the grid."""

from pathlib import Path

import numpy as np
import pytest

from mortm_hf import MidiError, MortmLiveProcessor
from mortm_hf.models.midi_files import read_midi


MIDI = sorted((Path(__file__).parents[1] / "fixtures" / "midi").glob("*.mid"))


def columns(notes):
    return list(zip(notes.slot, notes.onset, notes.pitch, notes.duration, notes.velocity, strict=True))


def random_notes(seed, count=400, slots=2, ticks=600):
    """Notes that no other of their slot and pitch overlaps: those a roll can hold."""
    rng = np.random.default_rng(seed)
    notes, ends = [], {}
    for onset in np.sort(rng.integers(0, ticks, count)).tolist():
        slot, pitch = int(rng.integers(slots)), int(rng.integers(128))
        if ends.get((slot, pitch), 0) > onset:
            continue
        duration = int(rng.integers(1, 40))
        ends[slot, pitch] = onset + duration
        notes.append((slot, onset, pitch, duration, int(rng.integers(1, 128))))
    return np.array(sorted(notes, key=lambda n: (n[0], n[1], n[2]))).T


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("chunk", [8, 16])
def test_what_a_roll_can_hold_comes_back(seed, chunk):
    processor = MortmLiveProcessor(instruments=[0, 128], chunk_ticks=chunk)
    notes = random_notes(seed)
    roll = processor.notes_to_roll(*notes)
    assert roll.shape[0] % chunk == 0 and roll.shape[1:] == (128, 4)
    assert columns(processor.roll_to_notes(roll)) == [tuple(n) for n in notes.T]
    chunks = processor.to_chunks(roll)
    assert columns(processor.roll_to_notes(chunks)) == [tuple(n) for n in notes.T]


@pytest.mark.parametrize("path", MIDI, ids=lambda p: p.stem)
def test_real_files_come_back(path):
    score = read_midi(path)
    slots = [0 if t == int(np.bincount(score.track).argmax()) else -1 for t in range(score.n_tracks)]
    processor = MortmLiveProcessor(instruments=[0])
    found = set(columns(processor.roll_to_notes(processor.score_to_roll(score, slots))))
    chosen = score.track == slots.index(0)
    notes = list(zip(*(getattr(score, k)[chosen] for k in ("onset", "pitch", "duration", "velocity")), strict=True))
    # an earlier note of the pitch that is still sounding, or begins together with a longer one, cannot be held
    ends, clash = {}, set()
    for onset, pitch, duration, _ in notes:
        if ends.get(pitch, 0) > onset:
            clash.add(pitch)
        ends[pitch] = max(ends.get(pitch, 0), onset + duration)
    for onset, pitch, duration, velocity in notes:
        assert pitch in clash or (0, onset, pitch, duration, velocity) in found
    assert len(clash) < 6


def test_repeated_notes_stay_apart_with_onset_velocities_and_melt_without():
    notes = ([0, 0, 0], [0, 4, 8], [60, 60, 60], [4, 4, 4], [64, 64, 100])
    apart = MortmLiveProcessor(instruments=[0])
    assert columns(apart.roll_to_notes(apart.notes_to_roll(*notes))) == [
        (0, 0, 60, 4, 64),
        (0, 4, 60, 4, 64),
        (0, 8, 60, 4, 100),
    ]
    melted = MortmLiveProcessor(instruments=[0], velocity="sustain")
    assert columns(melted.roll_to_notes(melted.notes_to_roll(*notes))) == [(0, 0, 60, 8, 64), (0, 8, 60, 4, 100)]


def test_a_note_is_cut_where_its_pitch_begins_again():
    processor = MortmLiveProcessor(instruments=[0])
    roll = processor.notes_to_roll([0, 0], [0, 6], [60, 60], [20, 3], [90, 50])
    assert columns(processor.roll_to_notes(roll)) == [(0, 0, 60, 6, 90), (0, 6, 60, 3, 50)]


def test_tracks_find_their_slots():
    processor = MortmLiveProcessor(instruments=[0, 33, 128])
    assert processor.slot_of_tracks([0, 4, 33, 35, 128, 73]) == [0, 0, 1, 1, 2, -1]
    with pytest.raises(MidiError, match="no track has a slot") as caught:
        MortmLiveProcessor(instruments=[128]).score_to_roll(MIDI[0], slots=[-1] * read_midi(MIDI[0]).n_tracks)
    assert caught.value.code == "midi.empty"
    with pytest.raises(MidiError, match="slots must name"):
        processor.score_to_roll(MIDI[0], slots=[9])


def test_a_batch_is_padded_with_a_mask():
    processor = MortmLiveProcessor(instruments=[0], chunk_ticks=8)
    short = processor.notes_to_roll([0], [0], [60], [4], [64])
    long = processor.notes_to_roll([0], [20], [60], [4], [64])
    batch = processor([short, long], return_tensors="pt")
    assert tuple(batch["rolls"].shape) == (2, 3, 8, 128, 2)
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]


def test_logits_become_the_roll_they_draw():
    processor = MortmLiveProcessor(instruments=[0, 40], chunk_ticks=8)
    notes = random_notes(1, count=60, ticks=8)
    roll = processor.notes_to_roll(*notes, ticks=8)[:8]
    clipped = np.clip(roll, 1e-6, 1 - 1e-6)
    logits = np.log(clipped / (1 - clipped)).transpose(2, 1, 0)
    again = processor.from_logits(logits, onset_threshold=0.003)
    assert np.array_equal(again[..., 0::2], roll[..., 0::2])
    assert np.allclose(again[..., 1::2], roll[..., 1::2], atol=1e-3)


def test_a_score_comes_out(tmp_path):
    processor = MortmLiveProcessor(instruments=[0, 128])
    roll = processor.notes_to_roll([0, 1], [0, 24], [60, 36], [12, 6], [90, 80])
    score = processor.roll_to_score(roll, bpm=96)
    score.dump_midi(tmp_path / "roll.mid")
    again = read_midi(tmp_path / "roll.mid")
    assert again.onset.tolist() == [0, 24] and again.duration.tolist() == [12, 6]
    assert again.programs.tolist() == [0, 128]
