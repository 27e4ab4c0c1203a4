"""The reference that a policy is held near to: the stage's starting model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rlkit.models.wrapped import copy_frozen, load_wrapped
from rlkit.policy.module import PolicyModel


class Reference:
    """A frozen copy of the policy; under LoRA the policy without its adapter serves, so nothing is copied.

    Args:
        model: the policy, as the stage starts.
        device: where it computes.
        offload: keep the copy in CPU memory while it does not compute.
    """

    def __init__(self, model: PolicyModel, device: Any, offload: bool) -> None:
        self.policy, self.device, self.offload = model, device, offload
        self.module: Any = None if hasattr(model.lm, "disable_adapter") else self._copy("cpu" if offload else device)

    def _copy(self, device: Any) -> Any:
        twin = PolicyModel(
            copy_frozen(self.policy.lm),
            self.policy.constraint,
            self.policy.normalization,
            self.policy.temperature,
            self.policy.forward_mode,
        )
        return twin.eval().to(device)

    @contextmanager
    def in_use(self, wrapped: Any) -> Iterator[Any]:
        """Give what to call for its log-probs.

        Args:
            wrapped: the policy inside its wrapper, for the case that it serves itself.
        """
        if self.module is None:
            with self.policy.lm.disable_adapter():
                yield wrapped
            return
        if self.offload:
            self.module.to(self.device)
        try:
            yield self.module
        finally:
            if self.offload:
                self.module.to("cpu")

    @torch.no_grad()
    def follow(self, lm: Any, mix: float) -> None:
        """Move it towards a policy: reference <- mix * policy + (1 - mix) * reference."""
        for kept, new in zip(self.module.lm.parameters(), lm.parameters()):
            kept.lerp_(new.to(kept), mix)

    def save(self, folder: Path) -> None:
        """Write its weights."""
        self.module.lm.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Read what ``save`` wrote."""
        load_wrapped(self.module, folder)
