"""Training settings: a typed window on ``transformers.TrainingArguments``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from rlkit.component import Settings


class TrainSettings(Settings):
    """How a stage is optimized; whatever is not here goes through ``extra``."""

    learning_rate: float = Field(1e-4, gt=0)
    """The peak learning rate."""
    optimizer: Literal[
        "adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adamw_bnb_8bit", "paged_adamw_32bit"
    ] = "adamw_torch"
    """The optimizer, by its name in transformers."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Adam's decay of the first moment."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """Adam's decay of the second moment."""
    schedule: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt", "cosine_with_min_lr"
    ] = "cosine"
    """The learning-rate schedule after warm-up."""
    schedule_options: dict[str, Any] = Field(default_factory=dict)
    """Further options of the schedule, such as ``min_lr_rate``."""
    warmup: float = Field(0.03, ge=0)
    """Warm-up: a share of all steps below 1, a number of steps from 1 on."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients are clipped to this norm; 0 switches clipping off."""
    batch_size: int = Field(64, ge=1)
    """Per optimizer step, over all ranks. Counts sequences; in policy algorithms prompts, that is groups."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Per forward pass on one rank, in the same unit; none: the rank's whole share."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the training data; ``max_steps`` wins over it. Policy algorithms: passes over the prompts."""
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps in all."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 on a GPU that has it, else fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass, to save memory."""
    evaluate_every_steps: int | None = Field(None, ge=1)
    """How often the valid split is looked at; none: ten times in a run."""
    save_every_steps: int | None = Field(None, ge=1)
    """How often a checkpoint is written; none: with every evaluation.

    A policy stage that keeps its best model writes one with every evaluation, whatever is set here.
    """
    keep_checkpoints: int = Field(2, ge=1)
    """How many checkpoints stay, the best one always among them."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Stop after so many evaluations without a better one; none: never."""
    log_every_steps: int = Field(10, ge=1)
    """How often metrics are logged."""
    report_to: tuple[str, ...] = ("tensorboard",)
    """Loggers of transformers: tensorboard, wandb, mlflow, trackio, ... ; an empty list: none."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Any other field of ``transformers.TrainingArguments`` (or of the config of TRL's trainer); names are checked."""

    @model_validator(mode="after")
    def _micro_batch_fits(self) -> TrainSettings:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}; "
                "choose a divisor"
            )
        return self
