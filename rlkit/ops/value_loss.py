"""The loss of a value head, and how much of the returns it explains.

PPO's clipped value loss, as in OpenAI's code of Schulman et al. 2017 (arXiv 1707.06347) and in TRL: half of the larger
squared error, of the value or of the value clipped to stay near the one that the advantages were computed with. Where
the clipped one's is larger, the value gets no gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlkit.ops.gae import mean_and_variance
from rlkit.ops.policy_loss import Counts, aggregate


class ValueLoss(NamedTuple):
    """This micro-batch's share of the value loss."""

    loss: Tensor
    """() carries the gradient."""
    clip_fraction: Tensor
    """() this part of the share of tokens whose gradient the clip removed; parts add up."""


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, counts: Counts, *, clip: float | None
) -> ValueLoss:
    """Return the value loss, averaged over all tokens of an optimizer step.

    Args:
        values: (B, G, C) of the model being trained; carries the gradient.
        old_values: (B, G, C) that the advantages were computed with; constant.
        returns: (B, G, C) the targets; constant.
        mask: (B, G, C) 1 where a token counts.
        counts: of the whole optimizer step.
        clip: how far a value may move from the old one (None: as far as it likes).
    """
    # Filled first: a square of infinite padding has a NaN gradient, even where its sum leaves it out.
    values, old_values, returns = (part.masked_fill(~mask.bool(), 0.0) for part in (values, old_values, returns))
    squares = (values - returns).square()
    clipped = torch.zeros_like(squares)
    if clip is not None:
        limited = (values.clamp(old_values - clip, old_values + clip) - returns).square()
        clipped = (limited > squares).float()
        squares = torch.maximum(squares, limited)
    return ValueLoss(0.5 * aggregate(squares, mask, counts, "token"), aggregate(clipped, mask, counts, "token"))


def explained_variance(errors: Tensor, returns: Tensor) -> Tensor:
    """Return () 1 - Var(returns - values) / Var(returns): 1 is perfect, 0 is no better than a constant.

    Args:
        errors: (3,) ``moments`` of returns - values, summed over ranks.
        returns: (3,) ``moments`` of the returns, summed over ranks; where they do not vary, the result is 0.
    """
    unexplained, variance = mean_and_variance(errors)[1], mean_and_variance(returns)[1]
    return torch.where(variance > 0, 1 - unexplained / variance, 0.0)
