"""Time and memory of long rows: rotary positions, ALiBi (sdpa and eager), ALiBi with a bias matrix.

    python benchmarks/long_context.py [--lengths 1024 2048 4096 8192 16384] [--rounds 3] [--json out.json]

One forward pass of the model without a head, batch 1, fp32, one thread, no cache; CPU seconds, medians. Memory is the
peak of what the pass allocates. `eager` and the bias matrix need length^2: `--square-limit` ends them.
The last lines give the growth of memory from one length to its double: 2 is linear, 4 is quadratic.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from model import peak_bytes

from mortm_hf import MortmConfig, MortmModel
from mortm_hf.models.token_vocabulary import TABLE_SIZE


def build(positions: str, implementation: str, layers: int) -> MortmModel:
    torch.manual_seed(0)
    config = MortmConfig(
        position_embedding_type=positions,
        num_hidden_layers=layers,
        mlp_layer_types=["dense"] * layers,
        max_position_embeddings=1 << 15,
    )
    model = MortmModel(config).eval()
    model.set_attn_implementation(implementation)
    return model


def bias_matrix(model: MortmModel, length: int) -> torch.Tensor:
    """ALiBi as an additive mask [1, heads, length, length]: what one would write without thinking of memory."""
    return model.alibi.add_to_mask(None, length, length, 0, is_causal=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--square-limit", type=int, default=4096)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rotary = build("rope", "sdpa", args.layers)
    methods = {
        "rope sdpa": (build("rope", "sdpa", args.layers), None),
        "alibi sdpa": (build("alibi", "sdpa", args.layers), None),
        "alibi eager": (build("alibi", "eager", args.layers), None),
        "bias matrix sdpa": (rotary, bias_matrix),
    }
    source = methods["alibi sdpa"][0]
    rows = []
    for length in args.lengths:
        ids = torch.randint(5, TABLE_SIZE, (1, length))
        seconds, memory = {name: [] for name in methods}, {}
        for turn in range(args.rounds + 1):
            for name, (model, matrix) in methods.items():
                if length > args.square_limit and (matrix or "eager" in name):
                    continue

                def run(model=model, matrix=matrix, ids=ids):
                    mask = matrix(source, len(ids[0])) if matrix else None
                    return model(ids, attention_mask=mask, use_cache=False)

                with torch.inference_mode():
                    if turn == args.rounds:
                        memory[name] = peak_bytes(run, "cpu")
                    else:
                        begin = time.process_time()
                        run()
                        seconds[name].append(time.process_time() - begin)
        for name in methods:
            if seconds[name]:
                row = {
                    "length": length,
                    "method": name,
                    "seconds": statistics.median(seconds[name]),
                    "peak_mb": memory[name] / 2**20,
                    "time_over_rope": statistics.median(
                        a / r for a, r in zip(seconds[name], seconds["rope sdpa"], strict=True)
                    ),
                }
                rows.append(row)
                print(
                    f"{length:6d} {name:18s} {row['seconds']:8.3f} s (x{row['time_over_rope']:.2f} of rope) "
                    f"{row['peak_mb']:8.1f} MB",
                    flush=True,
                )
    growth = {}
    for name in methods:
        peaks = {row["length"]: row["peak_mb"] for row in rows if row["method"] == name}
        growth[name] = {n: peaks[n] / peaks[n // 2] for n in peaks if n // 2 in peaks}
        if growth[name]:
            print(
                f"memory growth per doubling, {name}: " + ", ".join(f"{n}: x{g:.2f}" for n, g in growth[name].items())
            )
    if args.json:
        args.json.write_text(json.dumps({"layers": args.layers, "rows": rows, "growth": growth}, indent=2))


if __name__ == "__main__":
    main()
