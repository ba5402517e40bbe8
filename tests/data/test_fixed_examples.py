"""Fixed examples: the same steps as drawn ones, two bytes a token."""

import dataclasses

import numpy as np
import pytest
import torch
from datasets import load_from_disk

from mortm_hf.data import (
    DataError,
    Document,
    ExampleRecipe,
    ExampleSource,
    FixedPacks,
    PackDataset,
    build_dataset,
    open_dataset,
)
from mortm_hf.data.fixed_examples import materialize, materialize_splits
from mortm_hf.models.token_vocabulary import MetricVocabulary, default_tokens
from mortm_hf.training.arguments import DataRecipe
from tests.sample_songs import midi, store


VOCABULARY = MetricVocabulary({token: index for index, token in enumerate(default_tokens())})
RECIPE = ExampleRecipe(row_length=1024, rows=2, corpora={"band": {"weight": 1}, "lead": {"weight": 1}})


@pytest.fixture(scope="module")
def drawn():
    source = ExampleSource(store(4, 16), VOCABULARY, RECIPE, seed=2, packs=4)
    return PackDataset(source, 9, lambda i: (2, 1024), VOCABULARY["<PAD>"], seed=2, epochs=3)


@pytest.fixture(scope="module")
def folder(drawn, tmp_path_factory):
    out = tmp_path_factory.mktemp("fixed") / "examples"
    materialize(drawn, out, epoch=1, progress=False)
    return out


def test_fixed_packs_are_the_drawn_ones(drawn, folder):
    fixed = FixedPacks(folder, epochs=2)
    assert len(fixed) == 18
    for i in range(9):
        a, b = drawn[9 + i], fixed[i]
        assert a.keys() == b.keys()
        for name in a:
            assert torch.equal(torch.as_tensor(a[name]), torch.as_tensor(b[name])), name
        assert torch.equal(fixed[9 + i]["labels"], b["labels"])
        for row, same in zip(drawn.documents(9 + i), fixed.documents(i)):
            assert [(d.source, d.task, d.notes) for d in row] == [(d.source, d.task, d.notes) for d in same]
    with pytest.raises(IndexError):
        fixed[18]


def test_two_bytes_a_token(folder):
    data = load_from_disk(str(folder))["train"]  # plain datasets
    tokens = sum(len(row) for row in data["input_ids"])
    columns = ("input_ids", "start", "answer")
    assert data.features["input_ids"].feature.dtype == "uint16"
    size = data.select_columns(columns).data.table.nbytes
    assert 2 * tokens < size < 2.1 * tokens
    row = data[3]
    assert row["start"][0] == 0 and len(row["start"]) == len(row["answer"]) == len(row["task"]) == len(row["song"])
    assert len(row["input_ids"]) <= 1024


def test_interrupted_drawing_goes_on(drawn, folder, tmp_path, monkeypatch):
    import mortm_hf.data.fixed_examples as module

    monkeypatch.setattr(module, "CHUNK_PACKS", 4)
    real, asked = PackDataset.documents, []

    def documents(self, index):
        asked.append(index)
        if len(asked) == 7:
            raise KeyboardInterrupt
        return real(self, index)

    monkeypatch.setattr(PackDataset, "documents", documents)
    with pytest.raises(KeyboardInterrupt):
        materialize(drawn, tmp_path / "out", epoch=1, progress=False)
    assert not (tmp_path / "out").exists()
    data = materialize(drawn, tmp_path / "out", epoch=1, progress=False)
    assert asked == [9, 10, 11, 12, 13, 14, 15, 13, 14, 15, 16, 17]  # the finished chunk is not drawn again
    assert data["input_ids"][:] == load_from_disk(str(folder))["train"]["input_ids"][:]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    with pytest.raises(DataError, match="holds something else"):
        materialize(drawn, tmp_path / "out", epoch=0, progress=False)


def test_what_cannot_be_kept_is_refused(drawn, tmp_path):
    class Gaps:
        def draw(self, rng, limit):
            return Document(np.zeros(300, np.int32), np.arange(300) % 3 > 0, task="odd")

    with pytest.raises(DataError, match="'odd' have gaps"):
        materialize(PackDataset(Gaps(), 1, lambda i: (1, 512), 0), tmp_path / "a", progress=False)
    with pytest.raises(DataError, match="65535 is the most"):
        materialize(PackDataset(Gaps(), 1, lambda i: (1, 70000), 0), tmp_path / "b", progress=False)
    with pytest.raises(DataError, match="several shapes"):
        growing = PackDataset(drawn.source, 3, lambda i: (1, 512 * (1 + i // 2)), 0)
        materialize(growing, tmp_path / "c", progress=False)
    with pytest.raises(DataError, match="no fixed examples"):
        FixedPacks(tmp_path)


def test_preparation_can_keep_examples(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.mid").write_bytes(midi(i, 12))
    options = dict(chords="none", progress=False, materialize=True, recipe=RECIPE_ALL, packs=3)
    data = build_dataset([str(p) for p in sorted(tmp_path.glob("*.mid"))], tmp_path / "out", **options)
    assert data["train"].num_rows == 3
    assert len(FixedPacks(tmp_path / "out" / "examples" / "train")) == 3
    assert {t for row in data["train"]["task"] for t in row} <= {"continue", "meta"}
    # the songs are as ever, and the same call opens both
    assert sum(len(part) for part in load_from_disk(str(tmp_path / "out")).values()) == 5
    again = build_dataset([str(p) for p in sorted(tmp_path.glob("*.mid"))], tmp_path / "out", **options)
    assert again["train"]["input_ids"][:] == data["train"]["input_ids"][:]


RECIPE_ALL = ExampleRecipe(row_length=700, tasks={"continue": 1.0, "meta": 1.0})


def test_a_recipe_takes_only_its_corpora(tmp_path):
    store(4, 16).save(tmp_path / "songs")
    data = open_dataset(tmp_path / "songs")
    lead = ExampleRecipe(row_length=700, corpora={"lead": {"weight": 2}}, tasks={"chords": 1.0})
    made = materialize_splits(data, tmp_path / "out", lead, packs=2, progress=False)
    assert {t for row in made["train"]["task"] for t in row} == {"chords"}
    with pytest.raises(DataError, match="hold no song of the split train: there are band, lead"):
        materialize_splits(data, tmp_path / "no", ExampleRecipe(corpora={"jazz": {"weight": 1}}), packs=1)


def test_defaults_agree_with_recipe_files():
    """A recipe's data section may stand wherever an `ExampleRecipe` does."""
    theirs = {f.name for f in dataclasses.fields(DataRecipe)}
    assert {f.name for f in dataclasses.fields(ExampleRecipe)} <= theirs
