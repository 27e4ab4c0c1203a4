"""RLOO: credit and loss by hand, and that it learns."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from toys import tiny_job, tiny_recipe

from rlkit.algorithms.rloo import RLOO, rloo
from rlkit.config.reinforce import RLOOSettings
from rlkit.config.rewards import ItemMatchSettings
from rlkit.errors import TrainingError
from rlkit.ops.policy_loss import Counts
from rlkit.policy.group_batch import GroupBatch
from rlkit.policy.grouped_forward import PolicyOutput
from rlkit.policy.trainer import PolicyTrainer

COFFEE = {"type": "attribute_match", "attribute": "category", "value": "Coffee"}


def settings(**changes) -> RLOOSettings:
    return RLOOSettings(rewards=(ItemMatchSettings(),), **changes)


def batch(**numbers: torch.Tensor) -> GroupBatch:
    """One prompt with two completions, of two tokens and of one."""
    mask = torch.tensor([[[True, True], [True, False]]])
    return GroupBatch(torch.zeros(1, 1).long(), torch.ones(1, 1), torch.zeros(1, 2, 2).long(), mask, numbers)


def trainer(folder: Path, train: dict | None = None, **algorithm) -> PolicyTrainer:
    """Two epochs over rollouts of 16 prompts in two mini-batches."""
    tree = copy.deepcopy(tiny_recipe())
    stage = tree["stages"]["grpo"]
    ours = {"type": "rloo", "rollout_batch_size": 16, "updates_epochs": 2, "rewards": [COFFEE]}
    stage["algorithm"] = {**ours, "validate_on": {"prompts": 16, "num_beams": 10, "select_by": "last"}, **algorithm}
    stage["train"] |= {"batch_size": 8, "max_steps": 8, "evaluate_every_steps": 100, **(train or {})}
    built = rloo(tiny_job(folder, "grpo", tree))
    built.args.eval_on_start = False
    return built


def batches_of(built: PolicyTrainer, num_batches: int = 1):
    return built.get_batch_samples(iter(built.get_train_dataloader()), num_batches, torch.device("cpu"))


def test_credit_by_hand() -> None:
    # KL k1 .2 and -.1, and .4 (the fourth token is padding), times .5: rewards 3 - .05 and 1 - .2; each against the
    # other: 2.95 - .8 = 2.15. The mean KL per token is (.2 - .1 + .4) / 3.
    part = batch(
        rewards=torch.tensor([[3.0, 1.0]]),
        old_logprobs=torch.tensor([[[-1.0, -1.0], [-1.0, 0.0]]]),
        ref_logprobs=torch.tensor([[[-1.2, -0.9], [-1.4, torch.nan]]]),
    )
    metrics = RLOO(settings(kl_coef=0.5)).credit([part])
    assert part.numbers["advantages"].flatten().tolist() == pytest.approx([2.15, -2.15], abs=1e-6)
    assert metrics == {"kl": pytest.approx(0.5 / 3, abs=1e-6)}


def test_the_whole_loss_by_hand() -> None:
    # Products of ratios 1.5 * .5 = .75 and 2, advantages 1 and -1, clip .2: min(.75, .8) = .75 and min(-2, -1.2) = -2,
    # so the loss is -(.75 - 2) / 2 = .625. Entropy .7 per token, 3 tokens over 2 completions, times .01.
    new = torch.tensor([[[1.5, 0.5], [2.0, 7.0]]]).log()
    part = batch(old_logprobs=torch.zeros(1, 2, 2), advantages=torch.tensor([[1.0, -1.0]]))
    output = PolicyOutput(new, torch.full_like(new, 0.7), None)
    loss, metrics = RLOO(settings(entropy_coef=0.01)).loss(output, part, Counts(3.0, 2.0, 2))
    assert loss.item() == pytest.approx(0.625 - 0.01 * 0.7 * 3 / 2, abs=1e-6)
    assert metrics["clip_fraction"].item() == 0.0
    assert metrics["entropy"].item() == pytest.approx(0.7)


def test_a_rollout_is_credited_by_the_leave_one_out_mean_of_its_penalized_rewards(tmp_path: Path) -> None:
    built = trainer(tmp_path, kl_coef=0.3)
    with torch.no_grad():  # a reference that differs
        for parameter in built.reference.module.lm.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    numbers, mask = (part := batches_of(built)[0][0]).numbers, part.mask
    kl = ((numbers["old_logprobs"] - numbers["ref_logprobs"]) * mask).sum(-1)
    assert kl.abs().max() > 1e-3
    penalized = numbers["rewards"] - 0.3 * kl
    others = (penalized.sum(-1, keepdim=True) - penalized) / 3
    assert torch.allclose(numbers["advantages"], penalized - others, atol=1e-5)


def test_one_mini_batch_and_one_epoch_have_the_gradient_of_reinforce(tmp_path: Path) -> None:
    built = trainer(tmp_path, updates_epochs=1, rollout_batch_size=8)
    (part,), counts = batches_of(built)
    built.compute_loss(built.model, part, num_items_in_batch=counts).backward()
    ours = [parameter.grad.clone() for parameter in built.model.lm.parameters()]
    built.model.zero_grad()
    logprobs = (built.model(part).logprobs * part.mask).sum(-1)
    (-(part.numbers["advantages"] * logprobs).sum() / (8 * 4)).backward()
    assert max(float(gradient.abs().max()) for gradient in ours) > 1e-4
    for gradient, parameter in zip(ours, built.model.lm.parameters()):
        assert torch.allclose(gradient, parameter.grad, atol=1e-6)


def test_the_first_pass_has_ratios_of_one_and_a_mismatch_is_reported(tmp_path: Path) -> None:
    built = trainer(tmp_path)
    built.model.temperature = 1.5
    with pytest.raises(TrainingError, match="training and sampling disagree"):
        built.train()


def test_micro_batches_change_no_weight(tmp_path: Path) -> None:
    found = []
    for size in (8, 2):
        built = trainer(tmp_path / str(size), {"micro_batch_size": size}, entropy_coef=0.01)
        start = torch.cat([parameter.detach().flatten() for parameter in built.model.parameters()]).clone()
        built.train()
        found.append(torch.cat([parameter.detach().flatten() for parameter in built.model.parameters()]))
    assert torch.allclose(*found, atol=5e-6)
    assert not torch.allclose(found[0], start, atol=1e-4), "training moves the weights"


def test_without_a_reference_there_is_no_penalty(tmp_path: Path) -> None:
    built = trainer(tmp_path, kl_coef=0.0)
    assert built.reference is None
    part = batches_of(built)[0][0]
    rewards = part.numbers["rewards"]
    others = (rewards.sum(-1, keepdim=True) - rewards) / 3
    assert torch.allclose(part.numbers["advantages"], rewards - others, atol=1e-6)


@pytest.mark.parametrize(("learning_rate", "steps", "learns"), [(1e-2, 40, True), (1e-12, 10, False)])
def test_rloo_learns_under_the_recommendation_constraint(
    learning_rate: float, steps: int, learns: bool, tmp_path: Path
) -> None:
    train = {"learning_rate": learning_rate, "max_steps": steps, "batch_size": 16, "log_every_steps": 1}
    built = trainer(tmp_path, train, updates_epochs=1, kl_coef=0.01)
    built.train()
    rewards = [row["reward"] for row in built.state.log_history if "reward" in row]
    assert (sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.2) == learns


def test_settings_that_could_not_act_are_refused() -> None:
    with pytest.raises(ValidationError, match="reference_sync does nothing where kl_coef is 0"):
        settings(kl_coef=0.0, reference_sync={})
    with pytest.raises(ValidationError, match="group_size"):
        settings(group_size=1)
