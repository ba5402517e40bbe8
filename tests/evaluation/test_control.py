"""Requests and what is measured of their answers."""

from dataclasses import replace

import numpy as np
import pytest

from mortm_hf.evaluation.control import (
    FIGURES,
    chance_report,
    chord_tone_counts,
    control_report,
    make_requests,
    measure,
    read_answer,
)
from mortm_hf.evaluation.fixed_windows import fixed_windows
from mortm_hf.models.music_harmony import chord_table
from mortm_hf.models.music_names import DRUMS
from mortm_hf.models.token_codec import encode_tracks
from mortm_hf.models.token_controls import key_marks
from mortm_hf.models.token_headers import without
from mortm_hf.models.token_vocabulary import TokenKind
from mortm_hf.models.tokenization_mortm import MortmTokenizer
from tests.evaluation.small_scores import melody, passage
from tests.sample_songs import store


pytest.importorskip("mir_eval")


@pytest.fixture(scope="module")
def requests():
    songs = store(6, 34)
    return make_requests(MortmTokenizer(), songs, fixed_windows(songs), 8, 4096, seed=1)


def test_requests_say_what_their_music_is(requests):
    vocabulary = MortmTokenizer().vocabulary
    assert [r.corpus for r in requests] == ["band", "lead"] * 4
    assert len({r.window for r in requests}) == 8
    for request in requests:
        kinds = vocabulary.kind[request.ask.ids]
        assert kinds[-1] == TokenKind.MGEN and TokenKind.PAST not in kinds and TokenKind.PITCH not in kinds
        assert (TokenKind.CONST_C in kinds) == (request.corpus == "lead") == (request.chords is not None)
        assert (
            (kinds == TokenKind.INSTRUMENT).sum()
            == len(request.asked.instruments)
            == (kinds == TokenKind.DENSITY).sum()
        )
        assert (kinds == TokenKind.KEY).sum() == 1 and request.human.n_bars == 8
    assert len({r.asked["key"] for r in requests if r.corpus == "lead"}) > 1  # all are in C: drawn transpositions


def test_corpora_with_more_music_fill_up():
    """As many requests as asked for, in turns while there are windows, whatever the corpora hold."""
    songs = store(6, 34)
    windows = fixed_windows(songs)  # two a song, three songs a corpus
    few = [w for w in windows if songs.songs[1].path == w.path or w.path.startswith("band")]
    requests = make_requests(MortmTokenizer(), songs, few, 7, 4096, seed=1)
    assert [r.corpus for r in requests] == ["band", "lead"] * 2 + ["band"] * 3
    assert len(make_requests(MortmTokenizer(), songs, few, 99, 4096, seed=1)) == len(few) == 8


def test_the_music_of_a_request_fulfils_it(requests):
    report = control_report(requests, [r.human for r in requests])
    for name in ("bars", "meter", "instruments", "density_exact", "density_within_1"):
        assert report[name]["value"] == 1.0, name
    assert report["chord_tones_on_beats"]["n"] == 4 and set(report) == set(FIGURES)


def test_an_answer_is_read_back(requests):
    tokenizer = MortmTokenizer()
    request = requests[0]
    ids = encode_tracks(tokenizer.vocabulary, request.human, False)
    music = read_answer(tokenizer, request.ask.ids, np.append(ids, tokenizer.eos_token_id))
    assert music.pitch.tolist() == request.human.pitch.tolist() and music.key is None
    assert (
        read_answer(tokenizer, request.ask.ids, ids[:0]) is None
        or read_answer(tokenizer, request.ask.ids, ids[:0]).n_notes == 0
    )


def test_what_is_wrong_is_seen(requests):
    request = requests[0]  # band: flute, piano, drums
    human = request.human
    assert measure(human.window(0, 7), request)["bars"] is False
    fewer = human.take_tracks(range(human.n_tracks - 1))
    assert measure(fewer, request)["instruments"] is False and measure(fewer, request)["density_exact"] == (2, 3)
    other = replace(human, programs=np.array([0, 0, DRUMS], dtype=np.int16))
    assert measure(other, request)["instruments"] is False
    odd = replace(human, bars=human.bars.from_lengths(np.r_[human.bars.length[:7], 72], human.bars.meter))
    assert measure(odd, request)["meter"] is False
    once = human._select(np.unique(human.track, return_index=True)[1], 0)
    assert measure(once, request)["density_exact"][0] < 3
    nothing = measure(None, request)
    assert not any(nothing[n] for n in ("bars", "meter", "instruments", "key"))
    assert nothing["density_exact"] == (0, 3) and nothing["chord_tones_on_beats"] is None


def test_controls_that_were_not_asked_are_not_counted(requests):
    request = replace(requests[0], asked=without(requests[0].asked, ["key"]), chords=None)
    found = measure(request.human, request)
    assert found["key"] is None and found["key_mirex"] is None and found["chord_tones_on_beats"] is None
    assert control_report([request], [request.human])["key"]["n"] == 0


@pytest.mark.parametrize(
    "found, same, mirex",
    [("CM", True, 1.0), ("GM", False, 0.5), ("Am", False, 0.3), ("Cm", False, 0.2), ("F#M", False, 0.0)],
)
def test_marks_of_keys(found, same, mirex):
    assert key_marks("CM", found) == {"key": same, "key_mirex": (mirex, 1.0)}


def test_marks_of_no_key_and_of_twins():
    assert key_marks("CM", None) == {"key": False, "key_mirex": (0.0, 1.0)}
    assert key_marks("DbM", "C#M")["key"] is True  # enharmonic


def test_chord_tones_by_hand():
    chords = chord_table([0, 60, 96, 144], ["C", "Dm", "G", "N"])
    notes = [(0, 60, 12), (0, 61, 12), (12, 66, 12), (24, 64, 12), (72, 65, 12), (96, 67, 12), (120, 70, 12)]
    notes += [(150, 60, 6), (168, 60, 12)]
    found = chord_tone_counts(passage((0, notes), (DRUMS, [(0, 36, 6)]), bars=2), chords)
    # on beats with a chord: 60 yes, 61 no, 64 yes, 65 (Dm) yes, 67 yes, 70 no; 66 is off the beat, 168 has no chord
    assert found["chord_tones_on_beats"] == (4, 6)
    assert found["chord_tones_at_changes"] == (2, 3)  # 60 and 61 on C's beat, 67 on G's; Dm's change is off the beat


def test_chord_tones_follow_the_meters_denominator():
    score = passage((0, [(0, 60, 6), (12, 64, 6), (18, 61, 6)]), bars=1, meter=(6, 8))
    assert chord_tone_counts(score, chord_table([0], ["C"]))["chord_tones_on_beats"] == (2, 2)
    assert chord_tone_counts(passage((0, []), bars=1), chord_table([0], ["C"]))["chord_tones_on_beats"] == (0, 0)


def test_chance_holds_answers_against_other_requests():
    songs = store(6, 34)
    requests = make_requests(MortmTokenizer(), songs, fixed_windows(songs), 8, 4096, seed=1)
    crossed = chance_report(requests, [r.human for r in requests])
    right = control_report(requests, [r.human for r in requests])
    assert crossed["bars"]["value"] == 1.0  # all ask for eight bars
    assert crossed["density_exact"]["value"] < right["density_exact"]["value"]
    alone = chance_report(requests[:1], [requests[0].human])
    assert alone["key"]["value"] is None  # nobody to change with
    assert melody(60) == [(0, 60, 12)]
