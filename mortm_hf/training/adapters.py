"""LoRA adapters through PEFT: on attention, dense feed-forward layers and the fused experts.

Design decisions
- Experts are 3-D parameters, no linear layers: PEFT reaches them as `target_parameters`, with an adapter for each
  expert. The router stays as it is: a few songs are no reason to send tokens elsewhere.
- No dropout: PEFT has none for parameters, and adapters of two kinds in one model would be odd.
- What leaves this package is merged; an adapter alone is a step on the way.

Knows: PEFT, the names of the model's layers. Must not know: data, the Trainer.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

from ..models.errors_mortm import TrainingError


LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")


def add_lora(model, rank: int, alpha: float):
    """The model with LoRA adapters of `rank` on every projection (scale `alpha / rank`); all else is frozen.

    Raises:
        TrainingError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise TrainingError('LoRA needs PEFT: pip install "mortm_hf[train]"', "training.missing") from None
    linear = [name for name in LINEAR if any(n.endswith(f".{name}") for n, _ in model.named_modules())]
    experts = [name for name in EXPERTS if any(n.endswith(name) for n, _ in model.named_parameters())]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=linear,
        target_parameters=experts or None,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():  # PEFT asks for an attribute by the name that transformers has just retired
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, config)


def is_adapted(model) -> bool:
    """Whether a model carries adapters."""
    return hasattr(model, "peft_config") and hasattr(model, "merge_and_unload")


def load_adapter(model, folder: str | Path) -> None:
    """Put the saved adapter of `folder` in place of the one in the model."""
    from peft import load_peft_weights, set_peft_model_state_dict

    set_peft_model_state_dict(model, load_peft_weights(str(folder)))


def merged(model):
    """A plain model with the adapters added to its weights; the one given stays as it is."""
    return copy.deepcopy(model).merge_and_unload()
