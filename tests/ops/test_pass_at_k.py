"""pass@k is unbiased: it is what drawing k of n without putting back gives."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest

from rlkit.ops.pass_at_k import pass_at_k


def test_values_worked_by_hand() -> None:
    # n 5, c 2, k 2: of 10 pairs 3 hold wrong ones only, so 1 - 3 / 10
    assert pass_at_k(np.array([2]), 5, 2).tolist() == pytest.approx([0.7])
    assert pass_at_k(np.array([0, 1, 4]), 4, 1).tolist() == pytest.approx([0.0, 0.25, 1.0])
    assert pass_at_k(np.array([1]), 4, 4).tolist() == pytest.approx([1.0])


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_it_is_the_share_of_all_draws_that_hold_a_right_one(k: int) -> None:
    for right in range(7):
        samples = [True] * right + [False] * (6 - right)
        share = np.mean([any(draw) for draw in combinations(samples, k)])
        assert pass_at_k(np.array([right]), 6, k)[0] == pytest.approx(share)


def test_many_samples_do_not_overflow() -> None:
    found = pass_at_k(np.array([3]), 10_000, 5_000)[0]
    assert found == pytest.approx(1 - comb(9_997, 5_000) / comb(10_000, 5_000))
