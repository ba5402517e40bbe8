"""Where the weights of a run come from: fresh or loaded, and how they are computed.

Knows: models' loading, run arguments. Must not know: data, the Trainer.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from ..models.errors_mortm import TrainingError
from ..models.experts_mortm import PADDED_MM
from ..models.tokenization_mortm import MortmTokenizer
from . import attention
from .adapters import CONFIGS
from .arguments import RunArguments
from .library_calls import refused_as
from .runlog import is_first_process


def prepare_weights(arguments: RunArguments) -> None:
    """Seeds torch for fresh weights and registers the attention that the arguments name.

    Args:
        arguments: of the run.
    """
    transformers.set_seed(arguments.seed)
    if arguments.attention == attention.NAME:
        attention.register()


def load_weights(kind, source: str, **options):
    """`kind.from_pretrained(source)`, a model in fp32.

    Args:
        kind: class with `from_pretrained` (a model or a tokenizer).
        source: folder or repository.
        options: further keyword arguments.

    Raises:
        TrainingError: it cannot be loaded.
    """
    with refused_as(f"cannot load a model from {source}"):
        return kind.from_pretrained(source, **options)


def load_tokenizer(arguments: RunArguments) -> MortmTokenizer:
    """The tokenizer of `init`, or the default one.

    Args:
        arguments: of the run.

    Raises:
        TrainingError: it cannot be loaded.
    """
    return load_weights(MortmTokenizer, arguments.init) if arguments.init else MortmTokenizer()


def make_model(kind, config, arguments: RunArguments, **labels):
    """The model of a run, fp32: fresh, seeded by the arguments, or the one of `init`; computed as they say.

    Args:
        kind: class of the model.
        config: its configuration; None: load `init`.
        arguments: of the run.
        labels: words of the configuration to load with.

    Raises:
        TrainingError: it cannot be loaded, or attention or experts cannot be computed so.
    """
    prepare_weights(arguments)
    attention_of = {"attn_implementation": arguments.attention or None}
    if config is None:
        model = load_weights(kind, arguments.init, dtype=torch.float32, **attention_of, **labels)
    else:
        with refused_as(f"attention {arguments.attention}"):
            model = kind._from_config(config, **attention_of)
    set_experts(model, arguments)
    return model


def spread(model, arguments: RunArguments, checkpoint: str | None):
    """The same model spread over the processes: transformers does that when it loads, so the weights go through a
    folder.

    Args:
        model: a whole one.
        arguments: of the run; `sharding` says what is spread.
        checkpoint: folder to load from instead of writing the model first.

    Raises:
        TrainingError: one process, a number of them that does not divide the experts, or an older transformers.
    """
    if arguments.sharding not in ("weights", "experts"):
        raise TrainingError(f"sharding is weights or experts, not {arguments.sharding}")
    processes, experts = arguments.world_size, arguments.sharding == "experts"
    if processes < 2:
        raise TrainingError("sharding needs several processes: start it with torchrun or accelerate launch")
    if experts and model.config.num_local_experts % processes:
        raise TrainingError(f"{processes} processes do not divide the {model.config.num_local_experts} experts evenly")
    try:
        from transformers.distributed import DistributedConfig

        layout = DistributedConfig(fsdp_size=processes, ep_size=processes if experts else None)
    except (ImportError, TypeError):
        raise TrainingError(
            f"transformers {transformers.__version__} cannot spread a model itself: use accelerate's FSDP "
            f"({CONFIGS / 'fsdp2.yaml'}) or a newer transformers"
        ) from None
    folder = checkpoint
    if folder is None:
        folder = Path(arguments.output_dir) / ".init"
        with arguments.main_process_first(desc="writing the first weights"):
            if is_first_process():
                model.save_pretrained(folder)
    found = type(model).from_pretrained(
        folder, dtype=torch.float32, attn_implementation=arguments.attention or None, distributed_config=layout
    )
    set_experts(found, arguments)
    return found


def set_experts(model, arguments: RunArguments) -> None:
    """How the experts are computed.

    `auto`, or nothing named: `padded_mm` where a CPU computes in half precision, the one place where it is the
    fastest, else what transformers takes (`grouped_mm`). So runs in fp32 and runs on a GPU are what they were.

    Args:
        model: changed in place.
        arguments: of the run.

    Raises:
        TrainingError: they cannot be computed so.
    """
    name = arguments.experts_implementation
    if name in ("", "auto"):
        half_on_cpu = arguments.device.type == "cpu" and (arguments.bf16 or arguments.fp16)
        name = PADDED_MM if half_on_cpu and not arguments.sharding else ""
    if name:
        with refused_as(f"experts_implementation {name}"):
            model.set_experts_implementation(name)
