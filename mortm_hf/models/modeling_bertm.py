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

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers.masking_utils import find_packed_sequence_indices
from transformers.modeling_outputs import ModelOutput, MoeModelOutputWithPast
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_bertm import BertmConfig
from .modeling_mortm import MortmModel, MortmPreTrainedModel, MortmScoreHead, load_balancing_loss


@dataclass
class BertmOutput(ModelOutput):
    """What the heads return.

    Args:
        loss: if labels were given.
        aux_loss: the load-balancing loss, where it was asked for or is part of `loss`.
        logits: [batch, length, vocab_size or num_labels], or [pieces, num_labels] of the sequence classifier.
        hidden_states: of each layer [batch, length, hidden_size], where they were asked for.
        attentions: weights of each layer [batch, heads, length, length], where they were asked for.
        router_logits: of each sparse layer [tokens, experts], where they were asked for.
    """

    loss: torch.FloatTensor | None = None
    aux_loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    router_logits: tuple[torch.FloatTensor, ...] | None = None


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

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        # transformers looks for the experts' decorator in this file; they are in `modeling_mortm`
        return True

    def _run(
        self, labels, attention_mask, output_router_logits, **inputs
    ) -> tuple[MoeModelOutputWithPast, torch.Tensor | None]:
        """The base model's output, and the balancing loss where it counts: in training, or where it is asked for."""
        config = self.config
        if output_router_logits is None:
            output_router_logits = config.output_router_logits
        balance = output_router_logits or (
            self.training and labels is not None and config.router_balancing == "loss" and config.router_aux_loss_coef
        )
        balance = bool(balance) and "sparse" in config.mlp_layer_types
        outputs = self.model(attention_mask=attention_mask, output_router_logits=balance, **inputs)
        aux_loss = load_balancing_loss(outputs.router_logits, config, attention_mask) if balance else None
        if not output_router_logits:
            outputs.router_logits = None
        return outputs, aux_loss

    def _output(self, loss, aux_loss, logits, outputs: MoeModelOutputWithPast) -> BertmOutput:
        if loss is not None and aux_loss is not None:
            loss = loss + self.config.router_aux_loss_coef * aux_loss.to(loss.device)
        return BertmOutput(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
        )


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


class BertmForMaskedLM(BertmPreTrainedModel):
    """BERTM with an output layer over the vocabulary, for masked tokens."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: BertmConfig):
        super().__init__(config)
        self.model = BertmModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        output_router_logits: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BertmOutput:
        """Logits [batch, length, vocab_size] of the token at each place, and the loss if `labels` are given.

        `labels` [batch, length] hold the original ids of masked places and -100 elsewhere. In training the
        load-balancing loss is part of the loss where the configuration says so, as in MORTM.
        """
        outputs, aux_loss = self._run(
            labels,
            attention_mask,
            output_router_logits,
            input_ids=input_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        logits = self.lm_head(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return self._output(loss, aux_loss, logits, outputs)


class BertmForSequenceClassification(BertmPreTrainedModel):
    """BERTM with `num_labels` scores of a whole piece: a classifier, or a reward with `num_labels=1`.

    The steps are `model` (states), `pool` (one vector of a piece) and `score` (vector -> logits). PEFT trains and
    saves a module called `score` by itself, but `pool` only where named: `modules_to_save=["pool", "score"]`.
    """

    def __init__(self, config: BertmConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = BertmModel(config)
        self.pool = BertmPooling(config)
        self.score = MortmScoreHead(config)
        self.post_init()

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
    ) -> BertmOutput:
        """Logits [pieces, num_labels], and the loss if `labels` are given.

        Pieces are the rows, or the pieces of packed rows one after the other. `config.problem_type` names the loss:
        "regression" (squared error; the default of one label), "single_label_classification" (`labels` [pieces],
        whole numbers) or "multi_label_classification" (binary cross-entropy, `labels` [pieces, num_labels] of 0 to 1;
        with one label [pieces] will do: this trains the logit of a probability).
        """
        outputs, aux_loss = self._run(
            labels,
            attention_mask,
            output_router_logits,
            input_ids=input_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        states, mask = outputs.last_hidden_state, attention_mask
        if mask is None and position_ids is not None:
            pieces = find_packed_sequence_indices(position_ids.expand(states.shape[0], -1))
            if pieces is not None:
                states, mask = unpack_pieces(states, pieces)
        logits = self.score(self.pool(states, mask))
        loss = None
        if labels is not None:
            labels = labels.to(logits.device)
            kind = self.config.problem_type or ("regression" if self.num_labels == 1 else None)
            if kind in ("regression", "multi_label_classification"):
                labels = labels.to(logits.dtype).view_as(logits)
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return self._output(loss, aux_loss, logits, outputs)


class BertmForTokenClassification(BertmPreTrainedModel):
    """BERTM with `num_labels` scores of every token."""

    def __init__(self, config: BertmConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = BertmModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        output_router_logits: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BertmOutput:
        """Logits [batch, length, num_labels], and the loss if `labels` [batch, length] (-100: not counted)."""
        outputs, aux_loss = self._run(
            labels,
            attention_mask,
            output_router_logits,
            input_ids=input_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        states = F.dropout(outputs.last_hidden_state, self.config.classifier_dropout, self.training)
        logits = self.score(states)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config)
        return self._output(loss, aux_loss, logits, outputs)


__all__ = [
    "BertmForMaskedLM",
    "BertmForSequenceClassification",
    "BertmForTokenClassification",
    "BertmModel",
    "BertmPreTrainedModel",
]
