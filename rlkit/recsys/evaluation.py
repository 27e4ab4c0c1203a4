"""How well models and baselines predict the same rows: metrics with intervals, by bucket, and a check of beam widths.

Metrics have two levels. ``hit_rate@k`` and ``ndcg@k`` compare semantic IDs, as MiniOneRec's tables do;
``item/hit_rate@k`` and ``item/ndcg@k`` compare items, where an SID that several items share is worth a share of a hit.
Baselines are fitted for each level by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from scipy import sparse

from rlkit.ops.bootstrap import bootstrap_intervals, paired_differences
from rlkit.ops.ranking import Ranks, hit_rate, metric_values
from rlkit.recsys.collaborative import Baseline, fit_baselines
from rlkit.recsys.data.catalog import Interaction
from rlkit.recsys.metrics import item_ranks, score_ranks, sid_ranks

KS = (1, 3, 5, 10, 20, 50)
HEADLINE_K = 10
_CHUNK_CELLS = 4_000_000  # rows x items scored at once: 32 MB in float64

Kind = Literal["model", "baseline", "ceiling"]
Scorer = Callable[[Sequence[Interaction]], np.ndarray]
"""Gives (R, N) scores of what comes next."""


@dataclass(frozen=True)
class EvaluationRows:
    """The rows to predict, and what every model in one table shares.

    Args:
        interactions: R rows.
        sid_of_item: (N,) which of the S distinct semantic IDs, 0..S-1, each item has.
        train: what the models were trained on; an item without a train row is cold.
        ks: the cut-offs; no higher than the width of the ranked lists.
        seed: of the bootstrap.
    """

    interactions: Sequence[Interaction]
    sid_of_item: np.ndarray
    train: Sequence[Interaction]
    ks: tuple[int, ...] = KS
    seed: int = 0

    def __post_init__(self) -> None:
        assert self.interactions, "there is no row to evaluate on"

    @cached_property
    def targets(self) -> np.ndarray:
        """(R,) the items that came next."""
        return np.array([row.target for row in self.interactions])

    @cached_property
    def target_sids(self) -> np.ndarray:
        """(R,) their semantic IDs."""
        return self.sid_of_item[self.targets]

    @cached_property
    def users(self) -> np.ndarray:
        """(R,) whose rows they are."""
        return np.array([row.user for row in self.interactions])

    @cached_property
    def buckets(self) -> dict[str, np.ndarray]:
        """Row masks (R,) by name; those that hold no row are left out."""
        return {name: mask for name, mask in _buckets(self).items() if mask.any()}


@dataclass(frozen=True)
class Evaluation:
    """How one model or baseline did.

    Args:
        name: what tables call it.
        kind: a model, a baseline, or the ceiling of generated data.
        values: per-row values (R,) of every metric, at both levels.
        metrics: their means.
        ci95: their 95 % intervals, by user bootstrap.
        buckets: rows and means per bucket.
        settings: what was chosen on valid.
        invalid: generated sequences that are no item.
        health: HR@10 by beam width, see ``beam_health``.
    """

    name: str
    kind: Kind
    values: Mapping[str, np.ndarray]
    metrics: Mapping[str, float]
    ci95: Mapping[str, tuple[float, float]]
    buckets: Mapping[str, Mapping[str, float]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    invalid: int = 0
    health: Mapping[str, Any] = field(default_factory=dict)


def evaluate_ranked(
    rows: EvaluationRows,
    name: str,
    ranked: np.ndarray,
    *,
    invalid: int = 0,
    narrower: Mapping[int, np.ndarray] | None = None,
) -> Evaluation:
    """Evaluate a model by its ranked lists.

    Args:
        rows: what was ranked for.
        name: of the model, usually its stage.
        ranked: (R, K) distinct SID indices, best first; ``NO_SID`` pads.
        invalid: generated sequences that are no item; the caller asserts that there are none.
        narrower: the lists of narrower beams, by number of beams, for the health check.
    """
    width = ranked.shape[1]
    assert max(rows.ks) <= width, f"k={max(rows.ks)} cannot be measured on lists of {width}"
    at_sid = sid_ranks(ranked, rows.target_sids)
    at_item = item_ranks(ranked, rows.targets, rows.sid_of_item)
    health = beam_health(rows, {**narrower, width: ranked}) if narrower else {}
    return _evaluation(rows, name, "model", (at_sid, at_item), invalid=invalid, health=health)


def evaluate_baselines(
    rows: EvaluationRows, train: Sequence[Interaction], valid: Sequence[Interaction], true_scores: Scorer | None = None
) -> list[Evaluation]:
    """Fit, choose and evaluate every counting baseline, at SID level and at item level.

    Args:
        rows: what to predict.
        train: what the baselines count, in time order.
        valid: what their settings are chosen on.
        true_scores: of generated data, (R, N) true probabilities; adds the ceiling as the last row.
    """
    num_items = len(rows.sid_of_item)
    at_sid = fit_baselines(train, valid, num_items, rows.sid_of_item)
    at_item = fit_baselines(train, valid, num_items) if _shared(rows.sid_of_item).any() else at_sid
    evaluations = [_evaluate_baseline(rows, *pair) for pair in zip(at_sid, at_item)]
    if true_scores is not None:
        evaluations.append(_evaluate_ceiling(rows, true_scores))
    return evaluations


def beam_health(rows: EvaluationRows, by_beams: Mapping[int, np.ndarray]) -> dict[str, Any]:
    """Check that HR@10 does not fall as the beam widens.

    It falls where training pushed down what its own beam showed, and items that were never punished surface behind it.

    Args:
        rows: what was ranked for.
        by_beams: ranked lists (R, K) by number of beams.

    Returns:
        HR@10 by number of beams; the change from narrowest to widest with its interval; ``falls``: it lies below 0.
    """
    hits = {beams: hit_rate(sid_ranks(by_beams[beams], rows.target_sids), HEADLINE_K) for beams in sorted(by_beams)}
    narrow, *_, wide = hits.values()
    change = paired_differences(narrow[:, None], wide[:, None], rows.users, rows.seed)[0]
    return {
        f"hit_rate@{HEADLINE_K}": {str(beams): hit.mean() for beams, hit in hits.items()},
        "change": change.difference,
        "change_ci95": (change.low, change.high),
        "falls": change.high < 0,
    }


def _evaluation(
    rows: EvaluationRows,
    name: str,
    kind: Kind,
    ranks: tuple[Ranks, Ranks],
    **extra: Any,
) -> Evaluation:
    at_sid, at_item = ranks
    values = metric_values(at_sid, rows.ks) | metric_values(at_item, rows.ks, "item/")
    stacked = np.stack(list(values.values()), axis=1)  # (R, M)
    intervals = bootstrap_intervals(stacked, rows.users, rows.seed)
    return Evaluation(
        name,
        kind,
        values,
        metrics={metric: float(value.mean()) for metric, value in values.items()},
        ci95={metric: (float(low), float(high)) for metric, (low, high) in zip(values, intervals)},
        buckets={
            bucket: {"n": int(mask.sum())} | {metric: float(value[mask].mean()) for metric, value in values.items()}
            for bucket, mask in rows.buckets.items()
        },
        **extra,
    )


def _evaluate_baseline(rows: EvaluationRows, at_sid: Baseline, at_item: Baseline) -> Evaluation:
    sids = _ranks_of_scorer(rows, at_sid.scores, rows.target_sids)
    if at_sid is at_item:  # every item has its own SID: the levels are one
        return _evaluation(rows, at_sid.name, "baseline", (sids, sids), settings=dict(at_sid.settings))
    items = _ranks_of_scorer(rows, at_item.scores, rows.targets)
    settings = {"semantic_id": dict(at_sid.settings), "item": dict(at_item.settings)}
    return _evaluation(rows, at_sid.name, "baseline", (sids, items), settings=settings)


def _evaluate_ceiling(rows: EvaluationRows, true_scores: Scorer) -> Evaluation:
    items = np.arange(len(rows.sid_of_item))
    to_sid = sparse.csr_array((np.ones(len(items)), (items, rows.sid_of_item)))  # (N, S)
    sids = _ranks_of_scorer(rows, lambda part: true_scores(part) @ to_sid, rows.target_sids)
    return _evaluation(rows, "true distribution", "ceiling", (sids, _ranks_of_scorer(rows, true_scores, rows.targets)))


def _ranks_of_scorer(rows: EvaluationRows, scorer: Scorer, targets: np.ndarray) -> Ranks:
    step = max(1, _CHUNK_CELLS // len(rows.sid_of_item))
    parts = [
        score_ranks(scorer(rows.interactions[start : start + step]), targets[start : start + step])
        for start in range(0, len(targets), step)
    ]
    return Ranks(np.concatenate([part.first for part in parts]), np.concatenate([part.ties for part in parts]))


def _buckets(rows: EvaluationRows) -> dict[str, np.ndarray]:
    trained = np.zeros(len(rows.sid_of_item), dtype=bool)
    for row in rows.train:
        trained[[*row.history, row.target]] = True
    warm = trained[rows.targets]
    length = np.array([len(row.history) for row in rows.interactions])
    repeat = np.array([row.target in row.history for row in rows.interactions])
    shared = _shared(rows.sid_of_item)[rows.targets]
    lengths = {"0": (0, 0), "1": (1, 1), "2-4": (2, 4), "5-9": (5, 9), "10+": (10, np.inf)}
    return {
        "target cold": ~warm,
        "target warm": warm,
        **{f"history {name}": (low <= length) & (length <= high) for name, (low, high) in lengths.items()},
        "target repeated": repeat,
        "target new": ~repeat,
        "semantic ID shared": shared,
        "semantic ID its own": ~shared,
    }


def _shared(sid_of_item: np.ndarray) -> np.ndarray:
    """Return (N,) whether another item has the same semantic ID."""
    return np.bincount(sid_of_item)[sid_of_item] > 1
