"""Preparation of data: speed and size beside the same work done through Python lists.

    python benchmarks/dataset.py --data PACK [--files N] [--packs N] [--repeats R] [--json FILE]

Two stages, each done by the package and by a plain version that holds everything in Python lists and goes through
`datasets.map`, as most scripts do; both start from the same objects in memory, both end on disk, one process each, and
both results are compared value by value.

1. *Songs*: MIDI bytes -> quantised notes with their bars, a row a song. The plain version loops over the notes of
   symusic's tracks. It leaves out markers, irregular bars and caps, so it does less.
2. *Rows*: drawn documents -> packed rows of 2048 tokens with what labels and positions need. The plain version makes
   `input_ids`, `labels` and `position_ids` as lists of integers.

CPU time of the process, best of the repeats, taken in turns. Files: those of the train split in equal shares of the
corpora, 4/4 and 3/4 pieces without changes of meter, so that the plain version can read them too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from bisect import bisect_right
from collections import defaultdict
from itertools import chain
from pathlib import Path


os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import datasets
import numpy as np
import symusic

from mortm_hf.data import ExampleRecipe, ExampleSource, PackDataset, load_songs, read_archive, read_manifest
from mortm_hf.data.build import BuildOptions, build_from
from mortm_hf.data.fixed_examples import FixedPacks, materialize
from mortm_hf.data.midi_sources import DatasetSource
from mortm_hf.data.packing import IGNORE
from mortm_hf.models.music_names import DRUMS, METERS, tempo_bin
from mortm_hf.models.token_vocabulary import MetricVocabulary, TokenKind, default_tokens


ROW = 2048


def choose(root: Path, count: int) -> list[dict]:
    """MIDI bytes and labels, the same number of every corpus where there are enough."""
    rows = defaultdict(list)
    for row in read_manifest(root):
        if row.split == "train" and (row.corpus != "pop909" or row.variant == "aligned"):
            rows[row.corpus].append(row)
    share, chosen = -(-count // len(rows)), []
    for _, members in sorted(rows.items()):
        archives = defaultdict(list)
        for row in members:
            archives[row.archive].append(row.path)
        found = (item for archive, names in archives.items() for item in read_archive(root / archive, names))
        plain = ({"music": midi, "file_name": name, "split": "train"} for name, midi in found if is_plain(midi))
        chosen += [item for item, _ in zip(plain, range(share))]
    return chosen[:count]


def is_plain(midi: bytes) -> bool:
    """One meter, 4/4 or 3/4, from the start; no markers."""
    score = symusic.Score.from_midi(midi)
    meters = {(t.numerator, t.denominator) for t in score.time_signatures}
    starts = [t.time for t in score.time_signatures]
    return len(meters) == 1 and meters <= {(4, 4), (3, 4)} and starts[0] == 0 and not len(score.markers)


# ---------------------------------------------------------------------------------------------------------------------
# Songs


def song_of_lists(example: dict) -> dict:
    """The notes of one file, note by note, as lists."""
    score = symusic.Score.from_midi(example["music"])
    tpq = score.ticks_per_quarter
    meter = score.time_signatures[0]
    per_bar = 96 * meter.numerator // meter.denominator
    tracks = sorted((t for t in score.tracks if len(t.notes)), key=lambda t: t.is_drum)
    names, programs, rows = [], [], []
    for number, track in enumerate(tracks):
        names.append(track.name)
        programs.append(DRUMS if track.is_drum else track.program)
        seen = {}
        for note in track.notes:
            onset = (48 * note.time + tpq) // (2 * tpq)
            offset = (48 * (note.time + note.duration) + tpq) // (2 * tpq)
            cell = onset, note.pitch, max(offset - onset, 1)
            seen[cell] = max(seen.get(cell, 0), note.velocity)
        rows += [(number, *cell, seen[cell]) for cell in sorted(seen)]
    end = max(row[1] + row[3] for row in rows)
    bars = -(-end // per_bar)
    changes = [((48 * t.time + tpq) // (2 * tpq), t.mspq) for t in score.tempos]
    times = [c[0] for c in changes]
    tempo = []
    for bar in range(bars):
        at = bisect_right(times, bar * per_bar) - 1
        tempo.append(changes[at][1] if at >= 0 else 0)
    return {
        "names": names,
        "program": programs,
        "bar_length": [per_bar] * bars,
        "bar_meter": [METERS.index((meter.numerator, meter.denominator))] * bars,
        "bar_tempo": [int(tempo_bin(60e6 / t)) if t else -1 for t in tempo],
        "note_track": [row[0] for row in rows],
        "note_bar": [row[1] // per_bar for row in rows],
        "note_tick": [row[1] % per_bar for row in rows],
        "note_pitch": [row[2] for row in rows],
        "note_duration": [row[3] for row in rows],
        "note_velocity": [row[4] for row in rows],
        "split": "train",
        "path": example["file_name"],
    }


def songs_by_lists(files: datasets.Dataset, folder: Path):
    made = files.map(song_of_lists, remove_columns=["music", "file_name"], load_from_cache_file=False)
    made.save_to_disk(str(folder))
    return made


def songs_by_us(files: datasets.Dataset, folder: Path):
    return build_from([DatasetSource(files)], folder, BuildOptions(chords="none"), num_proc=1, progress=False)["train"]


NOTES = ("note_track", "note_bar", "note_tick", "note_pitch", "note_duration", "note_velocity")


def compare_songs(ours, plain) -> float:
    """Share of the notes on which both agree (songs in which a rule differs that the plain version leaves out, such
    as nested notes of one pitch, count as disagreeing from there on)."""
    by_path = {row["path"]: row for row in plain}
    same = total = 0
    for row in ours:
        other = by_path[row["path"]]
        a, b = (np.array([r[c] for c in NOTES]) for r in (row, other))
        total += a.shape[1]
        if a.shape == b.shape:
            same += int((a == b).all(axis=0).sum())
    return same / total


# ---------------------------------------------------------------------------------------------------------------------
# Rows


def rows_by_lists(documents: list[list[dict]], folder: Path):
    """The usual recipe: documents as lists, packed in `datasets.map`."""

    def pack(batch):
        out = {"input_ids": [], "labels": [], "position_ids": []}
        for row in batch["row"]:
            out["input_ids"].append(list(chain(*(d["ids"] for d in row))))
            labels = []
            for d in row:
                labels += [IGNORE if i < max(d["answer"], 1) else t for i, t in enumerate(d["ids"])]
            out["labels"].append(labels)
            out["position_ids"].append(list(chain(*(range(len(d["ids"])) for d in row))))
        return out

    data = datasets.Dataset.from_list([{"row": row} for row in documents])
    made = data.map(pack, batched=True, remove_columns=["row"], load_from_cache_file=False)
    made.save_to_disk(str(folder))
    return made


class Ready:
    """Documents that are drawn already, in the form of a `PackDataset`."""

    seed = pad = 0

    def __init__(self, rows: list[list]):
        self.rows, self.packs = rows, len(rows)

    def shape_of(self, index: int) -> tuple[int, int]:
        return 1, ROW

    def documents(self, index: int) -> list[list]:
        return [self.rows[index]]


# ---------------------------------------------------------------------------------------------------------------------


def measure(ways: dict, repeats: int, scratch: Path) -> tuple[dict[str, float], dict]:
    """Best CPU seconds of each way, taken in turns, and its last result."""
    best, results = dict.fromkeys(ways, float("inf")), {}
    for turn in range(repeats):
        for name, way in ways.items():
            folder = scratch / f"{name}-{turn}"
            begin = time.process_time()
            results[name] = way(folder)
            best[name] = min(best[name], time.process_time() - begin)
            if turn + 1 < repeats:
                shutil.rmtree(folder)
    return best, results


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.arrow"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the training pack")
    parser.add_argument("--files", type=int, default=400)
    parser.add_argument("--packs", type=int, default=400, help="rows of 2048 tokens")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        files = datasets.Dataset.from_list(choose(options.data, options.files))
        ways = {"lists": lambda f: songs_by_lists(files, f), "mortm_hf": lambda f: songs_by_us(files, f)}
        seconds, made = measure(ways, options.repeats, scratch)
        last = options.repeats - 1
        notes = sum(len(chunk.flatten()) for chunk in made["mortm_hf"].data.table["note_pitch"].chunks)
        sizes = {name: size_of(scratch / f"{name}-{last}") for name in ways}
        songs = {
            "files": len(files),
            "notes": notes,
            "agree": compare_songs(made["mortm_hf"], made["lists"]),
            "seconds": seconds,
            "files_per_s": {name: len(files) / s for name, s in seconds.items()},
            "ratio": seconds["lists"] / seconds["mortm_hf"],
            "bytes_per_note": {name: size / notes for name, size in sizes.items()},
        }
        print(f"songs: {len(files)} files, {notes} notes, both agree on {100 * songs['agree']:.2f} % of the notes")
        for name in ways:
            per = songs["files_per_s"][name], songs["bytes_per_note"][name]
            print(f"  {name:9s} {seconds[name]:7.2f} s, {per[0]:7.0f} files/s, {per[1]:5.1f} bytes a note")
        print(f"  {songs['ratio']:.1f} times faster")

        vocabulary = MetricVocabulary({token: i for i, token in enumerate(default_tokens())})
        source = ExampleSource(load_songs(scratch / f"mortm_hf-{last}"), vocabulary, ExampleRecipe(row_length=ROW))
        drawn = PackDataset(source, options.packs, lambda i: (1, ROW), vocabulary.id(TokenKind.PAD))
        rows = [drawn.documents(i)[0] for i in range(options.packs)]
        tokens = sum(len(d.ids) for row in rows for d in row)
        as_lists = [
            [{"ids": d.ids.tolist(), "answer": int(d.target.argmax())} for d in row] for row in rows
        ]  # given for free
        ways = {
            "lists": lambda f: rows_by_lists(as_lists, f),
            "mortm_hf": lambda f: materialize(Ready(rows), f, progress=False),
        }
        seconds, made = measure(ways, options.repeats, scratch / "rows")
        sizes = {name: size_of(scratch / "rows" / f"{name}-{last}") for name in ways}
        fixed = FixedPacks(scratch / "rows" / f"mortm_hf-{last}")
        for i, row in enumerate(made["lists"]):
            pack = fixed[i]
            for name in ("input_ids", "labels", "position_ids"):
                if pack[name][0, : len(row[name])].tolist() != row[name]:
                    raise SystemExit(f"row {i}: the two versions disagree on {name}")
        result = {
            "rows": len(rows),
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_s": {name: tokens / s for name, s in seconds.items()},
            "ratio": seconds["lists"] / seconds["mortm_hf"],
            "bytes_per_token": {name: size / tokens for name, size in sizes.items()},
        }
        print(f"rows: {len(rows)} of {ROW}, {tokens} tokens, both agree on every id, label and position")
        for name in ways:
            per = result["tokens_per_s"][name] / 1e6, result["bytes_per_token"][name]
            print(f"  {name:9s} {seconds[name]:7.2f} s, {per[0]:7.2f} M tokens/s, {per[1]:5.2f} bytes a token")
        print(f"  {result['ratio']:.1f} times faster")
        both = {"songs": songs, "rows": result}
        if options.json:
            options.json.write_text(json.dumps(both, indent=2) + "\n")


if __name__ == "__main__":
    main()
