"""MIDI -> a data set of songs on disk: in parallel, resumable, all or nothing.

Design decisions
- The work is cut into chunks of files. A finished chunk is a few Arrow files (one a split) and a `.json` beside them
  that is renamed into place last: what has one is done. After a kill -9 the same call goes on with the chunks that
  lack it, and gives the same data set as an unbroken run.
- Everything is written in `OUTPUT.partial/` and renamed to `OUTPUT/` at the end. `plan.json` in it states source and
  options; a partial folder of another plan is thrown away, a finished one of the same plan is simply opened.
- A file that cannot be used never ends the build: `report.json` and `skipped.csv` name it, with the error's code.
- Labels that have no effect are no errors, but `report.json` counts them: genres without a token, rows of a metadata
  table without a MIDI file. So are labels that put copies of one song into several splits.
- Workers are spawned processes that end with their parent. One that dies on a file (a crash in a parser) is replaced,
  and its chunk is read once more, file by file, until the culprit is known and listed.

Knows: sources, songs, `datasets`. Must not know: tokens, models, training.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm.auto import tqdm

from ..models.errors_mortm import DataError
from .dataset import open_dataset, save_splits, write_report
from .genres import genre_of, label_name
from .manifest import Selection
from .midi_sources import SPLITS, Chunk, Entry
from .schema import FORMAT_VERSION, Song, table_of
from .song_reading import place_song, read_song
from .sources import open_sources
from .whole_files import FolderInSteps, write_arrow, write_json


CHORD_CHOICES = ("estimate", "annotated", "none")
CHUNK_FILES = 256
RULES = 2  # raised when the same files and options give other songs; part of the plan


@dataclass(frozen=True)
class BuildOptions:
    """What decides the content of a data set, besides its source.

    Attributes:
        chords: "estimate" (where neither an annotation nor the file gives them), "annotated" or "none".
        shares: of validation and test among songs without a split.
        seed: of the drawing of these splits.
        chunk_files: files of a chunk.

    Raises:
        DataError: `data.option`, a value that is not possible.
    """

    chords: str = "estimate"
    shares: tuple[float, float] = (0.05, 0.05)
    seed: int = 0
    chunk_files: int = CHUNK_FILES

    def __post_init__(self):
        if self.chords not in CHORD_CHOICES:
            raise DataError(f"chords must be one of {', '.join(CHORD_CHOICES)}, got {self.chords!r}", "data.option")
        if len(self.shares) != 2 or min(self.shares) < 0 or sum(self.shares) >= 1:
            raise DataError(
                f"shares are those of validation and test, together below 1, got {self.shares}", "data.option"
            )
        if self.chunk_files < 1:
            raise DataError(f"chunk_files must be at least 1, got {self.chunk_files}", "data.option")


# ---------------------------------------------------------------------------------------------------------------------
# One chunk (in a worker)


def read_entries(entries: list[Entry], options: BuildOptions) -> tuple[list[Song], list[dict[str, str]]]:
    """Read some files.

    Args:
        entries: the files.
        options: chords and splits.

    Returns:
        The songs; and `{"file", "code", "message"}` for each file, or chord annotation, that cannot be used.
    """
    songs, skipped = [], []
    for entry in entries:
        try:
            song = _read_with_annotation(entry, skipped)
        except (ValueError, OSError) as error:
            skipped.append(_problem(entry.row.path, error))
            continue
        if options.chords == "none" and song.score.chords is not None:
            song = replace(song, score=replace(song.score, chords=None), chord_source=None)
        songs.append(place_song(song, options.shares, options.seed))
    if options.chords == "estimate":
        songs = add_chords(songs)
    return songs, skipped


def _read_with_annotation(entry: Entry, skipped: list[dict[str, str]]) -> Song:
    """The song; a chord annotation that cannot be read is left out (and listed), not the song."""
    if entry.content is None:
        raise DataError(f"{entry.row.path} is not in its archive {entry.row.archive}", "data.missing")
    content = entry.content if isinstance(entry.content, Path) else bytes(entry.content)
    if entry.chords is not None:
        try:
            return read_song(entry.row, content, entry.chords)
        except ValueError as error:
            if not getattr(error, "code", "").startswith(("vocabulary.chord", "prompt.")):
                raise
            skipped.append(_problem(f"{entry.row.path} (chords)", error))
    return read_song(entry.row, content)


def _problem(name: str, error: Exception) -> dict[str, str]:
    code = getattr(error, "code", None)
    message = " ".join(str(error).split())
    return {"file": name, "code": code if isinstance(code, str) else "data.source", "message": message[:300]}


def add_chords(songs: list[Song]) -> list[Song]:
    """Estimated chords for the songs that have none (and have something to estimate them from)."""
    from .chord_recogniser import estimate_chords

    bare = [i for i, song in enumerate(songs) if song.score.chords is None]
    tables = estimate_chords([songs[i].score for i in bare])
    out = list(songs)
    for i, table in zip(bare, tables):
        if table is not None:
            out[i] = replace(songs[i], score=replace(songs[i].score, chords=table), chord_source="estimate")
    return out


def write_chunk(folder: Path, number: int, entries: list[Entry], options: BuildOptions) -> dict:
    """Read the files of a chunk and write its part of the data set.

    Args:
        folder: of the chunks.
        number: of the chunk.
        entries: its files.
        options: what decides the content.

    Returns:
        The content of its `.json`: counts, genres without a token, files left out.

    Raises:
        DataError: `data.column`, a label names a split that there is not.
    """
    songs, skipped = read_entries(entries, options)
    for entry in entries:
        if entry.row.split and entry.row.split not in SPLITS:
            raise DataError(
                f"{entry.row.path} is in a split named {entry.row.split!r}: splits are {', '.join(SPLITS)}",
                "data.column",
            )
    used = {song.path for song in songs}
    labels = [(e.row.genre, e.row.subgenre) for e in entries if e.row.genre and e.row.path in used]
    unknown = Counter(label_name(*label) for label in labels if genre_of(*label) is None)
    done = {"files": len(entries), "songs": {}, "genres_without_token": unknown, "skipped": skipped}
    for split in SPLITS:
        part = [song for song in songs if song.split == split]
        if part:
            write_arrow(folder / f"{number:06d}-{split}.arrow", table_of(part))
            done["songs"][split] = len(part)
    write_json(folder / f"{number:06d}.json", done)
    return done


def _end_with_parent() -> None:
    """A worker whose parent was killed ends too, instead of waiting for work for ever."""
    parent = multiprocessing.parent_process()

    def watch():
        parent.join()
        os._exit(1)

    if parent is not None:
        threading.Thread(target=watch, daemon=True).start()


# ---------------------------------------------------------------------------------------------------------------------
# All chunks


class _Workers:
    """Runs `write_chunk` in this process (`count` 0 or 1) or in spawned ones."""

    def __init__(self, count: int, folder: Path, options: BuildOptions):
        self.count, self.folder, self.options = count, folder, options
        self._pool: ProcessPoolExecutor | None = None
        self._waiting: dict[Future, tuple[int, list[Entry]]] = {}

    def _start(self, count: int) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(count, mp_context=context, initializer=_end_with_parent)

    def run(self, chunks: Iterator[tuple[int, Chunk]]) -> Iterator[dict]:
        """Results in the order in which they are done."""
        if self.count <= 1:
            for number, chunk in chunks:
                yield write_chunk(self.folder, number, chunk.load(), self.options)
            return
        try:
            for number, chunk in chunks:
                while len(self._waiting) >= 2 * self.count:
                    yield from self._collect()
                self._submit(number, chunk.load())
            while self._waiting:
                yield from self._collect()
        finally:
            if self._pool is not None:
                self._pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, number: int, entries: list[Entry]) -> None:
        if self._pool is None:
            self._pool = self._start(self.count)
        future = self._pool.submit(write_chunk, self.folder, number, entries, self.options)
        self._waiting[future] = number, entries

    def _collect(self) -> Iterator[dict]:
        done, _ = wait(self._waiting, return_when=FIRST_COMPLETED)
        for future in done:
            if future not in self._waiting:
                continue
            try:
                yield future.result()
                del self._waiting[future]
            except BrokenProcessPool:
                lost = list(self._waiting.values())
                self._waiting, self._pool = {}, None
                for number, entries in lost:
                    yield self._alone(number, entries)

    def _alone(self, number: int, entries: list[Entry]) -> dict:
        """A chunk that was being read when a worker died: in a process of its own, then halved to find the file."""
        bad: set[int] = set()

        def survives(rows: list[int]) -> bool:
            with self._start(1) as pool:
                try:
                    pool.submit(read_entries, [entries[i] for i in rows], self.options).result()
                    return True
                except BrokenProcessPool:
                    return False

        def search(rows: list[int]) -> None:
            if survives(rows):
                return
            if len(rows) == 1:
                bad.add(rows[0])
                return
            search(rows[: len(rows) // 2])
            search(rows[len(rows) // 2 :])

        search(list(range(len(entries))))
        good = [entry for i, entry in enumerate(entries) if i not in bad]
        done = write_chunk(self.folder, number, good, self.options)
        for i in sorted(bad):
            message = "reading this file ended the process that read it"
            done["skipped"].append({"file": entries[i].row.path, "code": "data.crash", "message": message})
        done["files"] = len(entries)
        write_json(self.folder / f"{number:06d}.json", done)
        return done


def build_dataset(
    source,
    output_dir: str | Path,
    *,
    chords: str = "estimate",
    selection: Selection | None = None,
    split_from_folders: bool = False,
    shares: tuple[float, float] = (0.05, 0.05),
    seed: int = 0,
    column: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    num_proc: int | None = None,
    chunk_files: int = CHUNK_FILES,
    overwrite: bool = False,
    progress: bool | None = None,
    materialize: bool = False,
    recipe=None,
    packs: int | None = None,
):
    """Prepare MIDI as a data set of songs and open it.

    Args:
        source: anything of which `sources` has a row: a folder of MIDI files, an archive, a training pack, a data set
            with MIDI bytes (`datasets` object, saved folder, `.parquet`, `owner/name` of the Hub), or a list of these.
        output_dir: the folder to make. An interrupted build is taken up; a finished one of the same source and
            options is opened.
        chords: "estimate" (where neither an annotation nor the file gives them), "annotated" or "none".
        selection: corpora, variants and licences of a training pack.
        split_from_folders: the names of the folders (train, validation, test, ...) are the splits.
        shares: of validation and test for songs without a split; decided by a hash of their notes and `seed`.
        seed: of the splits, and of examples that are kept.
        column: of the MIDI bytes in a data set.
        config: configuration of a data set that has several.
        revision: branch, tag or commit of a data set of the Hub; a commit pins the data. By default the newest.
        num_proc: processes; by default one, or up to one a core from 2000 files on.
        chunk_files: files of a chunk, the unit of work and of resuming.
        overwrite: replace a finished data set of another source or other options.
        progress: show a bar; by default on a terminal.
        materialize: also draw examples once and keep their token ids, in `output_dir/examples/SPLIT` (for training
            that is to read fixed ids; otherwise examples are drawn afresh every epoch).
        recipe: an `ExampleRecipe`, by which these examples are drawn.
        packs: how many packs of each split; by default as many tokens as the split's notes have.

    Returns:
        `datasets.DatasetDict` with the splits that have songs, memory-mapped; with `materialize` that of the examples.

    Raises:
        DataError: nothing to read, nothing could be used, or `output_dir` holds something else.
    """
    options = BuildOptions(chords, tuple(float(s) for s in shares), int(seed), int(chunk_files))
    sources = open_sources(
        source,
        selection=selection,
        split_from_folders=split_from_folders,
        column=column,
        config=config,
        revision=revision,
    )
    data = build_from(sources, output_dir, options, num_proc=num_proc, overwrite=overwrite, progress=progress)
    if not materialize:
        return data
    from .fixed_examples import materialize_splits  # needs torch

    return materialize_splits(data, Path(output_dir) / "examples", recipe, packs, seed, overwrite, progress)


def build_from(
    sources: list,
    output_dir: str | Path,
    options: BuildOptions,
    *,
    num_proc: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
):
    """`build_dataset` on opened sources.

    Args:
        sources: sources of `midi_sources`, read in this order.
        output_dir: the folder to make.
        options: what decides the content besides the sources.
        num_proc: as in `build_dataset`.
        overwrite: as in `build_dataset`.
        progress: as in `build_dataset`.

    Returns:
        `datasets.DatasetDict` of songs.

    Raises:
        DataError: as `build_dataset`.
    """
    folder = FolderInSteps(output_dir, _plan(sources, options), "report.json")
    if not folder.finished:
        work = folder.begin(overwrite, "a data set of another source, another release or other options")
        (work / "chunks").mkdir(exist_ok=True)
        total = sum(len(s) for s in sources)
        if num_proc is None:
            num_proc = min(_cores(), total // 1000) if total >= 2000 else 1
        count = _run_chunks(sources, work / "chunks", options, num_proc, total, progress)
        _finish(folder, count, [name for s in sources for name in s.unmatched])
    return open_dataset(folder.target)


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def _plan(sources: list, options: BuildOptions) -> dict:
    plan = {"version": FORMAT_VERSION, "rules": RULES, "options": vars(options)}
    plan["sources"] = [s.identity() for s in sources]
    text = json.dumps(plan, sort_keys=True)
    return {**plan, "digest": hashlib.sha256(text.encode()).hexdigest()[:32]}


def _run_chunks(sources, folder: Path, options: BuildOptions, num_proc: int, total: int, progress) -> int:
    """Read what is not read yet; the number of all chunks."""
    finished = {int(p.stem) for p in folder.glob("[0-9]*.json")}
    count = 0
    if progress is None:
        progress = sys.stderr.isatty()
    with tqdm(total=total, unit="file", desc="preparing", disable=not progress) as bar:

        def todo():
            nonlocal count
            for one in sources:
                for chunk in one.chunks(options.chunk_files):
                    number, count = count, count + 1
                    if number in finished:
                        bar.update(chunk.size)
                    else:
                        yield number, chunk

        skipped = 0
        for done in _Workers(num_proc, folder, options).run(todo()):
            bar.update(done["files"])
            skipped += len(done["skipped"])
            if skipped:
                bar.set_postfix(skipped=skipped)
    return count


def _finish(folder: FolderInSteps, count: int, unmatched: list[str]) -> None:
    """Chunks -> `DatasetDict` and report in the finished folder."""
    from datasets import Dataset, concatenate_datasets

    chunks, plan = folder.work / "chunks", folder.plan
    done = [json.loads((chunks / f"{n:06d}.json").read_text(encoding="utf-8")) for n in range(count)]
    skipped = [problem for chunk in done for problem in chunk["skipped"]]
    files = sum(chunk["files"] for chunk in done)
    if not any(chunk["songs"] for chunk in done):
        few = "; ".join(f"{p['file']}: {p['message']}" for p in skipped[:3])
        shutil.rmtree(folder.work)  # there is nothing to go on with
        raise DataError(f"none of {files} files could be used ({few})", "data.source")
    splits = {}
    for split in SPLITS:
        parts = [chunks / f"{n:06d}-{split}.arrow" for n in range(count) if split in done[n]["songs"]]
        if parts:
            whole = concatenate_datasets([Dataset.from_file(str(p)) for p in parts])
            whole._fingerprint = hashlib.sha256(f"{plan['digest']}-{split}".encode()).hexdigest()[:16]
            splits[split] = whole
    unknown = sum((Counter(chunk["genres_without_token"]) for chunk in done), Counter())
    ineffective = {
        "genres_without_token": dict(sorted(unknown.items(), key=lambda item: (-item[1], item[0]))),
        "metadata_without_file": {"rows": len(unmatched), "first": unmatched[:5]},
        "copies_across_splits": _copies_across(splits),
    }

    def write(ready: Path) -> None:
        save_splits(splits, ready)
        write_report(ready, plan, files, splits, skipped, ineffective)

    folder.finish(write)


def _copies_across(splits: dict) -> list[list[str]]:
    """Songs of one cluster that labels have put into several splits: `[["test: a.mid", "train: b.mid"], ...]`."""
    places: dict[str, dict[str, str]] = {}
    for split, data in splits.items():
        table = data.data.table
        for cluster, path in zip(table["cluster"].to_pylist(), table["path"].to_pylist()):
            places.setdefault(cluster, {}).setdefault(split, path)
    return [[f"{split}: {path}" for split, path in found.items()] for found in places.values() if len(found) > 1]
