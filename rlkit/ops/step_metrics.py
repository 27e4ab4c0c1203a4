"""How well predicted probabilities tell right steps from wrong ones: accuracy, ranking, errors found, calibration.

What finds errors in solutions is measured as in ProcessBench (Zheng et al. 2024, arXiv 2412.06559, section 3.3): the
share of wrong solutions whose first wrong step is named, the share of right ones where none is, and the harmonic mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlkit.ops.bootstrap import bootstrap_intervals

BINS = 10


def step_report(predicted: np.ndarray, labels: np.ndarray, rows: np.ndarray, prompts: Sequence[str]) -> dict[str, Any]:
    """Return everything about predictions on held-out steps.

    Args:
        predicted: (N,) the probability that each step is right.
        labels: (N,) how probably it is right; from a half on it counts as right.
        rows: (N,) the completion of each step, counted from 0; its steps stand in order.
        prompts: of each completion.
    """
    right, said = labels >= 0.5, predicted >= 0.5
    hits = (right == said).astype(float)
    low, high = bootstrap_intervals(hits[:, None], np.array(prompts)[rows])[0]  # steps of a prompt resemble each other
    return {
        "rows": len(set(rows.tolist())),
        "steps": len(labels),
        "right": float(right.mean()),
        "accuracy": {"value": float(hits.mean()), "interval": [float(low), float(high)]},
        "majority": float(max(right.mean(), 1 - right.mean())),
        "auc": auc(predicted, right),
        "wrong_steps": found_errors(said, right),
        "first_error": first_errors(said, right, rows),
        "calibration": reliability(predicted, right),
    }


def auc(predicted: np.ndarray, right: np.ndarray) -> float | None:
    """Return how often a right step has more than a wrong one, ties counting half; None without both.

    Args:
        predicted: (N,) any scores.
        right: (N,) booleans.
    """
    positive, negative = int(right.sum()), int((~right).sum())
    if not positive or not negative:
        return None
    _, place, counts = np.unique(predicted, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[place]  # from 1, the mean rank where several have the same score
    return float((ranks[right].sum() - positive * (positive + 1) / 2) / (positive * negative))


def found_errors(said: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Return precision, recall and F1 of wrong steps, 0 where there is nothing to divide by.

    Args:
        said: (N,) whether each step was called right.
        right: (N,) whether it is.
    """
    both, called, there = int((~said & ~right).sum()), int((~said).sum()), int((~right).sum())
    precision, recall = both / max(called, 1), both / max(there, 1)
    return {"precision": precision, "recall": recall, "f1": 2 * both / max(called + there, 1)}


def first_errors(said: np.ndarray, right: np.ndarray, rows: np.ndarray) -> dict[str, float]:
    """Return the shares of completions with an error whose first one is named, and of those without where none is.

    Args:
        said: (N,) whether each step was called right.
        right: (N,) whether it is.
        rows: (N,) the completion of each step.
    """
    found: dict[bool, list[bool]] = {True: [], False: []}
    for row in dict.fromkeys(rows.tolist()):
        mine = rows == row
        true, named = _first(right[mine]), _first(said[mine])
        found[true < 0].append(true == named)
    clean, wrong = (float(np.mean(found[key])) if found[key] else 0.0 for key in (True, False))
    return {"correct": clean, "erroneous": wrong, "f1": 2 * clean * wrong / (clean + wrong) if clean + wrong else 0.0}


def _first(right: np.ndarray) -> int:
    return -1 if right.all() else int(np.argmin(right))


def reliability(predicted: np.ndarray, right: np.ndarray, bins: int = BINS) -> dict[str, Any]:
    """Return the expected calibration error of P(right), and its table (Guo et al. 2017, arXiv 1706.04599, section 2).

    Args:
        predicted: (N,) probabilities.
        right: (N,) booleans.
        bins: of equal width.
    """
    places = np.minimum((predicted * bins).astype(int), bins - 1)
    table = []
    for place in range(bins):
        inside = places == place
        row: dict[str, Any] = {"from": place / bins, "to": (place + 1) / bins, "steps": int(inside.sum())}
        if inside.any():
            row |= {"predicted": float(predicted[inside].mean()), "observed": float(right[inside].mean())}
        table.append(row)
    filled = [row for row in table if row["steps"]]
    error = sum(row["steps"] * abs(row["predicted"] - row["observed"]) for row in filled) / len(right)
    return {"expected_error": error, "table": table}
