"""Rewards of the chat domain; the answer is the one that the prompt's record carries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlkit.chat.answers import decode, is_exact
from rlkit.policy.rollouts import Rollouts


def exact_match(settings: Any, domain: Any) -> Callable[[Rollouts], Tensor]:
    """Build the reward that is 1 for the answer, outer white space aside, and 0 for anything else or cut off."""

    def reward(rollouts: Rollouts) -> Tensor:
        batch, size = rollouts.batch, rollouts.truncated.shape  # size: (B, G)
        answers = decode(
            domain.tokenizer, batch.completions.flatten(0, 1), batch.mask.flatten(0, 1), rollouts.truncated.flatten()
        )
        wanted = [prompt.answer for prompt in rollouts.prompts for _ in range(size[1])]
        scores = torch.tensor([float(is_exact(*pair)) for pair in zip(answers, wanted)])
        return scores.view(size) * rollouts.present

    return reward
