"""Settings of PPO with a value head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from rlkit.component import Settings, Slot
from rlkit.config.algorithms import PolicySettings
from rlkit.config.rollouts import SampleSettings
from rlkit.errors import DataError


class ValueSettings(Settings):
    """What values the states of a policy."""

    references: ClassVar[Mapping[str, tuple[str, ...]]] = {"start_from": ("policy", "reward_model")}

    backbone: Literal["shared", "separate"] = "shared"
    """A head on the policy's own states, or a model of its own, which costs a second forward and backward pass."""
    start_from: str | None = None
    """The stage whose weights it starts from: a reward model, a policy, or the value of an earlier PPO stage.

    None: a separate model starts from the last reward model before, else where the policy does; a shared head is new.
    """
    path: str | None = None
    """A folder that a separate model starts from: a reward model or a causal LM; wins over ``start_from``."""
    learning_rate: float | None = Field(None, gt=0)
    """The peak learning rate of head or model; none: ``train.learning_rate``."""
    coef: float = Field(0.1, ge=0)
    """The value loss's weight beside the policy loss (vf_coef)."""
    clip: float | None = Field(0.2, gt=0)
    """How far a value may move from the one that the advantages were computed with; none: as far as it likes."""

    def files(self) -> tuple[str, ...]:
        """Return the folder that is named."""
        return (self.path,) if self.path else ()

    def check(self) -> None:
        """Look whether the folder is there.

        Raises:
            DataError: it is not.
        """
        if self.path and self.path.startswith((".", "/", "~")) and not Path(self.path).expanduser().is_dir():
            raise DataError(f"value.path: there is no folder {self.path!r}; name a reward model or a language model")

    @model_validator(mode="after")
    def _a_head_has_no_weights_of_its_own(self) -> ValueSettings:
        if self.backbone == "shared" and self.path is not None:
            raise ValueError("path is for backbone separate (a shared one is the policy's own); leave one of them out")
        return self


class KLControllerSettings(Settings):
    """Adapt the KL penalty's weight so that the KL stays near a target (Ziegler et al. 2019, arXiv 1909.08593, 2.2)."""

    target: float = Field(gt=0)
    """Mean KL to the reference that is aimed at, in nats per token."""
    horizon: int = Field(10_000, ge=1)
    """Completions over which the weight changes by at most a fifth."""


class PPOSettings(PolicySettings):
    """Proximal policy optimization with a value head (Schulman et al. 2017, arXiv 1707.06347), as used for RLHF."""

    type: Literal["ppo"] = "ppo"
    roles: ClassVar[tuple[str, ...]] = ("policy", "reference", "value", "reward")

    rollout: Annotated[Settings, Slot("rollout", "sample")] = Field(default_factory=SampleSettings)
    """How completions are made."""
    group_size: int = Field(1, ge=1)
    """G: completions per prompt."""
    updates_epochs: int = Field(4, ge=1)
    """Passes over each rollout."""
    zero_signal: Literal["keep"] = "keep"
    """Groups are not compared, so all of them are kept."""
    value: ValueSettings = ValueSettings()
    """What values states."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per token."""
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """Generalized advantage estimation (1506.02438): 0 trusts the next value, 1 sums the rewards that came."""
    clip_low: float = Field(0.2, ge=0, le=0.9)
    """A probability ratio may fall to 1 - clip_low."""
    clip_high: float = Field(0.2, ge=0, le=9)
    """A probability ratio may rise to 1 + clip_high."""
    kl_coef: float = Field(0.05, ge=0)
    """Weight of the KL penalty to the reference, at the start where ``kl_controller`` adapts it; 0: no reference."""
    kl_in: Literal["reward", "loss"] = "reward"
    """Where the penalty acts: in every token's reward, as in InstructGPT (2203.02155), or in the loss, as in GRPO."""
    kl_estimator: Literal["k1", "k2", "k3", "abs", "full"] = "k1"
    """Schulman's estimators, the absolute log-ratio (abs), or the exact divergence over the vocabulary (full)."""
    kl_controller: KLControllerSettings | None = None
    """Adapts ``kl_coef``; none: it stays."""
    target_kl: float | None = Field(None, gt=0)
    """Skip a rollout's remaining updates where the policy's KL to the one that sampled exceeds 1.5 times this."""
    whiten_advantages: bool = True
    """Give the advantages of each rollout mean 0 and variance 1, over all ranks."""
    missing_eos_penalty: float = Field(0.0, ge=0)
    """Taken from the reward of a completion that was cut off before its end."""
    reward_scale: float = Field(1.0, gt=0)
    """The reward is multiplied by this."""
    reward_clip: float | None = Field(None, gt=0)
    """The scaled reward is clipped to plus and minus this; none: it is not."""

    @model_validator(mode="after")
    def _the_penalty_is_one_that_acts(self) -> PPOSettings:
        if self.kl_coef == 0 and (self.kl_controller is not None or self.reference_sync is not None):
            raise ValueError(
                "kl_controller and reference_sync do nothing where kl_coef is 0; set it, or leave both out"
            )
        if self.kl_in == "loss" and self.kl_estimator in ("abs", "full"):
            raise ValueError(
                f"kl_estimator {self.kl_estimator} serves in the reward only; write k1, k2 or k3, or kl_in: reward"
            )
        return self
