"""The Trainer of a classifier, and what validation says of its songs.

Design decisions
- Two labels make one logit, that of the second label, trained with binary cross-entropy; more make a softmax.
- Pairs add a second term that ranks twins (Bradley and Terry 1952, as reward models are trained).
- Hints add a loss on what can be counted in a window (`feature_hints`). The layer that reads it off belongs to the
  run's checkpoints, not to its result.
- Validation is by song (the mean of its windows' log-probabilities): macro-F1, or AUC where there is one logit. The
  best model by it is kept in `best/`; the test split is not read.

Knows: labelled sets, the Trainer, scores of songs. Must not know: how windows are made, what a label means.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import torch
from transformers import TrainerCallback

from ..data.labelled_windows import LabelledData
from ..evaluation.classification import auc, confusion, f1_of, macro_f1, sigmoid, song_scores
from ..models.inputs_bertm import batches_by_length, pad_rows
from .runlog import RunLog
from .trainer import PackTrainer
from .validation import BEST, keep_best


class ClassifyTrainer(PackTrainer):
    """`Trainer` with class weights and one logit for two labels.

    Args:
        class_weights: `[labels]` weight of each class in the loss, or None.
        pairs: a batch holds machine windows, then their human twins.
        hints: weight of the loss on the batch's `hints`; the model then has a layer `hints`.
    """

    def __init__(
        self, *args, class_weights: torch.Tensor | None = None, pairs: bool = False, hints: float = 0.0, **kwargs
    ):
        super().__init__(*args, **kwargs)
        self.class_weights, self.pairs, self.hints = class_weights, pairs, hints
        self._hint_losses: list[torch.Tensor] = []
        self.model_accepts_loss_kwargs = False  # the loss is a mean over windows, not over tokens

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels, hint_loss = inputs["labels"], None
        if "hints" in inputs:
            layer = self.accelerator.unwrap_model(model).hints
            hook = layer.watch(self.accelerator.unwrap_model(model).pool)
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        if "hints" in inputs:
            hook.remove()
            hint_loss = layer.loss(inputs["hints"], inputs["intervals"])
        logits = outputs.logits.float()
        weights = None if self.class_weights is None else self.class_weights.to(logits.device)
        if logits.shape[-1] == 1:
            each = None if weights is None else weights[labels]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], labels.float(), weight=each)
            if self.pairs:
                machine, human = logits[:, 0].chunk(2)
                loss = loss + torch.nn.functional.softplus(human - machine).mean()
        else:
            loss = torch.nn.functional.cross_entropy(logits, labels, weight=weights)
        if hint_loss is not None:
            loss = loss + self.hints * hint_loss
            self._hint_losses.append(hint_loss.detach())
        return (loss, outputs) if return_outputs else loss

    def log(self, logs, *args, **kwargs):
        """With the loss of the hints beside the whole one."""
        if "loss" in logs and self._hint_losses:
            logs["hint_loss"] = round(float(torch.stack(self._hint_losses).mean()), 4)
            self._hint_losses = []
        super().log(logs, *args, **kwargs)

    def save_result(self, folder: str) -> None:
        """As `PackTrainer`, without the layer of the model's hints."""
        layer = self.model._modules.pop("hints", None)
        super().save_result(folder)
        if layer is not None:
            self.model.hints = layer


@torch.no_grad()
def evaluate(model, data, batch_tokens: int = 8192, max_length: int | None = None, progress: bool = False):
    """Logits `[n, num_labels]` float32 of windows, in their order.

    Args:
        model: `BertmForSequenceClassification`; it is put into eval mode.
        data: `LabelledData`, or a list of rows of ids.
        batch_tokens: tokens of a batch with padding.
        max_length: longer rows are cut; by default to the model's context.
        progress: show a bar.
    """
    rows = [e.ids for e in data.examples] if hasattr(data, "examples") else list(data)
    rows = [row[: max_length or model.config.max_position_embeddings] for row in rows]
    was, _ = model.training, model.eval()
    device = next(model.parameters()).device
    out = np.zeros((len(rows), model.config.num_labels), dtype=np.float32)
    batches = batches_by_length([len(row) for row in rows], batch_tokens)
    if progress:
        from tqdm.auto import tqdm

        batches = tqdm(batches, desc="scoring", unit="batch")
    for batch in batches:
        ids, mask = pad_rows([rows[i] for i in batch], model.config.pad_token_id or 0, device)
        out[batch] = model(input_ids=ids, attention_mask=mask).logits.float().cpu().numpy()
    model.train(was)
    return out


def two_columns(logits: np.ndarray) -> np.ndarray:
    """One logit as the scores of two labels (of the first, 0); more than one stay."""
    return np.concatenate([np.zeros_like(logits), logits], axis=1) if logits.shape[1] == 1 else logits


def song_metrics(logits: np.ndarray, data: LabelledData) -> dict[str, float]:
    """Macro-F1, accuracy, F1 of each label, and (one logit) AUC and log loss; one prediction per song and kind."""
    scores = two_columns(logits)
    # human and machine windows may belong to one song: what is predicted is (song, label, kind)
    songs = np.array([f"{e.song}|{e.label}|{e.kind}" for e in data.examples])
    joined = song_scores(scores, data.labels(), songs, data.column("cluster"))
    matrix = confusion(joined.label, joined.predicted, len(data.names))
    found = {"macro_f1": float(macro_f1(matrix)), "accuracy": float(np.trace(matrix) / matrix.sum())}
    found |= {f"f1_{name}": float(f) for name, f in zip(data.names, f1_of(matrix)) if not math.isnan(f)}
    if logits.shape[1] == 1:
        label, chance = data.labels(), sigmoid(logits[:, 0])
        found["auc"] = auc(logits[:, 0], label == 1)
        found["log_loss"] = float(-np.log(np.clip(np.where(label == 1, chance, 1 - chance), 1e-9, 1)).mean())
    return found


class SongValidation(TrainerCallback):
    """Measures songs of the validation split every so many steps and at the end, and keeps the best model.

    Args:
        log: of the run.
        data: the validation windows.
        every: steps between two measurements; 0: only at the end.
        max_length: longer windows are cut to so many tokens.
        save: writes the model into the folder it is given.
    """

    def __init__(self, log: RunLog, data: LabelledData, every: int, max_length: int, save: Callable[[str], None]):
        self.run_log, self.folder, self.data = log, log.path.parent, data
        self.every, self.max_length, self.save = every, max_length, save
        self.figure = "auc" if len(data.names) == 2 else "macro_f1"

    @property
    def best(self) -> float:
        """The figure of the best model so far."""
        path = self.folder / BEST / "validation.json"
        return json.loads(path.read_text(encoding="utf-8"))[self.figure] if path.is_file() else -math.inf

    def on_step_end(self, args, state, control, model=None, **kwargs):
        step = state.global_step
        if (self.every and step % self.every == 0) or step >= state.max_steps:
            found = song_metrics(evaluate(model, self.data, max_length=self.max_length), self.data)
            self.run_log.write(event="validation", step=step, **{k: round(v, 5) for k, v in found.items()})
            if found[self.figure] > self.best:
                keep_best(self.folder, self.save, "validation.json", {"step": step, **found})
