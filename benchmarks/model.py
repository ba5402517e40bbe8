"""A training step of MORTM against an equal-size Qwen2MoeForCausalLM of transformers: time and memory.

    python benchmarks/model.py [--rounds 7] [--batch 2] [--length 1024] [--experts grouped_mm eager] [--json out.json]

A step is forward, balancing loss, backward, clipping and fused AdamW in fp32. The models take turns within one process
and each round gives one ratio, so that a busy machine slows both; CPU seconds of one thread, medians. Memory is the
peak of what a step allocates over what was there before it.
Qwen2Moe is the nearest model in transformers: its router, shared expert and rotary attention are the same but for
biases on q, k, v and a gate on the shared expert.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

from mortm_hf import MortmConfig, MortmForCausalLM
from mortm_hf.models.token_vocabulary import TABLE_SIZE


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


class Trainee:
    def __init__(self, model, experts: str, device: str):
        self.model = model.to(device).train()
        self.model.set_experts_implementation(experts)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.device = device

    def step(self, ids: torch.Tensor) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter() if self.device == "cuda" else time.process_time()
        loss = self.model(input_ids=ids, labels=ids, output_router_logits=True, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() if self.device == "cuda" else time.process_time()) - begin


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--experts", nargs="+", default=["grouped_mm", "eager"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    tokens = args.batch * args.length
    results = {"batch": args.batch, "length": args.length, "rounds": args.rounds, "device": args.device, "rows": []}
    for experts in args.experts:
        trainees = {name: Trainee(model, experts, args.device) for name, model in models().items()}
        size = {name: sum(p.numel() for p in t.model.parameters()) for name, t in trainees.items()}
        seconds = {name: [] for name in trainees}
        for index in range(args.rounds + 1):
            ids = torch.randint(5, TABLE_SIZE, (args.batch, args.length), device=args.device)
            order = list(trainees) if index % 2 else list(trainees)[::-1]
            for name in order:
                taken = trainees[name].step(ids)
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
        results["rows"].append(row)
        print(
            f"{experts:12s} mortm {row['tokens_per_second']['mortm']:7.0f} tok/s, qwen2_moe "
            f"{row['tokens_per_second']['qwen2_moe']:7.0f} tok/s: x{speed:.2f}; memory "
            f"{row['peak_bytes']['mortm'] / 2**20:.0f} / {row['peak_bytes']['qwen2_moe'] / 2**20:.0f} MB: x{less:.2f} "
            "(above 1 is better than qwen2_moe)"
        )
    if args.json:
        args.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
