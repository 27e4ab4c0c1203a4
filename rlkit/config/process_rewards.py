"""Settings of process reward models: how one is trained, and how a trained one rewards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from rlkit.component import Settings
from rlkit.config.rewards import RewardSettings
from rlkit.errors import DataError

ARTEFACT = "process_reward_model"
"""What a stage makes, so that a recipe tells it from a reward model of whole completions."""


class ProcessRewardModelSettings(Settings):
    """Learn how probably each step of an answer is right, by cross-entropy at the ends of steps alone.

    Lightman et al. 2023, arXiv 2305.20050, section 2.6; Uesato et al. 2022, arXiv 2211.14275. The model starts from the
    last policy before it (an SFT stage), else from the recipe's model, with a fresh head; a ``model.path`` that holds a
    step head is trained on with it.
    """

    type: Literal["process_reward_model"] = "process_reward_model"
    consumes: ClassVar[tuple[str, ...]] = ("StepLabels",)
    produces: ClassVar[tuple[str, ...]] = (ARTEFACT,)
    roles: ClassVar[tuple[str, ...]] = ("reward",)

    separator: str = Field("\n", min_length=1)
    """What parts the steps of an answer; no step may hold it. It is noted beside the model."""
    max_tokens: int = Field(1024, ge=8)
    """Prompt and steps together; longer rows lose the beginning of their prompt, then their last steps."""
    freeze_backbone: bool = False
    """Train the head alone."""
    select_by: Literal["loss", "accuracy", "last"] = "loss"
    """What chooses the best checkpoint on valid: the likelihood of the labels, accuracy per step, or nothing."""


class ProcessRewardSettings(RewardSettings):
    """What a process reward model says of the steps of a completion, as one score, or credited at their ends.

    A step's score is the probability that it is right. A completion without any step scores 0.
    """

    type: Literal["process"] = "process"
    needs_artefact: ClassVar[str] = ARTEFACT
    references: ClassVar[Mapping[str, tuple[str, ...]]] = {"stage": (ARTEFACT,)}

    path: str | None = Field(None, min_length=1)
    """The folder of a process reward model (``~`` is the home folder)."""
    stage: str | None = Field(None, min_length=1)
    """The stage of this recipe that trains the model; none, and no path: the last one before."""
    aggregate: Literal["product", "min", "mean", "last"] = "product"
    """One score of many: the probability that all steps are right (Lightman et al. 2023, appendix F), the worst step,
    the mean, or the last step."""
    credit: Literal["end", "steps"] = "end"
    """Where the score is paid: at the end, or what each step adds to it at the last token of that step. Either way a
    completion earns the same in sum, so no answer gains by having more steps. For the mean a step adds its score over
    the number of steps; for the others it adds the score up to it minus the score before it."""
    unfinished: Literal["wrong", "left_out"] = "wrong"
    """A last step that was cut off counts as a step of score 0, at the last token; or it does not count."""
    separator: str | None = Field(None, min_length=1)
    """What parts steps; none: what the model was trained with, else a line end."""
    max_tokens: int | None = Field(None, ge=8)
    """Longer rows lose the beginning of their prompt, then their last steps, which count as unfinished; none: as in
    training, else 1,024."""
    batch_size: int = Field(64, ge=1)
    """Rows that are scored together at most."""
    batch_tokens: int | None = Field(None, ge=1)
    """Tokens that are scored together at most, padding included; none: 1,024 on a CPU, 16,384 elsewhere."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The dtype of the weights; auto: the checkpoint's own."""
    trust_remote_code: bool = False
    """Run code that lies in the folder; only for models whose code was read."""

    def files(self) -> tuple[str, ...]:
        """Return the folder that is named."""
        return (self.path,) if self.path else ()

    @field_validator("path")
    @classmethod
    def _expand_home(cls, path: str | None) -> str | None:
        return str(Path(path).expanduser()) if path and path.startswith("~") else path

    @model_validator(mode="after")
    def _fits_together(self) -> ProcessRewardSettings:
        if self.path and self.stage:
            raise ValueError("path and stage name the model twice; keep one of them")
        wrong = [name for name in ("gate", "clip", "standardize") if getattr(self, name)]
        if self.credit == "steps" and wrong:
            raise ValueError(
                f"{' and '.join(wrong)} are about one score for each completion; leave them out, or set credit to end"
            )
        return self

    def check(self) -> None:
        """Look for a step head in the folder.

        Raises:
            DataError: it is missing or holds no process reward model.
        """
        from rlkit.models.head_files import PROCESS, head_problem

        problem = head_problem(self.path, f"reward {self.type}: path", PROCESS) if self.path else None
        if problem:
            raise DataError(problem)
