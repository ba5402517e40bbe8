"""Style and genre: macro-F1 by song against majority and bags of features, with intervals over clusters.

    python benchmarks/bertm_style.py --data PACK [--cache FOLDER] [--sets folk genre drums]
        [--model "genre:pre-trained=FOLDER" --model "genre:from scratch=FOLDER"] [--leave-out folk]
        [--pictures FOLDER] [--json FILE]

Sets are those of `mortm_hf.data.labelled_windows`: fixed splits, one form of window for every class. A song's
prediction is the mean over its windows. Baselines are always fitted anew: the commonest class, the meter alone,
durations alone, and all features under the best of four logistic regressions and a random forest (chosen on
validation). Classes with fewer than 20 test songs are printed in brackets and count only in the column "all classes".
`--model` adds trained classifiers (folders of `BertmForSequenceClassification`); the first one of a set is compared
with all others in pairs. `reel or hornpipe` is a five-fold cross-validation over tune families inside 4/4, where meter
says nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np


ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

TITLES = {
    "folk": "Dance tunes (nottingham)",
    "drums": "Drumming (groove)",
    "genre": "Genre across corpora, 4/4 only",
}


def model_scores(folder: str, data) -> np.ndarray:
    """`[windows, labels]` logits of a trained classifier, in the order of the set's own labels."""
    from mortm_hf.models.modeling_bertm import BertmForSequenceClassification
    from mortm_hf.training.classifier_trainer import evaluate

    model = BertmForSequenceClassification.from_pretrained(folder).eval()
    logits = np.asarray(evaluate(model, data))
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    if set(names) - set(data.names):
        raise SystemExit(f"{folder} knows other labels than this set: {', '.join(names)}")
    full = np.full((len(logits), len(data.names)), -1e4)
    full[:, [data.names.index(name) for name in names]] = logits
    return full


def baseline_scores(train, validation, test, seed: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Scores of the test windows by baseline, and what was chosen on validation."""
    from mortm_hf.evaluation.features import bag_of_features, fit_baseline, scores_of

    features = [
        bag_of_features(scores_of(d.vocabulary, [e.ids for e in d.examples])) for d in (train, validation, test)
    ]
    size = len(test.names)
    commonest = np.bincount(train.labels(), minlength=size)
    songs = np.array([train.support()[name] for name in train.names], dtype=float)
    scores = {"majority": np.log(np.tile(np.maximum(songs, 1e-3), (len(test), 1)))}
    chosen = {"majority": train.names[int(songs.argmax())], "train windows": commonest.tolist()}
    wanted = {"meter alone": ("meter",), "durations alone": ("duration",), "bag of features": None}
    for name, groups in wanted.items():
        fitted = fit_baseline(
            features[0], train.labels(), features[1], validation.labels(), size, groups, groups is None, seed
        )
        scores[name], chosen[name] = fitted.predict(features[2]), fitted.chosen
    return scores, chosen


def by_corpus(test, joined) -> list[str]:
    """Where a label comes from several corpora: how many songs of each are recognised. A classifier that hears the
    corpus instead of the music fails on the smaller one."""
    corpus_of = {e.song: e.kind for e in test.examples}
    lines = []
    for number, label in enumerate(test.names):
        corpora = sorted({e.kind for e in test.examples if e.label == number})
        for corpus in corpora if len(corpora) > 1 else ():
            counts = []
            for key, value in joined.items():
                rows = (value.label == number) & np.array([corpus_of[s] == corpus for s in value.songs])
                counts.append(f"{key} {int((value.predicted[rows] == number).sum())}")
            lines.append(f"{label} from {corpus}, right of {int(rows.sum())} songs: " + ", ".join(counts))
    return lines


def report_set(name: str, options, result: dict) -> None:
    """Fit, score and print one set."""
    from mortm_hf.data import labelled_windows as labels
    from mortm_hf.evaluation.classification import (
        confusion,
        f1_of,
        macro_f1_interval,
        plot_confusion,
        song_scores,
    )
    from mortm_hf.training.labelled_batches import without

    data = labels.load(name, data=options.data, cache=options.cache or None)
    data = without(data, [x for x in options.leave_out if x in data.names])
    train, validation, test = (data.split(s) for s in ("train", "validation", "test"))
    support = test.support()
    claimed = [test.names.index(c) for c in test.claimed()]
    claimed = claimed if len(claimed) > 1 else []  # one class alone is no choice
    scores, chosen = baseline_scores(train, validation, test, options.seed)
    folders = dict(m.partition("=")[::2] for m in options.model if m.startswith(f"{name}:"))
    trained = {key.partition(":")[2]: model_scores(folder, test) for key, folder in folders.items()}
    scores = {**trained, **scores}
    labels_of, songs, clusters = test.labels(), test.column("song"), test.column("cluster")
    size = len(test.names)
    joined = {key: song_scores(value, labels_of, songs, clusters) for key, value in scores.items()}
    one = next(iter(joined.values()))
    print(f"\n## {TITLES[name]}")
    print(
        f"{len(train)} train, {len(test)} test windows; {len(one.songs)} test songs in {len(set(one.cluster))} "
        f"clusters; chosen on validation: {chosen['bag of features']}"
    )
    shown = [c if support[c] >= labels.LEAST_SONGS else f"({c})" for c in test.names]
    heads = [f"{text} {support[c]}" for text, c in zip(shown, test.names)]
    print("| classifier | macro-F1, claimed classes | macro-F1, all classes | " + " | ".join(heads) + " |")
    print("|---|" + "---|" * (size + 2))
    rows, matrices = {}, {}
    for key, value in joined.items():
        matrix = matrices[key] = confusion(value.label, value.predicted, size)
        whole = macro_f1_interval(value.label, value.predicted, value.cluster, size)
        part = macro_f1_interval(value.label, value.predicted, value.cluster, size, claimed) if claimed else None
        single = f1_of(matrix)
        cells = [str(part or "-"), str(whole), *(f"{x:.2f}" for x in single)]
        print(f"| {key} | " + " | ".join(cells) + " |")
        rows[key] = {
            "claimed": part.as_dict() if part else None,
            "all": whole.as_dict(),
            "f1": dict(zip(test.names, np.nan_to_num(single, nan=-1).round(4).tolist())),
            "confusion": matrix.tolist(),
        }
    origins = by_corpus(test, joined)
    for text in origins:
        print(text)
    differences = {}
    first = next(iter(joined))
    if trained:
        print(f"\nPaired differences of macro-F1, {first} minus (claimed classes; all classes):")
        mine = joined[first]
        for key, value in joined.items():
            if key != first:
                columns = (mine.label, mine.predicted, mine.cluster, size)
                gaps = [
                    macro_f1_interval(*columns, classes, against=value.predicted)
                    for classes in ([claimed] if claimed else []) + [None]
                ]
                differences[key] = [gap.as_dict() for gap in gaps]
                print(f"  {key}: {'; '.join(map(str, gaps))}")
    if options.pictures:
        Path(options.pictures).mkdir(parents=True, exist_ok=True)
        picked = {key: matrices[key] for key in [*trained, "bag of features"]}
        plot_confusion(Path(options.pictures) / f"bertm_{name}_confusion.png", picked, test.names, TITLES[name])
    result[name] = {
        "support": support,
        "chosen": chosen,
        "scores": rows,
        "differences": differences,
        "by corpus": origins,
    }


def report_folds(options, result: dict, folds: int = 5) -> None:
    """Reel or hornpipe in 4/4, by cross-validation over clusters with the bag of features."""
    from mortm_hf.data import labelled_windows as labels
    from mortm_hf.evaluation.classification import confusion, f1_of, macro_f1_interval, song_scores
    from mortm_hf.evaluation.features import Features, bag_of_features, fit_baseline, scores_of

    data = labels.load("folk", data=options.data, cache=options.cache or None)
    scores = scores_of(data.vocabulary, [e.ids for e in data.examples])
    wanted = {data.names.index("reel"): 0, data.names.index("hornpipe"): 1}
    rows = [i for i, s in enumerate(scores) if s.bars.length[0] == 96 and data.examples[i].label in wanted]
    features = bag_of_features([scores[i] for i in rows])
    label = np.array([wanted[data.examples[i].label] for i in rows])
    clusters, songs = data.column("cluster")[rows], data.column("song")[rows]
    families, family = np.unique(clusters, return_inverse=True)
    # whole families to folds, the rarer class spread evenly
    rng = np.random.default_rng(options.seed)
    share = np.bincount(family, label) > 0
    fold_of = np.zeros(len(families), dtype=int)
    for kind in (False, True):
        members = np.flatnonzero(share == kind)
        fold_of[members] = rng.permutation(len(members)) % folds
    fold = fold_of[family]
    out = np.zeros((len(rows), 2))
    for k in range(folds):
        test, held = fold == k, fold == (k + 1) % folds
        parts = [Features(features.values[x], features.groups) for x in (~test & ~held, held, test)]
        fitted = fit_baseline(parts[0], label[~test & ~held], parts[1], label[held], 2, seed=options.seed)
        out[test] = fitted.predict(parts[2])
    joined = song_scores(out, label, songs, clusters)
    figure = macro_f1_interval(joined.label, joined.predicted, joined.cluster, 2)
    always = macro_f1_interval(joined.label, np.zeros_like(joined.label), joined.cluster, 2)
    matrix = confusion(joined.label, joined.predicted, 2)
    counts = dict(zip(("reel", "hornpipe"), matrix.sum(1).tolist()))
    print(f"\n## Reel or hornpipe, 4/4 only, {folds} folds over {len(families)} tune families: songs {counts}")
    print(f"majority {always}; bag of features {figure}; F1 of each {np.round(f1_of(matrix), 2).tolist()}")
    result["reel or hornpipe"] = {
        "songs": counts,
        "majority": always.as_dict(),
        "bag of features": figure.as_dict(),
        "confusion": matrix.tolist(),
    }


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the training pack")
    parser.add_argument("--cache", default="", help="folder for prepared stores")
    parser.add_argument("--sets", nargs="+", default=["folk", "genre", "drums"], choices=sorted(TITLES))
    parser.add_argument("--model", action="append", default=[], help='"SET:NAME=FOLDER", as often as there are models')
    parser.add_argument("--leave-out", nargs="*", default=[], help="labels that take no part (the bundled head: folk)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pictures", default="", help="folder for confusion matrices")
    parser.add_argument("--json", default="", help="write all figures here")
    options = parser.parse_args(words)

    import torch

    torch.set_num_threads(options.threads)
    result: dict = {}
    for name in options.sets:
        report_set(name, options, result)
    if "folk" in options.sets:
        report_folds(options, result)
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
