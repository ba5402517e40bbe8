"""Training of the models that read no tokens: their windows, a resumed run, and what `mortm train` finds."""

import importlib
import json

import numpy as np
import pytest
import torch

from mortm_hf import (
    MidiError,
    MortmLiveConfig,
    MortmLiveForCausalGeneration,
    MortmLiveProcessor,
    VMortmFeatureExtractor,
    VMortmForSpectrogramGeneration,
)
from mortm_hf.data.mel_frames import SoundWindows, build_sound
from mortm_hf.data.piano_rolls import RollWindows, assign
from mortm_hf.models.errors_mortm import DataError
from mortm_hf.training.recipe import RECIPES
from mortm_hf.training.runlog import RunLog
from mortm_hf.training.tasks import audio_task, live_task, read_recipe, task_of
from mortm_hf.training.validation import mean_losses
from tests.sample_songs import store


SONGS = store(3, 8)
COMMON = """
data: {corpora: {band: {weight: 1}, lead: {weight: 1}}}
training:
  {seed: 7, max_steps: 4, decay_steps: 1, warmup_steps: 1, learning_rate: 0.003, use_cpu: true, logging_steps: 1,
   save_minutes: 0, tensorboard: false}
"""
LAYERS = """num_hidden_layers: 1, num_attention_heads: 2, moe_intermediate_size: 16, num_local_experts: 2,
   shared_expert_intermediate_size: 16, hidden_size: 32"""
AUDIO = f"task: audio\nmodel:\n  {{num_mel_bins: 20, patch_size: 4, {LAYERS}}}\n"
AUDIO += "sound: {minutes: 0.3, bars: 4, sampling_rate: 8000, frames: 64, batch: 2}" + COMMON
LIVE = f"task: live\nmodel:\n  {{instruments: [73, 0], chunk_ticks: 16, {LAYERS}}}\n"
LIVE += "roll: {slots: [{names: [melody]}, {programs: [0]}], chunks: 12, batch: 2}" + COMMON
SLOTS = [{"names": ["melody"]}, {"programs": [0]}]


def train(kind: str, path, folder, *words):
    task = {"audio": audio_task, "live": live_task}[kind]
    return task.train(read_recipe(path, ["--output_dir", str(folder), *words]), {"train": SONGS})


def test_every_recipe_of_mortm_train_has_a_module_that_runs_it():
    found = {path.stem: yaml_task(path) for path in RECIPES.glob("*.yaml")}
    assert found["vmortm_small"] == "audio" and found["live_small"] == "live"
    for task in set(found.values()) - {"rlmf"}:  # a command of its own
        module = importlib.import_module(f"mortm_hf.training.tasks.{task}_task")
        assert callable(module.train) and module.KIND.task == task


def yaml_task(path):
    return "rlmf" if path.stem.startswith("rlmf") else task_of(path)


@pytest.mark.parametrize("kind, recipe", [("audio", AUDIO), ("live", LIVE)])
def test_a_resumed_run_is_the_run(kind, recipe, tmp_path, monkeypatch):
    path = tmp_path / "tiny.yaml"
    path.write_text(recipe)
    whole = train(kind, path, tmp_path / "whole")
    end = RunLog.on_step_end

    def stop_at_two(self, args, state, control, **kwargs):
        control = end(self, args, state, control, **kwargs) or control
        if state.global_step == 2:
            control.should_save = control.should_training_stop = True
        return control

    monkeypatch.setattr(RunLog, "on_step_end", stop_at_two)
    train(kind, path, tmp_path / "parts")
    assert not (tmp_path / "parts" / "final").exists()
    monkeypatch.undo()
    parts = train(kind, path, tmp_path / "parts")
    assert all(torch.equal(v, parts.model.state_dict()[k]) for k, v in whole.model.state_dict().items())
    losses = [line["loss"] for line in log_of(tmp_path / "whole") if "loss" in line]
    assert len(losses) == 4 and len(set(losses)) == 4
    kinds = {"audio": VMortmForSpectrogramGeneration, "live": MortmLiveForCausalGeneration}
    model = kinds[kind].from_pretrained(tmp_path / "whole" / "final")
    state = whole.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    readers = {"audio": VMortmFeatureExtractor, "live": MortmLiveProcessor}
    readers[kind].from_pretrained(tmp_path / "whole" / "final")
    with pytest.raises(ValueError, match="another recipe"):
        train(kind, path, tmp_path / "whole", "--seed", "8")


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_sound_is_rendered_once_and_windows_are_pure(tmp_path, monkeypatch):
    extractor = VMortmFeatureExtractor(feature_size=20, sampling_rate=8000)
    made = build_sound(SONGS, extractor, 0.3, tmp_path, bars=4)
    assert len(made) >= 1 and made.frames.dtype == np.float16 and made.frames.max() > 0
    monkeypatch.setattr("mortm_hf.data.mel_frames.synthesize", None)  # a second rendering would fail
    again = build_sound(SONGS, extractor, 0.3, tmp_path, bars=4)
    assert np.array_equal(made.frames, again.frames) and made.pieces == again.pieces
    windows = SoundWindows(made, 64, 3, 10, seed=1)
    one, other = windows[4], SoundWindows(again, 64, 3, 10, seed=1)[4]
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["input_features"], windows[5]["input_features"])
    assert not list(tmp_path.glob("*partial*"))


def test_songs_that_cannot_be_rendered_are_refused_with_the_reason(tmp_path, monkeypatch):
    def silent(*_, **__):
        raise MidiError("it is silent", "midi.empty")

    monkeypatch.setattr("mortm_hf.data.mel_frames.wave_of", silent)
    with pytest.raises(DataError, match=r"no song could be rendered.*it is silent"):
        build_sound(SONGS, VMortmFeatureExtractor(feature_size=20, sampling_rate=8000), 0.3, tmp_path)
    assert not list(tmp_path.iterdir())


def test_rolls_hold_the_notes_of_their_windows():
    processor = MortmLiveProcessor(instruments=[73, 0])
    score = SONGS[0].score
    slots = assign(score, SLOTS)
    assert {0, 1} <= set(slots) and [s for s, p in zip(slots, score.programs) if p == 128] in ([-1], [])
    data = RollWindows(SONGS, processor, SLOTS, 12, 2, 5, seed=3)
    rolls, mask, phases, play = data.window(0, np.random.default_rng(0), start_bar=0, shift=0)
    notes = processor.roll_to_notes(rolls)
    inside = score.onset < 12 * 16
    for slot in (0, 1):
        wanted = inside & (np.asarray(slots)[score.track] == slot)
        mine = notes.slot == slot
        assert sorted(zip(notes.onset[mine], notes.pitch[mine])) == sorted(
            zip(score.onset[wanted], score.pitch[wanted])
        )
    assert mask.tolist() == [1] * 12 and phases.tolist() == [*range(6), *range(6)] and play.sum() == 1
    shifted = data.window(0, np.random.default_rng(0), start_bar=0, shift=2)[0]
    assert np.array_equal(shifted[:, :, 2:], rolls[:, :, :-2])
    first, second = data[1], RollWindows(SONGS, processor, SLOTS, 12, 2, 5, seed=3)[1]
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_part_is_kept_from_its_player_and_still_asked_for():
    processor = MortmLiveProcessor(instruments=[73, 0])
    plain, silenced = (RollWindows(SONGS, processor, SLOTS, 12, 2, 40, seed=3, silence=s) for s in (0.0, 1.0))
    quiet = total = 0
    for index in range(40):
        whole, part = plain[index], silenced[index]
        assert torch.equal(whole["labels"], part["labels"]) and torch.equal(whole["play"], part["play"])
        own = part["play"].repeat_interleave(2, dim=1)
        for row in range(2):
            heard, truth = part["rolls"][row], part["labels"][row]
            assert torch.equal(heard[..., ~own[row]], truth[..., ~own[row]])  # the others are heard
            changed = (heard != truth).flatten(1).any(1)
            assert not heard[changed][..., own[row]].any()  # whole chunks are silent
            quiet += int(changed.sum())
            total += int(truth[..., own[row]].flatten(1).any(1).sum())
        assert torch.equal(silenced[index]["rolls"], part["rolls"])  # a pure function of the index
    assert 0.35 < quiet / total < 0.65


def test_what_was_silenced_is_predicted_but_not_reconstructed():
    torch.manual_seed(0)
    path = dict(num_hidden_layers=1, num_attention_heads=2, moe_intermediate_size=16, num_local_experts=2)
    path |= dict(shared_expert_intermediate_size=16, hidden_size=32, instruments=[73, 0], chunk_ticks=16)
    model = MortmLiveForCausalGeneration(MortmLiveConfig(**path)).eval()
    labels = (torch.rand(1, 4, 16, 128, 4) > 0.97).float()
    rolls = labels.clone()
    rolls[:, 2, :, :, 2:] = 0.0
    with torch.inference_mode():
        whole, part = model(labels, labels=labels).losses, model(rolls, labels=labels).losses
        own = model(rolls, labels=rolls).losses
    assert torch.allclose(part["pitch"], own["pitch"]) and not torch.allclose(part["pitch"], whole["pitch"])
    assert not torch.allclose(part["next_pitch"], own["next_pitch"])


def test_songs_without_two_slots_are_refused():
    with pytest.raises(DataError, match="two slots"):
        RollWindows(SONGS, MortmLiveProcessor(instruments=[73, 0]), [{"names": ["none"]}, {}], 12, 2, 5)


def test_means_of_losses():
    class Model(torch.nn.Module):
        device = "cpu"

        def forward(self, x):
            return {"loss": x.mean(), "losses": {"pitch": 2 * x.mean()}}

    batches = [{"x": torch.ones(2)}, {"x": 3 * torch.ones(2)}]
    assert mean_losses(Model(), batches, ("loss", "pitch")) == {"loss": 2.0, "pitch": 4.0}
