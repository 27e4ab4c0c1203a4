"""What the machine offers: disk against an estimate, device and precision; and who watches."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from rlkit.config.algorithms import PolicySettings
from rlkit.config.models import CausalLMSettings
from rlkit.job import Job
from rlkit.models.load import tokenizer_of
from rlkit.models.presets import preset_config
from rlkit.preflight.line import Line
from rlkit.training import training_arguments

MOMENTS = {"adafactor": 0.1, "sgd": 4.0, "adamw_bnb_8bit": 2.0}
"""Bytes per trained parameter of an optimizer's state; Adam's two moments take 8."""
LOGS = 20 * 2**20
"""Left for logs, samples and reports."""


def disk_line(jobs: Sequence[Job]) -> Line:
    """Compare the disk with what models and checkpoints will take at most; checkpoints stay where they are."""
    folder = jobs[0].run.path.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    size = model_size(jobs[0].model)
    if size is None:
        return Line("note", "disk", f"{_bytes(free)} free; the size of this model is not known, so nothing is compared")
    needed = LOGS + sum(_stage_bytes(job, *size) for job in jobs)
    found = f"{_bytes(needed)} needed at most (models, checkpoints), {_bytes(free)} free"
    if needed <= free:
        return Line("ok", "disk", found)
    advice = "free some, choose another --out, or lower train.keep_checkpoints"
    return Line("failed", "disk", f"{found} at {str(folder)!r}; {advice}")


def model_size(settings: Any) -> tuple[int, int] | None:
    """Return a model's parameters and those that are trained, counted without memory; None where nobody can tell."""
    if type(settings) is not CausalLMSettings:
        return None
    try:
        if settings.path is None:
            config: Any = preset_config(settings, tokenizer_of(settings))
        else:
            config = AutoConfig.from_pretrained(settings.path, trust_remote_code=settings.trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError, ImportError):
        return None  # loading the model says what is wrong
    whole = sum(weight.numel() for weight in model.parameters())
    if settings.adapter is None:
        return whole, whole
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    return whole, sum(settings.adapter.rank * (layer.in_features + layer.out_features) for layer in layers)


def _stage_bytes(job: Job, whole: int, trained: int) -> int:
    train = job.settings.train
    width = 4 if job.model.dtype in ("auto", "float32") else 2
    copies = train.keep_checkpoints + 1  # one more while the next one is written
    value = 2 if getattr(getattr(job.settings.algorithm, "value", None), "backbone", None) == "separate" else 1
    checkpoint = trained * (width + MOMENTS.get(train.optimizer, 8.0))
    return round(2 * whole * width + value * copies * checkpoint)  # the model is written beside the one it replaces


def _bytes(number: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def device_lines(jobs: Sequence[Job]) -> Iterator[Line]:
    """Yield where stages compute and in which precision; stages that agree share a line."""
    found: dict[str, list[str]] = {}
    for job in jobs:
        found.setdefault(_device(job), []).append(job.stage)
    for text, stages in found.items():
        yield Line("ok", "device" if len(found) == 1 else f"device of {', '.join(stages)}", text)


def _device(job: Job) -> str:
    engine, train = job.engine, job.settings.train
    processes = getattr(job.recipe.engine, "processes", 1)
    arguments = training_arguments(
        train, Path("."), steps=1, processes=processes, engine=engine.arguments(), seed=job.seed
    )
    precision = "bf16" if arguments["bf16"] else "fp16" if arguments["fp16"] else "fp32"
    ranks = f"{processes} processes, " if processes > 1 else ""
    name = torch.cuda.get_device_name() if str(engine.device).startswith("cuda") else ""
    return f"{ranks}{engine.device}{f' ({name})' if name else ''}, {precision}"


def monitor_lines(jobs: Sequence[Job]) -> Iterator[Line]:
    """Yield whether alarms are on; nothing where no stage has any."""
    if not any(isinstance(job.settings.algorithm, PolicySettings) for job in jobs):
        return
    monitor = jobs[0].recipe.monitor
    if monitor is None:
        yield Line("note", "monitor", "off: nobody looks at the run's health; leave monitor: null out")
        return
    actions = ", ".join(f"{alarm}: {action}" for alarm, action in monitor.actions.items())
    yield Line("ok", "monitor", f"on, alarms {monitor.action}{f' ({actions})' if actions else ''}")
