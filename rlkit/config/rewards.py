"""Settings of the built-in rewards."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from rlkit.component import Settings


class RewardCase(Settings):
    """A golden case: a completion whose score is known, checked by ``rlkit validate --cases``."""

    completion: str
    """What is scored."""
    prompt: str = ""
    """The prompt before it."""
    answer: str = ""
    """The answer that counts as right."""
    context: dict[str, Any] | None = None
    """What else the prompt's row holds, such as tests."""
    truncated: bool = False
    """Whether it was cut off before its end."""
    score: float | None = None
    """The score, to a thousandth."""
    at_least: float | None = None
    """The least score."""
    at_most: float | None = None
    """The most."""

    @model_validator(mode="after")
    def _expects_something(self) -> RewardCase:
        if self.score is None and self.at_least is None and self.at_most is None:
            raise ValueError("expects nothing; write score, at_least or at_most")
        return self

    def wrong(self, found: float) -> bool:
        """Return whether a score is not what is expected; NaN never is."""
        exact = self.score is None or abs(found - self.score) <= 1e-3
        low, high = self.at_least is None or found >= self.at_least, self.at_most is None or found <= self.at_most
        return not (exact and low and high)


class RewardSettings(Settings):
    """What every reward has."""

    # Whether samples are scored one by one in processes that can be killed; else in the run's own.
    supervised: ClassVar[bool] = False
    # Whether the answer that counts as right scores 1, in some form: where it does not, no run begins.
    verifies: ClassVar[bool] = False

    weight: float = 1.0
    """The reward is multiplied by this before parts are added."""
    gate: bool = False
    """Multiply what the other parts add up to, instead of being added to it; the weight multiplies as well."""
    clip: tuple[float, float] | None = None
    """The least and the most that this part counts with, before the weight; none: as it is."""
    standardize: bool = False
    """Subtract the group's mean and divide by its standard deviation, so that parts of different scale weigh alike."""
    timeout_seconds: float = Field(10.0, gt=0)
    """The deadline of a sample. Missed in a supervised reward, it costs the sample; elsewhere the sum over a rollout
    ends the run."""
    workers: int = Field(1, ge=1, le=64)
    """Processes of a supervised reward; others ignore it."""
    cases: tuple[RewardCase, ...] = ()
    """Completions whose score is known, for ``rlkit validate --cases``."""

    @field_validator("clip")
    @classmethod
    def _clip_is_a_range(cls, clip: tuple[float, float] | None) -> tuple[float, float] | None:
        if clip is not None and clip[0] >= clip[1]:
            raise ValueError(f"the least must lie below the most, got {list(clip)}; write [least, most]")
        return clip

    @model_validator(mode="after")
    def _gate_is_not_standardized(self) -> RewardSettings:
        if self.gate and self.standardize:
            raise ValueError("a standardized gate is 0 on average, got gate and standardize; choose one of them")
        return self


class ItemMatchSettings(RewardSettings):
    """1 where the completion is the answer, else 0 (MiniOneRec's rule reward)."""

    type: Literal["item_match"] = "item_match"
    domains: ClassVar[tuple[str, ...]] = ("recommendation",)


class RankDiscountSettings(RewardSettings):
    """MiniOneRec's ranking term: beside a hit, a wrong beam costs the more the higher it stands. Beams only."""

    type: Literal["rank_discount"] = "rank_discount"
    domains: ClassVar[tuple[str, ...]] = ("recommendation",)


class PrefixMatchSettings(RewardSettings):
    """The share of the answer's leading levels that the completion gets right."""

    type: Literal["prefix_match"] = "prefix_match"
    domains: ClassVar[tuple[str, ...]] = ("recommendation",)


class AttributeMatchSettings(RewardSettings):
    """1 where the recommended item has an attribute, else 0: a business goal that likelihood does not serve."""

    type: Literal["attribute_match"] = "attribute_match"
    domains: ClassVar[tuple[str, ...]] = ("recommendation",)
    attribute: Literal["category", "brand", "title"] = "category"
    """Which text of the item is looked at."""
    value: str = Field(min_length=1)
    """The value it must have; for titles a word that it must contain."""


class ExactMatchSettings(RewardSettings):
    """Chat: 1 where the completion, stripped, equals the answer, else 0."""

    type: Literal["exact_match"] = "exact_match"
    domains: ClassVar[tuple[str, ...]] = ("chat",)
    verifies: ClassVar[bool] = True
