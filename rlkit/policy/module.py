"""The trained module of every online algorithm: log-probs, entropies and, with a value head, values in one forward."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rlkit.models.constraint import Constraint
from rlkit.models.wrapped import WrappedModel
from rlkit.policy.group_batch import GroupBatch
from rlkit.policy.grouped_forward import Mode, PolicyOutput, policy_forward
from rlkit.policy.value import ValueHead, ValueModel


class PolicyModel(WrappedModel):
    """A language model that scores given completions.

    Args:
        lm: the language model.
        constraint: the tree that completions follow, or None.
        normalization: ``children`` or ``vocabulary``.
        temperature: of the rollouts.
        forward_mode: auto, grouped or dense.
        value: what values states, trained beside the policy; or None.
        entropy_gradient: whether entropies are part of the loss, and not of the log alone.
    """

    def __init__(
        self,
        lm: Any,
        constraint: Constraint | None,
        normalization: Any,
        temperature: float,
        forward_mode: Mode,
        value: ValueHead | ValueModel | None = None,
        entropy_gradient: bool = True,
    ) -> None:
        super().__init__(lm)
        self.constraint, self.temperature, self.forward_mode = constraint, temperature, forward_mode
        self.normalization: Any = normalization if constraint is not None else "vocabulary"
        self.value, self.entropy_gradient = value, entropy_gradient
        without_dropout(self)

    def forward(self, batch: GroupBatch, with_entropy: bool = True, with_distributions: bool = False) -> PolicyOutput:
        """Return log-probs (B, G, C) and what else is asked for; values always, where there is something to value."""
        output = policy_forward(
            self.lm,
            batch,
            constraint=self.constraint,
            normalization=self.normalization,
            temperature=self.temperature,
            with_entropy=with_entropy,
            entropy_gradient=self.entropy_gradient,
            with_hidden=isinstance(self.value, ValueHead),
            with_distributions=with_distributions,
            mode=self.forward_mode,
        )
        if isinstance(self.value, ValueHead):
            return output._replace(values=self.value(output.hidden), hidden=None)
        if isinstance(self.value, ValueModel):
            return output._replace(values=self.value(batch, self.forward_mode))
        return output

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Pass on to the language model, and to the value model."""
        super().gradient_checkpointing_enable(gradient_checkpointing_kwargs)
        if isinstance(self.value, ValueModel):
            self.value.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs)

    def save_beside(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write the value head, or the value model in a folder of its own."""
        if isinstance(self.value, ValueModel):
            start = "value.model."
            self.value.save(
                folder, {name[len(start) :]: value for name, value in state.items() if name.startswith(start)}
            )
        else:
            super().save_beside(folder, state)


def without_dropout(model: nn.Module) -> None:
    """Switch dropout off for good: in policy training it makes ratios noise (.38 with LoRA dropout of .1)."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010  (a plain float, which torch does not know of)
