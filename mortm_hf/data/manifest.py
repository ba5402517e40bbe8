"""The manifest of a training pack, and one sequential pass over its archives.

Design decisions
- A pack is a folder with `manifest.csv` (one row per MIDI file) and `.tar.xz` archives. `.tar.xz` has no random
  access, so `read_archive` walks each archive once and hands out only the members that were asked for.
- Which files take part is a `Selection`: corpora, split, variants and a licence filter, all plain strings, so that a
  recipe can state it and a report can repeat it.
- Nothing is unpacked to disk: members go from the archive to the caller as bytes.

Knows: the columns of the manifest, tar archives. Must not know: MIDI, tokens, models.
"""

from __future__ import annotations

import csv
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path


@dataclass(frozen=True)
class SongFile:
    """One MIDI file and what is known of it; in a pack a row of the manifest.

    Attributes:
        path: of the file, in its archive or folder.
        archive: name of the archive that holds it, "" where it lies beside the manifest.
        corpus: name of the collection.
        genre: label, as the source spells it.
        subgenre: a closer label.
        split: "train", "validation", "test" or "".
        variant: which arrangement or version it is.
        song_id: name of the song, shared by its variants.
        cluster: what must not cross splits.
        key: as the source spells it.
        licence: as the source states it.
        n_notes: of the file, 0 where it is not known.
        n_bars: of the file, 0 where it is not known.
        annotations: names of the files that annotate it.
    """

    path: str
    archive: str = ""
    corpus: str = ""
    genre: str = ""
    subgenre: str = ""
    split: str = ""
    variant: str = ""
    song_id: str = ""
    cluster: str = ""
    key: str = ""
    licence: str = ""
    n_notes: int = 0
    n_bars: int = 0
    annotations: tuple[str, ...] = ()


@dataclass(frozen=True)
class CorpusFilter:
    """Which files of one corpus take part.

    Attributes:
        variants: accepted values of the `variant` column; empty accepts all.
        licence: text that the `licence` column must contain; empty accepts all.
    """

    variants: tuple[str, ...] = ()
    licence: str = ""


@dataclass(frozen=True)
class Selection:
    """Corpora to read; their splits come from the manifest and are never re-drawn.

    Attributes:
        corpora: `{corpus: CorpusFilter}`.
    """

    corpora: dict[str, CorpusFilter] = field(default_factory=dict)

    def accepts(self, song: SongFile, split: str) -> bool:
        """Whether a file takes part in a split.

        Args:
            song: row of the manifest.
            split: name of the split.
        """
        return song.split == split and self.takes(song.corpus, song.variant, song.licence)

    def takes(self, corpus: str, variant: str, licence: str) -> bool:
        """Whether a file with these labels takes part, whatever its split.

        Args:
            corpus: its corpus.
            variant: its variant.
            licence: its licence.
        """
        rule = self.corpora.get(corpus)
        return rule is not None and (not rule.variants or variant in rule.variants) and rule.licence in licence


def read_manifest(root: str | Path) -> list[SongFile]:
    """All rows of `root/manifest.csv`.

    Raises:
        FileNotFoundError: no manifest there (the message names the folder).
        ValueError: a column is missing.
    """
    path = Path(root) / "manifest.csv"
    if not path.is_file():
        raise FileNotFoundError(f"no manifest.csv in {root}: give the folder of a training pack")
    with open(path, newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        needed = {"path", "archive", "corpus", "split", "variant", "song_id", "licence"}
        missing = needed - set(reader.fieldnames or ())
        if missing:
            raise ValueError(f"{path}: columns missing: {', '.join(sorted(missing))}")
        return [_song_file(row) for row in reader]


def _song_file(row: dict[str, str]) -> SongFile:
    labels = {field.name: row.get(field.name) or "" for field in fields(SongFile)}
    labels["cluster"] = labels["cluster"] or labels["song_id"]
    labels |= {name: int(labels[name] or 0) for name in ("n_notes", "n_bars")}
    return SongFile(**labels | {"annotations": tuple(labels["annotations"].split())})


def read_archive(path: str | Path, wanted: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Wanted members of one `.tar.xz`, in archive order, in a single sequential pass.

    Args:
        path: of the archive.
        wanted: names of members.

    Yields:
        Name and bytes of each.

    Raises:
        FileNotFoundError: the archive is not there.
        KeyError: members that were asked for and are not in the archive (after the pass; all of them named).
    """
    left = set(wanted)
    if not Path(path).is_file():
        raise FileNotFoundError(f"archive {path} is not there (named in the manifest)")
    with tarfile.open(path, "r|xz") as archive:
        for member in archive:
            if member.name in left and member.isfile():
                left.discard(member.name)
                handle = archive.extractfile(member)
                if handle is not None:
                    yield member.name, handle.read()
                if not left:
                    return
    if left:
        raise KeyError(f"{path}: members not found: {', '.join(sorted(left)[:5])} ({len(left)} in all)")
