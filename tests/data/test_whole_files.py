"""Folders that appear whole or not at all."""

import pytest

from mortm_hf.data.whole_files import replace_folder


def write(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "a.txt").write_text(text)


def test_a_folder_is_replaced_when_all_of_it_is_there(tmp_path):
    target = tmp_path / "made"
    write(target, "old")
    with replace_folder(target) as partial:
        write(partial, "new")
        assert (target / "a.txt").read_text() == "old"
    assert (target / "a.txt").read_text() == "new"
    with pytest.raises(RuntimeError), replace_folder(target) as partial:
        write(partial, "half")
        raise RuntimeError
    assert (target / "a.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_only_the_first_process_clears_and_renames(tmp_path):
    with replace_folder(tmp_path / "made") as partial:
        write(partial, "first")
        with replace_folder(tmp_path / "made", first=False) as same:
            write(same, "another")
        assert same == partial and not (tmp_path / "made").exists()
    assert (tmp_path / "made" / "a.txt").read_text() == "another"
