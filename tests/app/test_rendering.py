"""Sound that sounds and pictures that show the music.

Example: python -m pytest tests/app/test_rendering.py
"""

import wave

import numpy as np
import pytest
import symusic

from mortm_hf.app import rendering
from mortm_hf.app.names import drum_name, key_name
from mortm_hf.app.rendering import draw_piano_roll, render_wav
from mortm_hf.data import synthesis
from mortm_hf.data.soundfont import in_tune
from mortm_hf.data.synthesis import find_soundfont, synthesize
from mortm_hf.models.errors_mortm import AudioError, CommandError


def _pixels(path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(path)[..., :3]


def test_wav_is_stereo_and_sounds_for_the_whole_song(song, tmp_path):
    path = render_wav(song, tmp_path / "song.wav")
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, 44_100)
        sound = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
    seconds = symusic.Score(str(song)).to("second").end()
    assert seconds <= len(sound) / 44_100 <= seconds + 10
    # every second of it is audible, and nothing clips
    loud = sound[: int(seconds) * 44_100].astype(float).reshape(int(seconds), -1)
    assert np.sqrt((loud**2).mean(1)).min() > 50
    assert 0.88 < np.abs(sound).max() / 32767 < 0.9


def _cents_off(sound: np.ndarray, pitch: int) -> int:
    """How far the best-fitting harmonic series lies from `pitch`, searched within half an octave."""
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), n=4 * 44_100))
    cents = np.arange(-590, 595, 5)
    partials = 440 * 2 ** ((pitch - 69) / 12 + cents[:, None] / 1200) * np.arange(1, 9)
    bins = np.minimum(np.round(partials * 4).astype(int), len(spectrum) - 2)
    return int(cents[np.maximum(spectrum[bins - 1], np.maximum(spectrum[bins], spectrum[bins + 1])).sum(1).argmax()])


@pytest.mark.parametrize("program", [0, 16, 24, 40, 53, 73])
def test_notes_sound_when_they_should_and_in_tune(program):
    score = symusic.Score(480)
    score.tempos.append(symusic.Tempo(0, qpm=120))
    track = symusic.Track("", program, False)
    pitches = [55, 60, 64, 67, 72]
    for index, pitch in enumerate(pitches):
        track.notes.append(symusic.Note(1920 * (index + 1), 1440, pitch, 100))  # 1.5 s from second 2, 4, 6 ...
    score.tracks.append(track)
    sound = synthesize(score).astype(float).mean(1)
    assert np.abs(sound[: 44_100 * 2 - 100]).max() == 0
    for index, pitch in enumerate(pitches):
        start = (2 + 2 * index) * 44_100
        assert np.abs(sound[start : start + 4410]).max() > 100
        assert abs(_cents_off(sound[start + 4410 : start + 48_510], pitch)) <= 30


def test_a_bank_keeps_its_sound_when_it_is_retuned():
    bank = find_soundfont().read_bytes()
    tuned = in_tune(bank)
    assert in_tune(tuned) == tuned
    at = bank.index(b"smpl")
    assert bank[at : at + 1_000_000] in tuned
    for broken in (b"", bank[:5000], b"RIFF" + bytes(100)):
        with pytest.raises(ValueError, match="not a valid SF2 bank"):
            in_tune(broken)


def test_endless_music_is_refused():
    score = symusic.Score(480)
    track = symusic.Track("Piano", 0, False)
    track.notes.append(symusic.Note(0, 480 * 60 * 240, 60, 100))
    score.tracks.append(track)
    score.tempos.append(symusic.Tempo(0, qpm=120))
    with pytest.raises(AudioError, match="more than the 3600 s"):
        synthesize(score)


def test_soundfonts_are_checked_before_the_synthesiser_sees_them(tmp_path, song, monkeypatch):
    wrong = tmp_path / "wrong.sf2"
    wrong.write_bytes(b"RIFF0000WAVEfmt ")
    with pytest.raises(AudioError, match="not a soundfont"):
        render_wav(song, tmp_path / "x.wav", soundfont=wrong)
    with pytest.raises(AudioError, match="cannot read the soundfont"):
        find_soundfont(tmp_path / "none.sf2")
    wrong.write_bytes(b"RIFF0000sfbk" + bytes(100))
    with pytest.raises(AudioError, match="not a valid SF2 bank"):
        render_wav(song, tmp_path / "x.wav", soundfont=wrong)
    monkeypatch.setattr(synthesis.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AudioError, match=r"mortm_hf\[audio\]"):
        find_soundfont()
    assert [p.name for p in tmp_path.iterdir()] == ["wrong.sf2"]


def test_piano_roll_shades_exactly_the_new_bars(band, tmp_path):
    plain = _pixels(draw_piano_roll(band, tmp_path / "plain.png"))
    shaded = _pixels(draw_piano_roll(band, tmp_path / "new.png", highlight=(4, 8)))
    assert plain.shape == shaded.shape and plain.shape[1] == 2250 and plain.shape[0] > 400
    cream = (shaded[..., 0] > 0.93) & (shaded[..., 2] < 0.85) & (shaded[..., 1] > 0.85)
    columns = np.flatnonzero(cream.sum(0) > 100)
    left, right = 0.055 * 2250, 0.98 * 2250
    # 16 of 30 quarters lie before bar 4
    assert abs(columns.min() - (left + (right - left) * 16 / 30)) < 6
    assert abs(columns.max() - right) < 6
    # legend only: nowhere near a hundred pixels in a column
    plain_cream = (plain[..., 0] > 0.93) & (plain[..., 2] < 0.85) & (plain[..., 1] > 0.85)
    assert plain_cream.sum(0).max() < 60


def test_piano_roll_colours_notes_and_drums(band, tmp_path):
    picture = _pixels(draw_piano_roll(band, tmp_path / "a.png"))
    blue = (picture[..., 2] > 0.75) & (picture[..., 0] < 0.55)
    ink = picture.max(-1) < 0.35
    assert blue.sum() > 5000  # the piano's bars
    assert ink[picture.shape[0] * 2 // 3 :].sum() > 1000  # drum diamonds in the strip below


def test_piano_roll_draws_a_part_and_refuses_an_empty_one(song, tmp_path):
    whole = _pixels(draw_piano_roll(song, tmp_path / "whole.png"))
    part = _pixels(draw_piano_roll(song, tmp_path / "part.png", bars=(0, 4)))
    assert part.shape[0] < whole.shape[0]
    with pytest.raises(CommandError, match="21 bars"):
        draw_piano_roll(song, tmp_path / "none.png", bars=(30, 40))
    assert not (tmp_path / "none.png").exists() and len(list(tmp_path.iterdir())) == 2


def test_long_music_is_drawn_around_the_new_bars():
    assert rendering._drawn_bars(300, None, None) == (0, 64)
    assert rendering._drawn_bars(300, (200, 208), None) == (144, 208)
    assert rendering._drawn_bars(300, (8, 12), None) == (0, 64)
    assert rendering._drawn_bars(40, (8, 12), None) == (0, 40)


def test_names():
    assert drum_name(38) == "Snare" and drum_name(81) == "Triangle" and drum_name(20) == "Drum 20"
    assert key_name("F#m") == "F# minor" and key_name("CM") == "C major" and key_name("Unknown") == "Unknown"
