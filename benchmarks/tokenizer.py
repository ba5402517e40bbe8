"""Speed of MIDI -> ids and ids -> MIDI against miditok's REMI: paired in one process, medians of CPU time.

    python benchmarks/tokenizer.py --data ../shared/data [--files 100] [--rounds 5] [--json out.json]

Both read the same MIDI bytes (pop909 aligned, test split) and write MIDI bytes. REMI runs with programs and time
signatures, which is the content our tokens have too. Methods alternate file batch by file batch, so that a busy
machine slows both.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tarfile
import time
from pathlib import Path

import symusic

from mortm_hf import MortmTokenizer


def load(data: Path, files: int) -> list[bytes]:
    found = []
    with tarfile.open(data / "pop909-test.tar.xz", "r:xz") as tar:
        for member in tar:
            if member.name.endswith(".mid") and "aligned" in member.name and len(found) < files:
                found.append(tar.extractfile(member).read())
    return found


def timed(function, items) -> float:
    begin = time.process_time()
    for item in items:
        function(item)
    return time.process_time() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--files", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    import miditok

    songs = load(args.data, args.files)
    ours = MortmTokenizer()
    remi = miditok.REMI(miditok.TokenizerConfig(use_programs=True, use_time_signatures=True))
    our_ids = [ours.encode_midi(song) for song in songs]
    remi_ids = [remi.encode(symusic.Score.from_midi(song)) for song in songs]
    notes = sum(symusic.Score.from_midi(song).note_num() for song in songs)
    methods = {
        "encode mortm": (ours.encode_midi, songs),
        "encode REMI": (lambda song: remi.encode(symusic.Score.from_midi(song)), songs),
        "decode mortm": (lambda ids: ours.decode_midi(ids).dumps_midi(), our_ids),
        "decode REMI": (lambda ids: remi.decode(ids).dumps_midi(), remi_ids),
    }
    times = {name: [] for name in methods}
    gc.freeze()
    for turn in range(args.rounds + 1):  # the first round warms up
        for name, (function, items) in methods.items():
            spent = timed(function, items)
            if turn:
                times[name].append(spent)
    figures = {"files": len(songs), "notes": notes}
    print(f"{len(songs)} files, {notes} notes, median of {args.rounds} rounds, CPU time")
    for name, values in times.items():
        median = statistics.median(values)
        figures[name] = {"ms_per_file": 1000 * median / len(songs), "notes_per_s": notes / median}
        print(f"{name:14} {1000 * median / len(songs):8.3f} ms a file {notes / median:12.0f} notes/s")
    for kind in ("encode", "decode"):
        ratios = [b / a for a, b in zip(times[f"{kind} mortm"], times[f"{kind} REMI"])]
        figures[f"{kind} ratio"] = statistics.median(ratios)
        print(f"{kind}: {statistics.median(ratios):.1f} x REMI (min {min(ratios):.1f}, max {max(ratios):.1f})")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
