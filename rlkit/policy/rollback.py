"""Take a policy back to the weights of an earlier checkpoint while its steps go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from rlkit.callbacks import COMPLETE
from rlkit.models.wrapped import load_wrapped

HEALTH_FILE = "health.json"
"""What a checkpoint holds of the monitor."""
KEPT_CHECKPOINTS = 4
"""A stage that may roll back keeps at least so many: sickness is seen some rollouts after it began."""


def healthy_checkpoint(folder: Path, before: int) -> Path | None:
    """Return the newest complete checkpoint of an earlier step; None: there is none.

    Args:
        folder: of the checkpoints.
        before: the step where the sickness began.
    """
    healthy = [path for path in _complete(folder) if _step(path) < before]
    return max(healthy, key=_step, default=None)


def _step(path: Path) -> int:
    return int(path.name.rsplit("-", 1)[1])


def roll_back(trainer: Any, before: int, learning_rate: float, kl_coef: float, times: int) -> int:
    """Restore weights and optimizer, and return the step that they are of; 0: the starting model's.

    Steps, prompts and the schedule go on: the same rollouts again would lead to the same place. Checkpoints of the
    sickness are deleted: no later rollback may take one, and none may be the best. A collective call.

    Args:
        trainer: a ``PolicyTrainer`` at the end of a rollout.
        before: the step where the sickness began.
        learning_rate: what it is multiplied by, from now on.
        kl_coef: what ``kl_coef`` is multiplied by, where the algorithm has one, for each of the rollbacks.
        times: rollbacks of the stage, this one included.
    """
    names = [str(healthy_checkpoint(Path(trainer.args.output_dir), before) or "")]
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast_object_list(names, src=0)
    state, schedule = trainer.algorithm.state, trainer.lr_scheduler
    if names[0]:
        load_wrapped(trainer.model, Path(names[0]))
        going_on = schedule.state_dict()
        trainer._load_optimizer_and_scheduler(names[0])
        schedule.load_state_dict(going_on)
        state.update(trainer.saved_state(Path(names[0]))["algorithm"])
        if (noted := Path(names[0]) / HEALTH_FILE).is_file():
            times -= read_state(noted)["rollbacks"]  # its kl_coef holds these
    else:
        trainer.restore_start()
        state.update(trainer.start_algorithm)
        trainer.optimizer.state.clear()
    schedule.base_lrs = [rate * learning_rate for rate in schedule.base_lrs]
    for group, rate, factor in zip(trainer.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas):
        group["lr"] = rate * factor(schedule.last_epoch)
    if "kl_coef" in state:
        state["kl_coef"] *= kl_coef**times
    _forget(trainer, before)
    return _step(Path(names[0])) if names[0] else 0


def _forget(trainer: Any, before: int) -> None:
    """Delete the checkpoints from a step on; where one of them was the best so far, an earlier one is again."""
    state, folder = trainer.state, Path(trainer.args.output_dir)
    if trainer.args.should_save:
        for path in folder.glob("checkpoint-*"):
            if _step(path) >= before:
                shutil.rmtree(path)
    if state.best_metric is None or (state.best_global_step or 0) < before:
        return
    name, kept = trainer.args.metric_for_best_model, _complete(folder)
    steps = {_step(path): str(path) for path in kept if _step(path) < before}
    looks = [(row[name], row["step"]) for row in state.log_history if name in row and row["step"] in steps]
    state.best_metric, state.best_global_step = max(looks, default=(None, 0))
    state.best_model_checkpoint = steps.get(state.best_global_step)


def _complete(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*") if (path / COMPLETE).is_file()]


def read_state(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds beside weights and optimizer."""
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return state
