"""Advantages within a group."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from peers import OPENRLHF_EXPERIENCE, OPENRLHF_UTILS, TRL_RLOO, assignments, definitions
from torch import Tensor

from rlkit.ops.advantages import group_advantages, leave_one_out_advantages, returns_to_go, zero_signal
from rlkit.ops.gae import moments, whitened


def test_a_group_is_centered_and_divided_by_its_unbiased_deviation() -> None:
    # mean 2, squared differences 1 + 1 + 0 over n - 1 = 2: deviation 1
    advantages = group_advantages(torch.tensor([[1.0, 3.0, 2.0]]))
    torch.testing.assert_close(advantages, torch.tensor([[-1.0, 1.0, 0.0]]) / 1.0001)


def test_without_scale_only_the_mean_goes() -> None:
    advantages = group_advantages(torch.tensor([[0.0, 0.0, 0.0, 1.0]]), scale="none")
    assert advantages.tolist() == [[-0.25, -0.25, -0.25, 0.75]]


def test_the_batch_scale_is_one_number_for_all_groups() -> None:
    rewards = torch.tensor([[0.0, 2.0], [0.0, 4.0]])
    # mean 1.5; squares 2.25 + .25 + 2.25 + 6.25 = 11 over 3
    scale = math.sqrt(11 / 3) + 1e-4
    expected = torch.tensor([[-1.0, 1.0], [-2.0, 2.0]]) / scale
    torch.testing.assert_close(group_advantages(rewards, scale="batch"), expected)


def test_leave_one_out_compares_with_the_mean_of_the_others() -> None:
    # 6 - (0 + 3) / 2 = 4.5; 0 - 4.5 = -4.5; 3 - 3 = 0
    advantages = group_advantages(torch.tensor([[6.0, 0.0, 3.0]]), scale="none", baseline="leave_one_out")
    torch.testing.assert_close(advantages, torch.tensor([[4.5, -4.5, 0.0]]))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_equal_rewards_give_exactly_zero_advantage(scale: str, baseline: str) -> None:
    rewards = torch.tensor([[0.9, 0.9, 0.9], [0.1, 0.7, 0.2]])  # the mean of three .9 is off by one rounding
    advantages = group_advantages(rewards, scale=scale, baseline=baseline)  # type: ignore[arg-type]
    assert advantages[0].tolist() == [0.0, 0.0, 0.0]
    assert (advantages[1] != 0).all()


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_absent_completions_change_nothing(scale: str, baseline: str) -> None:
    rewards = torch.tensor([[1.0, 5.0, 2.0], [4.0, 0.0, 3.0]])
    padded = torch.tensor([[1.0, torch.nan, 5.0, 2.0], [4.0, 0.0, 99.0, 3.0]])
    present = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 1]])
    whole = group_advantages(rewards, scale=scale, baseline=baseline)  # type: ignore[arg-type]
    part = group_advantages(padded, present, scale=scale, baseline=baseline)  # type: ignore[arg-type]
    torch.testing.assert_close(part[present.bool()], whole.flatten())
    assert part[~present.bool()].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
def test_a_lone_completion_has_no_advantage(baseline: str) -> None:
    advantages = group_advantages(torch.tensor([[7.0, 0.0]]), torch.tensor([[1, 0]]), baseline=baseline)  # type: ignore[arg-type]
    assert advantages.tolist() == [[0.0, 0.0]]


def test_zero_signal_looks_at_present_completions_only() -> None:
    rewards = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [3.0, 2.0, 2.0]])
    present = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0]])
    assert zero_signal(rewards, present).tolist() == [True, False, True]
    assert zero_signal(rewards).tolist() == [False, False, False]


def test_advantages_agree_with_trl() -> None:
    from trl.trainer.utils import nanstd

    rewards = torch.randn(5, 8)
    expected = (rewards - rewards.mean(1, keepdim=True)) / (nanstd(rewards, dim=1)[:, None] + 1e-4)
    torch.testing.assert_close(group_advantages(rewards), expected)
    expected = (rewards - rewards.mean(1, keepdim=True)) / (nanstd(rewards) + 1e-4)
    torch.testing.assert_close(group_advantages(rewards, scale="batch"), expected)


# ---- RLOO and REINFORCE++

CLOSE = {"rtol": 0, "atol": 1e-6}

# One group of two: rewards 6 and 1, KL 1 + 1 (the third token is padding) and 0 + 2 + 1, weight .5.
REWARDS = torch.tensor([[6.0, 1.0]])
KL = torch.tensor([[[1.0, 1.0, torch.nan], [0.0, 2.0, 1.0]]])
MASK = torch.tensor([[[1, 1, 0], [1, 1, 1]]]).bool()


def example(groups: int = 5, size: int = 4, tokens: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, tokens + 1, (groups, size), generator=generator)
    return {
        "rewards": torch.randn(groups, size, generator=generator) * 3,
        "kl": torch.randn(groups, size, tokens, generator=generator),
        "mask": torch.arange(tokens) < lengths[..., None],
    }


def test_rloo_compares_penalized_rewards_with_the_others_worked_by_hand() -> None:
    # 6 - .5 * 2 = 5 and 1 - .5 * 3 = -.5: each against the other
    assert leave_one_out_advantages(REWARDS, KL, MASK, 0.5).tolist() == [[5.5, -5.5]]


def test_the_leave_one_out_baseline_is_the_mean_of_the_other_completions() -> None:
    data = example()
    advantages = leave_one_out_advantages(**data, kl_coef=0.1)
    for b in range(5):
        penalized = [
            data["rewards"][b, g].item() - 0.1 * data["kl"][b, g][data["mask"][b, g]].sum().item() for g in range(4)
        ]
        for g in range(4):
            others = [penalized[k] for k in range(4) if k != g]
            assert advantages[b, g].item() == pytest.approx(penalized[g] - sum(others) / 3, abs=1e-5)


def test_returns_to_go_worked_by_hand() -> None:
    # the first earns -.5, 6 - .5; the second 0, -1, 1 - .5; discounted by a half
    returns = returns_to_go(REWARDS, KL, MASK, kl_coef=0.5, gamma=0.5, group_baseline=False)
    assert returns.tolist() == [[[-0.5 + 5.5 / 2, 5.5, 0.0], [-1 / 2 + 0.5 / 4, -1 + 0.5 / 2, 0.5]]]


def test_with_a_baseline_the_mean_of_the_group_goes_before_the_penalty() -> None:
    # 6 and 1 become 2.5 and -2.5; undiscounted from the end: 2.5 - .5, and -2.5 - .5
    returns = returns_to_go(REWARDS, KL, MASK, kl_coef=0.5, gamma=1.0, group_baseline=True)
    assert returns.tolist() == [[[1.5, 2.0, 0.0], [-4.0, -4.0, -3.0]]]


@pytest.mark.parametrize("baseline", [True, False])
def test_padding_and_absent_completions_change_no_advantage(baseline: bool) -> None:
    data = example()
    wide = {
        "rewards": torch.nn.functional.pad(data["rewards"], (0, 1), value=torch.nan),
        "kl": torch.nn.functional.pad(data["kl"], (0, 2, 0, 1), value=torch.nan).masked_fill(
            ~torch.nn.functional.pad(data["mask"], (0, 2, 0, 1)), torch.inf
        ),
        "mask": torch.nn.functional.pad(data["mask"], (0, 2, 0, 1)),
    }
    loo = leave_one_out_advantages(**wide, kl_coef=0.1)
    torch.testing.assert_close(loo[:, :4], leave_one_out_advantages(**data, kl_coef=0.1))
    assert (loo[:, 4] == 0).all()
    chosen = {"kl_coef": 0.1, "gamma": 0.9, "group_baseline": baseline}
    returns = returns_to_go(**wide, **chosen)
    torch.testing.assert_close(returns[:, :4, :6], returns_to_go(**data, **chosen))
    assert (returns[~wide["mask"]] == 0).all()


def test_groups_do_not_know_of_each_other_before_they_are_normalized() -> None:
    data = example()
    chosen = {"kl_coef": 0.1, "gamma": 0.9, "group_baseline": True}
    whole = returns_to_go(**data, **chosen)
    parts = [
        returns_to_go(**{name: value[rows] for name, value in data.items()}, **chosen)
        for rows in (slice(0, 2), slice(2, 5))
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_rloo_advantages_agree_with_trl() -> None:
    data = example()
    old, ref = data["kl"].flatten(0, 1), torch.zeros(20, 6)  # their difference is k1
    names = {"per_token_kl", "kl", "rewards", "grouped_rewards", "scorable_counts", "grouped_sum", "baselines"}
    theirs = assignments(
        TRL_RLOO, "_generate_and_score_completions", names,
        rewards_per_func=data["rewards"].reshape(-1, 1), device="cpu", gather=lambda x: x, num_generations=4,
        old_per_token_logps=old, ref_per_token_logps=ref, completion_mask=data["mask"].flatten(0, 1),
        self=SimpleNamespace(beta=0.1, reward_weights=torch.ones(1), reward_clip_range=(-100, 100)),
    )  # fmt: skip
    ours = leave_one_out_advantages(**data, kl_coef=0.1)
    torch.testing.assert_close(ours.flatten(), theirs.grouped_rewards.flatten() - theirs.baselines, **CLOSE)


def openrlhf_advantages(estimator: str, data: dict[str, Tensor], kl_coef: float, gamma: float) -> Tensor:
    """Run OpenRLHF's experience maker on given rewards."""
    reward = definitions(OPENRLHF_UTILS, "compute_reward").compute_reward
    names = ("compute_advantages_and_returns", "get_cumulative_returns")
    known = {"compute_reward": reward, "apply_length_penalties": lambda *_: None, "logger": logging.getLogger()}
    methods = definitions(OPENRLHF_EXPERIENCE, *names, **known)
    args = SimpleNamespace(
        rollout=SimpleNamespace(n_samples_per_prompt=data["rewards"].shape[1]),
        reward=SimpleNamespace(clip_range=None),
        algo=SimpleNamespace(advantage=SimpleNamespace(estimator=estimator, gamma=gamma, no_std_norm=False)),
    )
    maker = SimpleNamespace(
        strategy=SimpleNamespace(args=args),
        kl_ctl=SimpleNamespace(value=kl_coef),
        advantage_estimator=estimator,
        get_cumulative_returns=lambda *inputs: methods.get_cumulative_returns(None, *inputs),
    )
    flat = {name: value.flatten(0, 1) for name, value in data.items()}
    experience = SimpleNamespace(
        index=list(range(len(flat["rewards"]))),
        rewards=flat["rewards"],
        kl=flat["kl"],
        action_mask=flat["mask"].long(),
        info={},
    )
    methods.compute_advantages_and_returns(maker, [experience])
    found: Tensor = experience.advantages
    return found.unflatten(0, data["rewards"].shape) * data["mask"]


@pytest.mark.parametrize(("estimator", "gamma"), [("reinforce", 1.0), ("reinforce", 0.9), ("reinforce_baseline", 1.0)])
def test_reinforce_pp_advantages_agree_with_openrlhf(estimator: str, gamma: float) -> None:
    data = example()
    theirs = openrlhf_advantages(estimator, data, 0.1, gamma)
    baseline = estimator == "reinforce_baseline"
    returns = returns_to_go(**data, kl_coef=0.1, gamma=gamma, group_baseline=baseline)
    ours = whitened(returns, data["mask"], moments(returns, data["mask"]))
    count = data["mask"].sum()
    # its variance divides by n, ours (and TRL's) by n - 1
    torch.testing.assert_close(ours * (count / (count - 1)).sqrt(), theirs, **CLOSE)


def test_without_a_penalty_rloo_agrees_with_openrlhf() -> None:
    data = example()
    theirs = openrlhf_advantages("rloo", data, 0.0, 1.0)  # with one, it takes the penalty after the baseline
    ours = leave_one_out_advantages(**data, kl_coef=0.0)[..., None] * data["mask"]
    torch.testing.assert_close(ours, theirs, **CLOSE)
