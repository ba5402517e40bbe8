"""The `mortm` dialect against upstream's own output, and against a slow reading of its specification."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from mortm_hf.models.errors_mortm import MidiError, VocabularyError
from mortm_hf.models.midi_events import closed_notes, read_events, seconds_of, tempo_map
from mortm_hf.models.midi_files import Caps, load_score, to_midi_score
from mortm_hf.models.token_vocabulary import MetricVocabulary, TokenKind
from mortm_hf.models.tokenization_mortm import MortmTokenizer
from mortm_hf.models.upstream_codec import (
    CATEGORY_PROGRAMS_49,
    decode_upstream,
    encode_upstream,
    encode_upstream_tracks,
    parse_upstream,
    upstream_categories,
)
from mortm_hf.models.upstream_vocabulary import upstream_vocabulary


FIXTURES = Path(__file__).parents[1] / "fixtures" / "upstream_tokenizer"
CASES = sorted(p.name for p in FIXTURES.iterdir() if p.is_dir() and p.name != "duo_40_bars")
REJECTED = {"empty_piano_track", "non_4_4_waltz_rejected", "unsupported_instruments_rejected"}
CODES = {"no_wanted_instrument": "midi.empty", "meter_not_4_4": "midi.meter"}
VOCABULARY = {name: MetricVocabulary(upstream_vocabulary(name)) for name in ("pro", "pro2", "omega")}


def _case(name):
    return FIXTURES / name / "input.mid", json.loads((FIXTURES / name / "expected.json").read_text())


# ---------------------------------------------------------------------------------------------------------------------
# upstream's own output


def test_all_cases_are_here():
    assert len(CASES) == 16
    assert {name for name in CASES if _case(name)[1]["pro"]["is_error"]} == REJECTED


@pytest.mark.parametrize("flavour", ["pro", "pro2"])
@pytest.mark.parametrize("name", CASES)
def test_ids_equal_upstreams(name, flavour):
    path, expected = _case(name)
    vocabulary, want = VOCABULARY[flavour], expected[flavour]
    sources = (path, str(path), path.read_bytes(), bytearray(path.read_bytes()))
    if want["is_error"]:
        for source in sources:
            with pytest.raises(MidiError) as error:
                encode_upstream(source, vocabulary, expected["program_list"], expected["key"])
            assert error.value.code == CODES[want["error_kind"]]
        return
    for source in sources:
        ids = encode_upstream(source, vocabulary, expected["program_list"], expected["key"])
        assert ids == want["full_sequence_ids"]
        assert all(type(i) is int for i in ids)
    assert encode_upstream_tracks(path, vocabulary, expected["program_list"]) == want["tracks"]
    assert encode_upstream(path, dict(vocabulary.ids), expected["program_list"], expected["key"]) == ids


def test_long_piece_with_the_omega_table():
    path, expected = _case("duo_40_bars")
    assert encode_upstream_tracks(path, VOCABULARY["omega"], expected["program_list"]) == expected["tracks"]


@pytest.mark.parametrize("name", sorted(set(CASES) - REJECTED))
def test_reader_sees_upstreams_notes_and_tempi(name):
    path, expected = _case(name)
    events = read_events(path.read_bytes())
    notes, segments = closed_notes(events), tempo_map(events)
    start, end = seconds_of(notes.start, segments), seconds_of(notes.end, segments)
    rows = zip(notes.program.tolist(), start.tolist(), end.tolist(), notes.pitch.tolist(), notes.velocity.tolist())
    read = [(p, round(s, 9), round(e, 9), q, v) for p, s, e, q, v in rows]
    want = [(t["program"], *note) for t in expected["input_notes"] for note in t["notes"]]
    # compared as upstream lists them: by instrument, then (stable) by start
    assert sorted(read, key=lambda r: r[:2]) == sorted(want, key=lambda r: r[:2])
    change, tempo = segments[0], 60.0 / (segments[2] * events.ticks_per_quarter)
    assert seconds_of(change, segments).tolist() == expected["tempo_changes"][0]
    assert tempo.tolist() == expected["tempo_changes"][1]


@pytest.mark.parametrize("flavour", ["pro", "pro2"])
def test_the_tokenizer_speaks_it(flavour):
    tokenizer = MortmTokenizer(preset=flavour, dialect="mortm")
    for name in sorted(set(CASES) - REJECTED):
        path, expected = _case(name)
        ids = tokenizer.encode_midi(path, instruments=["PIANO", "SAX"], key="CM")
        assert ids == expected[flavour]["full_sequence_ids"]
        assert tokenizer.decode_score(ids).n_tracks == len(expected[flavour]["tracks"])
    batch = tokenizer(midi=[path, path.read_bytes()], instruments=["PIANO"], key="CM", return_tensors="np")
    assert batch["input_ids"].shape == (2, len(ids))
    with pytest.raises(MidiError):
        tokenizer.encode_midi(load_score(path))
    with pytest.raises(MidiError) as error:
        tokenizer.encode_midi(path, caps=Caps(bytes=10))
    assert error.value.code == "midi.too_large"


# ---------------------------------------------------------------------------------------------------------------------
# a slow reading of SPEC 2.1 and 2.2, on files that it writes itself


def _number(n):
    out = [n & 127]
    while n := n >> 7:
        out.append(128 | n & 127)
    return bytes(reversed(out))


def _file(tracks, resolution=480, kind=1):
    """Tracks of (delta, event bytes) -> MIDI bytes."""
    out = b"MThd\0\0\0\6" + kind.to_bytes(2, "big") + len(tracks).to_bytes(2, "big") + resolution.to_bytes(2, "big")
    for events in tracks:
        body = b"".join(_number(delta) + event for delta, event in events) + b"\0\xff\x2f\0"
        out += b"MTrk" + len(body).to_bytes(4, "big") + body
    return out


def _tempo(mspq):
    return b"\xff\x51\x03" + mspq.to_bytes(3, "big")


def _on(pitch, velocity=80, channel=0):
    return bytes([0x90 | channel, pitch, velocity])


def _off(pitch, channel=0):
    return bytes([0x80 | channel, pitch, 0])


def _program(program, channel=0):
    return bytes([0xC0 | channel, program])


def _random_tracks(rng):
    tracks = []
    for _ in range(rng.randint(1, 3)):
        events = []
        for _ in range(rng.randint(1, 150)):
            delta = rng.choice([0, 0, 0, 1, 5, rng.randint(0, 300), rng.choice([0, rng.randint(0, 4000)])])
            channel, pitch = rng.choice([0, 0, 1, 9]), rng.choice([60, 61, 62])
            roll = rng.random()
            if roll < 0.45:
                event = _on(pitch, rng.randint(1, 127), channel)
            elif roll < 0.9:
                event = rng.choice([_off(pitch, channel), _on(pitch, 0, channel)])
            elif roll < 0.95:
                event = _program(rng.choice([0, 1, 3, 65, 66, 68, 40]), channel)
            else:
                event = _tempo(rng.randint(100_000, 2_000_000))
            events.append((delta, event))
        tracks.append(events)
    return tracks


def _slow_tracks(tracks, resolution, velocity):
    """What SPEC 2.1 and 2.2 say, one event and one note at a time."""
    scales, now = [(0, 60.0 / (120.0 * resolution))], 0
    for delta, event in tracks[0]:
        now += delta
        if event[0] == 0xFF:
            scale = 60.0 / ((6e7 / int.from_bytes(event[3:], "big")) * resolution)
            if now == 0:
                scales = [(0, scale)]
            elif scale != scales[-1][1]:
                scales.append((now, scale))

    def seconds(tick):
        time, last = 0.0, 0
        for (a, scale), (b, _) in zip(scales, [*scales[1:], (1 << 60, None)]):
            last = scale
            if tick < b:
                return time + scale * (tick - a)
            time = time + scale * (b - a)
        return time + last

    tempi = [(seconds(tick), 60.0 / (scale * resolution)) for tick, scale in scales]
    instruments = {}
    for index, events in enumerate(tracks):
        now, programs, sounding = 0, {}, {}
        for delta, event in events:
            now += delta
            if event[0] == 0xFF:
                continue
            kind, channel = event[0] & 0xF0, event[0] & 15
            if kind == 0xC0:
                programs[channel] = event[1]
            elif kind == 0x90 and event[2]:
                sounding.setdefault((channel, event[1]), []).append((now, event[2]))
            elif (channel, event[1]) in sounding:
                open_notes = sounding.pop((channel, event[1]))
                ended = [n for n in open_notes if n[0] != now]
                kept = [n for n in open_notes if n[0] == now]
                for struck, loud in ended:
                    place = instruments.setdefault((programs.get(channel, 0), channel, index), [])
                    place.append((seconds(struck), seconds(now), event[1], loud))
                if ended and kept:
                    sounding[channel, event[1]] = kept
    found = {}
    for name, wanted in (("PIANO", range(7)), ("SAX", range(65, 69))):
        players = [notes for p in wanted for (q, channel, _), notes in instruments.items() if q == p and channel != 9]
        if not players:
            continue
        notes = sorted(players[0], key=lambda n: n[0])
        out, bar, bars = [], 0.0, 0
        for index, (start, end, pitch, loud) in enumerate(notes):
            tempo = [t for when, t in tempi if when <= start][-1]
            tick = ((60 / tempo) * 4) / 96
            while start // tick - bar // tick >= 96 and bars < 999:
                out.append("<SME>")
                bar += (60 / tempo) * 4
                bars += 1
                if start // tick - bar // tick >= 96 and bars < 999:
                    out.append("<BLANK>")
            if bars == 999:
                break
            length = max(abs(end // tick - start // tick), 1)
            out += [
                f"s_{int(((start - bar) // tick) % 96)}",
                f"p_{pitch}",
                f"d_{int(287 if length > 288 else length)}",
            ]
            out += [f"v_{loud}"] * velocity + ["<TE>"] * (index == len(notes) - 1)
        if any(t.startswith("s_") for t in out):
            found[name] = out
    return found


@pytest.mark.parametrize("flavour", ["pro", "pro2"])
def test_random_files_equal_the_slow_reading(flavour):
    vocabulary, compared = VOCABULARY[flavour], 0
    for seed in range(150):
        rng = random.Random(seed)
        resolution = rng.choice([24, 96, 120, 480, 7])
        tracks = _random_tracks(rng)
        want = _slow_tracks(tracks, resolution, flavour == "pro2")
        if not want:
            with pytest.raises(MidiError):
                encode_upstream_tracks(_file(tracks, resolution), vocabulary)
            continue
        found = encode_upstream_tracks(_file(tracks, resolution), vocabulary)
        assert {n: [vocabulary.tokens[i] for i in ids] for n, ids in found.items()} == want, seed
        compared += 1
    assert compared > 100


def test_a_track_ends_after_999_bars():
    late = [(0, _on(60)), (480, _off(60)), (998 * 1920, _on(62)), (10, _off(62)), (1920, _on(64)), (10, _off(64))]
    late += [(1920 * 5, _on(65)), (10, _off(65))]
    want = _slow_tracks([late], 480, False)["PIANO"]
    found = [VOCABULARY["pro"].tokens[i] for i in encode_upstream_tracks(_file([late]), VOCABULARY["pro"])["PIANO"]]
    assert found == want
    assert found.count("<SME>") == 999 and found[-1] == "<SME>" and "p_62" in found and "p_65" not in found
    with pytest.raises(MidiError) as error:  # nothing sounds before the limit: upstream drops the track
        encode_upstream_tracks(_file([[(1200 * 1920, _on(60)), (10, _off(60))]]), VOCABULARY["pro"])
    assert error.value.code == "midi.empty"


# ---------------------------------------------------------------------------------------------------------------------
# names


def test_keys_and_instruments():
    path, expected = _case("piano_and_sax_8bars")
    vocabulary = VOCABULARY["pro"]
    for key, token in (("C major", "k_CM"), ("CM", "k_CM"), ("k_AM", "k_AM"), ("a minor", "k_Am"), ("F#m", "k_F#m")):
        assert vocabulary[token] in encode_upstream(path, vocabulary, key=key)[:6]
    for key in ("H major", "", "C lydian dominant", "<PAD>"):
        with pytest.raises(VocabularyError) as error:
            encode_upstream(path, vocabulary, key=key)
        assert error.value.code == "vocabulary.key"
    assert vocabulary["k_CM"] in encode_upstream(path, vocabulary, key=None)[:6]  # estimated
    # the order of the request is the order of the tracks
    ids = encode_upstream(path, vocabulary, ["SAX", "PIANO"])
    assert ids[2:4] == [vocabulary["<INST_SAX>"], vocabulary["<INST_PIANO>"]]
    only = encode_upstream(path, vocabulary, ["sax"])
    assert only == [1, 8, 9, 14, 2, 12, 9, *expected["pro"]["tracks"]["SAX"], 626, 627]
    assert upstream_categories([0, 66, "piano"]) == ["PIANO", "SAX"]
    for wrong in (["violin"], [40], [], ["xyzzy"]):
        with pytest.raises(VocabularyError) as error:
            encode_upstream(path, vocabulary, wrong)
        assert error.value.code == "vocabulary.instrument"


def test_programs_of_4_9():
    soprano = _file([[(0, _program(64)), (0, _on(60)), (480, _off(60))]])
    with pytest.raises(MidiError):
        encode_upstream(soprano, VOCABULARY["pro"])
    assert encode_upstream(soprano, VOCABULARY["pro"], programs=CATEGORY_PROGRAMS_49)[2] == 9


def test_tables_without_the_needed_tokens_are_refused_by_name():
    path, _ = _case("piano_quarters_120")
    base = upstream_vocabulary("base")
    assert encode_upstream_tracks(path, base)["PIANO"][-1] == base["<TE>"]  # its tracks have tokens there
    with pytest.raises(VocabularyError, match=r"INSTRUMENT|BOS"):
        encode_upstream(path, base)


# ---------------------------------------------------------------------------------------------------------------------
# bad input

GOOD = _file([[(0, _on(60)), (480, _off(60))]])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"M",
        b"MThd",
        b"not a midi file at all, only text",
        GOOD[:14],
        GOOD[:-1],
        GOOD[:-5],
        GOOD.replace(b"MTrk", b"XTrk"),
        GOOD[:10] + b"\0\0" + GOOD[12:],  # no tracks
        GOOD[:12] + b"\0\0" + GOOD[14:],  # zero division
        GOOD[:12] + b"\xe7\x28" + GOOD[14:],  # SMPTE
        GOOD[:18] + b"\xff\xff\xff\xff" + GOOD[22:],  # a track of 4 GB
        _file([[(0, b"\x3c\x40")]]),  # data without status
        _file([[(0, b"\x90\x3c\xf0")]]),  # data above 127
        _file([[(0, b"\xf4")]]),  # undefined status
        _file([[(0, b"\xff\x51\x02\x07\xa1")]]),  # short tempo
        _file([[(0, b"\xff\x59\x02\x09\x00")]]),  # nine sharps
        _file([[(0, b"\xf0\xff\xff\xff\x7f")]]),  # system exclusive without end
        _file([[(0, _tempo(0)), (0, _on(60)), (480, _off(60))]]),
        _file([[(0, _on(60)), (20_000_000, _off(60))]]),
        b"MThd\0\0\0\6\0\1\0\1\1\xe0MTrk\0\0\0\0",  # a track without events
        b"MThd\0\0\0\6\0\1\0\1\1\xe0MTrk\0\0\0\x20" + b"\xff" * 32,
    ],
)
def test_unreadable_files_raise_typed_errors(data):
    with pytest.raises(MidiError) as error:
        encode_upstream(data, VOCABULARY["pro"])
    assert error.value.code.startswith("midi.") and error.value.code != "midi.empty"
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_garbage_never_raises_anything_else():
    base = (FIXTURES / "piano_and_sax_8bars" / "input.mid").read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for round_ in range(400):
        data = bytearray(base)
        if round_ % 4 == 0:
            data = bytearray(rng.integers(0, 256, int(rng.integers(1, 300)), dtype=np.uint8).tobytes())
            data[:14] = base[:14]
        elif round_ % 4 == 1:
            data = data[: int(rng.integers(0, len(data)))]
        else:
            for at in rng.integers(14, len(data), int(rng.integers(1, 9))):
                data[at] = int(rng.integers(0, 256))
        try:
            ids = encode_upstream(bytes(data), VOCABULARY["pro2"])
        except MidiError as error:
            outcomes.add(error.code)
        else:
            outcomes.add("ids")
            assert 0 <= min(ids) and max(ids) < 757
    assert {"ids", "midi.unreadable"} <= outcomes


def test_paths_and_scores(tmp_path):
    with pytest.raises(MidiError, match=r"missing\.mid"):
        encode_upstream(tmp_path / "missing.mid", VOCABULARY["pro"])
    with pytest.raises(MidiError):
        encode_upstream(tmp_path, VOCABULARY["pro"])
    path, _ = _case("piano_quarters_120")
    for wrong in (load_score(path), 3, None, [60, 62]):
        with pytest.raises(MidiError, match="path or MIDI bytes") as error:
            encode_upstream(wrong, VOCABULARY["pro"])
        assert error.value.code == "midi.argument"


def test_a_million_bytes_of_events_are_quick():
    import time

    events = [(0, _on(60 + i % 12)) if i % 2 else (1, _off(60 + (i - 1) % 12)) for i in range(250_000)]
    data = _file([events])
    before = time.process_time()
    encode_upstream(data, VOCABULARY["pro"])
    assert time.process_time() - before < 10


# ---------------------------------------------------------------------------------------------------------------------
# decoding


def _slow_notes(tokens):
    """(onset, pitch, duration, velocity) of an encoded track, one token at a time."""
    bar, out = 0, []
    for i, token in enumerate(tokens):
        if token == "<SME>":
            bar += 1
        elif token.startswith("s_"):
            loud = tokens[i + 3] if i + 3 < len(tokens) and tokens[i + 3].startswith("v_") else "v_90"
            numbers = [int(t[2:]) for t in (token, tokens[i + 1], tokens[i + 2], loud)]
            out.append((96 * bar + numbers[0], *numbers[1:]))
    return out


def _notes(score, track):
    rows = score.track == track
    columns = (score.onset, score.pitch, score.duration, score.velocity)
    return list(zip(*(c[rows].tolist() for c in columns)))


def _distinct(notes):
    """Notes in the order of a score; of equal ones the loudest."""
    loudest = {}
    for onset, pitch, duration, velocity in notes:
        loudest[onset, pitch, duration] = max(velocity, loudest.get((onset, pitch, duration), 0))
    return [(*note, loudest[note]) for note in sorted(loudest)]


@pytest.mark.parametrize("flavour", ["pro", "pro2"])
@pytest.mark.parametrize("name", sorted(set(CASES) - REJECTED))
def test_decode_gives_every_note_of_every_track(name, flavour):
    _, expected = _case(name)
    vocabulary, want = VOCABULARY[flavour], expected[flavour]
    score = decode_upstream(want["full_sequence_ids"], vocabulary)
    assert score.programs.tolist() == [{"PIANO": 0, "SAX": 65}[n] for n in want["tracks"]]
    assert score.key == "CM" and score.explicit_velocity is (flavour == "pro2")
    for track, ids in enumerate(want["tracks"].values()):
        notes = _slow_notes([vocabulary.tokens[i] for i in ids])
        assert _notes(score, track) == _distinct(notes)
        alone = decode_upstream(ids, vocabulary)  # a bare track, as upstream stores it
        assert _notes(alone, 0) == _distinct(notes)
    assert (score.bars.length == 96).all() and score.bars.end > score.onset.max()
    if name in ("piano_quarters_120", "rests_spanning_bars", "unsorted_and_late_start", "overlapping_same_pitch"):
        # at 120 quarters a minute upstream's onsets are off by a tick at most, and so is what comes back
        played = sorted((n[0] * 48, n[2]) for n in expected["input_notes"][0]["notes"])
        back = sorted((o, p) for o, p, _, _ in _slow_notes([vocabulary.tokens[i] for i in ids]))
        assert [p for _, p in back] == [p for _, p in played]
        assert max(abs(a - b) for (a, _), (b, _) in zip(back, played)) <= 1
        assert {(o, p) for o, p, _, _ in _notes(score, 0)} == set(back)
    # and through a file
    written = to_midi_score(score)
    assert [t.program for t in written.tracks] == score.programs.tolist()
    assert written.note_num() == score.n_notes


def test_prompts_and_generated_tracks_count_from_the_first_bar():
    vocabulary = VOCABULARY["pro"]

    def ids(text):
        return [vocabulary[t] for t in text.split()]

    prompt = ids(
        "<EOS> <SYSTEM> <INST_PIANO> <INST_SAX> k_Am <TAG_END> "
        "<PAST_M> <INST_PIANO> <SME> s_0 p_60 d_24 <SME> s_48 p_62 d_24 <ESEQ> <TAG_END> "
        "<CONST_C> <SME> s_0 CR_A CQ_m CB_None <SME> <BLANK> <ESEQ> <TAG_END> <MGEN>"
    )
    answer = ids("<INST_PIANO> <SME> s_12 p_64 d_6 <SME> <BLANK> <ESEQ> <INST_SAX> <SME> <BLANK> <SME> s_1 p_70 d_95")
    tail = ids("<ESEQ> <TE>")
    segment = parse_upstream(prompt + answer + tail + ids("s_0 p_1 d_1 <PAD>"), vocabulary)
    assert segment.header.instruments == (129, 130) and segment.header.key == "Am"
    assert _notes(segment.blocks[TokenKind.PAST], 0) == [(0, 60, 24, 90), (144, 62, 24, 90)]
    chords = segment.blocks[TokenKind.CONST_C].chords
    assert len(chords) == 1 and vocabulary.tokens[vocabulary.lookup(TokenKind.CHORD_ROOT)[chords.root[0]]] == "CR_A"
    assert segment.generated_kind == TokenKind.MGEN and segment.generated.n_bars == 2
    score = decode_upstream(prompt + answer + tail, vocabulary)
    assert _notes(score, 0) == [(12, 64, 6, 90)] and _notes(score, 1) == [(97, 70, 95, 90)]
    assert score.programs.tolist() == [0, 65] and score.key == "Am"
    # an answer that is cut off, and a prompt without an answer
    assert _notes(decode_upstream(prompt + answer, vocabulary), 1) == [(97, 70, 95, 90)]
    assert _notes(decode_upstream(prompt, vocabulary), 0) == [(0, 60, 24, 90), (144, 62, 24, 90)]
    # chords inside a track stand at their note (SPEC 2.4)
    inside = ids("<INST_SAX> <SME> s_24 CR_G CQ_7 CB_/B p_60 d_12 s_36 p_62 d_12 <ESEQ>")
    score = decode_upstream(inside, vocabulary)
    assert _notes(score, 0) == [(24, 60, 12, 90), (36, 62, 12, 90)] and score.chords.onset.tolist() == [24]
    # leading silence: unmarked in an encoded song, marked in an answer
    assert _notes(decode_upstream(ids("<INST_SAX> <SME> s_0 p_60 d_9 <TE> <ESEQ> <TE>"), vocabulary), 0)[0][0] == 96
    assert _notes(decode_upstream(ids("<INST_SAX> <SME> s_0 p_60 d_9 <ESEQ> <TE>"), vocabulary), 0)[0][0] == 0


def test_training_sequences_of_upstream_decode():
    _, expected = _case("duo_40_bars")
    vocabulary = VOCABULARY["omega"]
    song = {name: _slow_notes([vocabulary.tokens[i] for i in ids]) for name, ids in expected["tracks"].items()}
    seen = 0
    for task, sequences in expected["sequences"].items():
        for ids in sequences:
            segment = parse_upstream(ids, vocabulary)
            if segment.meta is not None:  # PreTrain (b): the answer is a header
                assert segment.meta.instruments == (129, 130) and segment.blocks[TokenKind.CONST_M].n_notes
                continue
            score = decode_upstream(ids, vocabulary)
            assert score.n_notes and score.n_bars <= 12
            marked = [vocabulary.tokens[i] for i in ids[ids.index(vocabulary["<MGEN>"]) :]]
            # The bars of upstream's window, wherever it was cut, hold the song's notes.
            for track, program in enumerate(score.programs.tolist()):
                line = song["PIANO" if program == 0 else "SAX"]
                notes = _notes(score, track)
                shifts = range(0, 96 * 40, 96)
                fits = [s for s in shifts if {(o + s, p, d, v) for o, p, d, v in notes} <= set(line)]
                assert fits, (task, program)
            assert score.n_notes == len(_distinct_of(marked))
            seen += 1
    assert seen >= 10


def _distinct_of(tokens):
    out, track, bar = set(), 0, 0
    for i, token in enumerate(tokens):
        if token.startswith("<INST_"):
            track, bar = track + 1, 0
        elif token == "<SME>":
            bar += 1
        elif token.startswith("p_"):
            before = next(t for t in reversed(tokens[:i]) if t.startswith("s_"))
            out.add((track, bar, before, token, tokens[i + 1]))
    return out


def test_decoding_nothing_or_nonsense():
    vocabulary = VOCABULARY["pro"]
    for ids in ([], [1, 627], [0] * 10, [9999, -5], [627, 627, 626]):
        with pytest.raises(MidiError) as error:
            decode_upstream(ids, vocabulary)
        assert error.value.code == "midi.empty"
    rng = np.random.default_rng(1)
    for _ in range(300):
        ids = rng.integers(0, len(vocabulary), int(rng.integers(1, 200)))
        try:
            score = decode_upstream(ids, vocabulary)
        except MidiError:
            continue
        assert (score.onset >= 0).all() and (score.duration >= 1).all() and score.bars.end > score.onset.max(initial=0)
        to_midi_score(score)
