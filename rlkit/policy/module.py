"""The trained module of every online algorithm: log-probs, entropies and, with a value head, values in one forward."""

from __future__ import annotations

from typing import Any

from torch import nn

from rlkit.models.constraint import Constraint
from rlkit.models.wrapped import WrappedModel
from rlkit.policy.group_batch import GroupBatch
from rlkit.policy.grouped_forward import Mode, PolicyOutput, policy_forward


class PolicyModel(WrappedModel):
    """A language model that scores given completions.

    Args:
        lm: the language model.
        constraint: the tree that completions follow, or None.
        normalization: ``children`` or ``vocabulary``.
        temperature: of the rollouts.
        forward_mode: auto, grouped or dense.
    """

    def __init__(
        self, lm: Any, constraint: Constraint | None, normalization: Any, temperature: float, forward_mode: Mode
    ) -> None:
        super().__init__(lm)
        self.constraint, self.temperature, self.forward_mode = constraint, temperature, forward_mode
        self.normalization: Any = normalization if constraint is not None else "vocabulary"
        without_dropout(self)

    def forward(self, batch: GroupBatch, with_entropy: bool = True) -> PolicyOutput:
        """Return log-probs (B, G, C) and what else is asked for."""
        return policy_forward(
            self.lm,
            batch,
            constraint=self.constraint,
            normalization=self.normalization,
            temperature=self.temperature,
            with_entropy=with_entropy,
            mode=self.forward_mode,
        )


def without_dropout(model: nn.Module) -> None:
    """Switch dropout off for good: in policy training it makes ratios noise (.38 with LoRA dropout of .1)."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010  (a plain float, which torch does not know of)
