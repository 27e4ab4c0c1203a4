"""pass@k: the chance that one of k samples is right. Chen et al. 2021, arXiv 2107.03374, equation 1."""

from __future__ import annotations

import numpy as np


def pass_at_k(right: np.ndarray, samples: int, k: int) -> np.ndarray:
    """Return the unbiased estimate for each task: 1 - C(n - c, k) / C(n, k), as a product that cannot overflow.

    Args:
        right: (R,) how many of a task's samples are right, c.
        samples: n, of each task.
        k: how many are drawn, at most n.
    """
    assert 1 <= k <= samples, (k, samples)
    wrong = samples - np.asarray(right, dtype=np.int64)  # (R,)
    drawn = np.arange(k)  # the i-th draw finds wrong - i of n - i wrong
    missed = np.clip((wrong[:, None] - drawn) / (samples - drawn), 0.0, None)  # (R, k)
    return np.asarray(1.0 - missed.prod(axis=1))
