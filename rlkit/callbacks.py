"""What every trainer of a run reports to: metrics.jsonl, the progress display, and the mark of complete checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pluggy
from transformers import TrainerCallback

from rlkit.job import Job
from rlkit.progress import StageProgress

COMPLETE = "complete.json"
"""Written last into a checkpoint: a checkpoint without it was cut short and does not count."""


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint; delete those that were cut short."""
    complete = []
    for path in folder.glob("checkpoint-*"):
        if (path / COMPLETE).is_file():
            complete.append(path)
        else:
            shutil.rmtree(path)
    return max(complete, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


class RunCallback(TrainerCallback):
    """Writes metrics, shows progress and marks checkpoints as complete; on rank 0 only."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.progress: StageProgress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the progress display."""
        if state.is_world_process_zero:
            self.progress = StageProgress(self.job.stage, state.max_steps, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance the progress display."""
        if self.progress:
            self.progress.advance(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write one line of metrics.jsonl."""
        if not state.is_world_process_zero or not logs:
            return
        metrics = {key: value for key, value in logs.items() if key not in ("epoch", "total_flos")}
        row = {"stage": self.job.stage, "step": state.global_step, "time": round(time.time(), 3), **metrics}
        self.job.run.append("metrics.jsonl", row)
        if self.progress:
            self.progress.show(state.global_step, metrics)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mark the checkpoint as complete, once every rank has written its part."""
        if self.job.processes > 1:
            import torch.distributed as dist

            dist.barrier()
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            with (folder / COMPLETE).open("w") as file:
                json.dump({"step": state.global_step}, file)
                file.flush()
                os.fsync(file.fileno())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the progress display."""
        if self.progress:
            self.progress.close()


class EventsCallback(TrainerCallback):
    """Passes the Trainer's events on to the callbacks that a recipe lists."""

    def __init__(self, manager: pluggy.PluginManager) -> None:
        self.manager = manager

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Fire ``on_step_end``, and stop where a callback says so."""
        metrics = dict(logs or {})
        self.manager.hook.on_step_end(step=state.global_step, metrics=metrics)
        if self.manager.hook.should_stop(step=state.global_step, metrics=metrics):
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Fire ``on_checkpoint``."""
        path = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.manager.hook.on_checkpoint(step=state.global_step, path=path)
