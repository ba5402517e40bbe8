"""`midi-classification` and `midi-feature-extraction`: windows, labels, vectors, what a checkpoint carries."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import pipeline as plain_pipeline

import mortm_hf
from mortm_hf.models.configuration_bertm import BertmConfig
from mortm_hf.models.inputs_bertm import bare_segment, clip_durations, condense, merge_tracks, song_windows
from mortm_hf.models.midi_files import read_midi
from mortm_hf.models.modeling_bertm import BertmForMaskedLM, BertmForSequenceClassification
from mortm_hf.models.tokenization_mortm import MortmTokenizer
from tests.sample_songs import midi


TOKENIZER = MortmTokenizer()
SONG = midi(0, 21)  # 21 bars, one cut in half: 8, 8 and a rest of 5
NAMES = {0: "pop", 1: "lied", 2: "jazz"}


def folder_of(path, kind=BertmForSequenceClassification, **options):
    torch.manual_seed(0)
    shape = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    shape |= dict(mlp_layer_types=["dense", "dense"], router_balancing="none", initializer_range=0.3)
    kind(BertmConfig(**{**shape, **options})).save_pretrained(path)
    TOKENIZER.save_pretrained(path)
    return path


def labels(names):
    return {"num_labels": len(names), "id2label": names, "label2id": {v: k for k, v in names.items()}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folder_of(
        tmp_path_factory.mktemp("genre") / "g", **labels(NAMES), problem_type="single_label_classification"
    )


@pytest.fixture(scope="module")
def pipe(folder):
    return mortm_hf.pipeline("midi-classification", model=folder, device="cpu")


def by_hand(model, score, bars=8, form="tracks"):
    """Logits of the windows, one forward pass each."""
    rows = [bare_segment(TOKENIZER.vocabulary, music) for _, music in song_windows(score, bars, form)]
    with torch.no_grad():
        return np.concatenate([model(torch.tensor(row)[None]).logits.numpy() for row in rows])


def test_a_song_is_the_mean_of_its_windows(pipe):
    logits = by_hand(pipe.model, read_midi(SONG))
    assert len(logits) == 3
    want = torch.tensor(logits.mean(0)).softmax(-1)
    said = pipe(SONG)
    assert [d["label"] for d in said] == [NAMES[i] for i in want.argsort(descending=True).tolist()]
    assert [d["score"] for d in said] == pytest.approx(sorted(want.tolist(), reverse=True), abs=1e-6)
    assert sum(d["score"] for d in said) == pytest.approx(1)
    assert pipe(SONG, top_k=1) == said[:1]
    parts = pipe(SONG, windows=True)
    assert parts["labels"] == said
    assert [w["bars"] for w in parts["windows"]] == [(0, 8), (8, 16), (16, 21)]
    for window, row in zip(parts["windows"], logits):
        found = {d["label"]: d["score"] for d in window["labels"]}
        assert [found[n] for n in NAMES.values()] == pytest.approx(torch.tensor(row).softmax(-1).tolist(), abs=1e-5)


def test_inputs_and_lists(pipe, tmp_path):
    path = tmp_path / "song.mid"
    path.write_bytes(SONG)
    want = pipe(SONG)
    state = torch.get_rng_state()
    assert pipe(str(path)) == pipe(path) == pipe(read_midi(SONG)) == want
    other = midi(3)
    assert pipe([SONG, other]) == [want, pipe(other)]
    for got, alone in zip(pipe([SONG, other], batch_size=2), [want, pipe(other)]):
        assert [d["score"] for d in got] == pytest.approx([d["score"] for d in alone], abs=1e-5)
    assert pipe([]) == []
    assert torch.equal(torch.get_rng_state(), state)


def test_bars_tracks_and_window(pipe):
    score = read_midi(SONG)

    def scores(answer):
        return sorted(d["score"] for d in answer)

    def want(part, bars=8):
        return sorted(torch.tensor(by_hand(pipe.model, part, bars).mean(0)).softmax(-1).tolist())

    assert scores(pipe(SONG, bars=(3, 9))) == pytest.approx(want(score.window(3, 9)), abs=1e-5)
    assert scores(pipe(SONG, tracks=[1])) == pytest.approx(want(score.take_tracks([1])), abs=1e-5)
    assert scores(pipe(SONG, window=4)) == pytest.approx(want(score, 4), abs=1e-5)
    assert pipe(SONG, bars=(3, 9), windows=True)["windows"][0]["bars"] == (3, 9)
    for wrong in ({"bars": (5, 5)}, {"bars": (0, 99)}, {"bars": 3}, {"tracks": [7]}, {"window": 0}):
        with pytest.raises(ValueError) as caught:
            pipe(SONG, **wrong)
        assert caught.value.code.startswith("prompt")
    with pytest.raises(TypeError, match="no argument 'beats'"):
        pipe(SONG, beats=3)
    with pytest.raises(ValueError, match="needs a MIDI file"):
        pipe(None)
    with pytest.raises(ValueError):
        pipe(b"no midi")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("task", ["midi-classification", "midi-feature-extraction"])
def test_precision_is_an_argument(task, dtype, folder):
    exact, half = (mortm_hf.pipeline(task, model=folder, device="cpu", dtype=kind) for kind in (torch.float32, dtype))
    assert {parameter.dtype for parameter in half.model.parameters()} == {dtype}
    for result in half([SONG, SONG], batch_size=2):
        want = exact(SONG)
        if task == "midi-classification":
            want, result = ({entry["label"]: entry["score"] for entry in one} for one in (want, result))
            assert result == pytest.approx(want, abs=0.05)
        else:
            assert result["song"].dtype == np.float32
            assert np.abs(result["song"] - want["song"]).max() < 0.05 * np.abs(want["song"]).max()


@pytest.mark.parametrize("form", ["merged", "drums"])
def test_the_form_is_that_of_the_checkpoint(form, tmp_path):
    folder_of(tmp_path, **labels(NAMES), window_form=form, window_bars=4)
    pipe = mortm_hf.pipeline("midi-classification", model=tmp_path, device="cpu")
    want = torch.tensor(by_hand(pipe.model, read_midi(SONG), 4, form).mean(0)).softmax(-1)
    assert sorted(d["score"] for d in pipe(SONG)) == pytest.approx(sorted(want.tolist()), abs=1e-5)


def test_one_logit_and_several_labels_at_a_time(tmp_path):
    folder_of(tmp_path / "q", **labels({0: "machine"}), negative_label="human")
    pipe = mortm_hf.pipeline("midi-classification", model=tmp_path / "q", device="cpu")
    z = by_hand(pipe.model, read_midi(SONG)).mean()
    found = {d["label"]: d["score"] for d in pipe(SONG)}
    assert found == pytest.approx({"machine": 1 / (1 + np.exp(-z)), "human": 1 / (1 + np.exp(z))}, abs=1e-6)
    reward = mortm_hf.BertmReward.from_pretrained(tmp_path / "q", mode="logit")
    assert reward.rate(SONG) == pytest.approx(-z, abs=1e-5)  # the same windows
    folder_of(tmp_path / "m", **labels(NAMES), problem_type="multi_label_classification")
    pipe = mortm_hf.pipeline("midi-classification", model=tmp_path / "m", device="cpu")
    chance = 1 / (1 + np.exp(-by_hand(pipe.model, read_midi(SONG)).mean(0)))
    assert sorted(d["score"] for d in pipe(SONG)) == pytest.approx(sorted(chance), abs=1e-5)
    plain = folder_of(tmp_path / "p", **labels({0: "machine"}))
    assert [d["label"] for d in mortm_hf.pipeline("midi-classification", model=plain)(SONG)] == ["machine"]


def test_windows_of_a_song():
    score = read_midi(SONG)
    windows = song_windows(score, 8)
    assert [bars for bars, _ in windows] == [(0, 8), (8, 16), (16, 21)]
    assert [bars for bars, _ in song_windows(score, 18)] == [(0, 18)]  # the rest is too short
    assert [bars for bars, _ in song_windows(score, 18, rest=0.0)] == [(0, 18), (18, 21)]
    assert [bars for bars, _ in song_windows(score, 100)] == [(0, 21)]
    for _, music in windows:
        assert (music.onset + music.duration).max() <= music.bars.end
    assert sum(music.n_notes for _, music in windows) == score.n_notes
    late = score.window(0, 2)
    object.__setattr__(late, "duration", late.duration + 500)
    assert (clip_durations(late).onset + clip_durations(late).duration <= late.bars.end).all()
    merged = merge_tracks(score)
    assert merged.programs.tolist() == [0] and 0 < merged.n_notes <= score.n_notes
    for pitch in np.unique(merged.pitch):
        rows = merged.pitch == pitch
        assert (merged.onset[rows][1:] >= (merged.onset + merged.duration)[rows][:-1]).all()  # one at a time
    assert merge_tracks(score, drums=True).programs.tolist() == [128]
    both = condense(score)
    assert both.programs.tolist() == [0, 128] and both.n_notes > merged.n_notes
    assert np.array_equal(both.pitch[both.track == 0], merged.pitch)
    assert condense(merged).programs.tolist() == [0]
    assert condense(replace(merged, programs=np.array([128], dtype=np.int16))).programs.tolist() == [128]
    with pytest.raises(ValueError, match="form of a window"):
        song_windows(score, 8, "chords")


# --- vectors


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("encoder") / "e", BertmForMaskedLM)


def test_embeddings_are_means_over_notes(encoder):
    pipe = mortm_hf.pipeline("midi-feature-extraction", model=encoder, device="cpu")
    score = read_midi(SONG)
    found = pipe(SONG)
    assert found["song"].shape == (32,) and found["bars"].shape == (21, 32) and found["notes"].shape == (21,)
    assert found["song"].dtype == found["bars"].dtype == np.float32
    vocabulary = TOKENIZER.vocabulary
    sums, counts = np.zeros((21, 32)), np.zeros(21)
    for (first, last), music in song_windows(score, 8, rest=0.0):
        ids = bare_segment(vocabulary, music)
        with torch.no_grad():
            states = pipe.model(torch.tensor(ids)[None]).last_hidden_state[0].numpy()
        bar = -1
        for token, state in zip(ids, states):  # the slow way
            name = vocabulary.tokens[token]
            if name.startswith("<INST"):
                bar = first - 1
            elif name == "<SME>":
                bar += 1
            elif name[:2] in ("s_", "p_", "d_"):
                sums[bar], counts[bar] = sums[bar] + state, counts[bar] + 1
        assert bar == last - 1
    assert np.array_equal(found["notes"], counts)
    assert np.abs(found["bars"] - sums / np.maximum(counts, 1)[:, None]).max() < 1e-4
    assert np.abs(found["song"] - sums.sum(0) / counts.sum()).max() < 1e-4
    part = pipe(SONG, bars=(4, 7))
    assert part["bars"].shape == (3, 32)
    deep = pipe(SONG, layer=1)
    assert deep["song"].shape == (32,) and np.abs(deep["song"] - found["song"]).max() > 1e-3
    both = pipe([SONG, midi(1)])
    assert np.allclose(both[0]["song"], found["song"], atol=1e-5) and not np.allclose(both[1]["song"], found["song"])


def test_every_head_gives_embeddings(folder, encoder):
    for source in (folder, encoder):
        pipe = mortm_hf.pipeline("midi-feature-extraction", model=source, device="cpu")
        assert type(pipe.model).__name__ == "BertmModel"
    whole = mortm_hf.pipeline(
        "midi-feature-extraction", model=BertmForMaskedLM.from_pretrained(encoder), tokenizer=TOKENIZER
    )
    alone = mortm_hf.pipeline("midi-feature-extraction", model=encoder)
    assert np.allclose(whole(SONG)["song"], alone(SONG)["song"], atol=1e-5)


def test_transformers_own_tasks_work_on_text(encoder):
    text = TOKENIZER.decode(TOKENIZER.encode_midi(SONG, bars=(0, 1))[:12])
    states = plain_pipeline("feature-extraction", model=str(encoder), tokenizer=TOKENIZER)(text, return_tensors=True)
    assert states.shape == (1, 12, 32)
    words = text.split()
    words[-1] = "<MASK>"
    filled = plain_pipeline("fill-mask", model=BertmForMaskedLM.from_pretrained(encoder), tokenizer=TOKENIZER)
    assert len(filled(" ".join(words))) == 5


# --- what a checkpoint carries


def test_pipelines_save_complete_folders(pipe, tmp_path):
    before = pipe(SONG)
    pipe.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert set(config["custom_pipelines"]) == {"midi-classification", "midi-feature-extraction"}
    assert config["custom_pipelines"]["midi-classification"]["pt"] == ["AutoModelForSequenceClassification"]
    code = {path.name for path in tmp_path.glob("*.py")}
    assert {"pipeline_bertm.py", "reward_bertm.py", "inputs_bertm.py", "modeling_bertm.py"} <= code
    models = Path(mortm_hf.__file__).parent / "models"
    assert all((tmp_path / name).read_bytes() == (models / name).read_bytes() for name in code)
    assert mortm_hf.pipeline("midi-classification", model=tmp_path)(SONG) == before


def test_a_task_without_a_bundled_checkpoint_says_so(monkeypatch, tmp_path):
    monkeypatch.setitem(mortm_hf.bundled.CONSTANTS, "BERTM_GENRE", str(tmp_path / "missing"))
    with pytest.raises(ValueError, match="missing"):
        mortm_hf.pipeline("midi-classification")
