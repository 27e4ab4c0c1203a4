"""Alarms on histories made by hand: each rule at its limit, and what is said once of what lasts."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from rlkit.config.monitor import AlarmName, MonitorSettings
from rlkit.monitor.alarms import KINDS, Watch, symptoms
from rlkit.monitor.history import History

ROOT = Path(__file__).parent.parent.parent
HEALTHY = {
    "reward": 0.5, "reward_spread": 0.2, "zero_signal": 0.1, "kl": 0.05, "entropy": 2.0, "clip_fraction": 0.05,
    "approx_kl": 0.01, "completion_length": 20.0, "truncated": 0.0, "grad_norm": 1.0, "value_loss": 0.2,
    "explained_variance": 0.5, "unscored": 0.0, "diversity/rollout": 1.0, "reward_ms/math": 3.0,
}  # fmt: skip


def history(count: int = 40, planned: int = 40, **changes: list[float]) -> History:
    """A healthy history whose last rows are changed."""
    found = History(planned)
    for step in range(count):
        row = {"step": step + 1, **HEALTHY, "reward": 0.5 + 0.001 * step}
        for name, values in changes.items():
            place = step - (count - len(values))
            if place >= 0:
                row[name.replace("__", "/")] = values[place]
        found.take(row)
    return found


def named(found: History, **settings: object) -> set[str]:
    return {alarm.name for alarm in Watch(MonitorSettings(**settings), "grpo", found).lasting()}


@pytest.mark.parametrize("count", [1, 5, 12, 40])
def test_a_healthy_history_has_no_symptom(count: int) -> None:
    assert named(history(count)) == set()


@pytest.mark.parametrize(
    ("alarm", "changes"),
    [
        ("large_updates", {"clip_fraction": [0.31] * 3}),
        ("large_updates", {"approx_kl": [0.11] * 3}),
        ("large_updates", {"kl": [0.05, 1.2]}),
        ("kl_high", {"kl": [0.51] * 3}),
        ("kl_growing", {"kl": [0.26] * 3}),
        ("reward_falling", {"reward": [0.4, 0.41] * 5}),
        ("no_signal", {"zero_signal": [0.95] * 5, "reward": [0.5] * 5}),
        ("no_signal", {"reward_spread": [0.0] * 5, "reward": [0.5] * 5}),
        ("entropy_collapse", {"entropy": [0.3] * 3, "reward": [0.5] * 3}),
        ("entropy_collapse", {"entropy": [0.3] * 3, "diversity__rollout": [0.2] * 3}),
        ("length_growing", {"completion_length": [51.0] * 5}),
        ("length_shrinking", {"completion_length": [7.0] * 5}),
        ("truncated", {"truncated": [0.51] * 5}),
        ("gradient_growing", {"grad_norm": [11.0] * 5}),
        ("value_diverging", {"value_loss": [0.7] * 10, "explained_variance": [-0.1] * 10}),
        ("reward_fails", {"unscored": [0.06] * 3}),
        ("reward_slow", {"unscored": [0.06] * 3, "late": [0.9] * 3}),
        ("reward_slow", {"reward_ms__math": [1001.0] * 3}),
    ],
)  # fmt: skip
def test_a_symptom_is_seen_above_its_limit_and_nothing_else(alarm: str, changes: dict) -> None:
    assert named(history(**changes)) == {alarm}


@pytest.mark.parametrize(
    "changes",
    [
        {"clip_fraction": [0.29] * 3},
        {"kl": [0.3] * 10 + [0.49, 0.6, 0.4]},
        {"reward": [0.53, 0.51] * 5},  # noise
        {"reward": [0.5, 0.501] * 5},  # a dip: clear, but less than a tenth
        {"zero_signal": [1.0] * 5, "reward": [0.9] * 5},  # solved, not constant
        {"entropy": [0.3] * 3, "reward": [0.9] * 3},  # sharp, and right
        {"entropy": [0.5] * 3},
        {"completion_length": [49.0] * 5},
        {"grad_norm": [1.0, 500.0, 1.0, 1.0, 1.0]},  # a single outlier
        {"value_loss": [9.0] * 10},  # values that explain something
    ],
)
def test_what_lies_below_a_limit_or_is_excused_is_no_symptom(changes: dict) -> None:
    assert named(history(**changes)) == set()


def test_a_policy_that_has_not_moved_is_seen_past_the_middle_and_without_a_gain() -> None:
    still = {"kl": [0.001] * 40, "reward": [0.5] * 40}
    assert named(history(**still)) == {"kl_low"}
    assert named(history(19, **still)) == set(), "too early"
    assert named(history(planned=200, **still)) == set(), "before the middle"
    assert named(history(kl=[0.001] * 40)) == set(), "the reward rose"
    assert named(history(**still), kl_low=0.0) == set()


def test_a_gap_needs_two_looks_below_the_best_and_a_reward_that_rises() -> None:
    def looks(found: History, *values: float) -> History:
        for step, value in zip((1, 10, 20, 30, 40), values):
            found.look({"step": step, "eval_reward": value})
        return found

    assert named(looks(history(), 0.5, 0.6, 0.52, 0.5)) == {"hacking_gap"}
    assert named(looks(history(), 0.5, 0.6, 0.6, 0.5)) == set()
    assert named(looks(history(), 0.5, 0.6, 0.57, 0.56)) == set(), "within a tenth of the best"
    assert named(looks(history(reward=[0.5] * 40), 0.5, 0.6, 0.52, 0.5)) == set()


def test_a_fall_within_the_noise_of_looks_is_no_gap() -> None:
    found = history()
    for step, value in zip((1, 10, 20, 30, 40), (0.5, 0.6, 0.55, 0.48, 0.45)):
        found.look({"step": step, "eval_reward": value, "errors": {"eval_reward": 0.04}})
    assert named(found) == set(), "3 standard errors of a difference are 3 * 0.04 * 2 ** 0.5 = 0.17"
    for step, value in ((50, 0.42), (60, 0.41)):
        found.look({"step": step, "eval_reward": value, "errors": {"eval_reward": 0.04}})
    assert named(found) == {"hacking_gap"}


def test_rare_rewards_are_no_constant_ones() -> None:
    """One in twenty answers is right: of four groups of four, 0.95 ** 16 = 44 % of rollouts see none."""
    rng = random.Random(0)
    said: list[str] = []
    for _ in range(20):
        found = History(60)
        watch = Watch(MonitorSettings(), "grpo", found)
        for step in range(1, 61):
            groups = [[float(rng.random() < 0.05) for _ in range(4)] for _ in range(4)]
            signal = sum(0 < sum(group) < 4 for group in groups) / 4
            every = [one for group in groups for one in group]
            found.take(
                {
                    "step": step, "reward": sum(every) / 16, "reward_spread": float(signal > 0),
                    "zero_signal": 1 - signal, "grad_norm": 3 * signal,
                }
            )  # fmt: skip
            said += [alarm.name for alarm in watch.lasting() if watch.news(alarm.name)]
    assert len(said) <= 1, "20 runs of 60 rollouts"


def test_a_reward_that_dies_after_rare_ones_is_seen_later() -> None:
    rare = [0.0, 1.0] * 10 + [1.0] * 20
    found = history(zero_signal=rare, reward_spread=[1 - value for value in rare], reward=[0.5] * 40)
    assert named(found) == {"no_signal"}
    assert named(history(zero_signal=rare[:28], reward_spread=[0.1] * 28, reward=[0.5] * 28)) == set(), "8 so far"


def test_a_policy_that_moves_late_is_not_said_to_stand_still() -> None:
    moving = [0.0002 * step for step in range(34)]  # 0.0012 to 0.0066, on the way to 0.012
    assert named(history(34, planned=60, kl=moving, reward=[0.5] * 34)) == set()
    assert named(history(34, planned=40, kl=moving, reward=[0.5] * 34)) == {"kl_low"}
    noisy = [0.02, -0.03] * 17  # of few tokens; its mean is below 0
    assert named(history(34, planned=40, kl=noisy, reward=[0.5] * 34)) == set()


def test_sickness_began_with_the_first_rollout_of_the_mean_that_shows_it() -> None:
    assert symptoms(history(kl=[0.9, 0.8, 0.4]), MonitorSettings())["kl_high"][1] == 38


def test_a_symptom_says_since_when() -> None:
    assert symptoms(history(truncated=[0.6] * 7), MonitorSettings())["truncated"][1] == 34


def test_an_alarm_that_lasts_is_said_again_only_after_a_while_and_consequences_are_not_said() -> None:
    found = history(30)
    watch = Watch(MonitorSettings(), "grpo", found)
    said = []
    for step in range(31, 61):
        found.take({"step": step, **HEALTHY, "clip_fraction": 0.5, "truncated": 0.9})
        said += [(alarm.name, step) for alarm in watch.lasting() if watch.news(alarm.name)]
    assert said == [("large_updates", 32), ("large_updates", 52)]


def test_a_watch_goes_on_from_its_state() -> None:
    watch = Watch(MonitorSettings(), "grpo", history(truncated=[0.9] * 5))
    assert [watch.news(alarm.name) for alarm in watch.lasting()] == [True]
    again = Watch(MonitorSettings(), "grpo", History(40))
    again.load(json.loads(json.dumps(watch.state())))
    assert [(alarm.name, watch.news(alarm.name)) for alarm in again.lasting()] == [("truncated", False)]


def test_every_alarm_has_a_meaning_and_stands_in_the_docs() -> None:
    assert set(KINDS) == set(AlarmName.__args__)
    page = (ROOT / "docs" / "monitor.md").read_text()
    for name, kind in KINDS.items():
        assert f"| `{name}` |" in page
        assert kind.change
        assert set(kind.after) <= set(KINDS)
    for field in MonitorSettings.model_fields:
        assert f"`{field}`" in page
