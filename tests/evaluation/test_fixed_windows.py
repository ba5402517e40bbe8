"""The fixed windows: which they are, what they say, what is left out."""

import numpy as np
import pytest

from mortm_hf.data.schema import Song
from mortm_hf.data.score_store import ScoreStore
from mortm_hf.evaluation.fixed_windows import Window, encode_windows, fixed_windows, read_windows, write_windows
from mortm_hf.models.music_names import GENRES
from mortm_hf.models.token_vocabulary import TokenKind
from tests.evaluation.small_scores import melody, passage


def test_windows_are_the_consecutive_ones(windows, vocabulary, tmp_path):
    songs, encoded = windows
    listed = fixed_windows(songs)
    assert [(w.path, w.start) for w in listed[:2]] == [("band/0.mid", 0), ("band/0.mid", 16)] and len(listed) == 8
    write_windows(tmp_path / "w.csv", listed)
    assert read_windows(tmp_path / "w.csv") == listed
    for item, window in zip(encoded, listed):
        score = next(s.score for s in songs.songs if s.path == window.path)
        assert item.notes == score.window(window.start + 8, window.start + 16).n_notes
        kinds = vocabulary.kind[item.ids]
        assert kinds[item.answer - 1] == TokenKind.MGEN and kinds[-1] == TokenKind.END
        assert TokenKind.DENSITY not in kinds and TokenKind.VELOCITY not in kinds
        assert (kinds[item.answer :] == TokenKind.ONSET).sum() == item.notes
    again = encode_windows(vocabulary, songs, listed, 4096)[0]
    assert all((a.ids == b.ids).all() for a, b in zip(encoded, again))
    short, left_out = encode_windows(vocabulary, songs, listed, 100)
    assert not short and len(left_out) == 8 and "tokens" in left_out[0][1]


def song(score, name="a.mid", genre=None):
    return Song(name, "x", name, name, "test", genre, score)


def test_silent_windows_are_left_out_with_the_reason(vocabulary):
    late = passage((0, melody(*range(60, 72), step=96)), bars=16)  # nothing from bar 12 on
    early = passage((0, melody(60, 62, step=96)), bars=16)
    songs = ScoreStore([song(late), song(early, "b.mid")])
    found, left_out = encode_windows(vocabulary, songs, fixed_windows(songs), 4096)
    assert [w.window.path for w in found] == ["a.mid"] and found[0].notes == 4
    assert left_out == [(Window("b.mid", 0), "no notes in the generated bars")]


def test_a_window_that_names_no_song_is_an_error(vocabulary):
    with pytest.raises(KeyError, match="gone"):
        encode_windows(vocabulary, ScoreStore([]), [Window("gone.mid", 0)], 4096)


def test_the_header_says_what_is_known_and_nothing_of_the_answer(vocabulary):
    score = passage((0, melody(*[60, 64, 67, 72] * 16)), bars=16, key="GM")
    songs = ScoreStore([song(score, genre="pop")])
    (found,), _ = encode_windows(vocabulary, songs, fixed_windows(songs), 4096)
    head = [vocabulary.tokens[i] for i in found.ids[: int(np.flatnonzero(found.ids == vocabulary["<TAG_END>"])[0])]]
    assert "k_GM" in head and f"<GENRE_{GENRES[GENRES.index('pop')]}>" in head and "<INST_0>" in head
    assert not any(t.startswith("<NOTE_DENSE") for t in head)
    # another answer, the same prompt
    other = passage((0, melody(*[60, 64, 67, 72] * 8, *[61] * 32)), bars=16, key="GM")
    (again,), _ = encode_windows(vocabulary, ScoreStore([song(other, genre="pop")]), [found.window], 4096)
    assert again.ids[: again.answer].tolist() == found.ids[: found.answer].tolist()
    assert (vocabulary.kind[again.ids[again.answer :]] == TokenKind.PITCH).sum() == again.notes
