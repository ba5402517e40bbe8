"""Sources: chord files beside the music, metadata tables, configurations of data sets, what is refused."""

import io
import json
import tarfile
import zipfile

import datasets
import pytest
from datasets import Dataset

from mortm_hf import DataError, build_dataset, load_songs
from mortm_hf.data.sources import open_sources
from tests.sample_songs import midi


PLAIN = dict(chords="annotated", progress=False, shares=(0.0, 0.0))
SECONDS = b"0.0\t2.4\tN\n2.4\t4.8\tGb:maj\n4.8\t9.6\tA:min7/b3\n"  # bars of 2.4 s at 100 a minute
POP909 = {
    "001/001.mid": midi(0, 6),
    "001/chord_midi.txt": SECONDS,
    "001/beat_midi.txt": b"0.0 1.0 1.0\n",
    "001/key_audio.txt": b"0.0\t14.4\tGb:maj\n",
    "001/versions/001-v1.mid": midi(20, 6),
    "001/versions/001-v2.mid": midi(40, 6),
    "002/002.mid": midi(60, 6),
    "002/002.chord_midi.txt": SECONDS,
    "003/a.mid": midi(80, 6),
    "003/b.mid": midi(100, 6),
    "003/chord_midi.txt": SECONDS,  # of which of the two?
}


def write_folder(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_tar(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def report_of(folder) -> dict:
    return json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize("kind", ["folder", "tar", "zip", "single files"])
def test_chords_of_pop909(kind, tmp_path):
    """With the stem of the song, and without one beside a MIDI file that is alone in its folder."""
    if kind == "tar":
        source = write_tar(tmp_path / "in.tar.gz", POP909)
    elif kind == "zip":
        source = write_zip(tmp_path / "in.zip", POP909)
    else:
        source = write_folder(tmp_path / "in", POP909)
    names = [name for name in POP909 if name.endswith(".mid") and name != "003/b.mid"]  # b is beside a all the same
    build_dataset([source / n for n in names] if kind == "single files" else source, tmp_path / "out", **PLAIN)
    songs = {song.path: song for song in load_songs(tmp_path / "out").songs}
    assert set(names) <= set(songs)
    assert [name for name in sorted(songs) if songs[name].chord_source] == ["001/001.mid", "002/002.mid"]
    for name in ("001/001.mid", "002/002.mid"):
        assert songs[name].score.chords.onset.tolist() == [0, 96, 192, 384] and songs[name].score.key is None
    assert report_of(tmp_path / "out")["skipped"] == []


@pytest.mark.parametrize("suffix", ["lab", "chords.txt", "chord_midi.txt", "chords.tsv", "aligned.chords.tsv"])
def test_every_chord_file_is_read(suffix, tmp_path):
    text = b"start_tick\tend_tick\tchord\n0\t1920\tC:maj\n" if suffix.endswith("tsv") else b"0.0\t2.4\tC:maj\n"
    write_folder(tmp_path / "in", {"s.mid": midi(0, 6), f"s.{suffix}": text})
    build_dataset(tmp_path / "in", tmp_path / "out", **PLAIN)
    (song,) = load_songs(tmp_path / "out").songs
    assert song.chord_source == "annotation" and song.score.chords.onset.tolist() == [0, 96]


@pytest.mark.parametrize("kind", ["folder", "tar", "zip", "csv beside an archive"])
def test_labels_without_effect_are_reported(kind, tmp_path):
    music = {f"{i}.mid": midi(i, 6) for i in range(4)}
    rows = ["0.mid,Hip-Hop", "1.mid,polka", "2.mid,Polka", "3.mid,rock", "4.MID,rock", "x/3.mid,jazz"]
    table = "\n".join(["file_name,genre", *rows]).encode()
    files = {"metadata.csv": table, **music}
    source = tmp_path / "in"
    if kind == "csv beside an archive":
        write_folder(source, {"metadata.csv": table})
        write_zip(source / "in.zip", music)
    elif kind == "folder":
        write_folder(source, files)
    else:
        source = (write_tar if kind == "tar" else write_zip)(tmp_path / f"in.{kind}", files)
    build_dataset(source, tmp_path / "out", chunk_files=2, **PLAIN)
    report = report_of(tmp_path / "out")
    if kind == "csv beside an archive":  # it names nothing: no row has an effect
        assert report["metadata_without_file"]["rows"] == 6 and len(report["metadata_without_file"]["first"]) == 5
        return
    assert report["genres_without_token"] == {"polka": 2}
    assert report["metadata_without_file"] == {"rows": 2, "first": ["4.MID", "x/3.mid"]}
    genres = {song.path: song.genre for song in load_songs(tmp_path / "out").songs}
    assert genres == {"0.mid": "hiphop", "1.mid": None, "2.mid": None, "3.mid": "rock"}


def test_another_table_is_another_data_set(tmp_path):
    write_folder(tmp_path / "in", {"a.mid": midi(0, 6), "metadata.csv": b"file_name,genre\n"})
    build_dataset(tmp_path / "in", tmp_path / "out", **PLAIN)
    assert report_of(tmp_path / "out")["metadata_without_file"] == {"rows": 0, "first": []}
    write_folder(tmp_path / "in", {"metadata.csv": b"file_name,genre\nA.mid,rock\n"})
    build_dataset(tmp_path / "in", tmp_path / "out", overwrite=True, **PLAIN)
    assert report_of(tmp_path / "out")["metadata_without_file"] == {"rows": 1, "first": ["A.mid"]}


@pytest.fixture
def tables(tmp_path):
    """A folder of tables with two configurations."""
    folder, head = tmp_path / "tables", "---\nconfigs:\n"
    for i, name in enumerate(("piano", "band")):
        (folder / name).mkdir(parents=True)
        Dataset.from_list([{"music": midi(i, 6), "file_name": f"{name}.mid"}]).to_parquet(folder / name / "x.parquet")
        head += f"- config_name: {name}\n  data_files: {name}/*.parquet\n"
    (folder / "README.md").write_text(head + "---\n")
    return folder


def test_configurations_of_a_folder_of_tables(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("piano", "band", "band"):  # the last one is opened again
        build_dataset(tables, tmp_path / name, config=name, **PLAIN)
        assert [song.path for song in load_songs(tmp_path / name).songs] == [f"{name}.mid"]
    with pytest.raises(DataError, match=r"'piano', 'band'\] \(name one with --config\)$") as caught:
        build_dataset(tables, tmp_path / "out", **PLAIN)
    assert caught.value.code == "data.option"
    with pytest.raises(DataError, match="'organ' not found"):
        build_dataset(tables, tmp_path / "out", config="organ", **PLAIN)


def test_configuration_and_revision_reach_the_hub(tables, tmp_path, monkeypatch):
    asked = []

    def load(path, **options):
        asked.append((path, options))
        return Dataset.from_list([{"music": midi(0, 6), "file_name": "a.mid"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    open_sources("me/midi", config="piano", revision="v1")
    open_sources("me/midi")
    assert asked == [
        ("me/midi", {"name": "piano", "revision": "v1"}),
        ("me/midi", {"name": None, "revision": None}),
    ]
    write_folder(tmp_path / "me" / "songs", {"a.mid": midi(0, 6)})
    with pytest.raises(DataError, match="me/songs is no data set with MIDI bytes"):
        open_sources("me/songs", config="piano")
    with pytest.raises(DataError, match="me/songs is no data set of the Hub"):
        open_sources("me/songs", revision="v1")
    with pytest.raises(DataError, match="only those have revisions"):
        open_sources(tables, revision="v1")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("metadata.jsonl", '{"file_name"\n', "metadata.jsonl is not one JSON object a line"),
        ("metadata.jsonl", '{"file_name": "a.mid"}\n{"genre": "rock"}\n', "rows without a file_name"),
        ("metadata.jsonl", '["file_name"]\n', "rows without a file_name"),
        ("metadata.csv", "name,genre\na.mid,rock\n", "rows without a file_name"),
        ("manifest.csv", "path,genre\n", "manifest.csv: columns missing: archive"),
        (
            "manifest.csv",
            "path,archive,corpus,split,variant,song_id,licence,n_notes\na.mid,,c,train,,s,,many\n",
            "manifest.csv: invalid literal .*'many'",
        ),
    ],
)
def test_damaged_tables_are_named(name, text, words, tmp_path):
    write_folder(tmp_path / "in", {"a.mid": midi(0, 6), name: text.encode()})
    with pytest.raises(DataError, match=words) as caught:
        open_sources(tmp_path / "in")
    assert caught.value.code == "data.column"
