"""The Trainer of this package: packs in order, an exact balancing loss, bits a note for validation.

Design decisions
- The stream of packs is sequential and index-addressed, so skipping to a step costs nothing and resuming is exact.
- transformers adds the router's balancing loss once per micro-batch and process, unscaled: with gradient accumulation
  or several processes it would weigh as many times more. Here it is the mean, whatever the batch is made of.
- Balancing by bias is settled at the end of each step, not in the next forward pass, so that a checkpoint holds all of
  its state.
- transformers' printing of dictionaries is replaced by the progress of `runlog`.

Knows: transformers' Trainer, the routers' modules by name. Must not know: music, MIDI, recipes.
"""

from __future__ import annotations

import os

import torch
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map_only
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from ..models.errors_mortm import TrainingError
from .publish import SafePush
from .runlog import RunLog
from .validation import BitsPerNote, MeanLosses


class SettleBias(TrainerCallback):
    """Moves the routers' bias when a step is done (see `MortmTopKRouter.update_bias`)."""

    def __init__(self, model):
        self.routers = [module for module in model.modules() if getattr(module, "has_bias", False) is True]
        self.routers = [module for module in self.routers if hasattr(module, "update_bias")]

    def on_step_end(self, args, state, control, **kwargs):
        for router in self.routers:
            router.update_bias()


def _like(local: torch.Tensor, parameter: DTensor) -> DTensor:
    """A process's part of a tensor that lies as `parameter` does."""
    return DTensor.from_local(
        local.to(parameter.to_local().device),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


class PackTrainer(SafePush, Trainer):
    """`Trainer` that reads packs in order (`PackDataset` decides what a position means).

    Args:
        validation: what `evaluate()` measures; None for a trainer that is never asked to.

    Attributes:
        run_log: the log of the run that it carries out (`run.new_trainer`).
    """

    run_log: RunLog | None = None

    def __init__(self, *args, validation: BitsPerNote | MeanLosses | None = None, **kwargs):
        model = kwargs.get("model", args[0] if args else None)
        self._use_cache = getattr(getattr(model, "config", None), "use_cache", None)
        super().__init__(*args, **kwargs)
        self.validation = validation
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        settle = SettleBias(self.model)
        if settle.routers:
            self.add_callback(settle)
        self._balance = None
        self._balanced = 0

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def _issue_warnings_after_load(self, load_result) -> None:
        """As transformers', but tied weights are stored once and are not missing."""
        missing = set(load_result.missing_keys) - set(getattr(self.model, "all_tied_weights_keys", None) or ())
        if missing or load_result.unexpected_keys:
            super()._issue_warnings_after_load(load_result)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """As transformers', with the balancing loss averaged over micro-batches and processes."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        balance = getattr(outputs, "aux_loss", None)
        if balance is not None and model.training:
            balance = balance.to(loss.device)
            self._balance = balance.detach() + (0.0 if self._balance is None else self._balance)
            self._balanced += 1
            if num_items_in_batch is not None:
                # it stands in `loss` with the factor of the summed tokens; only 1 / accumulation is its due
                scale = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
                parts = getattr(self, "current_gradient_accumulation_steps", self.args.gradient_accumulation_steps)
                surplus = scale - 1 / parts
                if surplus:
                    loss = loss - surplus * self.model.config.router_aux_loss_coef * balance
        return (loss, outputs) if return_outputs else loss

    def log(self, logs, *args, **kwargs):
        """As transformers', with the balancing loss and the speed beside the loss."""
        if "loss" in logs:
            if self._balanced:
                logs["aux_loss"] = round(float(self._balance) / self._balanced, 4)
                self._balance, self._balanced = None, 0
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, RunLog):
                    speed = callback.speed(self.state.global_step)
                    if speed is not None:
                        logs["tokens_per_second"] = speed
                    if callback.load:  # for the curves: 1 is even
                        shares = [share * len(layer) for layer in callback.load for share in layer]
                        logs |= {"expert_share_least": min(shares), "expert_share_most": max(shares)}
        super().log(logs, *args, **kwargs)

    def _save(self, *args, **kwargs):
        """As transformers', with the configuration's own `use_cache`: the Trainer turns it off while it trains."""
        config = self.model.config
        while_training = getattr(config, "use_cache", None)
        if self._use_cache is not None:
            config.use_cache = self._use_cache
        try:
            super()._save(*args, **kwargs)
        finally:
            if self._use_cache is not None:
                config.use_cache = while_training

    @property
    def _spread(self) -> bool:
        """Whether transformers spread the weights when it loaded the model."""
        return getattr(self, "is_distributed_loading_by_transformers", False)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """As transformers', but for a model that was spread when it was loaded: it was loaded from the checkpoint."""
        if not self._spread:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _shards_file(self, folder: str) -> str:
        rank, ranks = self.args.process_index, self.args.world_size
        return os.path.join(folder, f"optimizer-{rank}-of-{ranks}.pt")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As transformers', which keeps one process's part of a spread optimizer: here every process keeps its own."""
        if not self._spread:
            return super()._save_optimizer_and_scheduler(output_dir)
        os.makedirs(output_dir, exist_ok=True)
        torch.save(
            tree_map_only(DTensor, lambda t: t.to_local(), self.optimizer.state_dict()), self._shards_file(output_dir)
        )
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, "scheduler.pt"))
        torch.distributed.barrier()  # the checkpoint is whole when the first process writes the Trainer's state

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The counterpart.

        Raises:
            TrainingError: the checkpoint is of another number of processes.
        """
        if checkpoint is None or not self._spread:
            return super()._load_optimizer_and_scheduler(checkpoint)
        path = self._shards_file(checkpoint)
        if not os.path.isfile(path):
            raise TrainingError(
                f"{checkpoint} was not written by {self.args.world_size} processes with sharding: go on with as many "
                "as before"
            )
        content = torch.load(path, map_location="cpu", weights_only=True)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for index, state in content["state"].items():
            parameter = parameters[index]
            if isinstance(parameter, DTensor):
                content["state"][index] = {
                    name: _like(value, parameter) if torch.is_tensor(value) and value.dim() else value
                    for name, value in state.items()
                }
        self.optimizer.load_state_dict(content)
        scheduler = torch.load(os.path.join(checkpoint, "scheduler.pt"), map_location="cpu", weights_only=True)
        self.lr_scheduler.load_state_dict(scheduler)

    @property
    def is_sharded(self) -> bool:
        """Whether the weights are spread over the processes (FSDP, ZeRO-3, expert parallelism)."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled or self._spread)

    def save_result(self, folder: str) -> None:
        """Save what the run is for (called in every process).

        Args:
            folder: to write.
        """
        self.save_model(folder, _internal_call=True)

    def evaluate(self, *args, metric_key_prefix: str = "eval", **kwargs) -> dict[str, float]:
        """The figures of the validation; logged, and handed to the callbacks.

        Raises:
            ValueError: the trainer was made without validation.
        """
        if self.validation is None:
            raise ValueError("this run has no validation windows: name a csv in eval_windows")
        if self.is_sharded:
            figures = self.validation.measure(self.model_wrapped)
        else:
            figures = self.validation.measure(self.model, self.args.process_index, self.args.world_size)
        self.log(dict(figures))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        return figures
