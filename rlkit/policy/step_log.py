"""What a policy trainer notes between two logs, and the clock of its updates."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from rlkit.models.wrapped import global_sum


class StepLog:
    """Shares of metrics per micro-batch, numbers per rollout, and seconds per phase."""

    def __init__(self) -> None:
        self.shares: dict[str, list[Tensor]] = defaultdict(list)
        self.noted: dict[str, list[float]] = defaultdict(list)
        self.seconds: dict[str, float] = defaultdict(float)
        self.step = self.skipped = 0
        self.follower: StepLog | None = None
        """Is told the same, and flushed at other times."""

    def share(self, shares: Mapping[str, Tensor]) -> None:
        """Take a micro-batch's shares: they add up over micro-batches and ranks."""
        for name, value in shares.items():
            self.shares[name].append(value.detach())
        if self.follower is not None:
            self.follower.share(shares)

    def skip(self, micro_batches: int) -> None:
        """Leave a step that was not taken out of the means; the same call on every rank.

        Args:
            micro_batches: of this step, the last ones whose shares were taken.
        """
        self.skipped += 1
        for values in self.shares.values():
            del values[-micro_batches:]
        if self.follower is not None:
            self.follower.skip(micro_batches)

    def note(self, metrics: Mapping[str, float], seconds: Mapping[str, float]) -> None:
        """Take a rollout's numbers, and what its phases took."""
        for name, value in metrics.items():
            self.noted[name].append(value)
        for name, value in seconds.items():
            self.seconds[name] += value
        if self.follower is not None:
            self.follower.note(metrics, seconds)

    def flush(self, step: int) -> dict[str, float]:
        """Return means since the last call, ``seconds/`` per phase, and start anew; a collective call.

        Args:
            step: optimizer steps taken.
        """
        steps = max(step - self.step - self.skipped, 1)
        totals = {name: torch.stack(values).float().sum() for name, values in self.shares.items() if values}
        logs: dict[str, float] = {}
        if totals:
            summed = global_sum(torch.stack(list(totals.values()))) / steps
            logs |= {name: round(value, 6) for name, value in zip(totals, summed.tolist())}
        logs |= {name: round(sum(values) / len(values), 6) for name, values in self.noted.items()}
        logs |= {f"seconds/{name}": round(value, 3) for name, value in self.seconds.items()}
        self.step, self.skipped = step, 0
        for store in (self.shares, self.noted, self.seconds):
            store.clear()
        return logs


class UpdateClock(TrainerCallback):
    """Times the optimizer."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.started = seconds, 0.0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop it."""
        self.seconds["update"] += time.perf_counter() - self.started
