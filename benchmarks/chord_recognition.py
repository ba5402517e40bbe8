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
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path


os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from tqdm import tqdm

from mortm_hf.data.annotations import ROOT_PITCH
from mortm_hf.data.chord_recogniser import PROFILES, Profiles, SongSound, default_profiles, estimate_chords
from mortm_hf.data.manifest import CorpusFilter, Selection
from mortm_hf.data.open import build_store
from mortm_hf.evaluation.chord_baselines import Majority, Templates
from mortm_hf.evaluation.chord_estimation import METRICS, compare, notes_only, summary
from mortm_hf.models.music_names import QUALITY_NAMES
from mortm_hf.models.music_score import MetricScore


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


def count_profiles(
    songs: Sequence[MetricScore], weights=(12.0, 0.75, 1.5, 0.5), shares: Sequence[float] | None = None, least=0.002
) -> Profiles:
    """Profiles counted on annotated songs.

    Args:
        songs: scores with chords.
        weights: as `Profiles.weights`.
        shares: weight of each song; by default all alike.
        least: qualities with a smaller share of the time than this are not distinguished.
    """
    n = len(QUALITY_NAMES)
    tones, bass = np.zeros((n, 12)), np.zeros((n, 12))
    degree, change, strong = np.zeros((2, 12, n)), np.zeros(3), np.zeros(3)
    for score, share in zip(songs, shares if shares is not None else np.ones(len(songs))):
        sound = SongSound.of(score)
        beats, table = sound.beats, score.chords
        at = np.searchsorted(table.onset, beats.start + beats.length // 2, side="right") - 1
        root = np.where(at >= 0, ROOT_PITCH[table.root[np.maximum(at, 0)]], -1)
        quality = np.where(root >= 0, table.quality[np.maximum(at, 0)], 0)
        total = sound.profile.sum(axis=1)
        rows = np.flatnonzero((root >= 0) & (total > 0))
        turn = (np.arange(12) + root[rows, None]) % 12
        ticks = share * beats.length[rows]
        above = np.take_along_axis(sound.profile[rows], turn, axis=1) / total[rows, None]
        np.add.at(tones, quality[rows], above * ticks[:, None])
        low = sound.lowest[rows]
        np.add.at(bass, (quality[rows], (low - root[rows]) % 12), ticks * (low >= 0))
        if sound.key >= 0:
            step = (root[rows] - sound.key) % 12
            np.add.at(degree[sound.key // 12], (step, quality[rows]), ticks)
        moved = np.append(False, at[1:] != at[:-1])
        np.add.at(change, beats.strength, share * moved)
        np.add.at(strong, beats.strength, share)
    kept = np.flatnonzero(tones.sum(axis=1) > least * tones.sum())

    def logarithm(table: np.ndarray, axes, floor: float) -> np.ndarray:
        part = table / np.maximum(table.sum(axis=axes, keepdims=True), 1e-9)
        part = (1 - floor) * part + floor / np.prod([table.shape[a] for a in axes])
        return np.log(part)

    share = np.clip(change / np.maximum(strong, 1e-9), 1e-3, 0.999)
    return Profiles(
        qualities=kept,
        tones=logarithm(tones[kept], (1,), 0.05),
        bass=logarithm(bass[kept], (1,), 0.05),
        degree=logarithm(degree[:, :, kept], (1, 2), 0.05),
        change=np.log(share / (1 - share)),
        weights=tuple(weights),
    )


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
