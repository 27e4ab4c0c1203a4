"""Hit rate and NDCG from ranks, exact where the target shares its place with others.

A target that ties with ``m - 1`` others is equally likely at each of the ``m`` positions from ``first`` on, so both
metrics are expectations over those positions ``p`` (counted from 0):

    hit_rate@k = share of the m positions with p < k
    ndcg@k     = mean over the m positions of [p < k] / log2(p + 2)

There is one right answer per row, so the ideal gain is 1. Jarvelin and Kekalainen 2002 (NDCG); McSherry and Najork 2008
(metrics under ties).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MISSING = -1
"""The ``first`` of a target that the list does not hold; it scores 0 at every k."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Where the target of each row stands.

    Args:
        first: (R,) the best position it can have, counted from 0; ``MISSING`` where it is not listed.
        ties: (R,) how many positions, ``first`` included, it is equally likely at; 1 without a tie.
    """

    first: np.ndarray
    ties: np.ndarray

    def __post_init__(self) -> None:
        assert self.first.shape == self.ties.shape == (len(self.first),), "first and ties are not two (R,) arrays"
        assert (self.first >= MISSING).all(), "a rank lies before the first position"
        assert (self.ties >= 1).all(), "a target must hold at least its own position"


def hit_rate(ranks: Ranks, k: int) -> np.ndarray:
    """Return per row (R,) the probability that the target is among the first ``k``."""
    start, stop = _positions_within(ranks, k)
    return (stop - start) / ranks.ties


def ndcg(ranks: Ranks, k: int) -> np.ndarray:
    """Return per row (R,) the expected discounted gain of the target within the first ``k``."""
    gains = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(k) + 2.0))])  # (k + 1,): sum of the first j gains
    start, stop = _positions_within(ranks, k)
    return (gains[stop] - gains[start]) / ranks.ties


def metric_values(ranks: Ranks, ks: Sequence[int], prefix: str = "") -> dict[str, np.ndarray]:
    """Return both metrics at every ``k``, per row: ``{"hit_rate@1": (R,), "ndcg@1": (R,), ...}``."""
    values = {}
    for k in ks:
        values[f"{prefix}hit_rate@{k}"] = hit_rate(ranks, k)
        values[f"{prefix}ndcg@{k}"] = ndcg(ranks, k)
    return values


def _positions_within(ranks: Ranks, k: int) -> tuple[np.ndarray, np.ndarray]:
    first = np.where(ranks.first == MISSING, k, ranks.first)
    return np.minimum(first, k), np.minimum(first + ranks.ties, k)  # (R,), (R,)
