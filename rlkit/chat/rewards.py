"""Rewards of the chat domain; the answer is the one that the prompt's record carries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlkit.chat.answers import is_exact
from rlkit.policy.text_rewards import Answer, Sample, TextReward


def exact_match(settings: Any, domain: Any) -> TextReward:
    """Build the reward that is 1 for the answer, outer white space aside, and 0 for anything else or cut off."""

    def score(samples: Sequence[Sample]) -> list[float]:
        return [float(is_exact(Answer(row.completion, row.truncated, 0), row.answer)) for row in samples]

    return TextReward(score, domain)
