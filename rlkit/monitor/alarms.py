"""Alarms: what a symptom means and what to change, and which of them are said, once, of a stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from rlkit.config.monitor import MonitorSettings
from rlkit.monitor import rules
from rlkit.monitor.history import History
from rlkit.monitor.rules import Symptom

WARM_UP = 5
"""Rollouts of which nothing is said."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of alarm.

    Args:
        cause: the likely one.
        change: keys below the stage (those that begin with ``monitor.`` or ``domain.`` below the recipe).
        rule: finds it; None: the loop itself does.
        after: alarms of which it is a consequence: while one of these lasts, it is not said.
    """

    cause: str
    change: tuple[str, ...]
    rule: Callable[[History, MonitorSettings], Symptom | None] | None
    after: tuple[str, ...] = ()


_STEPS = ("large_updates",)
KINDS: dict[str, Kind] = {
    "non_finite": Kind(
        "an overflow: too large a learning rate, too low a precision, or rewards of enormous size",
        ("train.learning_rate", "train.max_grad_norm", "train.precision", "algorithm.rewards[].clip"),
        None,
    ),
    "large_updates": Kind(
        "steps are too large: the learning rate is too high, or a rollout serves too many updates",
        ("train.learning_rate", "algorithm.updates_epochs", "train.max_grad_norm"),
        rules.large_updates,
    ),
    "kl_high": Kind(
        "the penalty is too weak for the learning rate, or the reward pays for texts that the reference never writes",
        ("algorithm.kl_coef", "train.learning_rate", "monitor.kl_high"),
        rules.kl_high,
        _STEPS,
    ),
    "kl_growing": Kind(
        "the policy begins to leave the reference",
        ("algorithm.kl_coef", "train.learning_rate"),
        rules.kl_growing,
        (*_STEPS, "kl_high"),
    ),
    "kl_low": Kind(
        "the policy hardly moves: the learning rate is too low, the penalty too strong, or the reward says little",
        ("train.learning_rate", "algorithm.kl_coef", "monitor.kl_low"),
        rules.kl_low,
        ("no_signal", "reward_fails", "reward_slow"),
    ),
    "reward_falling": Kind(
        "training undoes what it learned: the learning rate is too high, or the penalty outweighs the reward",
        ("train.learning_rate", "algorithm.kl_coef", "algorithm.updates_epochs"),
        rules.reward_falling,
        (*_STEPS, "entropy_collapse", "reward_fails", "reward_slow"),
    ),
    "no_signal": Kind(
        "the reward is the same for all completions: it is constant, out of reach, or completions do not differ",
        ("algorithm.rewards", "algorithm.group_size", "algorithm.rollout.temperature", "algorithm.skip_solved"),
        rules.no_signal,
        (*_STEPS, "entropy_collapse", "reward_fails", "reward_slow"),
    ),
    "entropy_collapse": Kind(
        "the policy has stopped to explore and says nearly the same whatever it is asked",
        ("algorithm.entropy_coef", "algorithm.kl_coef", "train.learning_rate", "algorithm.rollout.temperature"),
        rules.entropy_collapse,
        _STEPS,
    ),
    "length_growing": Kind(
        "the reward pays for length, or nothing pays for an end",
        ("algorithm.rewards (add length_penalty)", "algorithm.kl_coef", "algorithm.loss"),
        rules.length_growing,
        _STEPS,
    ),
    "length_shrinking": Kind(
        "the reward pays for brevity, or a penalty on length or on KL outweighs it",
        ("algorithm.rewards", "algorithm.kl_coef", "algorithm.loss"),
        rules.length_shrinking,
        (*_STEPS, "entropy_collapse"),
    ),
    "truncated": Kind(
        "completions have no room, or have not learned to end",
        ("algorithm.rollout.max_completion_tokens", "algorithm.rewards (add length_penalty)"),
        rules.truncated,
        (*_STEPS, "length_growing"),
    ),
    "gradient_growing": Kind(
        "training becomes unstable",
        ("train.learning_rate", "train.max_grad_norm", "algorithm.rewards[].clip"),
        rules.gradient_growing,
        _STEPS,
    ),
    "value_diverging": Kind(
        "values do not follow the returns: their learning rate is too high, or rewards are too large or keep changing",
        ("algorithm.value.learning_rate", "algorithm.reward_scale", "algorithm.reward_clip"),
        rules.value_diverging,
        (*_STEPS, "reward_falling"),
    ),
    "reward_fails": Kind(
        "the reward's code raises on them; see quarantine.jsonl and `rlkit rewards replay`",
        ("algorithm.rewards",),
        rules.reward_fails,
    ),
    "reward_slow": Kind(
        "the reward waits for something, or its deadline is too short",
        ("algorithm.rewards[].timeout_seconds", "algorithm.rewards[].workers"),
        rules.reward_slow,
    ),
    "hacking_gap": Kind(
        "the policy learns what pays in training and not what was meant: the reward has a hole, or prompts are few",
        ("algorithm.rewards", "algorithm.kl_coef", "algorithm.validate_on.select_by", "domain"),
        rules.hacking_gap,
        _STEPS,
    ),
}


@dataclass(frozen=True, slots=True)
class Alarm:
    """One alarm of one stage.

    Args:
        name: its kind.
        step: when it was found.
        since: the step where it began.
        symptom: what was seen, with numbers.
        cause: the likely one.
        change: settings, as dotted keys of the recipe.
        action: what it leads to.
    """

    name: str
    step: int
    since: int
    symptom: str
    cause: str
    change: tuple[str, ...]
    action: str

    @property
    def line(self) -> str:
        """Return it in one line."""
        return (
            f"{self.name} since step {self.since}: {self.symptom}; likely {self.cause}; change {', '.join(self.change)}"
        )

    def row(self) -> dict[str, Any]:
        """Return it as a row of alarms.jsonl."""
        row = asdict(self)
        return {"alarm": row.pop("name"), **row, "change": list(self.change)}


def alarm(name: str, stage: str, step: int, found: Symptom, action: str) -> Alarm:
    """Return an alarm with its meaning."""
    kind = KINDS[name]
    whole = tuple(key if key.split(".")[0] in ("monitor", "domain") else f"stages.{stage}.{key}" for key in kind.change)
    return Alarm(name, step, found[1], found[0], kind.cause, whole, action)


def symptoms(history: History, settings: MonitorSettings) -> dict[str, Symptom]:
    """Return every symptom that the history shows now."""
    if len(history.rows) < WARM_UP:
        return {}
    found = {name: kind.rule(history, settings) for name, kind in KINDS.items() if kind.rule is not None}
    return {name: symptom for name, symptom in found.items() if symptom and settings.action_for(name) != "ignore"}


class Watch:
    """Which alarms last, and which were said.

    Args:
        settings: the limits.
        stage: whose metrics are watched.
        history: of the stage.
    """

    def __init__(self, settings: MonitorSettings, stage: str, history: History) -> None:
        self.settings, self.stage, self.history = settings, stage, history
        self.lasted: dict[str, int] = {}
        """The rollout in which an alarm held last."""
        self.said: dict[str, int] = {}
        """The rollout in which it was said last."""

    def lasting(self) -> list[Alarm]:
        """Return the alarms that hold now and are no consequence of others."""
        found, now = symptoms(self.history, self.settings), self.history.seen
        self.lasted |= dict.fromkeys(found, now)
        step = int(self.history.rows[-1]["step"]) if self.history.rows else 0
        return [
            alarm(name, self.stage, step, symptom, self.settings.action_for(name))
            for name, symptom in found.items()
            if not any(self._lately(other) for other in KINDS[name].after)
        ]

    def _lately(self, name: str) -> bool:
        """Return whether an alarm held within the last rollouts."""
        return name in self.lasted and self.history.seen - self.lasted[name] < self.settings.repeat_every

    def news(self, name: str) -> bool:
        """Return whether an alarm that holds is to be said, and note that it is."""
        now = self.history.seen
        new = name not in self.said or now - self.said[name] >= self.settings.repeat_every
        if new:
            self.said[name] = now
        return new

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold."""
        history = {name: getattr(self.history, name) for name in ("rows", "start", "looks", "seen")}
        return {"history": history, "lasted": self.lasted, "said": self.said}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's state."""
        for name, value in state["history"].items():
            setattr(self.history, name, value)
        self.lasted, self.said = state["lasted"], state["said"]
