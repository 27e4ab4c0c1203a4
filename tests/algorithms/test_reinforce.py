"""REINFORCE++: credit and loss by hand, with and without a group's baseline, and that it learns."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from toys import tiny_job, tiny_recipe

from rlkit.algorithms.reinforce import ReinforcePP, reinforce_pp
from rlkit.config.reinforce import ReinforcePPSettings
from rlkit.config.rewards import ItemMatchSettings
from rlkit.errors import TrainingError
from rlkit.ops.policy_loss import Counts
from rlkit.policy.group_batch import GroupBatch
from rlkit.policy.grouped_forward import PolicyOutput
from rlkit.policy.trainer import PolicyTrainer

COFFEE = {"type": "attribute_match", "attribute": "category", "value": "Coffee"}
VARIANTS = {"none": {"group_size": 2}, "group": {"baseline": "group", "group_size": 4}}


def settings(**changes) -> ReinforcePPSettings:
    return ReinforcePPSettings(rewards=(ItemMatchSettings(),), **changes)


def batch(**numbers: torch.Tensor) -> GroupBatch:
    """One prompt with two completions, of two tokens and of one."""
    mask = torch.tensor([[[True, True], [True, False]]])
    return GroupBatch(torch.zeros(1, 1).long(), torch.ones(1, 1), torch.zeros(1, 2, 2).long(), mask, numbers)


def rewarded() -> GroupBatch:
    """KL k1: .2 and -.1, and .4; the fourth token is padding."""
    return batch(
        rewards=torch.tensor([[3.0, 1.0]]),
        old_logprobs=torch.tensor([[[-1.0, -1.0], [-1.0, 0.0]]]),
        ref_logprobs=torch.tensor([[[-1.2, -0.9], [-1.4, torch.nan]]]),
    )


def trainer(folder: Path, train: dict | None = None, **algorithm) -> PolicyTrainer:
    """Two epochs over rollouts of 16 prompts in two mini-batches."""
    tree = copy.deepcopy(tiny_recipe())
    stage = tree["stages"]["grpo"]
    ours = {"type": "reinforce_pp", "rollout_batch_size": 16, "updates_epochs": 2, "rewards": [COFFEE]}
    stage["algorithm"] = {**ours, "validate_on": {"prompts": 16, "num_beams": 10, "select_by": "last"}, **algorithm}
    stage["train"] |= {"batch_size": 8, "max_steps": 8, "evaluate_every_steps": 100, **(train or {})}
    built = reinforce_pp(tiny_job(folder, "grpo", tree))
    built.args.eval_on_start = False
    return built


def batches_of(built: PolicyTrainer, num_batches: int = 1):
    return built.get_batch_samples(iter(built.get_train_dataloader()), num_batches, torch.device("cpu"))


@pytest.mark.parametrize(
    ("changes", "returns"),
    [
        # penalties .1, -.05 and .2; returns from each token on: 3 + .05 - .1 = 2.95, 3.05, and .8
        ({}, [2.95, 3.05, 0.8]),
        # the second token's 3.05 counts half at the first: 1.525 - .1
        ({"gamma": 0.5}, [1.425, 3.05, 0.8]),
        # rewards 1 and -1 after the group's mean of 2
        ({"baseline": "group", "group_size": 2}, [0.95, 1.05, -1.2]),
        # the penalty acts in the loss
        ({"kl_in": "loss"}, [3.0, 3.0, 1.0]),
    ],
)
def test_credit_by_hand(changes: dict, returns: list[float]) -> None:
    part = rewarded()
    metrics = ReinforcePP(settings(kl_coef=0.5, **changes)).credit([part])
    values = torch.tensor(returns)
    expected = (values - values.mean()) / values.std()
    assert part.numbers["advantages"][part.mask].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert part.numbers["advantages"][0, 1, 1] == 0
    assert metrics == {
        "return": pytest.approx(values.mean().item(), abs=1e-6),
        "kl": pytest.approx(0.5 / 3, abs=1e-6),
    }


def test_mini_batches_are_normalized_together() -> None:
    algorithm, parts = ReinforcePP(settings(kl_coef=0.0)), [rewarded(), rewarded()]
    parts[1].numbers["rewards"] = torch.tensor([[-5.0, 8.0]])
    algorithm.credit(parts)
    advantages = torch.cat([part.numbers["advantages"][part.mask] for part in parts])
    values = torch.tensor([3.0, 3.0, 1.0, -5.0, -5.0, 8.0])
    assert advantages.tolist() == pytest.approx(((values - values.mean()) / values.std()).tolist(), abs=1e-5)


def test_the_whole_loss_by_hand() -> None:
    # Ratios 2, .5 and 2, advantages 1, -1, -1, clip .2: 1.2, -.8 and -2, so the loss is 1.6 / 3. k2 against a reference
    # of log-probs 0: the mean of ln(2)^2 / 2 (all three), times .5. Entropy .7, times .01.
    new = torch.tensor([[[2.0, 0.5], [2.0, 7.0]]]).log()
    chosen = settings(kl_in="loss", kl_estimator="k2", kl_coef=0.5, entropy_coef=0.01)
    zeros = torch.zeros(1, 2, 2)
    part = batch(old_logprobs=zeros, ref_logprobs=zeros, advantages=torch.tensor([[[1.0, -1.0], [-1.0, 0.0]]]))
    output = PolicyOutput(new, torch.full_like(new, 0.7), None)
    loss, metrics = ReinforcePP(chosen).loss(output, part, Counts(3.0, 2.0, 2))
    assert loss.item() == pytest.approx(1.6 / 3 + 0.25 * 0.480453 - 0.007, abs=1e-5)
    assert metrics["clip_fraction"].item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("estimator", ["k1", "k2"])
def test_the_kl_loss_has_the_gradient_of_the_kl_divergence(estimator: str) -> None:
    """Averaged over what the policy samples, exactly: two tokens, weighted by their probability."""
    logit, reference = torch.tensor(0.3, requires_grad=True), torch.tensor([0.6, 0.4]).log()
    logprobs = torch.stack([logit, -logit]).log_softmax(0)
    exact = torch.autograd.grad((logprobs.exp() * (logprobs - reference)).sum(), logit, retain_graph=True)[0]
    mask = torch.ones(1, 2, 1, dtype=torch.bool)
    numbers = {"old_logprobs": logprobs.detach().view(1, 2, 1), "ref_logprobs": reference.view(1, 2, 1)}
    part = GroupBatch(torch.zeros(1, 1).long(), torch.ones(1, 1), torch.zeros(1, 2, 1).long(), mask, numbers)
    chosen = settings(kl_in="loss", kl_estimator=estimator)
    kl = ReinforcePP(chosen)._kl_of_loss(PolicyOutput(logprobs.view(1, 2, 1), None), part).flatten()
    gradient = torch.autograd.grad((logprobs.exp().detach() * kl).sum(), logit)[0]
    assert gradient.item() == pytest.approx(exact.item(), abs=1e-6)


@pytest.mark.parametrize("baseline", list(VARIANTS))
def test_the_advantages_of_a_rollout_have_mean_0_and_variance_1(baseline: str, tmp_path: Path) -> None:
    built = trainer(tmp_path, **VARIANTS[baseline])
    parts = [batches_of(built)[0][0] for _ in range(2)]
    advantages = torch.cat([part.numbers["advantages"][part.mask] for part in parts])
    assert advantages.mean().abs() < 1e-6
    assert advantages.var() == pytest.approx(1.0, abs=1e-4)


def test_one_mini_batch_and_one_epoch_have_the_gradient_of_reinforce(tmp_path: Path) -> None:
    built = trainer(tmp_path, updates_epochs=1, rollout_batch_size=8, group_size=2)
    (part,), counts = batches_of(built)
    built.compute_loss(built.model, part, num_items_in_batch=counts).backward()
    ours = [parameter.grad.clone() for parameter in built.model.lm.parameters()]
    built.model.zero_grad()
    (-(part.numbers["advantages"] * built.model(part).logprobs)[part.mask].sum() / part.mask.sum()).backward()
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
        built = trainer(tmp_path / str(size), {"micro_batch_size": size}, kl_in="loss", entropy_coef=0.01)
        start = torch.cat([parameter.detach().flatten() for parameter in built.model.parameters()]).clone()
        built.train()
        found.append(torch.cat([parameter.detach().flatten() for parameter in built.model.parameters()]))
    assert torch.allclose(*found, atol=5e-6)
    assert not torch.allclose(found[0], start, atol=1e-4), "training moves the weights"


@pytest.mark.parametrize("baseline", list(VARIANTS))
@pytest.mark.parametrize(("learning_rate", "steps", "learns"), [(1e-2, 40, True), (1e-12, 10, False)])
def test_reinforce_pp_learns_under_the_recommendation_constraint(
    baseline: str, learning_rate: float, steps: int, learns: bool, tmp_path: Path
) -> None:
    train = {"learning_rate": learning_rate, "max_steps": steps, "batch_size": 16, "log_every_steps": 1}
    built = trainer(tmp_path, train, updates_epochs=1, **VARIANTS[baseline])
    built.train()
    rewards = [row["reward"] for row in built.state.log_history if "reward" in row]
    assert (sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.2) == learns


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "group"}, "set group_size to 2 or more"),
        ({"zero_signal": "drop"}, "does not go with baseline none"),
        ({"kl_in": "loss", "kl_estimator": "full"}, "serves in the reward only"),
        ({"kl_coef": 0.0, "reference_sync": {}}, "reference_sync does nothing where kl_coef is 0"),
    ],
)
def test_settings_that_could_not_act_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**changes)
