"""Chord estimation by a checkpoint beside the commonest chord and template matching, scored with mir_eval.

    python benchmarks/chord_estimation.py --data PACK [--model FOLDER] [--choose] [--json FILE] [--cache DIR]

`--window` reads so many bars at once; `--choose` first reads some validation songs in several ways (greedy, beams,
overlapping windows, transpositions, samples; `READINGS`) and takes the best for the test split. Scores: root and
root + quality (mir_eval's `tetrads`), weighted by duration in quarters, 95 % intervals over songs, differences paired.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mortm_hf import MORTM_SMALL  # noqa: E402


def readings():
    """The ways of reading that `--choose` compares."""
    from mortm_hf.evaluation.chord_estimation import ChordReading

    plain = ChordReading()
    return [
        replace(plain, window=8, stride=8),
        replace(plain, window=8, stride=8, key="window"),
        replace(plain, window=8, stride=8, key="none"),
        replace(plain, window=4, stride=4),
        replace(plain, window=4, stride=2),
        plain,
        replace(plain, window=1, stride=1),
        replace(plain, beams=4),
        replace(plain, semitones=(-4, 0, 3)),
        replace(plain, samples=6),
    ]


def choose(model, tokenizer, songs, identity, cache, batch, progress) -> tuple[list[dict], object]:
    """Every reading on validation songs, and the best by the mean over corpora of root and root + quality."""
    from mortm_hf.evaluation.chord_estimation import compare, model_chords, notes_only, summary

    rows = []
    inputs = [notes_only(s.score) for s in songs]
    corpora = list(dict.fromkeys(s.corpus for s in songs))
    for reading in readings():
        began = time.process_time()
        options = {"batch": batch, "cache_folder": cache, "identity": identity}
        options["progress"] = str(reading) if progress else None
        found = model_chords(model, tokenizer, inputs, reading, **options)
        seconds = time.process_time() - began
        scores = [compare(s.score.chords, g, s.score.bars.end) for s, g in zip(songs, found)]
        row = {"reading": str(reading), "seconds": round(seconds, 1)}
        for corpus in corpora:
            kept = [i for i, s in enumerate(songs) if s.corpus == corpus]
            report = summary([scores[i] for i in kept], [songs[i].cluster for i in kept])
            row[corpus] = {name: entry["value"] for name, entry in report.items()}
        parts = [row[c][m] for c in corpora for m in ("root", "root + quality")]
        row["mean"] = sum(parts) / len(parts)
        rows.append(row)
        words = ", ".join(f"{c} {100 * row[c]['root']:.1f} / {100 * row[c]['root + quality']:.1f}" for c in corpora)
        print(f"{row['reading']}: mean {100 * row['mean']:.2f}; {words}; {seconds:.0f} s", flush=True)
    best = max(range(len(rows)), key=lambda i: rows[i]["mean"])
    return rows, readings()[best]


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="folder of the training pack")
    parser.add_argument("--model", default=MORTM_SMALL, help="default: the bundled mortm-small")
    parser.add_argument("--recipe", default="starter")
    parser.add_argument("--choose", action="store_true", help="compare readings on validation songs first")
    parser.add_argument("--choose-songs", type=int, default=8, help="validation songs a corpus (0: all)")
    parser.add_argument("--window", type=int, default=0, help="bars read at once (default: that of `mortm eval`)")
    parser.add_argument("--songs", type=int, default=0, help="test songs a corpus (0: all)")
    parser.add_argument("--no-test", action="store_true", help="only compare readings")
    parser.add_argument(
        "--tune-songs", type=int, default=60, help="songs a corpus that templates are tuned on (0: all)"
    )
    parser.add_argument("--no-melody", action="store_true", help="leave out the estimates from the melody alone")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", default="", help="keeps songs and answers: a run that was cut off goes on")
    parser.add_argument("--json", default="", help="write all figures here")
    options = parser.parse_args(words)

    import torch

    from mortm_hf.app.eval import load_model
    from mortm_hf.evaluation.chord_estimation import ChordReading
    from mortm_hf.evaluation.eval_data import open_data
    from mortm_hf.evaluation.model_answers import fingerprint
    from mortm_hf.evaluation.report import markdown
    from mortm_hf.evaluation.suite import Evaluation, Settings

    torch.set_num_threads(options.threads)
    cache = Path(options.cache) if options.cache else None
    model, tokenizer = load_model(Path(options.model), "cpu")
    identity = fingerprint(options.model)
    data = open_data(options.data, "test", options.recipe, cache)
    progress = sys.stderr.isatty()
    result: dict[str, object] = {"about": {"name": Path(options.model).name, "checkpoint": identity}}
    reading = ChordReading(options.window, options.window) if options.window else ChordReading()
    if options.choose:
        groups: dict[str, list] = {}
        for song in data.validation_songs.songs:
            if song.score.chords is not None:
                groups.setdefault(song.corpus, []).append(song)
        wanted = options.choose_songs
        songs = [s for g in groups.values() for s in (g[:: max(1, len(g) // wanted)][:wanted] if wanted else g)]
        counts = ", ".join(f"{min(wanted, len(g)) if wanted else len(g)} {name}" for name, g in groups.items())
        print(f"readings, on {counts} validation songs")
        result["readings"], reading = choose(model, tokenizer, songs, identity, cache, options.batch, progress)
        print(f"best: {reading}")
    if not options.no_test:
        settings = Settings(
            tune_songs=options.tune_songs,
            chord_songs=options.songs,
            batch=options.batch,
            reading=reading,
            melody=not options.no_melody,
        )
        suite = Evaluation(model, tokenizer, data, settings, identity, cache, progress)
        result |= suite.run(("chords",))
        print(markdown(result))
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
