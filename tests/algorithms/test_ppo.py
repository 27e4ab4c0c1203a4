"""PPO: experience, credit and loss by hand, what its settings do, and that it learns."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from toys import tiny_job, tiny_recipe

from rlkit.algorithms.ppo import PPO, ppo
from rlkit.config.ppo import PPOSettings
from rlkit.config.rewards import ItemMatchSettings
from rlkit.errors import DataError, RecipeError, TrainingError
from rlkit.models.wrapped import HEADS_FILE
from rlkit.ops.policy_loss import Counts
from rlkit.policy.group_batch import GroupBatch
from rlkit.policy.grouped_forward import PolicyOutput
from rlkit.policy.rollouts import Rollouts
from rlkit.policy.trainer import PolicyTrainer
from rlkit.policy.value import VALUE_FOLDER
from rlkit.recipe import recipe_from_tree
from rlkit.run import run


def settings(**changes) -> PPOSettings:
    return PPOSettings(rewards=(ItemMatchSettings(),), **{"kl_coef": 0.0, **changes})


def batch(**numbers: torch.Tensor) -> GroupBatch:
    """One prompt, one completion of two tokens."""
    mask = torch.ones(1, 1, 2, dtype=torch.bool)
    return GroupBatch(torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1), torch.zeros(1, 1, 2).long(), mask, numbers)


def tokens(*values: float) -> torch.Tensor:
    return torch.tensor([[list(values)]], dtype=torch.float32)


def tree(folder: Path, train: dict | None = None, model: dict | None = None, **algorithm) -> dict:
    """A PPO stage after nothing; two epochs over rollouts of 16 prompts in two mini-batches."""
    built = copy.deepcopy(tiny_recipe())
    built["model"] |= model or {}
    stage = built["stages"].pop("grpo")
    ours = {"type": "ppo", "group_size": 2, "rollout_batch_size": 16, "updates_epochs": 2, "kl_coef": 0.05}
    stage["algorithm"] = {
        **ours, "rewards": [{"type": "prefix_match"}], "validate_on": stage["algorithm"]["validate_on"], **algorithm
    }  # fmt: skip
    stage["train"] |= {"batch_size": 8, "max_steps": 8, "evaluate_every_steps": 100, **(train or {})}
    built["stages"] = {"ppo": stage}
    return built


def trainer(folder: Path, train: dict | None = None, model: dict | None = None, **algorithm) -> PolicyTrainer:
    built = ppo(tiny_job(folder, "ppo", tree(folder, train, model, **algorithm)))
    built.args.eval_on_start = False
    return built


def batches_of(built: PolicyTrainer, num_batches: int = 1):
    return built.get_batch_samples(iter(built.get_train_dataloader()), num_batches, torch.device("cpu"))


def weights(built: PolicyTrainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in built.model.parameters()])


def test_the_whole_loss_by_hand() -> None:
    # Policy: ratios 2 and 1/2, advantages 1 and -1, clip .2: -(1.2 - .8) / 2 = -.2. Value: .5 and .1 against returns 1
    # and 0, clip .2 around 0: squares .25 and .01, clipped to .2: .64 and .01, so half the mean of .64 and .01: .1625,
    # times .1. Entropy .7, times .01.
    new, old = tokens(0.5, 0.25).log(), tokens(0.25, 0.5).log()
    output = PolicyOutput(new, torch.full_like(new, 0.7), values=tokens(0.5, 0.1))
    part = batch(old_logprobs=old, advantages=tokens(1, -1), values=tokens(0, 0), returns=tokens(1, 0))
    loss, metrics = PPO(settings(entropy_coef=0.01)).loss(output, part, Counts(2.0, 1.0, 2))
    assert loss.item() == pytest.approx(-0.2 + 0.01625 - 0.007, abs=1e-6)
    # k3 of the sampling policy: ratios 2 and 1/2: (2 - 1 - log 2 + .5 - 1 + log 2) / 2 = .25
    assert metrics["approx_kl"].item() == pytest.approx(0.25, abs=1e-6)
    assert metrics["value_clip_fraction"].item() == pytest.approx(0.5)


def test_credit_by_hand() -> None:
    # kl k1: .2 and -.1, times .5: the tokens earn -.1 and 1 + .05. Values .5 and .25, gamma 1, lambda .5:
    # surprise 2: 1.05 - .25 = .8; surprise 1: -.1 + .25 - .5 = -.35; advantages: -.35 + .5 * .8 = .05, and .8.
    algorithm = PPO(settings(kl_coef=0.5, gae_lambda=0.5, whiten_advantages=False))
    part = batch(
        rewards=torch.tensor([[1.0]]), values=tokens(0.5, 0.25),
        old_logprobs=tokens(-1.0, -1.0), ref_logprobs=tokens(-1.2, -0.9),
    )  # fmt: skip
    metrics = algorithm.credit([part])
    assert part.numbers["advantages"].flatten().tolist() == pytest.approx([0.05, 0.8], abs=1e-6)
    assert part.numbers["returns"].flatten().tolist() == pytest.approx([0.55, 1.05], abs=1e-6)
    assert metrics["kl"] == pytest.approx(0.05)
    assert metrics["kl_coef"] == 0.5


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [("k1", (0.2, -0.1)), ("k2", (0.02, 0.005)), ("abs", (0.2, 0.1)),
     ("k3", (math.exp(-0.2) - 1 + 0.2, math.exp(0.1) - 1 - 0.1))],
)  # fmt: skip
def test_each_estimator_penalizes_each_token_by_its_formula(estimator: str, expected: tuple[float, float]) -> None:
    algorithm = PPO(settings(kl_coef=1.0, kl_estimator=estimator, gae_lambda=0.0, whiten_advantages=False))
    part = batch(
        rewards=torch.zeros(1, 1), values=tokens(0, 0), old_logprobs=tokens(-1.0, -1.0), ref_logprobs=tokens(-1.2, -0.9)
    )
    algorithm.credit([part])  # with lambda 0 and no values the advantage is what the token earned
    assert (-part.numbers["advantages"]).flatten().tolist() == pytest.approx(list(expected), abs=1e-6)


def test_the_exact_divergence_is_that_of_the_whole_distributions(tmp_path: Path) -> None:
    built = trainer(tmp_path, kl_estimator="full")
    part = batches_of(built)[0][0]
    assert torch.allclose(part.numbers["ref_kl"], torch.zeros(()), atol=1e-6), "the reference is the starting model"
    with torch.no_grad():
        for parameter in built.reference.module.lm.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        found = built._exact_kl(built.reference.module, part)
        asked = {"with_entropy": False, "with_distributions": True}
        mine, other = (model(part, **asked).distributions for model in (built.model, built.reference.module))
    allowed = mine != 0  # what is not allowed has a log-prob of 0 in both
    by_hand = (mine.exp() * (mine - other) * allowed).sum(-1)
    assert torch.allclose(found[part.mask], by_hand, atol=1e-6)
    assert found[part.mask].min() > 1e-6


def test_the_reward_is_scaled_then_clipped_and_a_missing_end_costs() -> None:
    mask = torch.ones(1, 3, 2, dtype=torch.bool)
    group = GroupBatch(torch.zeros(1, 1).long(), torch.ones(1, 1), torch.zeros(1, 3, 2).long(), mask)
    none = torch.zeros(1, 1)
    rollouts = Rollouts([], group, torch.zeros(1, 3), None, torch.tensor([[False, True, False]]), none.long(), none,
                        rewards=torch.tensor([[0.5, 0.5, -9.0]]))  # fmt: skip
    chosen = settings(reward_scale=2.0, reward_clip=3.0, missing_eos_penalty=1.0)
    assert PPO(chosen).experience(rollouts)["rewards"].tolist() == [[1.0, 0.0, -3.0]]


def test_a_reward_on_the_last_token_is_the_reward_of_the_completion() -> None:
    algorithm = PPO(settings(whiten_advantages=False))
    common = {"values": tokens(0.5, 0.25), "old_logprobs": tokens(-1.0, -1.0)}
    whole = batch(rewards=torch.tensor([[2.0]]), **common)
    dense = batch(rewards=torch.tensor([[0.0]]), dense_rewards=tokens(0.0, 2.0), **common)
    early = batch(rewards=torch.tensor([[0.0]]), dense_rewards=tokens(2.0, 0.0), **common)
    for part in (whole, dense, early):
        algorithm.credit([part])
    assert torch.equal(whole.numbers["returns"], dense.numbers["returns"])
    assert early.numbers["returns"][0, 0, 1] < 1 < early.numbers["returns"][0, 0, 0], "credited where it was earned"


def test_whitened_advantages_have_mean_0_and_variance_1_over_the_rollout(tmp_path: Path) -> None:
    built = trainer(tmp_path)
    parts = [batches_of(built)[0][0] for _ in range(2)]
    advantages = torch.cat([part.numbers["advantages"][part.mask] for part in parts])
    assert advantages.mean().abs() < 1e-6
    assert advantages.var() == pytest.approx(1.0, abs=1e-4)


def test_one_mini_batch_and_one_epoch_have_the_gradient_of_reinforce(tmp_path: Path) -> None:
    built = trainer(tmp_path, updates_epochs=1, rollout_batch_size=8, value={"coef": 0.0})
    (part,), counts = batches_of(built)
    built.compute_loss(built.model, part, num_items_in_batch=counts).backward()
    clipped = [parameter.grad.clone() for parameter in built.model.lm.parameters()]
    built.model.zero_grad()
    logprobs = built.model(part).logprobs
    (-(part.numbers["advantages"] * logprobs)[part.mask].sum() / part.mask.sum()).backward()
    assert max(float(gradient.abs().max()) for gradient in clipped) > 1e-4
    for gradient, parameter in zip(clipped, built.model.lm.parameters()):
        assert torch.allclose(gradient, parameter.grad, atol=1e-6)


def test_the_first_pass_has_ratios_of_one_and_a_mismatch_is_reported_with_its_cause(tmp_path: Path) -> None:
    built = trainer(tmp_path, updates_epochs=1, rollout_batch_size=8)
    built.model.temperature = 1.5
    with pytest.raises(TrainingError, match=r"training and sampling disagree .* a changed temperature"):
        built.train()


def test_updates_are_skipped_once_the_policy_has_moved_too_far(tmp_path: Path) -> None:
    # Weights after a rollout whose first update leaves the limit behind are those of that one update.
    stopped = trainer(tmp_path / "1", {"max_steps": 4, "schedule": "constant", "warmup": 0}, target_kl=1e-9)
    stopped.train()
    assert stopped.state.global_step == 4
    assert [row["updates_skipped"] for row in stopped.state.log_history if "updates_skipped" in row] == [0.0, 1.0]
    free = trainer(tmp_path / "2", {"max_steps": 4, "schedule": "constant", "warmup": 0})
    seen = []
    original = free.training_step

    def training_step(*args, **kwargs):
        seen.append(weights(free))
        return original(*args, **kwargs)

    free.training_step = training_step  # type: ignore[method-assign]
    free.train()
    assert torch.equal(weights(stopped), seen[2]), "the second update showed the KL; nothing moves from there on"
    assert not torch.equal(weights(free), seen[2])


def test_the_value_has_its_own_learning_rate(tmp_path: Path) -> None:
    built = trainer(tmp_path, {"learning_rate": 1e-4}, value={"learning_rate": 1e-2})
    optimizer = built.create_optimizer()
    rates = {
        name: group["lr"]
        for group in optimizer.param_groups
        for name, parameter in built.model.named_parameters()
        if any(parameter is other for other in group["params"])
    }
    assert len(rates) == len(list(built.model.parameters()))
    assert {rate for name, rate in rates.items() if name.startswith("value.")} == {1e-2}
    assert {rate for name, rate in rates.items() if name.startswith("lm.")} == {1e-4}


@pytest.mark.parametrize("backbone", ["shared", "separate"])
def test_a_finished_stage_holds_its_value_and_a_later_one_goes_on_from_it(backbone: str, tmp_path: Path) -> None:
    recipe = tree(tmp_path, value={"backbone": backbone, "coef": 1.0}, validate_on={"select_by": "last"})
    again = copy.deepcopy(recipe["stages"]["ppo"])
    again["algorithm"]["value"]["start_from"] = "ppo"
    again["train"] |= {"learning_rate": 1e-30, "max_steps": 4}
    recipe["stages"]["again"] = again
    folder = run(recipe_from_tree(recipe), tmp_path / "run")
    places = {"shared": HEADS_FILE, "separate": f"{VALUE_FOLDER}/model.safetensors"}
    first, second = (load_file(folder / stage / "model" / places[backbone]) for stage in ("ppo", "again"))
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[name], second[name], atol=1e-9) for name in first)
    head = next(value for name, value in first.items() if value.shape[0] == 1 and value.ndim == 2)
    assert head.abs().max() > 1e-4, "the value was trained"


@pytest.mark.parametrize("backbone", ["shared", "separate"])
def test_going_on_from_a_checkpoint_gives_the_weights_of_an_uninterrupted_run(backbone: str, tmp_path: Path) -> None:
    train = {"max_steps": 8, "evaluate_every_steps": 4}
    chosen = {"value": {"backbone": backbone}, "kl_controller": {"target": 0.01, "horizon": 100}}
    whole = trainer(tmp_path / "1", train, **chosen)
    whole.train()
    resumed = trainer(tmp_path / "2", train, **chosen)
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-4")
    assert resumed.algorithm.state == whole.algorithm.state
    assert whole.algorithm.state["kl_coef"] != 0.05, "the controller moved"
    assert torch.equal(weights(resumed), weights(whole))


def test_micro_batches_change_no_weight(tmp_path: Path) -> None:
    chosen = {"value": {"coef": 1.0}, "entropy_coef": 0.01, "kl_in": "loss", "kl_estimator": "k2"}
    whole, split = trainer(tmp_path / "1", **chosen), trainer(tmp_path / "2", {"micro_batch_size": 2}, **chosen)
    for built in (whole, split):
        built.train()
    assert torch.allclose(weights(whole), weights(split), atol=5e-6)


def test_a_reference_that_is_offloaded_says_the_same(tmp_path: Path) -> None:
    near, far = (batches_of(trainer(tmp_path / str(flag), offload=flag))[0][0] for flag in (False, True))
    assert torch.equal(near.numbers["ref_logprobs"], far.numbers["ref_logprobs"])


def test_a_shared_head_starts_from_a_stage_that_has_one(tmp_path: Path) -> None:
    recipe = tree(tmp_path)
    sft = copy.deepcopy(tiny_recipe()["stages"]["sft"])
    stages = {"sft": sft, "ppo": recipe["stages"]["ppo"]}
    stages["ppo"]["algorithm"]["value"] = {"start_from": "sft"}
    with pytest.raises(RecipeError, match=r"value.start_from: must be a stage with a value head \(ppo\), got 'sft'"):
        recipe_from_tree(recipe | {"stages": stages})
    stages["ppo"]["algorithm"]["value"]["backbone"] = "separate"
    assert recipe_from_tree(recipe | {"stages": stages})


def test_a_value_folder_that_is_not_there_is_named_and_one_that_is_counts_among_the_inputs(tmp_path: Path) -> None:
    chosen = settings(value={"backbone": "separate", "path": str(tmp_path / "nowhere")}).value
    with pytest.raises(DataError, match=r"value\.path: there is no folder"):
        chosen.check()
    assert chosen.files() == (str(tmp_path / "nowhere"),)


def test_penalties_that_could_not_act_are_refused() -> None:
    with pytest.raises(ValidationError, match="kl_estimator full serves in the reward only"):
        settings(kl_coef=0.1, kl_in="loss", kl_estimator="full")
    with pytest.raises(ValidationError, match="do nothing where kl_coef is 0"):
        settings(kl_controller={"target": 0.1})


def test_ppo_learns_under_the_recommendation_constraint(tmp_path: Path) -> None:
    learning = {"learning_rate": 1e-2, "max_steps": 60, "batch_size": 16, "log_every_steps": 1}
    goal = {"type": "attribute_match", "attribute": "category", "value": "Running"}
    built = trainer(
        tmp_path,
        learning,
        rewards=[goal],
        kl_coef=0.01,
        value={"learning_rate": 1e-2},
        validate_on={"select_by": "last"},
    )
    built.train()
    rewards = [row["reward"] for row in built.state.log_history if "reward" in row]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:3]) / 3 + 0.2
