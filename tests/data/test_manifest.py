"""Manifests of training packs, and which of their files take part."""

import pytest

from mortm_hf.data import CorpusFilter, Selection, build_store, read_archive, read_manifest
from mortm_hf.data.midi_sources import PackSource
from tests.sample_songs import midi, write_pack


def row(path, **more):
    base = {"path": path, "archive": "a.tar.xz", "corpus": "pop", "song_id": path, "licence": "MIT", "split": "train"}
    return base | {"variant": "aligned"} | more


ROWS = [
    row("1.mid", genre="pop", n_notes="12", n_bars="3", annotations="1.aligned.chords.tsv 1.txt", cluster="c"),
    row("2.mid", variant="original"),
    row("3.mid", licence="GPL-2.0 (code)"),
    row("4.mid", split="test"),
    row("5.mid", corpus="folk", archive="b.tar.xz", variant=""),
]


@pytest.fixture
def pack(tmp_path):
    members = {r["path"]: midi(i, 2) for i, r in enumerate(ROWS)}
    first = {name: members[name] for name in ("1.mid", "2.mid", "3.mid", "4.mid")}
    write_pack(tmp_path, ROWS, {"a.tar.xz": first, "b.tar.xz": {"5.mid": members["5.mid"]}})
    return tmp_path


def test_rows(pack):
    rows = read_manifest(pack)
    assert [r.path for r in rows] == [r["path"] for r in ROWS]
    first, second = rows[:2]
    assert (first.genre, first.n_notes, first.n_bars, first.cluster) == ("pop", 12, 3, "c")
    assert first.annotations == ("1.aligned.chords.tsv", "1.txt")
    assert second.cluster == "2.mid" and second.n_notes == 0  # a song of its own


def test_selection():
    rules = Selection({"pop": CorpusFilter(("aligned",), "MIT")})
    assert rules.takes("pop", "aligned", "MIT") and not rules.takes("pop", "original", "MIT")
    assert not rules.takes("pop", "aligned", "GPL-2.0") and not rules.takes("folk", "aligned", "MIT")
    assert Selection({"pop": CorpusFilter()}).takes("pop", "x", "")


def test_chosen_files(pack):
    rules = Selection({"pop": CorpusFilter(("aligned",), "MIT"), "folk": CorpusFilter()})
    assert [r.path for r in PackSource.select(pack, rules, "train").rows] == ["1.mid", "5.mid"]
    assert [r.path for r in PackSource.select(pack, rules).rows] == ["1.mid", "4.mid", "5.mid"]
    assert [r.path for r in PackSource.select(pack, None, "test").rows] == ["4.mid"]
    assert len(PackSource.select(pack)) == 5
    with pytest.raises(FileNotFoundError, match=r"no manifest\.csv"):
        PackSource.select(pack / "nowhere")


def test_archives_are_walked_once(pack):
    found = list(read_archive(pack / "a.tar.xz", ["3.mid", "1.mid"]))
    assert [name for name, _ in found] == ["1.mid", "3.mid"]  # in the archive's order
    assert found[0][1] == midi(0, 2)
    with pytest.raises(KeyError, match=r"9\.mid"):
        list(read_archive(pack / "a.tar.xz", ["1.mid", "9.mid"]))
    with pytest.raises(FileNotFoundError, match=r"c\.tar\.xz"):
        list(read_archive(pack / "c.tar.xz", ["1.mid"]))


def test_a_missing_member_is_one_skipped_file(pack, tmp_path):
    """The manifest names a chord file and a MIDI file that the archive does not hold: the rest is read."""
    write_pack(pack, [*ROWS, row("9.mid")], {})
    found = build_store(pack, Selection({"pop": CorpusFilter()}), "train")
    assert [s.path for s in found.songs] == ["1.mid", "2.mid", "3.mid"] and found.songs[0].score.chords is None
    assert found.skipped == [("9.mid", "9.mid is not in its archive a.tar.xz")]


def test_chunks_never_mix_archives(pack):
    source = PackSource.select(pack)
    chunks = [[entry.row.path for entry in chunk.load()] for chunk in source.chunks(3)]
    assert chunks == [["1.mid", "2.mid", "3.mid"], ["4.mid"], ["5.mid"]]
