"""Where MIDI is read from: folders, archives, training packs and `datasets` data sets, all as chunks of files.

Design decisions
- A source is cut into chunks of files by its listing alone, in an order that never changes; a chunk is read only when
  it is asked for, so that an interrupted preparation passes over what it has already done.
- `.tar` archives have no random access: their members are read in archive order, in one pass. Nothing is unpacked to
  disk.
- What is known of a file is a `SongFile`, wherever it stands: in a manifest, in a `metadata.csv` or `.jsonl` beside
  the files (column `file_name`), in the columns of a data set, or in the names of the folders.
- Rows of such a table that name no MIDI file are kept by name (`unmatched`), for the report.
- Chord files beside the MIDI files are found by the rules of `annotations`.

Knows: files, archives, `datasets`. Must not know: what is in a MIDI file, how songs are stored.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import lzma
import os
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from ..models.errors_mortm import DataError
from .annotations import chord_file_of, chord_names, is_chord_name
from .manifest import Selection, SongFile, read_archive, read_manifest


MIDI_SUFFIXES = (".mid", ".midi", ".kar")
TAR_SUFFIXES = (".tar", ".tar.xz", ".tar.gz", ".tgz", ".tar.bz2")
BROKEN = (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error)  # what a damaged archive raises
SPLITS = ("train", "validation", "test")
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "valid": "validation",
    "validation": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
}
MIDI_COLUMNS = ("music", "midi", "bytes", "content", "file", "midi_bytes")
_NAME_COLUMNS = ("file_name", "filename", "path", "name", "title", "md5", "id")


@dataclass(frozen=True)
class Entry:
    """One file to read.

    Attributes:
        row: its labels.
        content: its bytes, or the path to read them from; `None` where it is missing.
        chords: text of its chord annotation.
    """

    row: SongFile
    content: bytes | Path | None
    chords: str | None = None


@dataclass(frozen=True)
class Chunk:
    """Some files of a source.

    Attributes:
        size: how many.
        load: gives an `Entry` for each, in order.
    """

    size: int
    load: Callable[[], list[Entry]]


def split_word(text: str) -> str | None:
    """The split that a folder or split name stands for."""
    return _SPLIT_WORDS.get(text.strip().lower())


def bare_row(path: str, corpus: str, **labels) -> SongFile:
    """Labels of a file of which little but the name is known.

    Args:
        path: of the file.
        corpus: name of the collection.
        labels: further fields of `SongFile`; empty ones do not count.
    """
    known = {name: value for name, value in labels.items() if value not in (None, "")}
    return SongFile(**{"path": path, "corpus": corpus, "song_id": path} | known)


def _stem(name: str) -> str:
    """File name without archive suffixes."""
    for suffix in sorted((*TAR_SUFFIXES, ".zip"), key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def _place_labels(path: str, container: str) -> dict[str, str]:
    """Corpus and split by the names of the folders and of the archive."""
    parts = list(PurePosixPath(path).parts[:-1])
    stem, dash, tail = _stem(container).rpartition("-")
    split = next((s for part in reversed(parts) if (s := split_word(part))), None) or split_word(tail)
    if not dash or split_word(tail) is None:
        stem = _stem(container)
    named = [part for part in parts if split_word(part) is None]
    return {"corpus": named[0] if named else stem, "split": split or ""}


def row_of_record(record: Mapping, path: str, place: Mapping[str, str], folder_split: str = "") -> SongFile:
    """Labels of a file from a record of named values (a row of a table).

    Args:
        record: the values by name.
        path: of the file.
        place: corpus where the record has none.
        folder_split: split where the record has none.
    """

    def text(*names: str) -> str:
        return next((str(record[n]).strip() for n in names if record.get(n) not in (None, "", [])), "")

    genre = record.get("genre")
    genre = genre[0] if isinstance(genre, (list, tuple)) and genre else genre
    split = text("split")
    return bare_row(
        path,
        text("corpus", "dataset", "source_dataset") or place["corpus"],
        genre=str(genre).strip().lower() if genre else "",
        subgenre=text("subgenre", "style"),
        split=(split_word(split) or split) if split else folder_split,
        variant=text("variant"),
        song_id=text("song_id") or path,
        cluster=text("cluster"),
        key=text("key"),
        licence=text("licence", "license"),
    )


def _read_metadata(name: str, content: bytes) -> dict[str, dict]:
    """`{file_name: record}` of a `metadata.csv` or `metadata.jsonl`."""
    text = content.decode("utf-8-sig", errors="replace")
    if name.endswith(".csv"):
        records = list(csv.DictReader(io.StringIO(text)))
    else:
        try:
            records = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError as error:
            raise DataError(f"{name} is not one JSON object a line: {error}", "data.column") from None
    if not all(isinstance(record, dict) and "file_name" in record for record in records):
        raise DataError(f"{name} has rows without a file_name: name the MIDI files in that column", "data.column")
    return {str(record["file_name"]): record for record in records}


def _is_midi(name: str) -> bool:
    return name.lower().endswith(MIDI_SUFFIXES) and not PurePosixPath(name).name.startswith("._")


class _NamedFiles:
    """Files with names in one container: the part that folders, tar and zip archives share.

    Sub-classes give `_list()` (every name, in reading order) and `_read(names)` (their bytes, in that order).
    """

    def __init__(self, path: Path, split_from_folders: bool):
        self.path, self.split_from_folders = Path(path), split_from_folders
        self._rows: list[SongFile] | None = None
        self._chords: list[str | None] = []
        self._unmatched: list[str] = []

    def _scan(self) -> None:
        names = self._list()
        everything = set(names)
        metadata: dict[str, dict] = {}
        for name in ("metadata.csv", "metadata.jsonl"):
            if name in everything:
                metadata = _read_metadata(str(self.path / name), self._side_file(name))
                break
        music = [name for name in names if _is_midi(name)]
        in_folder = Counter(PurePosixPath(name).parent for name in music)
        self._unmatched = sorted(metadata.keys() - set(music))
        self._rows, self._chords = [], []
        for name in music:
            place = _place_labels(name, self.path.name)
            split = place["split"] if self.split_from_folders else ""
            row = row_of_record(metadata.get(name, {}), name, place, split)
            if self.split_from_folders and row.split not in SPLITS:
                raise DataError(
                    f"{self.path}: {name} is in no folder named train, validation or test: move it, or leave out "
                    "--split-from-folders",
                    "data.option",
                )
            self._rows.append(row)
            self._chords.append(chord_file_of(name, everything, in_folder[PurePosixPath(name).parent] == 1))

    @property
    def rows(self) -> list[SongFile]:
        if self._rows is None:
            self._scan()
        return self._rows

    @property
    def unmatched(self) -> list[str]:
        """What the metadata names and is no MIDI file here."""
        return self._unmatched if self.rows is not None else []

    def __len__(self) -> int:
        return len(self.rows)

    def chunks(self, size: int) -> Iterator[Chunk]:
        for start in range(0, len(self.rows), size):
            part = slice(start, start + size)
            yield Chunk(len(self.rows[part]), lambda p=part: self._load(p))

    def _load(self, part: slice) -> list[Entry]:
        rows, chords = self.rows[part], self._chords[part]
        contents = self._read([row.path for row in rows])
        texts = [None if c is None else self._side_file(c).decode("utf-8", errors="replace") for c in chords]
        return [Entry(row, content, text) for row, content, text in zip(rows, contents, texts)]

    def name_of(self, path: str) -> str:
        """The name of a file of this source for the user."""
        return str(self.path / path)

    def identity(self):
        stat = self.path.stat()
        return [type(self).__name__, self.path.name, stat.st_size, stat.st_mtime_ns, self.split_from_folders]


class FolderSource(_NamedFiles):
    """Every MIDI file below a folder; workers read the files themselves."""

    def _list(self) -> list[str]:
        found = []
        for folder, folders, names in os.walk(self.path):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            relative = Path(folder).relative_to(self.path)
            found += [(relative / name).as_posix() for name in names if not name.startswith(".")]
        return sorted(found)

    def _read(self, names):
        return [self.path / name for name in names]

    def _side_file(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def identity(self):
        """What changes when a file, its annotation or a label does."""
        digest = hashlib.sha256()
        for row, chords in zip(self.rows, self._chords):
            for name in (row.path, chords) if chords else (row.path,):
                stat = (self.path / name).stat()
                digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
            digest.update(json.dumps(asdict(row)).encode())
        digest.update(json.dumps(self.unmatched).encode() if self.unmatched else b"")
        return ["FolderSource", len(self.rows), digest.hexdigest(), self.split_from_folders]


class FilesSource(FolderSource):
    """MIDI files named one by one.

    Args:
        files: their paths.
        split_from_folders: the names of the folders are the splits.
    """

    def __init__(self, files: list[Path], split_from_folders: bool):
        super().__init__(Path(os.path.commonpath([f.resolve().parent for f in files])), split_from_folders)
        self._given = {f.resolve().relative_to(self.path).as_posix(): str(f) for f in files}
        self._files = sorted(self._given)

    def name_of(self, path: str) -> str:
        """The name of a file as it was given."""
        return self._given[path]

    def _list(self) -> list[str]:
        folders = {(self.path / f).parent for f in self._files}
        # a file is alone in its folder, not among those that were named
        alone = {f for f in folders if sum(_is_midi(n) and not n.startswith(".") for n in os.listdir(f)) == 1}
        sides = {s for f in self._files for s in chord_names(f, (self.path / f).parent in alone)}
        return [*self._files, *(s for s in sorted(sides) if (self.path / s).is_file())]


class ZipSource(_NamedFiles):
    """Every MIDI file in a `.zip`.

    Args:
        path: of the archive.
        split_from_folders: the names of the folders in it are the splits.

    Raises:
        DataError: the archive cannot be read.
    """

    def __init__(self, path, split_from_folders):
        super().__init__(path, split_from_folders)
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"cannot read the archive {path}: {error}") from None

    def _list(self) -> list[str]:
        return [info.filename for info in self._zip.infolist() if not info.is_dir()]

    def _read(self, names):
        return [self._side_file(name) for name in names]

    def _side_file(self, name: str) -> bytes:
        try:
            return self._zip.read(name)
        except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError):  # damaged, or behind a password
            return b""


class TarSource(_NamedFiles):
    """Every MIDI file in a `.tar`, plain or compressed: one pass for the names and annotations, one for the files.

    Args:
        path: of the archive.
        split_from_folders: the names of the folders in it are the splits.
    """

    def __init__(self, path, split_from_folders):
        super().__init__(path, split_from_folders)
        self._sides: dict[str, bytes] = {}
        self._stream = None

    def _members(self):
        try:
            with tarfile.open(self.path, "r|*") as archive:
                for member in archive:
                    if member.isfile():
                        yield archive, member
        except BROKEN as error:
            raise DataError(f"cannot read the archive {self.path}: {error}") from None

    def _list(self) -> list[str]:
        names: dict[str, None] = {}
        for archive, member in self._members():
            names[member.name] = None
            if is_chord_name(member.name) or member.name in ("metadata.csv", "metadata.jsonl"):
                self._sides[member.name] = archive.extractfile(member).read()
        return list(names)

    def _read(self, names):
        # Chunks come in archive order, so one stream serves them all; a chunk out of order opens it again.
        wanted, found = list(names), {}
        for attempt in range(2):
            if self._stream is None or attempt:
                self._stream = self._members()
            left = set(wanted) - set(found)
            for archive, member in self._stream:
                if member.name in left:
                    found[member.name] = archive.extractfile(member).read()
                    left.discard(member.name)
                    if not left:
                        break
            if not left:
                break
        return [found.get(name, b"") for name in wanted]

    def _side_file(self, name: str) -> bytes:
        return self._sides[name]


class PackSource:
    """A training pack: `manifest.csv` and its archives (or the files themselves beside it).

    Args:
        root: folder of the pack.
        rows: files that take part; in the order of archives, then of the manifest.
    """

    unmatched = ()

    def __init__(self, root: str | Path, rows: list[SongFile]):
        self.path = Path(root)
        self.rows = sorted(rows, key=lambda row: row.archive)  # stable: the manifest's order inside an archive
        self._open: tuple[str, dict[str, bytes]] | None = None

    @classmethod
    def select(cls, root: str | Path, selection: Selection | None = None, split: str | None = None) -> PackSource:
        """The files of a pack that a selection accepts.

        Args:
            root: folder of the pack.
            selection: corpora, variants and licences; all by default.
            split: only this split; all by default.
        """
        rows = read_manifest(root)
        if selection is not None and selection.corpora:
            rows = [row for row in rows if selection.accepts(row, split or row.split)]
        elif split is not None:
            rows = [row for row in rows if row.split == split]
        return cls(root, rows)

    def __len__(self) -> int:
        return len(self.rows)

    def chunks(self, size: int) -> Iterator[Chunk]:
        """The files in chunks of at most `size`, none of two archives."""
        start = 0
        while start < len(self.rows):
            stop = start
            while stop < min(start + size, len(self.rows)) and self.rows[stop].archive == self.rows[start].archive:
                stop += 1
            rows = self.rows[start:stop]
            yield Chunk(len(rows), lambda r=rows: self._load(r))
            start = stop

    def _load(self, rows: list[SongFile]) -> list[Entry]:
        archive = rows[0].archive
        if not archive or (not (self.path / archive).is_file() and (self.path / rows[0].path).is_file()):
            return [Entry(row, self.path / row.path, self._loose_chords(row)) for row in rows]
        if self._open is None or self._open[0] != archive:
            wanted = {n for row in self.rows if row.archive == archive for n in (row.path, *chord_files(row))}
            content: dict[str, bytes] = {}
            try:
                for name, data in read_archive(self.path / archive, wanted):
                    content[name] = data
            except KeyError:
                pass  # a member that is not there is one skipped file, not the end of a preparation
            except FileNotFoundError:
                raise
            except BROKEN as error:
                raise DataError(f"cannot read the archive {self.path / archive}: {error}") from None
            self._open = archive, content
        content = self._open[1]
        return [Entry(row, content.get(row.path), _chord_text(row, content)) for row in rows]

    def _loose_chords(self, row: SongFile) -> str | None:
        for name in chord_files(row):
            if (self.path / name).is_file():
                return (self.path / name).read_text(encoding="utf-8", errors="replace")
        return None

    def name_of(self, path: str) -> str:
        """The name of a file of this source for the user."""
        return str(self.path / path)

    def identity(self):
        """What changes when a row or an archive does."""
        archives = []
        for name in sorted({row.archive for row in self.rows}):
            file = self.path / name
            archives.append([name, file.stat().st_size if name and file.is_file() else 0])
        rows = hashlib.sha256(json.dumps([asdict(row) for row in self.rows]).encode()).hexdigest()
        return ["PackSource", len(self.rows), rows, archives]


def chord_files(row: SongFile) -> list[str]:
    """Chord annotations that fit the MIDI file of this row (an aligned file has chords in its own ticks)."""
    if row.variant == "aligned":
        return [name for name in row.annotations if name.endswith(".aligned.chords.tsv")]
    return [name for name in row.annotations if name.endswith("chord_midi.txt")]


def _chord_text(row: SongFile, content: Mapping[str, bytes]) -> str | None:
    for name in chord_files(row):
        if name in content:
            return content[name].decode("utf-8", errors="replace")
    return None


class DatasetSource:
    """A data set with MIDI bytes in one column.

    Labels are read from columns of the manifest's names (file_name, split, genre, key, chords, ...); the names of the
    splits of a `DatasetDict` count as splits.

    Args:
        data: `datasets.Dataset` or `DatasetDict`.
        name: corpus of files whose record names none.
        column: of the MIDI bytes; by default the first of `MIDI_COLUMNS` that is there.

    Raises:
        DataError: no such column, or no data set.
    """

    unmatched = ()

    def __init__(self, data, name: str = "dataset", column: str | None = None):
        from datasets import Dataset, DatasetDict

        if isinstance(data, Dataset):
            self._parts = {"": data}
        elif isinstance(data, DatasetDict):
            self._parts = dict(data)
        else:
            raise DataError(f"expected a datasets.Dataset or DatasetDict, got {type(data).__name__}")
        self.name = name
        self._columns = {}
        for key, part in self._parts.items():
            choice = [column] if column else [c for c in MIDI_COLUMNS if c in part.column_names]
            if not choice or choice[0] not in part.column_names:
                raise DataError(
                    f"{name} has no column of MIDI bytes (looked for {column or ', '.join(MIDI_COLUMNS)}; there are "
                    f"{', '.join(part.column_names)}): name it with --column",
                    "data.column",
                )
            self._columns[key] = choice[0]

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts.values())

    def chunks(self, size: int) -> Iterator[Chunk]:
        """The rows in chunks of at most `size`, none of two splits."""
        for key, part in self._parts.items():
            for start in range(0, len(part), size):
                stop = min(start + size, len(part))
                yield Chunk(stop - start, lambda k=key, a=start, b=stop: self._load(k, a, b))

    def _load(self, key: str, start: int, stop: int) -> list[Entry]:
        part, column = self._parts[key].with_format("arrow"), self._columns[key]
        entries = []
        for number, record in enumerate(part[start:stop].to_pylist(), start):
            value = record.pop(column)
            file_name = None
            if isinstance(value, Mapping):  # {"bytes": ..., "path": ...}, as file features are stored
                file_name, value = value.get("path"), value.get("bytes")
            if isinstance(value, list):
                value = bytes(value)
            if isinstance(value, str):
                value = Path(value)
            names = (str(record[n]) for n in _NAME_COLUMNS if record.get(n))
            path = next(names, None) or file_name or f"{key or 'row'}-{number:07d}"
            chords = record.get("chords") if isinstance(record.get("chords"), str) else None
            place = {"corpus": self.name, "split": ""}
            row = row_of_record(record, path, place, split_word(key) or key)
            entries.append(
                Entry(row, value if value is not None else b"", chords if isinstance(chords, str) else None)
            )
        return entries

    def name_of(self, path: str) -> str:
        """The name of a file of this source for the user."""
        return path

    def identity(self):
        """What changes when the data set does."""
        return ["DatasetSource", self.name, [[k, len(p), p._fingerprint] for k, p in self._parts.items()]]
