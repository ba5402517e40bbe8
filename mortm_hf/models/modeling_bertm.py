"""BERTM: MORTM's layers, attending in both directions, with heads for masked tokens, pieces and single tokens.

Design decisions
- Only the differences from MORTM are here: layers, attention, experts and masks are its own.
- A score belongs to a piece alone: padding is what `attention_mask` says (never an id), positions are counted from the
  first real token, and pooling runs over real tokens. So neither the side of the padding nor other rows matter.
- Pieces packed into one row (`position_ids` that restart, no attention mask) do not see each other, and the
  sequence classifier gives one score for each of them.
- The classifier is three steps that others may take one by one (`model`, `pool`, `score`): a reward adapter needs
  exactly these.

Knows: tensors. Must not know: which token means what, MIDI, which label stands for what.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.masking_utils import find_packed_sequence_indices
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_bertm import BertmConfig
from .modeling_mortm import MortmModel, MortmPreTrainedModel, MortmScoreHead


def unpack_pieces(hidden_states: torch.Tensor, pieces: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The pieces of packed rows, one a row.

    Args:
        hidden_states: [batch, length, hidden].
        pieces: [batch, length] numbers of the pieces of each row (`find_packed_sequence_indices`).

    Returns:
        States [pieces, longest, hidden] and mask [pieces, longest], row by row.
    """
    starts = torch.ones_like(pieces, dtype=torch.bool)
    starts[:, 1:] = pieces.diff(dim=-1) != 0
    counts = torch.bincount(starts.reshape(-1).cumsum(0) - 1)
    states = hidden_states.reshape(-1, hidden_states.shape[-1]).split(counts.tolist())
    states = nn.utils.rnn.pad_sequence(states, batch_first=True)
    return states, torch.arange(states.shape[1], device=counts.device) < counts[:, None]


class BertmPooling(nn.Module):
    """One vector for a piece: a weighted sum of the states of its real tokens."""

    def __init__(self, config: BertmConfig):
        super().__init__()
        self.scorer = nn.Linear(config.hidden_size, 1) if config.classifier_pooling == "attention" else None

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """States [batch, length, hidden], mask [batch, length] (1 = real; None: all are) -> [batch, hidden]."""
        if self.scorer is None:
            scores = hidden_states.new_zeros(hidden_states.shape[:-1], dtype=torch.float32)
        else:
            scores = self.scorer(hidden_states).squeeze(-1).float()
        if attention_mask is not None:
            if attention_mask.dim() != 2:
                raise ValueError(
                    f"pooling needs an attention mask [batch, length], got {list(attention_mask.shape)}: which "
                    "tokens are real cannot be read from a mask of pairs."
                )
            # the smallest number instead of -inf: a row without any real token must not be NaN
            scores = scores.masked_fill(attention_mask == 0, torch.finfo(torch.float32).min)
        weights = scores.softmax(-1).to(hidden_states.dtype)
        return (weights[:, None] @ hidden_states).squeeze(1)


class BertmPreTrainedModel(MortmPreTrainedModel):
    """What all BERTM models share."""

    config_class = BertmConfig
    config: BertmConfig


class BertmModel(BertmPreTrainedModel, MortmModel):
    """The layers without a head."""

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MoeModelOutputWithPast:
        """Token ids [batch, length] (or embeddings) -> states [batch, length, hidden_size].

        `attention_mask` [batch, length] is 1 for real tokens; None means that all are. Without it, `position_ids` that
        restart at 0 separate pieces in one row: none sees another.
        """
        if input_ids is not None and position_ids is None:  # packed pieces have no mask
            self.warn_if_padding_and_no_attention_mask(input_ids, attention_mask)
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            mask = (attention_mask != 0).long()
            position_ids = mask.cumsum(-1) - mask
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )


class BertmHead(BertmPreTrainedModel):
    """BERTM with a head: a subclass makes logits of the states, and a loss of the logits."""

    def __init__(self, config: BertmConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = BertmModel(config)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_router_logits: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MoeCausalLMOutputWithPast:
        """Logits as the class says, and the loss if `labels` are given.

        In training the load-balancing loss is part of the loss where the configuration says so, as in MORTM.
        """
        shown, counted = self._routing(output_router_logits, labels)
        outputs: MoeModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_router_logits=counted,
            **kwargs,
        )
        logits = self._logits(outputs.last_hidden_state, attention_mask, position_ids)
        loss = None if labels is None else self._loss(logits, labels, **kwargs)
        return self._output(loss, logits, outputs, attention_mask, shown, counted)

    def _logits(self, states, attention_mask, position_ids) -> torch.Tensor:
        return self.score(F.dropout(states, self.config.classifier_dropout, self.training))

    def _loss(self, logits, labels, **kwargs) -> torch.Tensor:
        return self.loss_function(logits, labels, self.config)


class BertmForMaskedLM(BertmHead):
    """BERTM with an output layer over the vocabulary, for masked tokens: logits [batch, length, vocab_size].

    `labels` [batch, length] hold the original ids of masked places and -100 elsewhere.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: BertmConfig):
        super().__init__(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        self.post_init()

    def _logits(self, states, attention_mask, position_ids) -> torch.Tensor:
        return self.lm_head(states)

    def _loss(self, logits, labels, **kwargs) -> torch.Tensor:
        return self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)


class BertmForSequenceClassification(BertmHead):
    """BERTM with `num_labels` scores of a whole piece: a classifier, or a reward with `num_labels=1`.

    Logits are [pieces, num_labels]; pieces are the rows, or the pieces of packed rows one after the other.
    `config.problem_type` names the loss: "regression" (squared error; the default of one label),
    "single_label_classification" (`labels` [pieces], whole numbers) or "multi_label_classification" (binary
    cross-entropy, `labels` [pieces, num_labels] of 0 to 1; with one label [pieces] will do: this trains the logit of a
    probability).

    The steps are `model` (states), `pool` (one vector of a piece) and `score` (vector -> logits). PEFT trains and
    saves a module called `score` by itself, but `pool` only where named: `modules_to_save=["pool", "score"]`.
    """

    def __init__(self, config: BertmConfig):
        super().__init__(config)
        self.pool = BertmPooling(config)
        self.score = MortmScoreHead(config)
        self.post_init()

    def _logits(self, states, attention_mask, position_ids) -> torch.Tensor:
        if attention_mask is None and position_ids is not None:
            pieces = find_packed_sequence_indices(position_ids.expand(states.shape[0], -1))
            if pieces is not None:
                states, attention_mask = unpack_pieces(states, pieces)
        return self.score(self.pool(states, attention_mask))

    def _loss(self, logits, labels, **kwargs) -> torch.Tensor:
        labels = labels.to(logits.device)
        kind = self.config.problem_type or ("regression" if self.num_labels == 1 else None)
        if kind in ("regression", "multi_label_classification"):
            labels = labels.to(logits.dtype).view_as(logits)
        return self.loss_function(labels=labels, pooled_logits=logits, config=self.config)


class BertmForTokenClassification(BertmHead):
    """BERTM with `num_labels` scores of every token: logits [batch, length, num_labels].

    `labels` [batch, length] hold -100 where none counts.
    """

    def __init__(self, config: BertmConfig):
        super().__init__(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()
