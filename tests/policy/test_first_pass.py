"""The check that training sees the probabilities that sampling saw can fail, at every length and precision."""

from __future__ import annotations

import pytest
import torch

from rlkit.errors import TrainingError
from rlkit.policy.first_pass import check_first_pass
from rlkit.policy.group_batch import GroupBatch

C = 256


def batch(old: torch.Tensor) -> GroupBatch:
    """One prompt with one completion of C tokens, and what sampling said of them."""
    ones = torch.ones(1, 1, C)
    numbers = {"scores": old.sum(-1), "old_logprobs": old}
    return GroupBatch(torch.ones(1, 1).long(), torch.ones(1, 1), ones.long(), ones, numbers)


@pytest.mark.parametrize("full_precision", [True, False])
def test_a_completion_whose_every_token_lost_probability_is_found(full_precision: bool) -> None:
    old = torch.full((1, 1, C), -1.0)
    check_first_pass(old.clone(), batch(old), full_precision)
    with pytest.raises(TrainingError, match=r"disagree on a rollout's log-probs by 4 per token"):
        check_first_pass(torch.full((1, 1, C), -5.0), batch(old), full_precision)


@pytest.mark.parametrize(("full_precision", "off"), [(True, 0.02), (False, 0.1)])
def test_a_single_token_that_is_off_is_found(full_precision: bool, off: float) -> None:
    old = torch.full((1, 1, C), -1.0)
    new = old.clone()
    new[0, 0, 100] -= off
    with pytest.raises(TrainingError, match="disagree"):
        check_first_pass(new, batch(old), full_precision)


def test_rounding_of_the_precision_in_use_is_allowed() -> None:
    old = torch.full((1, 1, C), -1.0)
    check_first_pass(old + 1e-5, batch(old), full_precision=True)
    check_first_pass(old + 1e-2, batch(old), full_precision=False)
