"""Several processes give what one gives; a worker's error reaches the terminal once, with its rank."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toys import tiny_recipe

from rlkit.config.engines import DeepSpeedSettings, LocalSettings
from rlkit.engines.deepspeed import deepspeed_config
from rlkit.engines.local import LocalEngine, resolve_device, threads_per_process
from rlkit.errors import RecipeError, TrainingError
from rlkit.recipe import recipe_from_tree
from rlkit.run import run


def recipe(engine: dict, **grpo) -> dict:
    """Six steps of SFT and of GRPO in rollouts that serve two updates, every step logged."""
    tree = copy.deepcopy(tiny_recipe(engine={"threads": 1, **engine}))
    tree["stages"]["grpo"]["algorithm"].update({"rollout_batch_size": 16, "kl_coef": 0.05, **grpo})
    for stage in ("sft", "grpo"):
        tree["stages"][stage]["train"]["log_every_steps"] = 1
    tree["stages"].pop("evaluate")
    return tree


def losses(out: Path) -> dict[tuple[str, int], float]:
    rows = (json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines())
    return {(row["stage"], row["step"]): row["loss"] for row in rows if "loss" in row}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[tuple[str, int], float]:
    """The losses of one process."""
    return losses(run(recipe_from_tree(recipe({})), tmp_path_factory.mktemp("runs") / "one"))


ENGINES = {
    "ddp": {"processes": 2},
    "zero_2": {"type": "deepspeed", "zero": 2, "processes": 2},
    "zero_3_fully_sharded": {"type": "deepspeed", "zero": 3, "processes": 2, "min_shard_elements": 0},
}


@pytest.mark.parametrize(
    "name",
    [
        "ddp",
        pytest.param("zero_2", marks=pytest.mark.slow),
        pytest.param("zero_3_fully_sharded", marks=pytest.mark.slow),
    ],
)
def test_sft_and_grpo_give_the_same_losses_on_one_and_two_processes(name: str, alone, tmp_path: Path) -> None:
    out = run(recipe_from_tree(recipe(ENGINES[name])), tmp_path / "two")
    assert losses(out).keys() == alone.keys()
    for step, loss in losses(out).items():
        assert loss == pytest.approx(alone[step], abs=1e-4), step


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch_size", [8, 4])
def test_demonstrations_give_the_same_losses_on_two_processes_over_the_end_of_an_epoch(
    micro_batch_size: int, tmp_path: Path
) -> None:
    found = []
    for index, engine in enumerate(({}, {"processes": 2})):
        tree = recipe(engine)
        tree["domain"] |= {"template": "instruct", "data": {"type": "demo", "users": 24, "items": 60}}
        tree["stages"].pop("grpo")
        tree["stages"]["sft"]["train"] |= {"micro_batch_size": micro_batch_size, "max_steps": 12}
        found.append(losses(run(recipe_from_tree(tree), tmp_path / str(index))))
    one, two = found
    assert len(one) == 12  # 123 rows: an epoch has 7 steps, and 11 rows are left
    for step, loss in one.items():
        assert two[step] == pytest.approx(loss, abs=1e-4), step


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ENGINES))
@pytest.mark.parametrize("backbone", ["shared", "separate"])
def test_ppo_gives_the_same_losses_on_one_and_two_processes(backbone: str, name: str, tmp_path: Path) -> None:
    found = []
    for engine in ({}, ENGINES[name]):
        tree = recipe(engine, updates_epochs=2, target_kl=1e-4, kl_controller={"target": 0.01, "horizon": 64})
        algorithm = tree["stages"]["grpo"]["algorithm"]
        algorithm |= {"type": "ppo", "value": {"backbone": backbone, "learning_rate": 3e-3}}
        tree["stages"]["ppo"] = tree["stages"].pop("grpo")
        tree["stages"]["ppo"]["train"]["max_steps"] = 12
        found.append(run(recipe_from_tree(tree), tmp_path / str(len(found))))
    one, two = (losses(out) for out in found)
    assert len([stage for stage, _ in one if stage == "ppo"]) == 12
    for step, loss in one.items():
        assert two[step] == pytest.approx(loss, abs=1e-4), step
    assert any(
        json.loads(line).get("updates_skipped") for line in (found[1] / "metrics.jsonl").read_text().splitlines()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ENGINES))
def test_an_adapter_is_merged_into_the_same_model_on_two_processes(name: str, tmp_path: Path) -> None:
    found = []
    for engine in ({}, ENGINES[name]):
        tree = recipe(engine)
        tree["model"]["adapter"] = {"rank": 4}
        tree["stages"]["grpo"]["algorithm"]["validate_on"]["select_by"] = "last"
        found.append(run(recipe_from_tree(tree), tmp_path / str(len(found))))
    for stage in ("sft", "grpo"):
        one, two = (load_file(out / stage / "model" / "model.safetensors") for out in found)
        assert one.keys() == two.keys()
        for weight, value in one.items():
            torch.testing.assert_close(two[weight], value, atol=1e-4, rtol=0, msg=f"{stage}: {weight}")
    name = "model.layers.0.self_attn.q_proj.weight"
    first, last = (load_file(found[1] / stage / "model" / "model.safetensors")[name] for stage in ("sft", "grpo"))
    assert (first - last).abs().max() > 1e-4  # GRPO's own adapter is merged as well


@pytest.mark.slow
@pytest.mark.parametrize("zero_signal", ["drop", "refill"])
def test_filtered_groups_leave_the_losses_the_same_on_two_processes(zero_signal: str, tmp_path: Path) -> None:
    found = [
        losses(run(recipe_from_tree(recipe(engine, zero_signal=zero_signal)), tmp_path / str(index)))
        for index, engine in enumerate(({}, {"processes": 2}))
    ]
    for step, loss in found[0].items():
        assert found[1][step] == pytest.approx(loss, abs=1e-4), step


@pytest.mark.slow
def test_a_workers_error_is_one_error_that_names_its_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = tmp_path / "site" / "bad_reward.py"
    plugin.parent.mkdir()
    plugin.write_text(BAD_REWARD)
    info = plugin.parent / "bad_reward-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-reward\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rlkit]\nbad_reward = bad_reward\n")
    monkeypatch.syspath_prepend(str(plugin.parent))
    monkeypatch.setenv("PYTHONPATH", str(plugin.parent))
    monkeypatch.setenv("RLKIT_PLUGINS", "bad_reward")
    from rlkit.plugins import load_plugins

    load_plugins.cache_clear()
    try:
        tree = recipe({"processes": 2}, rewards=[{"type": "fails_on_rank_1"}])
        with pytest.raises(TrainingError, match=r"^grpo: rank 1: reward: out of luck$"):
            run(recipe_from_tree(tree), tmp_path / "run")
    finally:
        load_plugins.cache_clear()


BAD_REWARD = '''
from typing import Literal
from rlkit.component import Component
from rlkit.config.rewards import RewardSettings
from rlkit.hookspecs import hookimpl

class FailsSettings(RewardSettings):
    """Fails."""
    type: Literal["fails_on_rank_1"] = "fails_on_rank_1"

def fails(settings, domain):
    import os
    from rlkit.errors import TrainingError
    def reward(rollouts):
        if os.environ.get("RANK") == "1":
            raise TrainingError("reward: out of luck")
        return rollouts.scores * 0
    return reward

@hookimpl
def register_rewards():
    return [Component(FailsSettings, "bad_reward:fails")]
'''


def test_zero_3_can_be_told_to_shard_every_parameter() -> None:
    config = deepspeed_config(DeepSpeedSettings(zero=3, min_shard_elements=0))["zero_optimization"]
    assert config["stage3_param_persistence_threshold"] == config["stage3_max_live_parameters"] == 0
    assert "stage3_param_persistence_threshold" not in deepspeed_config(DeepSpeedSettings(zero=2))["zero_optimization"]


def test_auto_takes_cuda_then_mps_then_the_cpu(monkeypatch) -> None:
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert resolve_device("auto") == LocalEngine(LocalSettings()).device == expected


def test_several_processes_do_not_meet_on_mps(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert LocalEngine(LocalSettings(processes=2)).device == "cpu"


@pytest.mark.parametrize(("asked", "set_to", "given"), [(3, "2", 3), (None, "2", 2), (None, "4,2", 1), (None, None, 1)])
def test_threads_are_those_asked_for_or_those_of_the_environment(asked, set_to, given, monkeypatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if set_to:
        monkeypatch.setenv("OMP_NUM_THREADS", set_to)
    assert threads_per_process(asked, 2) == given


def test_a_device_that_is_not_here_is_refused() -> None:
    if torch.backends.mps.is_available():
        pytest.skip("there is one here")
    with pytest.raises(RecipeError, match=r"^engine.device: there is no mps device here, got 'mps'; use auto or cpu$"):
        resolve_device("mps")
