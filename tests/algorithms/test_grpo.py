"""GRPO: what its settings do to the loss, and that it learns."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from toys import tiny_job, tiny_recipe

from rlkit.algorithms.grpo import GRPO, grpo
from rlkit.config.algorithms import GRPOSettings
from rlkit.config.rewards import ItemMatchSettings
from rlkit.ops.policy_loss import Counts
from rlkit.policy.group_batch import GroupBatch
from rlkit.policy.grouped_forward import PolicyOutput
from rlkit.policy.rollouts import Rollouts
from rlkit.recipe import recipe_from_tree
from rlkit.run import run


def settings(**changes) -> GRPOSettings:
    return GRPOSettings(rewards=(ItemMatchSettings(),), **{"kl_coef": 0.0, **changes})


def batch(**numbers: torch.Tensor) -> GroupBatch:
    """One prompt with two completions of one token."""
    mask = torch.ones(1, 2, 1, dtype=torch.bool)
    return GroupBatch(
        torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1), torch.zeros(1, 2, 1, dtype=torch.long), mask, numbers
    )


def loss_of(chosen: GRPOSettings, logprobs: torch.Tensor, entropy: float = 0.0, **numbers: torch.Tensor):
    output = PolicyOutput(logprobs, torch.full_like(logprobs, entropy), None)
    return GRPO(chosen).loss(output, batch(**numbers), Counts(2.0, 2.0, 1))


def test_the_whole_loss_by_hand() -> None:
    # Ratios 2 and 1/2 (log-probs log .5 against log .25, and the reverse), advantages 1 and -1, clip .2 on both sides:
    # min(2, 1.2) = 1.2 and min(-.5, -.8) = -.8, so the loss is -(1.2 - .8) / 2 = -.2. k3 against a reference at the old
    # log-probs: r = 1/2: -.5 + log 2 = .193147; r = 2: 1 - log 2 = .306853; mean .25, times .1. Entropy .7, times .01.
    new, old = torch.tensor([[[0.5], [0.25]]]).log(), torch.tensor([[[0.25], [0.5]]]).log()
    loss, metrics = loss_of(
        settings(kl_coef=0.1, entropy_coef=0.01), new, 0.7,
        old_logprobs=old, ref_logprobs=old, advantages=torch.tensor([[1.0, -1.0]]),
    )  # fmt: skip
    assert loss.item() == pytest.approx(-0.2 + 0.025 - 0.007, abs=1e-6)
    assert metrics["kl"].item() == pytest.approx(0.25, abs=1e-6)
    assert metrics["clip_fraction"].item() == pytest.approx(1.0)
    assert metrics["entropy"].item() == pytest.approx(0.7, abs=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_kl_term_has_the_gradient_of_the_kl_divergence(estimator: str) -> None:
    """Averaged over what the policy samples, exactly: two tokens, weighted by their probability."""
    logit, reference = torch.tensor(0.3, requires_grad=True), torch.tensor([0.6, 0.4]).log()
    logprobs = torch.stack([logit, -logit]).log_softmax(0)
    exact = torch.autograd.grad((logprobs.exp() * (logprobs - reference)).sum(), logit, retain_graph=True)[0]
    algorithm, zero = GRPO(settings(kl_coef=1.0, kl_estimator=estimator)), torch.zeros(1, 2, 1)
    numbers = {"old_logprobs": logprobs.detach().view(1, 2, 1), "ref_logprobs": reference.view(1, 2, 1)}
    kl = algorithm._kl(logprobs.view(1, 2, 1), numbers, torch.ones_like(zero, dtype=torch.bool)).flatten()
    gradient = torch.autograd.grad((logprobs.exp().detach() * kl).sum(), logit)[0]
    if estimator == "k1":
        assert gradient.item() == pytest.approx(exact.item(), abs=1e-6)
    else:  # k3 as a loss is that of the reverse divergence: it pulls to the same place, with another strength
        assert math.copysign(1, gradient.item()) == math.copysign(1, exact.item())


def test_the_widest_clip_reaches_a_tenth_and_ten() -> None:
    for ratio, advantage, expected in ((9.9, 1.0, 9.9), (20.0, 1.0, 10.0), (0.11, -1.0, -0.11), (0.01, -1.0, -0.1)):
        new, old = torch.tensor([[[math.log(ratio)]] * 2]).view(1, 2, 1), torch.zeros(1, 2, 1)
        chosen = settings(clip_low=0.9, clip_high=9.0)
        loss, _ = loss_of(chosen, new, old_logprobs=old, advantages=torch.full((1, 2), advantage))
        assert loss.item() == pytest.approx(-expected, rel=1e-5)


def test_advantages_come_from_all_groups_of_the_rollout() -> None:
    # Rewards (1, 0) and (3, 1): centered (.5, -.5), (1, -1). All four have mean 1.25 and variance 4.75 / 3.
    rewards = torch.tensor([[1.0, 0.0], [3.0, 1.0]])
    mask = torch.ones(2, 2, 1, dtype=torch.bool)
    tokens = GroupBatch(
        torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1), torch.zeros(2, 2, 1, dtype=torch.long), mask
    )
    rollouts = Rollouts([], tokens, rewards, None, rewards > 9, torch.zeros(2, 1), torch.ones(2, 1), rewards=rewards)
    found = GRPO(settings(advantage_scale="batch")).experience(rollouts)["advantages"]
    deviation = math.sqrt(4.75 / 3) + 1e-4
    assert found.flatten().tolist() == pytest.approx([0.5 / deviation, -0.5 / deviation, 1 / deviation, -1 / deviation])
    assert GRPO(settings(advantage_scale="none", advantage_baseline="leave_one_out")).experience(rollouts)[
        "advantages"
    ].tolist() == [[1.0, -1.0], [2.0, -2.0]]


def test_cispo_trains_several_updates_of_a_rollout_and_learns(tmp_path: Path) -> None:
    tree = copy.deepcopy(tiny_recipe())
    tree["stages"]["grpo"]["algorithm"] |= {
        "loss": "cispo", "clip_low": 1.0, "clip_high": 1.0, "updates_epochs": 2, "rollout": {"type": "sample"},
        "rewards": [{"type": "attribute_match", "attribute": "category", "value": "Coffee"}],
        "validate_on": {"prompts": 16, "num_beams": 10, "select_by": "last"},
    }  # fmt: skip
    train = {"batch_size": 16, "learning_rate": 1e-2, "max_steps": 40, "log_every_steps": 2}
    tree["stages"]["grpo"]["train"] |= {**train, "evaluate_every_steps": 100}
    built = grpo(tiny_job(tmp_path, "grpo", tree))
    built.args.eval_on_start = False
    built.train()
    rewards = [row["reward"] for row in built.state.log_history if "reward" in row]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2


@pytest.mark.slow
@pytest.mark.parametrize(("learning_rate", "learns"), [(1e-3, True), (1e-12, False)])
def test_grpo_learns_what_likelihood_does_not_serve(learning_rate: float, learns: bool, tmp_path: Path) -> None:
    """Items of one category of the demo: the mean group reward rises by .2 in 100 steps, and not without learning."""
    tree = copy.deepcopy(tiny_recipe())
    tree["domain"]["data"] = {"type": "demo"}
    tree["model"] = {"preset": "nano"}
    tree["stages"]["sft"]["train"] |= {
        "max_steps": 150,
        "batch_size": 64,
        "micro_batch_size": 16,
        "evaluate_every_steps": 150,
    }
    tree["stages"]["grpo"]["algorithm"] |= {
        "group_size": 16, "rewards": [{"type": "attribute_match", "value": "Coffee"}],
        "validate_on": {"prompts": 32, "num_beams": 16, "every_steps": 50, "select_by": "last"},
    }  # fmt: skip
    tree["stages"]["grpo"]["train"] |= {
        "batch_size": 32,
        "max_steps": 100,
        "learning_rate": learning_rate,
        "log_every_steps": 10,
    }
    tree["stages"]["evaluate"] |= {"max_rows": 200, "baselines": False}
    out = run(recipe_from_tree(tree), tmp_path / "run")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rewards = [row["reward"] for row in rows if row["stage"] == "grpo" and "reward" in row]
    assert (rewards[-1] - rewards[0] >= 0.2) == learns
    assert json.loads((out / "evaluate/eval.json").read_text())["invalid"] == 0
