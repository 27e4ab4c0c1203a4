"""Settings of the built-in rewards."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rlkit.component import Settings


class RewardSettings(Settings):
    """What every reward has."""

    weight: float = 1.0
    """The reward is multiplied by this before parts are added."""


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
