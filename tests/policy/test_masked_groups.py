"""A rollout in which some completions have no score trains, and logs, as the same groups would without them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from test_rewarder import DOMAIN, rollouts
from torch import Tensor

from rlkit.algorithms.grpo import GRPO
from rlkit.algorithms.ppo import PPO
from rlkit.algorithms.reinforce import ReinforcePP
from rlkit.algorithms.rloo import RLOO
from rlkit.config.algorithms import GRPOSettings, SkipSolvedSettings
from rlkit.config.ppo import PPOSettings
from rlkit.config.reinforce import ReinforcePPSettings, RLOOSettings
from rlkit.config.rewards import ItemMatchSettings, RewardSettings
from rlkit.ops.advantages import zero_signal
from rlkit.policy.group_batch import GroupBatch
from rlkit.policy.metrics import rollout_metrics, sample_rows
from rlkit.policy.pass_rates import PassRates
from rlkit.policy.rewarder import Rewarder, WeightedReward
from rlkit.policy.rollouts import Rollouts
from rlkit.policy.text_rewards import Sample, TextReward

GROUPS = (("31", "12", "x9", "50", "20"), ("x7", "x6", "11", "99", "32"), ("41", "x1", "42", "x2", "x3"))
"""What begins with an x has no score. Without it groups have 4, 3 and 2 completions."""
COMMON: dict[str, Any] = {"rewards": (ItemMatchSettings(),)}


def number(place: int) -> Callable[[Sequence[Sample]], list[float]]:
    def score(samples: Sequence[Sample]) -> list[float]:
        return [math.nan if one.completion[0] == "x" else float(one.completion[place]) for one in samples]

    return score


def rewarded(kept: Callable[[str], bool]) -> Rollouts:
    """Reward the groups; what is not kept was never there. Policy, reference and values depend on texts alone."""
    found = rollouts(*GROUPS)
    there = torch.tensor([[kept(text) for text in group] for group in GROUPS])
    found.batch.mask = found.batch.mask & there[..., None]
    settings = [RewardSettings(clip=(0, 4)), RewardSettings(standardize=True, weight=2), RewardSettings(gate=True)]
    scores = (number(0), number(1), lambda samples: [0.5 + (one.completion[1] == "1") for one in samples])
    parts = [
        WeightedReward(str(index), chosen.weight, TextReward(score, DOMAIN), chosen)
        for index, (score, chosen) in enumerate(zip(scores, settings))
    ]
    Rewarder(parts)(found)
    noise = (found.batch.completions.float() * 0.7).sin()
    found.batch.numbers = {"old_logprobs": noise, "ref_logprobs": noise.square(), "values": noise.cos()}
    return found


LOST, WITHOUT = rewarded(lambda text: True), rewarded(lambda text: text[0] != "x")


def advantages(algorithm: Any, found: Rollouts) -> Tensor:
    batch: GroupBatch = found.batch.select(range(len(GROUPS)))
    batch.numbers |= algorithm.experience(found)
    if algorithm.credits:
        algorithm.credit([batch])
    return batch.numbers["advantages"]


@pytest.mark.parametrize(
    "algorithm",
    [
        GRPO(GRPOSettings(**COMMON)),
        GRPO(GRPOSettings(**COMMON, advantage_scale="batch", advantage_baseline="leave_one_out")),
        RLOO(RLOOSettings(**COMMON)),
        ReinforcePP(ReinforcePPSettings(**COMMON)),
        ReinforcePP(ReinforcePPSettings(**COMMON, baseline="group", group_size=5)),
        PPO(PPOSettings(**COMMON)),
    ],
    ids=["grpo", "grpo-batch", "rloo", "reinforce_pp", "reinforce_pp-group", "ppo"],
)
def test_advantages_are_those_of_the_group_without_what_has_no_score(algorithm: Any) -> None:
    found, wanted = advantages(algorithm, LOST), advantages(algorithm, WITHOUT)
    assert torch.equal(LOST.present, WITHOUT.present)
    assert torch.allclose(found, wanted, atol=1e-6)
    there = LOST.batch.mask if found.ndim == 3 else LOST.present
    assert (found[~there] == 0).all()
    assert found[there].abs().sum() > 1


def test_one_group_alone_is_worked_by_hand() -> None:
    # 4, 2 (from 42) clipped to 4 and 4; 1 and 2 standardized are -.7071 and .7071, times 2; gates are 1.5 and .5
    gate, spread = (1.5, 0.5), 2 * 0.5 / (0.5**0.5 + 1e-4)
    wanted = [gate[0] * (4 - spread), gate[1] * (4 + spread)]
    assert LOST.rewards[2][LOST.present[2]].tolist() == pytest.approx(wanted, abs=1e-5)
    assert LOST.plain[2][LOST.present[2]].tolist() == [1.5 * (4 + 2), 0.5 * (4 + 4)]


def test_what_is_logged_counts_the_same_completions() -> None:
    assert rollout_metrics(LOST) == rollout_metrics(WITHOUT)
    settings = SkipSolvedSettings(passed_at=4.0)
    lost, without = PassRates(settings), PassRates(settings)
    assert lost.record(LOST, 0) == without.record(WITHOUT, 0)
    assert lost.visits == without.visits
    assert torch.equal(zero_signal(LOST.rewards, LOST.present), zero_signal(WITHOUT.rewards, WITHOUT.present))


def test_a_group_without_any_score_is_no_sample_and_no_group_without_spread() -> None:
    both, one = rollouts(("x1", "x2"), ("11", "31")), rollouts(("11", "31"))
    for found in (both, one):
        Rewarder([WeightedReward("number", 1.0, TextReward(number(0), DOMAIN))])(found)
    assert rollout_metrics(both)["reward_std"] == rollout_metrics(one)["reward_std"] == pytest.approx(2**0.5)
    rows = sample_rows(both, DOMAIN.tokenizer, 1)
    assert [row["completion"] for row in rows] == ["11", "31"]
