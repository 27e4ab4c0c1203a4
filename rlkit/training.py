"""From train settings to ``TrainingArguments``: batch arithmetic, schedules, and what an engine adds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlkit.config.train import TrainSettings
from rlkit.errors import RecipeError


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is cut, per rank: ``accumulation`` micro-batches of ``micro_batch_size``."""

    batch_size: int
    micro_batch_size: int
    accumulation: int


def batch_plan(settings: TrainSettings, processes: int) -> BatchPlan:
    """Cut the global batch over ranks and micro-batches.

    Raises:
        RecipeError: it does not divide.
    """
    share, rest = divmod(settings.batch_size, processes)
    micro = settings.micro_batch_size or max(share, 1)
    if rest or share % micro:
        raise RecipeError(
            f"train.batch_size: {settings.batch_size} does not divide into {processes} processes "
            f"with micro-batches of {micro}; choose a multiple"
        )
    return BatchPlan(settings.batch_size, micro, share // micro)


def training_arguments(
    settings: TrainSettings, output_dir: Path, *, steps: int, processes: int, engine: dict[str, Any], seed: int
) -> dict[str, Any]:
    """Return keyword arguments for ``TrainingArguments`` or a subclass of it.

    Args:
        settings: the stage's settings.
        output_dir: where checkpoints go.
        steps: optimizer steps in all, for "ten looks in a run".
        processes: ranks.
        engine: what the engine adds (device, DeepSpeed config, backend).
        seed: of everything random in the stage.
    """
    plan = batch_plan(settings, processes)
    look = settings.evaluate_every_steps or max(1, math.ceil(steps / 10))
    bf16 = settings.precision == "bf16" or (
        settings.precision == "auto"
        and torch.cuda.is_available()
        and torch.cuda.is_bf16_supported()
        and not engine.get("use_cpu")
    )
    arguments = dict(
        output_dir=str(output_dir),
        per_device_train_batch_size=plan.micro_batch_size,
        per_device_eval_batch_size=max(plan.micro_batch_size, 8),
        gradient_accumulation_steps=plan.accumulation,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        learning_rate=settings.learning_rate,
        optim=settings.optimizer,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.adam_beta1,
        adam_beta2=settings.adam_beta2,
        lr_scheduler_type=settings.schedule,
        lr_scheduler_kwargs=settings.schedule_options or None,
        warmup_steps=settings.warmup,
        max_grad_norm=settings.max_grad_norm,
        bf16=bf16,
        fp16=settings.precision == "fp16",
        activation_checkpointing=settings.gradient_checkpointing,
        logging_steps=settings.log_every_steps,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=look,
        save_strategy="steps",
        save_steps=settings.save_every_steps or look,
        save_total_limit=settings.keep_checkpoints,
        report_to=list(settings.report_to),
        seed=seed,
        data_seed=seed,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
    )
    return arguments | engine | settings.extra
