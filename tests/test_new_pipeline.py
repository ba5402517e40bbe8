"""What a new pipeline takes: a file of its own and its lines in the table of families; all else follows."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mortm_hf


ROOT = Path(mortm_hf.__file__).parent
SONG = next((ROOT / "app" / "demo").glob("*.mid"))
FILE = '''"""Counts bars."""

from .pipeline_midi import MusicPipeline


class BarCountPipeline(MusicPipeline):
    _options = (("factor",), (), ())

    def preprocess(self, inputs, factor=1):
        return {"bars": self.open_song(inputs)[1].n_bars * factor}

    def _forward(self, model_inputs):
        return model_inputs

    def postprocess(self, model_outputs):
        return model_outputs["bars"]
'''
LINES = (  # of families.py: before this line comes that one
    ("from .pipeline_bertm import", "from .pipeline_bars import BarCountPipeline\n"),
    (
        '            "midi-feature-extraction": Task(',
        '            "bar-count": Task("pipeline_bars.BarCountPipeline", "AutoModel", "text"),\n',
    ),
)
# argv: song, folder
USE = """
import sys
import mortm_hf
import transformers
song, folder = sys.argv[1:]
pipe = mortm_hf.pipeline("bar-count", device="cpu")
assert type(pipe) is mortm_hf.BarCountPipeline and pipe.model.name_or_path == mortm_hf.BERTM
assert transformers.pipeline("bar-count", device="cpu")(song, factor=2) == 2 * pipe(song)
pipe.save_pretrained(folder)
again = transformers.pipeline("bar-count", model=folder, device="cpu", trust_remote_code=True)
assert type(again).__module__.startswith("transformers_modules") and again(song) == pipe(song)
print("bars", pipe(song))
"""


def test_two_files_make_a_pipeline(tmp_path):
    package = tmp_path / "mortm_hf"
    shutil.copytree(ROOT, package, ignore=shutil.ignore_patterns("checkpoints", "__pycache__"))
    (package / "checkpoints").symlink_to(ROOT / "checkpoints", target_is_directory=True)
    (package / "models" / "pipeline_bars.py").write_text(FILE)
    table = (package / "models" / "families.py").read_text()
    for before, line in LINES:
        assert table.count(before) == 1
        table = table.replace(before, line + before)
    (package / "models" / "families.py").write_text(table)
    environment = dict(os.environ, PYTHONPATH=str(tmp_path), OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    environment["HF_MODULES_CACHE"] = str(tmp_path / "modules")
    words = [sys.executable, "-c", USE, str(SONG), str(tmp_path / "saved")]
    run = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    assert int(run.stdout.split()[-1]) > 8
    assert (tmp_path / "saved" / "pipeline_bars.py").read_text() == FILE
