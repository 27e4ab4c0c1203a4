"""The DeepSpeed engine: ZeRO 1 to 3 through accelerate, on GPUs or, with gloo, on CPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rlkit.config.engines import DeepSpeedSettings
from rlkit.engines.launch import launch_workers
from rlkit.engines.local import resolve_device, threads_per_process
from rlkit.errors import RecipeError


class DeepSpeedEngine:
    """ZeRO over one or several processes; workers are always launched.

    Args:
        settings: the recipe's engine.

    Raises:
        RecipeError: deepspeed is not installed.
    """

    needs_workers = True

    def __init__(self, settings: DeepSpeedSettings) -> None:
        from importlib.util import find_spec

        if find_spec("deepspeed") is None:
            raise RecipeError("engine.type: deepspeed is not installed; pip install 'rlkit[deepspeed]'")
        self.settings, self.processes = settings, settings.processes
        self.device = resolve_device(settings.device, ("cuda", "cpu"))

    def prepare(self) -> None:
        """Set up this process; on a CPU without DeepSpeed's shared-memory kernel, which would be compiled first."""
        torch.set_num_threads(threads_per_process(self.settings.threads, self.processes))
        if self.device == "cpu":
            import deepspeed.ops

            # Private, but the public way round is a C++ compiler and a minute's wait; gloo serves as well.
            table = getattr(deepspeed.ops, "__compatible_ops__", {})
            if "deepspeed_shm_comm" in table:
                table["deepspeed_shm_comm"] = False

    def arguments(self) -> dict[str, Any]:
        """Return what this engine adds to ``TrainingArguments``."""
        return {"use_cpu": self.device == "cpu", "deepspeed": deepspeed_config(self.settings)}

    def check_wrapped(self, trainer: Any) -> None:
        """Assert that DeepSpeed took place: accelerate falls back to plain DDP in silence."""
        assert type(trainer.model_wrapped).__name__ == "DeepSpeedEngine", type(trainer.model_wrapped)
        assert trainer.model_wrapped.zero_optimization_stage() == self.settings.zero

    def launch(self, run_dir: Path, stage: str) -> dict[str, Any]:
        """Run a stage in worker processes; return its artefacts."""
        environment = {"DS_ACCELERATOR": "cpu"} if self.device == "cpu" else {}
        return launch_workers(run_dir, stage, self.processes, self.device, environment)


def deepspeed_config(settings: DeepSpeedSettings) -> dict[str, Any]:
    """Return DeepSpeed's own configuration; ``auto`` fields are filled from ``TrainingArguments``.

    The optimizer is left to torch: DeepSpeed's own ones compile kernels on first use.
    """
    zero: dict[str, Any] = {"stage": settings.zero}
    if settings.zero == 3:
        limit = settings.min_shard_elements
        zero |= {"stage3_gather_16bit_weights_on_model_save": True, "stage3_param_persistence_threshold": limit}
        if limit == 0:
            zero |= {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 0}
    if settings.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if settings.offload == "parameters":
        zero["offload_param"] = {"device": "cpu"}
    return {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
    }
