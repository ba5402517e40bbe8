"""Key estimation: agreement with annotated keys by corpus, and speed beside music21.

    python benchmarks/key_estimation.py --data PACK [--split test] [--json FILE]

Agreement: share of songs whose estimated key is the annotated one, for every profile set; and the weighted score of
the MIREX key task (1 exact, 0.5 a fifth away, 0.3 relative, 0.2 parallel). The profile set was chosen on the
train split (`--split train`). Annotations without a mode are left out. In `openewld` the annotation is the key
signature read as major, so minor pieces count as errors (the relative).

Speed: our `estimate_key` from quantised notes, and music21's `stream.analyze("Krumhansl")` (the same algorithm) from
its own parsed stream, on the same songs, medians of CPU time; loading is outside of both. Without music21 installed
only agreement and our own time are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections import defaultdict
from pathlib import Path


os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from mortm_hf.data.annotations import key_of_label
from mortm_hf.data.manifest import read_archive, read_manifest
from mortm_hf.models.midi_files import read_midi
from mortm_hf.models.music_harmony import (
    DEFAULT_PROFILE,
    ESTIMATED_KEYS,
    KEY_PROFILES,
    estimate_key,
    estimate_keys,
    pitch_class_histogram,
)


CORPORA = ("pop909", "nottingham", "chorales", "openewld")


def mirex(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Weighted score of each estimate; keys as 12 * minor + tonic, -1 for none."""
    tonic, minor = found % 12, found // 12
    true_tonic, true_minor = truth % 12, truth // 12
    score = np.zeros(len(found))
    same = minor == true_minor
    score[same & (((tonic - true_tonic) % 12 == 7) | ((tonic - true_tonic) % 12 == 5))] = 0.5
    relative = np.where(true_minor == 1, (true_tonic + 3) % 12, (true_tonic + 9) % 12)
    score[~same & (tonic == relative)] = 0.3
    score[~same & (tonic == true_tonic)] = 0.2
    score[found == truth] = 1.0
    score[found < 0] = 0.0
    return score


def songs(data: Path, split: str, limit: int | None):
    """(corpus, path, annotated key, quantised score, MIDI bytes) of every song with an annotated key."""
    rows = defaultdict(list)
    for row in read_manifest(data):
        if row.corpus in CORPORA and row.split == split and (row.corpus != "pop909" or row.variant == "aligned"):
            if key_of_label(row.key) is not None:
                rows[row.archive].append(row)
    for archive, members in sorted(rows.items()):
        chosen = {row.path: row for row in members[:limit]}
        for name, midi in read_archive(data / archive, chosen):
            row = chosen[name]
            tonic, minor = key_of_label(row.key)
            try:
                yield row.corpus, name, tonic + 12 * minor, read_midi(midi), midi
            except ValueError as error:
                print(f"left out {name}: {error}", file=sys.stderr)


def agreement(items) -> list[dict]:
    """Rows of (profile, corpus, songs, exact, mirex)."""
    corpus = np.array([c for c, *_ in items])
    truth = np.array([k for _, _, k, _, _ in items])
    histogram = np.concatenate([pitch_class_histogram(s) for _, _, _, s, _ in items])
    rows = []
    for profile in KEY_PROFILES:
        found = estimate_keys(histogram, profile)
        exact, weighted = found == truth, mirex(found, truth)
        for name in sorted(set(corpus)):
            here = corpus == name
            rows.append(
                {
                    "profile": profile,
                    "corpus": str(name),
                    "songs": int(here.sum()),
                    "exact": float(exact[here].mean()),
                    "mirex": float(weighted[here].mean()),
                }
            )
        own = [r for r in rows if r["profile"] == profile]
        rows.append(
            {
                "profile": profile,
                "corpus": "mean of corpora",
                "songs": len(items),
                "exact": float(np.mean([r["exact"] for r in own])),
                "mirex": float(np.mean([r["mirex"] for r in own])),
            }
        )
    return rows


def median_time(call, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.process_time_ns()
        call()
        times.append(time.process_time_ns() - start)
    return float(np.median(times)) / 1e9


def speed(items, count: int) -> dict:
    """Seconds a song, ours and music21's, on `count` songs spread over the corpora."""
    chosen = [items[i] for i in np.linspace(0, len(items) - 1, count).astype(int)]
    ours = [median_time(lambda s=s: [estimate_key(s) for _ in range(20)], 5) / 20 for _, _, _, s, _ in chosen]
    histogram = np.concatenate([pitch_class_histogram(s) for _, _, _, s, _ in items])
    batch = median_time(lambda: estimate_keys(histogram), 20) / len(items)
    result = {"songs": count, "ours_s": float(np.median(ours)), "batched_s": batch}
    try:
        from music21 import __version__, midi
    except ImportError:
        print("music21 is not installed: no speed comparison (pip install music21)", file=sys.stderr)
        return result
    theirs, ratios, same = [], [], 0
    for (_, _, _, score, raw), mine in zip(chosen, ours):
        stream = midi.translate.midiStringToStream(raw)
        start = time.process_time_ns()
        key = stream.analyze("Krumhansl")
        theirs.append((time.process_time_ns() - start) / 1e9)
        ratios.append(theirs[-1] / mine)
        name = key.tonic.name.replace("-", "b") + " " + key.mode
        krumhansl = estimate_key(score, "krumhansl")
        same += key_of_label(name) == key_of_label(krumhansl) if krumhansl else 0
    result |= {
        "music21": __version__,
        "music21_s": float(np.median(theirs)),
        "ratio_median": float(np.median(ratios)),
        "ratio_min": float(np.min(ratios)),
        "same_key_krumhansl": same / count,
    }
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of a training pack (manifest.csv, archives)")
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"))
    parser.add_argument("--limit", type=int, help="songs an archive at most")
    parser.add_argument("--speed-songs", type=int, default=12, help="songs timed against music21")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    items = list(songs(args.data, args.split, args.limit))
    rows = agreement(items)
    print(f"{args.split} split; the default profile is {DEFAULT_PROFILE}")
    print(f"{'profile':12s}{'corpus':18s}{'songs':>7s}{'exact':>8s}{'MIREX':>8s}")
    for row in rows:
        print(f"{row['profile']:12s}{row['corpus']:18s}{row['songs']:7d}{row['exact']:8.3f}{row['mirex']:8.3f}")
    timing = speed(items, min(args.speed_songs, len(items)))
    print(
        f"\none song: {timing['ours_s'] * 1e6:.0f} us; in a batch, from histograms: {timing['batched_s'] * 1e6:.2f} us"
    )
    if "music21_s" in timing:
        print(
            f"music21 {timing['music21']}: {timing['music21_s'] * 1e3:.0f} ms a song, {timing['ratio_median']:.0f} "
            f"times ours (least {timing['ratio_min']:.0f}); same Krumhansl key in {timing['same_key_krumhansl']:.0%}"
        )
    if args.json:
        report = {"split": args.split, "agreement": rows, "speed": timing, "keys": len(ESTIMATED_KEYS)}
        report |= {"python": platform.python_version(), "numpy": np.__version__, "machine": platform.machine()}
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
