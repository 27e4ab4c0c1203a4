"""PPO's value loss, worked by hand, and what it shares with the policy's."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peers import OPENRLHF_LOSS, TRL_PPO, assignments, definitions
from torch import Tensor

from rlkit.ops.gae import moments
from rlkit.ops.masked import masked_mean
from rlkit.ops.policy_loss import Counts
from rlkit.ops.value_loss import explained_variance, value_loss

CLOSE = {"rtol": 0, "atol": 1e-6}


def example(shape: tuple[int, int, int] = (4, 3, 5)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, shape[2] + 1, shape[:2], generator=generator)
    lengths[0, 1] = 0
    old = torch.randn(shape, generator=generator)
    return {
        "values": old + torch.randn(shape, generator=generator) * 0.4,
        "old_values": old,
        "returns": torch.randn(shape, generator=generator),
        "mask": torch.arange(shape[2]) < lengths[..., None],
    }


def counts_of(mask: Tensor) -> Counts:
    return Counts(mask.sum(), mask.any(-1).sum(), max_completion_tokens=8)


def gradient(data: dict[str, Tensor], counts: Counts, clip: float | None) -> Tensor:
    values = data["values"].clone().requires_grad_()
    (grad,) = torch.autograd.grad(value_loss(**data | {"values": values}, counts=counts, clip=clip).loss, values)
    return grad


# Old values 0, clip .5, over 4 tokens (the fifth is padding):
#   v 2, R 1:    (2 - 1)^2 = 1;  clipped to .5: .25          -> 1, kept
#   v 2, R 3:    (2 - 3)^2 = 1;  clipped to .5: (.5 - 3)^2   -> 6.25, clipped: no gradient
#   v .2, R 0:   .04; not clipped                            -> .04
#   v -1, R -1:  0;  clipped to -.5: .25                     -> .25, clipped
HAND = {
    "values": torch.tensor([[[2.0, 2.0, 0.2, -1.0, 50.0]]]),
    "old_values": torch.zeros(1, 1, 5),
    "returns": torch.tensor([[[1.0, 3.0, 0.0, -1.0, 9.0]]]),
    "mask": torch.tensor([[[1, 1, 1, 1, 0]]]),
}


def test_the_value_loss_worked_by_hand() -> None:
    counts = Counts(4, 1, 5)
    clipped = value_loss(**HAND, counts=counts, clip=0.5)
    assert clipped.loss.item() == pytest.approx(0.5 * (1 + 6.25 + 0.04 + 0.25) / 4)
    assert clipped.clip_fraction.item() == 0.5
    free = value_loss(**HAND, counts=counts, clip=None)
    assert free.loss.item() == pytest.approx(0.5 * (1 + 1 + 0.04 + 0) / 4)
    assert free.clip_fraction.item() == 0.0


def test_the_gradient_pulls_to_the_return_except_where_the_clip_took_it() -> None:
    grad = gradient(HAND, Counts(4, 1, 5), 0.5)
    # (v - R) / 4 tokens
    torch.testing.assert_close(grad, torch.tensor([[[1 / 4, 0.0, 0.2 / 4, 0.0, 0.0]]]))


def test_values_that_did_not_move_are_not_clipped() -> None:
    data = example()
    data["values"] = data["old_values"]
    counts = counts_of(data["mask"])
    assert value_loss(**data, counts=counts, clip=0.2).clip_fraction == 0
    torch.testing.assert_close(gradient(data, counts, 0.2), gradient(data, counts, None))


@pytest.mark.parametrize("clip", [0.2, None])
def test_padding_changes_nothing_whatever_it_holds(clip: float | None) -> None:
    data = example()
    counts = counts_of(data["mask"])
    wide = {name: torch.nn.functional.pad(data[name], (0, 2, 0, 1), value=torch.nan) for name in data if name != "mask"}
    wide["mask"] = torch.nn.functional.pad(data["mask"], (0, 2, 0, 1))
    wide["old_values"] = wide["old_values"].masked_fill(~wide["mask"], torch.inf)
    whole, padded = (value_loss(**parts, counts=counts, clip=clip) for parts in (data, wide))
    torch.testing.assert_close(padded.loss, whole.loss)
    torch.testing.assert_close(padded.clip_fraction, whole.clip_fraction)
    grad = gradient(wide, counts, clip)
    torch.testing.assert_close(grad[:, :3, :5], gradient(data, counts, clip))
    assert (grad[~wide["mask"]] == 0).all()


@pytest.mark.parametrize("clip", [0.2, None])
def test_micro_batches_add_up_to_the_whole(clip: float | None) -> None:
    data = example()
    counts = counts_of(data["mask"])
    whole = value_loss(**data, counts=counts, clip=clip)
    parts = [
        value_loss(**{name: value[rows] for name, value in data.items()}, counts=counts, clip=clip)
        for rows in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(sum(part.loss for part in parts), whole.loss)
    torch.testing.assert_close(sum(part.clip_fraction for part in parts), whole.clip_fraction)


def test_explained_variance_is_1_for_the_returns_0_for_a_constant_and_negative_for_worse() -> None:
    returns, mask = torch.tensor([1.0, 2.0, 6.0, 99.0]), torch.tensor([1, 1, 1, 0])

    def explained(values: Any) -> float:
        # in parts, as ranks would have them
        errors = sum(moments((returns - values)[rows], mask[rows]) for rows in (slice(0, 1), slice(1, 4)))
        assert isinstance(errors, Tensor)
        return explained_variance(errors, moments(returns, mask)).item()

    assert explained(returns) == 1.0
    assert explained(torch.full((4,), 3.0)) == pytest.approx(0.0)
    assert explained(-returns) == pytest.approx(-3.0)  # errors 2 R: 1 - 4
    assert explained(returns + 5) == 1.0  # a shift is not spread
    flat = moments(torch.ones(3), torch.ones(3))
    assert explained_variance(moments(returns, mask), flat).item() == 0.0


def test_the_value_loss_agrees_with_trl() -> None:
    data = example()
    rows = data["mask"].any(-1)
    flat = {name: value[rows] for name, value in data.items()}  # TRL has no absent completions
    names = {"vpredclipped", "vf_losses1", "vf_losses2", "vf_loss_max", "vf_loss", "vf_clipfrac"}
    theirs = assignments(
        TRL_PPO, "train", names, mb_values=flat["old_values"], mb_return=flat["returns"], vpred=flat["values"],
        padding_mask_p1=~flat["mask"], micro_batch_inds=slice(None), args=SimpleNamespace(cliprange_value=0.2),
        masked_mean=definitions(TRL_PPO, "masked_mean").masked_mean,
    )  # fmt: skip
    ours = value_loss(**data, counts=counts_of(data["mask"]), clip=0.2)
    torch.testing.assert_close(ours.loss, theirs.vf_loss, **CLOSE)
    torch.testing.assert_close(ours.clip_fraction, theirs.vf_clipfrac, **CLOSE)


@pytest.mark.parametrize("clip", [0.2, None])
def test_the_value_loss_agrees_with_openrlhf(clip: float | None) -> None:
    utils = {"masked_mean": lambda tensor, mask, dim=None: masked_mean(tensor, mask, dim)}
    loss = definitions(OPENRLHF_LOSS, "aggregate_loss", "ValueLoss", **utils).ValueLoss(clip)
    data = example()
    flat = {name: value.flatten(0, 1) for name, value in data.items()}
    theirs = loss(flat["values"], flat["old_values"], flat["returns"], flat["mask"])
    torch.testing.assert_close(value_loss(**data, counts=counts_of(data["mask"]), clip=clip).loss, theirs, **CLOSE)
