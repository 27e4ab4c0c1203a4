"""RLOO: REINFORCE on whole completions, each compared with the others of its group, the KL penalty in the reward.

Ahmadian et al. 2024, arXiv 2402.14740, section 3. A completion is one action: its log-prob is the sum over its tokens,
and so is its KL penalty. Where a rollout serves several updates the ratio is clipped, as in TRL; the paper has one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlkit.config.reinforce import RLOOSettings
from rlkit.job import Job
from rlkit.models.wrapped import global_sum
from rlkit.ops.advantages import leave_one_out_advantages
from rlkit.ops.gae import mean_and_variance, moments
from rlkit.ops.kl import ESTIMATORS
from rlkit.ops.policy_loss import NORMALIZATION, Counts, aggregate, entropy_bonus
from rlkit.ops.policy_loss import rloo as rloo_loss
from rlkit.policy.algorithm import PolicyAlgorithm
from rlkit.policy.build import policy_trainer
from rlkit.policy.group_batch import GroupBatch
from rlkit.policy.grouped_forward import PolicyOutput
from rlkit.policy.trainer import PolicyTrainer


class RLOO(PolicyAlgorithm):
    """Credit and loss.

    Args:
        settings: the algorithm's settings.
    """

    credits = True

    def __init__(self, settings: RLOOSettings) -> None:
        super().__init__()
        self.settings = settings
        self.state["kl_coef"] = settings.kl_coef

    def credit(self, parts: Sequence[GroupBatch]) -> dict[str, float]:
        """Add ``advantages`` (B, G) to the mini-batches, and return the mean KL per token."""
        kls = [self._kl(part) for part in parts]
        for part, kl in zip(parts, kls):
            part.numbers["advantages"] = leave_one_out_advantages(
                part.numbers["rewards"], kl, part.mask, self.state["kl_coef"]
            )
        if self.settings.kl_coef == 0:
            return {}
        found = torch.stack([moments(kl, part.mask) for part, kl in zip(parts, kls)]).sum(0)
        return {"kl": float(mean_and_variance(global_sum(found))[0])}

    def _kl(self, part: GroupBatch) -> Tensor:
        """Return (B, G, C) the KL of the sampling policy per token; 0 without a reference."""
        numbers, how = part.numbers, self.settings.kl_estimator
        if self.settings.kl_coef == 0:
            return torch.zeros_like(numbers["old_logprobs"])
        return numbers["ref_kl"] if how == "full" else ESTIMATORS[how](numbers["old_logprobs"], numbers["ref_logprobs"])

    def loss(self, output: PolicyOutput, batch: GroupBatch, counts: Counts) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a micro-batch's share of the loss, and of what is logged."""
        settings, mask = self.settings, batch.mask
        assert output.entropy is not None
        clipped = rloo_loss(
            output.logprobs,
            batch.numbers["old_logprobs"],
            batch.numbers["advantages"],
            mask,
            counts,
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
        )
        loss = clipped.loss
        if settings.entropy_coef > 0:
            loss = loss + entropy_bonus(output.entropy, mask, counts, NORMALIZATION["rloo"], settings.entropy_coef)
        return loss, {
            "clip_fraction": clipped.clip_fraction,
            "entropy": aggregate(output.entropy, mask, counts, "token"),
        }


def rloo(job: Job) -> PolicyTrainer:
    """Build the trainer of an RLOO stage."""
    settings: RLOOSettings = job.settings.algorithm
    return policy_trainer(job, RLOO(settings), settings)
