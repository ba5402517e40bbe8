"""Drawn examples kept as they are: a fixed data set of packed rows of token ids.

Design decisions
- One row of the data set is one packed row: its ids (uint16), where each of its documents begins and where the loss of
  each begins. Labels and positions follow from these two, so a token takes two bytes and a document four more.
- Row `r` of pack `i` is exactly what `PackDataset` draws for (seed, epoch, i): training on the fixed rows and on drawn
  ones gives the same steps. `FixedPacks` hands them out in the same form.
- Chunks of packs are written and renamed one by one, so an interrupted call goes on where it was.

Knows: packs of documents, `datasets`. Must not know: music, models, the Trainer.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import Dataset as TorchDataset
from tqdm.auto import tqdm

from ..models.errors_mortm import DataError
from ..models.token_vocabulary import MetricVocabulary, TokenKind
from .dataset import save_splits
from .examples import ExampleRecipe, ExampleSource
from .manifest import CorpusFilter, Selection
from .packing import Document, PackDataset, pack_rows
from .score_store import ScoreStore, load_songs
from .whole_files import FolderInSteps, read_json, write_arrow, write_json


FORMAT = "mortm-examples-1"
META = "examples.json"
CHUNK_PACKS = 64
TOKENS_A_NOTE = 3.5  # about, bars and headers included


def example_features():
    """The `datasets.Features` of fixed examples."""
    from datasets import Features, List, Value

    return Features(
        {
            "pack": Value("uint32"),
            "input_ids": List(Value("uint16")),
            "start": List(Value("uint16")),  # of each document in the row
            "answer": List(Value("uint16")),  # its first token that counts in the loss, from its own start
            "song": List(Value("int32")),
            "notes": List(Value("uint16")),
            "task": List(Value("string")),
        }
    )


def _row(pack: int, row: list[Document]) -> dict:
    sizes = np.array([len(d.ids) for d in row])
    answers = []
    for d in row:
        answer = len(d.ids) if not d.target.any() else int(d.target.argmax())
        if not d.target[answer:].all():
            raise DataError(
                f"the targets of a document of task {d.task!r} have gaps: it can be drawn, but not be kept",
                "data.format",
            )
        answers.append(answer)
    return {
        "pack": pack,
        "input_ids": np.concatenate([d.ids for d in row] or [np.zeros(0)]).astype(np.uint16),
        "start": (np.cumsum(sizes) - sizes).astype(np.uint16),
        "answer": np.array(answers, dtype=np.uint16),
        "song": np.array([d.source for d in row], dtype=np.int32),
        "notes": np.array([min(d.notes, 0xFFFF) for d in row], dtype=np.uint16),
        "task": [d.task for d in row],
    }


def _table(rows: list[dict]) -> pa.Table:
    schema = example_features().arrow_schema
    columns = []
    for field in schema:
        values = [row[field.name] for row in rows]
        if field.name in ("pack", "task"):
            columns.append(pa.array(values, field.type))
            continue
        offsets = np.zeros(len(values) + 1, dtype=np.int32)
        np.cumsum([len(v) for v in values], out=offsets[1:])
        columns.append(pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(values))))
    return pa.table(columns, schema=schema)


def materialize(
    data: PackDataset,
    output_dir: str | Path,
    *,
    epoch: int = 0,
    packs: int | None = None,
    identity: str = "",
    overwrite: bool = False,
    progress: bool | None = None,
):
    """Draw the packs of one epoch and keep them.

    Args:
        data: what is drawn from; row lengths up to 65535 and token tables up to 65536 ids.
        output_dir: the folder to make; an interrupted call is taken up.
        epoch: which epoch is drawn.
        packs: how many, from the epoch's first; by default all.
        identity: anything that distinguishes this source from another (the recipe, say): a partial folder of another
            identity is thrown away.
        overwrite: replace fixed examples of another source.
        progress: show a bar; by default on a terminal.

    Returns:
        `datasets.Dataset`, a row each; `FixedPacks` makes packs of it.

    Raises:
        DataError: the folder holds something else; rows or ids that do not fit; targets with gaps.
    """
    from datasets import Dataset, concatenate_datasets, load_from_disk

    packs = data.packs if packs is None else packs
    rows, length = data.shape_of(epoch * data.packs)
    if length > 0xFFFF:
        raise DataError(f"rows of {length} tokens do not fit, 65535 is the most", "data.option")
    text = json.dumps([FORMAT, identity, data.seed, epoch, packs, rows, length, data.pad])
    digest = hashlib.sha256(text.encode()).hexdigest()[:32]
    meta = {"format": FORMAT, "digest": digest, "row_length": length, "rows": rows, "pad": data.pad, "packs": packs}
    folder = FolderInSteps(output_dir, meta, META)
    if folder.finished:
        return load_from_disk(str(folder.target))["train"]
    work, parts = folder.begin(overwrite, "something else"), []
    if progress is None:
        progress = sys.stderr.isatty()
    with tqdm(total=packs, unit="pack", desc="drawing", disable=not progress) as bar:
        for first in range(0, packs, CHUNK_PACKS):
            last = min(first + CHUNK_PACKS, packs)
            part = work / f"{first:08d}.arrow"
            parts.append(part)
            if not part.is_file():
                drawn = [
                    _row(i, row)
                    for i in range(first, last)
                    for row in _same_shape(data, epoch * data.packs + i, rows, length)
                ]
                write_arrow(part, _table(drawn))
            bar.update(last - first)
    whole = concatenate_datasets([Dataset.from_file(str(part)) for part in parts])
    whole._fingerprint = digest[:16]

    def write(ready: Path) -> None:
        save_splits({"train": whole}, ready)
        write_json(ready / META, meta)

    folder.finish(write)
    return load_from_disk(str(folder.target))["train"]


def materialize_splits(
    data, folder: str | Path, recipe=None, packs: int | None = None, seed: int = 0, overwrite=False, progress=None
):
    """Fixed examples of every split of a data set of songs, each in a folder of its own.

    Args:
        data: `datasets.DatasetDict` of songs.
        folder: in which the folders of the splits are made.
        recipe: an `ExampleRecipe`; by default one with its own defaults.
        packs: of each split; by default about as many tokens as writing every note once would take.
        seed: of the drawing.
        overwrite: as in `materialize`.
        progress: as in `materialize`.

    Returns:
        `datasets.DatasetDict` of examples.

    Raises:
        DataError: as `materialize`, or a split without a song of the recipe's corpora.
    """
    from datasets import DatasetDict

    recipe = recipe or ExampleRecipe()
    vocabulary = MetricVocabulary.default()
    stated = {name: value for name, value in vars(recipe).items() if name not in ("data", "cache")}
    found = {}
    for split, part in data.items():
        chosen = Selection({name: CorpusFilter() for name in recipe.corpora})
        songs = load_songs(DatasetDict({split: part}), split, chosen).songs
        if not len(songs):
            held = ", ".join(sorted(set(part["corpus"]))[:5])
            raise DataError(f"the recipe's corpora hold no song of the split {split}: there are {held}", "data.option")
        source = ExampleSource(ScoreStore(songs), vocabulary, recipe, seed=seed)
        tokens = TOKENS_A_NOTE * int(songs.lengths("note_pitch").sum())
        count = packs or max(1, round(tokens / (recipe.rows * recipe.row_length)))
        shape = (recipe.rows, recipe.row_length)
        drawn = PackDataset(source, count, lambda i, s=shape: s, vocabulary.id(TokenKind.PAD), seed)
        identity = json.dumps([part._fingerprint, len(vocabulary), stated], sort_keys=True, default=str)
        found[split] = materialize(
            drawn, Path(folder) / split, identity=identity, overwrite=overwrite, progress=progress
        )
    return DatasetDict(found)


def _same_shape(data: PackDataset, index: int, rows: int, length: int) -> list[list[Document]]:
    if data.shape_of(index) != (rows, length):
        raise DataError(
            "packs of several shapes cannot be kept together: give `packs` up to the change", "data.option"
        )
    return data.documents(index)


class FixedPacks(TorchDataset):
    """Fixed examples as packs, in the form of `PackDataset`: item `i` is pack `i % packs`, epoch after epoch.

    Args:
        folder: what `materialize` made.
        epochs: how often the packs are handed out.

    Raises:
        DataError: it made nothing there.
    """

    def __init__(self, folder: str | Path, epochs: int = 1):
        from datasets import load_from_disk

        self.meta = read_json(Path(folder) / META)
        if self.meta.get("format") != FORMAT:
            raise DataError(f"{folder} holds no fixed examples: make them with `materialize`", "data.format")
        self.data = load_from_disk(str(folder))["train"].with_format("numpy")
        self.packs, self.epochs = self.meta["packs"], epochs

    def __len__(self) -> int:
        return self.packs * self.epochs

    def largest_id(self) -> int:
        """The largest token id there is."""
        chunks = self.data.data.table["input_ids"].chunks
        return max((int(np.asarray(chunk.flatten()).max()) for chunk in chunks if len(chunk)), default=0)

    def documents(self, index: int) -> list[list[Document]]:
        """The documents of item `index`, row by row."""
        if not 0 <= index < len(self):
            raise IndexError(f"pack {index} of {len(self)}")
        rows = self.meta["rows"]
        first = index % self.packs * rows
        part = self.data[first : first + rows]
        found = []
        for r in range(rows):
            ids, start = np.asarray(part["input_ids"][r], np.int32), np.asarray(part["start"][r], np.int64)
            row = []
            for n, (a, b) in enumerate(zip(start, np.append(start[1:], len(ids)))):
                target = np.arange(b - a) >= part["answer"][r][n]
                labels = int(part["song"][r][n]), str(part["task"][r][n]), int(part["notes"][r][n])
                row.append(Document(ids[a:b], target, *labels))
            found.append(row)
        return found

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return pack_rows(self.documents(index), self.meta["row_length"], self.meta["pad"])
