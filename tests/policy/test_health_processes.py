"""All ranks decide alike, under data parallelism and under DeepSpeed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from toys import tiny_recipe

from rlkit.config.monitor import MonitorSettings
from rlkit.errors import TrainingError
from rlkit.policy.health import Health
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


def rows_of_rank(rank: int, folder: str) -> None:
    """Write the row that a rank's monitor sees where only rank 1's completions had no score."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    health = Health(MonitorSettings(), "grpo", folder=Path(folder), append=lambda *_: None, planned=1)
    health.trainer = SimpleNamespace(args=SimpleNamespace(world_size=2, device="cpu"))
    late = {"error": "no answer within 1 seconds"}
    for row in [late, late, late, {"error": "ValueError: bad day"}] if rank else []:
        health.quarantined(row)
    rows = [health._row(1), health._row(2)]
    (Path(folder) / f"{rank}.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


def test_why_another_ranks_completions_had_no_score_is_known_to_all(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(rows_of_rank, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        rows = json.loads((tmp_path / f"{rank}.json").read_text())
        assert rows == [{"step": 1, "error": "ValueError: bad day", "late": 0.75}, {"step": 2}]


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
