"""Advantages per token, worked by hand, beside loops, and beside TRL's and OpenRLHF's own."""

from types import SimpleNamespace

import pytest
import torch
from peers import OPENRLHF_EXPERIENCE, OPENRLHF_UTILS, TRL_PPO, assignments, definitions
from torch import Tensor

from rlkit.ops.gae import gae, last_token, mean_and_variance, moments, token_rewards, whitened

CLOSE = {"rtol": 0, "atol": 1e-6}


def example(shape: tuple[int, ...] = (4, 3, 7), dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return completions of different lengths, one of them absent and one of them full."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, shape[-1] + 1, shape[:-1], generator=generator)
    lengths.view(-1)[0], lengths.view(-1)[1] = 0, shape[-1]
    mask = torch.arange(shape[-1]) < lengths[..., None]
    draw = lambda: torch.randn(shape, generator=generator, dtype=dtype) * mask  # noqa: E731
    return {"rewards": draw(), "values": draw(), "mask": mask}


def test_three_tokens_worked_by_hand() -> None:
    # gamma .5, lam .5; rewards 0, 0, 4; values 1, 2, 3; the value after the end is 0
    # surprises: 0 + .5 * 2 - 1 = 0; 0 + .5 * 3 - 2 = -.5; 4 + 0 - 3 = 1
    # advantages from the end: 1; -.5 + .25 * 1 = -.25; 0 + .25 * -.25 = -.0625
    rewards, values = torch.tensor([0.0, 0.0, 4.0]), torch.tensor([1.0, 2.0, 3.0])
    advantages, returns = gae(rewards, values, torch.ones(3), gamma=0.5, lam=0.5)
    assert advantages.tolist() == [-0.0625, -0.25, 1.0]
    assert returns.tolist() == [0.9375, 1.75, 4.0]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (0.97, 0.0), (1.0, 1.0)])
def test_advantages_are_the_sums_that_the_paper_writes(gamma: float, lam: float) -> None:
    data = example((3, 2, 6), torch.float64)
    advantages, returns = gae(**data, gamma=gamma, lam=lam)
    for b in range(3):
        for g in range(2):
            length = int(data["mask"][b, g].sum())
            value = [*data["values"][b, g, :length].tolist(), 0.0]
            reward = data["rewards"][b, g, :length].tolist()
            surprise = [reward[t] + gamma * value[t + 1] - value[t] for t in range(length)]
            for t in range(length):
                expected = sum((gamma * lam) ** (k - t) * surprise[k] for k in range(t, length))
                assert advantages[b, g, t].item() == pytest.approx(expected, abs=1e-12)
                assert returns[b, g, t].item() == pytest.approx(expected + value[t], abs=1e-12)
            assert advantages[b, g, length:].tolist() == returns[b, g, length:].tolist() == [0.0] * (6 - length)


def test_with_lambda_1_the_return_is_the_discounted_sum_of_rewards_whatever_the_values_say() -> None:
    data = example()
    returns = gae(**data, gamma=0.9, lam=1.0)[1]
    others = gae(data["rewards"], data["values"] * -3, data["mask"], gamma=0.9, lam=1.0)[1]
    torch.testing.assert_close(returns, others, rtol=1e-5, atol=1e-5)
    full = data["rewards"][0, 1]
    assert returns[0, 1, 0].item() == pytest.approx(sum(0.9**t * full[t].item() for t in range(7)), abs=1e-5)


def test_values_that_foresee_everything_leave_no_advantage() -> None:
    data = example(dtype=torch.float64)
    foreseen = gae(data["rewards"], torch.zeros_like(data["rewards"]), data["mask"], gamma=0.9, lam=1.0)[1]
    for lam in (0.0, 0.5, 1.0):
        advantages = gae(data["rewards"], foreseen, data["mask"], gamma=0.9, lam=lam)[0]
        torch.testing.assert_close(advantages, torch.zeros_like(advantages), rtol=0, atol=1e-12)


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, -1e30])
def test_padding_changes_nothing_whatever_it_holds(garbage: float) -> None:
    data = example()
    dirty = {
        "rewards": data["rewards"].masked_fill(~data["mask"], garbage),
        "values": data["values"].masked_fill(~data["mask"], garbage),
        "mask": data["mask"],
    }
    for clean, other in zip(gae(**data, gamma=0.9, lam=0.8), gae(**dirty, gamma=0.9, lam=0.8)):
        assert torch.equal(clean, other)
    sums = moments(data["values"], data["mask"])
    assert torch.equal(moments(dirty["values"], data["mask"]), sums)
    assert torch.equal(whitened(dirty["values"], data["mask"], sums), whitened(data["values"], data["mask"], sums))


def test_a_token_that_does_not_count_is_skipped() -> None:
    rewards, values = torch.tensor([1.0, 99.0, 2.0, 3.0]), torch.tensor([0.5, -99.0, 1.5, 2.5])
    mask = torch.tensor([1, 0, 1, 1])
    short = gae(rewards[mask.bool()], values[mask.bool()], torch.ones(3), gamma=0.9, lam=0.8)
    for part, whole in zip(short, gae(rewards, values, mask, gamma=0.9, lam=0.8)):
        assert torch.equal(whole[mask.bool()], part)
        assert whole[1] == 0


def test_any_number_of_leading_dimensions_and_any_split_of_them_give_the_same() -> None:
    data = example()
    whole = gae(**data, gamma=0.9, lam=0.8)
    flat = gae(**{name: value.flatten(0, 1) for name, value in data.items()}, gamma=0.9, lam=0.8)
    parts = [
        gae(**{name: value[rows] for name, value in data.items()}, gamma=0.9, lam=0.8) for rows in ([0], [1, 2, 3])
    ]
    for index in (0, 1):
        assert torch.equal(whole[index].flatten(0, 1), flat[index])
        assert torch.equal(torch.cat([part[index] for part in parts]), whole[index])


def test_a_score_is_earned_at_the_last_token_and_the_penalty_at_every_one() -> None:
    kl = torch.tensor([[[1.0, 2.0, torch.nan], [1.0, 1.0, 3.0], [torch.inf] * 3]])
    mask = torch.tensor([[[1, 1, 0], [1, 1, 1], [0, 0, 0]]])
    rewards = token_rewards(torch.tensor([[5.0, -1.0, 7.0]]), kl, mask, 0.5)
    assert rewards.tolist() == [[[-0.5, 4.0, 0.0], [-0.5, -0.5, -2.5], [0.0, 0.0, 0.0]]]


def test_dense_rewards_are_earned_where_they_are_given() -> None:
    kl, mask = torch.ones(1, 1, 3), torch.tensor([[[1, 1, 0]]])
    rewards = token_rewards(torch.tensor([[[2.0, 3.0, torch.nan]]]), kl, mask, 0.5)
    assert rewards.tolist() == [[[1.5, 2.5, 0.0]]]


def test_the_last_token_is_one_per_row_and_none_of_an_empty_one() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 1, 0]])
    assert last_token(mask).int().tolist() == [[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]]


def test_whitening_worked_by_hand() -> None:
    # 1, 3, 5: mean 3, unbiased variance (4 + 0 + 4) / 2 = 4
    values, mask = torch.tensor([[1.0, 3.0, 77.0], [5.0, -8.0, 9.0]]), torch.tensor([[1, 1, 0], [1, 0, 0]])
    sums = moments(values, mask)
    assert sums.tolist() == [3.0, 9.0, 35.0]
    assert [value.item() for value in mean_and_variance(sums)] == [3.0, 4.0]
    torch.testing.assert_close(whitened(values, mask, sums), torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
    kept = whitened(values, mask, sums, shift_mean=False)
    torch.testing.assert_close(kept, torch.tensor([[2.0, 3.0, 0.0], [4.0, 0.0, 0.0]]))


def test_whitening_over_ranks_is_whitening_of_the_whole() -> None:
    data = example()
    values, mask = data["values"] + 1_000, data["mask"]  # a mean that single precision could not take away
    parts = [(values[rows], mask[rows]) for rows in (slice(0, 1), slice(1, 4))]
    sums = sum(moments(*part) for part in parts)
    assert isinstance(sums, Tensor)
    result = torch.cat([whitened(*part, sums) for part in parts])
    counted = values[mask].double()
    expected = (counted - counted.mean()) / counted.std()
    torch.testing.assert_close(result[mask].double(), expected, **CLOSE)
    assert (result[~mask] == 0).all()


def test_equal_values_and_a_single_one_whiten_to_zero() -> None:
    for values in (torch.full((3,), 0.1), torch.tensor([7.0])):
        mask = torch.ones_like(values)
        assert whitened(values, mask, moments(values, mask)).abs().max().item() < 1e-6
    nothing = torch.zeros(2, dtype=torch.bool)
    assert whitened(torch.full((2,), torch.nan), nothing, moments(torch.ones(2), nothing)).tolist() == [0.0, 0.0]


# ---- beside the others' own functions


def flat(data: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.flatten(0, 1) for name, value in data.items()}


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5)])
def test_advantages_agree_with_openrlhf(gamma: float, lam: float) -> None:
    theirs = definitions(OPENRLHF_EXPERIENCE, "get_advantages_and_returns").get_advantages_and_returns
    data = flat(example())
    expected = theirs(None, data["values"], data["rewards"], data["mask"], gamma, lam)
    for ours, other in zip(gae(**data, gamma=gamma, lam=lam), expected):
        torch.testing.assert_close(ours, other * data["mask"], **CLOSE)  # its padding holds leftovers


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5)])
def test_advantages_and_whitening_agree_with_trl(gamma: float, lam: float) -> None:
    data = flat(example())
    args = SimpleNamespace(gamma=gamma, lam=lam)
    names = {"lastgaelam", "advantages_reversed", "gen_length", "t"}
    # the loop over steps alone: the lines around it set the names to their starting values
    loop = assignments(
        TRL_PPO, "train", names, args=args, responses=data["values"], rewards=data["rewards"], values=data["values"]
    )
    expected = torch.stack(loop.advantages_reversed[::-1], 1)
    advantages, _ = gae(**data, gamma=gamma, lam=lam)
    torch.testing.assert_close(advantages, expected * data["mask"], **CLOSE)
    trl = definitions(TRL_PPO, "masked_mean", "masked_var", "masked_whiten")
    sums = moments(advantages, data["mask"])
    for shift in (True, False):
        ours = whitened(advantages, data["mask"], sums, shift_mean=shift)
        torch.testing.assert_close(ours, trl.masked_whiten(advantages, data["mask"], shift) * data["mask"], **CLOSE)


def test_token_rewards_agree_with_openrlhf() -> None:
    theirs = definitions(OPENRLHF_UTILS, "compute_reward").compute_reward
    data = flat(example())
    scores, kl, mask = torch.randn(len(data["mask"])) * 4, data["values"], data["mask"]
    ours = token_rewards(scores.clamp(-2.0, 2.0)[:, None], kl[:, None], mask[:, None], 0.1)[:, 0]
    present = mask.any(-1)  # of an absent completion it would reward the last column
    torch.testing.assert_close(ours[present], theirs(scores, 0.1, kl, mask, (-2.0, 2.0))[present], **CLOSE)
