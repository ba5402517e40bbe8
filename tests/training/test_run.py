"""Every task's run: it ends at a signal with a checkpoint, goes on exactly, validates, and its `final/` is whole."""

import signal

import pytest

from mortm_hf.models.errors_mortm import TrainingError
from mortm_hf.training.recipe import parse_recipe
from mortm_hf.training.run import newest_checkpoint
from mortm_hf.training.runlog import RunLog, read_log
from mortm_hf.training.tasks import audio_task, classify_task, live_task, mlm_task
from mortm_hf.training.validation import LOSS
from tests.sample_songs import store
from tests.training.tasks.test_audio_and_live_tasks import AUDIO, LIVE
from tests.training.tasks.test_classify_task import TINY as CLASSIFY
from tests.training.tasks.test_classify_task import sets
from tests.training.tasks.test_mlm_task import TINY as MLM


SONGS = {"train": store(3, 8), "validation": store(5, 8)}
VALIDATED = ["--eval_windows", "all", "--eval_limit", "6", "--eval_tokens", "1"]
RUNS = {
    "mlm": (mlm_task, MLM, SONGS, VALIDATED),
    "audio": (audio_task, AUDIO, SONGS, VALIDATED),
    "live": (live_task, LIVE, SONGS, VALIDATED),
    "classify": (
        classify_task,
        "model: {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}\n" + CLASSIFY,
        sets(),
        ["--eval_every", "2"],
    ),
}


def losses(folder):
    return [(line["step"], line["loss"], line.get("grad_norm")) for line in read_log(folder) if "loss" in line]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_ends_at_a_signal_goes_on_and_ends_whole(name, tmp_path, monkeypatch):
    task, text, data, words = RUNS[name]
    (tmp_path / "r.yaml").write_text(text)

    def run(folder, *more):
        options = ["--output_dir", str(tmp_path / folder), "--max_steps", "4", *words, *more]
        return task.train(parse_recipe(tmp_path / "r.yaml", options, task.KIND), data)

    run("whole")
    begin = RunLog.on_step_begin

    def terminated(self, args, state, control, **kwargs):
        if state.global_step == 1:
            signal.raise_signal(signal.SIGTERM)
        return begin(self, args, state, control, **kwargs)

    monkeypatch.setattr(RunLog, "on_step_begin", terminated)
    assert run("parts").state.global_step == 2
    assert newest_checkpoint(tmp_path / "parts").endswith("checkpoint-2") and not (tmp_path / "parts/final").exists()
    monkeypatch.undo()
    run("parts")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert losses(whole) == losses(parts) and len(losses(whole)) == 4
    for folder in (whole, parts):
        assert (folder / "final" / "model.safetensors").read_bytes() == (
            folder / "best" / "model.safetensors"
        ).read_bytes()
        assert not list(folder.glob("*.tmp")) + list(folder.glob(".*.tmp")) + list(folder.glob("final/*.bin"))
    assert (whole / "final/model.safetensors").read_bytes() == (parts / "final/model.safetensors").read_bytes()
    if name != "classify":
        measured = [[line[LOSS] for line in read_log(folder) if LOSS in line] for folder in (whole, parts)]
        assert measured[0] == measured[1] and len(measured[0]) == 4
        run("plain", "--eval_windows", "")
        assert losses(tmp_path / "plain") == losses(whole)  # measuring leaves the run as it is
        with pytest.raises(TrainingError, match="eval_windows is all or empty"):
            run("other", "--eval_windows", "some.csv")
    before = (parts / "log.jsonl").read_bytes()
    assert run("parts").state.global_step == 4 and (parts / "log.jsonl").read_bytes() == before  # it is finished
