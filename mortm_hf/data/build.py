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

import csv
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
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
from tqdm.auto import tqdm

from .data_errors import DataError
from .genres import genre_of, label_name
from .manifest import Selection
from .schema import FORMAT_VERSION, Song, table_of
from .song_reading import place_song, read_song
from .sources import SPLITS, Chunk, Entry, open_sources


CHORD_CHOICES = ("estimate", "annotated", "none")
CHUNK_FILES = 256
RULES = 2  # raised when the same files and options give other songs; part of the plan


@dataclass(frozen=True)
class BuildOptions:
    """What decides the content of a data set, besides its source."""

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
    """Songs of some files, and `{"file", "code", "message"}` for those that cannot be used."""
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


def replace_file(path: Path, write) -> None:
    """Write a file under a name of this process and rename it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()


def write_chunk(folder: Path, number: int, entries: list[Entry], options: BuildOptions) -> dict:
    """Read the files of a chunk and write its part of the data set; returns what its `.json` says."""
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
            replace_file(folder / f"{number:06d}-{split}.arrow", lambda path, p=part: _write_arrow(path, table_of(p)))
            done["songs"][split] = len(part)
    replace_file(folder / f"{number:06d}.json", lambda path: path.write_text(json.dumps(done), encoding="utf-8"))
    return done


def _write_arrow(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


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
        path = self.folder / f"{number:06d}.json"
        replace_file(path, lambda p: p.write_text(json.dumps(done), encoding="utf-8"))
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
        source: a folder of MIDI files, an archive (`.zip`, `.tar`, `.tar.xz`, `.tar.gz`), a training pack
            (`manifest.csv`), a data set with MIDI bytes (`datasets` object, saved folder, `.parquet`, `owner/name` of
            the Hub), or a list of these.
        output_dir: the folder to make. An interrupted build is taken up; a finished one of the same source and
            options is opened.
        chords: "estimate" (where neither an annotation nor the file gives them), "annotated" or "none".
        selection: corpora, variants and licences of a training pack.
        split_from_folders: the names of the folders (train, validation, test, ...) are the splits.
        shares: of validation and test for songs without a split; decided by a hash of their notes and `seed`.
        column: of the MIDI bytes in a data set.
        config: configuration of a data set that has several.
        revision: branch, tag or commit of a data set of the Hub; a commit pins the data. By default the newest.
        num_proc: processes; by default one, or up to one a core from 2000 files on.
        chunk_files: files of a chunk, the unit of work and of resuming.
        overwrite: replace a finished data set of another source or other options.
        progress: show a bar; by default on a terminal.
        materialize: also draw examples once and keep their token ids, in `output_dir/examples/SPLIT` (for training
            that is to read fixed ids; otherwise examples are drawn afresh every epoch).
        recipe, packs: of these examples: an `ExampleRecipe`, and how many packs of each split (by default as many
            tokens as the split's notes have).

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
    from .fixed_examples import materialize_splits

    return materialize_splits(data, Path(output_dir) / "examples", recipe, packs, seed, overwrite, progress)


def build_from(sources: list, output_dir, options: BuildOptions, *, num_proc=None, overwrite=False, progress=None):
    """`build_dataset` on opened sources."""
    from .dataset import open_dataset

    target = Path(output_dir)
    plan = _plan(sources, options)
    if target.exists():
        if _plan_of(target / "report.json") == plan["digest"]:
            return open_dataset(target)
        known = (target / "report.json").is_file()
        if not (known and overwrite) and any(target.iterdir() if target.is_dir() else [target]):
            what = "a data set of another source, another release or other options" if known else "something else"
            remedy = "choose another folder, or overwrite it (--overwrite)" if known else "choose another folder"
            raise DataError(f"{target} holds {what}: {remedy}", "data.output")
    work = target.with_name(f"{target.name}.partial")
    if work.exists() and _plan_of(work / "plan.json") != plan["digest"]:
        shutil.rmtree(work)
    try:
        (work / "chunks").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write {work}: {error.strerror or error}", "data.output") from None
    replace_file(work / "plan.json", lambda p: p.write_text(json.dumps(plan, indent=1), encoding="utf-8"))
    total = sum(len(s) for s in sources)
    if num_proc is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        num_proc = min(cores, total // 1000) if total >= 2000 else 1
    count = _run_chunks(sources, work, options, num_proc, total, progress)
    # only files with names can have a metadata table beside them
    _finish(work, target, plan, count, [name for s in sources for name in getattr(s, "unmatched", ())])
    return open_dataset(target)


def _plan(sources: list, options: BuildOptions) -> dict:
    plan = {"version": FORMAT_VERSION, "rules": RULES, "options": vars(options)}
    plan["sources"] = [s.identity() for s in sources]
    text = json.dumps(plan, sort_keys=True)
    return {**plan, "digest": hashlib.sha256(text.encode()).hexdigest()[:32]}


def _plan_of(path: Path) -> str | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["digest"]
    except (OSError, ValueError, KeyError):
        return None


def _run_chunks(sources, work: Path, options: BuildOptions, num_proc: int, total: int, progress) -> int:
    folder = work / "chunks"
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


def _finish(work: Path, target: Path, plan: dict, count: int, unmatched: list[str]) -> None:
    """Chunks -> `DatasetDict` and report in `target`."""
    from datasets import Dataset, concatenate_datasets

    folder = work / "chunks"
    done = [json.loads((folder / f"{n:06d}.json").read_text(encoding="utf-8")) for n in range(count)]
    skipped = [problem for chunk in done for problem in chunk["skipped"]]
    if not any(chunk["songs"] for chunk in done):
        few = "; ".join(f"{p['file']}: {p['message']}" for p in skipped[:3])
        shutil.rmtree(work)  # there is nothing to go on with
        raise DataError(f"none of {sum(c['files'] for c in done)} files could be used ({few})", "data.source")
    splits = {}
    for split in SPLITS:
        parts = [folder / f"{n:06d}-{split}.arrow" for n in range(count) if split in done[n]["songs"]]
        if parts:
            whole = concatenate_datasets([Dataset.from_file(str(p)) for p in parts])
            whole._fingerprint = hashlib.sha256(f"{plan['digest']}-{split}".encode()).hexdigest()[:16]
            splits[split] = whole
    ready = work / "ready"
    if ready.exists():
        shutil.rmtree(ready)
    save_splits(splits, ready)
    unknown = sum((Counter(chunk["genres_without_token"]) for chunk in done), Counter())
    ineffective = {
        "genres_without_token": dict(sorted(unknown.items(), key=lambda item: (-item[1], item[0]))),
        "metadata_without_file": {"rows": len(unmatched), "first": unmatched[:5]},
        "copies_across_splits": _copies_across(splits),
    }
    write_report(ready, plan, sum(c["files"] for c in done), splits, skipped, ineffective)
    if target.exists():
        gone = work / "replaced"
        target.rename(gone)
    ready.rename(target)
    shutil.rmtree(work)


def _copies_across(splits: dict) -> list[list[str]]:
    """Songs of one cluster that labels have put into several splits: `[["test: a.mid", "train: b.mid"], ...]`."""
    places: dict[str, dict[str, str]] = {}
    for split, data in splits.items():
        table = data.data.table
        for cluster, path in zip(table["cluster"].to_pylist(), table["path"].to_pylist()):
            places.setdefault(cluster, {}).setdefault(split, path)
    return [[f"{split}: {path}" for split, path in found.items()] for found in places.values() if len(found) > 1]


def save_splits(splits: dict, folder: Path) -> None:
    """`{split: Dataset}` -> what `datasets.load_from_disk` reads, without bars of its own."""
    from datasets import DatasetDict
    from datasets.utils import disable_progress_bars, enable_progress_bars, is_progress_bar_enabled

    shown = is_progress_bar_enabled()
    disable_progress_bars()
    try:
        DatasetDict(splits).save_to_disk(str(folder))
    finally:
        if shown:
            enable_progress_bars()


def write_report(
    folder: Path, plan: dict, files: int, splits: dict, skipped: list[dict[str, str]], ineffective: dict | None = None
) -> None:
    """`report.json` (counts, plan, labels that had no effect, skipped files) and `skipped.csv`."""
    counts = {}
    for name, data in splits.items():
        table = data.data.table
        counts[name] = {
            "songs": data.num_rows,
            "notes": int(sum(len(c.flatten()) for c in table["note_pitch"].chunks)),
            "bars": int(sum(len(c.flatten()) for c in table["bar_length"].chunks)),
            "corpora": dict(sorted(Counter(table["corpus"].to_pylist()).items())),
            "chords": dict(sorted(Counter(v or "none" for v in table["chord_source"].to_pylist()).items())),
            "keys": dict(sorted(Counter(v or "none" for v in table["key_source"].to_pylist()).items())),
        }
    report = {
        "version": FORMAT_VERSION,
        "digest": plan["digest"],
        "plan": {k: v for k, v in plan.items() if k != "digest"},
        "files": files,
        "splits": counts,
        **(ineffective or {}),
        "skipped": skipped,
    }
    (folder / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with open(folder / "skipped.csv", "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, ["file", "code", "message"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(skipped)
