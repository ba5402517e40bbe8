"""Playing live: what is heard, when it is answered, tempo, floods, silence, panic - all in simulated time."""

import numpy as np
import pytest
import torch

from mortm_hf import MortmLiveConfig, MortmLiveForCausalGeneration, MortmLiveProcessor
from mortm_hf.app.live_session import LiveSession, notes_of_events, play_along
from mortm_hf.models.errors_mortm import LiveError


TICK = 60 / (120 * 24)  # seconds at 120 quarters a minute
CHUNK = 8 * TICK


def build(threshold=0.5, seed=0, **options) -> LiveSession:
    torch.manual_seed(seed)
    shape = dict(instruments=[0, 40], chunk_ticks=8, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    shape |= dict(moe_intermediate_size=24, shared_expert_intermediate_size=16, num_local_experts=4)
    model = MortmLiveForCausalGeneration(MortmLiveConfig(**shape, initializer_range=0.3)).eval()
    processor = MortmLiveProcessor(instruments=[0, 40], chunk_ticks=8)
    return LiveSession(model, processor, play=[1], threshold=threshold, lead=0.02, **options)


class Recorder(LiveSession):
    """Keeps what the model was given."""

    def reset(self):
        super().reset()
        self.heard = []

    def _answer(self, roll):
        self.heard.append(roll.copy())
        return super()._answer(roll)


def record(session: LiveSession) -> Recorder:
    session.__class__ = Recorder
    session.reset()
    session.start(0.0)
    return session


class Deaf(LiveSession):
    """Keeps time only: no model is run."""

    def _answer(self, roll):
        self._chunk += 1
        return []


def random_notes(rng, chunks):
    """(onset, pitch, duration, velocity) without overlap of a pitch."""
    notes, ends = [], {}
    for onset in np.sort(rng.integers(0, chunks * 8 - 1, chunks * 3)).tolist():
        pitch, duration = int(rng.integers(40, 80)), int(rng.integers(1, 20))
        if ends.get(pitch, -1) < onset:
            duration = min(duration, chunks * 8 - onset)
            ends[pitch] = onset + duration
            notes.append((onset, pitch, duration, int(rng.integers(1, 128))))
    return notes


@pytest.mark.parametrize("seed", range(3))
def test_the_model_hears_what_was_played(seed):
    """Events in, rolls out: the notes that the model sees are those that were played, also across chunks."""
    session = record(build())
    session.lead = 0.0  # nothing is late
    notes = random_notes(np.random.default_rng(seed), 12)
    events = [(o, 1, p, v) for o, p, d, v in notes] + [(o + d, 0, p, 0) for o, p, d, v in notes]
    events.sort()
    at = 0
    for chunk in range(12):
        while at < len(events) and events[at][0] < (chunk + 1) * 8:
            tick, _, pitch, velocity = events[at]
            # a third of a tick early or late: it is rounded to the nearest
            session.push(max(0.0, (tick + 0.3 * (-1) ** at) * TICK), 0, pitch, velocity)
            at += 1
        session.advance((chunk + 1) * CHUNK)
    found = session.processor.roll_to_notes(np.concatenate(session.heard)[..., :2].repeat(2, -1)[..., [0, 2, 1, 3]])
    mine = found.slot == 0
    columns = (found.onset[mine], found.pitch[mine], found.duration[mine], found.velocity[mine])
    assert sorted(zip(*(c.tolist() for c in columns), strict=True)) == sorted(notes)


def test_the_answer_lies_in_the_next_chunk_and_the_clock_does_not_drift():
    session = build(threshold=0.4)
    session.start(100.0)
    for chunk in range(100):
        cut = session.next_cut()
        assert abs(cut - (100.0 + (chunk + 1) * CHUNK - 0.02)) < 1e-9
        events = session.advance(cut + 0.003 * (chunk % 5))  # woken late by some milliseconds
        for event in events:
            assert 100.0 + (chunk + 1) * CHUNK - 1e-9 <= event.time < 100.0 + (chunk + 2) * CHUNK
            assert event.slot == 1
    assert session.statistics.chunks == 100 and session.statistics.misses == 0
    assert [] == session.advance(session.next_cut() - 1e-6)  # nothing is due


def test_what_it_plays_is_what_it_remembers_playing():
    session = record(build(threshold=0.4))
    answer = []
    for _ in range(30):
        answer += session.advance(session.next_cut())
    played = notes_of_events([e for e in answer if e.time < session.time_of(29 * 8) - 1e-9], session, 29 * 8)
    own = session.processor.roll_to_notes(np.concatenate(session.heard[:29]))
    mine = own.slot == 1
    wanted = sorted(zip(own.onset[mine].tolist(), own.pitch[mine].tolist(), own.duration[mine].tolist(), strict=True))
    assert wanted and wanted == sorted(
        zip(played.onset.tolist(), played.pitch.tolist(), played.duration.tolist(), strict=True)
    )


def test_every_note_that_begins_ends_once():
    session = build(threshold=0.4)
    session.start(0.0)
    events = [event for _ in range(60) for event in session.advance(session.next_cut())]
    events += session.panic(session.next_cut())
    sounding = set()
    for event in events:
        if event.velocity:
            assert event.pitch not in sounding
            sounding.add(event.pitch)
        else:
            sounding.remove(event.pitch)
    assert not sounding and any(event.velocity for event in events)
    assert session.panic(0.0) == []


def test_the_same_notes_give_the_same_answer_and_others_another():
    answers = []
    for pitch in (60, 60, 72):
        session = build(threshold=0.4)
        session.start(0.0)
        session.push(0.0, 0, pitch, 90)
        answers.append([e for _ in range(10) for e in session.advance(session.next_cut())])
    assert answers[0] == answers[1] != answers[2]


def test_the_memory_is_bounded_and_long_sessions_go_on():
    session = build(history=4)
    session.start(0.0)
    for _ in range(50):
        session.advance(session.next_cut())
    assert all(layer.keys.shape[-2] <= 4 for layer in session._cache.layers)


def test_a_short_memory_that_suffices_is_the_whole_one():
    short, long = record(build(history=40)), record(build(history=400))
    for _ in range(30):
        assert short.advance(short.next_cut()) == long.advance(long.next_cut())


def test_silence_and_floods():
    session = build(threshold=0.3, polyphony=3, max_events=50)
    session.start(0.0)
    for _ in range(20):
        for event in session.advance(session.next_cut()):
            assert 0 <= event.pitch < 128 and 0 <= event.velocity < 128
        assert (session._own[..., 2] > 0).sum(-1).max() <= 3
    rng = np.random.default_rng(0)
    taken = sum(session.push(20 * CHUNK + 0.001, 0, int(rng.integers(128)), 99) for _ in range(500))
    assert taken == 50 and session.statistics.dropped_events == 450
    session.advance(session.next_cut())
    assert session.push(session.next_cut(), 0, 60, 90)  # the queue was emptied


@pytest.mark.parametrize("early", [0.0, CHUNK])
def test_notes_whose_ends_were_dropped_end_all_the_same(early):
    """Also those that were pushed before their chunk is cut."""
    session = record(build(max_events=5))
    for pitch in range(60, 65):
        assert session.push(early + 0.001, 0, pitch, 90)
    assert not any(session.push(early + 0.05, 0, pitch, 0) for pitch in range(60, 65))
    for _ in range(4):
        session.advance(session.next_cut())
    begins = 1 if early else 0
    assert [bool(roll[..., 0].any()) for roll in session.heard] == [chunk == begins for chunk in range(4)]
    assert session._held == {} and session._lost_ends == set()


def test_late_notes_are_heard_one_chunk_later():
    session = record(build())
    session.advance(session.next_cut())
    session.push(CHUNK - 0.015, 0, 60, 90)  # inside the first chunk, after its cut
    session.advance(session.next_cut())
    assert session.heard[0][..., 0].sum() == 0 and session.heard[1][0, 60, 0] == 1
    assert session.statistics.late_events == 1


def test_a_process_that_slept_goes_on_without_a_storm():
    session = build(threshold=0.4)
    session.start(0.0)
    for _ in range(5):
        session.advance(session.next_cut())
    events = session.advance(500 * CHUNK)
    assert session.statistics.skipped > 400 and session.statistics.chunks < 10
    assert len([e for e in events if e.velocity]) < 500
    assert session.next_cut() > 500 * CHUNK - 0.02


def test_misses_are_counted_by_the_clock():
    session = build()
    session.start(0.0)
    cut = session.next_cut()
    session.advance(cut, finished=lambda: cut + 0.015)
    assert session.statistics.misses == 0 and session.statistics.summary()["p95_ms"] == pytest.approx(15)
    cut = session.next_cut()
    session.advance(cut, finished=lambda: cut + 0.025)
    assert session.statistics.misses == 1


def test_a_new_tempo_begins_at_the_next_chunk():
    session = build()
    session.start(0.0)
    session.advance(session.next_cut())  # chunk 0 is heard, chunk 1 decided
    session.set_tempo(60.0)
    assert session.time_of(16) == pytest.approx(2 * CHUNK)
    assert session.time_of(24) == pytest.approx(2 * CHUNK + 2 * CHUNK)


@pytest.mark.parametrize("bpm", [112.0, 128.0])
def test_the_tempo_is_followed(bpm):
    session = build(follow=True)
    session.__class__ = Deaf
    session.start(0.0)
    rng = np.random.default_rng(0)
    beat = 60 / bpm
    times = np.arange(0, 60, beat / 2) + rng.normal(0, 0.004, len(np.arange(0, 60, beat / 2)))
    at = 0
    while session.next_cut() < 60:
        while at < len(times) and times[at] <= session.next_cut():
            session.push(float(times[at]), 0, 60, 90)
            at += 1
        session.advance(session.next_cut())
    assert session.bpm == pytest.approx(bpm, rel=0.02)
    assert build().bpm == 120.0


def test_a_score_is_played_along():
    session = build(threshold=0.4)
    roll_notes = ([0, 0, 0], [0, 8, 20], [60, 64, 67], [8, 12, 30], [80, 81, 82])
    score = session.processor.roll_to_score(session.processor.notes_to_roll(*roll_notes))
    steps = []
    notes = play_along(session, score, on_chunk=lambda done, total: steps.append((done, total)))
    heard = notes.slot == 0
    assert notes.onset[heard].tolist() == [0, 8, 20] and notes.duration[heard].tolist() == [8, 12, 30]
    assert (notes.slot == 1).any() and steps[-1][0] == steps[-1][1]


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.push(0.0, 1, 60, 90),
        lambda s: s.push(0.0, 7, 60, 90),
        lambda s: s.push(0.0, 0, 200, 90),
        lambda s: s.set_tempo(5),
        lambda s: LiveSession(s.model, s.processor, play=[]),
        lambda s: LiveSession(s.model, s.processor, play=[2]),
        lambda s: LiveSession(s.model, s.processor, lead=-1),
        lambda s: LiveSession(s.model, MortmLiveProcessor(instruments=[0, 41], chunk_ticks=8)),
    ],
)
def test_what_makes_no_sense_is_named(call):
    with pytest.raises(LiveError):
        call(build())
