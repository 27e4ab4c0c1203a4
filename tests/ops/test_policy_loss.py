"""The clipped losses, worked by hand, and the properties that they share."""

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkit.ops.kl import kl_k3
from rlkit.ops.policy_loss import (
    LOSSES,
    NORMALIZATION,
    Counts,
    aggregate,
    cispo,
    dapo,
    entropy_bonus,
    grpo,
    gspo,
    kl_penalty,
    ratio_statistics,
    rloo,
)

CLIP = {"clip_low": 0.2, "clip_high": 0.3}
NAMES = list(LOSSES)

# One group of two completions, 1 and 3 tokens long; at most 4 tokens are allowed.
# Ratios (the last of the first completion is padding) and what min(r A, clip(r) A) makes of them:
#   A = 1:   1.5 -> 1.3 (clipped)
#   A = -2:  0.5 -> -1.6 (clipped to .8), 1.0 -> -2, 2.0 -> -4 (the clip is not pessimistic: kept)
RATIO = torch.tensor([[[1.5, 9.0, 9.0], [0.5, 1.0, 2.0]]])
MASK = torch.tensor([[[1, 0, 0], [1, 1, 1]]]).bool()
ADVANTAGES = torch.tensor([[1.0, -2.0]])
COUNTS = Counts(num_tokens=4, num_completions=2, max_completion_tokens=4)
OLD = torch.full((1, 2, 3), -1.0)
LN = {ratio: math.log(ratio) for ratio in (0.5, 1.5, 2.0)}


def example(shape: tuple[int, int, int] = (4, 3, 5)) -> dict[str, Tensor]:
    """Return completions of different lengths, one of them absent, moved away from the policy that sampled."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, shape[2] + 1, shape[:2], generator=generator)
    lengths[0, 1] = 0
    old = -torch.rand(shape, generator=generator)
    return {
        "logprobs": old + torch.randn(shape, generator=generator) * 0.4,
        "old_logprobs": old,
        "advantages": torch.randn(shape[:2], generator=generator),
        "mask": torch.arange(shape[2]) < lengths[..., None],
    }


def counts_of(mask: Tensor) -> Counts:
    return Counts(mask.sum(), mask.any(-1).sum(), max_completion_tokens=8)


def gradient(loss: Any, data: dict[str, Tensor], counts: Counts, **clip: float) -> Tensor:
    logprobs = data["logprobs"].clone().requires_grad_()
    result = loss(logprobs, data["old_logprobs"], data["advantages"], data["mask"], counts, **(clip or CLIP))
    (grad,) = torch.autograd.grad(result.loss, logprobs)
    return grad


@pytest.mark.parametrize(
    ("name", "expected", "clipped"),
    [
        # mean of the completions' means: -(1.3 + (-1.6 - 2 - 4) / 3) / 2; 2 of 4 tokens clipped
        ("grpo", -(1.3 - 7.6 / 3) / 2, 2 / 4),
        # sum over 2 completions x 4 tokens
        ("dr_grpo", -(1.3 - 7.6) / 8, 2 / 4),
        # sum over 4 tokens
        ("dapo", -(1.3 - 7.6) / 4, 2 / 4),
        # sequence ratios 1.5 -> 1.3 and (.5 * 1 * 2)^(1/3) = 1 -> -2; 1 of 2 completions clipped
        ("gspo", -(1.3 - 2.0) / 2, 1 / 2),
        # weights 1.3; .8, 1, 1.3 times A log p, over 4 tokens; 3 of 4 weights changed
        (
            "cispo",
            -(1.3 * (LN[1.5] - 1) - 2 * (0.8 * (LN[0.5] - 1) - 1 + 1.3 * (LN[2.0] - 1))) / 4,
            3 / 4,
        ),
        # products 1.5 -> 1.3 and .5 * 1 * 2 = 1 -> -2
        ("rloo", -(1.3 - 2.0) / 2, 1 / 2),
    ],
)
def test_each_loss_has_its_value_worked_by_hand(name: str, expected: float, clipped: float) -> None:
    result = LOSSES[name](OLD + RATIO.log(), OLD, ADVANTAGES, MASK, COUNTS, **CLIP)
    assert result.loss.item() == pytest.approx(expected, rel=1e-5)
    assert result.clip_fraction.item() == pytest.approx(clipped)


def test_the_losses_differ_and_so_do_their_gradients() -> None:
    data = example()
    counts = counts_of(data["mask"])
    directions = [
        torch.nn.functional.normalize(gradient(LOSSES[name], data, counts).flatten(), dim=0) for name in NAMES
    ]
    for first in range(len(NAMES)):
        for second in range(first):
            cosine = float(directions[first] @ directions[second])
            same = {NAMES[first], NAMES[second]} == {"dr_grpo", "dapo"}  # these differ by a factor, per batch
            assert (cosine > 0.9999) == same, (NAMES[first], NAMES[second], cosine)
    assert not torch.allclose(gradient(LOSSES["dr_grpo"], data, counts), gradient(dapo, data, counts))


def test_dr_grpo_and_dapo_part_between_batches_of_different_lengths() -> None:
    short, long = (torch.arange(5) < length for length in (1, 5))
    for name, expected in (("dr_grpo", 5.0), ("dapo", 1.0)):  # the same loss per token: does a longer batch weigh more?
        sizes = []
        for mask in (short, long):
            mask = mask.expand(2, 3, 5)
            zeros = torch.zeros(2, 3, 5)
            loss = LOSSES[name](zeros, zeros, torch.ones(2, 3), mask, counts_of(mask), **CLIP).loss
            sizes.append(float(loss))
        assert sizes[1] / sizes[0] == pytest.approx(expected)


@pytest.mark.parametrize("name", NAMES)
def test_on_policy_the_gradient_is_that_of_reinforce(name: str) -> None:
    data = example()
    data["logprobs"] = data["old_logprobs"]
    mask, counts = data["mask"], counts_of(data["mask"])
    # REINFORCE: the gradient of -A log p, weighted as the loss averages
    lengths = mask.sum(-1, keepdim=True).clamp_min(1)
    weights = {
        "completion": 1 / (lengths * counts.num_completions),
        "token": 1 / counts.num_tokens,
        "constant": 1 / (counts.num_completions * counts.max_completion_tokens),
        "sum": 1 / counts.num_completions,
    }
    expected = -data["advantages"][..., None] * weights[NORMALIZATION[name]] * mask
    torch.testing.assert_close(gradient(LOSSES[name], data, counts), expected)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo"])
def test_clipped_tokens_get_no_gradient_and_others_do(name: str) -> None:
    data = {"logprobs": OLD + RATIO.log(), "old_logprobs": OLD, "advantages": ADVANTAGES, "mask": MASK}
    grad = gradient(LOSSES[name], data, COUNTS)
    assert grad[0, 0, 0] == 0  # above the upper clip with a positive advantage
    assert grad[0, 1, 0] == 0  # below the lower clip with a negative advantage
    assert grad[0, 1, 1] != 0
    assert grad[0, 1, 2] != 0  # above the upper clip, but a negative advantage pulls it back
    assert (grad[~MASK] == 0).all()


def test_gspo_clips_a_completion_as_a_whole() -> None:
    data = {"logprobs": OLD + RATIO.log(), "old_logprobs": OLD, "advantages": ADVANTAGES, "mask": MASK}
    grad = gradient(gspo, data, COUNTS)
    assert (grad[0, 0] == 0).all()
    # ratio 1 for the second: each of its 3 tokens gets -A s / (3 x 2 completions) = 2 / 6
    torch.testing.assert_close(grad[0, 1], torch.full((3,), 2 / 6))


def test_cispo_limits_the_weight_of_a_token_and_keeps_its_gradient() -> None:
    data = {"logprobs": OLD + RATIO.log(), "old_logprobs": OLD, "advantages": ADVANTAGES, "mask": MASK}
    # -weight A / 4 tokens, where PPO's clip leaves nothing of the first token of each
    expected = torch.tensor([[[-1.3, 0.0, 0.0], [1.6, 2.0, 2.6]]]) / 4
    torch.testing.assert_close(gradient(cispo, data, COUNTS), expected)
    free = gradient(cispo, data, COUNTS, clip_low=1.0, clip_high=9.0)
    torch.testing.assert_close(free, torch.tensor([[[-1.5, 0.0, 0.0], [1.0, 2.0, 4.0]]]) / 4)


def test_rloo_clips_the_product_of_the_ratios() -> None:
    # 1.1 * 1.1 = 1.21 is beyond 1.2, its geometric mean 1.1 is not
    data = {
        "logprobs": torch.full((1, 1, 2), math.log(1.1)),
        "old_logprobs": torch.zeros(1, 1, 2),
        "advantages": torch.ones(1, 1),
        "mask": torch.ones(1, 1, 2, dtype=torch.bool),
    }
    assert (gradient(rloo, data, Counts(2, 1, 2), clip_low=0.2, clip_high=0.2) == 0).all()
    assert (gradient(gspo, data, Counts(2, 1, 2), clip_low=0.2, clip_high=0.2) != 0).all()
    # every token gets -A times the product
    torch.testing.assert_close(gradient(rloo, data, Counts(2, 1, 2)), torch.full((1, 1, 2), -1.21))


@pytest.mark.parametrize(("ratio", "advantage"), [(9.99, 1.0), (0.101, -1.0)])
def test_the_clip_reaches_from_a_tenth_to_ten(ratio: float, advantage: float) -> None:
    for factor, moves in ((1.0, True), (1.02 if advantage > 0 else 0.98, False)):
        data = {
            "logprobs": torch.tensor([[[math.log(ratio * factor)]]]),
            "old_logprobs": torch.zeros(1, 1, 1),
            "advantages": torch.tensor([[advantage]]),
            "mask": torch.ones(1, 1, 1, dtype=torch.bool),
        }
        for loss in (LOSSES[name] for name in NAMES if name != "cispo"):
            grad = gradient(loss, data, Counts(1, 1, 1), clip_low=0.9, clip_high=9.0)
            assert (grad.item() != 0) == moves


@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_add_up_to_the_whole(name: str) -> None:
    data = example()
    counts = counts_of(data["mask"])
    whole = LOSSES[name](**data, counts=counts, **CLIP)
    parts = [
        LOSSES[name](**{key: value[rows] for key, value in data.items()}, counts=counts, **CLIP)
        for rows in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(sum(part.loss for part in parts), whole.loss)
    torch.testing.assert_close(sum(part.clip_fraction for part in parts), whole.clip_fraction)


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing_whatever_it_holds(name: str) -> None:
    data = example()
    counts = counts_of(data["mask"])
    wide = {
        "logprobs": torch.nn.functional.pad(data["logprobs"], (0, 2, 0, 1), value=torch.nan),
        "old_logprobs": torch.nn.functional.pad(data["old_logprobs"], (0, 2, 0, 1), value=-torch.inf),
        "advantages": torch.nn.functional.pad(data["advantages"], (0, 1), value=3.0),
        "mask": torch.nn.functional.pad(data["mask"], (0, 2, 0, 1)),
    }
    torch.testing.assert_close(
        LOSSES[name](**wide, counts=counts, **CLIP).loss, LOSSES[name](**data, counts=counts, **CLIP).loss
    )
    grad = gradient(LOSSES[name], wide, counts)
    torch.testing.assert_close(grad[:, :3, :5], gradient(LOSSES[name], data, counts))
    assert (grad[~wide["mask"]] == 0).all()


def test_a_ratio_beyond_all_numbers_leaves_no_nan() -> None:
    data = {
        "logprobs": torch.tensor([[[0.0, -1.0]]]),
        "old_logprobs": torch.tensor([[[-300.0, -1.0]]]),
        "advantages": torch.tensor([[1.0]]),
        "mask": torch.ones(1, 1, 2, dtype=torch.bool),
    }
    for loss in LOSSES.values():
        assert torch.isfinite(gradient(loss, data, Counts(2, 1, 2))).all()


def test_tokens_may_have_their_own_advantages() -> None:
    data = example()
    counts = counts_of(data["mask"])
    spread = data | {"advantages": data["advantages"][..., None].expand(data["mask"].shape)}
    torch.testing.assert_close(grpo(**spread, counts=counts, **CLIP).loss, grpo(**data, counts=counts, **CLIP).loss)


def test_the_averages_worked_by_hand() -> None:
    values = torch.tensor([[[3.0, 50.0, 50.0], [1.0, 2.0, 6.0]]])
    # means 3 and 3 over 2 completions; 12 over 4 tokens; 12 over 2 x 4
    assert aggregate(values, MASK, COUNTS, "completion").item() == 3.0
    assert aggregate(values, MASK, COUNTS, "token").item() == 3.0
    assert aggregate(values, MASK, COUNTS, "constant").item() == 1.5
    assert aggregate(values, MASK, COUNTS, "sum").item() == 6.0  # 12 over 2
    values[0, 0, 0] = 5.0  # the short completion weighs half in one, a quarter in the other
    assert aggregate(values, MASK, COUNTS, "completion").item() == 4.0
    assert aggregate(values, MASK, COUNTS, "token").item() == 3.5


def test_the_kl_term_and_the_entropy_bonus_average_like_the_loss() -> None:
    values = torch.tensor([[[5.0, 50.0, 50.0], [1.0, 2.0, 6.0]]])
    assert kl_penalty(values, MASK, COUNTS, NORMALIZATION["grpo"], 0.1).item() == pytest.approx(0.4)
    assert entropy_bonus(values, MASK, COUNTS, NORMALIZATION["dr_grpo"], 0.1).item() == pytest.approx(-0.1 * 14 / 8)


def test_ratio_statistics_look_at_counted_tokens_only() -> None:
    statistics = ratio_statistics(OLD + RATIO.log(), OLD, MASK)
    assert statistics.mean.item() == pytest.approx(5 / 4)  # 1.5 + .5 + 1 + 2
    assert statistics.smallest.item() == pytest.approx(0.5)
    assert statistics.largest.item() == pytest.approx(2.0)
    # k3 of KL(old || policy): mean of r - 1 - ln r; ln 1.5 + ln .5 + ln 1 + ln 2 = ln 1.5
    assert statistics.approx_kl.item() == pytest.approx((5 - 4 - math.log(1.5)) / 4, rel=1e-5)
    nothing = ratio_statistics(OLD + RATIO.log(), OLD, torch.zeros_like(MASK))
    assert [value.item() for value in nothing] == [1.0, 1.0, 1.0, 0.0]


def trl_loss(name: str, data: dict[str, Tensor], ref_logprobs: Tensor, kl_coef: float) -> Tensor:
    """Run TRL's own loss on given log-probs."""
    from trl import GRPOTrainer

    flat = {key: value.flatten(0, 1) for key, value in data.items()}
    unchanged = SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x)
    trainer = SimpleNamespace(
        loss_type={"gspo": "grpo"}.get(name, name),
        importance_sampling_level="sequence" if name == "gspo" else "token",
        _get_per_token_logps_and_entropies=lambda *_, **__: (flat["logprobs"], flat["logprobs"], None),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        model=SimpleNamespace(training=True),
        accelerator=unchanged,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        beta=kl_coef,
        epsilon_low=CLIP["clip_low"],
        epsilon_high=CLIP["clip_high"] + (name == "cispo"),  # there the limit itself, not its distance from 1
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=8,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )
    ids = torch.zeros_like(flat["mask"], dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1],
        "completion_ids": ids,
        "completion_mask": flat["mask"].long(),
        "advantages": flat["advantages"],
        "old_per_token_logps": flat["old_logprobs"],
        "ref_per_token_logps": ref_logprobs.flatten(0, 1),
        "num_items_in_batch": flat["mask"].sum(),
    }
    loss: Tensor = GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss


@pytest.mark.parametrize("name", [name for name in NAMES if name != "rloo"])
def test_losses_with_a_kl_term_agree_with_trl(name: str) -> None:
    data = example()
    data["mask"][0, 1, 0] = True  # TRL has no absent completions
    ref_logprobs = data["old_logprobs"] - 0.1
    counts = counts_of(data["mask"])
    kl = kl_k3(data["logprobs"], ref_logprobs)
    clip = CLIP | ({"clip_low": 1.0} if name == "cispo" else {})  # TRL has no lower limit there
    ours = LOSSES[name](**data, counts=counts, **clip).loss
    ours = ours + kl_penalty(kl, data["mask"], counts, NORMALIZATION[name], 0.3)
    torch.testing.assert_close(ours, trl_loss(name, data, ref_logprobs, 0.3))


def test_rloo_agrees_with_trl() -> None:
    from trl import RLOOTrainer

    data = example()
    data["mask"][0, 1, 0] = True  # TRL has no absent completions
    ours = rloo(**data, counts=counts_of(data["mask"]), **CLIP)
    flat = {key: value.flatten(0, 1) for key, value in data.items()}
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (flat["logprobs"], flat["logprobs"], None),
        accelerator=SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x),
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        epsilon_low=CLIP["clip_low"],
        epsilon_high=CLIP["clip_high"],
        _metrics={"train": defaultdict(list)},
    )
    ids = torch.zeros_like(flat["mask"], dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1],
        "completion_ids": ids,
        "completion_mask": flat["mask"].long(),
        "advantages": flat["advantages"],
        "old_logps": (flat["old_logprobs"] * flat["mask"]).sum(1),
    }
    torch.testing.assert_close(ours.loss, RLOOTrainer._compute_loss(trainer, None, inputs))
    clipped = trainer._metrics["train"]["clip_ratio/region_mean"]
    assert [ours.clip_fraction.item()] == pytest.approx(clipped)
