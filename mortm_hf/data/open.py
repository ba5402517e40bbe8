"""The door to songs: opens whatever a user names.

What there is to name, and how it is recognised, stands in `sources` (`kind_of`). Its songs come by these rules:

| kind | `build_store` (training) | `read_songs` (one's own songs) | `open_split` (measuring) | splits |
|---|---|---|---|---|
| pack | read, or prepared in the cache | read | as `build_store` | of the manifest |
| saved, hub | opened | opened, alone | opened | of the data set |
| folder, midi, archive | prepared in the cache | read | as `read_songs` | labels; training draws the rest |
| object, table | prepared in the cache | tables are skipped | as `read_songs` | labels; training draws the rest |

Design decisions
- Chords: a pack has its annotations only; music that is prepared or read gets estimated chords where it has none.
  Only annotated chords are measured against.
- Songs that a checkpoint was trained on or selected by (`checkpoint_songs`) are never in what is called test, whatever
  they are called and wherever they lie: songs are known by their notes.
- One's own songs have no split that is drawn here, only those that their labels give; whoever trains draws the rest.
- A file that cannot be used is listed with the reason and never ends the reading.

Knows: sources, data sets, songs. Must not know: tokens, models, recipes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..models.errors_mortm import DataError
from ..models.music_score import MetricScore
from .build import BuildOptions, build_dataset, build_from, read_entries
from .checkpoint_songs import USED
from .dataset import open_dataset
from .manifest import Selection, read_manifest
from .midi_sources import SPLITS, PackSource
from .schema import FORMAT_VERSION, Song
from .score_store import ScoreStore, load_songs
from .song_reading import fingerprint
from .sources import kind_of, open_sources


OWN_CORPUS = "songs"
_CHUNK = 32  # files between two steps of the progress bar


def build_store(
    root: str | Path, selection: Selection, split: str, cache: str | Path | None = None, num_proc: int | None = None
) -> ScoreStore:
    """The chosen songs of one split, prepared where they are not yet.

    Files that cannot be read are listed in `skipped` with the reason. Packs keep only annotated chords here (as every
    run of a recipe on a pack had them).

    Args:
        root: a prepared data set (folder or `owner/name`), a training pack, or any source of `build_dataset`.
        selection: corpora, variants and licences; one that names no corpus takes everything.
        split: "train", "validation" or "test".
        cache: folder for what is prepared here; the same choice of the same pack is opened again instead of built.
            Without it a pack is read into memory; other sources need it.
        num_proc: processes of the preparation.

    Raises:
        DataError: no songs there, or no place to prepare them.
        FileNotFoundError: no pack there (the message names the folder).
    """
    kind = kind_of(str(root))
    if kind == "pack" or (kind == "folder" and selection.corpora):
        return _from_pack(Path(root), selection, split, cache, num_proc)
    if kind in ("saved", "hub"):
        return load_songs(str(root), split, selection)
    if kind == "missing":
        read_manifest(root)  # says what is expected there
    if cache is None:
        raise DataError(f"{root} must be prepared first: `mortm data build {root} -o FOLDER`, or give a cache folder")
    name = hashlib.sha256(str(Path(root).resolve()).encode()).hexdigest()[:16]
    target = Path(cache) / f"songs-{name}"
    data = build_dataset(str(root), target, num_proc=num_proc, overwrite=True)
    if split not in data and split != "train":
        return ScoreStore([])
    return load_songs(str(target), split, selection)


def _from_pack(root: Path, selection: Selection, split: str, cache, num_proc: int | None) -> ScoreStore:
    source = PackSource.select(root, selection, split)
    options = BuildOptions(chords="annotated")
    if cache is None or not len(source):
        songs, skipped = [], []
        for chunk in source.chunks(options.chunk_files):
            more, problems = read_entries(chunk.load(), options)
            songs += more
            skipped += [(p["file"], p["message"]) for p in problems]
        return ScoreStore(songs, skipped)
    text = json.dumps([FORMAT_VERSION, [asdict(row) for row in source.rows]], sort_keys=True)
    target = Path(cache) / f"{split}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if kind_of(target) != "saved":
        build_from([source], target, options, num_proc=num_proc or 1)
    return load_songs(target)


# ---------------------------------------------------------------------------------------------------------------------
# One's own songs


def read_songs(
    inputs: Sequence[str | os.PathLike], chords: str = "estimate"
) -> tuple[list[Song], list[dict[str, str]]]:
    """Every song that can be used, once each.

    The very same notes under two names count once, and are held out as far as any of their labels says.

    Args:
        inputs: MIDI files, folders, archives and packs, or one prepared data set.
        chords: "estimate" where neither an annotation nor the file gives them, or "annotated": only those.

    Returns:
        The songs, named as they were given and in the splits of their labels ("" where these name none); and
        `{"file", "reason"}` of what is left out.

    Raises:
        DataError: a data set among other inputs, a folder without music, something that is not there.
    """
    kinds = [kind_of(one) for one in inputs]
    prepared = [one for one, kind in zip(inputs, kinds) if kind in ("saved", "hub")]
    if prepared:
        if len(kinds) > 1:
            raise DataError(f"{prepared[0]} is a prepared data set: it can only be read alone")
        store = load_songs(prepared[0], estimated_chords=chords == "estimate")
        return _once(list(store.songs), [{"file": name, "reason": reason} for name, reason in store.skipped])
    songs, skipped, files = [], [], []
    for one, kind in zip(inputs, kinds):
        if kind == "midi":
            files.append(one)
        elif kind in ("table", "other"):
            skipped.append({"file": str(one), "reason": "no MIDI file"})
        else:
            _read(one, chords, songs, skipped)
    if files:
        _read(files, chords, songs, skipped)
    return _once(songs, skipped)


def _read(named, chords: str, songs: list[Song], skipped: list[dict[str, str]]) -> None:
    """Add the songs of what is named, in the splits of their labels."""
    options = BuildOptions(chords=chords)
    for source in open_sources(named):
        reason = "the metadata names it, but it is no MIDI file"
        skipped += [{"file": name, "reason": reason} for name in source.unmatched]
        with tqdm(total=len(source), desc="reading", unit="file", disable=None, leave=False) as bar:
            for chunk in source.chunks(_CHUNK):
                entries = chunk.load()
                labelled = {entry.row.path: entry.row.split for entry in entries}
                found, problems = read_entries(entries, options)
                songs += [replace(s, path=source.name_of(s.path), split=labelled[s.path]) for s in found]
                for problem in problems:
                    name, note = problem["file"].removesuffix(" (chords)"), problem["message"]
                    note = f"its chord annotation is left out: {note}" if name != problem["file"] else note
                    skipped.append({"file": source.name_of(name), "reason": note})
                bar.update(chunk.size)


def _once(songs: list[Song], skipped: list[dict[str, str]]) -> tuple[list[Song], list[dict[str, str]]]:
    """The first of songs with the very same notes, held out as far as any of them is."""
    kept: dict[str, Song] = {}
    for song in songs:
        digest = _digest(song.score)
        first = kept.get(digest)
        if first is None:
            kept[digest] = replace(song, corpus=OWN_CORPUS, song_id=digest[:16])
            continue
        skipped.append({"file": song.path, "reason": f"the same notes as {first.path}"})
        farthest = max(first.split, song.split, key=("", *SPLITS).index)
        kept[digest] = replace(first, split=farthest, genre=first.genre or song.genre)
    return list(kept.values()), skipped


def _digest(score: MetricScore) -> str:
    """Identifies the notes of a score, instruments and lengths included."""
    columns = (score.programs[score.track], score.onset, score.pitch, score.duration)
    return hashlib.sha256(np.stack([np.asarray(c, np.int64) for c in columns]).tobytes()).hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Songs to measure on


@dataclass(frozen=True)
class SplitSongs:
    """The songs of one split, and the way to those of the others.

    Attributes:
        songs: of the split.
        name: words for the split, for reports.
        train: gives the songs of the train split; `None` where there are none, or they are the split itself.
        validation: the same of the validation split, which only a test split has.
    """

    songs: ScoreStore
    name: str
    train: Callable[[], ScoreStore] | None = None
    validation: Callable[[], ScoreStore] | None = None

    def without(self, members: Mapping[str, str]) -> SplitSongs:
        """The same without the songs that a checkpoint was made with.

        Args:
            members: `{fingerprint: split}`, as `read_members` gives them.
        """
        kept = [song for song in self.songs.songs if fingerprint(song.score) not in members]
        gone = len(self.songs) - len(kept)
        words = f"{self.name} but {gone} songs that the model was made with"
        return replace(self, songs=ScoreStore(kept, self.songs.skipped), name=words) if gone else self


def open_split(
    source: str | os.PathLike,
    split: str | None = None,
    selection: Selection | None = None,
    cache: str | Path | None = None,
    members: Mapping[str, str] | None = None,
) -> SplitSongs:
    """Songs to measure a checkpoint on, with annotated chords only.

    Args:
        source: anything that a user names.
        split: "train", "validation" or "test"; by default "test", or all songs of what has no splits.
        selection: corpora, variants and licences of a pack or a data set; all by default.
        cache: folder for what is prepared of a pack.
        members: `{fingerprint: split}` of the songs that the checkpoint was made with: the splits of what has none.

    Raises:
        DataError: nothing there, nothing that can be read, or no such split.
        FileNotFoundError: an archive of a pack is not there.
    """
    kind = kind_of(str(source))
    if kind == "pack":
        return _other_splits(lambda name: build_store(source, selection or Selection(), name, cache), split, SPLITS)
    if kind not in ("saved", "hub"):
        songs, skipped = read_songs([source], chords="annotated")
        if not songs:
            raise DataError(f"no MIDI file in {source} can be read: {skipped[0]['reason']}")
        if members is None and split is not None:
            raise DataError(
                f"{source} holds plain MIDI files, which have no splits: leave --split out, or prepare them with "
                f"`mortm data build {source} -o FOLDER`",
                "data.option",
            )
        return _parts(ScoreStore(songs, [(item["file"], item["reason"]) for item in skipped]), split, members)
    there = open_dataset(str(source))

    def songs_of(name: str | None) -> ScoreStore:
        return load_songs(str(source), name, selection, estimated_chords=False)

    if split is None and "test" not in there and members is not None:
        return _parts(songs_of(None), None, members)  # the splits are those that fine-tuning drew
    if (split or "test") not in there:
        raise DataError(f"{source} has no split {split or 'test'}: --split takes {', '.join(there)}", "data.option")
    return _other_splits(songs_of, split, there)


def _other_splits(songs_of: Callable[[str], ScoreStore], split: str | None, there) -> SplitSongs:
    """A split of what has splits of its own; the others are read when they are asked for."""
    split = split or "test"
    train = (lambda: songs_of("train")) if split != "train" and "train" in there else None
    held = (lambda: songs_of("validation")) if split == "test" and "validation" in there else None
    return SplitSongs(songs_of(split), f"split {split}", train, held)


def _parts(store: ScoreStore, split: str | None, members: Mapping[str, str] | None) -> SplitSongs:
    """All songs, or the part that a checkpoint was trained on or selected by."""
    if not members:
        return SplitSongs(store, "all songs")
    parts: dict[str | None, list[Song]] = {name: [] for name in USED}
    for song in store.songs:
        parts.setdefault(members.get(fingerprint(song.score)), []).append(song)
    if split in USED:
        return SplitSongs(ScoreStore(parts[split], store.skipped), f"{split} songs of the model")
    stores = [ScoreStore(parts[name]) if parts[name] else None for name in USED]
    return SplitSongs(store, "all songs", *(None if one is None else (lambda one=one: one) for one in stores))
