"""Human or machine: AUC by kind of machine and temperature, calibration, against a bag of features.

    python benchmarks/bertm_quality.py --cache FOLDER [--model "seed 0=FOLDER" ...] [--pictures FOLDER] [--json FILE]

`FOLDER/quality.npz` is made by `python -m mortm_hf.evaluation.quality --data PACK --cache FOLDER`. Every machine
window of the test split (its songs are in no training window) is told from the human test windows by a score for
"machine"; the AUC is 0.5 for a coin. Intervals are drawn over songs' clusters. The bag of features is fitted anew on
the train split. `--model` adds trained judges (one label "machine", or the two labels of the set); several are also
averaged. Each hears the windows as its configuration says: all pitched tracks in one ("condensed"), or as they are.
`--bars 2 --least-tracks 2` asks of the first two bars of windows of two tracks or more, as music feedback does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


ALL = "all"


def machine_logits(folder: str, data, bars: int | None = None) -> np.ndarray:
    """`[n]` logit of "machine" of a trained judge, on windows in the form that it was trained on."""
    from mortm_hf.data.labelled_windows import in_form
    from mortm_hf.models.modeling_bertm import BertmForSequenceClassification
    from mortm_hf.training.classifier_trainer import evaluate

    model = BertmForSequenceClassification.from_pretrained(folder).eval()
    form = "condensed" if model.config.window_form == "condensed" else "field"
    data = in_form(data, form, bars) if form == "condensed" else data
    logits = np.asarray(evaluate(model, data), dtype=np.float64).reshape(len(data), -1)
    return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]


def bag_logits(data, seed: int, bars: int | None = None) -> tuple[np.ndarray, str]:
    """`[n test]` logit of "machine" of the bag of features, and the model chosen on validation."""
    from mortm_hf.evaluation.features import bag_of_features, fit_baseline, scores_of
    from mortm_hf.models.inputs_bertm import clip_durations

    def features_of(part):
        scores = scores_of(part.vocabulary, [e.ids for e in part.examples])
        return bag_of_features([clip_durations(s.window(0, bars)) for s in scores] if bars else scores)

    parts = [data.split(s) for s in ("train", "validation", "test")]
    features = [features_of(d) for d in parts]
    fitted = fit_baseline(features[0], parts[0].labels(), features[1], parts[1].labels(), 2, seed=seed)
    scores = fitted.predict(features[2])
    return scores[:, 1] - scores[:, 0], fitted.chosen


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", required=True, help="folder of quality.npz")
    parser.add_argument("--model", action="append", default=[], help='"NAME=FOLDER", as often as there are judges')
    parser.add_argument("--bars", type=int, default=None, help="hear the first so many bars of each window")
    parser.add_argument("--least-tracks", type=int, default=1, help="windows of so many tracks or more")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--limit", type=int, default=0, help="test windows of each kind, the first ones (0: all)")
    parser.add_argument("--pictures", default="", help="folder for the calibration curve")
    parser.add_argument("--json", default="", help="write all figures here")
    options = parser.parse_args(words)

    import torch

    from mortm_hf.data import labelled_windows as labels
    from mortm_hf.evaluation.classification import auc_interval, calibration, plot_calibration, sigmoid
    from mortm_hf.evaluation.quality import HUMAN

    torch.set_num_threads(options.threads)
    try:
        data = labels.load("quality", cache=options.cache)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    if options.limit:
        left = Counter()
        chosen_rows = [
            e for e in data.examples if e.split != "test" or (left.update([e.kind]) or left[e.kind]) <= options.limit
        ]
        data = replace(data, examples=chosen_rows)
    data = labels.of_tracks(data, options.least_tracks)
    test, train = data.split("test"), data.split("train").labels()
    kind, cluster, positive = test.column("kind"), test.column("cluster"), test.labels() == 1
    bag, chosen = bag_logits(data, options.seed, options.bars)
    models = {name: folder for name, _, folder in (m.partition("=") for m in options.model)}
    scores = {name: machine_logits(folder, test, options.bars) for name, folder in models.items()}
    if len(scores) > 1:
        scores[f"mean of {len(scores)}"] = np.mean(list(scores.values()), axis=0)
    scores["bag of features"] = bag
    print(
        f"{int((~positive).sum())} human test windows of {len(set(cluster[~positive]))} clusters; train windows: "
        f"{int((train == 0).sum())} human, {int((train == 1).sum())} machine; bag of features: {chosen}"
    )
    print("\n| machine | windows | " + " | ".join(scores) + " |\n|---|---|" + "---|" * len(scores))
    result: dict = {"chosen": chosen, "bars": options.bars, "least_tracks": options.least_tracks, "auc": {}}
    sampled = [k for k in dict.fromkeys(kind.tolist()) if k.startswith("starter")]
    groups = {ALL: [k for k in set(kind.tolist()) if k != HUMAN], "starter, all temperatures": sampled}
    groups |= {k: [k] for k in dict.fromkeys(kind.tolist()) if k != HUMAN}
    for name, kinds in groups.items():
        rows = np.flatnonzero((kind == HUMAN) | np.isin(kind, kinds))
        figures = {
            key: auc_interval(value[rows], positive[rows], cluster[rows], options.resamples, options.seed)
            for key, value in scores.items()
        }
        print(f"| {name} | {int(positive[rows].sum())} | " + " | ".join(map(str, figures.values())) + " |")
        result["auc"][name] = {key: figure.as_dict() for key, figure in figures.items()}
    curves = {key: calibration(sigmoid(value), positive, balanced=True) for key, value in scores.items()}
    print(
        "\nCalibration on all test windows, human and machine weighed as halves: "
        + "; ".join(f"{key}: ECE {c.ece:.3f}, Brier {c.brier:.3f}" for key, c in curves.items())
    )
    result["calibration"] = {key: {"ece": curve.ece, "brier": curve.brier} for key, curve in curves.items()}
    if options.pictures:
        Path(options.pictures).mkdir(parents=True, exist_ok=True)
        plot_calibration(Path(options.pictures) / "bertm_quality_calibration.png", curves, "Human or machine")
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
