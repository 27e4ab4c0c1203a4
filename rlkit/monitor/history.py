"""The history of a stage's metrics, a row per rollout and one per look at the valid split, and numbers from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean, median, stdev
from typing import Any

Row = Mapping[str, Any]
KEPT, START = 60, 10


@dataclass
class History:
    """What the rules look at.

    Args:
        rows: the last rollouts: ``step`` and the metrics of each.
        start: the first rollouts of the stage.
        looks: ``step`` and ``eval_...`` of each look at the valid split; ``errors``: their standard errors.
        seen: rollouts so far.
        planned: rollouts in all.
        held_out: the metrics of a look that should rise, such as ``eval_reward``.
    """

    planned: int = 0
    held_out: tuple[str, ...] = ("eval_reward",)
    rows: list[Row] = field(default_factory=list)
    start: list[Row] = field(default_factory=list)
    looks: list[Row] = field(default_factory=list)
    seen: int = 0

    def take(self, row: Row) -> None:
        """Add a rollout."""
        self.seen += 1
        if len(self.start) < START:
            self.start.append(row)
        self.rows = [*self.rows, row][-KEPT:]

    def look(self, row: Row) -> None:
        """Add a look at the valid split."""
        self.looks.append(row)

    def forget(self, step: int) -> None:
        """Drop what was seen from a step on."""
        self.rows = [row for row in self.rows if row["step"] < step]
        self.start = [row for row in self.start if row["step"] < step]
        self.looks = [row for row in self.looks if row["step"] < step]

    def values(self, name: str) -> list[float]:
        """Return a metric's finite values, oldest first."""
        return finite(self.rows, name)

    def first(self, name: str, count: int) -> list[float]:
        """Return a metric's first values of the stage."""
        return finite(self.start[:count], name)

    def began(self, holds: Callable[[Row], bool], last: int = 1) -> int:
        """Return the step of the first rollout of those, up to the last one, for which something holds.

        Args:
            holds: of a rollout.
            last: of so many rollouts not all need to: the mean of them lies where single ones may not.
        """
        step = int(self.rows[-1]["step"])
        for ago, row in enumerate(reversed(self.rows)):
            if holds(row):
                step = int(row["step"])
            elif ago >= last:
                break
        return step


def finite(rows: Sequence[Row], name: str) -> list[float]:
    """Return a metric's finite values."""
    found = (row.get(name) for row in rows)
    return [float(value) for value in found if isinstance(value, int | float) and math.isfinite(value)]


def mean_of_last(values: Sequence[float], count: int) -> float | None:
    """Return the mean of the last values; None where there are fewer."""
    return fmean(values[-count:]) if len(values) >= count else None


def median_of(values: Sequence[float]) -> float:
    """Return the median."""
    return float(median(values))


def standard_error(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the standard error of the difference of two means."""
    return math.sqrt(sum(stdev(values) ** 2 / len(values) for values in (one, other) if len(values) > 1))


def noise(values: Sequence[float]) -> float:
    """Return the standard deviation of values around a course that changes slowly, from the steps between them."""
    steps = [after - before for before, after in pairwise(values)]
    return math.sqrt(fmean(step**2 for step in steps) / 2) if steps else 0.0


def has_risen(now: Sequence[float], before: Sequence[float], errors: float = 2.0) -> bool:
    """Return whether a mean lies above another by more than so many standard errors of their difference."""
    if not now or not before:
        return False
    return fmean(now) - fmean(before) > max(errors * standard_error(now, before), 1e-9)
