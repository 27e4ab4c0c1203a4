"""Scores before they become rewards."""

import torch

from rlkit.ops.reward_shaping import shaped, without_end_penalty


def test_scores_are_scaled_and_then_clipped() -> None:
    assert shaped(torch.tensor([[-4.0, 1.0, 3.0]]), 2.0, 5.0).tolist() == [[-5.0, 2.0, 5.0]]
    assert shaped(torch.tensor([[-4.0, 1.0, 3.0]]), 0.5).tolist() == [[-2.0, 0.5, 1.5]]


def test_a_completion_that_was_cut_off_pays() -> None:
    scores, truncated = torch.tensor([[1.0, 2.0]]), torch.tensor([[False, True]])
    assert without_end_penalty(scores, truncated, 0.5).tolist() == [[1.0, 1.5]]
    assert without_end_penalty(scores, truncated, 0.0).tolist() == [[1.0, 2.0]]
