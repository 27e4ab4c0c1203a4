"""GRPO and its relatives: rewards compared within a group, PPO's clipped objective, KL to a reference in the loss.

Shao et al. 2024, arXiv 2402.03300, section 4.1. The losses and their papers are in ``rlkit.ops.policy_loss``, the
advantages in ``rlkit.ops.advantages``.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlkit.config.algorithms import GRPOSettings
from rlkit.job import Job
from rlkit.ops.advantages import group_advantages
from rlkit.ops.kl import kl_k1, kl_k3
from rlkit.ops.policy_loss import LOSSES, NORMALIZATION, Counts, aggregate, entropy_bonus, kl_penalty, log_ratio
from rlkit.policy.algorithm import PolicyAlgorithm
from rlkit.policy.build import policy_trainer
from rlkit.policy.group_batch import GroupBatch
from rlkit.policy.grouped_forward import PolicyOutput
from rlkit.policy.rollouts import Rollouts
from rlkit.policy.trainer import PolicyTrainer


class GRPO(PolicyAlgorithm):
    """Experience and loss.

    Args:
        settings: the algorithm's settings.
    """

    def __init__(self, settings: GRPOSettings) -> None:
        super().__init__()
        self.settings = settings
        self.state["kl_coef"] = settings.kl_coef

    def experience(self, rollouts: Rollouts) -> dict[str, Tensor]:
        """Return ``advantages`` (B, G)."""
        settings = self.settings
        advantages = group_advantages(
            rollouts.rewards, rollouts.present, scale=settings.advantage_scale, baseline=settings.advantage_baseline
        )
        return {"rewards": rollouts.rewards, "advantages": advantages}

    def loss(self, output: PolicyOutput, batch: GroupBatch, counts: Counts) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a micro-batch's share of the loss, and of what is logged."""
        settings, numbers = self.settings, batch.numbers
        how = NORMALIZATION[settings.loss]
        clipped = LOSSES[settings.loss](
            output.logprobs,
            numbers["old_logprobs"],
            numbers["advantages"],
            batch.mask,
            counts,
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
        )
        assert output.entropy is not None
        loss = clipped.loss
        metrics = {
            "clip_fraction": clipped.clip_fraction,
            "entropy": aggregate(output.entropy, batch.mask, counts, "token"),
        }
        if settings.kl_coef > 0:
            kl = self._kl(output.logprobs, numbers, batch.mask)
            loss = loss + kl_penalty(kl, batch.mask, counts, how, self.state["kl_coef"])
            metrics["kl"] = aggregate(kl, batch.mask, counts, "token")
        if settings.entropy_coef > 0:
            loss = loss + entropy_bonus(output.entropy, batch.mask, counts, how, settings.entropy_coef)
        return loss, metrics

    def _kl(self, logprobs: Tensor, numbers: dict[str, Tensor], mask: Tensor) -> Tensor:
        """Return (B, G, C) the KL estimate whose gradient is wanted.

        The gradient of k1 alone is zero on average; weighted by the ratio it is that of the KL divergence itself.
        """
        if self.settings.kl_estimator == "k3":
            return kl_k3(logprobs, numbers["ref_logprobs"])
        return log_ratio(logprobs, numbers["old_logprobs"], mask).exp() * kl_k1(logprobs, numbers["ref_logprobs"])


def add_ground_truth(rollouts: Rollouts, constraint: Any) -> Rollouts:
    """Replace the last completion of every group without a hit by the answer."""
    batch = rollouts.batch
    width = max(batch.completions.shape[-1], rollouts.answers.shape[-1])

    def wide(value: Tensor) -> Tensor:
        return torch.nn.functional.pad(value, (0, width - value.shape[-1]))

    completions, mask = wide(batch.completions), wide(batch.mask)
    answers, answer_mask = wide(rollouts.answers), wide(rollouts.answer_mask)
    same = (completions.masked_fill(~mask, -1) == answers.masked_fill(~answer_mask, -1)[:, None]).all(-1)
    missing = ~same.any(-1)  # (B,)
    completions[missing, -1], mask[missing, -1] = answers[missing], answer_mask[missing]
    scores = rollouts.scores.clone()
    scores[missing, -1] = math.nan  # it was not sampled
    leaves = rollouts.leaves
    if leaves is not None and missing.any():
        leaves = leaves.clone()
        leaves[missing, -1] = constraint.walk(answers[missing])[:, -1].to(leaves)
    batch = replace(batch, completions=completions, mask=mask)
    return replace(rollouts, batch=batch, scores=scores, leaves=leaves)


def grpo(job: Job) -> PolicyTrainer:
    """Build the trainer of a GRPO stage."""
    settings: GRPOSettings = job.settings.algorithm
    amend = None
    if settings.add_ground_truth:
        amend = lambda rollouts: add_ground_truth(rollouts, job.domain.constraint)  # noqa: E731
    return policy_trainer(job, GRPO(settings), settings, amend)
