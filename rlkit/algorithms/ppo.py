"""PPO with a value head: a KL penalty per token in the reward, GAE, and the clipped policy and value losses.

Schulman et al. 2017, arXiv 1707.06347; for language models Ziegler et al. 2019, 1909.08593, and Ouyang et al. 2022,
2203.02155. Policy and value are one module under one optimizer. Deviations: the value of what would come after the last
token is 0 also where a completion was cut off (``missing_eos_penalty`` is for those), and advantages are whitened over
the whole rollout, not per mini-batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlkit.config.ppo import PPOSettings
from rlkit.job import Job
from rlkit.models.wrapped import global_sum
from rlkit.ops.gae import gae, moments, token_rewards, whitened
from rlkit.ops.kl import ESTIMATORS, kl_k3
from rlkit.ops.kl_controller import adapted
from rlkit.ops.policy_loss import Counts, aggregate, dapo, entropy_bonus, kl_penalty, log_ratio
from rlkit.ops.value_loss import explained_variance, value_loss
from rlkit.policy.algorithm import PolicyAlgorithm
from rlkit.policy.build import policy_trainer
from rlkit.policy.group_batch import GroupBatch
from rlkit.policy.grouped_forward import PolicyOutput
from rlkit.policy.rollouts import Rollouts
from rlkit.policy.trainer import PolicyTrainer


class PPO(PolicyAlgorithm):
    """Experience, credit and loss.

    Args:
        settings: the algorithm's settings.
    """

    credits = True

    def __init__(self, settings: PPOSettings) -> None:
        super().__init__()
        self.settings = settings
        self.state["kl_coef"] = settings.kl_coef
        self.target_kl, self.value_learning_rate = settings.target_kl, settings.value.learning_rate

    def experience(self, rollouts: Rollouts) -> dict[str, Tensor]:
        """Return ``rewards`` (B, G), shaped, and ``dense_rewards`` (B, G, C) where a reward scores tokens."""
        settings, dense = self.settings, rollouts.dense
        whole = rollouts.rewards if dense is None else rollouts.rewards - dense.sum(-1)
        numbers = {"rewards": self._shaped(whole) - settings.missing_eos_penalty * rollouts.truncated}
        return numbers if dense is None else numbers | {"dense_rewards": self._shaped(dense)}

    def _shaped(self, rewards: Tensor) -> Tensor:
        """Return scaled and clipped rewards, within a range that values can follow."""
        rewards, clip = rewards * self.settings.reward_scale, self.settings.reward_clip
        return rewards if clip is None else rewards.clamp(-clip, clip)

    def credit(self, parts: Sequence[GroupBatch]) -> dict[str, float]:
        """Add ``advantages`` and ``returns`` (B, G, C) to the mini-batches, and adapt the KL penalty's weight."""
        kls = [self._kl_of_rollout(part) for part in parts]
        for part, kl in zip(parts, kls):
            numbers, weight = part.numbers, self.state["kl_coef"] if self.settings.kl_in == "reward" else 0.0
            earned = token_rewards(numbers["rewards"], kl, part.mask, weight) + numbers.get("dense_rewards", 0.0)
            numbers["advantages"], numbers["returns"] = gae(
                earned, numbers["values"], part.mask, gamma=self.settings.gamma, lam=self.settings.gae_lambda
            )
        metrics = self._describe(parts, kls)
        if self.settings.whiten_advantages:
            whole = _moments([part.numbers["advantages"] for part in parts], parts)
            for part in parts:
                part.numbers["advantages"] = whitened(part.numbers["advantages"], part.mask, whole)
        return metrics | self._adapt(metrics.get("kl", 0.0), parts)

    def _kl_of_rollout(self, part: GroupBatch) -> Tensor:
        """Return (B, G, C) the penalty of each token; 0 without a reference."""
        numbers = part.numbers
        if self.settings.kl_coef == 0:
            return torch.zeros_like(numbers["old_logprobs"])
        if self.settings.kl_estimator == "full":
            return numbers["ref_kl"]
        return ESTIMATORS[self.settings.kl_estimator](numbers["old_logprobs"], numbers["ref_logprobs"])

    def _describe(self, parts: Sequence[GroupBatch], kls: Sequence[Tensor]) -> dict[str, float]:
        """Return means per token over all ranks, and how much of the returns the values explain."""
        returns = [part.numbers["returns"] for part in parts]
        errors = [goal - part.numbers["values"] for goal, part in zip(returns, parts)]
        of_returns, of_errors = _moments(returns, parts), _moments(errors, parts)
        found = {
            "return": float(of_returns[1] / of_returns[0].clamp_min(1)),
            "explained_variance": float(explained_variance(of_errors, of_returns)),
        }
        if self.settings.kl_coef > 0:
            of_kl = _moments(kls, parts)
            found["kl"] = float(of_kl[1] / of_kl[0].clamp_min(1))
        return found

    def _adapt(self, kl: float, parts: Sequence[GroupBatch]) -> dict[str, float]:
        """Move the weight of the penalty, after its use in this rollout."""
        used, controller = self.state["kl_coef"], self.settings.kl_controller
        if self.settings.kl_coef == 0:
            return {}
        if controller is not None:
            completions = sum((part.num_completions for part in parts), torch.zeros((), dtype=torch.long))
            count = int(global_sum(completions.to(parts[0].mask.device)))
            self.state["kl_coef"] = adapted(
                used, kl, target=controller.target, horizon=controller.horizon, completions=count
            )
        return {"kl_coef": used}

    def loss(self, output: PolicyOutput, batch: GroupBatch, counts: Counts) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a micro-batch's share of the loss, and of what is logged."""
        settings, numbers, mask = self.settings, batch.numbers, batch.mask
        assert output.values is not None
        assert output.entropy is not None
        clip = {"clip_low": settings.clip_low, "clip_high": settings.clip_high}
        # averaged over all tokens of the step, as DAPO does: the mean that PPO's objective asks for
        policy = dapo(output.logprobs, numbers["old_logprobs"], numbers["advantages"], mask, counts, **clip)
        value = value_loss(output.values, numbers["values"], numbers["returns"], mask, counts, clip=settings.value.clip)
        moved = kl_k3(numbers["old_logprobs"], output.logprobs.detach())
        loss = policy.loss + settings.value.coef * value.loss
        if settings.kl_in == "loss" and settings.kl_coef > 0:
            loss = loss + kl_penalty(self._kl_of_loss(output, batch), mask, counts, "token", self.state["kl_coef"])
        if settings.entropy_coef > 0:
            loss = loss + entropy_bonus(output.entropy, mask, counts, "token", settings.entropy_coef)
        return loss, {
            "policy_loss": policy.loss,
            "value_loss": value.loss,
            "clip_fraction": policy.clip_fraction,
            "value_clip_fraction": value.clip_fraction,
            "entropy": aggregate(output.entropy, mask, counts, "token"),
            "approx_kl": aggregate(moved, mask, counts, "token"),
        }

    def _kl_of_loss(self, output: PolicyOutput, batch: GroupBatch) -> Tensor:
        """Return (B, G, C) the estimate whose gradient is that of the KL divergence; k1's own is zero on average."""
        numbers = batch.numbers
        kl = ESTIMATORS[self.settings.kl_estimator](output.logprobs, numbers["ref_logprobs"])
        if self.settings.kl_estimator == "k1":
            return log_ratio(output.logprobs, numbers["old_logprobs"], batch.mask).exp() * kl
        return kl


def _moments(values: Sequence[Tensor], parts: Sequence[GroupBatch]) -> Tensor:
    """Return (3,) moments of per-token values over all mini-batches of all ranks."""
    found = [moments(value, part.mask) for value, part in zip(values, parts)]
    return global_sum(torch.stack(found).sum(0))


def ppo(job: Job) -> PolicyTrainer:
    """Build the trainer of a PPO stage."""
    settings: PPOSettings = job.settings.algorithm
    return policy_trainer(job, PPO(settings), settings, value=settings.value)
