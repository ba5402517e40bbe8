"""What encoding and decoding keep of real files: every note, every bar, every id.

    python benchmarks/roundtrip.py --data ../shared/data [--limit 200] [--json out.json]

For each MIDI file of the manifest (pop909's unaligned variants excepted) it checks, with its own arithmetic on the
file's ticks and not with the codec's:
- every distinct note of at most 2592 ticks on the grid comes back exactly; every other one within half a tick
  at onset and offset (a note shorter than a tick keeps one), and no note appears that was not there;
- `encode(decode(ids)) == ids`, in memory and through MIDI bytes.
Duplicates, zero-length and clipped notes and cut bars are counted. Exit status 1 if anything is lost.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tarfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import symusic

from mortm_hf import MortmTokenizer


GRID, LONGEST = 24, 2592
KEYS = [
    "files",
    "accepted",
    "notes",
    "on_grid",
    "off_grid",
    "lost",
    "invented",
    "duplicates",
    "zero_length",
    "clipped",
]
KEYS += ["cut_bars", "tokens", "ids_differ"]


def note_columns(score):
    """(track x pitch, onset, offset, ticks per quarter) of all notes; tracks in file order, drums last."""
    tracks = [t for t in score.tracks if len(t.notes)]
    tracks = [t for t in tracks if not t.is_drum] + [t for t in tracks if t.is_drum]
    parts = [t.notes.numpy() for t in tracks]
    onset = np.concatenate([p["time"] for p in parts]).astype(np.int64)
    offset = onset + np.concatenate([p["duration"] for p in parts])
    pitch = np.concatenate([p["pitch"] for p in parts]).astype(np.int64)
    track = np.repeat(np.arange(len(parts)), [len(p["time"]) for p in parts])
    return track * 128 + pitch, onset, offset, score.ticks_per_quarter


def pack(voice, onset, offset):
    """One int64 for each (voice, onset, offset): 16 + 27 + 20 bits (a length has at most 2592 ticks)."""
    return (voice << 47) | (onset << 20) | (offset - onset)


def near(tick, tpq):
    """The one or two grid ticks within half a tick of `tick * 24 / tpq`, as two arrays."""
    scaled = 2 * GRID * tick  # in units of 1 / (2 tpq) grid ticks
    low = -(-(scaled - tpq) // (2 * tpq))  # smallest grid tick g with 2 tpq g >= scaled - tpq
    high = (scaled + tpq) // (2 * tpq)
    return low, high


def check_notes(raw, decoded) -> Counter:
    voice, onset, offset, tpq = note_columns(raw)
    distinct = np.unique(np.stack([voice, onset, offset]), axis=1)
    voice, onset, offset = distinct
    got_voice, got_on, got_off, got_tpq = note_columns(decoded)
    assert not ((got_on * GRID) % got_tpq).any() and not ((got_off * GRID) % got_tpq).any()
    got = np.unique(pack(got_voice, got_on * GRID // got_tpq, got_off * GRID // got_tpq))
    ons, offs = near(onset, tpq), near(offset, tpq)
    allowed = []
    for on in ons:
        for off in offs:
            allowed.append(pack(voice, on, np.minimum(np.maximum(off, on + 1), on + LONGEST)))
    allowed = np.stack(allowed)
    found = np.isin(allowed, got).any(axis=0)
    on_grid = ((onset * GRID) % tpq == 0) & ((offset * GRID) % tpq == 0) & (offset > onset)
    counts = Counter(on_grid=int(on_grid.sum()), off_grid=int((~on_grid).sum()), lost=int((~found).sum()))
    counts["invented"] = int((~np.isin(got, allowed)).sum())
    return counts


def check_file(tokenizer, data: bytes) -> Counter:
    counts = Counter(files=1)
    try:
        music = tokenizer.read_midi(data)
        ids = tokenizer.encode_midi(music)
    except ValueError as error:
        counts["rejected: " + str(error)] = 1
        return counts
    decoded = tokenizer.decode_midi(ids)
    counts += Counter(accepted=1, notes=music.report.notes, tokens=len(ids))
    for name in ("duplicates", "zero_length", "clipped", "cut_bars"):
        counts[name] = getattr(music.report, name)
    counts += check_notes(symusic.Score.from_midi(data), decoded)
    same = tokenizer.encode_midi(decoded) == ids and tokenizer.encode_midi(decoded.dumps_midi()) == ids
    counts["ids_differ"] = int(not same)
    return counts


def members(data: Path, limit: int | None):
    """(manifest row, MIDI bytes) of every file that counts."""
    rows = defaultdict(dict)
    with open(data / "manifest.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if not (row["corpus"] == "pop909" and row["variant"] in ("original", "version")):
                rows[row["archive"]][row["path"]] = row
    for archive in sorted(rows):
        taken = 0
        with tarfile.open(data / archive, "r:xz") as tar:
            for member in tar:
                row = rows[archive].get(member.name)
                if row is not None and (limit is None or taken < limit):
                    taken += 1
                    yield row, tar.extractfile(member).read()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with manifest.csv and the archives")
    parser.add_argument("--limit", type=int, help="files of each archive, for a quick look")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    tokenizer = MortmTokenizer()
    by_corpus, by_meter = defaultdict(Counter), defaultdict(Counter)
    began = time.time()
    for row, data in members(args.data, args.limit):
        counts = check_file(tokenizer, data)
        kinds = row["meters"].split(";")
        meter = kinds[0].split("x")[0] if len(kinds) == 1 else "changing"
        by_corpus[row["corpus"]] += counts
        by_meter[meter or "none"] += counts
        if counts["lost"] or counts["invented"] or counts["ids_differ"]:
            print(f"  {row['path']}: {dict(counts)}")
    total = sum(by_corpus.values(), Counter())
    for title, table in (("corpus", by_corpus), ("meter", by_meter), ("all", {"all": total})):
        print(f"\n{title:>12} " + " ".join(f"{k:>11}" for k in KEYS))
        for name in sorted(table):
            print(f"{name:>12} " + " ".join(f"{table[name][k]:>11}" for k in KEYS))
    share = total["accepted"] / total["files"]
    print(f"\naccepted {100 * share:.2f} % of {total['files']} files in {time.time() - began:.0f} s")
    for reason, number in total.items():
        if reason.startswith("rejected"):
            print(f"{number} x {reason}")
    if args.json:
        tables = {"corpus": by_corpus, "meter": by_meter, "all": total}
        args.json.write_text(json.dumps(tables, indent=1))
    sys.exit(share < 0.999 or bool(total["lost"] or total["invented"] or total["ids_differ"]))


if __name__ == "__main__":
    main()
