"""What reinforcement learning changed: reward, independent judges, KL, diversity, distances, copying; by kl_coef.

    python benchmarks/rlmf.py --train rlmf_quality --data PACK --out RUNS --judge FOLDER     five runs, then the tables
    python benchmarks/rlmf.py --data PACK --runs RUNS/* --judge FOLDER [--count 128] [--seeds 0 1 2] [--best-of 4]
    python benchmarks/rlmf.py --reports model_cards/rlmf-quality.json [--png curves.png]     the tables again

`--train` runs a recipe with three seeds at its own kl_coef and one seed each at a quarter and four times of it (`--kl`
names others, the main one first); runs that are finished are not repeated. Every run folder gets `comparison.json`;
`--json` joins them in one file, and `--reports` prints the tables from such a file alone. The prompts are the first
bars of `--count` songs of the test split, cut as the runs' recipe says; every arm answers them under the same row
seeds. "frozen" is the policy before, "best of N" its best of N samples by the runs' reward. Intervals: 95 %, by song.
A run is better if its reward rose by two standard errors; it is not inferior if its diversity fell by no more than 5 %
(with two standard errors over the seeds).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

DIVERSITY = ("pairwise_distance", "vendi_share", "distance_within_prompt")


def load_run(folder: Path):
    """(recipe, policy folder) of a finished run."""
    from mortm_hf.training.rlmf.feedback_recipe import Recipe

    if not (folder / "final" / "config.json").is_file():
        raise SystemExit(f"{folder} holds no finished run (no final/config.json)")
    return Recipe.restated(json.loads((folder / "recipe.json").read_text(encoding="utf-8"))), folder / "final"


def sweep(options) -> list[Path]:
    """Train what is not trained yet; the run folders. Each run is a process of its own."""
    from mortm_hf.training.rlmf.feedback_recipe import read_recipe

    own = float(read_recipe(options.train).training["kl_coef"])
    main, *others = options.kl or [own, own / 4, own * 4]
    plan = [(main, seed) for seed in options.train_seeds] + [(kl, options.train_seeds[0]) for kl in others]
    folders = []
    for kl, seed in plan:
        folder = options.out / f"kl{kl:g}-s{seed}"
        folders.append(folder)
        if (folder / "final").is_dir():
            print(f"{folder}: finished", flush=True)
            continue
        if (folder / "recipe.json").is_file():
            shutil.rmtree(folder)  # a run that was cut off begins anew
        words = {"data": options.data, "cache": options.cache / "stores", "output_dir": folder}
        words |= {"kl_coef": kl, "seed": seed, "threads": options.threads}
        command = [sys.executable, "-m", "mortm_hf.training.rlmf", options.train]
        command += [str(x) for name, value in words.items() for x in (f"--{name}", value)] + options.fields
        print(f"{folder}: training", flush=True)
        subprocess.run(command, check=True, cwd=ROOT)
    return folders


def training_log(folder: Path) -> list[dict]:
    """The lines of a run's updates."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in map(json.loads, lines) if "reward/reward" in line]


def measure(options) -> None:
    """Sample, rate and write `comparison.json` into every run folder."""
    import torch

    from mortm_hf.bundled import default_model, find_model
    from mortm_hf.evaluation.model_answers import fingerprint
    from mortm_hf.training.rlmf import comparison as c
    from mortm_hf.training.rlmf.feedback_run import load_tokenizer, read_songs
    from mortm_hf.training.rlmf.policy import load_policy
    from mortm_hf.training.rlmf.prompts import first_bar_prompts
    from mortm_hf.training.rlmf.rewards import build_reward

    torch.set_num_threads(options.threads)
    runs = {folder.name: (folder, *load_run(folder)) for folder in options.runs}
    recipe = next(iter(runs.values()))[1]
    for name, (_, other, _) in runs.items():
        if other.prompts() != recipe.prompts() or other.reward != recipe.reward:
            raise SystemExit(f"{name} was trained on other prompts or another reward: compare runs of one recipe")
    recipe.data.data, recipe.data.cache = str(options.data), str(options.cache / "stores")
    budget = recipe.prompts().response_length
    origin = find_model(recipe.model.reference or recipe.model.policy or default_model("rlmf"))
    tokenizer = load_tokenizer(origin)
    songs = read_songs(recipe, options.cache, options.split)
    prompts, _ = first_bar_prompts(songs, tokenizer, recipe.prompts(), options.count)
    train = [song.score for song in read_songs(recipe, options.cache, "train").songs]
    print(f"{len(prompts)} prompts of {len(songs)} songs ({options.split}), {len(train)} training songs", flush=True)
    reward = build_reward(recipe.reward.terms, tokenizer)
    view = next((term.get("view", "row") for term in recipe.reward.terms if term["kind"] == "judge"), "row")
    others = [{"kind": "judge", "model": j, "mode": "logit", "view": view} for j in options.judge]
    for number, term in enumerate(others):
        term["name"] = "independent judge" if len(others) == 1 else f"independent judge {number + 1}"
    rules = ("scale", "consonance", "bar_pattern", "repetition_guard")
    judges = build_reward([*others, *({"kind": kind, "name": f"rule {kind}"} for kind in rules)], tokenizer)

    def rated(arm: c.Arm) -> c.Arm:
        for answers in arm.answers:
            values = c.rate(reward, prompts, answers, tokenizer.pad_token_id)
            own = {"reward": values.pop("reward")} | {f"term {k}": v for k, v in values.items()}
            others = c.rate(judges, prompts, answers, tokenizer.pad_token_id)
            others.pop("reward")
            for name, value in (own | others).items():
                arm.rewards.setdefault(name, []).append(value)
        arm.rewards = {name: np.stack(values) for name, values in arm.rewards.items()}
        return arm

    def answers_of(folder, seeds):
        model = load_policy(folder)
        kept = options.cache / "answers"
        return c.answer_prompts(model, tokenizer, prompts, budget, seeds, kept, fingerprint(folder), options.batch)

    frozen = load_policy(origin)
    frozen.set_grammar(tokenizer, budget)
    seeds, many = options.seeds, options.best_of
    spare = [1000 + many * s + k for s in seeds for k in range(many)]
    pool = answers_of(origin, spare)
    print(f"frozen: {len(spare)} samples a prompt", flush=True)
    by_reward = np.stack([c.rate(reward, prompts, a, tokenizer.pad_token_id)["reward"] for a in pool])
    best = [
        c.best_of(pool[many * k : many * (k + 1)], by_reward[many * k : many * (k + 1)]) for k in range(len(seeds))
    ]
    arms = [rated(c.Arm("frozen", answers_of(origin, seeds))), rated(c.Arm(f"best of {many}", best))]
    arms[0].kl = np.zeros((len(seeds), len(prompts)))
    described = [c.describe(arm, tokenizer, prompts, train) for arm in arms]
    # the KL of best-of-N to what it draws from is known (Stiennon et al. 2020): log N - (N - 1) / N
    described[1]["kl"] = {"value": float(np.log(many) - (many - 1) / many), "low": None, "high": None, "n": 0}
    for name, (folder, stated, final) in runs.items():
        arm = rated(c.Arm(name, answers_of(final, seeds)))
        policy = load_policy(final)
        policy.set_grammar(tokenizer, budget)
        arm.kl = np.stack([c.divergence(policy, frozen, prompts, a, tokenizer.pad_token_id) for a in arm.answers])
        figures = [*described, c.describe(arm, tokenizer, prompts, train)]
        report = {
            "run": name,
            "kl_coef": float(stated.training["kl_coef"]),
            "seed": int(stated.training.get("seed", 42)),
            "algorithm": stated.run.algorithm,
            "setting": {"prompts": len(prompts), "split": options.split, "seeds": seeds, "judges": options.judge},
            "arms": {a.name: f for a, f in zip((*arms, arm), figures)},
            "gains": {
                key: {a.name: c.paired(arms[0], a, prompts, key) for a in (arms[1], arm)} for key in arm.rewards
            },
            "diversity": {
                key: {a.name: c.non_inferior(figures[0], f, key) for a, f in zip((arms[1], arm), figures[1:])}
                for key in DIVERSITY
                if key in figures[0]["figures"]
            },
        }
        log = training_log(folder)
        if log:  # the group trainers log other words
            values, kl = ([line[k] for line in log] for k in ("reward/reward", "objective/kl"))
            report["log"] = {
                "updates": len(log),
                "minutes": sum(line["time/update"] for line in log) / 60,
                "first": float(np.mean(values[:5])),
                "last": float(np.mean(values[-5:])),
                "kl": float(np.mean(kl[-5:])),
                "rewards": [round(v, 4) for v in values],
                "kls": [round(v, 4) for v in kl],
            }
        partial = folder / "comparison.json.partial"
        partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        partial.replace(folder / "comparison.json")
        print(f"{name}: written to {folder / 'comparison.json'}", flush=True)


def span(value: dict, digits: int = 3) -> str:
    """`0.123 [0.100, 0.150]`."""
    if value.get("value") is None:
        return "-"
    text = f"{value['value']:.{digits}f}"
    return text if value.get("low") is None else f"{text} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def table(rows: list[list[str]]) -> str:
    """Rows (the first one the head) as Markdown."""
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def tables(reports: list[dict]) -> str:
    """The tables of all runs."""
    first = reports[0]
    rivals = [name for name in first["arms"] if name != first["run"]]
    arms = [(name, first["arms"][name], first) for name in rivals]
    arms += [(r["run"], r["arms"][r["run"]], r) for r in reports]
    setting = first["setting"]
    text = [
        f"{setting['prompts']} prompts ({setting['split']} split), {len(setting['seeds'])} samples of each; "
        f"judges that took no part: {', '.join(map(str, setting['judges'])) or 'none given (rules only)'}"
    ]
    names = list(first["arms"][rivals[0]]["rewards"])
    text.append(table([["arm", *names, "KL, nats"]] + [
        [name, *(span(f["rewards"][n]) for n in names), span(f["kl"], 2) if "kl" in f else "-"] for name, f, _ in arms
    ]))  # fmt: skip
    gains = [["arm", *(f"{n}: gain (z)" for n in names)]]
    for name, _, report in arms[1:]:
        found = [report["gains"][n][name] for n in names]
        gains.append([name, *(f"{span(g)} ({g['z']:.1f})" for g in found)])
    text.append(table(gains))
    columns = list(first["arms"][rivals[0]]["figures"])
    text.append(table([["arm", *columns]] + [
        [name, *(f"{f['figures'][c]['value']:.3f} ± {f['figures'][c]['std']:.3f}" for c in columns)]
        for name, f, _ in arms
    ]))  # fmt: skip
    kept = list(first["diversity"])
    rows = [["arm", *(f"{k}: share kept" for k in kept)]]
    for name, _, report in arms[1:]:
        found = [report["diversity"][k][name] for k in kept]
        rows.append(
            [name, *(f"{d['ratio']:.3f} ± {d['error']:.3f}{'' if d['met'] else ' (inferior)'}" for d in found)]
        )
    text.append(table(rows))
    copied = list(first["arms"][rivals[0]].get("copied", {}))
    if copied:
        text.append(table([["arm", *copied]] + [
            [name, *(f"{f['copied'][c]:.3g}" if f["copied"].get(c) is not None else "-" for c in copied)]
            for name, f, _ in arms
        ]))  # fmt: skip
    text.append(trade_off(reports, names))
    text.append(table([["run", "updates", "minutes", "reward, first 5 updates", "last 5", "KL, last 5"]] + [
        [r["run"], str(r["log"]["updates"]), f"{r['log']['minutes']:.1f}", *(f"{r['log'][k]:.3f}" for k in (
            "first", "last", "kl"))] for r in reports if "log" in r
    ]))  # fmt: skip
    return "\n\n".join(text)


def trade_off(reports: list[dict], names: list[str]) -> str:
    """One row a kl_coef: means over training seeds, with their standard deviation."""
    groups: dict[tuple[str, float], list[dict]] = {}
    for report in reports:
        groups.setdefault((report["algorithm"], report["kl_coef"]), []).append(report)
    rows = [["algorithm", "kl_coef", "runs", *(f"{n}: gain" for n in names), "KL, nats", *DIVERSITY]]
    for (algorithm, coefficient), found in sorted(groups.items()):

        def spread(values) -> str:
            return f"{np.mean(values):.3f} ± {np.std(values):.3f}"

        gains = [spread([r["gains"][n][r["run"]]["value"] for r in found]) for n in names]
        kl = spread([r["arms"][r["run"]]["kl"]["value"] for r in found])
        kept = [
            spread([r["diversity"][d][r["run"]]["ratio"] for r in found]) if d in found[0]["diversity"] else "-"
            for d in DIVERSITY
        ]
        rows.append([algorithm, f"{coefficient:g}", str(len(found)), *gains, kl, *kept])
    return table(rows)


def draw_curves(reports: list[dict], path: Path) -> None:
    """Reward and KL of every update, one line a run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 3.6))
    for report in reports:
        for ax, key in zip(axes, ("rewards", "kls")):
            values = report.get("log", {}).get(key, [])
            ax.plot(range(1, len(values) + 1), values, label=report["run"], linewidth=1.3)
    for ax, title in zip(axes, ("reward", "KL to the frozen policy, nats an answer")):
        ax.set_title(title)
        ax.set_xlabel("update")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train, measure or reprint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", default=[], help="folders of finished runs of one recipe")
    parser.add_argument("--train", metavar="RECIPE", help="train the runs first")
    parser.add_argument("--out", type=Path, help="folder for the runs that are trained")
    parser.add_argument("--kl", type=float, nargs="+", help="kl_coef of the runs, the main one first")
    parser.add_argument("--train-seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds at the main kl_coef")
    parser.add_argument("--fields", nargs=argparse.REMAINDER, default=[], help="further fields of the recipe (last)")
    parser.add_argument("--png", type=Path, help="draw the learning curves")
    parser.add_argument("--reports", type=Path, help="print the tables from a file that --json wrote, and stop")
    parser.add_argument("--data", type=Path, help="training pack")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "rlmf", help="folder for songs and samples")
    parser.add_argument("--judge", nargs="*", default=[], help="folders of classifiers that took no part")
    parser.add_argument("--split", default="test")
    parser.add_argument("--count", type=int, default=128, help="prompts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="samples of each prompt")
    parser.add_argument("--best-of", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all reports to one file")
    options = parser.parse_args()
    if options.reports:
        reports = json.loads(options.reports.read_text(encoding="utf-8"))
    else:
        if not options.runs and not options.train:
            parser.error("name --runs, or --train a recipe, or --reports of earlier ones")
        if options.data is None:
            parser.error("--data is needed")
        if options.train:
            if options.out is None:
                parser.error("--train needs --out")
            options.runs = sweep(options)
        measure(options)
        reports = [json.loads((f / "comparison.json").read_text(encoding="utf-8")) for f in options.runs]
    print(tables(reports))
    if options.png:
        draw_curves(reports, options.png)
    if options.json:
        options.json.write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
