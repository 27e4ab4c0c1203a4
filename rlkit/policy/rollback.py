"""Take a policy back to the weights of an earlier checkpoint while its steps go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch.distributed as dist

from rlkit.callbacks import COMPLETE
from rlkit.models.wrapped import load_wrapped

KEPT_CHECKPOINTS = 4
"""A stage that may roll back keeps at least so many: sickness is seen some rollouts after it began."""


def healthy_checkpoint(folder: Path, before: int) -> Path | None:
    """Return the newest complete checkpoint of an earlier step; None: there is none.

    Args:
        folder: of the checkpoints.
        before: the step where the sickness began.
    """
    complete = [path for path in folder.glob("checkpoint-*") if (path / COMPLETE).is_file()]
    healthy = [path for path in complete if _step(path) < before]
    return max(healthy, key=_step, default=None)


def _step(path: Path) -> int:
    return int(path.name.rsplit("-", 1)[1])


def roll_back(trainer: Any, before: int, learning_rate: float, kl_coef: float) -> int:
    """Restore weights and optimizer, and return the step that they are of; 0: the starting model's.

    Steps, prompts and the schedule go on: the same rollouts again would lead to the same place. A collective call.

    Args:
        trainer: a ``PolicyTrainer`` at the end of a rollout.
        before: the step where the sickness began.
        learning_rate: what it is multiplied by, from now on.
        kl_coef: what ``kl_coef`` is multiplied by, where the algorithm has one.
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
    else:
        trainer.restore_start()
        trainer.optimizer.state.clear()
    schedule.base_lrs = [rate * learning_rate for rate in schedule.base_lrs]
    for group, rate, factor in zip(trainer.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas):
        group["lr"] = rate * factor(schedule.last_epoch)
    if "kl_coef" in state:
        state["kl_coef"] *= kl_coef
    return _step(Path(names[0])) if names[0] else 0


def read_state(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds beside weights and optimizer."""
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return state
