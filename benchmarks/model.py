"""A training step of MORTM: against an equal-size Qwen2MoeForCausalLM of transformers, and experts against dense.

    python benchmarks/model.py [--rounds 7] [--batch 2] [--length 1024] [--experts grouped_mm eager] [--json out.json]
    python benchmarks/model.py --dense [--precision bf16 fp32]

A step is forward, balancing loss, backward, clipping and fused AdamW. The models take turns within one process and
each round gives one ratio, so that a busy machine slows both; CPU seconds of one thread, medians. Memory is the peak
of what a step allocates over what was there before it.
Qwen2Moe is the nearest model in transformers: its router, shared expert and rotary attention are the same but for
biases on q, k, v and a gate on the shared expert. This table is in fp32.

`--dense` compares ways of computing experts with a dense model of as many parameters acting on a token (a feed-forward
layer as wide as the chosen experts and the shared one), in bf16 (autocast) and in fp32. The share of the peak is the
step's useful operations a second (2 a weight and token forward, 4 backward; causal attention alike) over what one
square matrix product of 2048 reaches in the same type within the same rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

from mortm_hf import MortmConfig, MortmForCausalLM
from mortm_hf.models.token_vocabulary import TABLE_SIZE


PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}
PEAK_SIZE = 2048


def peak_bytes(function, device: str) -> int:
    """The most memory that tensors made within `function` hold at once.

    On a CPU from the profiler's record of allocations: the resident set of a process would count what the allocator
    keeps from earlier passes, and miss what it has kept.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - start
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events))


def seconds_of(function, device: str) -> float:
    """CPU seconds of `function`; on a GPU seconds."""
    if device == "cuda":
        torch.cuda.synchronize()
    clock = time.perf_counter if device == "cuda" else time.process_time
    begin = clock()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - begin


class Trainee:
    def __init__(self, model, experts: str, device: str, dtype: torch.dtype = torch.float32):
        self.model = model.to(device).train()
        if experts:
            self.model.set_experts_implementation(experts)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.device, self.dtype = device, dtype

    def step(self, ids: torch.Tensor) -> None:
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            loss = self.model(input_ids=ids, labels=ids, output_router_logits=True, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def seconds(self, ids: torch.Tensor) -> float:
        return seconds_of(lambda: self.step(ids), self.device)


def models() -> dict[str, torch.nn.Module]:
    ours = MortmConfig()
    theirs = Qwen2MoeConfig(
        vocab_size=ours.vocab_size,
        hidden_size=ours.hidden_size,
        num_hidden_layers=ours.num_hidden_layers,
        num_attention_heads=ours.num_attention_heads,
        num_key_value_heads=ours.num_key_value_heads,
        moe_intermediate_size=ours.moe_intermediate_size,
        shared_expert_intermediate_size=ours.shared_expert_intermediate_size,
        num_experts=ours.num_local_experts,
        num_experts_per_tok=ours.num_experts_per_tok,
        norm_topk_prob=ours.norm_topk_prob,
        max_position_embeddings=ours.max_position_embeddings,
        tie_word_embeddings=True,
        decoder_sparse_step=1,
        router_aux_loss_coef=ours.router_aux_loss_coef,
    )
    return {"mortm": MortmForCausalLM(ours), "qwen2_moe": Qwen2MoeForCausalLM(theirs)}


def dense_twin(config: MortmConfig) -> MortmConfig:
    """Dense layers as wide as what acts on a token of `config`."""
    width = config.num_experts_per_tok * config.moe_intermediate_size + config.shared_expert_intermediate_size
    return MortmConfig(mlp_layer_types=["dense"] * config.num_hidden_layers, intermediate_size=width)


def operations(config: MortmConfig, batch: int, length: int) -> float:
    """Useful floating-point operations of a training step of the dense model (tied embeddings: the head counts)."""
    hidden, heads = config.hidden_size, config.num_attention_heads * config.head_dim
    weights = 4 * hidden * heads + 3 * hidden * config.intermediate_size
    weights = config.num_hidden_layers * weights + config.vocab_size * hidden
    pairs = batch * length * (length + 1) / 2
    return 3 * (2 * weights * batch * length + config.num_hidden_layers * 4 * pairs * heads)


def against_qwen(args) -> list[dict]:
    rows, tokens = [], args.batch * args.length
    for experts in args.experts:
        trainees = {name: Trainee(model, experts, args.device) for name, model in models().items()}
        size = {name: sum(p.numel() for p in t.model.parameters()) for name, t in trainees.items()}
        seconds = {name: [] for name in trainees}
        for index in range(args.rounds + 1):
            ids = torch.randint(5, TABLE_SIZE, (args.batch, args.length), device=args.device)
            order = list(trainees) if index % 2 else list(trainees)[::-1]
            for name in order:
                taken = trainees[name].seconds(ids)
                if index:  # the first round warms up
                    seconds[name].append(taken)
        memory = {name: peak_bytes(lambda t=t, ids=ids: t.step(ids), args.device) for name, t in trainees.items()}
        speed = statistics.median(q / m for q, m in zip(seconds["qwen2_moe"], seconds["mortm"], strict=True))
        less = memory["qwen2_moe"] / memory["mortm"]
        row = {
            "experts": experts,
            "parameters": size,
            "tokens_per_second": {name: tokens / statistics.median(s) for name, s in seconds.items()},
            "peak_bytes": memory,
            "speed_ratio": speed,
            "memory_ratio": less,
        }
        rows.append(row)
        print(
            f"{experts:12s} mortm {row['tokens_per_second']['mortm']:7.0f} tok/s, qwen2_moe "
            f"{row['tokens_per_second']['qwen2_moe']:7.0f} tok/s: x{speed:.2f}; memory "
            f"{row['peak_bytes']['mortm'] / 2**20:.0f} / {row['peak_bytes']['qwen2_moe'] / 2**20:.0f} MB: x{less:.2f} "
            "(above 1 is better than qwen2_moe)"
        )
    return rows


def against_dense(args) -> list[dict]:
    rows, sparse = [], MortmConfig()
    dense = dense_twin(sparse)
    useful = operations(dense, args.batch, args.length)
    for precision in args.precision:
        dtype = PRECISIONS[precision]
        trainees = {"dense": Trainee(MortmForCausalLM(dense), "", args.device, dtype)}
        for experts in args.experts:
            # a configuration of its own: it holds the implementation
            trainees[experts] = Trainee(MortmForCausalLM(MortmConfig()), experts, args.device, dtype)
        square = torch.randn(PEAK_SIZE, PEAK_SIZE, device=args.device).to(dtype)
        seconds, products = {name: [] for name in trainees}, []
        for index in range(args.warm_up + args.rounds):
            ids = torch.randint(5, sparse.vocab_size, (args.batch, args.length), device=args.device)
            names = list(trainees)
            names = names[index % len(names) :] + names[: index % len(names)]
            taken = {name: trainees[name].seconds(ids) for name in names}
            product = seconds_of(lambda a=square: a @ a, args.device)
            if index >= args.warm_up:
                products.append(product)
                for name, value in taken.items():
                    seconds[name].append(value)
        peak = 2 * PEAK_SIZE**3 / statistics.median(products)
        print(f"{precision}: a matrix product reaches {peak / 1e9:.0f} GFLOP/s")
        for name, values in seconds.items():
            ratio = statistics.median(d / s for d, s in zip(seconds["dense"], values, strict=True))
            middle = statistics.median(values)
            rows.append(
                {
                    "precision": precision,
                    "experts": name,
                    "tokens_per_second": args.batch * args.length / middle,
                    "ratio_to_dense": ratio,
                    "peak_flops": peak,
                    "share_of_peak": useful / middle / peak,
                }
            )
            print(
                f"{precision} {name:12s} {args.batch * args.length / middle:7.0f} tok/s: x{ratio:.2f} of dense, "
                f"{useful / middle / peak:.0%} of the peak"
            )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warm-up", type=int, default=5, help="rounds before those that count, with --dense")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--experts", nargs="+", help="default: grouped_mm eager, with --dense also padded_mm")
    parser.add_argument("--dense", action="store_true", help="against a dense model instead of Qwen2Moe")
    parser.add_argument("--precision", nargs="+", default=["bf16", "fp32"], choices=list(PRECISIONS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.experts = args.experts or ["padded_mm"] * args.dense + ["grouped_mm", "eager"]
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    load = os.getloadavg()[0]
    rows = against_dense(args) if args.dense else against_qwen(args)
    loads = [round(load, 1), round(os.getloadavg()[0], 1)]
    print(f"load of the machine ({os.cpu_count()} cores): {loads[0]} before, {loads[1]} after")
    if args.json:
        names = ("batch", "length", "rounds", "device")
        args.json.write_text(
            json.dumps({n: getattr(args, n) for n in names} | {"load": loads, "rows": rows}, indent=2)
        )


if __name__ == "__main__":
    main()
