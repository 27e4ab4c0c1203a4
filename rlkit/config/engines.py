"""Engine settings: where a training stage runs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlkit.component import Settings


class LocalSettings(Settings):
    """One process, or several under plain data parallelism, on this machine."""

    type: Literal["local"] = "local"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: CUDA where it is there, else MPS, else the CPU."""
    processes: int = Field(1, ge=1)
    """Data-parallel processes; gloo on CPU, NCCL on GPUs."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of each process; none: OMP_NUM_THREADS, or else the cores divided by the processes."""


class DeepSpeedSettings(Settings):
    """DeepSpeed ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054) on this machine."""

    type: Literal["deepspeed"] = "deepspeed"
    zero: Literal[1, 2, 3] = 2
    """1 shards optimizer state, 2 also gradients, 3 also parameters."""
    processes: int = Field(1, ge=1)
    """One process per GPU; on a CPU any number."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: GPUs where there are any."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of each process; none: OMP_NUM_THREADS, or else the cores divided by the processes."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What lies in CPU memory; parameters (with zero 3) includes the optimizer."""
    min_shard_elements: int = Field(100_000, ge=0)
    """ZeRO-3 keeps smaller parameters whole on every rank; 0 shards all of them."""
