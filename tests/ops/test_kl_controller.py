"""The weight of the KL penalty follows the KL."""

import pytest
from peers import OPENRLHF_KL, definitions

from rlkit.ops.kl_controller import adapted


def test_the_weight_moves_by_the_clipped_error_worked_by_hand() -> None:
    # target 6, 500 of 1,000 completions: half of the error, which ends at a fifth
    for kl, factor in ((6.0, 1.0), (6.6, 1.05), (60.0, 1.1), (5.4, 0.95), (0.0, 0.9), (-3.0, 0.9)):
        assert adapted(0.2, kl, target=6.0, horizon=1_000, completions=500) == pytest.approx(0.2 * factor)


def test_a_batch_beyond_the_horizon_leaves_the_weight_positive() -> None:
    assert adapted(1.0, 0.0, target=6.0, horizon=10, completions=1_000) == pytest.approx(0.8)


def test_it_steers_a_kl_that_answers_to_the_weight_to_its_target() -> None:
    coef, kl = 5.0, 0.0
    for _ in range(300):
        kl = 1 / coef  # a policy that drifts the further the less it costs
        coef = adapted(coef, kl, target=2.0, horizon=1_000, completions=200)
    assert kl == pytest.approx(2.0, rel=1e-3)


def test_a_kl_that_is_no_number_is_refused() -> None:
    with pytest.raises(AssertionError, match="nan"):
        adapted(0.1, float("nan"), target=1.0, horizon=10, completions=1)


def test_the_weight_agrees_with_openrlhf() -> None:
    theirs = definitions(OPENRLHF_KL, "AdaptiveKLController").AdaptiveKLController(0.2, 6.0, 10_000)
    coef = 0.2
    for kl in (1.0, 5.9, 6.5, 30.0, -1.0, 7.3):
        theirs.update(kl, 512)
        coef = adapted(coef, kl, target=6.0, horizon=10_000, completions=512)
        assert coef == pytest.approx(theirs.value, abs=1e-12)
