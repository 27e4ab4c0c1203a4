"""Two chat models on the same prompts: every metric of single answers, who wins by which reward, and the answers."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlkit.errors import RunError
from rlkit.ops.bootstrap import PAIRED_TEST, PairedDifference, paired_differences
from rlkit.report.comparison import (
    EVAL_FILE,
    SAME_ROWS,
    Comparison,
    check_mean,
    check_same_rows,
    evaluation_folder,
    read_report,
    read_rows,
    run_names,
)

ANSWERS_FILE = "answers.jsonl"
REWARD = "reward/"
SAMPLED = "sampled/"
_WIN_RATE = "win_rate/"


@dataclass(frozen=True)
class Pair:
    """What two models said to one prompt.

    Args:
        number: of the row, from 1.
        a: the first model's row of ``answers.jsonl``.
        b: the second one's.
    """

    number: int
    a: dict[str, Any]
    b: dict[str, Any]

    @property
    def same(self) -> bool:
        """Return whether both said the same."""
        return bool(self.a["completion"] == self.b["completion"])


@dataclass(frozen=True)
class Pairs:
    """Two evaluations, prompt by prompt."""

    a: str
    b: str
    rows: list[Pair]


def has_answers(run: Path) -> bool:
    """Return whether a run, an evaluation or a file holds answers."""
    return _file(run).is_file()


def read_pairs(run_a: Path, run_b: Path) -> Pairs:
    """Read what two models said to the same prompts.

    Args:
        run_a: a run directory, the folder of one of its evaluations, or a file of answers, as of an earlier model.
        run_b: another one.

    Raises:
        RunError: answers are missing or damaged, or the prompts differ.
    """
    paths = _file(run_a), _file(run_b)
    a, b = _read(paths[0]), _read(paths[1])
    check_same_rows(paths, a, b, ("source", "answer"))
    for number, (x, y) in enumerate(zip(a, b), 1):
        if not x["answer"] and x["prompt"] != y["prompt"]:  # nothing else says that they are the same prompt
            raise RunError(f"{paths[1]}:{number}: another prompt than in {paths[0]}; {SAME_ROWS}")
    return Pairs(*_names(run_a, run_b), [Pair(number, *pair) for number, pair in enumerate(zip(a, b), 1)])


def compare_answers(pairs: Pairs) -> Comparison:
    """Compare two models metric by metric; prompts are resampled and flipped, those that both were measured on."""
    a, b = _values([pair.a for pair in pairs.rows]), _values([pair.b for pair in pairs.rows])
    metrics, wins = {}, {}
    for name in (name for name in a if name in b):
        both = np.isfinite(a[name]) & np.isfinite(b[name])
        if both.any():
            ours, theirs = a[name][both], b[name][both]
            metrics[name] = (float(ours.mean()), float(theirs.mean()), _paired(ours, theirs))
        if both.any() and name.startswith(REWARD):
            share = np.where(theirs == ours, 0.5, (theirs > ours).astype(np.float64))
            wins[name.removeprefix(REWARD)] = against_even(share)
    test = PAIRED_TEST.replace("user", "prompt")
    return Comparison(pairs.a, pairs.b, len(pairs.rows), len(pairs.rows), metrics, test=test, wins=wins)


def against_even(share: np.ndarray) -> PairedDifference:
    """Return the mean of win shares (R,) with its interval, and p of their difference from one half."""
    found = _paired(np.full(len(share), 0.5), share)
    return PairedDifference(found.difference + 0.5, found.low + 0.5, found.high + 0.5, found.p)


def most_different(pairs: Pairs, count: int) -> list[Pair]:
    """Return pairs of answers that are not the same, first those whose rewards or words differ most.

    The first reward counts, without one whether the answer is right; then how many words differ.
    """
    names = [name for row in pairs.rows for name in row.a["metrics"]]
    headline = next((name for name in names if name.startswith(REWARD)), "exact_match")

    def difference(pair: Pair) -> tuple[float, float, int]:
        values = [row["metrics"].get(headline, 0.0) for row in (pair.a, pair.b)]
        words_a, words_b = (row["completion"].split() for row in (pair.a, pair.b))
        alike = difflib.SequenceMatcher(None, words_a, words_b, autojunk=False).ratio()
        return -abs(values[1] - values[0]), alike, pair.number

    return sorted((pair for pair in pairs.rows if not pair.same), key=difference)[:count]


# ---- files


def _file(run: Path) -> Path:
    return run if run.suffix == ".jsonl" else evaluation_folder(run) / ANSWERS_FILE


def _names(run_a: Path, run_b: Path) -> tuple[str, str]:
    """Return the runs' names; of two files of answers their own."""
    if run_a.suffix != ".jsonl" and run_b.suffix != ".jsonl":
        return run_names(run_a, run_b)
    a, b = (f"{run.parent.name}/{run.stem}" if run.suffix == ".jsonl" else run.name for run in (run_a, run_b))
    return (a, b) if a != b else (str(run_a), str(run_b))


def _read(path: Path) -> list[dict[str, Any]]:
    report = read_report(path.parent / EVAL_FILE)
    rows = read_rows(path, {"source", "prompt", "answer", "completion", "metrics"})
    model = path.stem.removeprefix("answers-")
    figures = next((row for row in report.get("rows", []) if row["name"].replace(" ", "-") == model), report)
    for name, values in _values(rows).items():
        check_mean(path, name, float(np.nanmean(values)), figures["metrics"].get(name))
    return rows


def _values(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return (R,) of every metric, NaN where it was not measured; of samples the mean.

    Win rates are against each run's own reference, so they are not compared.
    """
    found: dict[str, np.ndarray] = {}
    for index, row in enumerate(rows):
        for name, value in _numbers(row).items():
            found.setdefault(name, np.full(len(rows), np.nan))[index] = value
    return found


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    numbers = dict(row["metrics"])
    samples = [sample["metrics"] for sample in row.get("samples", [])]
    for name in dict.fromkeys(name for one in samples for name in one):  # a sample without a score lacks its number
        numbers[SAMPLED + name] = float(np.mean([one[name] for one in samples if name in one]))
    return {name: value for name, value in numbers.items() if not name.removeprefix(SAMPLED).startswith(_WIN_RATE)}


def _paired(a: np.ndarray, b: np.ndarray) -> PairedDifference:
    return paired_differences(a[:, None], b[:, None], np.arange(len(a)))[0]
