"""What a policy trainer notes between two logs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from rlkit.models.wrapped import global_sum


class StepLog:
    """Shares of metrics per micro-batch, numbers per rollout, and seconds per phase."""

    def __init__(self) -> None:
        self.shares: dict[str, list[Tensor]] = defaultdict(list)
        self.noted: dict[str, list[float]] = defaultdict(list)
        self.seconds: dict[str, float] = defaultdict(float)
        self.step = 0

    def share(self, shares: Mapping[str, Tensor]) -> None:
        """Take a micro-batch's shares: they add up over micro-batches and ranks."""
        for name, value in shares.items():
            self.shares[name].append(value.detach())

    def note(self, metrics: Mapping[str, float], seconds: Mapping[str, float]) -> None:
        """Take a rollout's numbers, and what its phases took."""
        for name, value in metrics.items():
            self.noted[name].append(value)
        for name, value in seconds.items():
            self.seconds[name] += value

    def flush(self, step: int) -> dict[str, float]:
        """Return means since the last call, ``seconds/`` per phase, and start anew; a collective call.

        Args:
            step: optimizer steps taken.
        """
        steps = max(step - self.step, 1)
        totals = {name: torch.stack(values).float().sum() for name, values in self.shares.items()}
        logs: dict[str, float] = {}
        if totals:
            summed = global_sum(torch.stack(list(totals.values()))) / steps
            logs |= {name: round(value, 6) for name, value in zip(totals, summed.tolist())}
        logs |= {name: round(sum(values) / len(values), 6) for name, values in self.noted.items()}
        logs |= {f"seconds/{name}": round(value, 3) for name, value in self.seconds.items()}
        self.step = step
        for store in (self.shares, self.noted, self.seconds):
            store.clear()
        return logs
