"""Where compiled code is kept: one copy for the package and all checkpoints, also where nothing can be written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mortm_hf.models import generation_compiled
from mortm_hf.models.generation_compiled import cache_folder, load_compiled, missing


pytestmark = pytest.mark.skipif(missing() is not None, reason="numba is not installed")

SOURCE = '''"""Two and two."""

from numba import njit


@njit(cache=True)
def twice(x):
    return 2 * x
'''
CALL = """
import sys
from importlib.util import module_from_spec, spec_from_file_location
def read(name):
    spec = spec_from_file_location("carried.generation_compiled", sys.argv[1] + "/generation_compiled.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load_compiled(name)
assert "numba" not in sys.modules
found = read("small")
assert found is read("small") and found.twice(21) == 42
print(sum(found.twice.stats.cache_hits.values()), found.__file__)
"""


@pytest.fixture
def folders(tmp_path):
    """Two folders that carry the same code, and an empty cache."""
    text = Path(generation_compiled.__file__).read_text()
    for name in ("package", "checkpoint"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "generation_compiled.py").write_text(text)
        (tmp_path / name / "small.py").write_text(SOURCE)
    return tmp_path


def call(folder, cache):
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(cache), "HOME": str(cache), "LOCALAPPDATA": str(cache)}
    command = [sys.executable, "-c", CALL, str(folder)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    hits, path = run.stdout.split()
    return int(hits), Path(path)


def test_compiled_once_for_all_copies(folders):
    (folders / "cache").mkdir()
    first = call(folders / "package", folders / "cache")
    second = call(folders / "checkpoint", folders / "cache")
    assert (first[0], second[0]) == (0, 1) and first[1] == second[1]
    assert first[1].is_relative_to(folders / "cache")
    assert sorted(p.name for p in (folders / "package").iterdir()) == ["generation_compiled.py", "small.py"]
    first[1].write_text("broken")  # half a file of a killed process
    assert call(folders / "package", folders / "cache")[1].read_text() == SOURCE


def test_a_cache_that_cannot_be_written(folders):
    (folders / "file").write_text("")  # no folder can be made in it, whoever asks
    hits, path = call(folders / "package", folders / "file")
    assert hits == 0 and not path.is_relative_to(folders)


def test_folder_and_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    if sys.platform != "darwin":
        assert cache_folder() == tmp_path / "mortm_hf" / "compiled"
    monkeypatch.setattr(generation_compiled.importlib.util, "find_spec", lambda name: None)
    assert "numba" in missing()


def test_kernels_are_one_module():
    assert load_compiled("generation_kernels") is load_compiled("generation_kernels")
