"""Decoding on a CPU: transformers' `generate()` against `FastDecoder`, and what a musician waits.

    python benchmarks/decode.py [--before OLD.py] [--same] [--wait] [--data ../shared/data] [--json out.json]

- Speed: CPU milliseconds of one thread for one step (all rows of the batch), from the second new token to the last, so
  reading the prompt does not count. The methods take turns within one process; each round gives one ratio, medians
  of rounds after a warm-up. Models: the starter (256 wide, 4 layers) and one of random weights (512 wide, 8 layers,
  experts of 1024). The baseline is the faster of `generate()` with the experts implementations `grouped_mm` and
  `eager`, for each round. "bare" is greedy search without processors; "music" is what the pipeline does: grammar,
  top-p, seeded noise. `--before` adds the `FastDecoder` of an earlier `generation_cpu.py` (`git show REV:...`).
- The limit is what a step must read (weights of the chosen experts and of all else, keys and values) over the speed at
  which one thread sums an array of that size; rows of one prompt read its keys once.
- `--same`: tokens of `generate()` and of the decoder, greedy and sampled, and at the first difference how far apart
  the two scores lay.
- `--wait`: CPU seconds of a call of the pipeline until its first bar and its end.
- Bits a note of the starter on the first windows of each corpus of `starter.test.csv`, in fp32 by `model_bits` and in
  int8 by the decoder itself, token by token, as it is used: the prompt (header and eight bars) is read by the fp32
  model, every token of the answer by int8 weights. Intervals over songs, of the paired difference.

Other processes slow memory down: read ratios, and the load that is printed. Exit status 1 if the music speed-up of the
starter over `generate()` is below 20 at batch 1 or 8 at batch 8.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import LogitsProcessorList
from transformers.generation.streamers import BaseStreamer


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mortm_hf import STARTER, MidiGenerationPipeline, MortmConfig, MortmForCausalLM, MortmTokenizer  # noqa: E402
from mortm_hf.models import generation_cpu  # noqa: E402
from mortm_hf.models.generation_cpu import FastDecoder  # noqa: E402
from mortm_hf.models.generation_mortm import MetricGrammarLogitsProcessor  # noqa: E402
from mortm_hf.models.generation_sampling import FiniteLogits, SeededChoice, sampling_filters  # noqa: E402


SONG = next((ROOT / "mortm_hf" / "app" / "demo").glob("*.mid"))
LARGER = "d512 L8"
BASELINES = ("grouped_mm", "eager")
GOALS = {1: 20.0, 8: 8.0}  # of the starter, by batch
WAITS = {
    "4 bars, 1 track": dict(bars=4, instruments=["piano"]),
    "4 bars, 2 tracks": dict(bars=4, instruments=["piano", "bass"]),
    "8 bars, 4 tracks with drums": dict(bars=8, instruments=["piano", "bass", "strings", "drums"]),
}


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


class Choosing:
    """CPU seconds that decoding spends on grammar and sampling, while it is entered."""

    def __enter__(self):
        self.seconds, self.inner = [], generation_cpu.FusedChoice.__call__

        def timed(choice, *arguments):
            begun = time.process_time()
            self.inner(choice, *arguments)
            self.seconds.append(time.process_time() - begun)

        generation_cpu.FusedChoice.__call__ = timed
        return self

    def __exit__(self, *_):
        generation_cpu.FusedChoice.__call__ = self.inner


def earlier_decoder(path: str):
    """`FastDecoder` of another version of `generation_cpu.py`, with the other files of this one."""
    name = "mortm_hf.models.generation_earlier"
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FastDecoder


def processors(tokenizer, prompts, rows, length, new_tokens, sampled=True):
    """Those of the pipeline. The budget is generous: answers are cut, not finished."""
    grammar = MetricGrammarLogitsProcessor(tokenizer, prompts, max_length=length + new_tokens + 3000)
    found = [FiniteLogits(), grammar]
    if sampled:
        found += [*sampling_filters({"temperature": 1.0, "top_p": 0.95, "top_k": 0}), SeededChoice(rows, 0, length)]
    return LogitsProcessorList(found)


def answer(decoder, ids, mask, new_tokens, used, streamer=None, ends=()):
    """`generate` of a decoder or a model, greedy but for what the processors do."""
    options = dict(max_new_tokens=new_tokens, logits_processor=used, streamer=streamer, pad_token_id=0)
    if hasattr(decoder, "parameters"):
        plain = dict(do_sample=False, temperature=1.0, top_p=1.0, top_k=50, eos_token_id=list(ends) or None)
        return decoder.generate(ids, attention_mask=mask, **plain, **options)
    return decoder.generate(ids, mask, eos_token_id=list(ends), **options)


def active_bytes(decoder: FastDecoder, batch: int, length: int, made: int) -> int:
    """Bytes that a step reads, all rows with one prompt; experts as if every row chose its own, up to all of them."""
    a, c = decoder.arrays, decoder.config
    sparse = c.mlp_layer_types.count("sparse")
    experts = sparse * c.num_local_experts * 3 * c.hidden_size * c.moe_intermediate_size
    share = min(batch * c.num_experts_per_tok, c.num_local_experts) / c.num_local_experts
    weights = (a.weights.size - experts * (1 - share)) * a.weights.itemsize + a.tables.nbytes
    cache = (length + batch * made) * c.num_hidden_layers * 2 * c.num_key_value_heads * c.head_dim * 4
    return int(weights + cache)


def read_speed(size: int) -> float:
    """Bytes a second at which one thread sums an array of `size` bytes again and again: the best of many."""
    array, best = torch.ones(size // 4), 0.0
    for _ in range(30):
        begun = time.perf_counter()
        array.sum()
        best = max(best, size / (time.perf_counter() - begun))
    return best


def speed(name, model, tokenizer, batch, mode, new_tokens, past, rounds, before) -> dict:
    """CPU milliseconds a step of every method, and their ratios to the baseline, after a prompt of `past` bars."""
    prompt = tokenizer.prompt(song=tokenizer.read_midi(str(SONG)), start=8, bars=8, past=past)
    ids = torch.tensor([tokenizer.encode_prompt(prompt)] * batch)
    mask, length = torch.ones_like(ids), ids.shape[1]
    decoders = {"compiled": FastDecoder(model), "int8": FastDecoder(model, "int8")}
    if before is not None:
        decoders["before"] = before(model)
    methods = [*BASELINES, *decoders]
    found, choice = {m: [] for m in methods}, []
    for index in range(rounds + 1):
        for method in methods if index % 2 else methods[::-1]:
            clock, used = Clock(), LogitsProcessorList()
            if mode == "music":
                used = processors(tokenizer, [prompt] * batch, range(batch), length, new_tokens)
            if method in BASELINES:
                model.set_experts_implementation(method)
            # no end token: every method makes the same number of steps
            with Choosing() as choosing:
                answer(decoders.get(method, model), ids, mask, new_tokens, used, clock)
            if index:  # the first round warms up
                found[method].append(clock.per_step())
                if method == "compiled":
                    choice.append(sum(choosing.seconds[1:]) / max(len(choosing.seconds) - 1, 1) * 1e3)
    base = [min(pair) for pair in zip(*(found[m] for m in BASELINES))]
    size = active_bytes(decoders["compiled"], batch, length, new_tokens // 2)
    limit = size / read_speed(size) * 1e3
    row = {
        "model": name,
        "batch": batch,
        "mode": mode,
        "prompt": length,
        "new_tokens": new_tokens,
        "ms_per_step": {m: statistics.median(v) for m, v in found.items()},
        "speed_up": {m: statistics.median(b / f for b, f in zip(base, found[m])) for m in decoders},
        "choice_ms": statistics.median(choice),
        "megabytes": size / 1e6,
        "limit_ms": limit,
        "load": os.getloadavg()[0],
        "rounds": found,
    }
    times = row["ms_per_step"]
    print(
        f"| {name} | {batch} | {mode} | {min(times[m] for m in BASELINES):.2f} | "
        + " | ".join(f"{times[m]:.2f} ({row['speed_up'][m]:.1f}x)" if m in times else "" for m in DECODERS)
        + f" | {row['choice_ms'] / times['compiled']:.0%} | {size / 1e6:.1f} | {limit:.2f} | "
        f"{limit / times['compiled']:.0%} | {row['load']:.1f} |",
        flush=True,
    )
    return row


DECODERS = ("before", "compiled", "int8")
TABLE = (
    "| model | batch | mode | generate, ms a step | before | compiled | int8 | grammar and sampling | MB read "
    "| limit, ms | share of it | load |\n|" + "---|" * 12
)


def same(model, tokenizer, count: int, seeds: int) -> dict:
    """How many of `count` greedy answers of 256 tokens and of `seeds` sampled ones are `generate()`'s."""
    song, decoder = tokenizer.read_midi(str(SONG)), FastDecoder(model)
    model.set_experts_implementation("eager")
    report = {}
    for kind, total, new_tokens in (("greedy", count, 256), ("sampled", seeds, 96)):
        equal, gaps = 0, []
        for at in range(0, total, 10):
            start = 4 + at // 10 % max(song.n_bars - 12, 1) if kind == "sampled" else 4
            places = [4 + (at + i) % max(song.n_bars - 12, 1) for i in range(10)] if kind == "greedy" else [start] * 10
            prompts = [tokenizer.prompt(song=song, start=p, bars=8, past=4) for p in places]
            coded = [tokenizer.encode_prompt(p) for p in prompts]
            width = max(map(len, coded))
            ids = torch.tensor([[0] * (width - len(c)) + list(c) for c in coded])
            mask = (ids != 0).long()
            made = []
            for method in (model, decoder):
                used = processors(tokenizer, prompts, range(at, at + 10), width, new_tokens, kind == "sampled")
                made.append(answer(method, ids, mask, new_tokens, used, ends=[tokenizer.eos_token_id]))
            shared = min(out.shape[1] for out in made)
            for row in range(10):
                differ = (made[0][row, :shared] != made[1][row, :shared]).nonzero()
                equal += not len(differ)
                if len(differ):
                    gaps.append(score_gap(model, tokenizer, made, row, int(differ[0]), ids, mask, prompts, at, kind))
        report[kind] = {"equal": equal, "of": total, "gaps": gaps}
        print(f"{kind}: {equal} of {total} answers equal; score gaps at first differences: {gaps}", flush=True)
    return report


def score_gap(model, tokenizer, made, row, place, ids, mask, prompts, at, kind) -> float:
    """By how much the model's scores, filters and noise included, prefer one of two tokens at the first difference."""
    so_far, width = made[0][row : row + 1, :place], ids.shape[1]
    seen = torch.cat([mask[row : row + 1], torch.ones(1, place - width, dtype=torch.long)], dim=1)
    with torch.no_grad():
        positions = (seen.cumsum(1) - 1).clamp_min(0)
        scores = model(so_far, attention_mask=seen, position_ids=positions).logits[:, -1].float()
    if kind == "sampled":
        scores = SeededChoice([at + row], 0, width)(so_far, scores)
    return abs(float(scores[0, made[0][row, place]] - scores[0, made[1][row, place]]))


def waits(model, tokenizer, rounds: int, before) -> dict:
    """CPU seconds of a call until its first bar and its end, after a song of eight bars."""
    pipe = MidiGenerationPipeline(model=model, tokenizer=tokenizer, task="midi-generation", device="cpu")
    model.set_experts_implementation("grouped_mm")
    decoders = {"generate": None, "before": None if before is None else before(model), "compiled": FastDecoder(model)}
    report = {}
    print("\n| call | " + " | ".join(f"{m}: first bar, all (s)" for m in decoders) + " |\n|" + "---|" * 4)
    for name, asked in WAITS.items():
        found = {m: [] for m, d in decoders.items() if m != "before" or d is not None}
        for index in range(rounds + 1):
            for method in found:
                pipe._decoder = lambda *_, chosen=decoders[method]: chosen
                bars, begun = [], time.process_time()
                pipe(str(SONG), start=8, seed=index, callback=lambda _, b=bars: b.append(time.process_time()), **asked)
                if index:
                    found[method].append((bars[0] - begun, time.process_time() - begun))
        report[name] = {m: [statistics.median(column) for column in zip(*v)] for m, v in found.items()}
        cells = ["{:.2f}, {:.2f}".format(*report[name][m]) if m in found else "" for m in decoders]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    return report


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
    parser.add_argument("--before", help="an earlier generation_cpu.py to compare with")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--past", type=int, default=8, help="bars of the prompt")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--models", nargs="+", choices=("starter", LARGER), default=["starter", LARGER])
    parser.add_argument("--modes", nargs="+", choices=("bare", "music"), default=["bare", "music"])
    parser.add_argument("--windows", type=int, default=6, help="test windows of each corpus")
    parser.add_argument("--no-speed", action="store_true")
    parser.add_argument("--same", action="store_true", help="compare tokens with those of generate()")
    parser.add_argument("--prompts", type=int, default=20, help="of --same, greedy")
    parser.add_argument("--seeds", type=int, default=200, help="of --same, sampled")
    parser.add_argument("--wait", action="store_true", help="time calls of the pipeline")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = MortmTokenizer.from_pretrained(args.model)
    starter = MortmForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    before = earlier_decoder(args.before) if args.before else None
    figures: dict = {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability(), "speed": []}
    if not args.no_speed:
        models = {"starter": starter}
        if LARGER in args.models:
            models[LARGER] = larger_model()
        print(TABLE)
        for batch in args.batches:
            for name in args.models:
                for mode in args.modes:
                    options = (batch, mode, args.new_tokens, args.past, args.rounds, before)
                    figures["speed"].append(speed(name, models[name], tokenizer, *options))
        models.pop(LARGER, None)
    if args.same:
        figures["same"] = same(starter, tokenizer, args.prompts, args.seeds)
    if args.wait:
        figures["wait"] = waits(starter, tokenizer, args.rounds, before)
    if args.data:
        figures["bits_per_note"] = quality(starter, tokenizer, args.data, args.windows)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))
    met = (
        row["speed_up"]["compiled"] >= GOALS.get(row["batch"], 0)
        for row in figures["speed"]
        if row["mode"] == "music" and row["model"] == "starter"
    )
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main())
