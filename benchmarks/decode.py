"""Decoding on a CPU: transformers' `generate()` against `FastDecoder` in fp32 and int8, and what int8 costs in bits.

    python benchmarks/decode.py [--data ../shared/data] [--rounds 5] [--windows 6] [--json out.json]

- Speed: CPU milliseconds of one thread for one step (all rows of the batch), from the second new token to the last, so
  reading the prompt does not count. The methods take turns within one process; each round gives one ratio, medians
  of rounds after a warm-up. Models: the starter (256 wide, 4 layers) and one of random weights (512 wide, 8 layers,
  experts of 1024). The baseline is the faster of `generate()` with the experts implementations `grouped_mm` and
  `eager`, for each round. "bare" is greedy search without processors; "music" is what the pipeline does: grammar,
  top-p, seeded noise.
- Bits a note of the starter on the first windows of each corpus of `starter.test.csv`, in fp32 by `model_bits` and in
  int8 by the decoder itself, token by token, as it is used: the prompt (header and eight bars) is read by the fp32
  model, every token of the answer by int8 weights. Intervals over songs, of the paired difference.

Exit status 1 if at batch 1 the bare speed-up of the larger model is below 1.5 in fp32 or 3 in int8.
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
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mortm_hf import STARTER, MortmConfig, MortmForCausalLM, MortmTokenizer  # noqa: E402
from mortm_hf.models.generation_cpu import FastDecoder  # noqa: E402
from mortm_hf.models.generation_mortm import MetricGrammarLogitsProcessor  # noqa: E402
from mortm_hf.models.generation_sampling import FiniteLogits, SeededChoice, sampling_filters  # noqa: E402


SONG = next((ROOT / "mortm_hf" / "app" / "demo").glob("*.mid"))
LARGER = "d512 L8"
BASELINES = ("grouped_mm", "eager")
GOALS = {"fp32": 1.5, "int8": 3.0}


def larger_model() -> MortmForCausalLM:
    """512 wide, 8 layers, 8 experts of 1024 of which 2 are chosen and one shared; random weights."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=512, num_hidden_layers=8, num_attention_heads=8)
    return MortmForCausalLM(
        MortmConfig(**sizes, moe_intermediate_size=1024, shared_expert_intermediate_size=1024)
    ).eval()


class Clock(BaseStreamer):
    """CPU seconds at every new token."""

    def __init__(self):
        self.at = []

    def put(self, value):
        self.at.append(time.process_time())

    def end(self):
        pass

    def per_step(self) -> float:
        """Milliseconds, from the second new token to the last (the first `put` is the prompt)."""
        return (self.at[-1] - self.at[2]) / (len(self.at) - 3) * 1e3


class Timed(LogitsProcessor):
    def __init__(self, inner):
        self.inner, self.seconds = inner, []

    def __call__(self, input_ids, scores):
        begun = time.process_time()
        out = self.inner(input_ids, scores)
        self.seconds.append(time.process_time() - begun)
        return out


def processors(tokenizer, prompts, rows, length, new_tokens):
    """Those of the pipeline, the grammar timed. The budget is generous: answers are cut, not finished."""
    grammar = Timed(MetricGrammarLogitsProcessor(tokenizer, prompts * rows, max_length=length + new_tokens + 3000))
    filters = sampling_filters({"temperature": 1.0, "top_p": 0.95, "top_k": 0})
    return [FiniteLogits(), grammar, *filters, SeededChoice(range(rows), 0, length)], grammar


def speed(name, model, tokenizer, batch, mode, new_tokens, past, rounds) -> dict:
    """CPU milliseconds a step of every method, and their ratios to the baseline, after a prompt of `past` bars."""
    prompt = tokenizer.prompt(song=tokenizer.read_midi(str(SONG)), start=8, bars=8, past=past)
    ids = torch.tensor([tokenizer.encode_prompt(prompt)] * batch)
    mask, length = torch.ones_like(ids), ids.shape[1]
    decoders = {precision: FastDecoder(model, precision) for precision in GOALS}
    methods = [*BASELINES, *decoders]
    found, grammars = {m: [] for m in methods}, {m: [] for m in methods}
    for index in range(rounds + 1):
        for method in methods if index % 2 else methods[::-1]:
            used, grammar, clock = [], None, Clock()
            if mode == "music":
                used, grammar = processors(tokenizer, [prompt], batch, length, new_tokens)
            # no end token: every method makes the same number of steps
            options = dict(max_new_tokens=new_tokens, logits_processor=LogitsProcessorList(used), streamer=clock)
            if method in decoders:
                decoders[method].generate(ids, mask, eos_token_id=[], pad_token_id=0, **options)
            else:
                model.set_experts_implementation(method)
                plain = dict(do_sample=False, temperature=1.0, top_p=1.0, top_k=50, eos_token_id=None, pad_token_id=0)
                model.generate(ids, attention_mask=mask, **plain, **options)
            if index:  # the first round warms up
                found[method].append(clock.per_step())
                grammars[method] += [s * 1e3 for s in grammar.seconds[1:]] if grammar else []
    base = [min(pair) for pair in zip(*(found[m] for m in BASELINES))]
    row = {
        "model": name,
        "batch": batch,
        "mode": mode,
        "prompt": length,
        "new_tokens": new_tokens,
        "ms_per_step": {m: statistics.median(v) for m, v in found.items()},
        "speed_up": {m: statistics.median(b / f for b, f in zip(base, found[m])) for m in decoders},
        "rounds": found,
    }
    if mode == "music":
        row["grammar_ms"] = {m: statistics.median(v) for m, v in grammars.items()}
    print(
        f"{name:8s} batch {batch} {mode:5s} "
        + ", ".join(f"{m} {v:6.2f} ms" for m, v in row["ms_per_step"].items())
        + "; x"
        + ", x".join(f"{v:.2f} {m}" for m, v in row["speed_up"].items())
        + (f"; grammar {row['grammar_ms']['int8']:.2f} ms" if mode == "music" else ""),
        flush=True,
    )
    return row


@torch.no_grad()
def decoded_bits(decoder: FastDecoder, windows, pad: int, rows: int = 8) -> np.ndarray:
    """`[n]` total bits of the answer of each window, every token of it read by a step of the decoder."""
    from tqdm import tqdm

    bits = np.zeros(len(windows))
    order = sorted(range(len(windows)), key=lambda i: len(windows[i].ids) - windows[i].answer)
    for at in tqdm(range(0, len(order), rows), desc="int8", unit="batch", disable=None):
        part = [windows[i] for i in order[at : at + rows]]
        width = max(w.answer for w in part)
        steps = max(len(w.ids) - w.answer for w in part)
        ids = torch.full((len(part), width + steps), pad)
        mask, scored = torch.zeros(len(part), width, dtype=torch.long), torch.zeros(len(part), steps)
        for row, w in enumerate(part):
            ids[row, width - w.answer : width + len(w.ids) - w.answer] = torch.from_numpy(np.asarray(w.ids))
            mask[row, width - w.answer :] = 1
            scored[row, : len(w.ids) - w.answer] = 1
        state = decoder.start(ids[:, :width], mask, steps)
        total = torch.zeros(len(part), dtype=torch.float64)
        for step in range(steps):
            token = ids[:, width + step]
            loss = torch.nn.functional.cross_entropy(state.logits, token, reduction="none")
            total += loss.double() * scored[:, step]
            if step + 1 < steps:
                state.step(token)
        bits[order[at : at + rows]] = total.numpy() / np.log(2)
    return bits


def quality(model, tokenizer, data: str, count: int) -> dict:
    """Bits a note in fp32 and int8 on the first `count` windows of each corpus of the test set."""
    from mortm_hf.data.open import build_store
    from mortm_hf.evaluation.bits_per_note import model_bits, summarise
    from mortm_hf.evaluation.fixed_windows import encode_windows, read_windows
    from mortm_hf.training.tasks import read_data

    recipes = ROOT / "mortm_hf" / "training" / "recipes"
    recipe = read_data(recipes / "starter.yaml")
    store = build_store(data, recipe.selection(), "test", None)
    corpus = {song.path: song.corpus for song in store.songs}
    chosen, seen = [], {}
    for window in read_windows(recipes / "starter.test.csv"):
        name = corpus[window.path]
        seen[name] = seen.get(name, 0) + 1
        if seen[name] <= count:
            chosen.append(window)
    windows, left_out = encode_windows(tokenizer.vocabulary, store, chosen, model.config.max_position_embeddings)
    model.set_experts_implementation("grouped_mm")
    bits = {"fp32": model_bits(model, windows, tokenizer.pad_token_id)}
    bits["int8"] = decoded_bits(FastDecoder(model, "int8"), windows, tokenizer.pad_token_id)
    report = {name: summarise(values, windows) for name, values in bits.items()}
    report["int8 - fp32"] = summarise(bits["int8"], windows, against=bits["fp32"])
    print(f"\nBits a note of the starter, {len(windows)} test windows ({len(left_out)} left out), [95 % over songs]")
    corpora = [*dict.fromkeys(w.corpus for w in windows), "macro"]
    print("| | " + " | ".join(corpora) + " |\n|---|" + "---|" * len(corpora))
    for name, row in report.items():
        cells = [f"{row[c]['bits_per_note']:.3f} [{row[c]['low']:.3f}, {row[c]['high']:.3f}]" for c in corpora]
        print(f"| {name} | " + " | ".join(cells) + " |")
    report["windows"], report["left_out"] = len(windows), len(left_out)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="folder of the training pack; without it no bits a note")
    parser.add_argument("--model", default=STARTER, help="folder of the starter")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--past", type=int, default=8, help="bars of the prompt")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--models", nargs="+", choices=("starter", LARGER), default=["starter", LARGER])
    parser.add_argument("--modes", nargs="+", choices=("bare", "music"), default=["bare", "music"])
    parser.add_argument("--windows", type=int, default=6, help="test windows of each corpus")
    parser.add_argument("--no-speed", action="store_true", help="bits a note only")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = MortmTokenizer.from_pretrained(args.model)
    starter = MortmForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    figures: dict = {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability(), "speed": []}
    if not args.no_speed:
        models = {"starter": starter}
        if LARGER in args.models:
            models[LARGER] = larger_model()
        for batch in args.batches:
            for name in args.models:
                model = models[name]
                for mode in args.modes:
                    options = (batch, mode, args.new_tokens, args.past, args.rounds)
                    figures["speed"].append(speed(name, model, tokenizer, *options))
        models.pop(LARGER, None)
    if args.data:
        figures["bits_per_note"] = quality(starter, tokenizer, args.data, args.windows)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))
    for row in figures["speed"]:
        if row["batch"] == 1 and row["mode"] == "bare" and row["model"] == LARGER:
            return int(any(row["speed_up"][name] < goal for name, goal in GOALS.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
