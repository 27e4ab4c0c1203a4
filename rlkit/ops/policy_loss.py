"""The clipped policy-gradient losses of the group algorithms, and the terms that are added to them.

- ``grpo``: mean over the tokens of a completion, then over completions (arXiv 2402.03300, section 4.1, equation 3).
- ``dr_grpo``: every token weighs 1 / (the longest completion allowed x completions), so that a long wrong answer is not
  punished less per token than a short one (2503.20783, section 3).
- ``dapo``: mean over all tokens of the batch (2503.14476, section 3.3), with the asymmetric clip of section 3.1.
- ``gspo``: one length-normalized ratio per completion, clipped as a whole (2507.18071, section 4).
- ``cispo``: the clip limits a token's weight but leaves it its gradient (2506.13585, section 3.1, equations 4 and 5).
- ``rloo``: a completion is one action, so its ratio is the product of its tokens' (2402.14740, section 3).

Each is a function of tensors and plain numbers and reads alone. All divide by *global* counts (``Counts``), so the
parts of micro-batches and ranks add up to the whole: sum them, do not average. With completions of equal length and a
ratio of 1 all have the same gradient, up to a constant; they part where lengths differ or a rollout serves several
updates. The ratio is clamped to [1 - clip_low, 1 + clip_high]: .9 and 9 reach [1/10, 10].
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rlkit.ops.kl import kl_k3
from rlkit.ops.masked import masked_mean, masked_sum

Normalization = Literal["completion", "token", "constant", "sum"]
NORMALIZATION: dict[str, Normalization] = {
    "grpo": "completion",
    "dr_grpo": "constant",
    "dapo": "token",
    "gspo": "completion",
    "cispo": "token",
    "rloo": "sum",
}
"""How each loss averages; its KL and entropy terms have to do the same."""

MAX_LOG_RATIO = 20.0
"""Ratios end at e^20. One that overflows to inf would be clipped away, but with a gradient of 0 * inf = NaN."""


class Counts(NamedTuple):
    """What one optimizer step divides by: counts over all micro-batches and ranks."""

    num_tokens: Tensor | float
    """Tokens that count."""
    num_completions: Tensor | float
    """Completions that are present."""
    max_completion_tokens: int
    """The longest completion that a rollout may hold, in tokens."""


class PolicyLoss(NamedTuple):
    """This micro-batch's share of a loss."""

    loss: Tensor
    """() carries the gradient."""
    clip_fraction: Tensor
    """() this part of the share of tokens (gspo, rloo: completions) whose gradient the clip removed; parts add up.

    cispo: of tokens whose weight it changed."""


class RatioStatistics(NamedTuple):
    """How far the policy is from the one that sampled, over the tokens that count; all ()."""

    mean: Tensor
    smallest: Tensor
    largest: Tensor
    approx_kl: Tensor
    """KL(sampling policy || policy), k3."""


def grpo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    counts: Counts,
    *,
    clip_low: float,
    clip_high: float,
) -> PolicyLoss:
    """Return the loss that weighs every completion equally, whatever its length.

    Args:
        logprobs: (B, G, C) under the policy being trained; carries the gradient.
        old_logprobs: (B, G, C) under the policy that sampled; constant.
        advantages: (B, G), or (B, G, C) where tokens have their own; constant.
        mask: (B, G, C) 1 where a token counts.
        counts: of the whole optimizer step.
        clip_low: how far a ratio may fall below 1.
        clip_high: how far a ratio may rise above 1.
    """
    ratio = log_ratio(logprobs, old_logprobs, mask).exp()  # (B, G, C)
    loss, clipped = _clipped(ratio, _per_token(advantages), clip_low, clip_high)
    return PolicyLoss(aggregate(loss, mask, counts, "completion"), aggregate(clipped, mask, counts, "token"))


def dr_grpo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    counts: Counts,
    *,
    clip_low: float,
    clip_high: float,
) -> PolicyLoss:
    """Return the loss that weighs every token by the same constant; arguments as for ``grpo``."""
    ratio = log_ratio(logprobs, old_logprobs, mask).exp()  # (B, G, C)
    loss, clipped = _clipped(ratio, _per_token(advantages), clip_low, clip_high)
    return PolicyLoss(aggregate(loss, mask, counts, "constant"), aggregate(clipped, mask, counts, "token"))


def dapo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    counts: Counts,
    *,
    clip_low: float,
    clip_high: float,
) -> PolicyLoss:
    """Return the loss that weighs every token of the batch equally; arguments as for ``grpo``."""
    ratio = log_ratio(logprobs, old_logprobs, mask).exp()  # (B, G, C)
    loss, clipped = _clipped(ratio, _per_token(advantages), clip_low, clip_high)
    return PolicyLoss(aggregate(loss, mask, counts, "token"), aggregate(clipped, mask, counts, "token"))


def gspo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    counts: Counts,
    *,
    clip_low: float,
    clip_high: float,
) -> PolicyLoss:
    """Return the loss whose ratio is one per completion: the geometric mean of its tokens' ratios.

    Arguments as for ``grpo``, but ``advantages`` is (B, G). A completion is clipped as a whole: either all of its
    tokens get a gradient or none does. The published clip range is far narrower than GRPO's (3e-4 and 4e-4).
    """
    ratio = masked_mean(log_ratio(logprobs, old_logprobs, mask), mask, -1).exp()  # (B, G)
    present = mask.any(-1)  # (B, G)
    loss, clipped = _clipped(ratio, advantages, clip_low, clip_high)
    return PolicyLoss(
        masked_sum(loss, present) / counts.num_completions, masked_sum(clipped, present) / counts.num_completions
    )


def cispo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    counts: Counts,
    *,
    clip_low: float,
    clip_high: float,
) -> PolicyLoss:
    """Return the loss in which every token keeps its gradient, under a weight that the clip limits.

    Arguments as for ``grpo``. The weight is a constant, so the gradient is that of REINFORCE with a limited importance
    weight, also for tokens that PPO's clip would drop. The published run has no lower limit (``clip_low`` 1).
    """
    ratio = log_ratio(logprobs, old_logprobs, mask).detach().exp()  # (B, G, C)
    weight = ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = -weight * _per_token(advantages) * logprobs.masked_fill(~mask.bool(), 0.0)
    return PolicyLoss(
        aggregate(loss, mask, counts, "token"), aggregate((weight != ratio).float(), mask, counts, "token")
    )


def rloo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    counts: Counts,
    *,
    clip_low: float,
    clip_high: float,
) -> PolicyLoss:
    """Return the loss of completions as single actions: their log-probs are sums over tokens, not means.

    Arguments as for ``grpo``, but ``advantages`` is (B, G). With a ratio of 1 the gradient is that of REINFORCE. The
    paper needs no clip, since it takes one update per rollout; with more updates it acts as in TRL.
    """
    ratio = masked_sum(log_ratio(logprobs, old_logprobs, mask), mask, -1).clamp(max=MAX_LOG_RATIO).exp()  # (B, G)
    present = mask.any(-1)  # (B, G)
    loss, clipped = _clipped(ratio, advantages, clip_low, clip_high)
    return PolicyLoss(
        masked_sum(loss, present) / counts.num_completions, masked_sum(clipped, present) / counts.num_completions
    )


LOSSES = {"grpo": grpo, "dr_grpo": dr_grpo, "dapo": dapo, "gspo": gspo, "cispo": cispo, "rloo": rloo}


def aggregate(values: Tensor, mask: Tensor, counts: Counts, how: Normalization) -> Tensor:
    """Return this micro-batch's share of the average of per-token values over an optimizer step.

    Args:
        values: (B, G, C) what is averaged.
        mask: (B, G, C) 1 where a token counts.
        counts: of the whole optimizer step.
        how: ``completion``: mean of each completion, then over completions; ``token``: over all tokens;
            ``constant``: sum over completions x the longest completion allowed; ``sum``: sum of each completion, then
            mean over completions.

    Returns:
        () the shares of micro-batches and ranks add up.
    """
    if how == "completion":
        return masked_mean(values, mask, -1).sum() / counts.num_completions
    if how == "token":
        return masked_sum(values, mask) / counts.num_tokens
    if how == "sum":
        return masked_sum(values, mask) / counts.num_completions
    return masked_sum(values, mask) / (counts.num_completions * counts.max_completion_tokens)


def kl_penalty(kl: Tensor, mask: Tensor, counts: Counts, how: Normalization, coef: float) -> Tensor:
    """Return what is added to the loss for leaving the reference.

    Args:
        kl: (B, G, C) an estimate per token (``rlkit.ops.kl``); carries the gradient.
        mask: (B, G, C) 1 where a token counts.
        counts: of the whole optimizer step.
        how: the loss's own, ``NORMALIZATION[loss]``.
        coef: its weight.
    """
    return coef * aggregate(kl, mask, counts, how)


def entropy_bonus(entropy: Tensor, mask: Tensor, counts: Counts, how: Normalization, coef: float) -> Tensor:
    """Return what is added to the loss (never positive) for staying undecided; arguments as for ``kl_penalty``."""
    return -coef * aggregate(entropy, mask, counts, how)


@torch.no_grad()
def ratio_statistics(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> RatioStatistics:
    """Describe the ratios policy / sampling policy of the tokens that count; all 1 (KL 0) where none does."""
    difference = log_ratio(logprobs, old_logprobs, mask)  # 0 where nothing counts, so a ratio of 1
    ratio, count = difference.exp(), mask.any()
    mean = torch.where(count, masked_mean(ratio, mask), 1.0)
    smallest = torch.where(count, ratio.masked_fill(~mask.bool(), torch.inf).amin(), 1.0)
    largest = torch.where(count, ratio.masked_fill(~mask.bool(), -torch.inf).amax(), 1.0)
    return RatioStatistics(mean, smallest, largest, masked_mean(kl_k3(torch.zeros_like(ratio), difference), mask))


def log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Return (B, G, C) log(policy / sampling policy), 0 where nothing counts."""
    return (logprobs - old_logprobs).masked_fill(~mask.bool(), 0.0).clamp(max=MAX_LOG_RATIO)


def _clipped(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> tuple[Tensor, Tensor]:
    """Return PPO's pessimistic objective, negated, and 1 where the clip took its gradient; the shape of ``ratio``."""
    limited = ratio.clamp(1 - clip_low, 1 + clip_high)
    objective = torch.minimum(ratio * advantages, limited * advantages)
    above, below = (ratio > 1 + clip_high) & (advantages > 0), (ratio < 1 - clip_low) & (advantages < 0)
    return -objective, (above | below).float()


def _per_token(advantages: Tensor) -> Tensor:
    """Return (B, G, 1) for one advantage per completion, (B, G, C) as it is."""
    return advantages.unsqueeze(-1) if advantages.ndim == 2 else advantages
