"""MiniOneRec's ranking term, and the match of leading levels."""

import math

import pytest
import torch

from rlkit.ops.ranking_rewards import prefix_match, rank_discount_penalty


def test_misses_beside_a_hit_are_punished_by_rank() -> None:
    # discounts 1 / log2(2, 3, 4) = 1, .63093, .5; S = 2.13093
    hits = torch.tensor([[False, True, False], [False, False, False], [True, True, True]])
    total = 1 + 1 / math.log2(3) + 0.5
    penalty = rank_discount_penalty(hits)
    torch.testing.assert_close(penalty[0], torch.tensor([-1 / total, 0.0, -0.5 / total]))
    assert penalty[1].tolist() == [0.0, 0.0, 0.0]  # no hit: nothing to rank
    assert penalty[2].tolist() == [0.0, 0.0, 0.0]
    assert not penalty[1:].signbit().any()  # logs should not show -0.0


def test_the_published_numbers_for_sixteen_beams() -> None:
    # minionerec: S = 6.106 for G = 16; -.164 for the first beam, -.040 for the last
    hits = torch.zeros(1, 16, dtype=torch.bool)
    hits[0, 5] = True
    penalty = rank_discount_penalty(hits)[0]
    assert penalty[0].item() == pytest.approx(-1 / 6.106, abs=1e-5)
    assert penalty[0].item() == pytest.approx(-0.164, abs=5e-4)
    assert penalty[15].item() == pytest.approx(-0.040, abs=5e-4)
    assert penalty[5].item() == 0.0


def test_absent_beams_neither_hit_nor_are_punished() -> None:
    hits, present = torch.tensor([[False, True], [False, True]]), torch.tensor([[1, 0], [1, 1]])
    penalty = rank_discount_penalty(hits, present)
    assert penalty[0].tolist() == [0.0, 0.0]  # its hit is absent
    assert penalty[1, 0].item() == pytest.approx(-1 / (1 + 1 / math.log2(3)))


def test_a_completion_is_graded_up_to_its_first_mistake() -> None:
    target = torch.tensor([[7, 8, 9]])
    tokens = torch.tensor([[[7, 8, 9], [7, 8, 1], [7, 1, 9], [1, 8, 9]]])
    ones = torch.ones_like(tokens)
    graded = prefix_match(tokens, ones, target, torch.ones_like(target))
    torch.testing.assert_close(graded, torch.tensor([[1.0, 2 / 3, 1 / 3, 0.0]]))


def test_padding_matches_nothing() -> None:
    target, target_mask = torch.tensor([[7, 8, 0]]), torch.tensor([[1, 1, 0]])
    tokens = torch.tensor([[[7, 8, 0], [7, 0, 0], [7, 8, 0]]])
    mask = torch.tensor([[[1, 1, 0], [1, 0, 0], [0, 0, 0]]])  # right, cut after one level, absent
    assert prefix_match(tokens, mask, target, target_mask).tolist() == [[1.0, 0.5, 0.0]]
    assert prefix_match(tokens, mask, target, torch.zeros_like(target)).tolist() == [[0.0, 0.0, 0.0]]
