"""How a stage's batches are cut over ranks, micro-batches and rollouts: plain arithmetic, known before torch is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Batches:
    """The sizes of one training stage; in policy algorithms they count prompts, that is groups.

    Args:
        processes: ranks.
        batch_size: per optimizer step, over all ranks.
        micro_batch_size: per forward pass on one rank; none: the rank's whole share.
        rollout_batch_size: prompts per rollout, over all ranks; none: the algorithm makes no rollouts.
        group_size: G, completions per prompt.
        epochs: passes over each rollout.
    """

    processes: int
    batch_size: int
    micro_batch_size: int | None
    rollout_batch_size: int | None = None
    group_size: int = 1
    epochs: int = 1

    @property
    def share(self) -> int:
        """Return what one rank has of an optimizer step."""
        return self.batch_size // self.processes

    @property
    def micro(self) -> int:
        """Return the size of one forward pass."""
        return self.micro_batch_size or self.share

    @property
    def accumulation(self) -> int:
        """Return micro-batches per rank and optimizer step."""
        return self.share // self.micro

    @property
    def updates_per_rollout(self) -> int:
        """Return optimizer steps per rollout."""
        return self.epochs * (self.rollout_batch_size or 0) // self.batch_size

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (key below the stage, what does not divide)."""
        if self.batch_size % self.processes:
            yield "train.batch_size", _not_a_multiple(self.batch_size, f"{self.processes} processes")
        elif self.share % self.micro:
            wrong = f"does not divide a rank's share of {self.share}, got {self.micro}"
            yield "train.micro_batch_size", f"{wrong}; choose a divisor (batch_size / processes is the share)"
        rollout = self.rollout_batch_size or self.batch_size
        if rollout % self.batch_size:
            yield "algorithm.rollout_batch_size", _not_a_multiple(rollout, f"train.batch_size {self.batch_size}")
        if rollout != self.batch_size and rollout % self.processes:
            yield "algorithm.rollout_batch_size", _not_a_multiple(rollout, f"{self.processes} processes")


def batches(stage: Any, engine: Any) -> Batches | None:
    """Return the batch sizes of a stage's settings under an engine's; None where the stage has none."""
    train: Any = getattr(stage, "train", None)
    algorithm: Any = getattr(stage, "algorithm", None)
    if train is None or not hasattr(train, "batch_size"):
        return None
    rolls = hasattr(algorithm, "rollout_batch_size")
    return Batches(
        processes=getattr(engine, "processes", 1),
        batch_size=train.batch_size,
        micro_batch_size=train.micro_batch_size,
        rollout_batch_size=(algorithm.rollout_batch_size or train.batch_size) if rolls else None,
        group_size=getattr(algorithm, "group_size", 1),
        epochs=getattr(algorithm, "updates_epochs", 1),
    )


def _not_a_multiple(value: int, unit: str) -> str:
    return f"not a multiple of {unit}, got {value}; choose a multiple"
