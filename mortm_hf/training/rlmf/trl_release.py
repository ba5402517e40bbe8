"""The one release of TRL that a run needs.

Design decisions
- TRL 1.12.0 is the last release with `PPOTrainer`, and it lives among the experimental trainers, whose interface is
  promised to nobody. So exactly that release is accepted: another one fails here, in one line, not after a rollout.
- TRL is looked up, not imported, until it is needed: importing it costs some ten seconds.

Knows: package metadata, the errors. Must not know: trainers, models, music.
"""

from __future__ import annotations

import importlib.metadata
import os

from ...models.errors_mortm import RlmfError


TRL_VERSION = "1.12.0"


def require_trl() -> None:
    """Make sure that TRL 1.12.0 is installed, and silence its remark that PPO is experimental.

    Raises:
        RlmfError: it is missing, or another release (`rlmf.trl`).
    """
    remedy = f"pip install 'trl=={TRL_VERSION}' (or 'mortm_hf[rlmf]')"
    try:
        found = importlib.metadata.version("trl")
    except importlib.metadata.PackageNotFoundError:
        raise RlmfError(f"reinforcement learning needs TRL {TRL_VERSION}: {remedy}", "rlmf.trl") from None
    if found != TRL_VERSION:
        raise RlmfError(
            f"TRL {found} is installed, but PPOTrainer is used as release {TRL_VERSION} has it, the last one with it: "
            + remedy,
            "rlmf.trl",
        )
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
