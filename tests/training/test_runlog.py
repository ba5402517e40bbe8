"""The log of a run: what counts after a kill, and the lines for people."""

import io
import json
from types import SimpleNamespace

import pytest

from mortm_hf.models.errors_mortm import TrainingError
from mortm_hf.training.runlog import Progress, RunLog, read_log


def write(path, *lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))


def test_lines_beyond_the_checkpoint_are_superseded(tmp_path):
    write(
        tmp_path / "log.jsonl",
        {"event": "start", "step": 0},
        {"step": 1, "loss": 5.0, "tokens": 10},
        {"step": 2, "loss": 4.0, "tokens": 20},
        {"step": 3, "loss": 3.0, "tokens": 30},
        '{"step": 4, "lo\n',  # cut by a kill
        {"event": "start", "step": 2},
        {"step": 3, "loss": 3.5, "tokens": 30},
    )
    assert [line["loss"] for line in read_log(tmp_path) if "loss" in line] == [5.0, 4.0, 3.5]
    assert read_log(tmp_path / "none.jsonl") == []


def test_a_cut_line_is_closed_before_the_next(tmp_path):
    write(tmp_path / "log.jsonl", {"step": 1, "loss": 5.0, "tokens": 10}, '{"step": 2, "lo')
    log = RunLog(tmp_path, lambda step: 10 * step)
    log._close_cut_line()
    log.write(event="start", step=1)
    assert [line["step"] for line in read_log(tmp_path)] == [1, 1]
    assert log._tokens_before(1) == (1, 10)


def test_tokens_go_on_from_what_another_number_of_processes_saw(tmp_path):
    write(tmp_path / "log.jsonl", {"event": "start", "step": 0}, {"step": 4, "loss": 1.0, "tokens": 4000})
    log = RunLog(tmp_path, lambda step: 500 * step)  # twice as many processes had run before
    log.base = log._tokens_before(4)
    assert log.tokens(4) == 4000 and log.tokens(6) == 5000


def test_a_time_of_day_that_is_none(tmp_path):
    with pytest.raises(TrainingError, match=r"stop_at .* 99"):
        RunLog(tmp_path, lambda step: step, stop_at="99")
    assert RunLog(tmp_path, lambda step: step, stop_at="23:30").deadline < float("inf")


def test_speed_leaves_validation_out(tmp_path, monkeypatch):
    import mortm_hf.training.runlog as module

    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    log = RunLog(tmp_path, lambda step: 1000 * step)
    log.last = (100.0, 0)
    now[0] = 110.0
    log.on_evaluate(None, None, None, metrics={"eval_seconds": 5.0})
    assert log.speed(5) == 1000.0  # 5000 tokens in 10 - 5 seconds
    assert log.speed(5) is None


def test_plain_lines_where_there_is_no_terminal(tmp_path):
    out = io.StringIO()
    log = RunLog(tmp_path, lambda step: 2048 * step)
    progress = Progress(log, seconds=1e9, file=out)
    state = SimpleNamespace(is_world_process_zero=True, global_step=0, max_steps=1000)
    progress.on_train_begin(None, state, None)
    state.global_step = 10
    progress.on_log(None, state, None, logs={"loss": 2.5, "tokens_per_second": 2000.0})
    state.global_step = 20
    progress.on_log(None, state, None, logs={"loss": 2.25})  # too soon
    progress.on_log(None, state, None, logs={"eval_bits_per_note": 6.5})
    progress.on_log(None, state, None, logs={"train_runtime": 3.0})
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("step 10/1000  20 k tokens  loss 2.500  tok/s 2000")
    assert "loss 2.250" in lines[1] and "bits/note 6.500" in lines[1] and "min left" in lines[1]
