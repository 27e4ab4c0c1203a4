"""Rewards of the recommendation domain; the target is the one that the prompt's record carries.

``item_match`` and ``rank_discount`` are MiniOneRec's rule and ranking rewards (Kong et al. 2025, arXiv 2510.24431).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlkit.config.rewards import AttributeMatchSettings
from rlkit.errors import RecipeError
from rlkit.ops import ranking_rewards
from rlkit.policy.rollouts import Rollouts

Reward = Callable[[Rollouts], Tensor]


def hits(rollouts: Rollouts, domain: Any) -> Tensor:
    """Return (B, G) True where the completion is the target's semantic ID."""
    assert rollouts.leaves is not None
    targets = torch.tensor([domain.ids.sid_of_item[prompt.context.target] for prompt in rollouts.prompts])
    return (domain.constraint.leaf_sequence(rollouts.leaves) == targets[:, None]) & rollouts.present


def item_match(settings: Any, domain: Any) -> Reward:
    """Build the reward that is 1 for the target and 0 for anything else."""
    return lambda rollouts: hits(rollouts, domain).float()


def rank_discount(settings: Any, domain: Any) -> Reward:
    """Build MiniOneRec's ranking term; position is rank, so it goes with beams alone."""
    return lambda rollouts: ranking_rewards.rank_discount_penalty(hits(rollouts, domain), rollouts.present)


def prefix_match(settings: Any, domain: Any) -> Reward:
    """Build the reward that grades by leading levels."""

    def reward(rollouts: Rollouts) -> Tensor:
        batch, end = rollouts.batch, domain.constraint.end_token
        mask, answer_mask = batch.mask, rollouts.answer_mask
        if end is not None:
            mask, answer_mask = mask & (batch.completions != end), answer_mask & (rollouts.answers != end)
        width = max(batch.completions.shape[-1], rollouts.answers.shape[-1])
        tokens, mask, answers, answer_mask = (
            torch.nn.functional.pad(value, (0, width - value.shape[-1]))
            for value in (batch.completions, mask, rollouts.answers, answer_mask)
        )
        return ranking_rewards.prefix_match(tokens, mask, answers, answer_mask)

    return reward


def attribute_match(settings: AttributeMatchSettings, domain: Any) -> Reward:
    """Build the reward that is the share of a completion's items (mostly one) that have the attribute.

    Raises:
        RecipeError: no item has it.
    """
    wanted = settings.value.casefold()

    def has(item: Any) -> bool:
        text = getattr(item, settings.attribute).casefold()
        return wanted in text.split() if settings.attribute == "title" else text == wanted

    match = np.asarray([has(item) for item in domain.data.items], dtype=np.float32)
    if not match.any():
        known = sorted({getattr(item, settings.attribute) for item in domain.data.items})[:10]
        raise RecipeError(
            f"rewards.attribute_match.value: no item has {settings.attribute} {settings.value!r}; "
            f"some that exist: {', '.join(known)}"
        )

    @cache
    def share() -> Tensor:  # of each semantic ID; there are none yet where rewards are looked at before a run
        return torch.tensor([match[list(items)].mean() for items in domain.ids.items_of_sid])

    def reward(rollouts: Rollouts) -> Tensor:
        assert rollouts.leaves is not None
        return share()[domain.constraint.leaf_sequence(rollouts.leaves).clamp_min(0)] * rollouts.present

    return reward
