"""How well rewards order pairs: the loss of Bradley and Terry, accuracy with its interval, calibration, distribution.

Under Bradley-Terry the probability that the chosen completion beats the rejected one is the sigmoid of the difference
of their rewards. What is known of held-out pairs is only who won, so calibration is that of the predicted winner: among
pairs whose predicted winner has probability p, a share of p should be right (Guo et al. 2017, arXiv 1706.04599,
section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from rlkit.ops.bootstrap import bootstrap_intervals

BINS = 10
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def preference_loss(chosen: Tensor, rejected: Tensor, margin: Tensor) -> Tensor:
    """Return the negative log-likelihood of the preferences, a mean over pairs.

    Args:
        chosen: (B,) rewards of the better completions; carries gradients.
        rejected: (B,) rewards of the worse; carries gradients.
        margin: (B,) by how much the better one is better, subtracted from the difference (Llama 2, 2307.09288, eq. 2).
    """
    return -nn.functional.logsigmoid(chosen - rejected - margin).mean()


def smoothing_term(chosen: Tensor, rejected: Tensor, margin: Tensor, smoothing: float) -> Tensor:
    """Return what turns the loss L of the labels into (1 - e) L + e L', where L' is that of the flipped labels.

    With x = chosen - rejected - margin, L = -log sigmoid(x) and L' = -log sigmoid(-x) = L + x, so it is e x.
    """
    return smoothing * (chosen - rejected - margin).mean()


def wins(chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """Return (N,) 1 where the chosen one has more, 0 where it has less, a half where both have the same."""
    return (np.sign(chosen - rejected) + 1) / 2


def accuracy(won: np.ndarray, prompts: np.ndarray) -> dict[str, Any]:
    """Return the share of pairs won and its 95 % interval; pairs of one prompt resemble each other and stay together.

    Args:
        won: (N,) of ``wins``.
        prompts: (N,) the prompt of each pair.
    """
    low, high = bootstrap_intervals(won[:, None], prompts)[0]
    return {"value": float(won.mean()), "interval": [float(low), float(high)]}


def calibration(margins: np.ndarray, bins: int = BINS) -> dict[str, Any]:
    """Return the expected calibration error and the reliability table of sigmoid(margin).

    Args:
        margins: (N,) rewards of the chosen minus those of the rejected completions.
        bins: of equal width, from one half to one.
    """
    predicted = 1 / (1 + np.exp(-np.abs(margins)))  # of the predicted winner
    won = wins(margins, np.zeros_like(margins))
    places = np.minimum(((predicted - 0.5) * 2 * bins).astype(int), bins - 1)
    table = []
    for place in range(bins):
        inside = places == place
        row: dict[str, Any] = {"from": 0.5 + place / (2 * bins), "to": 0.5 + (place + 1) / (2 * bins)}
        row["pairs"] = int(inside.sum())
        if inside.any():
            row |= {"predicted": float(predicted[inside].mean()), "observed": float(won[inside].mean())}
        table.append(row)
    filled = [row for row in table if row["pairs"]]
    error = sum(row["pairs"] * abs(row["predicted"] - row["observed"]) for row in filled) / len(margins)
    return {"expected_error": error, "table": table}


def distribution(scores: np.ndarray) -> dict[str, Any]:
    """Return mean, standard deviation and quantiles of scores (N,)."""
    quantiles = {f"{level:g}": float(value) for level, value in zip(QUANTILES, np.quantile(scores, QUANTILES))}
    return {"mean": float(scores.mean()), "std": float(scores.std()), "quantiles": quantiles}


def pairwise_report(
    chosen: np.ndarray, rejected: np.ndarray, lengths: Sequence[np.ndarray], prompts: np.ndarray
) -> dict[str, Any]:
    """Return everything about rewards on held-out pairs.

    Args:
        chosen: (N,) rewards of the better completions.
        rejected: (N,) rewards of the worse.
        lengths: two of (N,), of the better and of the worse completions, for the baseline that takes the longer one.
        prompts: (N,) the prompt of each pair.
    """
    return {
        "pairs": len(chosen),
        "accuracy": accuracy(wins(chosen, rejected), prompts),
        "longer_wins": accuracy(wins(*lengths), prompts),
        "calibration": calibration(chosen - rejected),
        "chosen": distribution(chosen),
        "rejected": distribution(rejected),
    }
