"""How a rollout is cut: the loop's arithmetic, the mini-batches of its updates, and each rank's part of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from rlkit.policy.group_batch import GroupBatch


@dataclass(frozen=True)
class LoopSettings:
    """The arithmetic of the loop.

    Args:
        rollout_batch_size: prompts per rollout, over all ranks.
        batch_size: prompts per optimizer step, over all ranks.
        updates_epochs: passes over each rollout.
        rollouts: rollouts in all.
    """

    rollout_batch_size: int
    batch_size: int
    updates_epochs: int
    rollouts: int

    @property
    def updates(self) -> int:
        """Return U, the optimizer steps that one rollout serves."""
        return self.updates_epochs * self.rollout_batch_size // self.batch_size


class Tickets(IterableDataset):
    """Counts steps for the Trainer; the prompts are ours, since its loader reads ahead."""

    def __iter__(self) -> Iterator[int]:
        while True:
            yield 0


def part_of(batch: GroupBatch, rows: Tensor) -> GroupBatch:
    """Return some groups; where there are none one group that counts nothing, so that every rank takes every step."""
    return batch.select(rows) if len(rows) else nothing_of(batch)


def nothing_of(batch: GroupBatch) -> GroupBatch:
    """Return a single group in which nothing counts."""
    part = batch.select([0])
    part.mask = torch.zeros_like(part.mask)
    return part


def mini_batches(batch: GroupBatch, keep: Tensor, batch_size: int, *, rank: int, processes: int) -> list[GroupBatch]:
    """Return a rank's part of each mini-batch: the same global mini-batches on any number of ranks.

    Args:
        batch: all groups of a rollout.
        keep: (B,) which of them are trained on.
        batch_size: groups per mini-batch, over all ranks.
        rank: of this process.
        processes: ranks.
    """
    parts = []
    for rows in torch.arange(len(batch)).split(batch_size):
        kept = rows[keep[rows]]
        parts.append(part_of(batch, kept.tensor_split(processes)[rank]))
    return parts
