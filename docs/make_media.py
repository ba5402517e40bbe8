"""The sound and the picture of the README: what `make music` writes, in files small enough to be kept.

    python docs/make_media.py [--check]        (or `make media`)

Eight bars of Schumann are given, eight follow (seed 1). `docs/media/` gets `continued.mid`, its piano roll
`continued.png` and its sound `continued.mp3`: mono, 22,050 Hz, rendered with TimGM6mb.sf2, the General MIDI soundfont
inside pretty_midi (Tim Brechbill, GPL-2; the licence is that of the file, not of music rendered with it).

`--check` makes nothing; it exits with status 1 where the music that the model writes is no longer that of the files.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import soundfile
import torch

import mortm_hf
from mortm_hf.app.cli import main as mortm
from mortm_hf.data.synthesis import synthesize


MEDIA = Path(__file__).parent / "media"
SONG = Path(mortm_hf.__file__).parent / "app" / "demo" / "schumann_wenn_ich_in_deine_augen_seh.mid"
RATE = 22_050  # Hz


def make(folder: Path, sound: bool = True) -> None:
    """Writes the files into `folder`.

    Args:
        folder: an existing folder.
        sound: whether the picture and the sound are made too, or the MIDI file alone.

    Raises:
        SystemExit: if `mortm generate` refuses (its message is on stderr).
    """
    target = folder / "continued.mid"
    words = ["generate", str(SONG), "-o", str(target), "--start", "8", "--bars", "8", "--seed", "1"]
    if status := mortm(words + ["--png"] * sound):
        raise SystemExit(status)
    if sound:
        samples = synthesize(target, sampling_rate=RATE, stereo=False)
        soundfile.write(target.with_suffix(".mp3"), samples, RATE, bitrate_mode="VARIABLE", compression_level=0.9)


def main() -> int:
    """Makes the files, or compares; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare the music with that of the files")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.check:
        MEDIA.mkdir(exist_ok=True)
        make(MEDIA)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), sound=False)
        same = (Path(folder) / "continued.mid").read_bytes() == (MEDIA / "continued.mid").read_bytes()
    print("the same music" if same else "the model writes other music now: run docs/make_media.py")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
