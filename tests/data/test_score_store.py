"""Reading a pack and keeping it on disk."""

import json

import numpy as np
import pytest

from mortm_hf.data import CorpusFilter, Selection, build_store, load_songs, read_archive
from mortm_hf.models.midi_files import read_midi
from tests.sample_songs import midi, store, write_pack


CHORDS = ("onset", "root", "quality", "bass")
NOTES = ("track", "onset", "pitch", "duration", "velocity")


def same(a, b) -> bool:
    columns = all(np.array_equal(getattr(a, c), getattr(b, c)) for c in NOTES)
    chords = (a.chords is None) == (b.chords is None) and (
        a.chords is None
        or all(
            np.array_equal(getattr(a.chords, c), getattr(b.chords, c)) for c in ("onset", "root", "quality", "bass")
        )
    )
    bars = np.array_equal(a.bars.start, b.bars.start) and np.array_equal(a.bars.meter, b.bars.meter)
    return columns and chords and bars and np.array_equal(a.tempo, b.tempo) and a.key == b.key


CHORD_FILE = "pop/1.aligned.chords.tsv"


@pytest.fixture
def pack(tmp_path):
    def row(path, corpus, **more):
        return {"path": path, "archive": "a.tar.xz", "corpus": corpus, "song_id": path, "licence": "MIT", **more}

    rows = [
        row(
            "pop/1.mid",
            "pop",
            genre="pop",
            split="train",
            variant="aligned",
            key="Eb:maj",
            annotations="pop/1.aligned.chords.tsv",
        ),
        row("pop/1o.mid", "pop", split="train", variant="original"),
        row("pop/2.mid", "pop", split="test", variant="aligned"),
        row("pop/3.mid", "pop", split="train", variant="aligned", licence="GPL-2.0"),
        row("pop/4.mid", "pop", split="train", variant="aligned"),
        row("drums/5.mid", "drums", genre="drums", subgenre="funk", split="train"),
    ]
    chords = b"# x\nstart_tick\tend_tick\tchord\n0\t1920\tC:maj\n1920\t3840\tA:min7/b3\n"
    files = {row["path"]: midi(i, bars=9) for i, row in enumerate(rows)}
    files["pop/4.mid"] = b"MThd this is no MIDI file"
    files[CHORD_FILE] = chords
    write_pack(tmp_path, rows, {"a.tar.xz": files})
    return tmp_path


SELECTION = Selection({"pop": CorpusFilter(("aligned",), "MIT"), "drums": CorpusFilter()})


def test_selection_reads_what_it_should(pack):
    found = build_store(pack, SELECTION, "train")
    assert [song.path for song in found.songs] == ["pop/1.mid", "drums/5.mid"]
    assert [path for path, _ in found.skipped] == ["pop/4.mid"]
    assert found.skipped[0][1]  # with a reason
    first, second = found.songs
    assert first.score.key == "EbM" and first.genre == "pop" and second.genre == "funk"
    assert first.score.chords.onset.tolist() == [0, 96, 192]
    assert second.score.chords is None
    assert same(second.score, read_midi(midi(5, bars=9)))
    assert [s.path for s in build_store(pack, SELECTION, "test").songs] == ["pop/2.mid"]


def test_cache_gives_the_same_store(pack, tmp_path):
    cache = tmp_path / "cache"
    built = build_store(pack, SELECTION, "train", cache)
    (pack / "a.tar.xz").unlink()  # a second build would fail
    again = build_store(pack, SELECTION, "train", cache)
    assert all(same(a.score, b.score) for a, b in zip(built.songs, again.songs))
    assert [s.path for s in built.songs] == [s.path for s in again.songs]
    assert built.skipped == again.skipped


def test_save_and_load(tmp_path):
    songs = store()
    songs.save(tmp_path / "s")
    songs.save(tmp_path / "s")  # replaces
    back = load_songs(tmp_path / "s")
    assert all(same(a.score, b.score) for a, b in zip(songs.songs, back.songs))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s"]
    report = json.loads((tmp_path / "s" / "report.json").read_text())
    report["version"] = 99
    (tmp_path / "s" / "report.json").write_text(json.dumps(report))
    with pytest.raises(ValueError, match="version 99"):
        load_songs(tmp_path / "s")


def test_errors_name_what_is_missing(pack, tmp_path):
    with pytest.raises(FileNotFoundError, match="manifest"):
        build_store(tmp_path / "nowhere", SELECTION, "train")
    with pytest.raises(KeyError, match="gone"):
        list(read_archive(pack / "a.tar.xz", ["pop/1.mid", "gone.mid"]))
    (pack / "manifest.csv").write_text("path,archive\n")
    with pytest.raises(ValueError, match="columns missing"):
        build_store(pack, SELECTION, "train")
