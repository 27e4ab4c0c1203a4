"""Settings of the built-in stages."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from rlkit.component import Settings, Slot
from rlkit.config.train import TrainSettings


class SemanticIdsStageSettings(Settings):
    """Make, or read, the semantic IDs of the catalog."""

    type: Literal["semantic_ids"] = "semantic_ids"
    produces: ClassVar[tuple[str, ...]] = ("semantic_ids",)


class TrainStageSettings(Settings):
    """Train a model with an algorithm, which says what it makes: a policy, or a reward model."""

    type: Literal["train"] = "train"

    algorithm: Annotated[Settings, Slot("algorithm")]
    """The algorithm."""
    train: TrainSettings = TrainSettings()
    """How it is optimized."""
    start_from: str | None = None
    """The stage whose model this one starts from; none: the last one before it, else the recipe's model."""


class EvaluateStageSettings(Settings):
    """Rank with trained models, beside honest baselines, on a split."""

    type: Literal["evaluate"] = "evaluate"
    consumes: ClassVar[tuple[str, ...]] = ("policy",)
    produces: ClassVar[tuple[str, ...]] = ("evaluation",)

    models: tuple[str, ...] = ()
    """The stages whose models are evaluated, the last one being the result; none: every trained model of the recipe."""
    split: Literal["valid", "test"] = "test"
    """The rows that are ranked."""
    num_beams: int = Field(50, ge=1)
    """How wide the beam is."""
    k: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 3, 5, 10, 20, 50), min_length=1)
    """The cut-offs of HR@K and NDCG@K; those above ``num_beams`` are left out."""
    batch_size: int = Field(32, ge=1)
    """Prompts that are decoded together."""
    max_rows: int | None = Field(None, ge=1)
    """Rank only the first rows of the split; none: all."""
    exclude_history: bool = False
    """Leave out items that the user already has."""
    baselines: bool = True
    """Fit popularity, transitions and item-kNN on train, choose on valid, and show them in the same table."""

    @model_validator(mode="after")
    def _some_k_is_listed(self) -> EvaluateStageSettings:
        if min(self.k) > self.num_beams:
            raise ValueError(
                f"num_beams {self.num_beams} is below every k, got {list(self.k)}; rank at least {min(self.k)}"
            )
        return self
