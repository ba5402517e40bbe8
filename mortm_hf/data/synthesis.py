"""Scores to sound: symusic's synthesiser with a soundfont that plays in tune.

Design decisions
- Sound needs no system package: the General MIDI soundfont inside pretty_midi's package folder (extra `[audio]`),
  found without importing pretty_midi, or any SF2/SF3 file; retuned first (`soundfont.py`).

Knows: scores, soundfonts. Must not know: models, tokens, files of sound.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..models.errors_mortm import AudioError
from ..models.midi_files import load_score
from .soundfont import in_tune


SAMPLE_RATE = 44_100
PEAK = 0.89  # -1 dB of full scale: room for the interpolation of players
MAX_SECONDS = 3600
RELEASE = 0.12  # seconds; the synthesiser damps a note within 50 ms, drier than any instrument
TAIL = 0.5  # seconds of silence at the end


def find_soundfont(soundfont: str | os.PathLike | None = None) -> Path:
    """The given SF2/SF3 file, else the one that ships with pretty_midi.

    Raises:
        AudioError: if the file is no soundfont, or none is given and pretty_midi is not installed.
    """
    if soundfont is None:
        spec = importlib.util.find_spec("pretty_midi")
        folders = spec.submodule_search_locations if spec else []
        found = [path for folder in folders for path in sorted(Path(folder).glob("*.sf2"))]
        if not found:
            raise AudioError(
                "no soundfont: pip install 'mortm_hf[audio]', or name an .sf2 file with --soundfont", "audio.missing"
            )
        return found[0]
    path = Path(soundfont)
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError as error:
        raise AudioError(f"cannot read the soundfont {path}: {error.strerror}") from None
    # the synthesiser ends the process on a file that is none
    if head[:4] != b"RIFF" or head[8:] != b"sfbk":
        raise AudioError(f"{path} is not a soundfont (SF2 or SF3)")
    return path


@lru_cache(maxsize=2)
def _synthesizer(soundfont: str, modified: float, sampling_rate: int):
    """The synthesiser of a bank; `modified` makes a changed file a new one."""
    import symusic

    try:
        bank = in_tune(Path(soundfont).read_bytes())
    except ValueError as error:
        raise AudioError(f"cannot use the soundfont {soundfont}: {error}") from None
    with tempfile.TemporaryDirectory() as folder:
        tuned = Path(folder) / "tuned.sf2"
        tuned.write_bytes(bank)
        return symusic.Synthesizer(str(tuned), sampling_rate)


def synthesize(
    score, soundfont: str | os.PathLike | None = None, sampling_rate: int = SAMPLE_RATE, stereo: bool = True
) -> np.ndarray:
    """A score as sound, peaking at -1 dB.

    Args:
        score: a path, MIDI bytes or `symusic.Score`.
        soundfont: an SF2 or SF3 file; by default the one that ships with pretty_midi.
        sampling_rate: in Hz.
        stereo: two channels, else one.

    Returns:
        `[samples, 2]` (or `[samples, 1]`) int16.

    Raises:
        MidiError: the input is no usable MIDI.
        AudioError: no soundfont, or more than an hour of music.
    """
    import symusic

    soundfont = find_soundfont(soundfont)
    score = load_score(score)
    seconds = score.to("second").end()
    if seconds > MAX_SECONDS:
        raise AudioError(
            f"the music lasts {seconds:.0f} s, more than the {MAX_SECONDS} s that are rendered", "audio.too_long"
        )
    score = score.to("second")
    _let_ring(score)
    # The sound stops with the last event: a silent note leaves the last chord its end.
    silence = symusic.Track("", 0, False, ttype="second")
    silence.notes.append(symusic.Note(seconds + TAIL, 0.01, 0, 0, ttype="second"))
    score.tracks.append(silence)
    sound = np.asarray(
        _synthesizer(str(soundfont), os.path.getmtime(soundfont), sampling_rate).render(score, stereo=stereo)
    )
    sound = sound.reshape(2 if stereo else 1, -1)[:, : int((seconds + TAIL) * sampling_rate)]  # "silent" notes click
    peak = float(np.abs(sound).max(initial=0.0))
    # Scaled by its own peak: quiet music becomes audible, loud music never clips.
    return np.round(sound.T * (PEAK / peak if peak > 0 else 1.0) * 32767).astype("<i2")


def _let_ring(score) -> None:
    """Notes of a score in seconds last `RELEASE` longer, but not into the next note of their pitch; in place."""
    import symusic

    for track in score.tracks:
        notes = track.notes.numpy()
        if track.is_drum or not len(notes["time"]):
            continue
        order = np.lexsort((notes["time"], notes["pitch"]))
        start, pitch = notes["time"][order], notes["pitch"][order]
        end = start + notes["duration"][order]
        following = np.append(np.where(pitch[1:] == pitch[:-1], start[1:], np.inf), np.inf)
        end = np.maximum(end, np.minimum(end + RELEASE, following))
        track.notes = symusic.Note.from_numpy(
            start, (end - start).astype(start.dtype), pitch, notes["velocity"][order], ttype="second"
        )
