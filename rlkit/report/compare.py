"""Two runs on the same rows: is the second better, and is that more than chance?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlkit.ops.bootstrap import paired_differences
from rlkit.ops.ranking import MISSING, Ranks, metric_values
from rlkit.report.compare_answers import compare_answers, has_answers, read_pairs
from rlkit.report.comparison import (
    EVAL_FILE,
    Comparison,
    check_mean,
    check_same_rows,
    evaluation_folder,
    read_report,
    read_rows,
    run_names,
)

RANKED_FILE = "ranked.jsonl"
_ITEM = "item/"
_IDENTITY = ("source", "user", "target")


@dataclass(frozen=True)
class _Ranked:
    """One run's evaluation: what it measured, and its rows."""

    path: Path
    ks: tuple[int, ...]
    rows: list[dict[str, Any]]

    @property
    def values(self) -> dict[str, np.ndarray]:
        """Per-row values (R,) of every metric."""
        sids = _ranks((row["rank"], row["rank"]) if row["rank"] else None for row in self.rows)
        items = _ranks(row["item_ranks"] for row in self.rows)
        return metric_values(sids, self.ks) | metric_values(items, self.ks, _ITEM)


def compare_runs(run_a: Path, run_b: Path) -> Comparison:
    """Compare the evaluations of two runs, row by row.

    Args:
        run_a: a run directory, the folder of one of its evaluations, or a file of answers.
        run_b: another one; differences are ``run_b`` minus ``run_a``.

    Raises:
        RunError: an evaluation is missing or damaged, or the two were measured on different rows.
    """
    if has_answers(run_a) or has_answers(run_b):  # of one alone: the error names the other
        return compare_answers(read_pairs(run_a, run_b))
    return _compare_ranked(run_a, run_b)


def _compare_ranked(run_a: Path, run_b: Path) -> Comparison:
    a, b = _read(run_a), _read(run_b)
    check_same_rows((a.path, b.path), a.rows, b.rows, _IDENTITY)
    same_sids = all(x["target_semantic_id"] == y["target_semantic_id"] for x, y in zip(a.rows, b.rows))
    values_a, values_b = a.values, b.values
    metrics = [name for name in values_a if name in values_b and (same_sids or name.startswith(_ITEM))]
    users = np.array([row["user"] for row in a.rows])
    stacked_a, stacked_b = (np.stack([values[name] for name in metrics], axis=1) for values in (values_a, values_b))
    tests = paired_differences(stacked_a, stacked_b, users)
    means = zip(stacked_a.mean(axis=0).tolist(), stacked_b.mean(axis=0).tolist())
    compared = {name: (*pair, test) for name, pair, test in zip(metrics, means, tests)}
    return Comparison(*run_names(run_a, run_b), len(users), len(np.unique(users)), compared, same_sids)


def _read(run: Path) -> _Ranked:
    folder = evaluation_folder(run)
    measured = read_report(folder / EVAL_FILE)["metrics"]
    path = folder / RANKED_FILE
    ks = tuple(sorted(int(name.partition("@")[2]) for name in measured if re.fullmatch(r"hit_rate@\d+", name)))
    ranked = _Ranked(path, ks, read_rows(path, {*_IDENTITY, "target_semantic_id", "rank", "item_ranks"}))
    for name, value in ranked.values.items():
        check_mean(path, name, float(value.mean()), measured.get(name))
    return ranked


def _ranks(spans: Iterable[Sequence[int] | None]) -> Ranks:
    """Read (first, last) ranks, counted from 1; none: not listed."""
    span = np.array([(MISSING + 1, MISSING + 1) if span is None else span for span in spans])  # (R, 2)
    return Ranks(span[:, 0] - 1, span[:, 1] - span[:, 0] + 1)
