"""Quality sets: equal questions, equal form, splits by song, and work that goes on where it stopped."""

import numpy as np
import pytest
import torch

from mortm_hf.data import labelled_windows as labels
from mortm_hf.data.corruptions import CORRUPTIONS
from mortm_hf.evaluation import quality
from mortm_hf.models.token_codec import parse_segment
from mortm_hf.models.token_vocabulary import MetricVocabulary, TokenKind
from mortm_hf.models.tokenization_mortm import MortmTokenizer
from tests.grammar_validator import validate
from tests.sample_songs import midi, store, write_pack


VOCABULARY = MetricVocabulary.default()
SIZES = {split: quality.Sizes(6, 6, 2, 3) for split in quality.SPLITS}


@pytest.fixture(scope="module")
def tasks():
    return quality.choose_tasks(VOCABULARY, store(6, bars=36), 9, seed=1)


def test_tasks_ask_for_eight_whole_bars_behind_four(tasks):
    assert len(tasks) == 9
    assert [int(t.song) % 2 for t in tasks[:6]] == [0, 1, 0, 1, 0, 1]  # songs of the two corpora by turns
    for task in tasks:
        assert task.human.n_bars == 8 and (task.human.bars.length == 96).all()
        segment = parse_segment(VOCABULARY, task.prompt)
        assert segment.blocks[TokenKind.PAST].n_bars == 4
        assert tuple(segment.header.instruments) == tuple(task.human.programs)
        assert all(d is None for d in segment.header.get("density", ()))  # it would be taken from the answer
        assert VOCABULARY.kind[task.prompt[-1]] == TokenKind.MGEN
    again = quality.choose_tasks(VOCABULARY, store(6, bars=36), 9, seed=1)
    assert all(np.array_equal(a.prompt, b.prompt) for a, b in zip(tasks, again))
    other = quality.choose_tasks(VOCABULARY, store(6, bars=36), 9, seed=2)
    assert any(not np.array_equal(a.prompt, b.prompt) for a, b in zip(tasks, other))


def test_rows_that_are_too_long_are_left_out_and_the_last_ones_not_waited_for():
    end = 2
    longest = np.array([3, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9])
    enough = quality._Enough(2, longest, end)
    ids = torch.full((11, 6), 5)
    assert enough(ids, None).tolist() == [True] + [False] * 10  # four tokens, three are allowed
    ids[1:9, 4] = end
    assert enough(ids, None).tolist() == [True] * 9 + [False] * 2
    ids[9, 5] = end
    assert enough(ids, None).all()  # ten of eleven
    ids[:, :2] = end  # of the prompt
    ids[:, 2:] = 5
    assert not enough(ids, None)[1:].any()


def test_corrupted_windows_keep_their_questions(tasks):
    made = list(quality.corrupted(tasks, 4))
    assert [kind for kind, _, _ in made] == [k for k in CORRUPTIONS for _ in range(4)]
    for _, task, score in made:
        assert score.n_bars == 8 and np.array_equal(score.programs, task.human.programs)


def test_samples_answer_what_was_asked(tasks):
    tokenizer, model = MortmTokenizer(), quality.random_model(len(VOCABULARY))
    before = torch.random.get_rng_state()
    scores = quality.sample_fields(model, tokenizer, tasks[:3], 1.0, seed=5)
    assert torch.equal(before, torch.random.get_rng_state())
    for task, score in zip(tasks, scores):
        assert np.array_equal(score.programs, task.human.programs) and score.n_bars == 8
        assert len(score.sounding_tracks()) == task.human.n_tracks
        field = quality.field_of(VOCABULARY, score)
        validate([VOCABULARY.tokens[i] for i in field])
    again = quality.sample_fields(quality.fastest(model), tokenizer, tasks[:3], 1.0, seed=5)
    assert all(np.array_equal(a.pitch, b.pitch) for a, b in zip(scores, again))  # the fast decoder draws the same


def test_an_answer_to_another_question_is_left_out(tasks):
    tokenizer = MortmTokenizer()
    task, other = tasks[0], next(t for t in tasks if len(t.human.programs) != len(tasks[0].human.programs))
    right = quality.answer_of(tokenizer, quality.field_of(VOCABULARY, task.human)[2:], task)
    assert np.array_equal(right.pitch, task.human.pitch)
    assert quality.answer_of(tokenizer, quality.field_of(VOCABULARY, other.human)[2:], task) is None
    assert quality.answer_of(tokenizer, quality.field_of(VOCABULARY, task.human)[2:-1], task) is None  # not ended


def test_batches_cover_every_task_once_and_begin_with_the_test_split(tasks):
    given = dict.fromkeys(quality.SPLITS, tasks)
    batches = quality.plan_batches(given, SIZES, size=2)
    for split in quality.SPLITS:
        sampled = [i for b in batches if b.split == split and b.kind != quality.RANDOM for i in b.tasks]
        assert sorted(sampled) == list(range(6))
    starter = [b.split for b in batches if b.kind != quality.RANDOM]
    assert starter == ["test"] * 3 + ["validation"] * 3 + ["train"] * 3
    assert len({b.file("w", 0) for b in batches}) == len(batches)
    assert batches[0].file("w", 0) != batches[0].file("x", 0)


def test_further_rounds_ask_train_songs_at_every_temperature_and_keep_the_batches_before(tasks):
    given = dict.fromkeys(quality.SPLITS, tasks)
    once, thrice = (quality.plan_batches(given, SIZES, size=2, rounds=r) for r in (1, 3))
    assert {b.file("w", 0) for b in once} < {b.file("w", 0) for b in thrice}
    asked = [(i, b.temperature) for b in thrice if b.split == "train" and b.kind != quality.RANDOM for i in b.tasks]
    assert sorted(asked) == [(i, t) for i in range(6) for t in quality.TEMPERATURES]
    assert sum(b.split != "train" for b in thrice) == sum(b.split != "train" for b in once)


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack")
    rows, files = [], {}
    for i, split in enumerate(quality.SPLITS):
        for k, corpus in enumerate(("lieder", "chorales")):
            path = f"{corpus}/{split}.mid"
            row = {"path": path, "archive": "a.tar.xz", "corpus": corpus, "split": split, "song_id": path}
            rows.append(row | {"genre": "lied", "cluster": path, "licence": "CC0"})
            files[path] = midi(10 * i + k, bars=30, drums=k == 0)
    write_pack(folder, rows, {"a.tar.xz": files})
    return folder


def test_a_set_is_made_resumed_and_loaded(pack, tmp_path, monkeypatch):
    model = tmp_path / "model"
    quality.random_model(len(VOCABULARY), seed=3).save_pretrained(model)
    MortmTokenizer().save_pretrained(model)
    cache = tmp_path / "cache"
    monkeypatch.setattr(quality, "LONGEST", 20)  # random weights write longer bars than the songs have
    made = quality.make(pack, cache, model, sizes=SIZES, batch=3)
    starter = [f"starter T={t}" for t in quality.TEMPERATURES]
    assert set(made.column("kind")) == {"human", quality.RANDOM, *CORRUPTIONS, *starter}
    for split in quality.SPLITS:
        part = made.split(split)
        assert {s.partition("/")[2] for s in part.column("song")} == {f"{split}.mid"}
        human = [e for e in part.examples if e.kind == "human"]
        assert all(e.label == (e.kind != "human") for e in part.examples)
        for example in part.examples:
            validate([VOCABULARY.tokens[i] for i in example.full()])
            twin = next(h for h in human if np.array_equal(h.context, example.context))
            ours, theirs = (parse_segment(VOCABULARY, e.ids).generated for e in (example, twin))
            assert np.array_equal(ours.programs, theirs.programs)
            assert np.array_equal(ours.bars.length, theirs.bars.length)
            assert (ours.onset + ours.duration <= ours.bars.end).all()
            assert not np.isin(VOCABULARY.kind[example.ids], (TokenKind.VELOCITY, TokenKind.TEMPO)).any()

    sample = quality.sample_fields
    monkeypatch.setattr(quality, "sample_fields", None)  # nothing is sampled a second time
    again = quality.make(pack, cache, model, sizes=SIZES, batch=3)
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(made.examples, again.examples))
    assert len(labels.load("quality", "test", cache=cache)) == len(made.split("test"))
    for path in (cache / "quality").glob("*.npz"):
        path.unlink()
    monkeypatch.setattr(quality, "sample_fields", sample)
    waiting = iter([1])

    def beside(*args, **kwargs):  # the other process works while this one does
        for _ in waiting:
            half = quality.make(pack, cache, model, sizes=SIZES, batch=3, part=(1, 2))
            assert len(half) < len(made)
        return sample(*args, **kwargs)

    monkeypatch.setattr(quality, "sample_fields", beside)
    whole = quality.make(pack, cache, model, sizes=SIZES, batch=3, part=(0, 2))
    assert len(whole) == len(made)
    assert all(np.array_equal(a.ids, b.ids) for a, b in zip(made.examples, whole.examples))
    (model / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(Exception, match=r"sample|callable|header"):  # other weights: sampled anew
        quality.make(pack, cache, model, sizes=SIZES, batch=3)


def test_refusals(tmp_path, capsys):
    assert quality.main(["--data", str(tmp_path), "--cache", str(tmp_path)]) == 2
    assert "manifest.csv" in capsys.readouterr().err
    assert quality.main(["--data", "x", "--cache", str(tmp_path), "--model", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    for words in (["--part", "2/2"], ["--rounds", "4"]):
        assert quality.main(["--data", "x", "--cache", str(tmp_path), *words]) == 2
        assert words[0].strip("-") in capsys.readouterr().err
    with pytest.raises(SystemExit):
        quality.main(["--data", "x", "--cache", str(tmp_path), "--part", "two"])
    assert "--part" in capsys.readouterr().err
