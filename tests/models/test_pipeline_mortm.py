"""The pipelines on a tiny model with random weights: all forms of call, exact bars, untouched music, seeds, errors."""

import random

import numpy as np
import pytest
import symusic
import torch

import mortm_hf
from mortm_hf import (
    ChordEstimationPipeline,
    MetricScore,
    MidiGenerationPipeline,
    MortmConfig,
    MortmForCausalLM,
    MortmTokenizer,
)
from mortm_hf.models.generation_windows import SongRow
from mortm_hf.models.midi_files import read_midi
from tests.grammar_validator import validate


TPQ = 480
DRUMS = 128


def notes_of(track) -> set:
    return {(n.time, n.duration, n.pitch, n.velocity) for n in track.notes}


def make_song(bars=12, tpq=TPQ, meter=(4, 4)) -> symusic.Score:
    """Flute, piano and drums with uneven timing, a pedal, an odd velocity here and there and a held note."""
    rng = random.Random(1)
    score = symusic.Score(tpq)
    score.time_signatures.append(symusic.TimeSignature(0, *meter))
    score.tempos.append(symusic.Tempo(0, qpm=100))
    score.key_signatures.append(symusic.KeySignature(0, 0, 0))
    bar = tpq * 4 * meter[0] // meter[1]
    for name, program, drum, low in (("Solo", 73, False, 72), ("Keys", 0, False, 48), ("Kit", 0, True, 36)):
        track = symusic.Track(name, program, drum)
        for b in range(bars):
            for step in range(3):
                jitter = rng.randrange(max(tpq // 60, 1))
                time = b * bar + step * tpq // 2 + jitter
                velocity = rng.randrange(40, 110)
                track.notes.append(symusic.Note(time, tpq // 3, low + rng.randrange(12), velocity))
        track.controls.append(symusic.ControlChange(bar, 7, 90))
        score.tracks.append(track)
    for time, value in ((bar, 127), (2 * bar, 0)):
        score.tracks[1].controls.append(symusic.ControlChange(time, 64, value))
    if bars > 9:
        score.tracks[1].notes.append(symusic.Note(7 * bar + tpq, 2 * bar, 41, 77))  # rings from bar 7 into bar 9
    return symusic.Score.from_midi(score.dumps_midi())


@pytest.fixture(scope="module")
def song():
    return make_song()


@pytest.fixture(scope="module")
def path(song, tmp_path_factory):
    name = tmp_path_factory.mktemp("midi") / "song.mid"
    song.dump_midi(name)
    return str(name)


@pytest.fixture(scope="module")
def tokenizer():
    return MortmTokenizer()


def make_model(context=2048, seed=0):
    torch.manual_seed(seed)
    config = MortmConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
        num_local_experts=2,
        max_position_embeddings=context,
    )
    return MortmForCausalLM(config).eval()


@pytest.fixture(scope="module")
def pipe(tokenizer):
    return MidiGenerationPipeline(model=make_model(), tokenizer=tokenizer, task="midi-generation", device="cpu")


@pytest.fixture(scope="module")
def estimator(tokenizer):
    return ChordEstimationPipeline(model=make_model(), tokenizer=tokenizer, task="chord-estimation", device="cpu")


def check(result, tokenizer):
    """What every result holds: valid segments, MIDI bytes equal to the score, generated bars that sound."""
    windows = result["token_ids"]["windows"]
    for window in windows:
        parsed = validate(tokenizer.convert_ids_to_tokens(window["prompt"] + window["generated"]))
        assert parsed.marker in ("<MGEN>", "<CGEN>")
    assert result["token_ids"]["prompt"] == windows[0]["prompt"]
    assert result["token_ids"]["generated"] == [i for w in windows for i in w["generated"]]
    assert isinstance(result["score"], type(symusic.Score(480))) and result["midi"][:4] == b"MThd"
    assert result["report"]["complete"] and result["report"]["windows"] == len(windows)
    return read_midi(result["midi"])


# ---------------------------------------------------------------------------------------------------------- generation


def test_continue_keeps_the_song_and_adds_exactly_the_bars(pipe, tokenizer, song, path):
    (result,) = pipe(path, bars=3, seed=0)
    music = check(result, tokenizer)
    assert result["bars"] == (12, 15) and music.n_bars == 15
    assert result["report"]["instruments"] == ["Flute", "Acoustic Grand Piano", "Drums"]
    cut = 12 * 4 * TPQ
    for old, new in zip(song.tracks, result["score"].tracks):
        assert {n for n in notes_of(new) if n[0] < cut} == notes_of(old)
        assert any(n[0] >= cut for n in notes_of(new))  # every asked instrument sounds
        assert (old.name, old.program, old.is_drum) == (new.name, new.program, new.is_drum)
        assert list(new.controls) == list(old.controls) and list(new.pedals) == list(old.pedals)
    assert len(song.tracks[1].pedals) == 1
    again = symusic.Score.from_midi(result["midi"])
    assert [list(t.controls) for t in again.tracks] == [list(t.controls) for t in song.tracks]


def test_generated_tokens_are_the_notes_of_the_score(pipe, tokenizer, path):
    (result,) = pipe(path, bars=2, seed=0)
    made = tokenizer.decode_score(result["token_ids"]["prompt"] + result["token_ids"]["generated"])
    found = read_midi(result["midi"]).window(12, 14)
    for name in ("track", "onset", "pitch", "duration"):
        np.testing.assert_array_equal(getattr(made, name), getattr(found, name))


def test_design_example_over_chords(pipe, tokenizer, path):
    chords = ["C", "Am", "F", "G"]
    out = pipe(path, bars=8, instruments=["piano"], key="C major", chords=chords, num_return_sequences=2, seed=0)
    assert len(out) == 2 and out[0]["midi"] != out[1]["midi"]
    for result in out:
        check(result, tokenizer)
        tokens = tokenizer.convert_ids_to_tokens(result["token_ids"]["prompt"])
        assert "<CONST_C>" in tokens and "k_CM" in tokens and tokens.count("CR_A") == 2
        assert result["bars"] == (12, 20)


def test_from_nothing_in_three_four(pipe, tokenizer):
    (result,) = pipe(None, bars=4, instruments=["piano", "drums"], meter="3/4", tempo=96, seed=0)
    music = check(result, tokenizer)
    assert result["bars"] == (0, 4) and music.n_bars == 4
    assert music.bars.length.tolist() == [72] * 4 and music.programs.tolist() == [0, DRUMS]
    assert abs(result["score"].tempos[0].qpm - 96) < 4  # the nearest of 32 tempo bins


def test_infill_rewrites_the_bars_and_nothing_else(pipe, tokenizer, song, path):
    (result,) = pipe(path, infill=(8, 10), seed=0)
    music = check(result, tokenizer)
    assert result["bars"] == (8, 10) and music.n_bars == 12
    first, last = (8 * 4 * TPQ, 10 * 4 * TPQ)
    half_tick = TPQ // 48
    for old, new in zip(song.tracks, result["score"].tracks):
        outside = {n for n in notes_of(old) if not first - half_tick <= n[0] < last - half_tick}
        assert outside <= notes_of(new)
        changed = notes_of(new) - outside
        assert changed and all(first <= n[0] < last for n in changed)
        assert not changed & notes_of(old)
    # bytes too: first-in first-out pairing of note-offs leaves the kept notes as they were
    again = symusic.Score.from_midi(result["midi"])
    kept = {n for t in song.tracks for n in notes_of(t) if not first - half_tick <= n[0] < last - half_tick}
    assert kept <= {n for t in again.tracks for n in notes_of(t)}


def test_infill_of_one_instrument_hears_the_others(pipe, tokenizer, song, path):
    (result,) = pipe(path, infill=(4, 6), instruments=["flute"], seed=1)
    check(result, tokenizer)
    tokens = tokenizer.convert_ids_to_tokens(result["token_ids"]["prompt"])
    assert {"<PAST_M>", "<FUTURE_M>", "<CONST_M>"} <= set(tokens)
    for index in (1, 2):
        assert notes_of(result["score"].tracks[index]) == notes_of(song.tracks[index])
    assert notes_of(result["score"].tracks[0]) != notes_of(song.tracks[0])


def test_accompany_adds_tracks_to_the_given_ones(pipe, tokenizer, song, path):
    (result,) = pipe(path, tracks=[0], instruments=["bass", "strings"], bars=4, seed=0)
    music = check(result, tokenizer)
    assert result["bars"] == (0, 4) and music.n_bars == 12
    for old, new in zip(song.tracks, result["score"].tracks):
        assert notes_of(old) == notes_of(new)
    assert [t.program for t in result["score"].tracks] == [73, 0, 0, 32, 40]
    for new in result["score"].tracks[3:]:
        assert len(new.notes) and max(n.time for n in new.notes) < 4 * 4 * TPQ


def test_start_inside_goes_on_from_there(pipe, tokenizer, song, path):
    (result,) = pipe(path, start=4, bars=2, seed=0)
    music = check(result, tokenizer)
    assert result["bars"] == (4, 6) and music.n_bars == 6
    for old, new in zip(song.tracks, result["score"].tracks):
        assert {n for n in notes_of(new) if n[0] < 16 * TPQ} == {n for n in notes_of(old) if n[0] < 16 * TPQ}


def test_many_bars_come_in_windows(pipe, tokenizer, path):
    (result,) = pipe(path, bars=19, instruments=["flute"], seed=0, progress=False)
    music = check(result, tokenizer)
    assert result["report"]["windows"] >= 3 and music.n_bars == 31
    fields = [tokenizer.decode_score(w["prompt"] + w["generated"]) for w in result["token_ids"]["windows"]]
    assert sum(f.n_bars for f in fields) == 19
    # a window is prompted with the end of the one before it
    past = tokenizer.decode_prompt(result["token_ids"]["windows"][1]["prompt"]).past
    assert past.n_bars == 8 and (past.onset == fields[0].onset).all() and (past.pitch == fields[0].pitch).all()


def test_infill_of_many_bars(pipe, tokenizer, song, path):
    (result,) = pipe(path, infill=(1, 11), window=4, seed=0, progress=False)
    music = check(result, tokenizer)
    assert result["report"]["windows"] == 3 and music.n_bars == 12
    prompts = [tokenizer.convert_ids_to_tokens(w["prompt"]) for w in result["token_ids"]["windows"]]
    assert ["<FUTURE_M>" in tokens for tokens in prompts] == [False, False, True]


def test_windows_from_nothing_keep_chords_in_place(pipe, tokenizer):
    chords = [("C", 0), ("G", 5), ("Am", 9, 2)]
    (result,) = pipe(None, bars=12, window=4, instruments=["piano"], chords=chords, seed=0, progress=False)
    check(result, tokenizer)
    prompts = [tokenizer.convert_ids_to_tokens(w["prompt"]) for w in result["token_ids"]["windows"]]
    roots = [[t for t in tokens if t.startswith("CR_")] for tokens in prompts]
    assert roots == [["CR_C"], ["CR_C", "CR_G"], ["CR_G", "CR_A"]]


def test_small_context_takes_fewer_bars_at_a_time(tokenizer, path):
    small = MidiGenerationPipeline(model=make_model(context=512), tokenizer=tokenizer, task="midi-generation")
    (result,) = small(path, bars=6, seed=0, progress=False)
    music = check(result, tokenizer)
    assert music.n_bars == 18 and result["report"]["windows"] > 1
    for window in result["token_ids"]["windows"]:
        assert len(window["prompt"]) + len(window["generated"]) <= 512
    assert any("past bars dropped" in note for note in result["report"]["notes"])


def test_new_bars_only(pipe, path):
    (whole,) = pipe(path, bars=2, instruments=["flute"], seed=0)
    (result,) = pipe(path, bars=2, instruments=["flute"], seed=0, new_bars_only=True)
    part, music = read_midi(result["midi"]), read_midi(whole["midi"]).window(12, 14)
    assert part.n_bars == 2 and part.programs.tolist() == [73]
    np.testing.assert_array_equal(part.pitch, music.pitch)
    np.testing.assert_array_equal(part.onset, music.onset)


def test_mortm_dialect(song):
    """Upstream's language knows piano and saxophone only; the file's other tracks stay where they are."""
    tokenizer = MortmTokenizer(preset="pro", dialect="mortm")
    config = MortmConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    pipe = MidiGenerationPipeline(
        model=MortmForCausalLM(config).eval(), tokenizer=tokenizer, task="midi-generation", device="cpu"
    )
    (result,) = pipe(song, bars=4, window=2, instruments=["piano", "sax"], seed=0, progress=False)
    for window in result["token_ids"]["windows"]:
        validate(
            tokenizer.convert_ids_to_tokens(window["prompt"] + window["generated"]), dialect="mortm", ordered=True
        )
    flute, piano, drums, sax = result["score"].tracks
    assert (flute.program, piano.program, drums.is_drum, sax.program) == (73, 0, True, 65)
    cut = 12 * 4 * TPQ
    assert notes_of(flute) == notes_of(song.tracks[0]) and notes_of(drums) == notes_of(song.tracks[2])
    assert {n for n in notes_of(piano) if n[0] < cut} == notes_of(song.tracks[1])
    assert max(n[0] for n in notes_of(piano)) >= cut and min(n[0] for n in notes_of(sax)) >= cut


# --------------------------------------------------------------------------------------------------------------- input


def test_path_bytes_score_and_metric_score_agree(pipe, path):
    with open(path, "rb") as file:
        data = file.read()
    ids = [
        pipe(form, bars=1, seed=0)[0]["token_ids"]["generated"]
        for form in (path, data, symusic.Score(path), read_midi(path))
    ]
    assert ids[0] == ids[1] == ids[2] == ids[3]


def test_input_is_not_changed(pipe, song):
    given = song.copy()
    pipe(given, infill=(2, 3), seed=0)
    assert given == song


@pytest.mark.parametrize("batch_size", [1, 2])
def test_lists(pipe, tokenizer, path, song, batch_size):
    request = dict(bars=2, instruments=["flute"], seed=0, num_return_sequences=2)
    out = pipe([path, None, song], batch_size=batch_size, **request)
    assert [len(results) for results in out] == [2, 2, 2]
    assert [results[0]["bars"] for results in out] == [(12, 14), (0, 2), (12, 14)]
    for results in out:
        for result in results:
            check(result, tokenizer)
    if batch_size == 1:
        alone = pipe(None, **request)
        assert [r["midi"] for r in alone] == [r["midi"] for r in out[1]]
    assert pipe([]) == []


@pytest.mark.parametrize("tpq", [8, 96, 100, 960])
def test_any_resolution(pipe, tokenizer, tpq):
    given = make_song(bars=4, tpq=tpq, meter=(7, 8))
    (result,) = pipe(given, bars=2, seed=0)
    music = check(result, tokenizer)
    made = tokenizer.decode_score(result["token_ids"]["prompt"] + result["token_ids"]["generated"])
    assert music.n_bars == 6 and music.bars.length.tolist() == [84] * 6
    found = music.window(4, 6)
    np.testing.assert_array_equal(found.onset, made.onset)
    np.testing.assert_array_equal(found.duration, made.duration)


def test_meter_can_change_after_the_song(pipe, path):
    (result,) = pipe(path, bars=2, meter="3/4", tempo=60, seed=0)
    music = read_midi(result["midi"])
    assert music.bars.length.tolist() == [96] * 12 + [72] * 2
    assert music.tempo[11] != music.tempo[12]


# --------------------------------------------------------------------------------------------------------------- seeds


def test_same_seed_same_bytes_and_no_global_state(pipe, path):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = pipe(path, bars=2, seed=0)[0]["midi"]
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(6)
    torch.rand(3)
    assert pipe([path], bars=2, seed=0)[0][0]["midi"] == first
    assert pipe(path, bars=2, seed=1)[0]["midi"] != first


def test_seed_of_each_sequence(pipe, path):
    out = pipe(path, bars=1, seed=3, num_return_sequences=3)
    assert [r["report"]["seed"] for r in out] == [3, 4, 5]
    assert pipe(path, bars=1, seed=5)[0]["token_ids"] == out[2]["token_ids"]
    listed = pipe(path, bars=1, seed=[5, 3], num_return_sequences=2)
    assert [r["token_ids"] for r in listed] == [out[2]["token_ids"], out[0]["token_ids"]]


def test_without_seed_torch_decides(pipe, path):
    torch.manual_seed(1)
    first, second = (pipe(path, bars=1)[0] for _ in range(2))
    torch.manual_seed(1)
    assert pipe(path, bars=1)[0]["midi"] == first["midi"]
    assert first["report"]["seed"] != second["report"]["seed"]
    assert pipe(path, bars=1, seed=second["report"]["seed"])[0]["midi"] == second["midi"]


# ------------------------------------------------------------------------------------------------------------ sampling


def test_defaults_come_from_the_generation_config(tokenizer, path):
    model = make_model()
    pipe = MidiGenerationPipeline(model=model, tokenizer=tokenizer, task="midi-generation", device="cpu")
    assert pipe._parameters({})[0] == {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 0}
    model.generation_config.update(do_sample=True, temperature=0.5, top_k=3)
    assert pipe._parameters({})[0] == {"do_sample": True, "temperature": 0.5, "top_p": 0.95, "top_k": 3}
    assert pipe._parameters({"top_k": 9})[0]["top_k"] == 9
    before = model.generation_config.to_dict()
    pipe(path, bars=1, seed=0)
    assert model.generation_config.to_dict() == before


def test_greedy_beams_and_defaults_of_the_pipeline(pipe, tokenizer, path):
    greedy = [pipe(path, bars=1, do_sample=False, seed=s)[0] for s in (0, 1)]
    assert greedy[0]["midi"] == greedy[1]["midi"]
    beams = pipe(path, bars=1, instruments=["flute"], do_sample=False, num_beams=2, num_return_sequences=2, seed=0)
    assert len(beams) == 2 and beams[0]["token_ids"]["generated"] != beams[1]["token_ids"]["generated"]
    sampled = [pipe(path, bars=1, instruments=["flute"], num_beams=2, seed=4)[0] for _ in range(2)]
    assert sampled[0]["midi"] == sampled[1]["midi"]
    for result in (*greedy, *beams, *sampled):
        check(result, tokenizer)
    preset = MidiGenerationPipeline(
        model=pipe.model, tokenizer=tokenizer, task="midi-generation", device="cpu", bars=1, seed=0, temperature=2.0
    )
    assert preset(path)[0]["midi"] == pipe(path, bars=1, seed=0, temperature=2.0)[0]["midi"]
    assert preset(path, bars=2)[0]["bars"] == (12, 14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tokenizer, path, dtype):
    half = MidiGenerationPipeline(
        model=make_model().to(dtype), tokenizer=tokenizer, task="midi-generation", device="cpu"
    )
    (result,) = half(path, bars=1, temperature=0.3, seed=0)
    check(result, tokenizer)


def test_broken_logits_still_give_grammatical_music(tokenizer, path):
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight[:600] = float("nan")
    pipe = MidiGenerationPipeline(model=model, tokenizer=tokenizer, task="midi-generation", device="cpu")
    check(pipe(path, bars=1, seed=0)[0], tokenizer)


def test_limits_on_pitch(pipe, tokenizer):
    (result,) = pipe(None, bars=2, instruments=["flute"], pitch_range=(60, 72), scale="C major", seed=0)
    music = check(result, tokenizer)
    assert music.pitch.min() >= 60 and music.pitch.max() <= 72
    assert set((music.pitch % 12).tolist()) <= {0, 2, 4, 5, 7, 9, 11}


# ----------------------------------------------------------------------------------------------------------- streaming


def test_callback_hears_every_bar_as_it_is_finished(pipe, path):
    told = []
    out = pipe(
        path, bars=5, window=3, instruments=["flute", "drums"], num_return_sequences=2, seed=0, callback=told.append
    )
    for sequence, result in enumerate(out):
        mine = [event for event in told if event["sequence"] == sequence]
        assert [(e["track"], e["bar"]) for e in mine] == [
            *((t, b) for t in (0, 1) for b in (12, 13, 14)),
            *((t, b) for t in (0, 1) for b in (15, 16)),
        ]
        assert {e["instrument"] for e in mine} == {"Flute", "Drums"}
        music = read_midi(result["midi"])
        assert sum(len(e["notes"]) for e in mine) == music.window(12, 17).n_notes
        event = next(e for e in mine if len(e["notes"]))
        onset = music.bars.start[event["bar"]] + event["notes"][0, 0]
        assert ((music.onset == onset) & (music.pitch == event["notes"][0, 1])).any()


def test_streamer_and_progress(pipe, path, capsys):
    class Counter:
        puts = ended = 0

        def put(self, value):
            self.puts += 1

        def end(self):
            self.ended += 1

    counter = Counter()
    (result,) = pipe(path, bars=2, instruments=["flute"], seed=0, streamer=counter, progress=True)
    assert counter.ended == 1 and counter.puts == 1 + len(result["token_ids"]["generated"])
    assert "2/2" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (dict(bars=0), "prompt.bars"),
        (dict(bars=-3), "prompt.bars"),
        (dict(bars=2.5), "prompt.bars"),
        (dict(infill=(10, 8)), "prompt.bars"),
        (dict(infill=(8, 99)), "prompt.bars"),
        (dict(infill=4), "prompt.bars"),
        (dict(infill=(2, 4), bars=3), "prompt.bars"),
        (dict(start=99), "prompt.bars"),
        (dict(window=0), "prompt.bars"),
        (dict(instruments=["kazoo of doom"]), "vocabulary.instrument"),
        (dict(instruments=[]), "prompt.empty"),
        (dict(key="H sharp"), "vocabulary.key"),
        (dict(meter="5/3"), "vocabulary.meter"),
        (dict(chords=["C", "Xyz"]), "vocabulary.chord"),
        (dict(bars=1, chords=["C", "G"]), "prompt.bars"),
        (dict(bars=2, chords=[("C", 99)]), "prompt.bars"),
        (dict(chords=[("C", "first")]), "prompt.bars"),
        (dict(chords=[("C", 12, "late")]), "prompt.material"),
        (dict(chords=["C", ("G", 12)]), "prompt.material"),
        (dict(chords=5), "prompt.material"),
        (dict(bars=1, meter=["3/4", "2/4"]), "prompt.bars"),
        (dict(genre=5.5), "vocabulary.genre"),
        (dict(density="busy"), "prompt.material"),
        (dict(scale=5), "prompt.material"),
        (dict(velocity="loud"), "prompt.material"),
        (dict(tracks=[7], instruments=["piano"]), "prompt.material"),
        (dict(seed=-1), "prompt.argument"),
        (dict(seed="one"), "prompt.argument"),
        (dict(top_p=2), "prompt.argument"),
        (dict(top_k=-1), "prompt.argument"),
        (dict(seed=[1], num_return_sequences=2), "prompt.argument"),
        (dict(num_return_sequences=0), "prompt.argument"),
        (dict(do_sample=False, num_return_sequences=2), "prompt.argument"),
        (dict(temperature=0.0), "prompt.argument"),
        (dict(bars=1, max_new_tokens=4), "prompt.too_long"),
    ],
)
def test_bad_requests(pipe, path, arguments, code):
    with pytest.raises(ValueError) as caught:
        pipe(path, **arguments)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


def test_bad_inputs(pipe, tmp_path):
    broken = tmp_path / "broken.mid"
    broken.write_bytes(b"no midi")
    for given in (str(broken), b"MThd", str(tmp_path / "none.mid"), symusic.Score(480), 17):
        with pytest.raises(ValueError) as caught:
            pipe(given, bars=1)
        assert caught.value.code.startswith("midi.")
    with pytest.raises(ValueError, match=r"broken\.mid"):
        pipe(str(broken))
    for arguments in (dict(infill=(0, 2)), dict(start=3)):
        with pytest.raises(ValueError, match="needs a MIDI file"):
            pipe(None, **arguments)
    with pytest.raises(TypeError, match="no argument 'bar'"):
        pipe(None, bar=3)


def test_constant_tracks_too_long_for_the_context(tokenizer):
    tiny = MidiGenerationPipeline(model=make_model(context=160), tokenizer=tokenizer, task="midi-generation")
    crowded = symusic.Score(480)
    track = symusic.Track("", 0, False)
    for step in range(96):
        track.notes.append(symusic.Note(step * 20, 20, 40 + step % 40, 90))
    crowded.tracks.append(track)
    with pytest.raises(ValueError) as caught:
        tiny(crowded, tracks=[0], instruments=["violin"], bars=1)
    assert caught.value.code == "prompt.too_long"


# -------------------------------------------------------------------------------------------------------------- chords


def test_chords_of_a_song(estimator, tokenizer, path, song):
    (result,) = estimator(path, window=5)
    check(result, tokenizer)
    assert result["bars"] == (0, 12) and result["report"]["windows"] == 3
    assert result["chords"] and {"bar", "beat", "symbol"} == set(result["chords"][0])
    bars = [(c["bar"], c["beat"]) for c in result["chords"]]
    assert bars == sorted(bars) and bars[-1][0] < 12 and all(0 <= beat < 4 for _, beat in bars)
    for old, new in zip(song.tracks, result["score"].tracks):
        assert notes_of(old) == notes_of(new)
    table = read_midi(result["midi"]).chords
    assert len(table) == len(result["chords"])
    assert estimator(path, window=5)[0]["chords"] == result["chords"]  # the likeliest chords: nothing is drawn


def test_chords_of_some_bars_and_tracks(estimator, tokenizer, path):
    (result,) = estimator(path, bars=(2, 4), tracks=[1])
    check(result, tokenizer)
    tokens = tokenizer.convert_ids_to_tokens(result["token_ids"]["prompt"])
    assert "<INST_0>" in tokens and "<INST_73>" not in tokens and tokens[-1] == "<CGEN>"
    assert all(2 <= c["bar"] < 4 for c in result["chords"])
    for bad in ((4, 2), (0, 99), 3):
        with pytest.raises(ValueError):
            estimator(path, bars=bad)
    with pytest.raises(ValueError, match="needs a MIDI file"):
        estimator(None)


# --------------------------------------------------------------------------------------------------------------- parts


def test_new_tracks_keep_their_place_across_windows(pipe, tokenizer, path):
    """A new melodic track goes before the drums on the grid; the file's own tracks must still be found."""
    (result,) = pipe(path, bars=4, window=2, instruments=["violin", "drums"], seed=0, progress=False)
    check(result, tokenizer)
    tracks = result["score"].tracks
    assert [(t.program, t.is_drum) for t in tracks] == [(73, False), (0, False), (0, True), (40, False)]
    cut = 12 * 4 * TPQ
    assert not any(n.time >= cut for t in tracks[:2] for n in t.notes)
    assert all(any(n.time >= cut for n in t.notes) for t in tracks[2:])


def test_density_stays_with_its_instrument(pipe, tokenizer, path):
    (result,) = pipe(path, bars=4, window=2, instruments=["drums", "violin"], density=[9, 2], seed=0, progress=False)
    for window in result["token_ids"]["windows"]:
        tokens = tokenizer.convert_ids_to_tokens(window["prompt"])
        header = tokens[: tokens.index("<TAG_END>")]
        assert header[header.index("<INST_40>") + 1] == "<NOTE_DENSE_2>"
        assert header[header.index("<INST_DRUMS>") + 1] == "<NOTE_DENSE_9>"


def test_package_function(tokenizer, tmp_path, path):
    make_model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    pipe = mortm_hf.pipeline("midi-generation", model=tmp_path, device="cpu")
    assert isinstance(pipe, MidiGenerationPipeline)
    assert isinstance(mortm_hf.pipeline("chord-estimation", model=str(tmp_path)), ChordEstimationPipeline)
    assert pipe(path, bars=1, seed=0)[0]["bars"] == (12, 13)
    assert isinstance(pipe.tokenizer.read_midi(path), MetricScore)
    assert SongRow.__module__.startswith("mortm_hf")


def test_long_bars_go_on_and_the_file_keeps_its_meter(pipe, tokenizer):
    """9/4 is two bars on the grid; the file, which ends inside of one, goes on in 9/4 without a further event."""
    given = make_song(bars=3, meter=(9, 4))
    (result,) = pipe(given, bars=4, seed=0)
    music = check(result, tokenizer)
    assert music.bars.length.tolist() == [192, 24] * 4 + [192]
    assert [(e.numerator, e.denominator) for e in result["score"].time_signatures] == [(9, 4)]
    (result,) = pipe(given, start=3, bars=2, seed=0)  # from inside of the second one
    assert check(result, tokenizer).bars.length.tolist() == [192, 24, 192, 24, 192]
    (result,) = pipe(given, bars=2, meter="3/4", seed=0)
    assert check(result, tokenizer).bars.length.tolist() == [192, 24, 192, 24, 192] + [72] * 2


def test_a_final_ritardando_is_left_behind(pipe, tokenizer):
    given = make_song(bars=8)
    given.tempos.append(symusic.Tempo(6 * 4 * TPQ, qpm=80))
    given.tempos.append(symusic.Tempo(7 * 4 * TPQ, qpm=60))
    (result,) = pipe(given, bars=2, seed=0)
    check(result, tokenizer)
    last = max(result["score"].tempos, key=lambda event: event.time)
    assert (last.time, last.mspq) == (8 * 4 * TPQ, 600_000)  # the song's own 100, not the middle of its bin


# ---------------------------------------------------------------------------------------------- chords that are asked


def chords_in(score):
    bar = 4 * score.ticks_per_quarter
    return [(mark.time / bar, mark.text) for mark in score.markers if mark.text.startswith("mortm:chord")]


def test_chords_asked_for_stand_in_the_file(pipe, tokenizer, path):
    (result,) = pipe(path, bars=4, window=2, instruments=["flute"], chords="C Am7/G", seed=0, progress=False)
    check(result, tokenizer)
    names = ["mortm:chord C None None", "mortm:chord A m7 /G"]
    found = chords_in(result["score"])
    assert [bar for bar, _ in found] == [12, 13, 14, 15]
    assert [text.rsplit(" ", 1)[0] for _, text in found] == [name.rsplit(" ", 1)[0] for name in names] * 2
    table = read_midi(result["midi"]).chords
    assert table.onset.tolist() == [96 * bar for bar in (12, 13, 14, 15)]
    (part,) = pipe(path, bars=2, instruments=["flute"], chords="C Am7/G", seed=0, new_bars_only=True)
    assert [bar for bar, _ in chords_in(part["score"])] == [0, 1]
    (alone,) = pipe(None, bars=2, instruments=["flute"], chords=[("F", 0), ("G7", 1, 2)], seed=0)
    assert [bar for bar, _ in chords_in(alone["score"])] == [0, 1.5]


def test_chords_of_rewritten_bars_end_with_them(pipe, song):
    (bare,) = pipe(song, infill=(4, 6), chords="F G", seed=0)
    assert chords_in(bare["score"])[-1] == (6, "mortm:chord N None None")
    known = song.copy()
    for bar, text in ((0, "C None None"), (5, "D m None"), (10, "E m None")):
        known.markers.append(symusic.TextMeta(bar * 4 * TPQ, f"mortm:chord {text}"))
    (result,) = pipe(known, infill=(4, 6), chords="F G", seed=0)
    assert [(bar, text.split()[1]) for bar, text in chords_in(result["score"])] == [
        *((0, "C"), (4, "F"), (5, "G")),
        *((6, "D"), (10, "E")),  # what held after the bars holds again
    ]
    (own,) = pipe(known, infill=(4, 6), chords=True, seed=0)
    assert chords_in(own["score"]) == chords_in(known)
    (none,) = pipe(song, infill=(4, 6), seed=0)
    assert chords_in(none["score"]) == []
