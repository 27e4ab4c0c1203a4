"""REINFORCE++: what is earned from each token on, normalized over the global batch, under PPO's clip; no value.

Hu et al. 2025, arXiv 2501.03262, section 3. The variant "with baseline" first takes the group's mean from the rewards.
Like OpenRLHF's, the returns of all tokens of all ranks are normalized together, and the loss is a mean over tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlkit.config.reinforce import ReinforcePPSettings
from rlkit.job import Job
from rlkit.models.wrapped import global_sum
from rlkit.ops.advantages import returns_to_go
from rlkit.ops.gae import mean_and_variance, moments, whitened
from rlkit.ops.kl import ESTIMATORS
from rlkit.ops.policy_loss import Counts, aggregate, dapo, entropy_bonus, kl_penalty, log_ratio
from rlkit.policy.algorithm import PolicyAlgorithm
from rlkit.policy.build import policy_trainer
from rlkit.policy.group_batch import GroupBatch
from rlkit.policy.grouped_forward import PolicyOutput
from rlkit.policy.trainer import PolicyTrainer


class ReinforcePP(PolicyAlgorithm):
    """Credit and loss.

    Args:
        settings: the algorithm's settings.
    """

    credits = True

    def __init__(self, settings: ReinforcePPSettings) -> None:
        super().__init__()
        self.settings = settings
        self.state["kl_coef"] = settings.kl_coef

    def credit(self, parts: Sequence[GroupBatch]) -> dict[str, float]:
        """Add ``advantages`` (B, G, C) to the mini-batches, and return the mean KL and return per token."""
        settings = self.settings
        weight = self.state["kl_coef"] if settings.kl_in == "reward" else 0.0
        kls = [self._kl(part) for part in parts]
        returns = [
            returns_to_go(
                part.numbers["rewards"], kl, part.mask,
                kl_coef=weight, gamma=settings.gamma, group_baseline=settings.baseline == "group",
            )
            for part, kl in zip(parts, kls)
        ]  # fmt: skip
        of_returns, of_kl = _moments(returns, parts), _moments(kls, parts)
        for part, value in zip(parts, returns):
            part.numbers["advantages"] = whitened(value, part.mask, of_returns)
        metrics = {"return": float(mean_and_variance(of_returns)[0])}
        return metrics | ({"kl": float(mean_and_variance(of_kl)[0])} if settings.kl_coef > 0 else {})

    def _kl(self, part: GroupBatch) -> Tensor:
        """Return (B, G, C) the KL of the sampling policy per token; 0 without a reference."""
        numbers, how = part.numbers, self.settings.kl_estimator
        if self.settings.kl_coef == 0:
            return torch.zeros_like(numbers["old_logprobs"])
        return numbers["ref_kl"] if how == "full" else ESTIMATORS[how](numbers["old_logprobs"], numbers["ref_logprobs"])

    def loss(self, output: PolicyOutput, batch: GroupBatch, counts: Counts) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a micro-batch's share of the loss, and of what is logged."""
        settings, numbers, mask = self.settings, batch.numbers, batch.mask
        assert output.entropy is not None
        clip = {"clip_low": settings.clip_low, "clip_high": settings.clip_high}
        clipped = dapo(output.logprobs, numbers["old_logprobs"], numbers["advantages"], mask, counts, **clip)
        loss = clipped.loss
        if settings.kl_in == "loss" and settings.kl_coef > 0:
            loss = loss + kl_penalty(self._kl_of_loss(output, batch), mask, counts, "token", self.state["kl_coef"])
        if settings.entropy_coef > 0:
            loss = loss + entropy_bonus(output.entropy, mask, counts, "token", settings.entropy_coef)
        return loss, {
            "clip_fraction": clipped.clip_fraction,
            "entropy": aggregate(output.entropy, mask, counts, "token"),
        }

    def _kl_of_loss(self, output: PolicyOutput, batch: GroupBatch) -> Tensor:
        """Return (B, G, C) the estimate whose gradient is wanted; k1 needs the ratio, its own is zero on average."""
        kl = ESTIMATORS[self.settings.kl_estimator](output.logprobs, batch.numbers["ref_logprobs"])
        if self.settings.kl_estimator == "k1":
            kl = log_ratio(output.logprobs, batch.numbers["old_logprobs"], batch.mask).exp() * kl
        return kl


def _moments(values: Sequence[Tensor], parts: Sequence[GroupBatch]) -> Tensor:
    """Return (3,) moments of per-token values over all mini-batches of all ranks."""
    found = [moments(value, part.mask) for value, part in zip(values, parts)]
    return global_sum(torch.stack(found).sum(0))


def reinforce_pp(job: Job) -> PolicyTrainer:
    """Build the trainer of a REINFORCE++ stage."""
    settings: ReinforcePPSettings = job.settings.algorithm
    return policy_trainer(job, ReinforcePP(settings), settings)
