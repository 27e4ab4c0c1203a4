"""What a comparison is, and reading the files that it is made from; what is damaged is named by file and line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlkit.errors import RunError
from rlkit.ops.bootstrap import PAIRED_TEST, PairedDifference

FOLDER = "evaluate"
EVAL_FILE = "eval.json"
SAME_ROWS = "only runs evaluated on the same rows can be compared"


@dataclass(frozen=True)
class Comparison:
    """Two runs, metric by metric.

    Args:
        a: the first run's name; differences are ``b - a``.
        b: the second run's name.
        num_rows: rows that both were measured on.
        num_users: users of those rows; each row's own where there are prompts.
        metrics: per metric the value of each run and their paired difference.
        same_semantic_ids: whether SID-level metrics mean the same; where not, only item level is compared.
        test: what the intervals and p are.
        wins: per reward the share of prompts that the second run's answer wins, ties half, against one half.
    """

    a: str
    b: str
    num_rows: int
    num_users: int
    metrics: dict[str, tuple[float, float, PairedDifference]]
    same_semantic_ids: bool = True
    test: str = PAIRED_TEST
    wins: dict[str, PairedDifference] = field(default_factory=dict)


def evaluation_folder(run: Path) -> Path:
    """Return where the evaluation lies: the folder itself, ``evaluate``, or the only one that a run has."""
    if (run / EVAL_FILE).is_file():
        return run
    found = [path.parent for path in run.glob(f"*/{EVAL_FILE}")]
    return found[0] if len(found) == 1 else run / FOLDER


def read_report(path: Path) -> dict[str, Any]:
    """Return ``eval.json``.

    Raises:
        RunError: it is missing, damaged or holds no metrics.
    """
    report = parse(read_text(path), str(path))
    metrics = report.get("metrics")
    if not isinstance(metrics, dict) or not metrics:
        raise RunError(f"{path}: holds no metrics, got {metrics!r}; evaluate the run again")
    return report


def read_rows(path: Path, needed: set[str]) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file that have the needed keys.

    Raises:
        RunError: the file is missing, damaged or empty, or a row lacks a key.
    """
    rows = [parse(line, f"{path}:{number}") for number, line in enumerate(read_text(path).split("\n"), 1) if line]
    problems = [
        f"{path}:{number}: lacks {sorted(needed - row.keys())!r}; evaluate the run again"
        for number, row in enumerate(rows, 1)
        if not needed <= row.keys()
    ]
    if problems or not rows:
        raise RunError(*(problems or [f"{path}: holds no row; evaluate the run again"]))
    return rows


def read_text(path: Path) -> str:
    """Return a file's text.

    Raises:
        RunError: there is no such file.
    """
    if not path.is_file():
        raise RunError(f"{path}: does not exist; name a run whose evaluate stage is finished")
    return path.read_text(encoding="utf-8")


def parse(text: str, where: str) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        RunError: it is none.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise RunError(f"{where}: not valid JSON: {error}; evaluate the run again") from error
    if not isinstance(value, dict):
        raise RunError(f"{where}: not a JSON object, got {text[:40]!r}; evaluate the run again")
    return value


def check_same_rows(
    paths: tuple[Path, Path], a: Sequence[dict[str, Any]], b: Sequence[dict[str, Any]], identity: Sequence[str]
) -> None:
    """Refuse two evaluations of different rows.

    Raises:
        RunError: a row's identity differs, or the number of rows.
    """
    for number, (x, y) in enumerate(zip(a, b), 1):
        different = [key for key in identity if x[key] != y[key]]
        if different:
            key = different[0]
            raise RunError(f"{paths[1]}:{number}: {key} is {y[key]!r}, but {x[key]!r} in {paths[0]}; {SAME_ROWS}")
    if len(a) != len(b):
        raise RunError(f"{paths[1]}: has {len(b)} rows, but {paths[0]} has {len(a)}; {SAME_ROWS}")


def run_names(run_a: Path, run_b: Path) -> tuple[str, str]:
    """Return the folders' own names, or the whole paths where those are equal."""
    if run_a.resolve().name != run_b.resolve().name:
        return run_a.resolve().name, run_b.resolve().name
    return str(run_a), str(run_b)


def check_mean(path: Path, name: str, mean: float, measured: Any) -> None:
    """Refuse rows that are not those of the report beside them.

    Raises:
        RunError: their mean is not what was measured.
    """
    if measured is None or abs(mean - measured) > 1e-5:
        raise RunError(
            f"{path}: {name} of its rows is {mean:.6f}, but eval.json says {measured!r}; evaluate the run again"
        )
