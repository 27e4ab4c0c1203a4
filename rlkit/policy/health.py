"""The part of the monitor that acts, beside a ``PolicyTrainer``.

It skips steps that are not finite, and answers alarms with a line, the end of the stage, a rollback, or another weight
of the KL penalty.

Metrics are summed over ranks and rank 0's row is everybody's, so that every rank decides alike.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import TrainerCallback

from rlkit.config.monitor import MonitorSettings
from rlkit.errors import TrainingError
from rlkit.models.wrapped import global_sum
from rlkit.monitor.alarms import Alarm, Watch, alarm
from rlkit.monitor.history import History
from rlkit.policy.blackbox import FOLDER, not_finite, write_bundle
from rlkit.policy.group_batch import GroupBatch
from rlkit.policy.rollback import HEALTH_FILE, roll_back
from rlkit.policy.rollouts import Rollouts
from rlkit.policy.step_log import StepLog

logger = logging.getLogger("rlkit")

LATE = "no answer within"
"""How the error of a sample begins that missed its deadline."""
VERSIONS = ("rlkit", "torch", "transformers", "numpy", "deepspeed")


class Health(TrainerCallback):
    """Watches one stage.

    Args:
        settings: limits and actions.
        stage: its name.
        folder: the run's.
        append: adds a row to a file of the run; on rank 0.
        planned: rollouts in all.
        held_out: metrics of a look at the valid split that should rise.
    """

    def __init__(
        self,
        settings: MonitorSettings,
        stage: str,
        *,
        folder: Path,
        append: Callable[[str, Mapping[str, Any]], None],
        planned: int,
        held_out: tuple[str, ...] = ("eval_reward",),
    ) -> None:
        self.settings, self.stage, self.folder, self.append = settings, stage, folder, append
        self.watch = Watch(settings, stage, History(planned, held_out))
        self.log, self.trainer = StepLog(), None  # type: Any, Any
        self.rollouts: Rollouts | None = None
        self.step: list[tuple[GroupBatch, Tensor]] = []
        self.lost: list[Tensor] = []
        """Of each micro-batch of this step, whether its loss is not finite."""
        self.norms: list[float] = []
        self.errors: list[str] = []
        self.skips = self.rollbacks = 0
        self.pending: list[Alarm] = []

    def attach(self, trainer: Any) -> None:
        """Follow a trainer."""
        self.trainer = trainer
        trainer.notes.follower = self.log
        trainer.add_callback(self)

    # ---- what the loop shows

    def quarantined(self, row: Mapping[str, Any]) -> None:
        """Take a row about a completion that a reward could not score."""
        self.errors.append(str(row.get("error", "")))

    def check_weights(self) -> None:
        """Refuse to sample from a policy whose weights are not finite; a collective call.

        Raises:
            TrainingError: some weight is not, and there is no way back.
        """
        while said := self._wrong_weights():  # again, where those that it was rolled back to are no better
            found = self._alarm("non_finite", said)
            if found.action != "rollback" or self.rollbacks >= self.settings.rollbacks or not self._started:
                self._stop_now(found)
            self._roll_back([found])
            self.trainer.skipping = True  # what is left of the rollout is the sick policy's

    def _wrong_weights(self) -> str:
        names = not_finite(self.trainer.model)
        flag = torch.tensor(float(bool(names)), device=self.trainer.args.device)
        wrong = f"weights are not finite: {', '.join(names[:3]) or 'on another rank'}"
        return wrong if global_sum(flag) else ""

    @property
    def _started(self) -> bool:
        return self.trainer.lr_scheduler is not None

    def saw(self, batch: GroupBatch, logprobs: Tensor, loss: Tensor) -> None:
        """Take a micro-batch with what the loss made of it, before the backward pass.

        Raises:
            TrainingError: the loss is not finite under DeepSpeed, which updates weights within the backward pass.
        """
        self.step.append((batch, logprobs.detach()))
        self.lost.append(~loss.detach().isfinite())
        if self.trainer.is_deepspeed_enabled and global_sum(self.lost[-1].float()):
            self._stop_now(self._alarm("non_finite", "the loss is not finite"))

    def gradient(self, norm: Any) -> Any:
        """Return the gradient's norm; None where the step is skipped: it finds no gradients.

        Raises:
            TrainingError: too many steps had to be skipped, or DeepSpeed has already taken this one.
        """
        value = 0.0 if norm is None else float(norm)
        lost = bool(global_sum(torch.stack(self.lost).float().sum())) if self.lost else False
        scaled = self.trainer.accelerator.scaler is not None  # fp16: its scaler skips, and tries out where it has to
        if not lost and (math.isfinite(value) or scaled):
            self.norms += [value] if math.isfinite(value) else []
            self.step, self.lost = [], []
            return norm
        self._skip("the loss" if lost else "the gradient")
        self.step, self.lost = [], []
        return None

    def _skip(self, what: str) -> None:
        """Take the gradients away, so that the optimizer touches neither weights nor its own state."""
        self.skips += 1
        said = f"{what} of {self.skips} steps was not finite (limit {self.settings.non_finite_limit})"
        found = self._alarm("non_finite", said)
        if self.skips > self.settings.non_finite_limit or self.trainer.is_deepspeed_enabled:
            self._stop_now(found)
        for group in self.trainer.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        self.trainer.notes.skip(len(self.step))
        self.trainer.notes.note({"skipped_steps": float(self.skips)}, {})
        if found.action in ("stop", "rollback"):
            self.pending = [found]
        elif self.watch.news("non_finite"):
            self._say(found, "this step is skipped")

    # ---- where a rollout ends

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the metrics of a rollout whose last update is done."""
        if self.trainer.buffer:
            return
        self.watch.history.take(self._row(state.global_step))
        self._answer([*self.pending, *self.watch.lasting()])
        self.pending = []

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Take a look at the valid split."""
        errors = {f"eval_{name}": error for name, error in self.trainer.collector.errors.items()}
        self.watch.history.look(self._shared({"step": state.global_step, **(metrics or {}), "errors": errors}))
        if not self.trainer.buffer:
            self._answer([found for found in self.watch.lasting() if found.name == "hacking_gap"])

    def _row(self, step: int) -> dict[str, Any]:
        row = {"step": step, **self.log.flush(step)}
        if self.norms:
            row["grad_norm"] = fmean(self.norms)
        row |= self._causes()
        self.norms, self.errors = [], []
        return self._shared(row)

    def _causes(self) -> dict[str, Any]:
        """Return why completions of all ranks had no score: an error, and the share of missed deadlines."""
        mine = [sum(error.startswith(LATE) for error in self.errors), len(self.errors)]
        late, count = global_sum(torch.tensor(mine, device=self.trainer.args.device)).tolist()
        if not count:
            return {}
        errors = [self.errors[-1] if self.errors else ""]
        if self.trainer.args.world_size > 1:
            errors *= self.trainer.args.world_size
            dist.all_gather_object(errors, errors[0])
        return {"error": next(filter(None, errors), ""), "late": late / count}

    def _shared(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return rank 0's row."""
        rows = [row]
        if self.trainer.args.world_size > 1:
            dist.broadcast_object_list(rows, src=0)
        return rows[0]

    def _answer(self, alarms: list[Alarm]) -> None:
        back = [found for found in alarms if found.action == "rollback"]
        if back:
            self._roll_back(back) if self.rollbacks < self.settings.rollbacks else self._stop(back[0])
            return
        for found in alarms:
            if found.action == "stop":
                self._stop(found)
            elif found.action == "adapt":
                self._adapt(found)
            elif self.watch.news(found.name):
                self._say(found)

    def _stop(self, found: Alarm) -> None:
        control, best = self.trainer.control, self.trainer.args.load_best_model_at_end
        self._say(found, f"the stage ends here, with its {'best' if best else 'last'} model")
        control.should_training_stop = True
        if best:  # without a look and a checkpoint since the start there would be none to choose from
            control.should_evaluate = control.should_save = True

    def _adapt(self, found: Alarm) -> None:
        state, factor = self.trainer.algorithm.state, self.settings.adapt_factor
        state["kl_coef"] *= 1 / factor if found.name == "kl_low" else factor
        if self.watch.news(found.name):
            self._say(found, f"kl_coef is now {state['kl_coef']:.4g}")

    def _roll_back(self, alarms: list[Alarm]) -> None:
        self.rollbacks += 1
        before = min(found.since for found in alarms)
        settings, history = self.settings, self.watch.history
        factors = settings.rollback_learning_rate, settings.rollback_kl_coef
        step = roll_back(self.trainer, before, *factors, times=self.rollbacks)
        history.forget(before)
        self.watch.lasted.clear()
        rate = self.trainer.optimizer.param_groups[0]["lr"]
        place = f"step {step}" if step else "the start"
        for found in alarms:
            self._say(found, f"rolled back to the weights of {place}; the learning rate is now {rate:.3g}")

    # ---- words

    def _alarm(self, name: str, symptom: str) -> Alarm:
        step = self.trainer.state.global_step
        return alarm(name, self.stage, step, (symptom, step), self.settings.action_for(name))

    def _say(self, found: Alarm, done: str = "") -> None:
        """Write an alarm to the terminal, the log and alarms.jsonl; on rank 0."""
        if self.trainer.args.process_index:
            return
        logger.warning("monitor: %s: %s%s", self.stage, found.line, f" -- {done}" if done else "")
        self.append("alarms.jsonl", {"stage": self.stage, **found.row(), "done": done})

    def _stop_now(self, found: Alarm) -> None:
        """End the run, and leave behind what there is to be looked at.

        Raises:
            TrainingError: always.
        """
        trainer, step = self.trainer, self.trainer.state.global_step
        folder = self.folder / FOLDER / f"{self.stage}-{step}"
        if not trainer.args.process_index:
            about = {"stage": self.stage, "step": step, **found.row(), "versions": _versions(), "skips": self.skips}
            about["settings"] = trainer.settings.model_dump(mode="json")
            rows, tokenizer = self.watch.history.rows, trainer.processing_class
            write_bundle(folder, about=about, rows=rows, rollouts=self.rollouts, step=self.step, tokenizer=tokenizer)
        self._say(found, f"the run ends; see {folder.relative_to(self.folder)}")
        raise TrainingError(
            f"stages.{self.stage}: {found.symptom} at step {step}; likely {found.cause}; "
            f"change {', '.join(found.change)}, and see {folder}"
        )

    # ---- checkpoints

    def save(self, folder: Path) -> None:
        """Write what a checkpoint has to hold."""
        state = {"skips": self.skips, "rollbacks": self.rollbacks, "watch": self.watch.state()}
        (folder / HEALTH_FILE).write_text(json.dumps(state), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint; one of a stage that was not watched starts anew."""
        path = folder / HEALTH_FILE
        if path.is_file():
            state = json.loads(path.read_text(encoding="utf-8"))
            self.skips, self.rollbacks = state["skips"], state["rollbacks"]
            self.watch.load(state["watch"])
        self.log.step = int(folder.name.rsplit("-", 1)[1])


def _versions() -> dict[str, str]:
    found = {}
    for package in VERSIONS:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
