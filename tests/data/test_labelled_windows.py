"""Labelled windows: one form for every class, splits kept, songs and clusters named."""

import numpy as np
import pytest
import symusic

from mortm_hf.data import labelled_windows as labels
from mortm_hf.data.labelled_windows import LabelledData, LabelledExample
from mortm_hf.models.midi_files import read_midi
from mortm_hf.models.token_codec import parse_segment
from mortm_hf.models.token_vocabulary import MetricVocabulary, TokenKind
from tests.grammar_validator import validate
from tests.sample_songs import write_pack


VOCABULARY = MetricVocabulary.default()


def tune(seed: int, meter=(4, 4), bars: int = 16, program: int = 0, drums: bool = False) -> bytes:
    """A tune with a bass, another tempo, program and velocity for every seed."""
    rng = np.random.default_rng(seed)
    score = symusic.Score(480)
    score.time_signatures.append(symusic.TimeSignature(0, *meter))
    score.tempos.append(symusic.Tempo(0, qpm=80 + 10 * seed))
    length = 1920 * meter[0] // meter[1]
    melody, bass = symusic.Track("a", program, drums), symusic.Track("b", program + 1, drums)
    for bar in range(bars):
        for at in range(0, length, 240):
            pitch = int(rng.integers(36, 50)) if drums else int(rng.integers(60, 80))
            melody.notes.append(symusic.Note(bar * length + at, 200, pitch, 50 + seed))
        bass.notes.append(symusic.Note(bar * length, length, int(rng.integers(36, 48)), 50 + seed))
    for track in (melody, bass):
        score.tracks.append(track)
    return score.dumps_midi()


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack")
    rows, files = [], {}

    def add(path, corpus, genre, subgenre, split, cluster, content):
        row = {"path": path, "archive": f"{split}.tar.xz", "corpus": corpus, "genre": genre, "subgenre": subgenre}
        row |= {"split": split, "song_id": path, "cluster": cluster, "licence": "BSD", "variant": "aligned"}
        rows.append(row)
        files.setdefault(f"{split}.tar.xz", {})[path] = content

    for i, split in enumerate(("train", "test")):
        add(f"n/reel{i}.mid", "nottingham", "folk", "reel", split, f"family{i}", tune(i, bars=33))
        add(f"n/jig{i}.mid", "nottingham", "folk", "jig", split, f"family{9 + i}", tune(i + 2, (6, 8)))
        add(f"n/carol{i}.mid", "nottingham", "folk", "carol", split, f"family{5 + i}", tune(i + 2))
        add(f"c/{i}.mid", "chorales", "chorale", "", split, f"c{i}", tune(i + 4, (2, 4), program=52))
        add(f"g/{i}.mid", "groove", "drums", "rock", split, f"groove/drummer{i}/s1", tune(i, drums=True))
        add(f"g/j{i}.mid", "groove", "drums", "jazz", split, f"groove/drummer{i}/s2", tune(i + 1, drums=True))
    write_pack(folder, rows, files)
    return folder


def test_every_window_has_one_form(pack, tmp_path):
    for name, program in (("folk", 0), ("genre", 0), ("drums", 128)):
        data = labels.load(name, data=pack, cache=tmp_path / name)
        assert len(data)
        for example in data.examples:
            tokens = [VOCABULARY.tokens[i] for i in example.ids]
            validate(tokens)  # raises where the grammar is broken
            kinds = VOCABULARY.kind[example.ids]
            leaks = (TokenKind.SYSTEM, TokenKind.TEMPO, TokenKind.VELOCITY, TokenKind.KEY, TokenKind.GENRE)
            assert not np.isin(kinds, leaks).any()
            assert VOCABULARY.value[example.ids[kinds == TokenKind.INSTRUMENT]].tolist() == [program]
            assert (kinds == TokenKind.BAR).sum() == (4 if name == "drums" else 8)


def test_folk_keeps_its_meters_splits_and_labels(pack, tmp_path):
    data = labels.load("folk", data=pack, cache=tmp_path)
    test = labels.load("folk", "test", data=pack, cache=tmp_path)
    assert data.support() == {"reel": 2, "jig": 2, "hornpipe": 0, "waltz": 0, "morris": 0}
    assert set(test.column("song")) == {"n/reel1.mid", "n/jig1.mid"}
    assert set(test.column("cluster")) == {"family1", "family10"}
    assert len(test) == len(data.split("test")) == 4 + 2
    jig = next(e for e in data.examples if data.names[e.label] == "jig")
    assert "<TS_6/8>" in [VOCABULARY.tokens[i] for i in jig.ids]
    assert test.claimed(least=1) == ("reel", "jig") and test.claimed() == ()


def test_genre_windows_are_all_in_four_four(pack, tmp_path):
    data = labels.load("genre", data=pack, cache=tmp_path)
    assert set(data.column("kind")) == {"nottingham", "chorales"}  # a jig cannot be written in 4/4, drums are no genre
    for example in data.examples:
        score = parse_segment(VOCABULARY, example.ids).generated
        assert (score.bars.length == 96).all() and example.song != "n/jig0.mid"
    chorale = [e for e in data.examples if e.kind == "chorales"]
    assert len(chorale) == 2  # sixteen bars of 2/4 are eight of 4/4
    original = read_midi(tune(4, (2, 4), program=52))
    merged = parse_segment(VOCABULARY, chorale[0].ids).generated
    assert merged.n_notes == original.n_notes


def test_drummers_are_clusters_and_recordings_are_songs(pack, tmp_path):
    data = labels.load("drums", data=pack, cache=tmp_path)
    assert set(data.column("cluster")) == {"groove/drummer0", "groove/drummer1"}
    assert data.support()["rock"] == 2 and data.support()["jazz"] == 2


def test_nothing_rings_past_a_window(pack, tmp_path):
    for example in labels.load("folk", data=pack, cache=tmp_path).examples:
        score = parse_segment(VOCABULARY, example.ids).generated
        assert (score.onset + score.duration <= score.bars.end).all()


def test_a_song_gives_a_few_even_windows(pack, tmp_path):
    data = labels.load("folk", "train", data=pack, cache=tmp_path, window_bars=4, windows_a_song=3)
    assert (data.column("song") == "n/reel0.mid").sum() == 3


def small_set() -> LabelledData:
    ids = np.array([1, 2, 3], dtype=np.int32)
    context = np.array([1, 9, 8, 2], dtype=np.int32)
    rows = [
        LabelledExample(ids, i % 2, f"s{i}", "c", "test", "human", context if i % 3 else np.empty(0, np.int32))
        for i in range(6)
    ]
    return LabelledData(("human", "machine"), rows, VOCABULARY)


def test_save_and_load(tmp_path):
    data = small_set()
    data.save(tmp_path / "deep" / "set.npz")
    again = LabelledData.load(tmp_path / "deep" / "set.npz")
    assert again.names == data.names and len(again) == len(data)
    for one, two in zip(data.examples, again.examples):
        assert np.array_equal(one.ids, two.ids) and np.array_equal(one.context, two.context)
        assert (one.label, one.song, one.cluster, one.split, one.kind) == (
            two.label,
            two.song,
            two.cluster,
            two.split,
            two.kind,
        )
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["set.npz"]


def test_forms_of_a_quality_set():
    data = small_set()
    assert data.examples[1].full().tolist() == [1, 9, 8, 2, 3]
    full, mixed = labels.in_form(data, "full"), labels.in_form(data, "mixed")
    assert [len(e.ids) for e in full.examples] == [3, 5, 5, 3, 5, 5]
    for label in (0, 1):  # half of each label, so that the form says nothing
        whole = [e is not d for e, d in zip(mixed.examples, data.examples) if d.label == label]
        assert sum(whole) == len(whole) // 2
    with pytest.raises(ValueError, match="form must be"):
        labels.in_form(data, "odd")


def test_condensed_windows_hold_the_same_notes_in_one_track():
    words = "<EOS> <MGEN> <INST_0> <SME> s_0 p_72 d_24 <SME> s_0 p_74 d_24 <ESEQ> <INST_32> <SME> s_0 p_48 d_192 "
    words += "<SME> s_48 p_50 d_24 <ESEQ> <INST_DRUMS> <SME> s_0 p_36 d_1 <SME> <BLANK> <ESEQ> <TE>"
    ids = np.array([VOCABULARY[w] for w in words.split()], dtype=np.int32)
    one = LabelledExample(ids, 1, "s", "s", "train")
    two = LabelledExample(
        np.array([VOCABULARY[w] for w in words.split()[:9] + ["<ESEQ>", "<TE>"]]), 0, "t", "t", "train"
    )
    data = LabelledData(("human", "machine"), [one, two], VOCABULARY)
    assert [e.song for e in labels.of_tracks(data, 2).examples] == ["s"]
    whole, first = (labels.in_form(data, "condensed", bars).examples[0] for bars in (None, 1))
    score = parse_segment(VOCABULARY, whole.ids).generated
    assert score.programs.tolist() == [0, 128]
    assert score.pitch[score.track == 0].tolist() == [48, 72, 74, 50] and score.pitch[score.track == 1].tolist() == [
        36
    ]
    score = parse_segment(VOCABULARY, first.ids).generated
    assert score.n_bars == 1 and score.pitch.tolist() == [48, 72, 36]
    assert score.duration.tolist() == [96, 24, 1]  # what rings on is cut at the bar line
    assert (whole.song, whole.label) == ("s", 1)


def test_augmentation_moves_pitches_but_not_drums(pack, tmp_path):
    data = labels.load("genre", data=pack, cache=tmp_path)
    rng = np.random.default_rng(0)
    before = parse_segment(VOCABULARY, data.examples[0].ids).generated
    steps = set()
    for _ in range(20):
        after = parse_segment(VOCABULARY, data.augment(0, rng)).generated
        steps |= set((after.pitch - before.pitch).tolist())
        assert np.array_equal(after.onset, before.onset) and len(set(after.pitch - before.pitch)) == 1
    assert len(steps) > 5 and min(steps) >= -5 and max(steps) <= 6
    drums = labels.load("drums", data=pack, cache=tmp_path)
    assert np.array_equal(labels.transpose_ids(VOCABULARY, drums.examples[0].ids, 3), drums.examples[0].ids)


def test_a_prompt_is_moved_with_its_key():
    names = [
        "<EOS>",
        "<SYSTEM>",
        "<INST_0>",
        "k_GM",
        "<TAG_END>",
        "<MGEN>",
        "<INST_0>",
        "<SME>",
        "s_0",
        "p_60",
        "d_24",
    ]
    ids = np.array([VOCABULARY.tokens.index(n) for n in names])
    moved = [VOCABULARY.tokens[i] for i in labels.transpose_ids(VOCABULARY, ids, 3)]
    assert moved == ["<EOS>", "<SYSTEM>", "<INST_0>", "k_BbM", *names[4:9], "p_63", "d_24"]


def test_refusals_say_what_to_do(pack, tmp_path):
    with pytest.raises(ValueError, match="folk, drums, genre, quality"):
        labels.load("mood", data=pack)
    with pytest.raises(FileNotFoundError, match=r"python -m mortm_hf\.evaluation\.quality"):
        labels.load("quality", data=pack, cache=tmp_path)
