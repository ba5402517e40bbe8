"""LoRA adapters through PEFT: on attention, dense feed-forward layers and the fused experts.

Design decisions
- Experts are 3-D parameters, no linear layers: PEFT reaches them as `target_parameters`, with an adapter for each
  expert. The router stays as it is: a few songs are no reason to send tokens elsewhere.
- No dropout: PEFT has none for parameters, and adapters of two kinds in one model would be odd.
- What leaves this package is merged; an adapter alone is a step on the way.

Knows: PEFT, the names of the model's layers, run arguments. Must not know: data, the Trainer.
"""

from __future__ import annotations

import copy
import os
import warnings
from pathlib import Path

from ..models.errors_mortm import TrainingError
from .arguments import RunArguments


CONFIGS = Path(__file__).resolve().parent / "configs"  # of launches
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


def check_adapters(arguments: RunArguments) -> None:
    """Refuse adapters on weights that are spread: they are merged at the end, by one process that has them whole.

    Args:
        arguments: of the run.

    Raises:
        TrainingError: adapters together with sharding, FSDP or DeepSpeed.
    """
    by_launcher = (f"ACCELERATE_USE_{name}" for name in ("FSDP", "DEEPSPEED"))
    spread = arguments.sharding or arguments.fsdp or arguments.deepspeed
    if arguments.lora_rank and (spread or any(os.environ.get(n, "").lower() in ("1", "true") for n in by_launcher)):
        raise TrainingError(
            "lora_rank goes with whole weights only, not with sharding, FSDP or DeepSpeed: take one process, or DDP "
            f"({CONFIGS / 'ddp.yaml'})"
        )


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
