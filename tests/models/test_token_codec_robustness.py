"""Odd, damaged and extreme MIDI files: read or refused by a typed error, never a crash, a hang or silent nonsense."""

import csv
import math
import random
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import symusic

from mortm_hf.models.errors_mortm import MidiError
from mortm_hf.models.midi_events import read_events
from mortm_hf.models.midi_files import Caps, quantize, read_midi, to_midi_score
from mortm_hf.models.music_names import DRUMS, METERS, TEMPO_NAMES
from mortm_hf.models.token_codec import encode_chords, encode_tracks, parse_segment
from mortm_hf.models.token_vocabulary import MetricVocabulary, TokenKind
from mortm_hf.models.upstream_codec import encode_upstream_tracks
from mortm_hf.models.upstream_vocabulary import upstream_vocabulary


FOLDER = Path(__file__).parents[1] / "fixtures" / "robustness"
with open(FOLDER / "index.csv", encoding="utf-8", newline="") as _file:
    EXPECT = {row["file"]: row["expect"] for row in csv.DictReader(_file)}
VOCABULARY = MetricVocabulary.default()
UPSTREAM = MetricVocabulary(upstream_vocabulary("pro2"))


def _ids(score):
    return encode_tracks(VOCABULARY, score, velocity=True)


@pytest.mark.parametrize("name", sorted(EXPECT))
def test_file_is_read_or_refused(name):
    path, began = FOLDER / name, time.process_time()
    try:
        score = read_midi(path)
    except MidiError as error:
        assert name in str(error) and "\n" not in str(error)
        assert EXPECT[name] != "LOAD" or error.code == "midi.empty"
        with pytest.raises(MidiError, match="the"):  # bytes fail alike
            read_midi(path.read_bytes())
    else:
        assert EXPECT[name] != "REJECT"
        ids = _ids(score)
        assert len(ids) and ids.min() >= 0 and ids.max() < len(VOCABULARY)
        assert (_ids(read_midi(path.read_bytes())) == ids).all()
        # every note on the grid, inside its bar, in order, not longer than the language can say
        assert (score.onset >= 0).all() and (score.duration >= 1).all() and (score.duration <= 2592).all()
        assert (score.onset < score.bars.end).all() and (score.bars.length >= 1).all()
        # ids -> music -> file -> ids
        back = parse_segment(VOCABULARY, ids).generated
        assert (_ids(back) == ids).all()
        assert (_ids(read_midi(to_midi_score(back).dumps_midi())) == ids).all()
    assert time.process_time() - began < 10


@pytest.mark.parametrize("name", sorted(EXPECT))
def test_the_mortm_dialect_reads_or_refuses(name):
    path, began = FOLDER / name, time.process_time()
    try:
        tracks = encode_upstream_tracks(path, UPSTREAM)
    except MidiError as error:
        assert name in str(error) and "\n" not in str(error)
    else:
        assert EXPECT[name] != "REJECT"
        for ids in tracks.values():
            assert min(ids) >= 0 and max(ids) < len(UPSTREAM)
    assert time.process_time() - began < 10


# ---------------------------------------------------------------------------------------------------------------------
# what is right, file by file


def _read(name):
    return read_midi(FOLDER / name)


def _meters(score):
    return [METERS[m] for m in score.bars.meter]


def test_notes():
    overlap = _read("overlap_same_pitch.mid")  # paired first-in first-out
    assert overlap.onset.tolist() == [0, 6, 12] and overlap.duration.tolist() == [18, 18, 18]
    same = _read("duplicates.mid")
    assert same.n_notes == 1 and same.report.duplicates == 9
    short = _read("zero_duration.mid")
    assert (short.duration == 1).all() and short.report.zero_length == short.n_notes == 16
    assert _read("vel0_offs.mid").duration.tolist() == [12] * 16
    assert _read("off_without_on.mid").n_notes == 16
    assert _read("cluster_128.mid").pitch.tolist() == list(range(128))
    assert _read("long_notes_9_bars.mid").duration.tolist() == [864] * 4
    held = _read("note_10_hours.mid")
    assert held.duration.tolist() == [2592] and held.report.clipped == 1
    with pytest.raises(MidiError) as error:  # notes that never end are no notes
        _read("hanging.mid")
    assert error.value.code == "midi.empty"


def test_time():
    for name in ("tpq_1.mid", "tpq_32767.mid"):
        score = _read(name)
        assert score.onset.tolist() == list(range(0, 16 * 24, 24)) and (score.duration == 24).all()
    gap = _read("gap_100000_bars.mid")
    assert gap.n_bars == 100_001 and gap.n_notes == 2
    tempo = _read("tempo_extremes.mid").tempo
    assert [TEMPO_NAMES[t] for t in tempo] == [240, 30]
    last = 30 * 8 ** (int(_read("tempo_same_tick_100.mid").tempo[0]) / 31)
    assert abs(last / 139 - 1) < 0.04  # the last of a hundred tempi on one tick
    assert (_read("none.mid").tempo == -1).all() and set(_meters(_read("none.mid"))) == {(4, 4)}
    assert (_read("tempo_zero.mid").tempo == -1).all()


def test_meters():
    pickup = _read("pickup.mid")
    assert _meters(pickup) == [(1, 4)] + [(3, 4)] * 4 and not pickup.bars.irregular.any()
    cut = _read("ts_mid_bar.mid")
    assert cut.bars.length.tolist() == [60, 72, 72] and cut.report.cut_bars == 1
    for name in ("ts_0_4.mid", "ts_den_2pow20.mid"):
        odd = _read(name)
        assert odd.report.ignored_meters == 1 and set(_meters(odd)) == {(4, 4)}
    wide = _read("ts_255_128.mid")  # 191.25 ticks: bar lines are rounded, none is lost
    assert wide.bars.start[:4].tolist() == [0, 191, 383, 574]
    each = _read("ts_each_bar.mid")
    assert len(set(_meters(each))) > 3 and not each.bars.irregular.any()


def test_tracks():
    assert _read("drums_only.mid").programs.tolist() == [DRUMS]
    many = _read("type0_16_channels.mid")
    assert many.n_tracks == 16 and many.programs[-1] == DRUMS and (many.programs[:-1] != DRUMS).all()
    assert _read("program_change_mid_track.mid").programs.tolist() == [0, 40]
    assert _read("empty_tracks.mid").n_tracks == 1
    assert _read("title_utf8.mid").names[0].startswith("曲名")
    with pytest.raises(MidiError, match="type 2"):
        _read("type2_two_patterns.mid")


def _slow_notes(path):
    """Notes by first-in first-out pairing of the raw events, one at a time: {(channel, pitch, start, end)}."""
    out = set()
    events = read_events(path.read_bytes())
    for track in events.tracks:
        waiting = {}
        for tick, status, pitch, velocity in zip(
            track.tick.tolist(), track.status.tolist(), track.data1.tolist(), track.data2.tolist()
        ):
            voice = (status & 15, pitch)
            if status >> 4 == 9 and velocity:
                waiting.setdefault(voice, []).append(tick)
            elif status >> 4 in (8, 9) and waiting.get(voice):
                out.add((*voice, waiting[voice].pop(0), tick))
    return out, events.ticks_per_quarter


def test_notes_equal_a_second_reading():
    compared = 0
    for name in sorted(EXPECT):
        try:
            score = read_midi(FOLDER / name)
            notes, tpq = _slow_notes(FOLDER / name)
        except MidiError:
            continue
        if name == "note_10_hours.mid":
            continue  # clipped
        on = sorted(
            (p, (48 * a + tpq) // (2 * tpq), max((48 * b + tpq) // (2 * tpq) - (48 * a + tpq) // (2 * tpq), 1))
            for _, p, a, b in notes
        )
        got = sorted(zip(score.pitch.tolist(), score.onset.tolist(), score.duration.tolist()))
        assert sorted(set(on)) == sorted(set(got)), name
        compared += 1
    assert compared > 25


def _slow_lines(tpq, events, last):
    """Bar lines on the grid by rational arithmetic, one bar at a time, up to the bar of the last offset."""
    at = {}
    for tick, numerator, denominator in sorted(events, key=lambda e: e[0]):
        at[tick] = (numerator, denominator)  # the last of several on one tick
    changes = [(tick, *meter) for tick, meter in sorted(at.items())]
    if not changes or changes[0][0] > 0:
        changes.insert(0, (0, 4, 4))
    real = [changes[0]]
    real += [b for a, b in zip(changes, changes[1:]) if a[1:] != b[1:]]
    lines = set()
    for index, (tick, numerator, denominator) in enumerate(real):
        stop = real[index + 1][0] if index + 1 < len(real) else None
        line = Fraction(tick)
        while (stop is None or line < stop) and line * 24 <= (last + 800) * tpq:
            lines.add(math.floor(line * 24 / tpq + Fraction(1, 2)))
            line += Fraction(4 * numerator * tpq, denominator)
    out = [0]
    for line in sorted(lines)[1:]:
        while line - out[-1] > 192:  # a bar of more than 192 ticks is split there
            out.append(out[-1] + 192)
        out.append(line)
    return out[: next(i for i, line in enumerate(out) if line >= last and i) + 1]


def _slow_tempo(tpq, events, first, last):
    """Tempo bin of one bar from its exact seconds."""
    at = dict([(0, 500_000), *sorted(events, key=lambda e: e[0])])
    points = sorted(at.items())

    def seconds(tick):
        total = Fraction(0)
        for (start, mspq), (stop, _) in zip(points, [*points[1:], (tick, None)]):
            total += max(min(stop, tick) - start, 0) * Fraction(mspq, 1_000_000 * tpq)
        return total

    first, last = Fraction(first * tpq, 24), Fraction(last * tpq, 24)
    bpm = (last - first) / tpq * 60 / (seconds(last) - seconds(first))
    return min(max(math.floor(math.log(float(bpm) / 30) * 31 / math.log(8) + 0.5), 0), 31)


def test_bars_and_tempi_equal_a_second_reading():
    meters = [(4, 4), (3, 4), (6, 8), (7, 8), (5, 16), (2, 2), (1, 4), (11, 4), (17, 16), (3, 32), (5, 2), (13, 8)]
    cut = 0
    for seed in range(250):
        rng = random.Random(seed)
        tpq = rng.choice([24, 480, 96, 7, 1, 100, 1024, 220])
        score, track, length = symusic.Score(tpq), symusic.Track("", 0, False), rng.randint(1, 40 * tpq)
        for _ in range(rng.randint(1, 20)):
            start, held = rng.randint(0, length), rng.randint(1, 3 * tpq)
            track.notes.append(symusic.Note(start, held, rng.randint(30, 90), 80))
        score.tracks.append(track)
        times = [rng.choice([0, rng.randint(0, length), rng.randint(0, 40) * tpq]) for _ in range(rng.randint(0, 6))]
        changes = [(tick, *rng.choice(meters)) for tick in times]
        for change in changes:
            score.time_signatures.append(symusic.TimeSignature(*change))
        tempi = [(rng.choice([0, rng.randint(0, length)]), rng.randint(150_000, 2_500_000)) for _ in range(seed % 4)]
        for tick, mspq in tempi:
            score.tempos.append(symusic.Tempo(tick, mspq=mspq))
        music = quantize(score)
        lines = music.bars.start.tolist()
        assert lines == _slow_lines(tpq, changes, int((music.onset + music.duration).max())), seed
        want = [_slow_tempo(tpq, tempi, *bar) if tempi else -1 for bar in zip(lines, lines[1:])]
        assert music.tempo.tolist() == want, seed
        cut += music.report.cut_bars
    assert cut > 50


# ---------------------------------------------------------------------------------------------------------------------
# what files and callers may do to the reader


def _tune(*markers):
    score = symusic.Score(480)
    track = symusic.Track("", 0, False)
    track.notes.append(symusic.Note(0, 480, 60, 80))
    track.notes.append(symusic.Note(1000, 480, 62, 70))
    score.tracks.append(track)
    for tick, text in markers:
        score.markers.append(symusic.TextMeta(tick, text))
    return score.dumps_midi()


@pytest.mark.parametrize(
    "markers",
    [
        [(0, "mortm:segment bars=1 genres=9999")],
        [(0, "mortm:segment bars=² genres=²,1")],
        [(0, "mortm:segment bars=" + "9" * 5000)],
        [(0, "mortm:segment bars=0 key=HM velocity=7")],
        [(0, "mortm:"), (0, "mortm:segment"), (0, "mortm:chord"), (0, "mortm:segment = = x=")],
        [(480 * 400, "mortm:chord C m None"), (0, "mortm:chord X Y Z")],
        [(7 * i, "mortm:line") for i in range(300)],
    ],
)
def test_markers_by_strangers_are_harmless(markers):
    score = read_midi(_tune(*markers))
    assert score.n_notes == 2 and all(0 <= g < 42 for g in score.genres) and score.key in (None, "CM")
    ids = _ids(score)
    assert ids.max() < len(VOCABULARY)
    encode_chords(VOCABULARY, score)
    assert (_ids(read_midi(to_midi_score(score).dumps_midi())) == ids).all()


def test_chords_inside_the_song_survive_a_late_one():
    score = read_midi(_tune((480, "mortm:chord A m None"), (480 * 400, "mortm:chord C m None")))
    assert score.chords.onset.tolist() == [24]
    chord = VOCABULARY.lookup(TokenKind.CHORD_ROOT)[score.chords.root[0]]
    assert VOCABULARY.tokens[chord] == "CR_A"


@pytest.mark.parametrize("path", ["no/such/file.mid", "a\0b.mid", "", "/dev/zero", "/dev/null", "."])
def test_paths_that_are_no_files(path):
    with pytest.raises(MidiError) as error:
        read_midi(path)
    assert error.value.code == "midi.unreadable"
    with pytest.raises(MidiError) as error:
        encode_upstream_tracks(path, UPSTREAM)
    assert error.value.code == "midi.unreadable"


def test_caps(tmp_path):
    data = _tune()
    path = tmp_path / "song.mid"
    path.write_bytes(data)
    for caps in (Caps(bytes=20), Caps(notes=1), Caps(bars=0), Caps(ticks=50)):
        for source in (data, path):
            with pytest.raises(MidiError) as error:
                read_midi(source, caps)
            assert error.value.code == "midi.too_large"
    assert read_midi(data, Caps(bytes=len(data), notes=2, bars=8)).n_notes == 2


def test_music_beyond_what_a_file_can_hold_is_refused():
    far = symusic.Score(24)
    track = symusic.Track("", 0, False)
    track.notes.append(symusic.Note(0, 24, 60, 80))
    track.notes.append(symusic.Note(14_000_000, 24, 60, 80))
    far.tracks.append(track)
    with pytest.raises(MidiError) as error:
        read_midi(far)
    assert error.value.code == "midi.too_large"


_FUZZ = """
import random, sys
from pathlib import Path
from mortm_hf.models.errors_mortm import MidiError
from mortm_hf.models.token_vocabulary import MetricVocabulary
from mortm_hf.models.token_codec import encode_tracks
from mortm_hf.models.midi_files import read_midi, to_midi_score
from mortm_hf.models.upstream_codec import encode_upstream_tracks
from mortm_hf.models.upstream_vocabulary import upstream_vocabulary

vocabulary, upstream = MetricVocabulary.default(), MetricVocabulary(upstream_vocabulary("pro2"))
rng = random.Random(7)
files = [p.read_bytes() for p in sorted(Path(sys.argv[1]).glob("*.mid"))]
files = [f for f in files if f[:4] == b"MThd" and len(f) > 40]
body = bytes([0, 0x90, 0xCA, 0x40, 0x60, 0x80, 0xCA, 0, 0, 0xFF, 0x2F, 0])  # a pitch of 202
cases = [b"MThd\\0\\0\\0\\6\\0\\0\\0\\1\\0\\x60MTrk" + len(body).to_bytes(4, "big") + body]
for _ in range(1500):
    data = bytearray(rng.choice(files))
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at = rng.randrange(8 if rng.random() < 0.2 else 14, len(data))
        if rng.random() < 0.7:
            data[at] = rng.choice([0, 127, 128, 255, 0x90, 0x2F, 0xF0, 0x51, rng.randrange(256)])
        elif rng.random() < 0.5:
            data[at:at] = rng.randbytes(rng.randint(1, 6))
        else:
            del data[at : at + rng.randint(1, 6)]
            data += bytes(20)
    cases.append(bytes(data))
seen = {"tokens": 0, "refused": 0}
for data in cases:
    try:
        score = read_midi(data)
        if score.n_bars < 20000:
            ids = encode_tracks(vocabulary, score, velocity=True)
            again = encode_tracks(vocabulary, read_midi(to_midi_score(score).dumps_midi()), velocity=True)
            assert ids.tolist() == again.tolist(), data.hex()
        seen["tokens"] += 1
    except MidiError:
        seen["refused"] += 1
    try:
        encode_upstream_tracks(data, upstream)
    except MidiError:
        pass
print(seen["tokens"], seen["refused"])
"""


def test_damaged_copies_never_end_the_process():
    """In a process of its own: a parser that runs wild would take the whole suite with it."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _FUZZ, str(FOLDER)], capture_output=True, text=True, timeout=300, cwd=root, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    tokens, refused = map(int, done.stdout.split())
    assert tokens > 200 and refused > 200 and tokens + refused == 1501


def test_random_ids_decode_to_music_that_reads_again():
    rng = np.random.default_rng(3)
    for _ in range(100):
        ids = rng.integers(0, len(VOCABULARY), int(rng.integers(1, 300)))
        score = parse_segment(VOCABULARY, ids).generated
        if score is not None and score.n_notes:
            read_midi(to_midi_score(score).dumps_midi())
