"""Settings of the policy-gradient algorithms without a value: RLOO and REINFORCE++."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlkit.component import Settings, Slot
from rlkit.config.algorithms import PolicySettings
from rlkit.config.rollouts import SampleSettings


class RLOOSettings(PolicySettings):
    """REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024, arXiv 2402.14740)."""

    type: Literal["rloo"] = "rloo"

    rollout: Annotated[Settings, Slot("rollout", "sample")] = Field(default_factory=lambda: _independent_samples())
    """How completions are made; independent samples, which the baseline supposes (under a constraint: not distinct)."""
    group_size: int = Field(4, ge=2)
    """G: completions per prompt; each is compared with the mean of the others."""
    kl_coef: float = Field(0.05, ge=0)
    """Weight of the KL penalty in a completion's reward; 0: no reference is kept."""
    kl_estimator: Literal["k1", "k2", "k3", "abs", "full"] = "k1"
    """Schulman's estimators (k1 is the paper's), the absolute log-ratio (abs), or the exact divergence (full)."""
    clip_low: float = Field(0.2, ge=0, le=1)
    """A completion's probability ratio may fall to 1 - clip_low; acts where a rollout serves several updates."""
    clip_high: float = Field(0.2, ge=0, le=9)
    """A completion's probability ratio may rise to 1 + clip_high."""

    @model_validator(mode="after")
    def _reference_is_used(self) -> RLOOSettings:
        _check_reference(self)
        return self


class ReinforcePPSettings(PolicySettings):
    """REINFORCE++: returns normalized over the global batch, PPO's clip (Hu et al. 2025, arXiv 2501.03262)."""

    type: Literal["reinforce_pp"] = "reinforce_pp"

    rollout: Annotated[Settings, Slot("rollout", "sample")] = Field(default_factory=lambda: _independent_samples())
    """How completions are made; independent samples (under a constraint: not distinct)."""
    group_size: int = Field(1, ge=1)
    """G: completions per prompt."""
    baseline: Literal["none", "group"] = "none"
    """group: take the group's mean from the rewards first, as the paper does with kl_in loss and kl_estimator k2."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per token."""
    kl_coef: float = Field(0.01, ge=0)
    """Weight of the KL penalty to the reference; 0: no reference is kept."""
    kl_in: Literal["reward", "loss"] = "reward"
    """Where the penalty acts: in every token's reward, or in the loss."""
    kl_estimator: Literal["k1", "k2", "k3", "abs", "full"] = "k1"
    """Schulman's estimators, the absolute log-ratio (abs), or the exact divergence over the vocabulary (full)."""
    clip_low: float = Field(0.2, ge=0, le=1)
    """A probability ratio may fall to 1 - clip_low."""
    clip_high: float = Field(0.2, ge=0, le=9)
    """A probability ratio may rise to 1 + clip_high."""

    @model_validator(mode="after")
    def _groups_are_compared_where_they_have_to_be(self) -> ReinforcePPSettings:
        _check_reference(self)
        if self.baseline == "group" and self.group_size < 2:
            raise ValueError("baseline group compares completions of a prompt; set group_size to 2 or more")
        if self.baseline == "none" and self.zero_signal != "keep":
            raise ValueError(
                f"zero_signal {self.zero_signal} does not go with baseline none: a group whose rewards are all equal "
                "still differs from the batch; write keep, or baseline: group"
            )
        if self.kl_in == "loss" and self.kl_estimator in ("abs", "full"):
            raise ValueError(
                f"kl_estimator {self.kl_estimator} serves in the reward only; write k1, k2 or k3, or kl_in: reward"
            )
        return self


def _check_reference(settings: PolicySettings) -> None:
    if settings.reference_sync is not None and settings.kl_coef == 0:
        raise ValueError("reference_sync does nothing where kl_coef is 0; set kl_coef or leave reference_sync out")


def _independent_samples() -> SampleSettings:
    return SampleSettings(distinct=False)
