"""Each prompt's pass rate over its last visits: which prompts teach nothing, and how hard the others are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rlkit.config.algorithms import SkipSolvedSettings
from rlkit.policy.rollouts import Rollouts

BUCKETS = ((0.0, "0"), (0.25, "0-25"), (0.5, "25-50"), (0.75, "50-75"), (1.0, "75-100"))
"""The most that each bucket of running pass rates holds; those of 1 have their own."""


class PassRates:
    """Pass rates of the last visits of each prompt, the same on every rank.

    Args:
        settings: what passes, and when a prompt is skipped.
    """

    def __init__(self, settings: SkipSolvedSettings) -> None:
        self.settings = settings
        self.visits: dict[str, list[float]] = {}
        """Prompt key -> pass rates, the last ones."""
        self.until: dict[str, int] = {}
        """Prompt key -> the pass over the prompts in which it is tried again."""
        self.skipped = 0

    def skips(self, key: str, turn: int) -> bool:
        """Return whether a prompt is left out of a pass."""
        return turn < self.until.get(key, 0)

    def record(self, rollouts: Rollouts, turn: int) -> dict[str, float]:
        """Take a visit of each prompt, and return the mean reward by bucket of the pass rates before it.

        Args:
            rollouts: rewarded, of all ranks; a standardized part counts as it was.
            turn: the pass over the prompts that they are of.
        """
        present = rollouts.present
        passed = ((rollouts.plain >= self.settings.passed_at) & present).sum(-1) / present.sum(-1).clamp_min(1)
        means = rollouts.plain.masked_fill(~present, 0.0).sum(-1) / present.sum(-1).clamp_min(1)  # (B,)
        buckets: dict[str, list[float]] = defaultdict(list)
        for prompt, known, rate, mean in zip(rollouts.prompts, present.any(-1).tolist(), passed.tolist(), _list(means)):
            if not known:
                continue
            buckets[self._bucket(prompt.key)].append(mean)
            self._visit(prompt.key, rate, turn)
        return {f"difficulty/{name}": sum(found) / len(found) for name, found in buckets.items()}

    def _bucket(self, key: str) -> str:
        rates = self.visits.get(key)
        if not rates:
            return "new"
        rate = sum(rates) / len(rates)
        return "100" if rate == 1.0 else next(name for most, name in BUCKETS if rate <= most)

    def _visit(self, key: str, rate: float, turn: int) -> None:
        visits = self.settings.visits
        rates = self.visits[key] = [*self.visits.get(key, ()), rate][-(visits or 4) :]
        if visits and len(rates) == visits and (set(rates) == {0.0} or set(rates) == {1.0}):
            self.until[key] = turn + 1 + self.settings.passes

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold."""
        return {"visits": self.visits, "until": self.until, "skipped": self.skipped}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's state."""
        self.visits, self.until, self.skipped = state["visits"], state["until"], state["skipped"]


def _list(values: Tensor) -> Sequence[float]:
    found: list[float] = values.tolist()
    return found
