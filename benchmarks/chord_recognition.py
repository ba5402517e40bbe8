"""The chord recogniser of data preparation: accuracy by corpus beside its baselines, and speed.

    python benchmarks/chord_recognition.py --data PACK [--split test] [--limit N] [--json FILE]
    python benchmarks/chord_recognition.py --data PACK --fit       count the profiles anew, on the train split

Accuracy: mir_eval's root, tetrads ("root + quality") and majmin, weighted by duration over all songs of the split,
with intervals over songs (`mortm_hf.evaluation.chord_estimation`). Baselines: the commonest chord of the train split,
its commonest degree in the estimated key, and template matching whose settings are chosen on the validation split.
Estimators hear the notes alone, without annotated key or chords.

Speed: CPU time of `estimate_chords` over all songs of the split at once, one thread.

Fitting: profiles are counted on the train songs with both corpora at equal weight; the weights of the four terms are
chosen on every third of them for the mean of root and root + quality over the two corpora.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path


os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from mortm_hf.data import CorpusFilter, Selection, build_store
from mortm_hf.data.chord_recogniser import PROFILES, count_profiles, default_profiles, estimate_chords
from mortm_hf.evaluation.chord_baselines import Majority, Templates
from mortm_hf.evaluation.chord_estimation import METRICS, compare, notes_only, summary


CORPORA = {"pop909": CorpusFilter(("aligned",)), "openewld": CorpusFilter()}
GRID = {
    0: (6.0, 9.0, 12.0, 18.0, 24.0),  # sounding time
    1: (0.5, 0.75, 1.0, 1.5, 2.5),  # bass
    2: (0.6, 1.0, 1.5, 2.5, 4.0),  # degree
    3: (0.0, 0.25, 0.5, 1.0, 2.0),  # change
}


def annotated(data: str, split: str, cache: str | None):
    """`{corpus: songs}` with chords."""
    store = build_store(data, Selection(CORPORA), split, cache)
    songs = {name: [] for name in CORPORA}
    for song in store.songs:
        if song.score.chords is not None:
            songs[song.corpus].append(song)
    return songs


def scores_of(songs, tables) -> list[dict]:
    return [compare(song.score.chords, table, song.score.bars.end) for song, table in zip(songs, tables)]


def value(songs: dict, profiles) -> float:
    """Mean of root and root + quality over the corpora."""
    total = 0.0
    for members in songs.values():
        scores = scores_of(members, estimate_chords([s.score for s in members], profiles))
        total += sum(sum(s[m][0] for s in scores) / sum(s[m][1] for s in scores) for m in ("root", "root + quality"))
    return total / (2 * len(songs))


def fit(options) -> None:
    """Count profiles and choose their weights on the train split; writes the package's file."""
    songs = annotated(options.data, "train", options.cache)
    everything = [s for members in songs.values() for s in members]
    shares = [1 / sum(x.score.bars.end for x in songs[s.corpus]) for s in everything]
    profiles = count_profiles([s.score for s in everything], shares=shares)
    some = {name: members[::3][: options.limit] for name, members in songs.items()}
    print(f"{len(everything)} train songs, weights on {sum(map(len, some.values()))}", file=sys.stderr)
    best = value(some, profiles)
    for turn in range(2):
        for place, grid in GRID.items():
            for option in tqdm(grid, desc=f"round {turn + 1}, weight {place}", disable=not sys.stderr.isatty()):
                weights = list(profiles.weights)
                if weights[place] == option:
                    continue
                weights[place] = option
                tried = replace(profiles, weights=tuple(weights))
                if (found := value(some, tried)) > best:
                    best, profiles = found, tried
        print(f"round {turn + 1}: {best:.4f} with {profiles.weights}", file=sys.stderr)
    profiles.save(PROFILES)
    print(f"{PROFILES}: {len(profiles.qualities)} qualities, {best:.4f} on train songs")


def report(options) -> dict:
    """Accuracy and speed on one split."""
    train = annotated(options.data, "train", options.cache)
    majority = Majority.fit(s.score for members in train.values() for s in members)
    tuning = annotated(options.data, "validation", options.cache)
    heard_on = [s for members in tuning.values() for s in members]
    templates = Templates.tune([notes_only(s.score) for s in heard_on], [s.score.chords for s in heard_on])
    print(f"commonest chord {majority}; templates {templates}", file=sys.stderr)
    result = {"split": options.split, "templates": str(templates), "corpora": {}}
    for corpus, members in annotated(options.data, options.split, options.cache).items():
        members = members[: options.limit]
        clusters = [s.cluster for s in members]
        bare = [notes_only(s.score) for s in members]
        default_profiles()
        begin = time.process_time()
        found = {"recogniser": estimate_chords(bare)}
        seconds = time.process_time() - begin
        found["templates"] = [templates.estimate(s) for s in bare]
        found["commonest degree"] = [majority.estimate(s, by_key=True) for s in bare]
        found["commonest chord"] = [majority.estimate(s) for s in bare]
        entry = {name: summary(scores_of(members, tables), clusters) for name, tables in found.items()}
        bars = sum(s.n_bars for s in bare)
        entry["speed"] = {"songs": len(bare), "ms_per_song": 1000 * seconds / len(bare), "bars_per_s": bars / seconds}
        result["corpora"][corpus] = entry
        print(f"\n{corpus} ({options.split}, {len(bare)} songs, {bars} bars)")
        print("| estimator | " + " | ".join(METRICS) + " |")
        print("|---|" + "---|" * len(METRICS))
        for name in found:
            cells = (f"{e['value']:.3f} [{e['low']:.3f}, {e['high']:.3f}]" for e in entry[name].values())
            print(f"| {name} | {' | '.join(cells)} |")
        print(f"recogniser: {1000 * seconds / len(bare):.2f} ms a song, {bars / seconds:.0f} bars/s")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the training pack")
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"))
    parser.add_argument("--cache", help="folder for prepared songs")
    parser.add_argument("--limit", type=int, help="songs of each corpus")
    parser.add_argument("--fit", action="store_true", help="count the profiles anew and write them")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.fit:
        fit(options)
        return
    result = report(options)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
