"""Intervals and paired tests by user."""

import numpy as np
import pytest

from rlkit.ops.bootstrap import bootstrap_intervals, paired_differences


def clustered(rng: np.random.Generator, users: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Rows of users who differ from each other: 1 to 8 rows each, hits with the user's own probability, mean .5."""
    rows = rng.integers(1, 9, size=users)
    user = np.repeat(np.arange(users), rows)
    hits = rng.random(len(user)) < rng.beta(0.5, 0.5, size=users)[user]
    return hits.astype(float)[:, None], user


def test_the_interval_covers_the_true_mean_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(300):
        values, users = clustered(rng)
        low, high = bootstrap_intervals(values, users)[0]
        covered.append(low <= 0.5 <= high)
    assert 0.90 <= np.mean(covered) <= 0.985


def test_rows_of_one_user_do_not_count_as_independent() -> None:
    # 40 users with 25 equal rows each tell as much as 40 rows. s.e. = sqrt(.25 / 40) = .079, so the interval is about
    # 4 x .079 = .31 wide; taken as 1,000 independent rows it would be .062.
    values = np.repeat(np.arange(40) % 2, 25)[:, None].astype(float)
    by_user = np.ptp(bootstrap_intervals(values, np.repeat(np.arange(40), 25))[0])
    by_row = np.ptp(bootstrap_intervals(values, np.arange(1_000))[0])
    assert by_user == pytest.approx(0.31, abs=0.03)
    assert by_row == pytest.approx(0.062, abs=0.006)


def test_users_with_more_rows_weigh_more() -> None:
    # One user, three rows of 1; one user, one row of 0. Resamples are {a,a}, {a,b}, {b,a}, {b,b}: means 1, .75, .75, 0.
    values, users = np.array([[1.0], [1.0], [1.0], [0.0]]), np.array(["a", "a", "a", "b"])
    low, high = bootstrap_intervals(values, users)[0]
    assert (low, high) == (0.0, 1.0)
    paired = paired_differences(np.zeros_like(values), values, users)[0]
    assert paired.difference == 0.75


def test_the_order_of_rows_and_the_names_of_users_change_nothing() -> None:
    values, users = clustered(np.random.default_rng(1))
    order = np.random.default_rng(2).permutation(len(users))
    named = np.array([f"user {user:03}" for user in users])
    np.testing.assert_allclose(bootstrap_intervals(values, users), bootstrap_intervals(values[order], named[order]))


def test_the_paired_test_finds_a_real_difference() -> None:
    rng = np.random.default_rng(3)
    a, users = clustered(rng, users=400)
    b = np.where(rng.random(a.shape) < 0.05, 1.0, a)  # 5 % of rows become hits: +.025 on the mean
    paired = paired_differences(a, b, users)[0]
    assert paired.difference == pytest.approx(0.025, abs=0.01)
    assert 0 < paired.low < paired.difference < paired.high
    assert paired.p < 0.001


def test_the_paired_test_finds_no_difference_between_equals_too_often() -> None:
    # Two models alike: each row's hit changes at random in either direction. p <= .05 in about 5 of 100 trials.
    rng = np.random.default_rng(4)
    found = []
    for _ in range(120):
        a, users = clustered(rng)
        flip = rng.random(a.shape) < 0.1
        b = np.where(flip, (rng.random(a.shape) < 0.5).astype(float), a)
        swap = (rng.random(users.max() + 1) < 0.5)[users][:, None]
        found.append(paired_differences(np.where(swap, b, a), np.where(swap, a, b), users)[0].p <= 0.05)
    assert np.mean(found) <= 0.11


def test_models_that_agree_everywhere_differ_by_nothing() -> None:
    values, users = clustered(np.random.default_rng(5))
    paired = paired_differences(values, values, users)[0]
    assert (paired.difference, paired.low, paired.high, paired.p) == (0, 0, 0, 1)


def test_the_sign_flip_p_is_that_of_counting_all_flips() -> None:
    # Four users, each better by 1: of the 16 flips, only all-plus and all-minus reach |sum| = 4, so p = 2 / 16.
    b = np.ones((4, 1))
    assert paired_differences(np.zeros((4, 1)), b, np.arange(4))[0].p == pytest.approx(2 / 16, abs=0.01)


def test_a_value_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        bootstrap_intervals(np.array([[0.0], [np.nan]]), np.arange(2))
    with pytest.raises(ValueError, match="no row"):
        bootstrap_intervals(np.zeros((0, 1)), np.arange(0))
