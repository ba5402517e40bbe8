"""How a quality score moves with length, density and repetition: where a policy could trick it.

    python benchmarks/reward_probe.py --cache FOLDER [--model "seed 0=FOLDER" ...] [--picture FILE] [--json FILE]

The reward is the probability of "human". Human test windows of `FOLDER/quality.npz` are changed along one axis at a
time (`mortm_hf.evaluation.reward_probes`) and scored again: fewer bars, fewer or more notes, the first bars in a loop,
every track on one pitch, one held note a bar. The table gives the mean reward of each change, its difference to the
same windows as written (95 % over clusters), and rank correlations of reward with tokens, notes and repeated bars
among human windows and among samples of the starter. Without `--model` the bag of features is probed; several models
are averaged.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def reward_of(options, data):
    """Function: labelled windows -> `[n]` probability of human."""
    from mortm_hf.evaluation.classification import sigmoid

    if options.model:
        from bertm_quality import machine_logits

        folders = [m.partition("=")[2] for m in options.model]
        return lambda windows: np.mean([1 - sigmoid(machine_logits(f, windows)) for f in folders], axis=0)
    from mortm_hf.evaluation.features import bag_of_features, fit_baseline, scores_of

    def features(part):
        return bag_of_features(scores_of(data.vocabulary, [e.ids for e in part.examples]))

    train, validation = data.split("train"), data.split("validation")
    fitted = fit_baseline(
        features(train), train.labels(), features(validation), validation.labels(), 2, seed=options.seed
    )
    return lambda windows: np.exp(fitted.predict(features(windows))[:, 0])


def changes(scores, seed: int) -> dict[str, dict[str, list]]:
    """{axis: {name: changed windows}} of human windows; an empty one stands for itself as written."""
    from mortm_hf.data.corruptions import CORRUPTIONS, corrupt
    from mortm_hf.evaluation import reward_probes as probes

    def each(change):
        return [change(i, s) for i, s in enumerate(scores)]

    def rng(i, k):
        return np.random.default_rng([seed, i, k])

    found = {
        "bars": {str(b): each(lambda i, s, b=b: probes.shortened(s, min(b, s.n_bars))) for b in probes.LENGTHS},
        "notes": {
            f"{f:.0%}": each(lambda i, s, f=f, k=k: probes.with_density(s, f, rng(i, k)))
            for k, f in enumerate(probes.DENSITIES)
        },
        "loop of bars": {str(b): each(lambda i, s, b=b: probes.looped(s, min(b, s.n_bars))) for b in probes.LOOPS},
        "cheap answers": {
            "held notes": each(lambda i, s: probes.held_notes(s)),
            "one pitch": each(lambda i, s: probes.one_pitch(s)),
        },
        "corruptions": {
            name: each(lambda i, s, name=name, k=k: corrupt(name, s, rng(i, 100 + k)) or s)
            for k, name in enumerate(CORRUPTIONS)
        },
    }
    return found


def paired(value: np.ndarray, base: np.ndarray, clusters: np.ndarray, seed: int):
    """Mean difference with its interval over clusters."""
    from mortm_hf.evaluation.classification import Interval
    from mortm_hf.evaluation.intervals import bootstrap

    difference = value - base
    low, high = bootstrap(lambda rows: float(difference[rows].mean()), clusters, seed=seed)
    return Interval(float(difference.mean()), low, high)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", required=True, help="folder of quality.npz")
    parser.add_argument("--model", action="append", default=[], help='"NAME=FOLDER", as often as there are judges')
    parser.add_argument("--windows", type=int, default=150, help="human test windows that are changed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--picture", default="", help="write a picture here (.png)")
    parser.add_argument("--json", default="", help="write all figures here")
    options = parser.parse_args(words)

    import torch
    from scipy.stats import spearmanr

    from mortm_hf.data import labelled_windows as labels
    from mortm_hf.evaluation.features import bag_of_features, scores_of
    from mortm_hf.models.inputs_bertm import bare_segment

    torch.set_num_threads(options.threads)
    try:
        data = labels.load("quality", cache=options.cache)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    reward = reward_of(options, data)
    test = data.split("test")
    human = test.of_kinds(["human"])
    human = replace(human, examples=human.examples[: options.windows])
    scores = scores_of(data.vocabulary, [e.ids for e in human.examples])
    clusters = human.column("cluster")
    base = reward(human)
    print(f"{len(human)} human test windows, mean reward {base.mean():.3f}")
    print("\n| axis | change | reward | difference |\n|---|---|---|---|")
    result: dict = {"human": float(base.mean()), "changes": {}, "correlations": {}}
    for axis, variants in changes(scores, options.seed).items():
        result["changes"][axis] = {}
        for name, changed in variants.items():
            rows = [replace(e, ids=bare_segment(data.vocabulary, s)) for e, s in zip(human.examples, changed)]
            value = reward(replace(human, examples=rows))
            gap = paired(value, base, clusters, options.seed)
            print(f"| {axis} | {name} | {value.mean():.3f} | {gap} |")
            result["changes"][axis][name] = {"reward": float(value.mean()), "difference": gap.as_dict()}

    kinds = [k for k in dict.fromkeys(test.column("kind").tolist()) if k.startswith(("human", "starter"))]
    print("\nRank correlation (Spearman) of reward with | tokens | notes a quarter | repeated bars | windows")
    for name in kinds:
        part = test.of_kinds([name])
        part = replace(part, examples=part.examples[: 3 * options.windows])
        bag = bag_of_features(scores_of(data.vocabulary, [e.ids for e in part.examples]))
        axes = {
            "tokens": [len(e.ids) for e in part.examples],
            "notes a quarter": bag.of("density")[:, 0],
            "repeated bars": bag.of("repetition")[:, -1],
        }
        value = reward(part)
        found = {  # None where all windows are alike: there is no rank to correlate with
            key: float(spearmanr(value, column).statistic) if np.ptp(column) else None for key, column in axes.items()
        }
        shown = ("-" if x is None else f"{x:+.2f}" for x in found.values())
        print(f"  {name}: " + " | ".join(shown) + f" | {len(part)}")
        result["correlations"][name] = found | {"mean reward": float(value.mean()), "windows": len(part)}
    if options.picture:
        draw(options.picture, result)
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


def draw(path: str, result: dict) -> None:
    """One panel an axis: mean reward of each change, with the interval of its difference; the line is as written."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    axes_of = result["changes"]
    figure, axes = plt.subplots(1, len(axes_of), figsize=(3.2 * len(axes_of), 3.6), sharey=True)
    for axis, (title, variants) in zip(axes, axes_of.items()):
        names, values = list(variants), [v["reward"] for v in variants.values()]
        low = [v["difference"]["value"] - v["difference"]["low"] for v in variants.values()]
        high = [v["difference"]["high"] - v["difference"]["value"] for v in variants.values()]
        style = "none" if title in ("cheap answers", "corruptions") else "-"
        axis.errorbar(range(len(names)), values, yerr=[low, high], marker="o", linestyle=style, capsize=3)
        axis.axhline(result["human"], color="grey", linestyle="--", linewidth=1)
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axis.set_title(title)
        axis.set_ylim(0, 1)
    axes[0].set_ylabel("reward (probability of human)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
