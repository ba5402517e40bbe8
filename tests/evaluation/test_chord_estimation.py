"""Chord scores by hand and through a model that knows the answers."""

import numpy as np
import pytest
import torch

from mortm_hf.data.annotations import PITCH_ROOT, ROOT_PITCH
from mortm_hf.data.examples import transpose
from mortm_hf.evaluation.chord_estimation import (
    HARTE,
    ChordReading,
    compare,
    elect,
    harte,
    labelled,
    model_chords,
    notes_only,
    paired,
    summary,
)
from mortm_hf.models.music_harmony import NO_CHORD, QUALITY_TONES, chord_table
from mortm_hf.models.music_names import QUALITY_NAMES, ROOT_NAMES
from mortm_hf.models.prompt_building import training_example
from mortm_hf.models.tokenization_mortm import MortmTokenizer
from tests.evaluation.small_scores import melody, passage
from tests.sample_songs import store


mir_eval = pytest.importorskip("mir_eval")


def test_every_quality_is_what_mir_eval_hears():
    for index, name in enumerate(QUALITY_NAMES):
        if index == NO_CHORD[1] and name not in QUALITY_TONES:
            continue
        root, tones, _ = mir_eval.chord.encode(harte(ROOT_NAMES.index("D"), index))
        # mir_eval drops what lies above the seventh
        wanted = {"9": "7", "maj9": "maj7", "m9": "m7", "11": "7", "13": "7", "add9": "None"}.get(name, name)
        assert root == 2 and np.flatnonzero(tones).tolist() == sorted(QUALITY_TONES[wanted]), name
    assert harte(*NO_CHORD[:2]) == "N" and set(HARTE) <= set(QUALITY_NAMES)


def test_roots_and_pitches_go_there_and_back():
    assert ROOT_PITCH[PITCH_ROOT].tolist() == list(range(12))
    for name, pitch in zip(ROOT_NAMES, ROOT_PITCH.tolist()):
        assert pitch == (-1 if name == "N" else mir_eval.chord.pitch_class_to_semitone(name) % 12)


def test_labelled_covers_the_whole_song():
    spans, labels = labelled(chord_table([48, 96], ["C", "Am7"]), 192)
    assert spans.tolist() == [[0, 2], [2, 4], [4, 8]] and labels == ["N", "C:maj", "A:min7"]
    assert labelled(None, 96)[1] == ["N"]


def test_compare_by_hand():
    reference = chord_table([0, 96, 192], ["C", "Am7", "G7"])
    estimate = chord_table([0, 120, 192], ["C", "Am", "G7"])
    found = compare(reference, estimate, 288)
    assert found["root"] == (11.0, 12.0)  # one quarter of C where Am7 has begun
    assert found["root + quality"] == (8.0, 12.0)  # Am is no Am7
    # mir_eval leaves sevenths of no triad out of majmin, none here
    assert found["majmin"] == (11.0, 12.0)
    assert compare(reference, reference, 288)["root + quality"] == (12.0, 12.0)
    assert compare(None, reference, 288)["root"] == (0.0, 12.0)


def test_summary_weighs_songs_by_their_length():
    scores = [dict.fromkeys(("root", "root + quality", "majmin"), (1.0, 10.0))]
    scores += [dict.fromkeys(("root", "root + quality", "majmin"), (2.0, 2.0))]
    assert summary(scores, ["a", "b"])["root"]["value"] == 3 / 12
    other = [{m: (0.0, s[m][1]) for m in s} for s in scores]
    assert paired(scores, other, ["a", "b"])["majmin"]["value"] == 3 / 12
    assert paired(scores, scores, ["a", "b"])["root"]["high"] == 0.0


def test_heard_takes_key_and_chords_away():
    score = passage((0, melody(60)), (1, melody(72)), chords=[(0, "C")], key="CM", names=("CHORDS", "MELODY"))
    assert notes_only(score).chords is None and notes_only(score).key is None and notes_only(score).n_tracks == 2
    assert notes_only(score, "melody").pitch.tolist() == [72]
    with pytest.raises(ValueError, match="tracks"):
        notes_only(score, "bass")


def test_elect():
    a, b, c = (chord_table([0], [name]) for name in ("C", "Am", "Cm"))
    assert elect([], 96) is None
    one = elect([((0, 96), chord_table([0, 48], ["C", "G"]))], 192)
    assert one.onset.tolist() == [0, 48, 96] and ROOT_NAMES[one.root[2]] == "N"  # nothing is said of the second bar
    # two of three say the root C; the quality is elected among those two
    voted = elect([((0, 96), a), ((0, 96), b), ((0, 96), c), ((0, 96), c)], 96)
    assert (ROOT_NAMES[voted.root[0]], QUALITY_NAMES[voted.quality[0]]) == ("C", "m")
    # in an overlap the answer whose middle is nearer wins
    left, right = chord_table([0], ["C"]), chord_table([0], ["F"])
    both = elect([((0, 192), left), ((96, 288), right)], 288)
    first = [ROOT_NAMES[both.root[np.searchsorted(both.onset, t, side="right") - 1]] for t in (0, 90, 200, 280)]
    assert first == ["C", "C", "F", "F"]


class Oracle(torch.nn.Module):
    """Answers every known prompt with the annotated chords."""

    def __init__(self, tokenizer, songs, windows, semitones):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.config = type("Config", (), {"max_position_embeddings": 4096})()
        self.known, self.asked = {}, 0
        for song in songs:
            for step in semitones:
                moved = transpose(song, step)
                for start, stop in windows:
                    ids, answer = training_example(
                        tokenizer.vocabulary, moved, start, stop - start, task="chords", omit=("key",)
                    )
                    self.known[self._name(tokenizer, ids[:answer])] = ids[answer:]
        self.tokenizer = tokenizer

    @staticmethod
    def _name(tokenizer, ids):
        # headers differ in what they state; the given music is the same
        words = tokenizer.convert_ids_to_tokens([int(i) for i in ids if i != tokenizer.pad_token_id])
        return " ".join(words[words.index("<CONST_M>") :])

    def generate(self, input_ids, **kwargs):
        self.asked += len(input_ids)
        answers = [self.known[self._name(self.tokenizer, row.tolist())] for row in input_ids]
        width = max(map(len, answers))
        out = np.full((len(answers), width), self.tokenizer.pad_token_id)
        for row, ids in zip(out, answers):
            row[: len(ids)] = ids
        return torch.cat([input_ids, torch.from_numpy(out).long()], dim=1)


@pytest.fixture(scope="module")
def songs():
    return [s.score for s in store(4, 20).songs if s.score.chords is not None]


@pytest.mark.parametrize("semitones", [(0,), (-3, 0, 4)])
def test_windows_and_transpositions_come_back_to_their_place(songs, semitones):
    tokenizer = MortmTokenizer()
    windows = [(0, 8), (8, 16), (16, songs[0].n_bars)]
    oracle = Oracle(tokenizer, songs, windows, semitones)
    reading = ChordReading(8, 8, key="none", semitones=semitones)
    found = model_chords(oracle, tokenizer, [notes_only(s) for s in songs], reading)
    assert oracle.asked == len(songs) * len(windows) * len(semitones)
    for song, table in zip(songs, found):
        right, total = compare(song.chords, table, song.bars.end)["root + quality"]
        assert right == total == song.bars.end / 24


def test_overlapping_windows(songs):
    tokenizer = MortmTokenizer()
    last = songs[0].n_bars
    windows = sorted({*((a, a + 8) for a in range(0, last - 7, 4)), (last - 8, last)})
    oracle = Oracle(tokenizer, songs[:1], windows, (0,))
    found = model_chords(oracle, tokenizer, [notes_only(songs[0])], ChordReading(8, 4, key="none"))
    assert oracle.asked == len(windows)
    right, total = compare(songs[0].chords, found[0], songs[0].bars.end)["root"]
    assert right == total


def test_a_reading_says_what_it_is():
    assert str(ChordReading(8, 4, beams=4, key="none")) == "8 bars every 4, no key, 4 beams"
