"""What music is rewarded for: learned judges, rules, and their weighted sum, as TRL can call it.

Design decisions
- A reward is a function of ids and mask, `[B, T]` each, to one number a row. Learned judges and rules are terms of one
  `MusicReward`; rules share one reading of the notes.
- TRL takes no function: it wants a backbone whose hidden states a `score` turns into one number a position, and picks
  a position by its own rule (the last token, or the one before the first pad, which may lie in the prompt).
  `RewardAdapter` gives every position the whole row's reward, so that any choice is right, whatever the padding.
- A judge is `BertmReward`, which calls the classifier's own `forward`: on what TRL hands over (padding by mask, id 0
  over pads, positions counted from the first real token) its score is the classifier's, bit for bit.
- A judge reads the row as it stands (`view="row"`: prompt and answer), the answer alone, as a bare segment
  (`view="answer"`), or that in the form its configuration names (`view="window"`: e.g. all pitched tracks in one).
- Most of a judge's score belongs to the prompt, which no answer can change. `HumanBaseline` takes from each row what
  the song's own continuation of its prompt was given: a constant of the prompt, so the policy's gradient keeps its
  direction and loses most of its noise.
- Clipping and whitening (by running mean and deviation over all processes) come last and only in training; figures
  that are reported are those of the reward itself.

Knows: the token table, `BertmReward`. Must not know: TRL's trainers, policies, MIDI.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from ...bundled import find_model
from ...models.errors_mortm import RlmfError
from ...models.inputs_bertm import bare_segment, clip_durations, in_window_form, pad_rows
from ...models.reward_bertm import BertmReward
from ...models.token_codec import parse_segment
from ...models.token_vocabulary import MetricVocabulary, TokenKind
from ...models.tokenization_mortm import MortmTokenizer
from .rules import RULES, NoteReader


VIEWS = ("row", "answer", "window")


class JudgeReward(nn.Module):
    """BERTM as a reward (`BertmReward`: one checkpoint or an ensemble, its modes), on rows or on their answers alone.

    Args:
        reward: module of (ids, mask) -> `[B]`; for "window" a `BertmReward`. view: one of `VIEWS`.
        vocabulary: the token table.
    """

    def __init__(self, reward: nn.Module, view: str, vocabulary: MetricVocabulary):
        super().__init__()
        if view not in VIEWS:
            raise RlmfError(f"no view {view!r}; there are {', '.join(VIEWS)}")
        self.reward, self.view, self.vocabulary = reward, view, vocabulary
        self.bos, self.marker = vocabulary.id(TokenKind.BOS), vocabulary.id(TokenKind.MGEN)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True):
        """A judge is never trained here."""
        return super().train(False)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`[B, T]` ids and mask of real tokens -> `[B]`."""
        if self.view == "answer":
            place = torch.arange(ids.shape[1], device=ids.device)
            start = torch.where((ids == self.marker) & mask.bool(), place, 0).amax(1, keepdim=True) - 1
            ids = torch.where(place == start, self.bos, ids)
            mask = mask.bool() & (place >= start)
        elif self.view == "window":
            rows = [self._window(row[real]) for row, real in zip(ids.cpu().numpy(), mask.bool().cpu().numpy())]
            ids, mask = pad_rows(rows, self.reward.config.pad_token_id or 0, ids.device)
        return self.reward(ids, mask.long())

    def _window(self, ids: np.ndarray) -> np.ndarray:
        """The generated field of a row as the judge's windows are written."""
        music = parse_segment(self.vocabulary, ids).generated
        if music is None:  # no field at all: nothing that could be written otherwise
            return ids
        return bare_segment(self.vocabulary, in_window_form(clip_durations(music), self.reward.config.window_form))


class MusicReward(nn.Module):
    """A weighted sum of terms.

    Args:
        vocabulary: the token table. terms: `(name, weight, term)`; a term is a module of (ids, mask), or a rule of
            `rules.RULES` (a function of `Notes`).

    Attributes:
        last: `{name: [B] values}` of the last call, before weighting.
    """

    def __init__(self, vocabulary, terms: Sequence[tuple[str, float, Callable]]):
        super().__init__()
        if not terms:
            raise RlmfError("a reward without terms rewards nothing: name at least one")
        self.reader = NoteReader(vocabulary)
        self.names, self.weights = [t[0] for t in terms], [float(t[1]) for t in terms]
        if len(set(self.names)) < len(self.names):
            raise RlmfError(f"two terms of the reward have one name: {', '.join(self.names)}")
        self.rules = {name: term for name, _, term in terms if not isinstance(term, nn.Module)}
        self.judges = nn.ModuleDict({name: term for name, _, term in terms if isinstance(term, nn.Module)})
        self.last: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`[B, T]` ids and mask of real tokens -> `[B]` fp32."""
        mask = mask.bool()
        notes = self.reader(ids, mask) if self.rules else None
        self.last = {
            name: self.rules[name](notes) if name in self.rules else self.judges[name](ids, mask)
            for name in self.names
        }
        return sum(weight * self.last[name].float() for name, weight in zip(self.names, self.weights))


class Shaping(nn.Module):
    """Whitens rewards by their running mean and deviation, then clips them.

    Args:
        whiten: subtract the mean and divide by the deviation of all rewards so far (of all processes).
        clip: bounds `(low, high)`, or None.
    """

    def __init__(self, whiten: bool = False, clip: tuple[float, float] | None = None):
        super().__init__()
        self.whiten, self.clip = whiten, clip
        self.register_buffer("sums", torch.zeros(3, dtype=torch.float64))  # count, sum, sum of squares

    def forward(self, reward: torch.Tensor) -> torch.Tensor:
        """`[B]` -> `[B]`."""
        if self.whiten:
            exact = reward.double()
            new = torch.stack([torch.ones_like(exact).sum(), exact.sum(), (exact**2).sum()])
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.all_reduce(new)
            self.sums += new
            mean = self.sums[1] / self.sums[0]
            deviation = (self.sums[2] / self.sums[0] - mean**2).clamp(min=0).sqrt()
            reward = ((exact - mean) / (deviation + 1e-8)).to(reward.dtype)
        return reward if self.clip is None else reward.clamp(*self.clip)


class HumanBaseline(nn.Module):
    """The reward of what each prompt's song goes on with.

    Args:
        reward: module of (ids, mask) -> `[B]`. prompts, answers: `[n]` pairs of ids, as in `prompts.Prompt`. pad: id.
        marker: id of `<MGEN>`, the last token of a prompt.
    """

    def __init__(self, reward: nn.Module, prompts: Sequence, answers: Sequence, pad: int = 0, marker: int = 12):
        super().__init__()
        self.marker = marker
        values = []
        for at in range(0, len(prompts), 64):
            rows = [np.concatenate(pair) for pair in zip(prompts[at : at + 64], answers[at : at + 64])]
            values.append(reward(*pad_rows(rows, pad)).float())
        values = torch.cat(values)
        self.mean = float(values.mean())
        self.table = {tuple(map(int, p)): value for p, value in zip(prompts, values.tolist())}

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`[B, T]` rows -> `[B]`; the mean of all prompts where a row's prompt is none of them."""
        found = []
        for row, real in zip(ids.cpu(), mask.bool().cpu()):
            row = row[real]
            ends = torch.nonzero(row == self.marker)
            key = tuple(row[: int(ends[-1]) + 1].tolist()) if len(ends) else ()
            found.append(self.table.get(key, self.mean))
        return torch.tensor(found, device=ids.device)


class _WholeRow(nn.Module):
    """A backbone whose hidden state at every position is the row's reward."""

    def __init__(self, reward: nn.Module, shaping: Shaping, baseline: HumanBaseline | None):
        super().__init__()
        self.reward, self.shaping, self.baseline = reward, shaping, baseline
        self.seen: list[torch.Tensor] = []  # rewards before shaping, since they were last read
        self.terms: dict[str, list[torch.Tensor]] = {}

    @torch.no_grad()
    def forward(self, input_ids, attention_mask, position_ids=None, **_) -> BaseModelOutput:
        plain = self.reward(input_ids, attention_mask)
        self.seen.append(plain)
        for name, values in getattr(self.reward, "last", {}).items():
            self.terms.setdefault(name, []).append(values)
        shaped = self.shaping(plain if self.baseline is None else plain - self.baseline(input_ids, attention_mask))
        states = shaped[:, None, None].expand(-1, input_ids.shape[1], 1)
        return BaseModelOutput(last_hidden_state=states, hidden_states=(states,))


class RewardAdapter(nn.Module):
    """A reward in the form in which TRL's PPOTrainer calls its reward model.

    Args:
        reward: module of (ids, mask) -> `[B]`. config: of any model (read under DeepSpeed only). baseline: taken from
            the reward before it is shaped; what is reported is the reward itself.
    """

    base_model_prefix = "backbone"

    def __init__(
        self, reward: nn.Module, shaping: Shaping | None = None, config=None, baseline: HumanBaseline | None = None
    ):
        super().__init__()
        self.config = config
        self.backbone = _WholeRow(reward, shaping or Shaping(), baseline)
        self.eval().requires_grad_(False)

    def score(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`[B, T, 1]` -> `[B, T, 1]`: the reward is there already."""
        return hidden_states

    def train(self, mode: bool = True):
        """Never in training mode: TRL does not see to it."""
        return super().train(False)

    def drain(self) -> dict[str, torch.Tensor]:
        """Rewards before shaping since the last call, `"reward"` and by term, each `[n]`."""
        found = {name: torch.cat(values) for name, values in self.backbone.terms.items()}
        found |= {"reward": torch.cat(self.backbone.seen)} if self.backbone.seen else {}
        self.backbone.seen, self.backbone.terms = [], {}
        return found


# ---------------------------------------------------------------------------------------------------------------------
# From a recipe


def load_judge(folders, tokenizer, **options) -> BertmReward:
    """A `BertmReward` of one folder or of several, whose token tables are the policy's.

    Args:
        folders: one or a list; "BERTM_QUALITY" and the like name a bundled checkpoint. options: `mode`, `combine`,
            `machine_label`.

    Raises:
        RlmfError: nothing to load, unknown words (`rlmf.model`); another token table (`rlmf.vocabulary`).
    """
    folders = folders if isinstance(folders, (list, tuple)) else [folders]
    try:
        folders = [find_model(folder) for folder in folders]
        reward = BertmReward.from_pretrained(folders, tokenizer=tokenizer, **options)
        tables = [MortmTokenizer.from_pretrained(folder).get_vocab() for folder in folders]
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RlmfError(f"cannot load a judge from {', '.join(map(str, folders))}: {reason}", "rlmf.model") from None
    for folder, table, model in zip(folders, tables, reward.models):
        check_same_table(tokenizer, table, model.config.vocab_size, folder)
    return reward


def check_same_table(tokenizer, table: dict[str, int], size: int, name: str) -> None:
    """Ids are handed on as they are: both sides must mean the same by them.

    Raises:
        RlmfError: `rlmf.vocabulary`, naming the first difference.
    """
    ours = tokenizer.get_vocab()
    if ours != table:
        different = sorted(k for k in ours.keys() | table.keys() if ours.get(k) != table.get(k))
        first = different[0]
        raise RlmfError(
            f"{name} has another token table than the policy ({len(different)} differences; {first} is "
            f"{table.get(first)} there and {ours.get(first)} here): train both on one table",
            "rlmf.vocabulary",
        )
    if size < len(ours):
        raise RlmfError(f"{name} knows {size} ids, the tokenizer has {len(ours)}", "rlmf.vocabulary")


def build_reward(terms: Sequence[dict], tokenizer) -> MusicReward:
    """A recipe's list of terms -> the reward.

    Each term has a `kind` (a rule of `rules.RULES`, or "judge"), `weight` (default 1), `name` (default: the kind) and
    the arguments of its class. A judge has `model` (a folder, the name of a bundled checkpoint, or a list of these),
    `view` (by default "row", or "window" where its configuration names another form than tracks), and `BertmReward`'s
    `mode`, `combine` and `machine_label`.

    Raises:
        RlmfError: unknown kinds or arguments; judges that cannot be loaded or have another token table.
    """
    built = []
    for number, term in enumerate(terms):
        if not isinstance(term, dict) or "kind" not in term:
            raise RlmfError(f"term {number} of the reward has no kind: {', '.join(('judge', *RULES))}")
        options = dict(term)
        kind, weight = options.pop("kind"), float(options.pop("weight", 1.0))
        name = str(options.pop("name", kind))
        try:
            if kind == "judge":
                if "model" not in options:
                    raise RlmfError(f"term {number} of the reward (judge) names no model")
                made = _build_judge(options, tokenizer)
            elif kind in RULES:
                made = RULES[kind](**options)
            else:
                raise RlmfError(f"no reward {kind!r}; there are {', '.join(('judge', *RULES))}")
        except TypeError as error:
            raise RlmfError(f"term {number} of the reward ({kind}): {error}") from None
        built.append((name, weight, made))
    return MusicReward(tokenizer.vocabulary, built)


def _build_judge(options: dict, tokenizer) -> nn.Module:
    view = options.pop("view", None)
    reward = load_judge(options.pop("model"), tokenizer, **options)
    own = "row" if getattr(reward.config, "window_form", "tracks") == "tracks" else "window"
    return JudgeReward(reward, view or own, tokenizer.vocabulary)
