"""The baseline that a trained classifier has to beat: simple classifiers over `mortm_hf.evaluation.features`.

Design decisions
- Logistic regressions and a random forest over everything that can be counted; settings are chosen on the validation
  split.

Knows: features, scikit-learn. Must not know: models of this package, corpora.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mortm_hf.evaluation.features import Features


@dataclass(frozen=True)
class Baseline:
    """A fitted baseline.

    Attributes:
        model: of scikit-learn.
        names: groups of columns that it reads.
        n_labels: how many labels there are.
        chosen: name of the settings that won on validation.
    """

    model: object
    names: tuple[str, ...]
    n_labels: int
    chosen: str

    def predict(self, features: Features) -> np.ndarray:
        """`[n, labels]` log-probabilities."""
        probability = self.model.predict_proba(features.of(*self.names))
        full = np.full((len(probability), self.n_labels), 1e-6)
        full[:, self.model.classes_] = np.maximum(probability, 1e-6)
        return np.log(full)


def fit_baseline(
    train: Features,
    labels: np.ndarray,
    validation: Features,
    validation_labels: np.ndarray,
    n_labels: int,
    names: Sequence[str] | None = None,
    forest: bool = True,
    seed: int = 0,
) -> Baseline:
    """Logistic regressions of two strengths, with and without balanced classes, and a random forest; the one with the
    best macro-F1 on validation.

    Args:
        train: features to fit on.
        labels: `[n]` of these.
        validation: features to choose on.
        validation_labels: `[m]` of these.
        n_labels: how many labels there are.
        names: groups of columns to use; by default all.
        forest: try a random forest too.
        seed: of the forest.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    names = tuple(names or train.groups)
    x, held = train.of(*names), validation.of(*names)
    candidates = {
        f"logistic regression, C={c}, {weight or 'unbalanced'}": make_pipeline(
            StandardScaler(), LogisticRegression(C=c, max_iter=500, class_weight=weight)
        )
        for c in (0.01, 0.1)
        for weight in ("balanced", None)
    }
    if forest:
        candidates["random forest"] = RandomForestClassifier(
            300, min_samples_leaf=2, class_weight="balanced_subsample", random_state=seed, n_jobs=1
        )
    best: tuple[float, str] | None = None
    for name, model in candidates.items():
        model.fit(x, labels)
        score = f1_score(validation_labels, model.predict(held), average="macro", zero_division=0)
        if best is None or score > best[0]:
            best = (score, name)
    return Baseline(candidates[best[1]], names, n_labels, best[1])
