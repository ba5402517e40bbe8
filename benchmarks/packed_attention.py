"""Attention over packed documents: a training step's time and memory by implementation, and how far they differ.

    python benchmarks/packed_attention.py --device cuda [--rows 8] [--length 2048] [--rounds 15] [--json out.json]

Rows of `--length` tokens are filled with documents of 100 to `--length` tokens (log-uniform, seeded) of random ids.
The implementations take turns on the same packs; each round gives one ratio to sdpa with a block-diagonal mask.
`sdpa_documents` is torch's own variable-length FlashAttention-2 on CUDA, one sdpa call a document on a CPU;
`flash_attention_2` (the flash-attn package) takes part where it is installed.

Equality: logits and gradients of a randomly initialised model in the precision of the run (bf16 on CUDA), against the
same weights in fp32 with eager attention; the distance of sdpa shows what half precision itself costs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from transformers.utils import is_flash_attn_2_available  # noqa: E402

from mortm_hf import MortmConfig, MortmForCausalLM  # noqa: E402
from mortm_hf.data.packing import Document, pack_rows  # noqa: E402
from mortm_hf.training import attention  # noqa: E402


VOCABULARY = 1162


def packs(rows: int, length: int, count: int, seed: int, device: str) -> list[dict]:
    """Packs of random documents in the form that training feeds."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        filled = []
        for _ in range(rows):
            row, left = [], length
            while left:
                n = min(left, int(np.exp(rng.uniform(np.log(100), np.log(length)))))
                n = left if left - n < 100 else n
                ids = rng.integers(5, VOCABULARY, n).astype(np.int32)
                row.append(Document(ids, np.ones(n, dtype=bool)))
                left -= n
            filled.append(row)
        pack = pack_rows(filled, length, 0)
        found.append({name: v.to(device) if torch.is_tensor(v) else v for name, v in pack.items()})
    return found


def inputs_of(pack: dict, implementation: str) -> dict:
    """What an implementation is fed: bounds of the documents, or positions that restart."""
    names = ("input_ids", "position_ids", "labels")
    plain = {name: pack[name] for name in names}
    return pack if implementation in (attention.NAME, "flash_attention_2") else plain


def model_of(options, implementation: str) -> MortmForCausalLM:
    torch.manual_seed(0)
    config = MortmConfig(
        vocab_size=VOCABULARY,
        hidden_size=options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=options.width // 64,
        num_key_value_heads=options.width // 64,
        intermediate_size=2 * options.width,
        mlp_layer_types=["dense"] * options.layers,
        max_position_embeddings=max(4096, options.length),
    )
    model = MortmForCausalLM._from_config(config, attn_implementation=implementation)
    return model.to(options.device).train()


def step(model, pack: dict, implementation: str, half: bool) -> torch.Tensor:
    """Forward and backward; the loss."""
    device = pack["input_ids"].device.type
    with torch.autocast(device, torch.bfloat16, enabled=half):
        loss = model(**inputs_of(pack, implementation), use_cache=False).loss
    loss.backward()
    return loss.detach()


def gradients(model) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative distance of two tensors, by norm."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def equality(options, implementations: list[str]) -> dict[str, dict[str, float]]:
    """Relative distance of loss gradient and logits to fp32 eager attention."""
    pack = packs(1, options.length, 1, 7, options.device)[0]
    found, expected = {}, None
    for name in ["eager", *implementations]:
        half = expected is not None and options.device == "cuda"
        model = model_of(options, name)
        step(model, pack, name, half)
        with torch.no_grad(), torch.autocast(options.device, torch.bfloat16, enabled=half):
            logits = model(**inputs_of(pack, name), use_cache=False).logits.float()
        seen = (gradients(model), logits)
        if expected is None:
            expected = seen
        else:
            found[name] = {"gradient": distance(seen[0], expected[0]), "logits": distance(seen[1], expected[1])}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--implementations", nargs="+", default=[])
    parser.add_argument("--json", default="")
    options = parser.parse_args()
    attention.register()
    cuda = options.device == "cuda"
    if not cuda:
        torch.set_num_threads(1)
    names = options.implementations or ["sdpa", "eager", "flex_attention", attention.NAME]
    if not options.implementations and cuda and is_flash_attn_2_available():
        names.append("flash_attention_2")
    precise = equality(options, names)
    models = {name: model_of(options, name) for name in names}
    drawn = packs(options.rows, options.length, options.rounds + 3, 0, options.device)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    peak: dict[str, float] = {}
    for turn, pack in enumerate(drawn):
        for name, model in models.items():
            if cuda:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            started = time.perf_counter()
            step(model, pack, name, half=cuda)
            if cuda:
                torch.cuda.synchronize()
                peak[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
            model.zero_grad(set_to_none=True)
            if turn >= 3:  # the first rounds compile and warm up
                seconds[name].append(time.perf_counter() - started)
    tokens = options.rows * options.length
    machine = torch.cuda.get_device_name() if cuda else "CPU, one thread"
    content = {
        "device": machine,
        "torch": torch.__version__,
        "bf16": cuda,
        "rows": options.rows,
        "rounds": options.rounds,
    }
    content |= {"length": options.length, "width": options.width, "layers": options.layers, "results": {}}
    print(
        f"{machine}, torch {torch.__version__}; {options.rows} x {options.length} tokens, d{options.width} "
        f"L{options.layers}, {'bf16' if cuda else 'fp32'}, forward and backward, {options.rounds} rounds"
    )
    print(f"| attention | tokens/s | speed against {names[0]} [quartiles] | peak MiB | logits off | gradient off |")
    print("|---|---|---|---|---|---|")
    for name in names:
        ratio = [a / b for a, b in zip(seconds[names[0]], seconds[name])]
        low, mid, high = np.quantile(ratio, [0.25, 0.5, 0.75])
        row = {
            "tokens_per_second": tokens / statistics.median(seconds[name]),
            "speed_to_first": [mid, low, high],
            "peak_mib": peak.get(name),
            **precise[name],
        }
        content["results"][name] = row
        memory = f"{peak[name]:.0f}" if cuda else "-"
        print(
            f"| {name} | {row['tokens_per_second']:.0f} | {mid:.2f} [{low:.2f}, {high:.2f}] | {memory} "
            f"| {row['logits']:.1e} | {row['gradient']:.1e} |"
        )
    if options.json:
        Path(options.json).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
