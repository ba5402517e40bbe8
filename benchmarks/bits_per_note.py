"""Bits a note of the bundled generators on the fixed test windows, beside n-grams and copying; variety of samples.

    python benchmarks/bits_per_note.py --data PACK [--model "NAME=FOLDER" ...] [--json FILE] [--limit N]

Bits a note = total negative log2-likelihood of the generated field over its distinct notes (see
`mortm_hf.evaluation`). Windows are those of `mortm_hf/training/recipes/starter.test.csv`. `--limit` takes the first N
windows of each corpus in every split: quick, and no longer the figures of the card.
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

RECIPES = ROOT / "mortm_hf" / "training" / "recipes"


def print_table(title: str, rows: dict[str, dict], corpora: list[str]) -> None:
    """One line a model, one column a corpus, intervals in brackets."""
    print(f"\n{title}")
    print("| model | " + " | ".join(corpora) + " |")
    print("|---|" + "---|" * len(corpora))
    for name, report in rows.items():
        cells = (report[c] for c in corpora)
        cells = [f"{c['bits_per_note']:.2f} [{c['low']:.2f}, {c['high']:.2f}]" for c in cells]
        print(f"| {name} | " + " | ".join(cells) + " |")


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the training pack")
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        help='"[NAME=]FOLDER", more than once too (default: mortm-small, starter)',
    )
    parser.add_argument("--recipe", default=str(RECIPES / "starter.yaml"))
    parser.add_argument("--cache", default="", help="folder for prepared stores")
    parser.add_argument("--baselines", default="", help=".npz with finished baselines: read if there, else written")
    parser.add_argument("--limit", type=int, default=0, help="windows a corpus and split (0: all)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, default=48, help="generated continuations for the variety figures")
    parser.add_argument("--no-baselines", action="store_true", help="only the models")
    parser.add_argument("--json", default="", help="write all figures here")
    options = parser.parse_args(words)

    import torch

    from mortm_hf import MORTM_SMALL, STARTER
    from mortm_hf.data import build_store
    from mortm_hf.evaluation.bits_baselines import run_baselines
    from mortm_hf.evaluation.bits_per_note import model_bits, summarise
    from mortm_hf.evaluation.fixed_windows import encode_windows, fixed_windows, read_windows
    from mortm_hf.evaluation.suite import first_of_each
    from mortm_hf.evaluation.variety import human_variety, sample_variety
    from mortm_hf.models.modeling_mortm import MortmForCausalLM
    from mortm_hf.models.tokenization_mortm import MortmTokenizer
    from mortm_hf.training.tasks import read_data

    torch.set_num_threads(options.threads)
    named = [text.rpartition("=") for text in options.model]
    folders = {name or Path(folder).name: folder for name, _, folder in named} or {
        "mortm-small": MORTM_SMALL,
        "starter": STARTER,
    }
    tokenizer = MortmTokenizer.from_pretrained(next(iter(folders.values())))
    models = {name: MortmForCausalLM.from_pretrained(path, dtype=torch.float32) for name, path in folders.items()}
    vocabulary = tokenizer.vocabulary
    if len({model.config.vocab_size for model in models.values()}) > 1:
        parser.error("these checkpoints have unlike token tables: score them one by one")
    recipe = read_data(options.recipe)
    selection = recipe.selection()
    length = min(model.config.max_position_embeddings for model in models.values())
    stores, encoded, left_out = {}, {}, {}
    for split in ("train", "validation", "test"):
        store = stores[split] = build_store(options.data, selection, split, options.cache or None)
        windows = read_windows(RECIPES / "starter.test.csv") if split == "test" else fixed_windows(store)
        corpus_of = {song.path: song.corpus for song in store.songs}
        windows = first_of_each(windows, lambda w, corpus_of=corpus_of: corpus_of[w.path], options.limit)
        encoded[split], left_out[split] = encode_windows(vocabulary, store, windows, length)
        print(f"{split}: {len(store)} songs, {len(encoded[split])} windows, {len(left_out[split])} left out")

    test = encoded["test"]
    bits = {}
    for name, model in models.items():
        started = time.perf_counter()
        bits[name] = model_bits(model, test, tokenizer.pad_token_id)
        print(f"{name} scored in {time.perf_counter() - started:.0f} s")
    result: dict[str, object] = {}
    if options.samples:
        result["variety"] = {"human": human_variety(stores["test"], test, options.samples)}
        for name, model in models.items():
            result["variety"][name] = sample_variety(model, tokenizer, stores["test"], test, options.samples)
        for name, figures in result["variety"].items():
            print(f"{name}: " + ", ".join(f"{k} {v:.3f}" for k, v in figures.items()))
    chosen = {}
    cache = Path(options.baselines) if options.baselines else None
    if options.no_baselines:
        pass
    elif cache is not None and cache.is_file():
        with np.load(cache, allow_pickle=False) as content:
            chosen = json.loads(str(content["chosen"]))
            bits |= {name: content[name] for name in content.files if name != "chosen"}
    else:
        found = run_baselines(vocabulary, encoded["train"], encoded["validation"], test)
        bits |= found.bits
        chosen = json.loads(json.dumps(found.chosen))
        if cache is not None:
            np.savez(cache, chosen=json.dumps(chosen), **found.bits)
    if len({len(values) for values in bits.values()}) > 1:
        print(f"{cache} was made with other windows: remove it", file=sys.stderr)
        return 2

    report = {name: summarise(values, test) for name, values in bits.items()}
    corpora = [*dict.fromkeys(w.corpus for w in test), "macro"]
    print_table("Bits a note on the test windows (lower is better), 95 % over songs", report, corpora)
    paired = {
        f"{name} - {other}": summarise(bits[name], test, against=bits[other])
        for place, name in enumerate(models)
        for other in [*list(models)[place + 1 :], *(n for n in bits if n not in models)]
    }
    print_table("Paired differences (below 0: the first is better)", paired, corpora)
    first = next(iter(models))
    sizes = {c: {k: report[first][c][k] for k in ("windows", "songs", "notes")} for c in corpora}
    print("\nWindows, songs, notes:", json.dumps(sizes))
    print("Chosen on validation:", json.dumps(chosen))
    result |= {"bits_per_note": report, "paired": paired, "chosen": chosen, "left_out": len(left_out["test"])}
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
