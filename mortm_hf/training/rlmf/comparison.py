"""Before and after: what reinforcement learning changed, paired over fixed prompts.

Design decisions
- All arms answer the same prompts under the same row seeds, from the distribution that was learnt on (temperature 1,
  no filters, the grammar with the run's budget). Samples are cached: a comparison that was cut off goes on.
- The unit is the song: several seeds of a prompt are one observation, differences are taken song by song, intervals
  are bootstraps over songs.
- The reward that was learnt on says little by itself. Beside it stand judges that took no part, the KL to the frozen
  policy, diversity among songs and among the seeds of one song (where a collapse shows first), the distance to what
  the songs really go on with, and how much is copied from the training songs.
- The rival at equal cost is best-of-N: N samples of the frozen policy, the best by the same reward kept.

Knows: policies, prompts, rewards, `mortm_hf.evaluation`. Must not know: trainers, run folders, command lines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ...evaluation import intervals
from ...evaluation.copying import copied_from
from ...evaluation.distances import distribution_distances, diversity
from ...evaluation.features import scores_of
from ...evaluation.model_answers import AnswerCache, Ask, Sampling, answer_all
from ...models.errors_mortm import RlmfError
from ...models.inputs_bertm import pad_rows
from ...models.music_score import MetricScore
from .grammar_masks import GrammarMasks
from .policy import MortmPolicy
from .prompts import Prompt


MARGIN = 0.05  # share of diversity that may be lost before an arm counts as inferior


@dataclass
class Arm:
    """The answers of one model to all prompts.

    Attributes:
        name: of the model.
        answers: `[seeds][prompts]` ids.
        rewards: `{name: [seeds, prompts]}`, `"reward"` the one learnt on.
        kl: `[seeds, prompts]` nats to the frozen policy, None where it was not measured.
    """

    name: str
    answers: list[list[np.ndarray]]
    rewards: dict[str, np.ndarray] = field(default_factory=dict)
    kl: np.ndarray | None = None


def answer_prompts(
    model,
    tokenizer,
    prompts: Sequence[Prompt],
    budget: int,
    seeds: Sequence[int],
    cache: str | Path | None = None,
    identity: str = "",
    batch: int = 32,
) -> list[list[np.ndarray]]:
    """`[seeds][prompts]` answers, sampled at temperature 1 under the grammar, at most `budget` tokens each.

    Args:
        model: the policy.
        tokenizer: of the policy.
        prompts: to answer.
        budget: most tokens of an answer.
        seeds: of the sampling.
        cache: folder for finished answers.
        identity: tells the models in it apart (a fingerprint of the weights).
        batch: rows sampled together.
    """
    masks = GrammarMasks(tokenizer, len(tokenizer.vocabulary), budget)
    asks = [Ask(p.ids, masks.plan(p.ids), budget) for p in prompts]
    found = []
    for seed in seeds:
        kept = AnswerCache(cache, "answers", identity, asks, Sampling(), seed)
        found.append(answer_all(model, tokenizer, asks, Sampling(), seed, batch=batch, cache=kept))
    return found


def rows_of(prompts: Sequence[Prompt], answers: Sequence[np.ndarray], pad: int, batch: int = 32, device=None):
    """Batches of (indices, ids `[B, T]`, mask of real tokens, first answer position of each row), padded on the right
    as a reward sees them: prompt and answer side by side.

    Args:
        prompts: that were answered.
        answers: ids of each.
        pad: id of padding.
        batch: rows of a batch.
        device: where the tensors go.
    """
    sizes = np.array([len(p.ids) + len(a) for p, a in zip(prompts, answers)])
    order = np.argsort(sizes, kind="stable")
    for at in range(0, len(order), batch):
        rows = order[at : at + batch]
        ids, mask = pad_rows([np.concatenate([prompts[r].ids, answers[r]]) for r in rows], pad, device)
        yield rows, ids, mask.bool(), torch.tensor([len(prompts[r].ids) for r in rows], device=device)


@torch.no_grad()
def rate(reward, prompts: Sequence[Prompt], answers: Sequence[np.ndarray], pad: int = 0) -> dict[str, np.ndarray]:
    """`{"reward": [prompts], term: [prompts]}` of a reward, before any shaping.

    Args:
        reward: module of (ids, mask).
        prompts: that were answered.
        answers: ids of each.
        pad: id of padding.
    """
    found: dict[str, np.ndarray] = {}
    device = next(iter(reward.parameters()), torch.zeros(0)).device
    for rows, ids, mask, _ in rows_of(prompts, answers, pad, device=device):
        for name, values in {"reward": reward(ids, mask), **getattr(reward, "last", {})}.items():
            found.setdefault(name, np.zeros(len(prompts)))[rows] = values.double().cpu().numpy()
    return found


@torch.no_grad()
def divergence(
    policy: MortmPolicy, reference: MortmPolicy, prompts: Sequence[Prompt], answers: Sequence[np.ndarray], pad: int = 0
) -> np.ndarray:
    """`[prompts]` log-probability of each answer under the policy less that under the reference, in nats: over samples
    of the policy its mean is the KL. Both must be masked alike.

    Args:
        policy: that answered.
        reference: compared with.
        prompts: that were answered.
        answers: ids of each.
        pad: id of padding.

    Raises:
        RlmfError: one of them has no grammar set, or another budget.
    """
    if policy.grammar is None or reference.grammar is None or policy.grammar.budget != reference.grammar.budget:
        raise RlmfError("policy and reference must be masked with one budget: call set_grammar on both", "rlmf.model")
    found = np.zeros(len(prompts))
    for rows, ids, mask, start in rows_of(prompts, answers, pad, device=policy.device):
        scored = mask & (torch.arange(ids.shape[1], device=ids.device) >= start[:, None])
        totals = []
        for model in (policy, reference):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            chosen = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
            totals.append((chosen * scored[:, 1:]).double().sum(1))
        found[rows] = (totals[0] - totals[1]).cpu().numpy()
    return found


def best_of(answers: Sequence[Sequence[np.ndarray]], rewards: np.ndarray) -> list[np.ndarray]:
    """The best answer of every prompt.

    Args:
        answers: `[N][prompts]` ids.
        rewards: `[N, prompts]` of them.
    """
    return [answers[int(n)][i] for i, n in enumerate(np.argmax(rewards, axis=0))]


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def self_bleu(passages, order: int = 4, seed: int = 0, references: int = 31) -> float:
    """Mean BLEU (geometric mean of the clipped precisions of 1- to 4-grams, no brevity penalty) of each passage
    against others, on notes: a note is its interval and onset step from the one before it in its track, and its
    duration. 1: every passage is put together from the others' phrases. (Zhu et al. 2018, "Texygen".)

    Args:
        passages: scores, None among them.
        order: longest n-gram.
        seed: of the draw.
        references: how many other passages each is compared with, drawn at random.
    """
    grams = [[_grams(score, n) for n in range(1, order + 1)] for score in passages]
    rng = np.random.default_rng(seed)
    values = []
    for i, mine in enumerate(grams):
        others = rng.permutation(np.delete(np.arange(len(grams)), i))[:references]
        logs = []
        for n in range(order):
            best: Counter = Counter()
            for j in others:
                best |= grams[j][n]
            total = sum(mine[n].values())
            if total:
                hits = sum((mine[n] & best).values())
                logs.append(np.log((hits + 1e-9) / total))
        if logs:
            values.append(np.exp(np.mean(logs)))
    return float(np.mean(values)) if values else float("nan")


def _grams(score, n: int) -> Counter:
    if score is None or score.n_notes < n + 1:
        return Counter()
    steps = np.stack([np.diff(score.pitch), np.diff(score.onset), score.duration[1:]], axis=1)
    same = score.track[n:] == score.track[:-n]
    windows = np.stack([steps[k : len(steps) - n + 1 + k] for k in range(n)], axis=1)[same]
    return Counter(w.tobytes() for w in windows)


def describe(arm: Arm, tokenizer, prompts: Sequence[Prompt], train=None) -> dict:
    """The figures of one arm.

    Args:
        arm: the answers, rated.
        tokenizer: of the policy.
        prompts: that were answered.
        train: training songs (`MetricScore`), for what is copied; None: left out.

    Returns:
        `{"rewards": {name: mean with interval}, "kl", "diversity", "distances", "copied"}`; diversity figures are
        means over seeds with their standard deviation.
    """
    clusters = [p.cluster for p in prompts]
    found = {"rewards": {n: intervals.mean(v.mean(0), clusters) for n, v in arm.rewards.items()}}
    if arm.kl is not None:
        found["kl"] = intervals.mean(arm.kl.mean(0), clusters)
    corpora = [p.corpus for p in prompts]
    sets = [_sounding(scores_of(tokenizer.vocabulary, answers)) for answers in arm.answers]
    human = _sounding(scores_of(tokenizer.vocabulary, [np.concatenate([p.ids[-1:], p.answer]) for p in prompts]))
    measured: dict[str, list[float]] = {}
    for passages in sets:
        music = list(passages.values())
        values = {k: v for k, v in diversity(music).items() if k != "vendi"} | {"self_bleu": self_bleu(music)}
        apart = distribution_distances(
            music, [corpora[i] for i in passages], list(human.values()), [corpora[i] for i in human]
        )
        values |= {f"distance_{name}": v.get("mean", float("nan")) for name, v in apart.items()}
        values["notes_per_answer"] = float(np.mean([s.n_notes for s in music]))
        for name, value in values.items():
            measured.setdefault(name, []).append(value)
    if len(sets) > 1:
        within = []
        for i in range(len(prompts)):
            music = [passages[i] for passages in sets if i in passages]
            if len(music) > 1:
                within.append(diversity(music)["pairwise_distance"])
        measured["distance_within_prompt"] = [float(np.mean(within))]
    found["figures"] = {
        name: {"value": float(np.mean(values)), "std": float(np.std(values)), "n": len(values)}
        for name, values in measured.items()
    }
    if train is not None:
        found["copied"] = copied_from(train, [s for passages in sets for s in passages.values()]).summary()
    return found


def _sounding(passages) -> dict[int, MetricScore]:
    """The passages that have notes, by their places."""
    return {i: score for i, score in enumerate(passages) if score is not None and score.n_notes}


def paired(before: Arm, after: Arm, prompts: Sequence[Prompt], name: str = "reward") -> dict:
    """The difference of a reward, song by song: its mean with interval, its standard error over songs and how many of
    them it measures (`z`).

    Args:
        before: one arm.
        after: the other, on the same prompts.
        prompts: that were answered.
        name: of the reward.
    """
    clusters, index = np.unique([p.cluster for p in prompts], return_inverse=True)
    gain = after.rewards[name].mean(0) - before.rewards[name].mean(0)
    songs = np.bincount(index, weights=gain) / np.bincount(index)
    error = float(songs.std(ddof=1) / np.sqrt(len(songs))) if len(clusters) > 1 else float("nan")
    found = intervals.mean(gain, [p.cluster for p in prompts])
    return found | {"standard_error": error, "z": float(songs.mean() / error) if error else float("inf")}


def non_inferior(before: dict, after: dict, name: str, margin: float = MARGIN) -> dict:
    """Whether a diversity figure of `describe` fell by no more than `margin` of its value before.

    The verdict takes the spread over seeds into account: the drop plus two standard errors must stay within it.

    Args:
        before: figures of one arm.
        after: figures of the other.
        name: of the figure.
        margin: share that may be lost.
    """
    a, b = before["figures"][name], after["figures"][name]
    ratio, error = float("nan"), 0.0
    if a["value"]:
        ratio = b["value"] / a["value"]
        error = np.sqrt(sum(arm["std"] ** 2 / max(arm["n"], 1) for arm in (a, b))) / a["value"]
    return {"ratio": ratio, "error": float(error), "met": bool(ratio - 2 * error >= 1 - margin), "margin": margin}
