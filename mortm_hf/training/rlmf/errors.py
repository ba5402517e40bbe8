"""Old place of `RlmfError` and `require_trl`.

Knows: where they are. Must not know: anything else.
"""

from ...models.errors_mortm import RlmfError
from .trl_release import TRL_VERSION, require_trl


__all__ = ["TRL_VERSION", "RlmfError", "require_trl"]
