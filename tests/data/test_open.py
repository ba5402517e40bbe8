"""One door: what a user may name, and the songs behind it."""

import zipfile

import pytest

from mortm_hf import build_dataset
from mortm_hf.data import DataError
from mortm_hf.data.checkpoint_songs import members_of
from mortm_hf.data.open import open_split, read_songs
from mortm_hf.data.sources import kind_of
from tests.sample_songs import midi, write_pack


@pytest.fixture
def songs(tmp_path):
    """A folder with four songs, a copy of one of them, and a file that cannot be read."""
    folder = tmp_path / "songs"
    folder.mkdir()
    for seed in range(4):
        (folder / f"{seed}.mid").write_bytes(midi(seed, 20))
    (folder / "copy.mid").write_bytes(midi(0, 20))
    (folder / "bad.mid").write_text("no music")
    (folder / "metadata.csv").write_text("file_name,split\n0.mid,train\ncopy.mid,test\n9.mid,test\n")
    return folder


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    return path


def names(found) -> list[str]:
    return [song.path.rpartition("/")[2] for song in found]


def test_every_kind_is_recognised(songs, tmp_path):
    build_dataset(songs, tmp_path / "set", progress=False)
    pack = tmp_path / "pack"
    pack.mkdir()
    write_pack(pack, [{"path": "1.mid", "archive": "a.tar.xz"}], {"a.tar.xz": {"1.mid": midi(1)}})
    archive = zipped(songs, tmp_path / "songs.zip")
    named = {
        songs / "0.mid": "midi",
        songs: "folder",
        archive: "archive",
        pack / "a.tar.xz": "archive",
        pack: "pack",
        tmp_path / "set": "saved",
        songs / "metadata.csv": "other",
        tmp_path / "gone": "missing",
        "owner/name": "hub",
    }
    assert {one: kind_of(one) for one in named} == named
    assert kind_of([]) == "object"


def test_own_songs_are_read_once_wherever_they_are(songs, tmp_path):
    """Of two names of the same notes one is kept, in the split that is held out the farthest."""
    archive = zipped(songs, tmp_path / "songs.zip")
    for given, split in (([songs], "test"), ([archive], "test"), (sorted(songs.glob("*.mid")), "")):
        found, left = read_songs(given, chords="annotated")
        assert names(found) == ["0.mid", "1.mid", "2.mid", "3.mid"]
        assert found[0].split == split and {song.split for song in found[1:]} == {""}  # files have no table of labels
        assert {item["file"].rpartition("/")[2] for item in left} >= {"bad.mid", "copy.mid"}
    found, left = read_songs([songs / "1.mid", songs / "metadata.csv"])
    assert [song.path for song in found] == [str(songs / "1.mid")] and left[0]["reason"] == "no MIDI file"


def test_a_prepared_set_is_read_alone(songs, tmp_path):
    build_dataset(songs, tmp_path / "set", progress=False)
    assert len(read_songs([tmp_path / "set"])[0]) == 4
    with pytest.raises(DataError, match="only be read alone"):
        read_songs([tmp_path / "set", songs])
    with pytest.raises(DataError, match="is not there"):
        read_songs([tmp_path / "gone"])


def test_what_a_model_was_made_with_is_left_out(songs, tmp_path):
    found = read_songs([songs], chords="annotated")[0]
    members = members_of({"train": found[:1], "validation": found[1:2]})
    whole = open_split(songs, members=members)
    assert len(whole.songs) == 4 and names(whole.train().songs) == ["0.mid"]
    rest = whole.without(members)
    assert names(rest.songs.songs) == ["2.mid", "3.mid"] and "but 2 songs" in rest.name
    assert names(open_split(songs, "validation", members=members).songs.songs) == ["1.mid"]
    with pytest.raises(DataError, match="have no splits"):
        open_split(songs, "test")
    assert whole.without({}) == whole
