"""Settings of reward models: how one is trained, and how a trained one rewards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from rlkit.component import Settings, Slot
from rlkit.config.rewards import RewardSettings
from rlkit.errors import DataError


class RewardModelSettings(Settings):
    """Learn a reward from preferences: a scalar head and the Bradley-Terry loss, by TRL's trainer.

    The model starts from the last policy before it (an SFT stage), else from the recipe's model, with a fresh head; a
    ``model.path`` that holds a head is trained on with it. Margins of the data are subtracted in the loss.
    """

    type: Literal["reward_model"] = "reward_model"
    consumes: ClassVar[tuple[str, ...]] = ("Preference",)
    produces: ClassVar[tuple[str, ...]] = ("reward_model",)
    roles: ClassVar[tuple[str, ...]] = ("reward",)
    training_arguments: ClassVar[tuple[str, ...]] = (
        "trl.trainer.base_config:_BaseConfig",
        "trl.trainer.reward_config:RewardConfig",
    )
    # Fields of ``training_arguments`` that these settings say, so that ``train.extra`` may not.
    said_here: ClassVar[Mapping[str, str]] = {"center_rewards_coefficient": "center_rewards_coefficient"}

    max_tokens: int = Field(1024, ge=8)
    """Prompt and completion together; longer rows are cut on the left, so that the answer stays."""
    freeze_backbone: bool = False
    """Train the head alone."""
    center_rewards_coefficient: float = Field(0.0, ge=0)
    """Weight of (chosen + rejected)^2, which holds rewards around zero (Eisenstein et al. 2023, arXiv 2312.09244,
    eq. 2, recommends 0.01)."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """The probability that a label is flipped, as in conservative DPO (https://ericmitchell.ai/cdpo.pdf)."""
    loss_terms: tuple[Annotated[Settings, Slot("loss_term")], ...] = ()
    """Further terms that are added to the loss."""
    select_by: Literal["loss", "accuracy", "last"] = "loss"
    """What chooses the best checkpoint on valid: the likelihood of the preferences, pairwise accuracy, or nothing."""


class RewardNormSettings(Settings):
    """A loss term: ``weight * mean(chosen^2 + rejected^2) / 2``, which holds rewards small, not only centered."""

    type: Literal["reward_norm"] = "reward_norm"
    weight: float = Field(0.01, gt=0)
    """The term is multiplied by this."""


class LearnedRewardSettings(RewardSettings):
    """The score of a reward model, or of several against over-optimization (Coste et al. 2023, arXiv 2310.02743)."""

    type: Literal["model"] = "model"
    # What fills ``path`` where nothing names a folder: the last stage that made one of these, or ``stage``.
    needs_artefact: ClassVar[str] = "reward_model"
    references: ClassVar[Mapping[str, tuple[str, ...]]] = {"stage": ("reward_model",)}

    path: str | None = Field(None, min_length=1)
    """The folder of a reward model (``~`` is the home folder)."""
    paths: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """The folders of several: an ensemble."""
    stage: str | None = Field(None, min_length=1)
    """The stage of this recipe that trains the reward model; none, and no path: the last one before."""
    aggregate: Literal["mean", "minimum"] = "mean"
    """What an ensemble gives: the mean of its scores, or the worst (worst-case optimization)."""
    normalize: bool = False
    """Subtract the mean and divide by the standard deviation that each model's scores had on its own train pairs."""
    max_tokens: int | None = Field(None, ge=8)
    """Longer rows are cut on the left; none: where the model's training cut them, else 1,024."""
    batch_size: int = Field(64, ge=1)
    """Rows that are scored together at most."""
    batch_tokens: int | None = Field(None, ge=1)
    """Tokens that are scored together at most, padding included; none: 1,024 on a CPU, 16,384 elsewhere."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The dtype of the weights; auto: the checkpoint's own."""
    trust_remote_code: bool = False
    """Run code that lies in the folder; only for models whose code was read."""

    def files(self) -> tuple[str, ...]:
        """Return the folders that are named."""
        return self.folders

    @property
    def folders(self) -> tuple[str, ...]:
        """Return all folders that are named."""
        return (self.path,) if self.path else self.paths

    @field_validator("path", "paths")
    @classmethod
    def _expand_home(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if isinstance(value, tuple):
            return tuple(_expanded(path) for path in value)
        return _expanded(value) if value else value

    @model_validator(mode="after")
    def _one_source(self) -> LearnedRewardSettings:
        named = [name for name in ("path", "paths", "stage") if getattr(self, name)]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} name the reward model more than once; keep one of them")
        return self

    def check(self) -> None:
        """Look for a reward head in every folder.

        Raises:
            DataError: a folder is missing or holds no reward model.
        """
        from rlkit.models.head_files import head_problem, normalization

        fields = ["path"] if self.path else [f"paths.{index}" for index in range(len(self.paths))]
        problems = []
        for field, folder in zip(fields, self.folders):
            problem = head_problem(folder, f"reward {self.type}: {field}")
            if problem is None and self.normalize and normalization(folder) is None:
                problem = (
                    f"reward {self.type}: {field}: {folder!r} notes no mean and standard deviation of its scores; "
                    "set normalize to false, or train the model with rlkit"
                )
            problems += [problem] if problem else []
        if problems:
            raise DataError(*problems)


def _expanded(path: str) -> str:
    return str(Path(path).expanduser()) if path.startswith("~") else path
