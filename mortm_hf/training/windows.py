"""Runs of models that read no tokens (V_MORTM, MORTM Live): windows in order, a log, a resumable folder.

Design decisions
- A batch is a pure function of (seed, index), as a pack is: the same Trainer, log and checkpoints serve.
- Validation is the loss's own terms on fixed batches of the validation split; the best checkpoint is kept by hand of
  the recipe's length, not selected.

Knows: the Trainer, the run log. Must not know: music, sound, recipes' sections.
"""

from __future__ import annotations

from pathlib import Path

import torch

from .pretrain import newest_checkpoint
from .runlog import RunLog
from .runs import apply_decay
from .trainer import PackTrainer


def first(items: list[dict]) -> dict:
    """An item is a batch already."""
    return items[0]


@torch.no_grad()
def mean_losses(model, dataset, names: tuple[str, ...]) -> dict[str, float]:
    """Means over the batches of `dataset` of what the model's output calls `names` (or holds in `losses`)."""
    was_training = model.training
    model.eval()
    sums = dict.fromkeys(names, 0.0)
    for index in range(len(dataset)):
        batch = {k: v.to(model.device) for k, v in dataset[index].items()}
        output = model(**batch)
        found = {**(output.get("losses") or {}), **{k: v for k, v in output.items() if k in names}}
        for name in names:
            sums[name] += float(found[name])
    model.train(was_training)
    return {name: total / max(1, len(dataset)) for name, total in sums.items()}


def run_windows(model, dataset, reader, arguments, per_step: int) -> PackTrainer:
    """Train (or resume) on the batches of `dataset`; at the end `final/` holds model and reader.

    Args:
        reader: what is saved beside the model (feature extractor or processor).
        per_step: frames or chunks of a step, for the log.
    """
    folder = Path(arguments.output_dir)
    arguments.per_device_train_batch_size = 1
    arguments.remove_unused_columns = False
    arguments.save_strategy = "no"  # by the clock: RunLog asks for checkpoints
    arguments.disable_tqdm = True
    apply_decay(arguments)
    log = RunLog(
        folder,
        lambda step: step * per_step * arguments.gradient_accumulation_steps * arguments.world_size,
        arguments.stop_at,
        arguments.max_minutes,
        arguments.save_minutes,
        arguments.router_every,
    )
    trainer = PackTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=first,
        processing_class=reader,
        callbacks=[log],
    )
    trainer.train(resume_from_checkpoint=None if arguments.fresh else newest_checkpoint(folder))
    if trainer.state.global_step >= arguments.max_steps:
        trainer.save_model(str(folder / "final"))
    elif newest_checkpoint(folder) is None:
        trainer._save_checkpoint(model, trial=None)
    return trainer
