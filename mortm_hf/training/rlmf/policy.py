"""The policy (MORTM with the grammar inside its `forward`), the critic, and the folders both are kept in.

Design decisions
- `MortmPolicy` is MORTM: the same weights, the same folder on disk. It adds masks to its logits, filled with -1e4
  (with -inf TRL's entropy is NaN). While sampling, the state of the grammar lives on the KV cache it belongs to, and
  the mask reaches `forward` through `prepare_inputs_for_generation`; while learning, `forward` sees whole sequences.
- Policy and critic stay in eval mode while they learn: dropout and moving router biases would make the policy that
  samples another one than the policy that learns. Gradients do not depend on it.
- The critic starts from the policy's layers with a score of zero; it may take the lower layers only, which saves a
  fifth of an update and more.
- Saving hides the subclasses: a saved policy is a plain MORTM folder, with the critic in `value/` beside it, so that a
  run can be taken up again from the pair.

Knows: MORTM's classes, the masks. Must not know: TRL, rewards, MIDI.
"""

from __future__ import annotations

import contextlib
import copy
import time
from pathlib import Path

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ...models.errors_mortm import RlmfError
from ...models.modeling_mortm import MortmForCausalLM, MortmForSequenceClassification
from .grammar_masks import GrammarMasks


ILLEGAL = -1e4  # logit of a token that the grammar forbids
VALUE_FOLDER = "value"
_NO_DROPOUT = {"hidden_dropout": 0.0, "activation_dropout": 0.0, "attention_dropout": 0.0, "classifier_dropout": 0.0}


class _LearnsInEval:
    """All its parts are in eval mode always (but for the layers' own checkpointing); saved as the plain class."""

    plain_class: type
    autocast: torch.dtype | None = None  # precision of `forward`, alike in sampling and learning

    def train(self, mode: bool = True):
        super().train(False)
        self.training = mode  # TRL's group trainers ask it whether this is training; nothing below it does
        if mode and any(getattr(m, "gradient_checkpointing", False) for m in self.modules()):
            for module in self.modules():  # a layer recomputes in training mode only; without dropout it is the same
                if isinstance(module, GradientCheckpointingLayer):
                    module.training = True
        return self

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        # transformers looks for the experts' decorator in the file of the class
        return True

    def precision(self):
        """The context its forward passes run in."""
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)

    def save_pretrained(self, *args, **kwargs):
        """As transformers', under the name of the plain class."""
        plain = copy.copy(self)
        plain.__class__ = self.plain_class
        return plain.save_pretrained(*args, **kwargs)


class MortmPolicy(_LearnsInEval, MortmForCausalLM):
    """MORTM that gives illegal tokens no probability. `set_grammar` first; without it, it is MORTM."""

    plain_class = MortmForCausalLM
    grammar: GrammarMasks | None = None

    def set_grammar(self, tokenizer, budget: int | None = None) -> None:
        """Mask with the grammar of a tokenizer; `budget`: most tokens of an answer (see `GrammarMasks`)."""
        self.grammar = GrammarMasks(tokenizer, self.config.vocab_size, budget)
        self.sampling_seconds = 0.0

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        logits_to_keep: int | torch.Tensor = 0,
        grammar_mask: torch.BoolTensor | None = None,
        **kwargs,
    ):
        """As MORTM's, with the logits of illegal tokens at -1e4.

        Args:
            grammar_mask: `[B, V]` what may follow the last token (`generate()` passes it). Without it `input_ids` must
                be whole sequences: no cached past.
        """
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        with self.precision():
            output = super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                logits_to_keep=1 if grammar_mask is not None else logits_to_keep,
                **kwargs,
            )
        if self.grammar is None:
            return output
        if grammar_mask is not None:
            legal = grammar_mask[:, None]
        elif past or input_ids is None:
            raise RlmfError(
                "a masked policy reads whole sequences of ids, or is called by generate(): there is no mask for the "
                "continuation of a cache",
                "rlmf.model",
            )
        else:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            legal = self.grammar.sequence(input_ids, attention_mask)[:, keep]
        output.logits = output.logits.float().masked_fill(~legal, ILLEGAL)
        return output

    def prepare_inputs_for_generation(self, input_ids, *args, past_key_values=None, **kwargs):
        """As transformers', with the mask of the next token. The grammar's states live on the cache."""
        inputs = super().prepare_inputs_for_generation(input_ids, *args, past_key_values=past_key_values, **kwargs)
        if self.grammar is None:
            return inputs
        cache = inputs.get("past_key_values")
        if cache is not None and cache.get_seq_length() and inputs["input_ids"].shape[1] != 1:
            raise RlmfError("a masked policy takes one token at a time: no assisted decoding", "rlmf.model")
        steps = getattr(cache, "grammar", None)
        if steps is None:
            steps = self.grammar.stepwise()
            if cache is not None:
                cache.grammar = steps
        inputs["grammar_mask"] = torch.from_numpy(steps.allowed(input_ids, self.grammar.size)).to(input_ids.device)
        return inputs

    @torch.no_grad()
    def generate(self, *args, **kwargs):
        """As transformers'; the time it takes is added to `sampling_seconds`."""
        began = time.perf_counter()
        try:
            return super().generate(*args, **kwargs)
        finally:
            self.sampling_seconds = getattr(self, "sampling_seconds", 0.0) + time.perf_counter() - began


class MortmCritic(_LearnsInEval, MortmForSequenceClassification):
    """MORTM with one value for every position."""

    plain_class = MortmForSequenceClassification


def load_policy(folder: str | Path, experts: str | None = None, attention: str | None = None) -> MortmPolicy:
    """A policy from a MORTM folder or repository: fp32, without dropout, not masked yet.

    Raises:
        RlmfError: no causal MORTM there (`rlmf.model`).
    """
    policy = _load(MortmPolicy, folder, attention)
    if experts:
        policy.set_experts_implementation(experts)
    # What is merged into a rollout's settings must not change the distribution (TRL measures it from raw logits).
    settings = policy.generation_config
    for name in ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "repetition_penalty", "min_p"):
        if getattr(settings, name, None) not in (None, 1.0):
            raise RlmfError(f"{folder}: generation_config.{name} would be sampled with but not learnt: remove it")
    settings.pad_token_id = policy.config.pad_token_id
    settings.use_cache = True
    return policy


def _load(kind, folder, attention):
    options = dict(_NO_DROPOUT, dtype=torch.float32)
    if attention:
        options["attn_implementation"] = attention
    try:
        model = kind.from_pretrained(folder, **options)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RlmfError(f"cannot load a model from {folder}: {reason}", "rlmf.model") from None
    if not model.config.is_causal:
        raise RlmfError(f"{folder} reads in both directions: a policy or a critic is causal", "rlmf.model")
    return model.train()


def freeze(model: nn.Module) -> nn.Module:
    """No gradients from here on."""
    return model.eval().requires_grad_(False)


def make_critic(policy: MortmPolicy, hidden: int | None = None, layers: int = 0) -> MortmCritic:
    """A critic with the policy's layers and a score of zero everywhere.

    Args:
        hidden: width of a hidden layer in its head; None: one matrix.
        layers: take this many of the lowest layers; 0: all.
    """
    config = copy.deepcopy(policy.config)
    if layers:
        if not 0 < layers <= config.num_hidden_layers:
            raise RlmfError(f"critic_layers is {layers}, but the policy has {config.num_hidden_layers} layers")
        config.num_hidden_layers, config.mlp_layer_types = layers, config.mlp_layer_types[:layers]
    config.num_labels, config.classifier_hidden_size = 1, hidden
    config.architectures = None
    critic = MortmCritic(config)
    kept = critic.model.state_dict().keys()
    critic.model.load_state_dict({k: v for k, v in policy.model.state_dict().items() if k in kept})
    last = critic.score if isinstance(critic.score, nn.Linear) else critic.score.out_proj
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    if policy.config._experts_implementation:
        critic.set_experts_implementation(policy.config._experts_implementation)
    return critic.train()


def load_critic(folder: str | Path, experts: str | None = None, attention: str | None = None) -> MortmCritic:
    """The critic of a saved pair: of `folder/value`."""
    place = Path(folder) / VALUE_FOLDER
    if not place.is_dir():
        raise RlmfError(f"{folder} holds no critic (no folder {VALUE_FOLDER}): it is no saved pair", "rlmf.model")
    critic = _load(MortmCritic, place, attention)
    if experts:
        critic.set_experts_implementation(experts)
    return critic


def save_pair(policy, critic: MortmCritic, tokenizer, folder: str | Path) -> None:
    """Write policy (a model, or PEFT's wrapper: its adapter), tokenizer and, in `value/`, the critic."""
    folder = Path(folder)
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    critic.save_pretrained(folder / VALUE_FOLDER)
