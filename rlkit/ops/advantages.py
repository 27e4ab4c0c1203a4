"""How much better a completion is than the others of its group, or of its batch.

GRPO (arXiv 2402.03300, section 4.1.2): reward minus the group's mean, over the group's standard deviation. Dr. GRPO
(2503.20783, section 3) leaves the division out; 2508.08221 divides by the standard deviation of the whole batch. The
leave-one-out baseline is RLOO's (2402.14740, section 3.1), which compares rewards less their KL penalty. REINFORCE++
(2501.03262, section 3) compares with the whole batch: it normalizes the returns of all tokens over all ranks.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlkit.ops.gae import gae, token_rewards
from rlkit.ops.masked import masked_sum

Scale = Literal["group", "batch", "none"]
Baseline = Literal["mean", "leave_one_out"]


def group_advantages(
    rewards: Tensor,
    mask: Tensor | None = None,
    *,
    scale: Scale = "group",
    baseline: Baseline = "mean",
    eps: float = 1e-4,
) -> Tensor:
    """Return the advantage of each completion within its group.

    Args:
        rewards: (B, G) one number per completion.
        mask: (B, G) 1 where a completion is present (None: everywhere); the others take no part and get 0.
        scale: what the difference is divided by. ``batch`` sees the rewards it is given: with several processes,
            gather them first and keep your slice.
        baseline: the mean of the group, or of the *other* completions of the group.
        eps: keeps the division finite; 1e-4 as in MiniOneRec and TRL.

    Returns:
        (B, G). A group of equal rewards gets exactly 0 (rounding over ``eps`` would not be), and so does a lone
        completion, which has nothing to be compared with.
    """
    present = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask.bool()
    rewards = rewards.masked_fill(~present, 0.0)
    size = present.sum(-1, keepdim=True)  # (B, 1)
    advantages = rewards - rewards.sum(-1, keepdim=True) / size.clamp_min(1)
    if baseline == "leave_one_out":  # r - (sum - r) / (n - 1) = (r - mean) * n / (n - 1)
        advantages = advantages * size / (size - 1).clamp_min(1)
    if scale != "none":
        advantages = advantages / (_std(rewards, present, over_batch=scale == "batch") + eps)
    return advantages.masked_fill(~present | zero_signal(rewards, present)[:, None], 0.0)


def leave_one_out_advantages(rewards: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Return (B, G) RLOO's advantages: the reward less its KL penalty, against the mean of the others of its group.

    Args:
        rewards: (B, G) one number per completion.
        kl: (B, G, C) an estimate per token (``rlkit.ops.kl``), summed over the completion.
        mask: (B, G, C) 1 where a token counts.
        kl_coef: weight of the penalty.
    """
    penalized = rewards - kl_coef * masked_sum(kl, mask, -1)
    return group_advantages(penalized, mask.any(-1), scale="none", baseline="leave_one_out")


def returns_to_go(
    rewards: Tensor, kl: Tensor, mask: Tensor, *, kl_coef: float, gamma: float, group_baseline: bool
) -> Tensor:
    """Return (B, G, C) what is earned from each token on; ``gae.whitened`` makes REINFORCE++'s advantages of it.

    Args:
        rewards: (B, G) one number per completion, earned at its last token.
        kl: (B, G, C) an estimate per token (``rlkit.ops.kl``), paid at every token.
        mask: (B, G, C) 1 where a token counts; the others get 0.
        kl_coef: weight of the penalty.
        gamma: discount per token.
        group_baseline: first take the group's mean from the rewards, as the variant "with baseline" does.
    """
    if group_baseline:
        rewards = group_advantages(rewards, mask.any(-1), scale="none")
    earned = token_rewards(rewards, kl, mask, kl_coef)
    return gae(earned, torch.zeros_like(earned), mask, gamma=gamma, lam=1.0)[1]  # nothing is foreseen, all is counted


def zero_signal(rewards: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return (B,) True where all present completions of a group have the same reward: nothing to learn from."""
    present = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask.bool()
    highest = rewards.masked_fill(~present, -torch.inf).amax(-1)
    lowest = rewards.masked_fill(~present, torch.inf).amin(-1)
    return highest <= lowest  # <=: an empty group compares -inf with inf


def _std(rewards: Tensor, present: Tensor, *, over_batch: bool) -> Tensor:
    """Return the unbiased standard deviation of each group (B, 1), or of all rewards (1, 1); 0 for fewer than two."""
    if over_batch:
        rewards, present = rewards.reshape(1, -1), present.reshape(1, -1)
    size = present.sum(-1, keepdim=True)
    mean = rewards.sum(-1, keepdim=True) / size.clamp_min(1)
    squares = (rewards - mean).square().masked_fill(~present, 0.0).sum(-1, keepdim=True)
    return (squares / (size - 1).clamp_min(1)).sqrt()
