"""Further terms of a reward model's loss."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from rlkit.config.reward_models import RewardNormSettings

LossTerm = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``term(chosen, rejected, margin) -> ()``, a mean over the pairs: rewards (B,) of better and of worse completions,
which carry gradients, and margins (B,) of the data, 0 where there are none."""


def reward_norm(settings: RewardNormSettings) -> LossTerm:
    """Build the term that pulls every reward towards zero."""

    def term(chosen: Tensor, rejected: Tensor, margin: Tensor) -> Tensor:
        return settings.weight * (chosen.square() + rejected.square()).mean() / 2

    return term
