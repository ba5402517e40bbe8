"""Is what comes out always grammatical, and what does the grammar cost a step?

    python benchmarks/grammar.py [--random 2000] [--starter 500] [--model FOLDER] [--json out.json]

- Sequences from a model with random weights and from the starter, over meters, instruments, bar counts, velocities,
  tempi, pitch limits and tight and generous budgets, from nothing and with past, future, constant tracks and chords;
  beams and assisted decoding. Every one is read by the validator in `tests/`, which shares no code with the grammar.
- The processor's share of a decode step of the starter at batch 8: both are timed in the same steps of the same run.

Exit status 1 if one sequence breaks a rule, has other bars than asked, leaves an instrument silent or is unfinished,
or if the grammar takes more than 5 % of a step.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from transformers import LogitsProcessor


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mortm_hf import STARTER, MortmConfig, MortmForCausalLM, MortmTokenizer  # noqa: E402
from mortm_hf.models.generation_mortm import MetricGrammarLogitsProcessor  # noqa: E402
from mortm_hf.models.music_grid import BarTable  # noqa: E402
from mortm_hf.models.music_names import DRUMS, METERS  # noqa: E402
from mortm_hf.models.prompt_building import build_prompt  # noqa: E402
from mortm_hf.models.token_automaton import Grammar, VocabularyTables  # noqa: E402
from mortm_hf.models.token_grammar import find_errors  # noqa: E402
from mortm_hf.models.token_plan import GenerationPlan  # noqa: E402
from mortm_hf.models.token_vocabulary import TokenKind  # noqa: E402
from tests.grammar_validator import Invalid, validate  # noqa: E402


K = TokenKind
SONGS = ROOT / "tests" / "fixtures" / "midi"
LIMIT = 0.05


def random_model(vocab_size: int, seed: int = 0) -> MortmForCausalLM:
    """A tiny model that has learnt nothing."""
    torch.manual_seed(seed)
    sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
    experts = dict(intermediate_size=32, moe_intermediate_size=16, num_local_experts=2, num_experts_per_tok=1)
    return MortmForCausalLM(MortmConfig(vocab_size=vocab_size, **sizes, **experts)).eval()


def random_table(rng) -> BarTable:
    """1 to 8 bars: one meter, or changes of meter with irregular bars."""
    n_bars = int(rng.integers(1, 9))
    if rng.random() < 0.6:
        return BarTable.regular(int(rng.integers(len(METERS))), n_bars)
    parts = []
    for _ in range(n_bars):
        if rng.random() < 0.25:
            parts.append(BarTable.from_lengths(np.array([50]), np.array([METERS.index((9, 16))])))
        else:
            parts.append(BarTable.regular(int(rng.integers(len(METERS))), 1))
    return BarTable.concat(*parts)


def from_nothing(tokenizer, rng) -> tuple[list[int], GenerationPlan]:
    """A prompt without context and the plan of its answer."""
    vocabulary, kind = tokenizer.vocabulary, K(rng.choice([K.MGEN] * 17 + [K.CGEN] * 2 + [K.META]))
    table = random_table(rng)
    players = [int(p) for p in rng.integers(0, 128, int(rng.integers(0, 4)))]
    if not players or rng.random() < 0.3:
        players.append(DRUMS)
    if kind != K.MGEN:
        return [1, vocabulary.id(kind)], GenerationPlan(kind, table)
    plan = GenerationPlan(
        kind,
        table,
        tuple(players),
        tempo=None if rng.random() < 0.5 else rng.integers(-1, 32, table.n_bars),
        velocity=[None, True, False][int(rng.integers(3))],
        pitch_range=None if rng.random() < 0.7 else (60, 60 + int(rng.integers(0, 20))),
        scale=None if rng.random() < 0.8 else (0, 2, 4, 5, 7, 9, 11),
    )
    header = [vocabulary.id(K.INSTRUMENT, i) for i in players]
    return [1, vocabulary["<SYSTEM>"], *header, vocabulary["<TAG_END>"], vocabulary["<MGEN>"]], plan


class Songs:
    """Prompts from real songs: continuation, infilling, accompaniment, over chords."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        scores = [tokenizer.read_midi(path.read_bytes()) for path in sorted(SONGS.glob("*.mid"))]
        self.scores = [score for score in scores if score.n_bars >= 8]

    def prompt(self, rng) -> tuple[list[int], GenerationPlan]:
        score = self.scores[int(rng.integers(len(self.scores)))]
        start, bars = 2 + int(rng.integers(0, score.n_bars - 6)), int(rng.integers(1, 5))
        request = {"song": score, "start": start, "bars": bars, "instruments": [int(rng.integers(0, 128))]}
        task = int(rng.integers(4))
        if task in (0, 1):
            request["past"] = (max(start - 2, 0), start)
        if task == 1:
            request["future"] = (min(start + bars, score.n_bars - 1), min(start + bars + 2, score.n_bars))
        if task == 2:
            request["tracks"] = True
            request["bars"] = min(bars, score.n_bars - start)
        if task == 3:
            request["chords"] = " ".join(["C", "Am", "F", "G7"][:bars])
        built = build_prompt(self.tokenizer.vocabulary, self.tokenizer.prompt(**request))
        return built.ids.tolist(), built.plan


def generate(model, tokenizer, prompts, plans, new_tokens, **kwargs) -> list[list[int]]:
    """Prompt and answer (cut after the first `<TE>`) of every sequence."""
    end, length = tokenizer.eos_token_id, max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(p)) + p for p in prompts])
    processor = MetricGrammarLogitsProcessor(tokenizer, plans, max_new_tokens=new_tokens)
    kwargs = {"do_sample": True, "top_k": 0, **kwargs}
    out = model.generate(
        ids,
        attention_mask=(ids != 0).long(),
        logits_processor=[processor],
        max_new_tokens=new_tokens,
        pad_token_id=0,
        eos_token_id=end,
        **kwargs,
    )
    copies = len(out) // len(prompts)
    answers = [row[: row.index(end) + 1] if end in row else row for row in out[:, length:].tolist()]
    return [prompts[i // copies] + answer for i, answer in enumerate(answers)]


def faults(tokenizer, sequence: list[int], plan: GenerationPlan) -> list[str]:
    """What is wrong with one sequence."""
    vocabulary = tokenizer.vocabulary
    if sequence[-1] != tokenizer.eos_token_id:
        return ["unfinished"]
    try:
        parsed = validate([vocabulary.tokens[i] for i in sequence])
    except Invalid as error:
        return [f"validator: {error}"]
    found = []
    if plan.kind != K.META:
        asked = plan.bars.length.tolist()
        if any([b.length for b in track.bars] != asked for track in parsed.tracks) or not parsed.tracks:
            found.append("other bars than asked")
    if plan.kind == K.MGEN:
        asked = [vocabulary.tokens[vocabulary.id(K.INSTRUMENT, i)] for i in plan.instruments]
        if [t.instrument for t in parsed.tracks if any(b.notes for b in t.bars)] != asked:
            found.append("an instrument is missing or silent")
    return found


def run(model, tokenizer, count, rng, songs=None, batch=64, slack=200, **kwargs) -> Counter:
    """`count` sequences: how many there were, their tokens, and every kind of fault."""
    result = Counter(sequences=0, tokens=0, faults=0)
    tables = VocabularyTables(tokenizer.vocabulary)
    while result["sequences"] < count:
        size = min(batch, count - result["sequences"])
        made = [
            songs.prompt(rng) if songs is not None and i % 2 else from_nothing(tokenizer, rng) for i in range(size)
        ]
        prompts, plans = [list(p) for p, _ in made], [plan for _, plan in made]
        grammar = Grammar(tables, plans)
        shortest = grammar.closing_cost(grammar.start())
        new_tokens = int(shortest.max()) + int(rng.integers(0, slack))
        sequences = generate(model, tokenizer, prompts, plans, new_tokens, **kwargs)
        errors = find_errors(tokenizer.vocabulary, sequences, complete=True)
        for index, (sequence, error) in enumerate(zip(sequences, errors)):
            plan, prompt = plans[index * size // len(sequences)], prompts[index * size // len(sequences)]
            found = faults(tokenizer, sequence, plan) + ([f"check: {error}"] if error is not None else [])
            result["sequences"] += 1
            result["tokens"] += len(sequence) - len(prompt)
            result["faults"] += bool(found)
            for fault in found:
                result[fault] += 1
                print(f"  {fault}\n  " + " ".join(tokenizer.vocabulary.tokens[i] for i in sequence), file=sys.stderr)
    return result


class _Timed(LogitsProcessor):
    """Times a processor, and the step between two of its calls."""

    def __init__(self, inner):
        self.inner, self.left, self.own, self.rest = inner, None, [], []

    def __call__(self, input_ids, scores):
        entered = time.perf_counter()
        out = self.inner(input_ids, scores)
        left = time.perf_counter()
        if self.left is not None:
            self.rest.append(entered - self.left)
            self.own.append(left - entered)
        self.left = left
        return out


def cost(model, tokenizer, batch=8, steps=256, runs=3) -> dict:
    """Median seconds of the grammar and of the rest of a decode step, and their ratio, in the same steps."""
    plan = GenerationPlan(K.MGEN, BarTable.regular(METERS.index((4, 4)), 16), (0, 33, DRUMS))
    vocabulary = tokenizer.vocabulary
    header = [vocabulary.id(K.INSTRUMENT, i) for i in plan.instruments]
    prompt = [1, vocabulary["<SYSTEM>"], *header, vocabulary["<TAG_END>"], vocabulary["<MGEN>"]]
    own, rest = [], []
    for _ in range(runs):
        timed = _Timed(MetricGrammarLogitsProcessor(tokenizer, [plan] * batch, max_new_tokens=4000))
        ids = torch.tensor([prompt] * batch)
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            logits_processor=[timed],
            max_new_tokens=steps,
            do_sample=True,
            pad_token_id=0,
            eos_token_id=tokenizer.eos_token_id,
        )
        own += timed.own
        rest += timed.rest
    grammar, step = float(np.median(own)), float(np.median(rest))
    return {"grammar_ms": grammar * 1e3, "decode_ms": step * 1e3, "ratio": grammar / step, "steps": len(own)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--random", type=int, default=2000, help="sequences from random weights")
    parser.add_argument("--starter", type=int, default=500, help="sequences from the starter")
    parser.add_argument("--model", default=STARTER, help="folder of the starter")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", help="taken for the sake of `make bench`; the songs are those of tests/fixtures")
    parser.add_argument("--json", help="write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    rng, tokenizer = np.random.default_rng(args.seed), MortmTokenizer()
    songs, figures = Songs(tokenizer), {}
    untrained = random_model(len(tokenizer.vocabulary))

    def report(name, model, count, **kwargs):
        begun = time.perf_counter()
        result = dict(run(model, tokenizer, count, rng, songs, **kwargs))
        result["seconds"] = round(time.perf_counter() - begun, 1)
        figures[name] = result
        print(
            f"{name:36s} {result['sequences']:5d} sequences {result['tokens']:8d} tokens {result['faults']:3d} faults"
        )

    report("random weights, sampling", untrained, args.random)
    few = max(args.random // 50, 2)
    report("random weights, beams", untrained, few, num_beams=4, do_sample=False, batch=8)
    report("random weights, beam sampling", untrained, few, num_beams=3, batch=8)
    assistant = random_model(len(tokenizer.vocabulary), seed=1)
    report("random weights, assisted", untrained, few, assistant_model=assistant, batch=1)
    if args.starter:
        starter = MortmForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
        report("starter, sampling", starter, args.starter, batch=50)
        figures["cost"] = cost(starter, tokenizer)
        line = (
            "at batch 8: grammar {grammar_ms:.2f} ms, all else {decode_ms:.2f} ms a step: {ratio:.1%} ({steps} steps)"
        )
        print(line.format(**figures["cost"]))
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=2))
    bad = sum(f.get("faults", 0) for f in figures.values())
    return int(bad > 0 or figures.get("cost", {"ratio": 0})["ratio"] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
