"""What both pipelines owe a caller beyond music: batches, seeds, streaming, devices, precision, a progress bar."""

import pytest
import torch

import mortm_hf
from mortm_hf import ChordEstimationPipeline, MidiGenerationPipeline, MortmTokenizer
from tests.models.test_pipeline_mortm import make_model, make_song


TASKS = {
    "midi-generation": (MidiGenerationPipeline, dict(bars=2, instruments=["flute"], window=1, seed=0)),
    "chord-estimation": (ChordEstimationPipeline, dict(bars=(0, 2), window=1, tracks=[1])),
}
every_task = pytest.mark.parametrize("task", TASKS)


@pytest.fixture(scope="module")
def tokenizer():
    return MortmTokenizer()


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def songs():
    return [make_song(bars=n) for n in (2, 6, 3)]  # prompts of different lengths


def build(task, model, tokenizer, **options):
    kind, request = TASKS[task]
    return kind(model=model, tokenizer=tokenizer, task=task, **{"device": "cpu", **options}), request


@every_task
def test_batches_change_nothing(task, model, tokenizer, songs):
    pipe, request = build(task, model, tokenizer)
    if task == "chord-estimation":  # all bars of each
        request = {"window": 4, "tracks": [1]}
    alone = [pipe(song, progress=False, **request)[0] for song in songs]
    together = pipe(songs, batch_size=3, progress=False, **request)
    for one, (other,) in zip(alone, together, strict=True):
        assert one["token_ids"] == other["token_ids"] and one["midi"] == other["midi"]
    assert len({len(result["token_ids"]["prompt"]) for result in alone}) > 1


@every_task
def test_seeds_and_copies(task, model, tokenizer, songs):
    pipe, request = build(task, model, tokenizer)
    request = {**request, "do_sample": True, "temperature": 2.0, "progress": False}
    first, second = pipe(songs[0], **{**request, "seed": 5}, num_return_sequences=2)
    assert pipe(songs[0], **{**request, "seed": 6})[0]["token_ids"] == second["token_ids"]
    assert first["token_ids"] != second["token_ids"] and first["report"]["seed"] == 5


@every_task
def test_finished_bars_are_told(task, model, tokenizer, songs):
    pipe, request = build(task, model, tokenizer)
    told = []
    results = pipe(songs[:2], batch_size=2, callback=told.append, progress=False, **request)
    for index, (result,) in enumerate(results):
        first, stop = result["bars"]
        mine = [event for event in told if event["input"] == index]
        assert [event["bar"] for event in mine] == list(range(first, stop))
        assert {event["instrument"] for event in mine} == {"Flute" if task == "midi-generation" else "chords"}
        # what was told is what was generated: nothing is told twice, nothing is kept back
        for event, window in zip(mine, result["token_ids"]["windows"], strict=True):
            inside = " ".join(map(str, event["token_ids"]))
            assert inside in " ".join(map(str, window["generated"]))


@every_task
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precision_is_an_argument(task, dtype, tokenizer, songs, tmp_path):
    make_model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    pipe = mortm_hf.pipeline(task, model=tmp_path, device="cpu", dtype=dtype)
    assert {parameter.dtype for parameter in pipe.model.parameters()} == {dtype}
    (result,) = pipe(songs[0], progress=False, **TASKS[task][1])
    assert result["report"]["complete"] and result["midi"][:4] == b"MThd"
    if dtype == torch.float32:
        want, request = build(task, make_model(), tokenizer)
        assert want(songs[0], progress=False, **request)[0]["midi"] == result["midi"]


@every_task
def test_the_model_moves_to_the_device(task, tokenizer, songs):
    for device in ("cpu", torch.device("cpu"), -1):
        pipe, _ = build(task, make_model(), tokenizer, device=device)
        assert pipe.device == torch.device("cpu") == next(pipe.model.parameters()).device
    away, request = build(task, make_model(), tokenizer, device="meta")
    assert next(away.model.parameters()).is_meta
    with pytest.raises((RuntimeError, NotImplementedError, ValueError)):  # inputs went to that device as well
        away(songs[0], progress=False, **request)


@pytest.mark.gpu
@every_task
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu(task, dtype, tokenizer, songs):
    pipe, request = build(task, make_model().to(dtype), tokenizer, device=0)
    assert next(pipe.model.parameters()).is_cuda
    results = pipe(songs, batch_size=3, progress=False, **request)
    assert all(result["report"]["complete"] for (result,) in results)
    again = pipe(songs, batch_size=3, progress=False, **request)
    assert [result["midi"] for (result,) in results] == [result["midi"] for (result,) in again]


@every_task
@pytest.mark.parametrize("asked", [True, None, False])
def test_progress(task, asked, model, tokenizer, songs, capsys):
    pipe, request = build(task, model, tokenizer)
    pipe(songs[1], progress=asked, **request)
    shown = capsys.readouterr().err
    if asked is False:
        assert shown == ""
    else:  # two windows: shown unless it is turned off
        assert f"{task}: 100%" in shown and "2/2" in shown
    pipe(songs[1], progress=asked, **{**request, "window": 4})
    assert ("2/2" in capsys.readouterr().err) == (asked is True)  # one window needs no bar


@every_task
def test_a_file_is_parsed_once(task, model, tokenizer, songs, tmp_path, monkeypatch):
    """However many windows and versions a call makes, and though the file itself is needed beside its notes."""
    from mortm_hf.models import midi_files

    path = tmp_path / "song.mid"
    songs[1].dump_midi(path)
    pipe, request = build(task, model, tokenizer)
    read, parsed = [], midi_files.symusic.Score.from_midi
    monkeypatch.setattr(midi_files, "symusic", Counting(midi_files.symusic, read, parsed))
    results = pipe(str(path), progress=False, num_return_sequences=2, do_sample=True, **{**request, "seed": 0})
    assert len(results) == 2 and results[0]["report"]["windows"] == 2 and len(read) == 1
    if task == "midi-generation":  # one more file, for two windows of two versions
        pipe(str(path), past=path, progress=False, num_return_sequences=2, **request)
        assert len(read) == 3


class Counting:
    """symusic, with a list of what was parsed."""

    def __init__(self, package, read, parse):
        self._package, self.Score = package, self
        self.from_midi = lambda *words, **more: (read.append(1), parse(*words, **more))[1]

    def __call__(self, *words):
        return self._package.Score(*words)

    def __getattr__(self, name):
        return getattr(self._package, name)
