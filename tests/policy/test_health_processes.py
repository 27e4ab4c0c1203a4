"""All ranks decide alike, under data parallelism and under DeepSpeed."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from toys import tiny_recipe

from rlkit.errors import TrainingError
from rlkit.recipe import recipe_from_tree
from rlkit.run import run

pytestmark = pytest.mark.slow
CONSTANT = [{"type": "item_match", "clip": [5, 6]}]
ENORMOUS = [{"type": "prefix_match", "weight": 3e38}]


def recipe(engine: dict, rewards: list, monitor: dict, **train: object) -> dict:
    """GRPO alone, twelve rollouts."""
    tree = copy.deepcopy(tiny_recipe(engine={"threads": 1, "processes": 2, **engine}, monitor=monitor))
    tree["stages"] = {name: tree["stages"][name] for name in ("semantic_ids", "grpo")}
    tree["stages"]["grpo"]["algorithm"] |= {"rewards": rewards, "validate_on": {"prompts": 16, "select_by": "last"}}
    tree["stages"]["grpo"]["train"] |= {"max_steps": 12, "log_every_steps": 1, "evaluate_every_steps": 100, **train}
    return tree


def alarms(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "alarms.jsonl").read_text().splitlines()]


def test_two_processes_stop_together(tmp_path: Path) -> None:
    tree = recipe({}, CONSTANT, {"actions": {"no_signal": "stop"}})
    out = run(recipe_from_tree(tree), tmp_path / "run")
    assert [(row["alarm"], row["step"]) for row in alarms(out)] == [("no_signal", 5)]
    assert (out / "grpo" / "model").is_dir()


def test_two_processes_roll_back_together(tmp_path: Path) -> None:
    monitor = {
        "actions": {"large_updates": "rollback"},
        "rollbacks": 1,
        "approx_kl": 0.05,
        "kl_high": 0.05,
        "kl_low": 0.0,
    }
    tree = recipe({}, [{"type": "prefix_match"}], monitor, learning_rate=0.1, save_every_steps=2)
    tree["stages"]["grpo"]["algorithm"]["kl_coef"] = 0.001
    out = run(recipe_from_tree(tree), tmp_path / "run")
    rows = alarms(out)
    assert "rolled back to the weights of" in rows[0]["done"]
    assert (out / "grpo" / "model").is_dir(), "neither waits for the other"


@pytest.mark.parametrize(
    "engine", [{}, {"type": "deepspeed", "zero": 2}, {"type": "deepspeed", "zero": 3}], ids=["ddp", "zero_2", "zero_3"]
)
def test_a_loss_that_is_not_finite_ends_every_rank_with_one_bundle(engine: dict, tmp_path: Path) -> None:
    tree = recipe(engine, ENORMOUS, {"non_finite_limit": 2})
    with pytest.raises(TrainingError, match="not finite"):
        run(recipe_from_tree(tree), tmp_path / "run")
    assert {row["alarm"] for row in alarms(tmp_path / "run")} == {"non_finite"}
    assert len(list((tmp_path / "run" / "blackbox").iterdir())) == 1
