"""How evenly the experts are used: measured shares, and an alarm for experts that nobody chooses.

Design decisions
- Choices are counted by forward hooks on the routers during one training step in many, so that measuring costs nothing
  in the others; counts are summed over all processes.
- An expert is called dead when its share stays under a fraction of the even share for several measurements on end: one
  low figure is noise. The alarm is raised once, and again only after the expert has come back.

Knows: the routers' output (their only integer tensor is the choice). Must not know: logs, the Trainer.
"""

from __future__ import annotations

import torch


def in_a_group() -> bool:
    """Whether there are other processes to talk to."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def summed(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all processes (the tensor itself where there is one)."""
    if in_a_group():
        device = tensor.device
        if torch.distributed.get_backend() == "nccl":
            tensor = tensor.cuda()
        torch.distributed.all_reduce(tensor)
        tensor = tensor.to(device)
    return tensor


class RouterStatistics:
    """Share of the chosen experts over one training step, by forward hooks on the routers.

    Args:
        model: whose routers are watched.
    """

    def __init__(self, model: torch.nn.Module):
        self.routers = [(n, m) for n, m in model.named_modules() if type(m).__name__.endswith("Router")]
        self._handles: list = []
        self._counts: dict[str, torch.Tensor] = {}

    def start(self) -> None:
        """Watch the next forward passes."""
        self._counts = {}
        for name, module in self.routers:
            self._handles.append(module.register_forward_hook(self._hook(name, module)))

    def _hook(self, name, module):
        def count(_, __, output):
            chosen = next(t for t in output if not t.is_floating_point())
            experts = getattr(module, "num_experts", None) or output[0].shape[-1]
            load = torch.bincount(chosen.reshape(-1), minlength=experts).float()
            self._counts[name] = self._counts.get(name, 0) + load

        return count

    def stop(self) -> list[list[float]]:
        """`[layers][experts]` share of the chosen slots of all processes; the hooks are removed."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if not self._counts:
            return []
        loads = [summed(load) for load in self._counts.values()]
        return [[round(float(x), 4) for x in load / load.sum()] for load in loads]


class ExpertAlarm:
    """Finds experts that stay unused.

    Args:
        share: fraction of the even share (1 / experts) under which an expert counts as unused.
        patience: measurements on end after which it is called dead.
    """

    def __init__(self, share: float = 0.05, patience: int = 5):
        self.share, self.patience = share, patience
        self._unused: dict[tuple[int, int], int] = {}

    def feed(self, load: list[list[float]]) -> list[tuple[int, int, float]]:
        """One measurement `[layers][experts]` -> `(layer, expert, share)` of those that have just become dead."""
        dead = []
        for layer, shares in enumerate(load):
            low = self.share / max(len(shares), 1)
            for expert, share in enumerate(shares):
                if share >= low:
                    self._unused.pop((layer, expert), None)
                    continue
                count = self._unused[layer, expert] = self._unused.get((layer, expert), 0) + 1
                if count == self.patience:
                    dead.append((layer, expert, share))
        return dead
