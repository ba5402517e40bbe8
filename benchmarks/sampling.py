"""Which temperature, top-p, min-p or typical-p gives music whose statistics are closest to what composers wrote.

    python benchmarks/sampling.py --data PACK [--model FOLDER] [--samples 48] [--json FILE] [--cache DIR]

Continuations (8 bars given, 8 generated, under the grammar) of validation windows, each setting on the same windows
with the same seeds. `gap`: mean over `COMPARED` of |samples - human| / human; the setting with the least gap is
proposed. Jensen-Shannon divergences (bits, to other music of the split) are shown as a check.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mortm_hf import MORTM_SMALL  # noqa: E402


SETTINGS = (
    {"temperature": 1.0, "top_p": 0.95},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 0.9, "top_p": 0.95},
    {"temperature": 0.8, "top_p": 0.95},
    {"temperature": 0.7, "top_p": 0.95},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 1.0, "typical_p": 0.9},
)
VARIETY = ("copied_bars", "distinct_bars", "distinct_4grams")
FIGURES = ("pitch_class_entropy", "scale_consistency", "groove_overlap", "self_similarity", "notes_per_bar")
COMPARED = (*VARIETY, *FIGURES)


def row_of(found: dict, side: str) -> dict[str, float]:
    """The compared figures and the divergences of one side of a music part."""
    row = {name: found["variety"][side][name] for name in VARIETY}
    row |= {name: found["figures"][side][name]["value"] for name in FIGURES}
    return row | {f"JS {name}": entry["mean"] for name, entry in found["distances"][side].items()}


def gap(row: dict[str, float], human: dict[str, float]) -> float:
    """Mean relative difference of the compared figures."""
    return sum(abs(row[name] - human[name]) / human[name] for name in COMPARED) / len(COMPARED)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, type=Path, help="folder of the training pack")
    parser.add_argument("--model", default=MORTM_SMALL, help="default: the bundled mortm-small")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--recipe", default="starter")
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--only", type=int, nargs="*", help="indices of SETTINGS (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cache", default="", help="keeps songs and answers: a run that was cut off goes on")
    parser.add_argument("--json", default="", help="write all figures here")
    options = parser.parse_args(words)

    import torch

    from mortm_hf.app.eval import load_model
    from mortm_hf.evaluation.eval_data import open_data
    from mortm_hf.evaluation.model_answers import Sampling, fingerprint
    from mortm_hf.evaluation.suite import Evaluation, Settings

    torch.set_num_threads(options.threads)
    cache = Path(options.cache) if options.cache else None
    model, tokenizer = load_model(Path(options.model), "cpu")
    identity = fingerprint(options.model)
    data = open_data(options.data, options.split, options.recipe, cache)
    data.train = None  # copying is not asked about here
    rows: dict[str, dict[str, float]] = {}
    chosen = SETTINGS if options.only is None else [SETTINGS[i] for i in options.only]
    for setting in chosen:
        sampling, began = Sampling(**setting), time.process_time()
        settings = Settings(samples=options.samples, batch=options.batch, seed=options.seed, sampling=sampling)
        suite = Evaluation(model, tokenizer, data, settings, identity, cache, sys.stderr.isatty())
        found = suite.run(("music",))["music"]
        human = row_of(found, "human")
        rows[str(sampling)] = row = row_of(found, "samples")
        row["gap"] = gap(row, human)
        print(f"{sampling}: gap {row['gap']:.3f}, {time.process_time() - began:.0f} s", flush=True)
        rows["human"] = human | {"gap": 0.0}
    names = list(rows["human"])
    print("\n| | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{row[n]:.3f}" for n in names) + " |")
    best = min((name for name in rows if name != "human"), key=lambda name: rows[name]["gap"])
    print(f"\nclosest to the composers: {best}")
    if options.json:
        Path(options.json).write_text(json.dumps({"checkpoint": identity, "rows": rows, "best": best}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
