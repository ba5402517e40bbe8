"""The codec over real files and the awkward cases, against expectations written by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import symusic

from mortm_hf.models.errors_mortm import MidiError
from mortm_hf.models.midi_files import Caps, quantize, read_midi, to_midi_score
from mortm_hf.models.music_names import DRUMS, KEY_NAMES, METERS
from mortm_hf.models.music_score import ChordTable
from mortm_hf.models.token_codec import (
    encode_chords,
    encode_header,
    encode_tracks,
    parse_segment,
    uses_velocity,
    velocity_bin,
)
from mortm_hf.models.token_controls import density_of
from mortm_hf.models.token_headers import Header
from mortm_hf.models.token_vocabulary import MetricVocabulary, TokenKind


VOCABULARY = MetricVocabulary.default()
FILES = sorted((Path(__file__).parents[1] / "fixtures" / "midi").glob("*.mid"))


def song(notes, meters=(), tempos=(), tpq=480, program=0, drums=False):
    """A one-track Score; notes are (tick, ticks, pitch[, velocity])."""
    score = symusic.Score(tpq)
    for tick, n, d in meters:
        score.time_signatures.append(symusic.TimeSignature(tick, n, d))
    for tick, bpm in tempos:
        score.tempos.append(symusic.Tempo(tick, bpm))
    track = symusic.Track("", program, drums)
    for note in notes:
        track.notes.append(symusic.Note(note[0], note[1], note[2], note[3] if len(note) > 3 else 64))
    score.tracks.append(track)
    return score


def words(ids):
    return [VOCABULARY.tokens[i] for i in ids]


def tokens(score, **options):
    return " ".join(words(encode_tracks(VOCABULARY, quantize(score), **options)))


def test_fixture_files_are_there():
    assert len(FILES) == 5


def test_one_bar_by_hand():
    found = tokens(song([(0, 480, 60), (480, 240, 64), (480, 480, 62)], tempos=[(0, 120)]))
    assert found == "<INST_0> <SME> <TS_4/4> <BPM_120> s_0 p_60 d_24 s_24 p_62 d_24 s_24 p_64 d_12 <ESEQ>".replace(
        "<BPM_120>", words([VOCABULARY.lookup(TokenKind.TEMPO)[21]])[0]
    )


def test_blank_bars_meter_changes_and_drums():
    score = song([(1920, 480, 60), (1920 * 3, 480, 60)], meters=[(0, 4, 4), (1920 * 3, 3, 4)])
    drums = symusic.Track("kit", 0, True)
    drums.notes.append(symusic.Note(0, 120, 36, 64))
    score.tracks.insert(0, drums)
    assert tokens(score) == (
        "<INST_0> <SME> <TS_4/4> <BLANK> <SME> s_0 p_60 d_24 <SME> <BLANK> <SME> <TS_3/4> s_0 p_60 d_24 <ESEQ> "
        "<INST_DRUMS> <SME> s_0 p_36 d_6 <SME> <BLANK> <SME> <BLANK> <SME> <BLANK> <ESEQ>"
    )


@pytest.mark.parametrize(
    ("ticks", "parts"),
    [(1, [1]), (288, [288]), (289, [288, 1]), (311, [288, 23]), (312, [312]), (768, [768]), (800, [768, 32])]
    + [(1800, [768, 768, 264]), (2591, [768, 768, 768, 287]), (2592, [768, 768, 768, 288])],
)
def test_long_durations(ticks, parts):
    ids = encode_tracks(VOCABULARY, quantize(song([(0, ticks * 20, 60)])))
    assert [w for w in words(ids) if w.startswith("d_")] == [f"d_{p}" for p in parts]
    assert parse_segment(VOCABULARY, ids).generated.duration.tolist() == [ticks]


def test_clipped_zero_length_and_duplicates_are_counted():
    score = quantize(song([(0, 20 * 3000, 60), (0, 0, 62), (480, 240, 64), (480, 240, 64, 100)]))
    assert (score.report.clipped, score.report.zero_length, score.report.duplicates) == (1, 1, 1)
    assert score.duration.tolist() == [2592, 1, 12] and score.velocity[2] == 100


def test_nested_notes_are_paired_first_in_first_out():
    score = quantize(song([(0, 960, 60), (240, 240, 60)]))
    assert score.onset.tolist() == [0, 12] and (score.onset + score.duration).tolist() == [24, 48]


def test_cut_bar_states_its_true_meter_and_comes_back():
    score = song([(0, 100, 60), (2500, 100, 62), (4000, 100, 64)], meters=[(0, 4, 4), (2410, 4, 4), (2410, 3, 4)])
    music = quantize(score)
    ids = encode_tracks(VOCABULARY, music)
    text = " ".join(words(ids))
    assert f"<TS_1/4> d_{music.bars.length[1]}" in text or f"d_{music.bars.length[1]}" in text
    again = quantize(to_midi_score(parse_segment(VOCABULARY, ids).generated))
    assert again.bars.start.tolist() == music.bars.start.tolist()


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
@pytest.mark.parametrize("velocity", [False, True])
def test_ids_survive_decoding(path, velocity):
    music = read_midi(path)
    ids = encode_tracks(VOCABULARY, music, velocity)
    assert (ids >= 0).all()
    decoded = parse_segment(VOCABULARY, ids).generated
    for name in ("onset", "pitch", "duration"):
        assert np.array_equal(getattr(decoded, name), getattr(music, name))
    if velocity:
        assert np.array_equal(decoded.velocity, velocity_bin(music.velocity))
    score = to_midi_score(replace(decoded, key=music.key))
    assert np.array_equal(encode_tracks(VOCABULARY, quantize(score), velocity), ids)
    assert np.array_equal(encode_tracks(VOCABULARY, read_midi(score.dumps_midi()), velocity), ids)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_notes_lie_within_half_a_tick(path):
    raw = symusic.Score(str(path))
    music = read_midi(path)
    parts = [t for t in raw.tracks if len(t.notes) and not t.is_drum] + [t for t in raw.tracks if t.is_drum]
    grid = raw.ticks_per_quarter / 24
    for index, part in enumerate(p for p in parts if len(p.notes)):
        rows = music.track == index
        onsets = np.unique(np.stack([music.onset[rows], music.pitch[rows]]), axis=1)
        for note in part.notes:
            near = onsets[0][onsets[1] == note.pitch]
            assert np.abs(near - note.time / grid).min() <= 0.5


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_windows_partition_the_notes(path):
    music = read_midi(path)
    middle = music.n_bars // 2
    left, right = music.window(0, middle), music.window(middle, music.n_bars)
    assert left.n_notes + right.n_notes == music.n_notes
    assert right.bars.start[0] == 0 and (right.onset < right.bars.end).all()
    assert left.bars.end + right.bars.end == music.bars.end


def test_tempo_of_a_bar_is_its_mean():
    score = song([(0, 480 * 12, 60)], tempos=[(0, 60), (960, 120), (1920, 90)])
    music = quantize(score)
    mean = 4 * 60 / (2 * 1.0 + 2 * 0.5)
    expected = [round(31 * np.log(x / 30) / np.log(8)) for x in (mean, 90, 90)]
    assert music.tempo.tolist() == expected


def test_no_tempo_event_means_no_tempo():
    assert quantize(song([(0, 480, 60)])).tempo.tolist() == [-1]
    assert "<BPM" not in tokens(song([(0, 480, 60)]))


def test_velocity_is_written_unless_constant():
    assert not uses_velocity(quantize(song([(0, 480, 60, 64), (480, 480, 60, 66)])))
    assert uses_velocity(quantize(song([(0, 480, 60, 64), (480, 480, 60, 80)])))
    assert velocity_bin(np.array([1, 3, 4, 90, 127])).tolist() == [2, 2, 6, 90, 126]


def test_meters_that_make_no_bars_are_ignored():
    score = song([(0, 480, 60)], meters=[(0, 0, 4)])
    music = quantize(score)
    assert METERS[music.bars.meter[0]] == (4, 4) and music.report.ignored_meters == 1


def test_density_bins():
    eighths = quantize(song([(240 * k, 120, 60) for k in range(16)]))
    assert density_of(eighths).tolist() == [1 + sum(8 >= e for e in (1, 2, 3, 4, 6, 8, 12, 16, 24))]
    chords = quantize(song([(960 * k, 120, p) for k in range(4) for p in (60, 64, 67)]))
    assert density_of(chords).tolist() == [3]


def test_header_order():
    header = Header(
        instruments=(0, DRUMS),
        density=(3, None),
        bars=4,
        genre=(29,),
        meter=METERS.index((3, 4)),
        tempo=21,
        key=KEY_NAMES.index("CM"),
    )
    found = words(encode_header(VOCABULARY, header))
    assert found[:5] == ["<SYSTEM>", "<INST_0>", "<NOTE_DENSE_3>", "<INST_DRUMS>", "<GEN_MEASURE_COUNT_4>"]
    assert found[6] == "<TS_3/4>" and found[-2:] == ["k_CM", "<TAG_END>"]
    assert parse_segment(VOCABULARY, encode_header(VOCABULARY, header)).header == header


def test_chords_round_trip_through_tokens_and_markers():
    music = quantize(song([(0, 1920 * 3, 60)]))
    table = ChordTable(np.array([0, 48, 200]), *(np.array(c, np.int16) for c in ([0, 10, 20], [0, 1, 0], [21, 4, 21])))
    music = replace(music, chords=table)
    ids = encode_chords(VOCABULARY, music)
    assert words(ids)[:10] == "<SME> <TS_4/4> s_0 CR_C CQ_None CB_None s_48 CR_A CQ_m CB_/E".split()
    back = parse_segment(VOCABULARY, np.append(VOCABULARY["<CGEN>"], ids)).generated.chords
    assert back.onset.tolist() == [0, 48, 200] and back.root.tolist() == [0, 10, 20]
    again = quantize(to_midi_score(music)).chords
    assert again.onset.tolist() == [0, 48, 200] and again.bass.tolist() == [21, 4, 21]
    window = music.chords.window(60, 150)
    assert window.onset.tolist() == [0] and window.root.tolist() == [10]


def test_many_tracks_of_one_program_stay_apart():
    score = symusic.Score(480)
    for pitch in range(40, 60):
        track = symusic.Track(f"t{pitch}", 48, False)
        track.notes.append(symusic.Note(0, 480, pitch, 64))
        score.tracks.append(track)
    music = read_midi(score.dumps_midi())
    assert music.n_tracks == 20 and music.pitch.tolist() == list(range(40, 60))


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"", "midi.unreadable"), (b"not a midi file", "midi.unreadable"), (12, "midi.unreadable")]
    + [(b"MThd\0\0\0\6\0\1\0\1\0\0MTrk\0\0\0\4\0\xff\x2f\0", "midi.unreadable")]
    + [(b"MThd\0\0\0\6\0\2\0\1\1\xe0MTrk\0\0\0\4\0\xff\x2f\0", "midi.unreadable")]
    + [(b"MThd\0\0\0\6\0\1\0\1\xe7\x28MTrk\0\0\0\4\0\xff\x2f\0", "midi.unreadable")]
    + [(b"MThd\0\0\0\6\0\1\0\1\1\xe0MTrk\0\0\0\4\0\xff\x2f\0", "midi.empty")],
)
def test_unusable_input_is_a_typed_error(data, code):
    with pytest.raises(MidiError) as caught:
        read_midi(data)
    assert caught.value.code == code


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "broken.mid"
    path.write_bytes(b"MThd garbage garbage")
    with pytest.raises(MidiError, match=r"broken\.mid"):
        read_midi(path)
    with pytest.raises(MidiError, match=r"missing\.mid"):
        read_midi(tmp_path / "missing.mid")


def test_caps():
    score = song([(0, 480, 60), (480 * 4 * 1000, 480, 60)])
    with pytest.raises(MidiError) as caught:
        quantize(score, Caps(bars=100))
    assert caught.value.code == "midi.too_large"
    with pytest.raises(MidiError):
        read_midi(score.dumps_midi(), Caps(notes=1))


def test_pedal_extends_to_release_but_not_past_a_repeat():
    score = song([(0, 240, 60), (480, 240, 62), (1200, 240, 60)])
    score.tracks[0].pedals.append(symusic.Pedal(100, 1500))
    plain, held = quantize(score), quantize(score, pedal="extend")
    assert plain.duration.tolist() == [12, 12, 12]
    assert held.duration.tolist() == [60, 56, 20]


def test_pieces_of_ids_without_a_marker_decode():
    ids = encode_tracks(VOCABULARY, read_midi(FILES[0]))
    whole = parse_segment(VOCABULARY, ids).generated
    cut = parse_segment(VOCABULARY, ids[: len(ids) // 2]).generated
    assert 0 < cut.n_notes < whole.n_notes


def test_containers_are_mended_or_refused():
    good = song([(0, 480, 60), (480, 480, 62)]).dumps_midi()
    assert good[8:14].hex() == "0001000101e0" or good[:4] == b"MThd"
    expected = read_midi(good).pitch.tolist()
    more_promised = good[:10] + b"\0\x09" + good[12:]
    none_promised = good[:10] + b"\0\0" + good[12:]
    foreign_chunk = good[:14] + b"XFIH\0\0\0\4abcd" + good[14:]
    riff = b"RIFF" + (len(good) + 12).to_bytes(4, "little") + b"RMIDdata" + len(good).to_bytes(4, "little") + good
    for data in (more_promised, none_promised, foreign_chunk, riff, good + b"trailing rubbish"):
        assert read_midi(data).pitch.tolist() == expected
    for cut in range(14, len(good) - 1, 3):
        with pytest.raises(MidiError):
            read_midi(good[:cut])


def test_scores_in_other_time_units():
    score = song([(0, 480, 60), (480, 480, 62)])
    assert read_midi(score.to("quarter")).onset.tolist() == [0, 24]


def test_drums_have_no_key():
    """The key signature of a drum file is its template's; with a pitched track it is the music's."""
    score = song([(240 * i, 120, 36 + i % 3) for i in range(16)], drums=True)
    score.key_signatures.append(symusic.KeySignature(0, 2, 0))
    assert read_midi(score).key is None
    score.tracks.append(song([(0, 480, 38)], program=33).tracks[0])
    assert read_midi(score).key == "DM"
