"""Data sets of songs: every kind of source gives the same songs, an interrupted build loses and doubles nothing."""

import csv
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, load_from_disk

from mortm_hf import DataError, build_dataset, load_songs, open_dataset
from mortm_hf.data import CorpusFilter, Selection, SongRows, build_store
from mortm_hf.data.build import BuildOptions, build_from
from mortm_hf.data.midi_sources import Chunk, Entry, bare_row
from mortm_hf.data.schema import LISTS
from mortm_hf.data.song_reading import fingerprint, hashed_split
from mortm_hf.data.sources import open_sources
from mortm_hf.models.midi_files import read_midi
from tests.sample_songs import midi, write_pack


ROOT = Path(__file__).parents[2]
SONGS = {f"set{i % 2}/song{i}.mid": midi(i, bars=9, drums=i % 3 == 0) for i in range(7)}
CHORDS = "start_tick\tend_tick\tchord\n0\t1920\tC:maj\n1920\t3840\tA:min7/b3\n"
FILES = {**SONGS, "set0/song0.chords.tsv": CHORDS.encode()}
FILES["set1/broken.mid"] = b"MThd this is no MIDI file"
FILES["set1/notes.txt"] = b"not music"
PLAIN = dict(chords="annotated", progress=False)


def write_folder(folder: Path, files=FILES) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def write_tar(path: Path, mode: str, files=FILES) -> Path:
    with tarfile.open(path, f"w:{mode}") as tar:
        for name in reversed(files):  # annotations before and after their files
            info = tarfile.TarInfo(name)
            info.size = len(files[name])
            tar.addfile(info, io.BytesIO(files[name]))
    return path


def write_zip(path: Path, files=FILES) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def content_of(store, by="path") -> dict:
    """Everything that matters of every song."""
    found = {}
    for song in store.songs:
        s = song.score
        notes = np.stack([s.track, s.onset, s.pitch, s.duration, s.velocity]).tolist()
        chords = None if s.chords is None else [getattr(s.chords, c).tolist() for c in ("onset", "root", "quality")]
        labels = (song.split, song.cluster, song.genre, song.chord_source)
        found[getattr(song, by)] = (notes, s.bars.start.tolist(), s.tempo.tolist(), s.key, chords, *labels)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("midi") / "songs")


@pytest.fixture(scope="module")
def built(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "set"
    build_dataset(folder, out, chunk_files=3, **PLAIN)
    return out


def test_folder_becomes_plain_datasets(built):
    data = load_from_disk(str(built))  # nothing of ours is needed to open it
    assert isinstance(data, DatasetDict) and sum(map(len, data.values())) == 7
    assert sorted(p.name for p in built.parent.iterdir()) == ["set"]
    kinds = {name: data["train"].features[name].feature.dtype for name in LISTS}
    assert kinds == LISTS
    store = load_songs(built)
    assert [s.path for s in load_songs(built, "train").songs] == [s.path for s in store.songs if s.split == "train"]
    for song in store.songs:
        want = read_midi(SONGS[song.path])
        for name in ("track", "onset", "pitch", "duration", "velocity", "programs", "tempo"):
            got, right = getattr(song.score, name), getattr(want, name)
            assert got.dtype == right.dtype and np.array_equal(got, right), name
        assert np.array_equal(song.score.bars.start, want.bars.start)
        assert np.array_equal(song.score.bars.meter, want.bars.meter)
        assert song.corpus == song.path.split("/")[0] and song.score.names == want.names
    with_chords = [s.path for s in store.songs if s.score.chords is not None]
    assert with_chords == ["set0/song0.mid"]
    assert store.songs[0].chord_source == ("annotation" if store.songs[0].path in with_chords else None)


def test_skipped_files_are_listed(built):
    report = json.loads((built / "report.json").read_text())
    assert report["files"] == 8 and [p["file"] for p in report["skipped"]] == ["set1/broken.mid"]
    assert report["skipped"][0]["code"] == "midi.unreadable" and "MIDI" in report["skipped"][0]["message"]
    with open(built / "skipped.csv", newline="") as handle:
        assert [row["file"] for row in csv.DictReader(handle)] == ["set1/broken.mid"]
    assert load_songs(built).skipped == [("set1/broken.mid", report["skipped"][0]["message"])]
    assert sum(part["songs"] for part in report["splits"].values()) == 7


@pytest.mark.parametrize("kind", ["tar.xz", "tar", "zip", "archives in a folder", "single files"])
def test_other_containers_hold_the_same_songs(kind, built, folder, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    if kind == "zip":
        source = write_zip(source / "songs.zip")
    elif kind in ("tar.xz", "tar"):
        source = write_tar(source / f"songs.{kind}", kind.partition(".")[2])
    elif kind == "archives in a folder":
        write_zip(source / "a.zip", {k: v for k, v in FILES.items() if k.startswith("set0")})
        write_tar(source / "b.tar.gz", "gz", {k: v for k, v in FILES.items() if k.startswith("set1")})
    else:
        source = [str(folder / name) for name in FILES if name.endswith(".mid")]
    build_dataset(source, tmp_path / "out", chunk_files=2, **PLAIN)
    assert content_of(load_songs(tmp_path / "out")) == content_of(load_songs(built))


def test_dataset_with_bytes_gives_the_same_songs(built, tmp_path):
    songs = load_songs(built)
    rows = [
        {"music": FILES[s.path], "file_name": s.path, "split": s.split, "genre": "jazz", "license": "CC0"}
        for s in songs.songs
    ]
    rows.append({"music": b"nothing", "file_name": "x.mid", "split": "train", "genre": "", "license": ""})
    data = Dataset.from_list(rows)
    build_dataset(data, tmp_path / "out", chunk_files=3, **PLAIN)
    again = load_songs(tmp_path / "out")
    want, got = content_of(songs), content_of(again)
    for path in want:
        assert got[path][:3] == want[path][:3] and got[path][5] == want[path][5]
    assert {s.genre for s in again.songs} == {"jazz"} and {s.licence for s in again.songs} == {"CC0"}
    assert [f for f, _ in again.skipped] == ["x.mid"]
    # as struct of bytes and path, with the splits of a DatasetDict, from parquet
    part = Dataset.from_list([{"midi": {"bytes": r["music"], "path": r["file_name"]}} for r in rows[:3]])
    build_dataset(DatasetDict({"train": part, "dev": part.select([0])}), tmp_path / "two", **PLAIN)
    assert {k: len(v) for k, v in open_dataset(tmp_path / "two").items()} == {"train": 3, "validation": 1}
    part.to_parquet(tmp_path / "x.parquet")
    build_dataset(tmp_path / "x.parquet", tmp_path / "three", **PLAIN)
    assert len(load_songs(tmp_path / "three")) == 3
    with pytest.raises(DataError, match="no column of MIDI bytes"):
        build_dataset(Dataset.from_list([{"a": 1}]), tmp_path / "four", **PLAIN)


def test_pack_keeps_its_labels(tmp_path):
    rows = [
        {"path": f"pop/{i}.mid", "archive": f"{i % 2}.tar.xz", "corpus": "pop", "song_id": f"s{i}", "licence": "MIT"}
        | {"genre": "pop", "split": ("train", "test")[i % 2], "variant": ("aligned", "x")[i // 3], "key": "Eb:maj"}
        for i in range(5)
    ]
    members = {r["path"]: midi(i, 6) for i, r in enumerate(rows)}
    archives = {
        a: {r["path"]: members[r["path"]] for r in rows if r["archive"] == a} for a in ("0.tar.xz", "1.tar.xz")
    }
    write_pack(tmp_path, rows, archives)
    build_dataset(tmp_path, tmp_path / "all", **PLAIN)
    songs = load_songs(tmp_path / "all")
    assert {s.path: s.split for s in songs.songs} == {r["path"]: r["split"] for r in rows}
    assert all(s.score.key == "EbM" and s.key_source == "annotation" and s.cluster == s.song_id for s in songs.songs)
    # a recipe reads a prepared data set as it reads the pack
    chosen = Selection({"pop": CorpusFilter(("aligned",), "MIT")})
    a, b = build_store(tmp_path, chosen, "train"), build_store(tmp_path / "all", chosen, "train")
    assert len(a) == 2 and content_of(a) == content_of(b)
    assert [s.path for s in a.songs] == [s.path for s in b.songs]
    # MIDI of one's own is prepared where a recipe asks for it
    own = build_store(write_folder(tmp_path / "own"), Selection(), "train", tmp_path / "cache")
    assert len(own) == len(build_store(tmp_path / "own", Selection(), "train", tmp_path / "cache")) > 3


def test_splits_follow_the_notes():
    """Two files with the same music never come into different splits; another file moves none."""
    score = read_midi(SONGS["set0/song0.mid"])
    louder = replace(score, velocity=score.velocity * 0 + 99, duration=score.duration + 1)
    higher = replace(score, pitch=score.pitch + np.where(score.programs[score.track] == 128, 0, 3))
    assert fingerprint(score) == fingerprint(louder) == fingerprint(higher)
    assert fingerprint(score) != fingerprint(read_midi(SONGS["set1/song1.mid"]))
    drawn = [hashed_split(str(i), (0.2, 0.1)) for i in range(3000)]
    assert 0.17 < drawn.count("validation") / 3000 < 0.23 and 0.08 < drawn.count("test") / 3000 < 0.12
    assert drawn == [hashed_split(str(i), (0.2, 0.1)) for i in range(3000)]
    assert drawn != [hashed_split(str(i), (0.2, 0.1), seed=1) for i in range(3000)]
    assert {hashed_split(str(i), (0.0, 0.0)) for i in range(100)} == {"train"}


def test_copies_share_a_split(tmp_path):
    copies = {f"{place}/{name}": FILES[name] for name in SONGS for place in ("a", "b")}
    build_dataset(write_folder(tmp_path / "in", copies), tmp_path / "out", shares=(0.3, 0.3), **PLAIN)
    songs = load_songs(tmp_path / "out")
    pairs = {}
    for song in songs.songs:
        pairs.setdefault(song.path[2:], []).append((song.split, song.cluster))
    assert len(pairs) == 7 and all(len(p) == 2 and p[0] == p[1] for p in pairs.values())
    assert len({s for (s, _), _ in pairs.values()}) > 1


def test_splits_from_folders_and_metadata(tmp_path):
    names = list(SONGS)
    files = {f"{split}/x/{i}.mid": SONGS[names[i]] for i, split in enumerate(("train", "valid", "test"))}
    rows = "file_name,genre,key,split\ntrain/x/0.mid,Jazz,A minor,\nvalid/x/1.mid,folk,,test\n"
    files["metadata.csv"] = rows.encode()
    source = write_folder(tmp_path / "in", files)
    build_dataset(source, tmp_path / "out", split_from_folders=True, **PLAIN)
    songs = {s.path: s for s in load_songs(tmp_path / "out").songs}
    splits = {path: s.split for path, s in songs.items()}
    assert splits == {
        "train/x/0.mid": "train",
        "valid/x/1.mid": "test",
        "test/x/2.mid": "test",
    }  # the table goes first
    first = songs["train/x/0.mid"]
    assert first.genre == "jazz" and first.score.key == "Am" and first.corpus == "x"
    write_folder(source, {"loose.mid": SONGS[names[3]]})
    with pytest.raises(DataError, match=r"loose\.mid is in no folder named train"):
        build_dataset(source, tmp_path / "two", split_from_folders=True, **PLAIN)


def test_bad_requests_name_the_remedy(folder, built, tmp_path):
    with pytest.raises(DataError, match="is not there"):
        build_dataset(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no MIDI file"):
        build_dataset(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "x.tar.xz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"cannot read the archive .*x\.tar\.xz"):
        build_dataset(tmp_path / "x.tar.xz", tmp_path / "out")
    with pytest.raises(DataError, match="chords must be one of"):
        build_dataset(folder, tmp_path / "out", chords="some")
    write_folder(tmp_path / "bad", {"a.mid": b"x", "b.mid": b"y"})
    with pytest.raises(DataError, match=r"none of 2 files could be used .*a\.mid"):
        build_dataset(tmp_path / "bad", tmp_path / "out", **PLAIN)
    write_folder(tmp_path / "taken", {"text.txt": b""})
    with pytest.raises(DataError, match="holds something else"):
        build_dataset(folder, tmp_path / "taken", **PLAIN)
    with pytest.raises(DataError, match="is no data set"):
        load_songs(tmp_path / "taken")
    with pytest.raises(DataError, match="has no split 'tests'"):
        load_songs(built, "tests")
    Dataset.from_list([{"a": 1}]).save_to_disk(str(tmp_path / "other"))
    with pytest.raises(DataError, match="is no data set of songs"):
        load_songs(tmp_path / "other")
    assert not (tmp_path / "out").exists()


def test_finished_work_is_opened_and_other_work_is_kept(folder, built, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in built.rglob("*")}
    build_dataset(folder, built, chunk_files=3, **PLAIN)
    assert before == {p: p.stat().st_mtime_ns for p in built.rglob("*")}
    build_dataset(folder, tmp_path / "out", **PLAIN)
    with pytest.raises(DataError, match="other options: choose another folder, or overwrite"):
        build_dataset(folder, tmp_path / "out", seed=1, **PLAIN)
    build_dataset(folder, tmp_path / "out", seed=1, overwrite=True, **PLAIN)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["plan"]["options"]["seed"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


class Dying:
    """A source whose third chunk ends the process, once."""

    def __init__(self, sources, at=None):
        self.sources, self.at, self.unmatched = sources, at, ()

    def __len__(self):
        return len(self.sources[0])

    def identity(self):
        return self.sources[0].identity()

    def chunks(self, size):
        for number, chunk in enumerate(self.sources[0].chunks(size)):
            if number == self.at:
                raise KeyboardInterrupt
            yield chunk


def test_interrupted_work_goes_on(folder, built, tmp_path):
    options = BuildOptions(chords="annotated", chunk_files=2)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        build_from([Dying(open_sources(folder), at=2)], out, options, progress=False)
    work = tmp_path / "out.partial" / "chunks"
    assert not out.exists() and sorted(p.name for p in work.glob("*.json")) == ["000000.json", "000001.json"]
    (work / ".000002-train.arrow.99").write_bytes(b"half of a file")
    stamps = {p: p.stat().st_mtime_ns for p in work.glob("0*")}
    kept = []

    class Watched(Dying):
        def chunks(self, size):
            yield from (Chunk(c.size, lambda c=c: kept.append(c) or c.load()) for c in self.sources[0].chunks(size))

    sources = Watched(open_sources(folder))
    assert all(p.stat().st_mtime_ns == t for p, t in stamps.items())
    build_from([sources], out, options, progress=False)
    assert len(kept) == 2  # of four chunks the two that were missing
    assert content_of(load_songs(out)) == content_of(load_songs(built))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_changed_source_is_read_again(tmp_path):
    source = write_folder(tmp_path / "in")
    options = BuildOptions(chords="annotated", chunk_files=2)
    with pytest.raises(KeyboardInterrupt):
        build_from([Dying(open_sources(source), at=2)], tmp_path / "out", options, progress=False)
    write_folder(source, {"set0/another.mid": midi(50, 4)})
    build_dataset(source, tmp_path / "out", chunk_files=2, **PLAIN)
    assert sorted(s.path for s in load_songs(tmp_path / "out").songs) == sorted([*SONGS, "set0/another.mid"])


def test_songs_are_read_when_asked_for(built):
    rows = load_songs(built).songs
    assert isinstance(rows, SongRows) and len(rows) == 7
    assert (
        rows[2] is rows[2]
        and rows[-1].path == rows[6].path
        and [s.path for s in rows[1:3]] == [rows[1].path, rows[2].path]
    )
    with pytest.raises(IndexError):
        rows[7]
    again = pickle.loads(pickle.dumps(rows))
    assert np.array_equal(again[3].score.onset, rows[3].score.onset)
    assert rows.lengths("note_pitch").tolist() == [s.score.n_notes for s in rows]
    assert rows.lengths("bar_length").tolist() == [s.score.n_bars for s in rows] == load_songs(built).n_bars().tolist()
    some = SongRows(rows.dataset.select([5, 1, 3]))  # through an index
    assert [s.path for s in some] == [rows[5].path, rows[1].path, rows[3].path]


def test_size_on_disk(built):
    """Eight bytes a note, three a bar, a few hundred a song."""
    data = open_dataset(built)
    rows = [SongRows(part) for part in data.values()]
    notes = sum(int(r.lengths("note_pitch").sum()) for r in rows)
    bars = sum(int(r.lengths("bar_length").sum()) for r in rows)
    songs = sum(map(len, rows))
    size = sum(part.data.table.nbytes for part in data.values())
    assert 8 * notes <= size < 8 * notes + 3 * bars + 600 * songs


def test_huge_songs_are_refused(tmp_path):
    write_folder(tmp_path / "in", {"a.mid": FILES["set0/song0.mid"], "long.mid": _long_midi()})
    build_dataset(tmp_path / "in", tmp_path / "out", **PLAIN)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [(p["file"], p["code"]) for p in report["skipped"]] == [("long.mid", "data.too_large")]


def _long_midi() -> bytes:
    import symusic

    score = symusic.Score(24)
    score.time_signatures.append(symusic.TimeSignature(0, 1, 16))
    track = symusic.Track("t", 0, False)
    track.notes.append(symusic.Note(0, 3, 60, 60))
    track.notes.append(symusic.Note(6 * 70000, 3, 60, 60))
    score.tracks.append(track)
    return score.dumps_midi()


@pytest.mark.slow
def test_a_file_that_kills_its_reader_is_listed(tmp_path):
    script = r"""
import sys, os, signal
import mortm_hf.data.build as build
if "deadly" in os.environ:
    real = build.read_entries
    def read_entries(entries, options):
        if any(e.row.path.endswith("deadly.mid") for e in entries):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(entries, options)
    build.read_entries = read_entries
if __name__ == "__main__":
    build.build_dataset(sys.argv[1], sys.argv[2], chords="annotated", chunk_files=3, num_proc=2, progress=False)
"""
    write_folder(tmp_path / "in", {**SONGS, "set0/deadly.mid": midi(60, 4)})
    (tmp_path / "run.py").write_text(script)
    environment = os.environ | {"deadly": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "in"), str(tmp_path / "out")]
    subprocess.run(command, env=environment, check=True, timeout=500)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [(p["file"], p["code"]) for p in report["skipped"]] == [("set0/deadly.mid", "data.crash")]
    assert sorted(s.path for s in load_songs(tmp_path / "out").songs) == sorted(SONGS)


@pytest.mark.slow
def test_kill_9_in_the_middle_loses_and_doubles_nothing(tmp_path):
    """The same command, killed three times and run again, gives the files of an unbroken run, byte for byte."""
    names = {f"{i // 40}/{i:03d}.mid": midi(i, bars=30) for i in range(160)}
    names["bad.mid"] = b"MThd"
    archive = write_tar(tmp_path / "songs.tar.xz", "xz", names)

    def command(out, processes):
        words = ["data", "build", str(archive), "-o", str(out), "--chords", "annotated", "--processes", str(processes)]
        return [sys.executable, "-c", SMALL_CHUNKS, *words]

    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command(tmp_path / "whole", 1), env=environment, check=True, timeout=500)
    out, seen = tmp_path / "out", 0
    for _ in range(3):
        child = subprocess.Popen(
            command(out, 2), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.time() + 300
        while child.poll() is None and time.time() < deadline:
            done = len(list((tmp_path / "out.partial" / "chunks").glob("0*.json")))
            if done > seen:
                break
            time.sleep(0.005)
        child.kill()
        child.wait()
        if out.exists():
            break
        seen = len(list((tmp_path / "out.partial" / "chunks").glob("0*.json")))
    assert seen > 0 and not out.exists()  # it really was interrupted
    subprocess.run(command(out, 2), env=environment, check=True, timeout=500)
    a, b = load_songs(tmp_path / "whole"), load_songs(out)
    assert len(a) == 160 and content_of(a) == content_of(b)
    assert [s.path for s in a.songs] == [s.path for s in b.songs]
    for path in sorted((tmp_path / "whole").rglob("*.*")):
        assert path.read_bytes() == (out / path.relative_to(tmp_path / "whole")).read_bytes(), path.name
    assert not (tmp_path / "out.partial").exists()


SMALL_CHUNKS = """
import sys
import mortm_hf.data.build as build
import mortm_hf.data.score_store
defaults = build.build_dataset.__kwdefaults__
defaults["chunk_files"] = 8
from mortm_hf.app.cli import main
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


def test_entries_of_a_chunk_keep_their_order(folder):
    """Names and bytes stay together in every container."""
    (source,) = open_sources(folder)
    for chunk in source.chunks(3):
        for entry in chunk.load():
            assert isinstance(entry, Entry) and entry.content.read_bytes() == FILES[entry.row.path]
    assert bare_row("a.mid", "c").song_id == "a.mid"
