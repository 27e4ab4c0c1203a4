"""The local engine: this process, or several under plain data parallelism."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rlkit.config.engines import LocalSettings
from rlkit.engines.launch import launch_workers
from rlkit.errors import RecipeError


def resolve_device(wanted: str, choices: Sequence[str] = ("cuda", "mps", "cpu")) -> str:
    """Turn ``auto`` into the first choice that this machine has, and refuse a device that is not there.

    Raises:
        RecipeError: the recipe names a device that this machine lacks.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return next(device for device in choices if available[device])
    if not available[wanted]:
        raise RecipeError(f"engine.device: there is no {wanted} device here, got {wanted!r}; use auto or cpu")
    return wanted


def threads_per_process(threads: int | None, processes: int) -> int:
    """Return the CPU threads of each process: those asked for, those of OMP_NUM_THREADS, or a share of the cores."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return threads or (int(wanted) if wanted.isdecimal() else 0) or max(1, len(os.sched_getaffinity(0)) // processes)


class LocalEngine:
    """One process, or DDP over several.

    Args:
        settings: the recipe's engine.
    """

    def __init__(self, settings: LocalSettings) -> None:
        self.settings, self.processes = settings, settings.processes
        # gloo and NCCL know nothing of MPS
        choices = ("cuda", "mps", "cpu") if settings.processes == 1 else ("cuda", "cpu")
        self.device = resolve_device(settings.device, choices)
        self.needs_workers = settings.processes > 1

    def prepare(self) -> None:
        """Set up this process."""
        torch.set_num_threads(threads_per_process(self.settings.threads, self.processes))
        if self.device == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # accelerate imports DeepSpeed, which would warn otherwise

    def arguments(self) -> dict[str, Any]:
        """Return what this engine adds to ``TrainingArguments``."""
        extra = {"ddp_backend": "gloo"} if self.device == "cpu" and self.processes > 1 else {}
        return {"use_cpu": self.device == "cpu", **extra}

    def check_wrapped(self, trainer: Any) -> None:
        """Assert that data parallelism took place."""
        if self.processes > 1:
            assert type(trainer.model_wrapped).__name__ == "DistributedDataParallel", type(trainer.model_wrapped)

    def launch(self, run_dir: Path, stage: str) -> dict[str, Any]:
        """Run a stage in worker processes; return its artefacts."""
        return launch_workers(run_dir, stage, self.processes, self.device, {})
