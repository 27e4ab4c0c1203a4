"""Two runs on the same rows: is the second better, and is that more than chance?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlkit.errors import RunError
from rlkit.ops.bootstrap import PAIRED_TEST, PairedDifference, paired_differences
from rlkit.ops.ranking import MISSING, Ranks, metric_values

FOLDER = "evaluate"
EVAL_FILE = "eval.json"
RANKED_FILE = "ranked.jsonl"
_ITEM = "item/"
_IDENTITY = ("source", "user", "target")


@dataclass(frozen=True)
class Comparison:
    """Two runs, metric by metric.

    Args:
        a: the first run's name; differences are ``b - a``.
        b: the second run's name.
        num_rows: rows that both ranked for.
        num_users: users of those rows.
        metrics: per metric the value of each run and their paired difference.
        same_semantic_ids: whether SID-level metrics mean the same; where not, only item level is compared.
        test: what the intervals and p are.
    """

    a: str
    b: str
    num_rows: int
    num_users: int
    metrics: dict[str, tuple[float, float, PairedDifference]]
    same_semantic_ids: bool
    test: str = PAIRED_TEST


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
        run_a: a run directory, or the folder of one of its evaluations.
        run_b: another one; differences are ``run_b`` minus ``run_a``.

    Raises:
        RunError: an evaluation is missing or damaged, or the two rank for different rows.
    """
    a, b = _read(run_a), _read(run_b)
    _check_same_rows(a, b)
    same_sids = all(x["target_semantic_id"] == y["target_semantic_id"] for x, y in zip(a.rows, b.rows))
    values_a, values_b = a.values, b.values
    metrics = [name for name in values_a if name in values_b and (same_sids or name.startswith(_ITEM))]
    users = np.array([row["user"] for row in a.rows])
    stacked_a, stacked_b = (np.stack([values[name] for name in metrics], axis=1) for values in (values_a, values_b))
    tests = paired_differences(stacked_a, stacked_b, users)
    means = zip(stacked_a.mean(axis=0).tolist(), stacked_b.mean(axis=0).tolist())
    compared = {name: (*pair, test) for name, pair, test in zip(metrics, means, tests)}
    return Comparison(*_names(run_a, run_b), len(users), len(np.unique(users)), compared, same_sids)


def _folder(run: Path) -> Path:
    """Return where the evaluation lies: the folder itself, ``evaluate``, or the only one that a run has."""
    if (run / EVAL_FILE).is_file():
        return run
    found = [path.parent for path in run.glob(f"*/{EVAL_FILE}")]
    return found[0] if len(found) == 1 else run / FOLDER


def _read(run: Path) -> _Ranked:
    folder = _folder(run)
    measured = _read_metrics(folder / EVAL_FILE)
    path = folder / RANKED_FILE
    ks = tuple(sorted(int(name.partition("@")[2]) for name in measured if re.fullmatch(r"hit_rate@\d+", name)))
    ranked = _Ranked(path, ks, _read_rows(path))
    for name, value in ranked.values.items():
        if name not in measured or abs(value.mean() - measured[name]) > 1e-5:
            raise RunError(
                f"{path}: {name} of its rows is {value.mean():.6f}, but eval.json says {measured.get(name)!r}; "
                "evaluate the run again"
            )
    return ranked


def _read_metrics(path: Path) -> dict[str, float]:
    metrics = _parse(_text(path), str(path)).get("metrics")
    if not isinstance(metrics, dict) or not metrics:
        raise RunError(f"{path}: holds no metrics, got {metrics!r}; evaluate the run again")
    return metrics


def _read_rows(path: Path) -> list[dict[str, Any]]:
    rows = [_parse(line, f"{path}:{number}") for number, line in enumerate(_text(path).split("\n"), 1) if line]
    needed = {*_IDENTITY, "target_semantic_id", "rank", "item_ranks"}
    problems = [
        f"{path}:{number}: lacks {sorted(needed - row.keys())!r}; evaluate the run again"
        for number, row in enumerate(rows, 1)
        if not needed <= row.keys()
    ]
    if problems or not rows:
        raise RunError(*(problems or [f"{path}: holds no row; evaluate the run again"]))
    return rows


def _text(path: Path) -> str:
    if not path.is_file():
        raise RunError(f"{path}: does not exist; name a run whose evaluate stage is finished")
    return path.read_text(encoding="utf-8")


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise RunError(f"{where}: not valid JSON: {error}; evaluate the run again") from error
    if not isinstance(value, dict):
        raise RunError(f"{where}: not a JSON object, got {text[:40]!r}; evaluate the run again")
    return value


def _check_same_rows(a: _Ranked, b: _Ranked) -> None:
    for number, (x, y) in enumerate(zip(a.rows, b.rows), 1):
        different = [key for key in _IDENTITY if x[key] != y[key]]
        if different:
            key = different[0]
            raise RunError(
                f"{b.path}:{number}: {key} is {y[key]!r}, but {x[key]!r} in {a.path}; "
                "only runs evaluated on the same rows can be compared"
            )
    if len(a.rows) != len(b.rows):
        raise RunError(
            f"{b.path}: has {len(b.rows)} rows, but {a.path} has {len(a.rows)}; "
            "only runs evaluated on the same rows can be compared"
        )


def _ranks(spans: Iterable[Sequence[int] | None]) -> Ranks:
    """Read (first, last) ranks, counted from 1; none: not listed."""
    span = np.array([(MISSING + 1, MISSING + 1) if span is None else span for span in spans])  # (R, 2)
    return Ranks(span[:, 0] - 1, span[:, 1] - span[:, 0] + 1)


def _names(run_a: Path, run_b: Path) -> tuple[str, str]:
    """Return the folders' own names, or the whole paths where those are equal."""
    if run_a.resolve().name != run_b.resolve().name:
        return run_a.resolve().name, run_b.resolve().name
    return str(run_a), str(run_b)
