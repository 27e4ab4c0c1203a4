"""Settings of the recommendation domain."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from rlkit.component import Settings, Slot
from rlkit.config.quantizers import ResidualKMeansSettings
from rlkit.config.recommendation_data import DemoDataSettings


class AugmentSettings(Settings):
    """Compact template: what training sequences go through; every epoch draws anew, by (seed, epoch, sequence)."""

    reverse: float = Field(0.0, ge=0, le=1)
    """The share of sequences read backwards."""
    item_dropout: float = Field(0.0, ge=0, lt=1)
    """The share of sequences from which items are dropped; each of their items goes with probability .2."""
    walks: int = Field(0, ge=0)
    """Random walks over train transitions that join every epoch; each goes on from the first items of a user."""
    walk_steps: int = Field(3, ge=1)
    """Items that a walk adds."""
    teacher: float = Field(0.0, ge=0)
    """Weight of a counting teacher's soft targets (transitions, text neighbors, by valid) beside the true ones."""
    teacher_power: float = Field(1.0, gt=0)
    """The teacher's probabilities are raised to this; above 1 sharpens them."""


class TaskSettings(Settings):
    """One kind of prompt and its share of the training mixture."""

    name: Literal["sid_history_to_sid"] = "sid_history_to_sid"
    """From the semantic IDs of the history to the semantic ID of the next item."""
    weight: float = Field(1.0, gt=0)
    """Instruct template: SFT rows of the task are repeated (or thinned) by this factor."""


class RecommendationSettings(Settings):
    """Generative recommendation: the next item, written as its semantic ID."""

    type: Literal["recommendation"] = "recommendation"
    produces: ClassVar[tuple[str, ...]] = ("Prompt", "Demonstration")
    # What a look at the valid split measures, beside the reward: ``validate_on.select_by`` names one.
    valid_metrics: ClassVar[tuple[str, ...]] = ("hit_rate@10", "ndcg@10")
    # Chooses the best checkpoint where ``validate_on.select_by`` does not.
    best_by: ClassVar[str] = "ndcg@10"
    # Whether only some completions are valid: a tree that rollouts can search.
    constrained: ClassVar[bool] = True

    data: Annotated[Settings, Slot("data_format")] = Field(default_factory=DemoDataSettings)
    """The data; with ``path`` alone the MiniOneRec format is meant, with nothing the generated demo."""
    semantic_ids: Annotated[Settings, Slot("quantizer")] | None = None
    """How items get semantic IDs; none: the given ones where the data has them, else residual k-means."""
    template: Literal["auto", "compact", "instruct"] = "auto"
    """compact: semantic IDs only, for small models; instruct: text prompts, for language models; auto: by the model."""
    normalization: Literal["children", "vocabulary"] = "children"
    """Log-probs in losses and decoding are normalized over the allowed tokens, or over the whole vocabulary."""
    max_history: int = Field(10, ge=1)
    """How many of the last items a prompt shows."""
    window: int = Field(20, ge=2)
    """Compact template: longer user sequences are cut into windows of this many items."""
    augment: AugmentSettings = AugmentSettings()
    """Compact template: augmentation of training sequences."""
    tasks: tuple[TaskSettings, ...] = (TaskSettings(),)
    """The mixture of prompts; every name once."""

    @model_validator(mode="before")
    @classmethod
    def _name_the_data_format(cls, values: Any) -> Any:
        data = values.get("data") if isinstance(values, dict) else None
        if isinstance(data, dict) and "type" not in data:
            return {**values, "data": {"type": "minionerec" if "path" in data else "demo", **data}}
        return values

    @model_validator(mode="after")
    def _teacher_has_a_tree(self) -> RecommendationSettings:
        if self.augment.teacher and self.normalization == "vocabulary":
            raise ValueError(
                "augment.teacher needs normalization children (its targets are shares of what may follow); "
                "set the teacher to 0, or leave normalization out"
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> RecommendationSettings:
        if self.template != "auto" and (ignored := self.ignored(self.template)):
            raise ValueError(
                f"template {self.template} does not use {' and '.join(ignored)}; leave out what it ignores"
            )
        return self

    def ignored(self, template: str) -> list[str]:
        """Return the settings that differ from their defaults but mean nothing under a template."""
        if template == "instruct":
            return ["augment"] if self.augment != AugmentSettings() else []
        return ["tasks[].weight"] if any(task.weight != 1 for task in self.tasks) else []

    @field_validator("tasks")
    @classmethod
    def _every_task_once(cls, tasks: tuple[TaskSettings, ...]) -> tuple[TaskSettings, ...]:
        names = [task.name for task in tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"a task stands twice, got {names!r}; give it one weight")
        return tasks


__all__ = ["AugmentSettings", "RecommendationSettings", "ResidualKMeansSettings", "TaskSettings"]
