"""Figures of rewards on pairs, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rlkit.ops.pairwise import (
    accuracy,
    calibration,
    distribution,
    pairwise_report,
    preference_loss,
    smoothing_term,
    wins,
)


def test_the_loss_is_the_negative_log_likelihood_of_the_preferences() -> None:
    chosen, rejected, margin = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.0])
    # sigmoid(2 - 0.5) = 0.81757, sigmoid(-1) = 0.26894
    expected = -(math.log(0.8175745) + math.log(0.2689414)) / 2
    assert preference_loss(chosen, rejected, margin).item() == pytest.approx(expected, abs=1e-6)


def test_smoothing_mixes_the_losses_of_the_labels_and_of_the_flipped_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    zero = torch.zeros_like(chosen)
    loss = preference_loss(chosen, rejected, zero)
    mixed = 0.9 * loss + 0.1 * preference_loss(rejected, chosen, zero)
    assert torch.allclose(loss + smoothing_term(chosen, rejected, zero, 0.1), mixed, atol=1e-12)


def test_a_tie_is_half_a_win() -> None:
    assert wins(np.array([2.0, 1.0, 0.0]), np.array([1.0, 1.0, 1.0])).tolist() == [1.0, 0.5, 0.0]


def test_pairs_of_one_prompt_stay_together_in_the_interval() -> None:
    won = np.array([1.0] * 50 + [0.0] * 50)
    alone = accuracy(won, np.arange(100))
    two_prompts = accuracy(won, np.repeat([0, 1], 50))
    assert alone["value"] == two_prompts["value"] == 0.5
    assert 0.37 < alone["interval"][0] < 0.43  # 0.5 - 1.96 * sqrt(0.25 / 100) = 0.402
    assert two_prompts["interval"] == [0.0, 1.0]


def test_calibration_is_that_of_the_predicted_winner() -> None:
    # sigmoid(0) = 0.5, a tie; sigmoid(+-ln 3) = 0.75: right, right, wrong; two bins: [0.5, 0.75) and [0.75, 1].
    x = math.log(3) + 1e-9
    found = calibration(np.array([0.0, x, x, -x]), bins=2)
    low, high = found["table"]
    assert (low["pairs"], low["predicted"], low["observed"]) == (1, 0.5, 0.5)
    assert (high["from"], high["to"], high["pairs"]) == (0.75, 1.0, 3)
    assert high["predicted"] == pytest.approx(0.75)
    assert high["observed"] == pytest.approx(2 / 3)
    assert found["expected_error"] == pytest.approx(3 / 4 * (0.75 - 2 / 3))


def test_rewards_that_mean_their_odds_are_calibrated_and_doubled_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    odds = rng.normal(0, 2, 50_000)
    margins = np.where(rng.random(50_000) < 1 / (1 + np.exp(-odds)), odds, -odds)  # chosen: who won
    assert calibration(margins)["expected_error"] < 0.01
    assert calibration(2 * margins)["expected_error"] > 0.05


def test_a_sure_winner_falls_into_the_last_bin_and_an_empty_bin_has_no_shares() -> None:
    table = calibration(np.array([1e3]))["table"]
    assert table[-1]["observed"] == 1.0
    assert "observed" not in table[0]


def test_a_distribution_has_moments_and_quantiles() -> None:
    found = distribution(np.arange(5.0))
    assert found["mean"] == 2.0
    assert found["std"] == pytest.approx(math.sqrt(2))
    assert found["quantiles"]["0.25"] == 1.0
    assert found["quantiles"]["1"] == 4.0


def test_the_report_sets_accuracy_beside_the_longer_one() -> None:
    lengths = (np.array([5, 5, 5]), np.array([9, 9, 1]))
    report = pairwise_report(np.array([1.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0]), lengths, np.arange(3))
    assert report["pairs"] == 3
    assert report["accuracy"]["value"] == pytest.approx(2 / 3)
    assert report["longer_wins"]["value"] == pytest.approx(1 / 3)
    assert report["chosen"]["mean"] == pytest.approx(2 / 3)
    assert report["rejected"]["mean"] == pytest.approx(1 / 3)
