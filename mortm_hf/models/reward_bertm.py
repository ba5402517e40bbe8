"""BERTM as a reward: how human a piece sounds, one number for a piece.

Design decisions
- The reward grows with what is wanted: "probability" is `1 - sigmoid(z)` of the machine logit z (the published reward,
  SPEC 4.3 and 6), "logit" is `-z`. The bounded one has at most a quarter of the other's slope: scale the penalty of a
  policy's drift with it.
- Several checkpoints (seeds) make one reward: their mean, or their minimum, which a policy cannot raise by pleasing a
  single one. How far they lie apart is there to be watched.
- A piece's reward depends on its own real tokens only: padding is what the mask says, rows are batched by length, and
  a song longer than one window is the mean of its windows.
- The parts stay reachable (`models`, `reward_of`): an adapter for PPO pools once and scores every position with them.

Knows: classifiers with one logit (or two labels), the tokenizer, windows. Must not know: policies, PPO, MIDI.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from .errors_mortm import PromptError
from .inputs_bertm import bare_segment, batches_by_length, pad_rows, song_windows
from .modeling_bertm import BertmForSequenceClassification
from .tokenization_mortm import MortmTokenizer


MODES = ("probability", "logit", "machine_logit")
COMBINATIONS = ("mean", "min")


class BertmReward(nn.Module):
    """The reward of pieces by one or several BERTM classifiers.

    Args:
        models: `BertmForSequenceClassification` models with `num_labels` 1 (the logit of "made by a machine") or 2.
        tokenizer: a `MortmTokenizer`; needed for anything but ids.
        mode: "probability" (of being human, 0 to 1), "logit" (of being human, unbounded) or "machine_logit" (the
            models' own, for which less is better; upstream's number).
        combine: "mean" of the models' rewards, or "min", the least of them.
        machine_label: which of two labels is the machine; by default the one called "machine" or "ai", else 1.
        batch_tokens: tokens of a batch with padding, in `rate`.

    Raises:
        ValueError: no models, models of other sizes, unknown words.
    """

    def __init__(
        self,
        models: BertmForSequenceClassification | Sequence[BertmForSequenceClassification],
        tokenizer: MortmTokenizer | None = None,
        mode: str = "probability",
        combine: str = "mean",
        machine_label: int | None = None,
        batch_tokens: int = 8192,
    ):
        super().__init__()
        models = list(models) if isinstance(models, (list, tuple, nn.ModuleList)) else [models]
        if mode not in MODES or combine not in COMBINATIONS:
            raise ValueError(
                f"mode is one of {', '.join(MODES)} and combine one of {', '.join(COMBINATIONS)}, "
                f"got {mode!r} and {combine!r}"
            )
        labels = {model.config.num_labels for model in models}
        if not models or len(labels) > 1 or not labels <= {1, 2}:
            raise ValueError(
                f"a reward needs classifiers of one logit (or of two labels), got num_labels {sorted(labels)}"
            )
        self.models = nn.ModuleList(models)
        self.tokenizer, self.mode, self.combine, self.batch_tokens = tokenizer, mode, combine, batch_tokens
        self.machine_label = _machine_label(models[0].config) if machine_label is None else machine_label
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        folders: str | os.PathLike | Sequence[str | os.PathLike] | None = None,
        mode: str = "probability",
        combine: str = "mean",
        device=None,
        dtype: torch.dtype | str = torch.float32,
        **kwargs,
    ) -> BertmReward:
        """Load one or several checkpoints; the tokenizer is the first one's.

        Args:
            folders: folder or repository, or several.
            mode: of the reward, see the class.
            combine: "mean" or "min", see the class.
            device: where the models go; the CPU by default.
            dtype: of the weights; only fp32 gives rewards that agree within 1e-5 everywhere.
            kwargs: further arguments of `BertmReward`.

        Raises:
            ValueError: no checkpoint, or models that do not fit together.
        """
        if folders is None or isinstance(folders, (str, os.PathLike)):
            folders = [folders]
        if None in folders:
            raise ValueError("give a checkpoint, e.g. mortm_hf.BERTM_QUALITY")
        names = [os.fspath(f) for f in folders]
        models = [BertmForSequenceClassification.from_pretrained(f, dtype=dtype).to(device) for f in names]
        tokenizer = kwargs.pop("tokenizer", None) or MortmTokenizer.from_pretrained(names[0])
        return cls(models, tokenizer, mode=mode, combine=combine, **kwargs)

    def train(self, mode: bool = True) -> BertmReward:
        """A reward is never in training mode (upstream's was: its dropout made the reward noise)."""
        return super().train(False)

    @property
    def config(self):
        """The first model's configuration."""
        return self.models[0].config

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return next(self.models.parameters()).device

    # ------------------------------------------------------------------------------------------------------- from ids

    def machine_logit(self, logits: torch.Tensor) -> torch.Tensor:
        """A model's logits `[..., num_labels]` -> the machine logit `[...]`, in fp32."""
        logits = logits.float()
        if logits.shape[-1] == 1:
            return logits[..., 0]
        return logits[..., self.machine_label] - logits[..., 1 - self.machine_label]

    def reward_of(self, machine_logit: torch.Tensor) -> torch.Tensor:
        """Machine logits of any shape -> rewards of this `mode`."""
        if self.mode == "machine_logit":
            return machine_logit
        # sigmoid(-z) is 1 - sigmoid(z) without the loss of digits near 0
        return -machine_logit if self.mode == "logit" else torch.sigmoid(-machine_logit)

    def combined(self, rewards: torch.Tensor) -> torch.Tensor:
        """Rewards of each model `[models, ...]` -> `[...]`."""
        if self.combine == "mean":
            return rewards.mean(0)
        return rewards.amax(0) if self.mode == "machine_logit" else rewards.amin(0)

    @torch.no_grad()
    def of_each(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, position_ids=None):
        """Rewards `[models, batch]` by each of the models; arguments as in `forward`."""
        if attention_mask is None and self.config.pad_token_id is not None:
            attention_mask = (input_ids != self.config.pad_token_id).long()
        options = {"attention_mask": attention_mask, "position_ids": position_ids}
        return torch.stack([self.reward_of(self.machine_logit(m(input_ids, **options).logits)) for m in self.models])

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, position_ids=None):
        """Rewards of rows of ids.

        Args:
            input_ids: `[batch, length]`.
            attention_mask: `[batch, length]`, 0 at padding on any side; by default wherever the padding id stands.
            position_ids: `[batch, length]`; by default counted from the first real token.

        Returns:
            `[batch]` fp32.
        """
        return self.combined(self.of_each(input_ids, attention_mask, position_ids))

    # ------------------------------------------------------------------------------------------------------ from music

    @torch.no_grad()
    def rate(self, pieces, spread: bool = False):
        """Rewards of pieces, one after the other.

        Args:
            pieces: one piece or a list of pieces; a piece is a list, array or tensor of ids (rated as it is), a path,
                MIDI bytes, a `symusic.Score` or a `MetricScore` (rated in windows of the form that the classifier was
                trained on; the mean of the windows).
            spread: also give how far the models lie apart.

        Returns:
            A float for one piece, else `[pieces]` float64; with `spread` a pair of such, the second the standard
            deviation over the models (0 where there is one).

        Raises:
            MidiError: a file that cannot be read or holds no notes.
            PromptError: ids that are no single row.
            ValueError: music, and no tokenizer.
        """
        one = not isinstance(pieces, (list, tuple)) or (len(pieces) and isinstance(pieces[0], (int, np.integer)))
        pieces = [pieces] if one else list(pieces)
        windows = [self._windows(piece) for piece in pieces]
        owner = np.repeat(np.arange(len(pieces)), [len(w) for w in windows])
        rows = [row for group in windows for row in group]
        each = np.zeros((len(self.models), len(rows)))
        for batch in batches_by_length([len(row) for row in rows], self.batch_tokens):
            ids, mask = pad_rows([rows[i] for i in batch], self.config.pad_token_id or 0, self.device)
            each[:, batch] = self.of_each(ids, mask).double().cpu().numpy()
        counts = np.maximum(np.bincount(owner, minlength=len(pieces)), 1)
        # windows first, models second: a song is one piece to every model
        songs = np.stack([np.bincount(owner, weights=row, minlength=len(pieces)) / counts for row in each])
        rewards, apart = self.combined(torch.from_numpy(songs)).numpy(), songs.std(0)
        if one:
            rewards, apart = float(rewards[0]), float(apart[0])
        return (rewards, apart) if spread else rewards

    def _windows(self, piece) -> list[np.ndarray]:
        ids = piece.cpu().numpy() if isinstance(piece, torch.Tensor) else piece
        if isinstance(ids, (list, tuple, np.ndarray)):
            ids = np.asarray(ids)
            if ids.ndim != 1 or not len(ids) or not np.issubdtype(ids.dtype, np.integer):
                raise PromptError(f"a piece is one row of token ids or a MIDI file, got an array of {ids.shape}")
            return [ids]
        if self.tokenizer is None:
            raise ValueError("rating MIDI needs a tokenizer: BertmReward(models, tokenizer)")
        if self.tokenizer.dialect != "metric":  # upstream's checkpoints read whole files in their own tokens
            return [np.asarray(self.tokenizer.encode_midi(piece))]
        song = self.tokenizer.read_midi(piece)
        config = self.config
        found = song_windows(song, config.window_bars, config.window_form)
        return [bare_segment(self.tokenizer.vocabulary, music) for _, music in found]


def _machine_label(config) -> int:
    """Which of a classifier's labels is the machine."""
    names = {str(name).lower(): int(index) for index, name in (config.id2label or {}).items()}
    return next((names[n] for n in ("machine", "ai") if n in names), min(1, config.num_labels - 1))


__all__ = ["BertmReward"]
