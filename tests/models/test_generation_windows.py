"""Requests cut into windows. Generated windows: `test_pipeline_mortm`."""

import symusic

from mortm_hf.models.generation_windows import SongRequest, SongRow, _bars_with_notes
from mortm_hf.models.midi_files import quantize
from mortm_hf.models.prompt_words import spread_chords
from mortm_hf.models.tokenization_mortm import MortmTokenizer


def test_spread_chords():
    assert spread_chords("C | Am", 4, 3) == [("C", 4, 0), ("Am", 5, 0), ("C", 6, 0)]
    assert spread_chords({0: "C", (1, 2): "G"}, 0, 2) == [("C", 0, 0), ("G", 1, 2)]
    assert spread_chords([], 0, 2) is None and spread_chords(True, 0, 2) is True and spread_chords(False, 0, 2) is None


def test_a_long_last_chord_is_not_all_that_is_heard():
    score = symusic.Score(480)
    part = symusic.Track("", 0, False)
    for beat in range(16):
        part.notes.append(symusic.Note(480 * beat, 480, 60 + beat % 5, 80))
    part.notes.append(symusic.Note(480 * 16, 480 * 48, 48, 80))  # bars 4 to 15
    score.tracks.append(part)
    song = quantize(score)
    assert song.n_bars == 16
    assert [_bars_with_notes(song, at, 8) for at in (16, 12, 0)] == [19, 8, 8]
    row = SongRow(SongRequest(None, song, 16, 2, 8), seed=0)
    tokenizer = MortmTokenizer()
    row.build(tokenizer, 2048)
    tokens = tokenizer.convert_ids_to_tokens(row.built.ids)
    assert "<PAST_M>" in tokens and tokens.count("p_48") == 1 and tokens.count("p_60") == 4
