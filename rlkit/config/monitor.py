"""Settings of the health monitor, which watches every online stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlkit.component import Settings

AlarmName = Literal[
    "non_finite",
    "large_updates",
    "kl_high",
    "kl_growing",
    "kl_low",
    "reward_falling",
    "no_signal",
    "entropy_collapse",
    "length_growing",
    "length_shrinking",
    "truncated",
    "gradient_growing",
    "value_diverging",
    "reward_fails",
    "reward_slow",
    "hacking_gap",
]
Action = Literal["ignore", "warn", "stop", "rollback", "adapt"]
KL_ALARMS = ("kl_high", "kl_growing", "kl_low")


class MonitorSettings(Settings):
    """What counts as sick while a policy trains, and what is done about it; see docs/monitor.md.

    Time is counted in rollouts. Nothing but ``non_finite`` is said of the first five.
    """

    action: Action = "warn"
    """What every alarm leads to: a line (warn), the end of the stage with its best or last model (stop), the weights of
    the last healthy checkpoint (rollback); adapt: alarms about KL move ``kl_coef``, the others warn."""
    actions: dict[AlarmName, Action] = Field(default_factory=dict)
    """The same for single alarms."""
    window: int = Field(10, ge=2, le=40)
    """Rollouts that are compared with as many before them."""
    repeat_every: int = Field(20, ge=1)
    """An alarm that lasts is said again after so many rollouts."""
    kl_low: float = Field(0.01, ge=0)
    """KL to the reference per token below which a policy has not moved, past the middle of a stage that has not raised
    its reward; 0: never."""
    kl_high: float = Field(0.5, gt=0)
    """KL to the reference per token above which the policy has left it."""
    clip_fraction: float = Field(0.3, gt=0, le=1)
    """Share of tokens that the policy loss clips, above which steps are too large."""
    approx_kl: float = Field(0.1, gt=0)
    """KL per token to the policy that sampled, above which steps are too large."""
    entropy: float = Field(0.5, ge=0)
    """Entropy per token, in nats, below which it is looked at: at a fifth of where it began, without a better reward or
    with few different completions, it has collapsed."""
    reward_drop: float = Field(4.0, gt=0)
    """By how many standard errors the reward of a window must lie below that of the window before."""
    zero_signal: float = Field(0.95, gt=0, le=1)
    """Share of groups without a signal from which on there is nothing to learn."""
    length_ratio: float = Field(2.5, gt=1)
    """Completions this many times as long, or as short, as at the start have drifted."""
    truncated: float = Field(0.5, gt=0, le=1)
    """Share of completions that are cut off."""
    gradient_ratio: float = Field(10.0, gt=1)
    """Growth of the gradient's norm, medians of 5 rollouts against the window before."""
    value_ratio: float = Field(3.0, gt=1)
    """Growth of the value loss since the start, where values explain nothing."""
    unscored: float = Field(0.05, ge=0, lt=1)
    """Share of completions that a reward could not score."""
    reward_ms: float = Field(1000.0, gt=0)
    """Milliseconds per completion from which on a part of the reward is slow."""
    hacking_gap: float = Field(0.1, gt=0)
    """Fall of a held-out figure below its best look, as a share of it, while the reward in training rises; twice."""
    non_finite_limit: int = Field(5, ge=0)
    """Steps of a stage whose loss or gradient may be infinite or NaN: they are skipped; one more ends the run."""
    rollbacks: int = Field(3, ge=1)
    """How often a stage rolls back; where it would once more, it stops."""
    rollback_learning_rate: float = Field(0.5, gt=0, le=1)
    """What the learning rate is multiplied by when rolling back."""
    rollback_kl_coef: float = Field(1.0, ge=1)
    """What ``kl_coef`` is multiplied by when rolling back."""
    adapt_factor: float = Field(1.2, gt=1)
    """What adapt multiplies ``kl_coef`` by, or divides it by, in every rollout that the alarm lasts."""

    @model_validator(mode="after")
    def _actions_make_sense(self) -> MonitorSettings:
        wrong = [name for name, action in self.actions.items() if action == "adapt" and name not in KL_ALARMS]
        if wrong:
            raise ValueError(
                f"adapt moves kl_coef and is for {', '.join(KL_ALARMS)} only, "
                f"got {', '.join(wrong)}; choose another action"
            )
        if self.kl_low >= self.kl_high:
            raise ValueError(f"kl_low must lie below kl_high {self.kl_high:g}, got {self.kl_low:g}; exchange them")
        if self.action_for("non_finite") == "ignore":
            raise ValueError("non_finite cannot be ignored; raise non_finite_limit, or write monitor: null")
        return self

    def action_for(self, alarm: str) -> Action:
        """Return what an alarm leads to."""
        action = self.actions.get(alarm, self.action)  # type: ignore[call-overload]
        return "warn" if action == "adapt" and alarm not in KL_ALARMS else action

    @property
    def changes_training(self) -> bool:
        """Return whether some alarm may change what is trained; what merely warns is no other run."""
        return not {self.action, *self.actions.values()} <= {"warn", "ignore"}
