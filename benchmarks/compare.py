"""Architectures and token languages compared at equal cost, from the logs of finished runs.

    python benchmarks/compare.py speed --data PACK                      tokens a second of each arm, measured in turns
    python benchmarks/compare.py run moe --seed 0 --data PACK           trains one arm (again: goes on), then scores it
    python benchmarks/compare.py report                                 every table, from the stored results
    python benchmarks/compare.py collect --to FOLDER                    the results alone, to be kept

The results of the runs that the README quotes: `report --out benchmarks/results/compare`.

Arms: `moe` (the starter's architecture), `dense` (as many parameters act on a token), `dense-time` (the same for as
long as the MoE run takes, with its own decay: more tokens by the ratio of the measured speeds), `remi` (a dense GPT-2
of the same width and depth on miditok's REMI), `remi-rope` (the dense arm's own layers on REMI: GPT-2 has learned
positions, these are rotary, so that what is left between it and `dense` is the language). Each has 5 M tokens and the
linear decay of their last fifth (`dense-time`: more tokens, the same fifth), three seeds (0 1 2), one thread or a GPU
(`--use_cpu False`). Seed s draws the same songs, bars, tracks and transpositions in every arm as long as the streams'
lengths allow.

Figure: bits a note on the fixed test windows (`recipes/starter.test.csv`, 8 given and 8 new bars, no velocity, at most
2048 tokens in either language; a window that one of them cannot hold is left out of both), by corpus, and the mean of
the corpora; 95 % by bootstrap over songs of the mean over seeds. Pairs are compared window by window and seed by seed.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

ARMS = ("moe", "dense", "dense-time", "remi", "remi-rope")
ON_REMI = ("remi", "remi-rope")
RECIPES = {arm: "compare_moe" if arm == "moe" else "compare_dense" for arm in ARMS}
CONTEXT = 2048
PAIRS = (("dense", "moe"), ("dense-time", "moe"), ("remi", "dense"), ("remi-rope", "dense"), ("remi", "moe"))
OWN, BARE = "with header", "without header"
CODED = [
    ("notes (onset, pitch, duration, which track)", "yes", "yes (tracks of one program: the next free programs)"),
    ("order", "track after track", "all tracks together, in time"),
    ("instruments", "given in the header, and before each track", "before every note"),
    ("bar lines", "one a bar and track", "one a bar (none after the last note)"),
    ("meter", "meter table (6/8 is not 3/4), length of cut bars", "length of the bar (6/8 is written 3/4)"),
    ("tempo", "at the start and where it changes", "no"),
    ("key, genre, number of bars", "given in the header, each left out of a quarter of the training windows", "no"),
    ("silent bars of a sounding track", "yes (<BLANK>)", "no"),
    ("end of the window", "<TE>", "EOS"),
    ("velocity", "no", "no"),
]


def stores_of(data: str, recipe, cache: str) -> dict:
    """The three splits of the recipe's corpora."""
    from mortm_hf.data import build_store

    return {split: build_store(data, recipe.selection(), split, cache or None) for split in ("train", "test")}


def gpt2(vocabulary: int, pad: int, seed: int):
    """A dense GPT-2 of the width and depth of the other arms (learned positions, layer norm, GELU, 4 x width)."""
    import transformers
    from transformers import GPT2Config, GPT2LMHeadModel

    from mortm_hf.training import attention

    transformers.set_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=CONTEXT,
        n_embd=256,
        n_layer=4,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=pad,
    )
    return GPT2LMHeadModel._from_config(config, attn_implementation=attention.register())


def rope_on_remi(section: dict, vocabulary: int, pad: int, seed: int):
    """The dense arm's model with REMI's token table."""
    import transformers

    from mortm_hf.models.configuration_mortm import MortmConfig
    from mortm_hf.models.modeling_mortm import MortmForCausalLM
    from mortm_hf.training import attention

    transformers.set_seed(seed)
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"))
    config = MortmConfig(vocab_size=vocabulary, pad_token_id=pad, **ends, **section)
    return MortmForCausalLM._from_config(config, attn_implementation=attention.register())


def parameters(model) -> dict[str, int]:
    """All parameters, and those that act on one token (of the experts: the chosen ones); embeddings count once."""
    total = sum(p.numel() for p in model.parameters())
    config = model.config
    idle = 0
    if "sparse" in (getattr(config, "mlp_layer_types", None) or ()):
        experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n and "shared" not in n)
        idle = round(experts * (1 - config.num_experts_per_tok / config.num_local_experts))
    return {"total": total, "active": total - idle}


def tokens_of(arm: str, options) -> int:
    """Tokens that an arm trains on."""
    if arm != "dense-time":
        return options.tokens
    path = Path(options.out) / "speed.json"
    if not path.is_file():
        raise SystemExit(f"{path} is not there: run `compare.py speed` first")
    speed = json.loads(path.read_text(encoding="utf-8"))["median"]
    return round(options.tokens * speed["dense"] / speed["moe"])


def prepare(arm: str, seed: int, options, folder: Path, tokens: int):
    """Recipe, stores, and for arms on REMI their language and stream."""
    from benchmarks.remi_stream import RemiSource, RemiStream
    from mortm_hf.models.tokenization_mortm import MortmTokenizer
    from mortm_hf.training.tasks import read_recipe
    from mortm_hf.training.tasks.pretrain_task import Stream

    words = ["--output_dir", str(folder), "--seed", str(seed), "--max_tokens", str(tokens), "--data", options.data]
    recipe = read_recipe(RECIPES[arm], [*words, *options.words])
    stores = stores_of(options.data, recipe.data, options.cache)
    if arm not in ON_REMI:
        return recipe, stores, None, None
    remi = RemiStream()
    vocabulary = MortmTokenizer().vocabulary
    packs = 300 if len(stores["train"].corpora()) > 1 else 1  # one corpus has nothing to balance
    source = RemiSource(stores["train"], vocabulary, recipe.data, remi, seed=seed, packs=packs)
    build = gpt2 if arm == "remi" else partial(rope_on_remi, recipe.model)
    recipe.model = {}
    return recipe, stores, remi, Stream(source, build(len(remi), remi.pad, seed), remi.pad)


def encoded_windows(stores, options):
    """The test windows that both languages can hold: `{language: [Encoded]}` in one order, and who was left out."""
    from benchmarks.remi_stream import RemiStream, encode
    from mortm_hf.evaluation.fixed_windows import encode_windows, read_windows
    from mortm_hf.models.tokenization_mortm import MortmTokenizer

    windows = read_windows(options.windows)
    if options.limit:
        from mortm_hf.evaluation.suite import first_of_each

        corpus_of = {song.path: song.corpus for song in stores["test"].songs}
        windows = first_of_each(windows, lambda w: corpus_of[w.path], options.limit)
    vocabulary = MortmTokenizer().vocabulary
    own, left = encode_windows(vocabulary, stores["test"], windows, CONTEXT)
    reasons = {f"ours: {_kind(reason)}": 0 for _, reason in left}
    for _, reason in left:
        reasons[f"ours: {_kind(reason)}"] += 1
    bare = {(e.window.path, e.window.start): e for e in without_header(vocabulary, stores["test"], own)}
    remi, unwritten = encode(RemiStream(), stores["test"], [e.window for e in own], CONTEXT)
    for reason in unwritten.values():
        reasons[f"REMI: {_kind(reason)}"] = reasons.get(f"REMI: {_kind(reason)}", 0) + 1
    kept = [e for e in own if (e.window.path, e.window.start) in remi and (e.window.path, e.window.start) in bare]
    keys = [(e.window.path, e.window.start) for e in kept]
    return {OWN: kept, BARE: [bare[k] for k in keys], "remi": [remi[k] for k in keys]}, reasons


def _kind(reason: str) -> str:
    """A reason with N for its numbers, so that equal ones count together."""
    return re.sub(r"\d+", "N", reason).partition(":")[0]


def without_header(vocabulary, store, encoded):
    """The same windows with every field of the header left out, so that the model is told nothing of the new bars."""
    from mortm_hf.evaluation.fixed_windows import GENERATED, GIVEN, Encoded
    from mortm_hf.models.prompt_building import training_example
    from mortm_hf.models.token_headers import HEADER_FIELDS

    songs = {song.path: song for song in store.songs}
    for item in encoded:
        song, middle = songs[item.window.path], item.window.start + GIVEN
        tracks = song.score.window(middle, middle + GENERATED).sounding_tracks()
        ids, answer = training_example(
            vocabulary,
            song.score,
            middle,
            GENERATED,
            past_bars=GIVEN,
            targets=tracks,
            omit=HEADER_FIELDS,
            max_length=CONTEXT,
        )
        yield Encoded(item.window, item.corpus, item.cluster, ids, answer, item.notes)


def run(options) -> int:
    """Train one arm with one seed (or go on), score it, write its result."""
    import torch

    from mortm_hf.evaluation.bits_per_note import model_bits
    from mortm_hf.models.modeling_mortm import MortmForCausalLM
    from mortm_hf.training.runlog import read_log
    from mortm_hf.training.tasks.pretrain_task import train
    from mortm_hf.training.validation import whole_rows

    torch.set_num_threads(1)
    folder = Path(options.out) / f"{options.arm}-s{options.seed}"
    target = folder / "result.json"
    tokens = tokens_of(options.arm, options)
    if target.is_file() and json.loads(target.read_text(encoding="utf-8"))["asked"] == tokens:
        print(f"{target} is there already")
        return 0
    recipe, stores, remi, stream = prepare(options.arm, options.seed, options, folder, tokens)
    arguments = recipe.training
    trainer = train(recipe, {"train": stores["train"]}, stream=stream)
    if not (folder / "final").is_dir():
        print(f"interrupted at step {trainer.state.global_step}; the same command goes on", file=sys.stderr)
        return 3
    windows, reasons = encoded_windows(stores, options)
    if remi is None:
        model = MortmForCausalLM.from_pretrained(folder / "final", dtype=torch.float32)
        languages, pad = (OWN, BARE), 0
    else:
        from transformers import GPT2LMHeadModel

        kind = GPT2LMHeadModel if options.arm == "remi" else MortmForCausalLM
        model = kind.from_pretrained(folder / "final", dtype=torch.float32)
        languages, pad = ("remi",), remi.pad
    log = read_log(folder)
    model.to(arguments.device)
    with whole_rows(model):
        bits = {name: model_bits(model, windows[name], pad=pad).round(3).tolist() for name in languages}
    dataset = trainer.train_dataset
    steps = int(trainer.state.global_step)
    sample = range(0, steps, max(1, steps // 50))
    rows = [document for index in sample for row in dataset.documents(index) for document in row]
    shown = windows[languages[0]]
    speeds = [line["tokens_per_second"] for line in log if line.get("tokens_per_second")]
    result = {
        "arm": options.arm,
        "device": torch.cuda.get_device_name() if arguments.device.type == "cuda" else "CPU, one thread",
        "precision": "bf16" if arguments.bf16 else "fp32",
        "torch": torch.__version__,
        "seed": options.seed,
        "asked": tokens,
        "steps": steps,
        "tokens": next(line["tokens"] for line in reversed(log) if "tokens" in line),
        "notes_a_token": sum(d.notes for d in rows) / max(1, sum(len(d.ids) for d in rows)),
        "tokens_per_second": statistics.median(speeds),
        "minutes": sum(2048 / s for s in speeds) * (steps / max(1, len(speeds))) / 60,
        "final_loss": statistics.mean(line["loss"] for line in [x for x in log if "loss" in x][-10:]),
        "parameters": parameters(model),
        "learning_rate": arguments.learning_rate,
        "left_out": reasons,
        "windows": {
            "path": [w.window.path for w in shown],
            "start": [w.window.start for w in shown],
            "corpus": [w.corpus for w in shown],
            "cluster": [w.cluster for w in shown],
            "notes": [w.notes for w in shown],
        },
        "scored_tokens": {name: int(sum(len(w.ids) - w.answer for w in windows[name])) for name in languages},
        "bits": bits,
    }
    staged = target.with_suffix(".tmp")
    staged.write_text(json.dumps(result), encoding="utf-8")
    staged.replace(target)
    print(f"{target}: {len(shown)} windows scored")
    return 0


def speed(options) -> int:
    """Training speed of each architecture, measured in turns on the same machine, one thread."""
    import torch

    from mortm_hf.training.tasks.pretrain_task import make_trainer

    torch.set_num_threads(1)
    steps: dict[str, list[float]] = {}
    runs = {}
    for arm in ("moe", "dense", "remi"):
        folder = Path(options.out) / "speed" / arm
        recipe, stores, _, stream = prepare(arm, 0, options, folder, 1_000_000)
        recipe.training.fresh = True
        trainer = make_trainer(recipe, {"train": stores["train"]}, stream=stream)
        trainer.create_optimizer()
        packs = [trainer.train_dataset[i] for i in range(options.rounds)]
        runs[arm] = (trainer, packs)
        steps[arm] = []
    for turn in range(options.rounds):
        for arm, (trainer, packs) in runs.items():
            model = trainer.model.train()
            pack = trainer._prepare_inputs(packs[turn])
            started = time.perf_counter()
            with trainer.accelerator.autocast():  # as the runs compute: bf16 where `--bf16 True` is given
                loss = model(**pack, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            steps[arm].append(2048 / (time.perf_counter() - started))
    median = {arm: round(statistics.median(values[1:]), 1) for arm, values in steps.items()}
    ratio = [d / m for d, m in zip(steps["dense"][1:], steps["moe"][1:])]
    low, high = np.quantile(ratio, [0.25, 0.75])
    content = {"median": median, "rounds": options.rounds, "dense_to_moe": [statistics.median(ratio), low, high]}
    content["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, one thread"
    path = Path(options.out) / "speed.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    print(json.dumps(content, indent=1))
    return 0


def _windows(result: dict):
    """The windows of a result in the form that `summarise` reads."""
    from mortm_hf.evaluation.fixed_windows import Encoded, Window

    columns = result["windows"]
    rows = zip(columns["path"], columns["start"], columns["corpus"], columns["cluster"], columns["notes"])
    return [Encoded(Window(p, s), c, k, np.zeros(0, np.int64), 0, n) for p, s, c, k, n in rows]


def _interval(values: list[float]) -> str:
    """Mean and, from three seeds on, its 95 % t interval."""
    if len(values) < 2:
        return f"{values[0]:+.3f}"
    # two-sided 97.5 % quantiles of Student's t for n - 1 degrees of freedom
    quantile = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}.get(len(values), 1.96)
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):+.3f} ± {half:.3f}"


def read_results(out: Path) -> dict[str, dict[int, dict]]:
    """`{arm: {seed: result}}` of a folder of runs, or of collected results (which name the file of their windows)."""
    results: dict[str, dict[int, dict]] = {}
    for path in sorted(out.glob("*-s*/result.json")) + sorted(out.glob("*-s*.result.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(result["windows"], str):
            result["windows"] = json.loads((path.parent / result["windows"]).read_text(encoding="utf-8"))
        results.setdefault(result["arm"], {})[result["seed"]] = result
    return results


def collect(options) -> int:
    """Write the results of all finished runs into one small folder, the windows that they share once."""
    out, target = Path(options.out), Path(options.to)
    results = [result for runs in read_results(out).values() for result in runs.values()]
    if not results:
        print(f"no results in {out}: see --help", file=sys.stderr)
        return 2
    if any(result["windows"] != results[0]["windows"] for result in results):
        print("the results are of different windows: run them with the same --limit", file=sys.stderr)
        return 2
    target.mkdir(parents=True, exist_ok=True)
    files = {"windows.json": results[0]["windows"]}
    files |= {f"{r['arm']}-s{r['seed']}.result.json": r | {"windows": "windows.json"} for r in results}
    for name, content in files.items():
        (target / name).write_text(json.dumps(content) + "\n", encoding="utf-8")
    if (out / "speed.json").is_file():
        (target / "speed.json").write_text((out / "speed.json").read_text(encoding="utf-8"), encoding="utf-8")
    print(f"{target}: {len(results)} results")
    return 0


def report(options) -> int:
    """All tables."""
    from mortm_hf.evaluation.bits_per_note import summarise

    out = Path(options.out)
    results = read_results(out)
    if not results:
        print(f"no results in {out}: see --help", file=sys.stderr)
        return 2
    shown = [arm for arm in ARMS if arm in results]
    first = next(iter(results[shown[0]].values()))
    windows = _windows(first)
    for runs in results.values():
        for result in runs.values():
            if result["windows"] != first["windows"]:
                print("the results are of different windows: run them with the same --limit", file=sys.stderr)
                return 2
    content: dict = {"runs": {}, "bits_per_note": {}, "paired": {}}
    print("| arm | seeds | machine | parameters (active) | tokens | notes of new bars | tok/s | rate | last loss |")
    print("|---|---|---|---|---|---|---|---|---|")
    for arm in shown:
        runs = list(results[arm].values())
        mean = {
            key: statistics.mean(r[key] for r in runs)
            for key in ("tokens", "tokens_per_second", "minutes", "final_loss", "notes_a_token")
        }
        machines = ", ".join(dict.fromkeys(f"{r['device']}, {r['precision']}" for r in runs))
        size = runs[0]["parameters"]
        print(
            f"| {arm} | {' '.join(str(r['seed']) for r in runs)} | {machines} | {size['total'] / 1e6:.2f} M "
            f"({size['active'] / 1e6:.2f} M) | {mean['tokens'] / 1e6:.2f} M | "
            f"{mean['tokens'] * mean['notes_a_token'] / 1e6:.2f} M | {mean['tokens_per_second']:.0f} | "
            f"{runs[0]['learning_rate']:g} | {mean['final_loss']:.3f} |"
        )
        content["runs"][arm] = mean | {"seeds": [r["seed"] for r in runs], "parameters": size, "machines": machines}
    if (out / "speed.json").is_file():
        content["speed"] = json.loads((out / "speed.json").read_text(encoding="utf-8"))
        median, (ratio, low, high) = content["speed"]["median"], content["speed"]["dense_to_moe"]
        device = content["speed"].get("device", "CPU, one thread")
        print(f"\nTraining steps in turns ({device}), tokens a second: {json.dumps(median)}")
        print(f"dense / moe {ratio:.2f}, middle half of the rounds [{low:.2f}, {high:.2f}]")
    lines = {}
    for arm in shown:
        for name in next(iter(results[arm].values()))["bits"]:
            label = arm if arm in ON_REMI else f"{arm}, {name}"
            lines[label] = np.mean([r["bits"][name] for r in results[arm].values()], axis=0)
    tables = {label: summarise(bits, windows) for label, bits in lines.items()}
    corpora = [*dict.fromkeys(w.corpus for w in windows), "macro"]

    def table(title: str, rows: dict[str, dict], sign: str) -> None:
        print(f"\n{title}\n\n| | " + " | ".join(corpora) + " |\n|---|" + "---|" * len(corpora))
        for name, row in rows.items():
            cells = (row[c] for c in corpora)
            cells = [f"{c['bits_per_note']:{sign}.3f} [{c['low']:{sign}.3f}, {c['high']:{sign}.3f}]" for c in cells]
            print(f"| {name} | " + " | ".join(cells) + " |")

    table(f"Bits a note on {len(windows)} test windows, mean over seeds, 95 % over songs", tables, "")
    content["bits_per_note"] = tables
    paired = {}
    for a, b in PAIRS:
        if a in results and b in results:
            for name in (BARE,) if a in ON_REMI else (OWN,):
                mine = lines[a] if a in ON_REMI else lines[f"{a}, {name}"]
                paired[f"{a} - {b} ({name})"] = summarise(mine, windows, against=lines[f"{b}, {name}"])
    if paired:
        table("Paired differences (below 0: the first is better), 95 % over songs", paired, "+")
        print("\nMean of the corpora seed by seed, mean over seeds with its 95 % t interval:")
    for a, b in PAIRS:
        seeds = sorted(set(results.get(a, ())) & set(results.get(b, ())))
        name = BARE if a in ON_REMI else OWN
        if seeds:
            values = []
            for seed in seeds:
                mine = np.array(results[a][seed]["bits"]["remi" if a in ON_REMI else name])
                other = np.array(results[b][seed]["bits"][name])
                values.append(summarise(mine, windows, resamples=1, against=other)["macro"]["bits_per_note"])
            content["paired"][f"{a} - {b}"] = {"seeds": seeds, "by_seed": values, **paired[f"{a} - {b} ({name})"]}
            print(f"- {a} - {b}: {_interval(values)} ({', '.join(f'{v:+.3f}' for v in values)})")
    print("\nWindows left out:", json.dumps(first["left_out"]))
    print("\nWhat the streams code:\n\n| | ours | REMI |\n|---|---|---|")
    for row in CODED:
        print("| " + " | ".join(row) + " |")
    if options.json:
        Path(options.json).write_text(json.dumps(content, indent=1), encoding="utf-8")
    return 0


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("speed", "run", "report", "collect"):
        command = commands.add_parser(name)
        command.add_argument("--out", default="build/compare", help="folder of the runs (default build/compare)")
        if name == "report":
            command.add_argument("--json", default="", help="write all figures here")
            continue
        if name == "collect":
            command.add_argument("--to", required=True, help="folder for the results")
            continue
        command.add_argument("--data", required=True, help="folder of the training pack")
        command.add_argument("--cache", default="", help="folder for prepared stores (default: OUT/stores)")
        command.add_argument("--tokens", type=int, default=5_000_000)
        default = ROOT / "mortm_hf" / "training" / "recipes" / "starter.test.csv"
        command.add_argument("--windows", default=str(default), help="csv of test windows (default: the starter's)")
        command.add_argument("--limit", type=int, default=0, help="test windows a corpus (0: all)")
        if name == "run":
            command.add_argument("arm", choices=ARMS)
            command.add_argument("--seed", type=int, default=0)
        else:
            command.add_argument("--rounds", type=int, default=21)
    options, rest = parser.parse_known_args(words)
    options.words = rest
    trains = options.command in ("speed", "run")
    if not trains and options.words:
        parser.error(f"unknown: {' '.join(options.words)}")
    if trains:
        options.cache = options.cache or str(Path(options.out) / "stores")
    return {"speed": speed, "run": run, "report": report, "collect": collect}[options.command](options)


if __name__ == "__main__":
    sys.exit(main())
