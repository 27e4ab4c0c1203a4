"""Does the order of a group's completions matter? For a reward it must not, nor for a policy loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlkit.ops.policy_loss import Counts
from rlkit.policy.rollouts import Rollouts

TOLERANCE = 1e-5


def sample_rollouts(trainer: Any) -> Rollouts:
    """Return rewarded rollouts of a trainer's untrained policy."""
    trainer.model.eval()
    with torch.no_grad():
        return trainer.collector.collect(trainer.model.lm, 0, 0, 4).rollouts


def orders(rollouts: Rollouts) -> Tensor:
    """Return (B, G) another order of each group: one place further, and backwards in every second group."""
    groups, size = rollouts.scores.shape
    order = torch.arange(size).roll(1).expand(groups, size).clone()
    order[::2] = order[::2].flip(-1)
    return order


def permuted(rollouts: Rollouts, order: Tensor) -> Rollouts:
    """Return the same rollouts with the completions of each group in another order."""

    def move(value: Tensor) -> Tensor:
        index = order.view(*order.shape, *[1] * (value.ndim - 2)).expand_as(value)
        return value.gather(1, index)

    batch = replace(
        rollouts.batch,
        completions=move(rollouts.batch.completions),
        mask=move(rollouts.batch.mask),
        numbers={name: move(value) for name, value in rollouts.batch.numbers.items()},
        kept=None if rollouts.batch.kept is None else move(rollouts.batch.kept),
    )
    return replace(
        rollouts,
        batch=batch,
        scores=move(rollouts.scores),
        leaves=None if rollouts.leaves is None else move(rollouts.leaves),
        truncated=move(rollouts.truncated),
        rewards=move(rollouts.rewards),
        parts={name: move(value) for name, value in rollouts.parts.items()},
    )


def reward_difference(trainer: Any, reward: Any) -> float:
    """Return by how much a reward's scores differ, at most, between groups in two orders."""
    rollouts = sample_rollouts(trainer)
    order = orders(rollouts)
    here, there = reward(rollouts).float(), reward(permuted(rollouts, order)).float()
    present = rollouts.present.gather(1, order)
    return float((here.gather(1, order) - there)[present].abs().max())


def loss_difference(trainer: Any) -> float:
    """Return by how much the loss differs between groups in two orders, relative to a loss of 1."""
    rollouts = sample_rollouts(trainer)
    # rewards that differ, so that the comparison says something whatever the policy wrote
    rewards = torch.arange(rollouts.rewards.numel()).view_as(rollouts.rewards).sin()
    rollouts = replace(rollouts, rewards=rewards.masked_fill(~rollouts.present, 0.0))
    losses = [_loss(trainer, each) for each in (rollouts, permuted(rollouts, orders(rollouts)))]
    return abs(losses[0] - losses[1]) / max(1.0, abs(losses[0]))


@torch.no_grad()
def _loss(trainer: Any, rollouts: Rollouts) -> float:
    """Return the loss of one batch, with references and old log-probs that differ from the current ones."""
    numbers = trainer.algorithm.experience(rollouts) | {"scores": rollouts.scores}
    batch = replace(rollouts.batch, numbers=dict(numbers)).to(trainer.args.device)
    output = trainer.model(batch)
    values = getattr(output, "values", None)
    batch.numbers |= {"old_logprobs": 1.02 * output.logprobs, "ref_logprobs": 1.05 * output.logprobs}
    batch.numbers |= {"ref_kl": 0.01 * output.logprobs.abs(), **({} if values is None else {"values": 0.9 * values})}
    if trainer.algorithm.credits:
        trainer.algorithm.credit([batch])
    counts = Counts(batch.num_tokens.float(), batch.num_completions.float(), trainer.collector.max_completion_tokens)
    return float(trainer.algorithm.loss(output, batch, counts)[0])
