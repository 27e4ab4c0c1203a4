"""Advantages within a group."""

import math

import pytest
import torch

from rlkit.ops.advantages import group_advantages, zero_signal


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
