"""MORTM Live on the test split: reconstruction, the next chunk, latency, and a soak in real time.

    python benchmarks/live.py --data PACK [--model FOLDER] [--soak MINUTES] [--json FILE] [--cache DIR]

Every window (the first eight bars of a song, as heard) is answered once for each slot that sounds in it. A note counts
as found where pitch, slot and onset tick agree. "Next chunk" is teacher forced: the model has heard the true chunks
before. Beside it stand the last chunk again and the same chunk of the bar before. Thresholds are chosen on the
validation split. F1 is pooled over notes; 95 % over songs, differences paired.

"Alone": the model hears its own part as it plays it. Notes a bar of 4/4, their length and how many sound at a time are
set beside what the composer wrote for that slot; a model that holds on to its notes, or falls silent, shows here.

Latency: one step of a session (hearing, model, events) with one thread. `--soak` plays a test song's part into a
session by the wall clock (120 quarters a minute, cut 125 ms before a chunk ends) and counts what came too late.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
ONSETS = (0.1, 0.2, 0.3)
ALONE = (0.4, 0.5)  # thresholds at which it plays alone: the density depends on them more than on anything else
LEAD = 0.125


def windows_of(store, processor, roll, limit: int):
    """(batch of one window, song, slot to play) of each song's first window and sounding slot."""
    from mortm_hf.data.piano_rolls import RollWindows, stack

    songs = RollWindows(store, processor, roll.slots, roll.chunks, 1, 1, transpose=(0, 0))
    for index in range(len(songs.scores))[: limit or None]:
        rolls, mask, phases, _ = songs.window(index, np.random.default_rng(0), start_bar=0, shift=0)
        for slot in range(processor.num_slots):
            if rolls[..., 2 * slot].any():
                play = np.arange(processor.num_slots) == slot
                yield stack([(rolls, mask, phases, play)]), index, slot


def answers(model, windows, recurring: int):
    """Per window: logits of the next chunks and of the reconstruction in its slot, the true rolls, what sounded."""
    import torch

    kept = []
    for batch, song, slot in windows:
        with torch.inference_mode():
            out = model(**batch)
        real = int(batch["attention_mask"].sum())
        if real < recurring + 2:
            continue
        kept.append(
            {
                "song": song,
                "slot": slot,
                "rolls": batch["rolls"][0, :real].numpy(),
                "next": out.logits[0, : real - 1].numpy(),
                "own": out.reconstruction_logits[0, :real].numpy(),
            }
        )
    return kept


def onsets(roll: np.ndarray, slot: int) -> np.ndarray:
    """`[chunks, ticks, 128]` where a note of the slot begins."""
    return (roll[..., 2 * slot] > 0.5) & (roll[..., 2 * slot + 1] > 0)


def drawn(processor, logits, rolls_before, threshold, onset_threshold):
    """Rolls of logits, given the chunks before."""
    before = rolls_before[:, -1, :, 0::2] > 0.5
    return processor.from_logits(logits, threshold, onset_threshold, before=before)


def counts(guess: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[2 x hits, guessed + true]: their quotient is F1."""
    return np.array([2 * (guess & truth).sum(), guess.sum() + truth.sum()], dtype=float)


def tables(processor, kept, threshold, onset_threshold, recurring: int) -> dict[str, np.ndarray]:
    """`{what: [windows, 2]}` counts of each window."""
    found: dict[str, list] = {"model": [], "last chunk again": [], "the bar before again": [], "reconstruction": []}
    for item in kept:
        rolls, slot = item["rolls"], item["slot"]
        truth = onsets(rolls, slot)
        # all guess the same chunks: those that have a bar before them
        first = recurring
        guess = onsets(drawn(processor, item["next"], rolls[:-1], threshold, onset_threshold), slot)
        found["model"].append(counts(guess[first - 1 :], truth[first:]))
        found["last chunk again"].append(counts(truth[first - 1 : -1], truth[first:]))
        found["the bar before again"].append(counts(truth[first - recurring : len(truth) - recurring], truth[first:]))
        silence = np.concatenate([np.zeros_like(rolls[:1]), rolls[:-1]])
        own = onsets(drawn(processor, item["own"], silence, threshold, onset_threshold), slot)
        found["reconstruction"].append(counts(own, truth))
    return {name: np.stack(rows) for name, rows in found.items()}


def f1(rows: np.ndarray) -> float:
    return float(rows[:, 0].sum() / max(rows[:, 1].sum(), 1))


def texture(notes, rows, chunks: int, processor) -> np.ndarray:
    """[notes, ticks sounded, ticks] of a part."""
    return np.array([rows.sum(), notes.duration[rows].sum(), chunks * processor.chunk_ticks], dtype=float)


def alone(model, processor, kept, threshold: float, count: int) -> dict[str, dict]:
    """How the model plays from what it played itself, beside the composer's part: a report for each slot."""
    from tqdm import tqdm

    from mortm_hf.app.live_session import LiveSession, play_along

    rows: dict[tuple[int, str], list] = {}
    chosen = kept[:: max(1, len(kept) // count)] if count else kept
    for item in tqdm(chosen, desc=f"alone, threshold {threshold}", unit="window"):
        slot, chunks = item["slot"], len(item["rolls"])
        human = processor.roll_to_notes(item["rolls"])
        if len(set(human.slot.tolist())) < 2:
            continue  # nobody to answer
        session = LiveSession(model, processor, play=(slot,), threshold=threshold)
        score = processor.roll_to_score(item["rolls"].reshape(-1, *item["rolls"].shape[2:]))
        both = play_along(session, score)
        for name, notes in (("model", both), ("composer", human)):
            rows.setdefault((slot, name), []).append(texture(notes, notes.slot == slot, chunks, processor))
    report: dict[str, dict] = {}
    for (slot, name), counted in sorted(rows.items()):
        notes, sounded, ticks = np.sum(counted, axis=0).tolist()
        report.setdefault(str(slot), {"windows": len(counted)})[name] = {
            "notes a bar": round(processor.ticks_per_measure * notes / ticks, 2),
            "ticks a note": round(sounded / max(notes, 1), 1),
            "sounding at a time": round(sounded / ticks, 2),
        }
    return report


def soak(model, processor, part, minutes: float, threshold: float) -> dict:
    """A session by the wall clock; `part`: (tick, pitch, velocity) events of one slot, repeated."""
    from tqdm import tqdm

    from mortm_hf.app.live_session import LiveSession

    session = LiveSession(model, processor, play=(1,), bpm=120, lead=LEAD, threshold=threshold)
    events, length = part
    session.start(time.monotonic())
    began, at, turn = time.monotonic(), 0, 0
    with tqdm(total=round(60 * minutes), desc="soak", unit="s") as bar:
        while time.monotonic() - began < 60 * minutes:
            wait = session.next_cut() - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            now = time.monotonic()
            while session.time_of(turn * length + events[at][0]) <= now:
                tick, pitch, velocity = events[at]
                session.push(session.time_of(turn * length + tick), 0, pitch, velocity)
                at, turn = (at + 1, turn) if at + 1 < len(events) else (0, turn + 1)
            session.advance(now, finished=time.monotonic)
            bar.update(int(now - began) - bar.n)
    found = session.statistics.summary()
    found["p99_ms"] = float(1000 * np.percentile(session.statistics.latencies, 99))
    return found


def latency(model, processor, item, steps: int = 300) -> dict:
    """Milliseconds of a session's step, back to back."""
    from mortm_hf.app.live_session import LiveSession

    session = LiveSession(model, processor, play=(1,), threshold=0.5)
    notes = processor.roll_to_notes(item["rolls"])
    mine = notes.slot == 0
    session.start(0.0)
    times = []
    for step in range(steps):
        start = step % len(item["rolls"]) * session.ticks
        now = session.next_cut()
        for place in np.flatnonzero(mine & (notes.onset >= start) & (notes.onset < start + session.ticks)).tolist():
            tick = step * session.ticks + int(notes.onset[place]) - start
            session.push(session.time_of(tick), 0, int(notes.pitch[place]), int(notes.velocity[place]))
            session.push(session.time_of(tick + int(notes.duration[place])), 0, int(notes.pitch[place]), 0)
        began = time.perf_counter()
        session.advance(now)
        times.append(1000 * (time.perf_counter() - began))
    times = np.array(times[20:])
    return {"p50_ms": float(np.median(times)), "p95_ms": float(np.percentile(times, 95)), "steps": len(times)}


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the training pack")
    parser.add_argument("--model", default="", help="checkpoint folder; by default the bundled one")
    parser.add_argument("--recipe", default="live_small", help="names the corpora and the slots' tracks")
    parser.add_argument("--limit", type=int, default=0, help="songs of a split (0: all)")
    parser.add_argument("--windows", type=int, default=0, help="windows in which the model plays alone (0: all)")
    parser.add_argument("--soak", type=float, default=0.0, help="minutes in real time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", default="build/live", help="folder for prepared stores")
    parser.add_argument("--json", default="", help="write all figures here")
    options = parser.parse_args(words)

    import torch

    import mortm_hf
    from mortm_hf.data import build_store
    from mortm_hf.evaluation.intervals import bootstrap, ratio
    from mortm_hf.models.modeling_mortm_live import MortmLiveForCausalGeneration
    from mortm_hf.models.processing_mortm_live import MortmLiveProcessor
    from mortm_hf.training.tasks import read_recipe

    torch.set_num_threads(options.threads)
    folder = options.model or mortm_hf.MORTM_LIVE
    model = MortmLiveForCausalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = MortmLiveProcessor.from_pretrained(folder)
    found = read_recipe(options.recipe, ["--output_dir", options.cache])
    recipe, roll = found.data, found.others["roll"]
    recurring = processor.ticks_per_measure // processor.chunk_ticks
    kept = {}
    for split in ("validation", "test"):
        store = build_store(options.data, recipe.selection(), split, options.cache)
        kept[split] = answers(model, windows_of(store, processor, roll, options.limit), recurring)
    pairs = [(t, o) for t in THRESHOLDS for o in ONSETS]
    best = max(pairs, key=lambda p: f1(tables(processor, kept["validation"], *p, recurring)["model"]))
    sharp = max(pairs, key=lambda p: f1(tables(processor, kept["validation"], *p, recurring)["reconstruction"]))
    rows = tables(processor, kept["test"], *best, recurring)
    rows["reconstruction"] = tables(processor, kept["test"], *sharp, recurring)["reconstruction"]
    songs = np.array([item["song"] for item in kept["test"]])
    result: dict = {
        "songs": len(set(songs.tolist())),
        "windows": len(songs),
        "thresholds": {"next chunk": best, "reconstruction": sharp},
        "f1": {},
    }
    print(f"{result['songs']} test songs, {len(songs)} windows; thresholds {best}, reconstruction {sharp}")
    print("\n| notes | F1 | model minus it |\n|---|---|---|")
    for name, table in rows.items():
        entry = ratio(table[:, 0], table[:, 1], songs)
        text = ""
        if name not in ("model", "reconstruction"):
            low, high = bootstrap(lambda pick, other=table: f1(rows["model"][pick]) - f1(other[pick]), songs)
            entry["difference"] = {"value": f1(rows["model"]) - f1(table), "low": low, "high": high}
            text = f"{entry['difference']['value']:+.3f} [{low:+.3f}, {high:+.3f}]"
        result["f1"][name] = entry
        print(f"| {name} | {entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}] | {text} |")
    by_slot = {}
    for slot in sorted({item["slot"] for item in kept["test"]}):
        mine = np.array([item["slot"] == slot for item in kept["test"]])
        by_slot[slot] = {name: round(f1(table[mine]), 3) for name, table in rows.items()}
    result["f1 by slot"] = by_slot
    print("\nby slot: " + json.dumps(by_slot))

    result["alone"] = {t: alone(model, processor, kept["test"], t, options.windows) for t in ALONE}
    for threshold, report in result["alone"].items():
        print(f"alone by slot, threshold {threshold}: " + json.dumps(report))
    result["latency"] = latency(model, processor, kept["test"][0])
    print("\nstep of a session, one thread: " + json.dumps(result["latency"]))
    if options.soak:
        notes = processor.roll_to_notes(kept["test"][0]["rolls"])
        mine = np.flatnonzero(notes.slot == 0)
        edges = [(int(notes.onset[i]), int(notes.pitch[i]), int(notes.velocity[i])) for i in mine]
        edges += [(int(notes.onset[i] + notes.duration[i]), int(notes.pitch[i]), 0) for i in mine]
        length = len(kept["test"][0]["rolls"]) * processor.chunk_ticks
        part = sorted(edges, key=lambda e: (e[0], e[2] > 0)), length
        result["soak"] = soak(model, processor, part, options.soak, best[0]) | {"minutes": options.soak}
        print("soak: " + json.dumps(result["soak"]))
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
