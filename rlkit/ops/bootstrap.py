"""How sure a mean over rows is, when one user's rows resemble each other: intervals and paired tests by user.

Rows of one user are not independent, so users are drawn, never rows: a resample takes as many users as there are,
with replacement, and all rows of each (the cluster bootstrap; percentile interval). The p of a paired difference comes
from the sign-flip permutation by user: were the two models alike, exchanging them for any user would change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1_000
SIGN_FLIPS = 9_999
PAIRED_TEST = f"sign-flip permutation by user, {SIGN_FLIPS:,} draws; interval: user bootstrap, {RESAMPLES:,} resamples"
_CELLS = 4_000_000  # draws x users held at once: 32 MB


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """The mean of ``b - a`` over rows, its 95 % interval and a two-sided p."""

    difference: float
    low: float
    high: float
    p: float


def bootstrap_intervals(values: np.ndarray, users: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return the 95 % interval (M, 2) of each column's mean.

    Args:
        values: (R, M) per-row values of M metrics.
        users: (R,) the user of each row, as strings or numbers.
        seed: of the resamples; all columns share them.

    Raises:
        ValueError: a value is not finite, or there is no row.
    """
    sums, counts = _sums_by_user(values, users)
    means = np.concatenate(list(_resampled_means(sums, counts, seed)))  # (RESAMPLES, M)
    return np.quantile(means, [0.025, 0.975], axis=0).T


def paired_differences(a: np.ndarray, b: np.ndarray, users: np.ndarray, seed: int = 0) -> list[PairedDifference]:
    """Compare two models on the same rows, column by column.

    Args:
        a: (R, M) per-row values of M metrics of the first model.
        b: (R, M) of the second.
        users: (R,) the user of each row.
        seed: of the resamples and the flips.

    Raises:
        ValueError: a value is not finite, or there is no row.
    """
    assert a.shape == b.shape, f"the two models have {a.shape} and {b.shape} values"
    difference = b - a
    intervals = bootstrap_intervals(difference, users, seed)
    p = _sign_flip_p(_sums_by_user(difference, users)[0], seed)
    columns = zip(difference.mean(axis=0), intervals, p)
    return [
        PairedDifference(float(mean), float(low), float(high), float(chance)) for mean, (low, high), chance in columns
    ]


def _sums_by_user(values: np.ndarray, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (U, M) sums and (U,) counts of rows per user: all that a resample of users needs."""
    assert values.ndim == 2, f"values have shape {values.shape}, not (R, M)"
    assert len(values) == len(users), f"{len(values)} rows of values, {len(users)} of users"
    if not len(values):
        raise ValueError("bootstrap: no row to resample")
    if not np.isfinite(values).all():
        raise ValueError("bootstrap: a metric value is not finite")
    _, code = np.unique(users, return_inverse=True)  # (R,) 0..U-1
    counts = np.bincount(code)
    sums = np.stack([np.bincount(code, column) for column in values.T], axis=1)
    return sums, counts


def _resampled_means(sums: np.ndarray, counts: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    users = len(counts)
    for size, rng in _chunks(RESAMPLES, users, seed):
        drawn = rng.integers(users, size=(size, users)) + users * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * users).reshape(size, users).astype(float)  # (size, U)
        yield (weights @ sums) / (weights @ counts)[:, None]


def _sign_flip_p(sums: np.ndarray, seed: int) -> np.ndarray:
    """Return per column (M,) the share of sign flips, the observed one included, at least as far from 0."""
    changed = sums[(sums != 0).any(axis=1)]  # users for whom the models agree stay at 0 under every flip
    observed = np.abs(changed.sum(axis=0)) - 1e-9  # so that sums equal but for their order count as equal
    beyond = np.zeros(sums.shape[1])
    for size, rng in _chunks(SIGN_FLIPS, max(len(changed), 1), seed + 1):
        signs = rng.integers(2, size=(size, len(changed)), dtype=np.int8) * 2.0 - 1.0
        beyond += (np.abs(signs @ changed) >= observed).sum(axis=0)
    return (1 + beyond) / (1 + SIGN_FLIPS)


def _chunks(draws: int, users: int, seed: int) -> Iterator[tuple[int, np.random.Generator]]:
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // users)
    for start in range(0, draws, step):
        yield min(step, draws - start), rng
