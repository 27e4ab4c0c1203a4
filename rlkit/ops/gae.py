"""From rewards to advantages per token: generalized advantage estimation, and whitening over the global batch.

Schulman et al. 2016, arXiv 1506.02438, section 3: with the surprise d_t = r_t + gamma V_{t+1} - V_t the advantage is
A_t = sum over l of (gamma lam)^l d_{t+l}, and the value's target is A_t + V_t. After the last token the value is 0,
also where a completion was cut off. As in InstructGPT (2203.02155, section 3.5), a token's reward is the KL penalty,
and the last one's holds the score as well. Nothing here carries a gradient: advantages and returns are constants.

A token that does not count is skipped: what stands before it sees what stands behind it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlkit.ops.masked import exact, masked_sum

VARIANCE_EPS = 1e-8
"""Keeps the division by the deviation finite, as in TRL."""


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Return (B, G, C) what each token earns: its KL penalty, and the score at the last token that counts.

    Args:
        scores: (B, G) one per completion, or (B, G, C) one per token where the reward is dense.
        kl: (B, G, C) an estimate per token (``rlkit.ops.kl``).
        mask: (B, G, C) 1 where a token counts; the others earn 0.
        kl_coef: weight of the penalty.
    """
    counted = mask.bool()
    if scores.ndim < counted.ndim:
        scores = scores.unsqueeze(-1) * last_token(counted)  # (B, G, C)
    return (scores - kl_coef * kl).masked_fill(~counted, 0.0)


def last_token(mask: Tensor) -> Tensor:
    """Return (..., C) True at the last token that counts of each row; nowhere in a row without any."""
    counted = mask.bool()
    return counted & (counted.flip(-1).cumsum(-1).flip(-1) == 1)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Return the advantage and the return of each token, both (..., C) and 0 where nothing counts.

    Args:
        rewards: (..., C) what each token earned.
        values: (..., C) what was expected before each token.
        mask: (..., C) 1 where a token counts.
        gamma: discount per token.
        lam: 0 trusts the next value, 1 sums the rewards that came.
    """
    counted = mask.bool()
    rewards, values = rewards.masked_fill(~counted, 0.0), values.masked_fill(~counted, 0.0)
    advantages = torch.zeros_like(values)
    advantage = value_ahead = torch.zeros_like(values[..., 0])
    for t in reversed(range(values.shape[-1])):
        here = counted[..., t]
        surprise = rewards[..., t] + gamma * value_ahead - values[..., t]
        advantage = torch.where(here, surprise + gamma * lam * advantage, advantage)
        value_ahead = torch.where(here, values[..., t], value_ahead)
        advantages[..., t] = advantage
    advantages = advantages.masked_fill(~counted, 0.0)
    return advantages, advantages + values


def moments(values: Tensor, mask: Tensor) -> Tensor:
    """Return (3,) float64 count, sum and sum of squares of the values that count.

    Moments add up over micro-batches, over ranks, and over steps: those of all scores so far are the state of a running
    normalization.
    """
    values = exact(values)
    counted = mask.bool().to(values.device)
    return torch.stack([counted.sum(), masked_sum(values, counted), masked_sum(values.square(), counted)]).to(values)


def mean_and_variance(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Return () mean and () unbiased variance; 0 for a mean of nothing, and for the variance of fewer than two."""
    count, total, squares = moments
    mean = total / count.clamp_min(1)
    variance = (squares - count * mean.square()).clamp_min(0) / (count - 1).clamp_min(1)  # rounding may go below 0
    return mean, variance


def whitened(values: Tensor, mask: Tensor, moments: Tensor, shift_mean: bool = True) -> Tensor:
    """Return values of mean 0 and variance 1 over all that the moments were taken of, 0 where nothing counts.

    Args:
        values: (...) what is whitened.
        mask: (...) 1 where a value counts.
        moments: (3,) of all values: summed over ranks, so that every rank whitens alike.
        shift_mean: False keeps the mean, as is usual for rewards.
    """
    mean, variance = mean_and_variance(moments)
    result = (exact(values) - mean) * torch.rsqrt(variance + VARIANCE_EPS)
    result = result if shift_mean else result + mean
    return result.to(values.dtype).to(values.device).masked_fill(~mask.bool(), 0.0)
