"""Settings of the built-in recommendation data: files in MiniOneRec's format, and the generated demo."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rlkit.component import Settings


class MiniOneRecDataSettings(Settings):
    """Files in MiniOneRec's format: train, valid and test CSV, info, index.json and item.json of one dataset."""

    type: Literal["minionerec"] = "minionerec"
    domains: ClassVar[tuple[str, ...]] = ("recommendation",)

    path: str = Field(min_length=1)
    """The folder of ``NAME.train.csv[.gz]`` and its sisters, or of upstream's ``train/NAME_5_2016-10-2018-11.csv``."""
    dataset: str | None = Field(None, min_length=1)
    """NAME, such as ``Office_Products``; needed only where the folder holds several datasets, as upstream's does."""

    def check(self) -> None:
        """Read the files whole, as a run does.

        Raises:
            DataError: every problem found, by file and line.
        """
        from rlkit.recsys.data.minionerec import read_minionerec

        read_minionerec(self)


class DemoDataSettings(Settings):
    """A generated shop with known next-item distribution; the defaults were fixed before any model was trained."""

    type: Literal["demo"] = "demo"
    domains: ClassVar[tuple[str, ...]] = ("recommendation",)

    seed: int = Field(0, ge=0)
    """The same seed gives the same shop and the same users on every machine."""
    users: int = Field(5_000, ge=20, le=1_000_000)
    """Users; each gives 4 to 10 rows, 6 on average."""
    items: int = Field(600, ge=48, le=4_000)
    """Items, spread over twelve categories."""
    valid_share: float = Field(0.07, gt=0, le=0.3)
    """The share of rows, before the test rows in time, that is valid."""
    test_share: float = Field(0.07, gt=0, le=0.3)
    """The share of rows, the last in time, that is test."""
