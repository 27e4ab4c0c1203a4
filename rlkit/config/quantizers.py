"""Settings of the built-in makers of semantic IDs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlkit.component import Settings


class GivenSettings(Settings):
    """The semantic IDs that the data brings along."""

    type: Literal["given"] = "given"


class ResidualKMeansSettings(Settings):
    """Residual k-means over item texts and train transitions; every item gets a semantic ID of its own."""

    type: Literal["residual_kmeans"] = "residual_kmeans"

    levels: int | None = Field(None, ge=1, le=7)
    """L, tokens of a semantic ID; none: 2 for up to 2,048 items, else 3. Where no code is free items get one more."""
    codebook_size: int | None = Field(None, ge=2, le=65_536)
    """M, codes per level; none: the power of two that gives about eight codes to an item, between 8 and 256."""
    text_dimensions: int = Field(64, ge=0, le=4096)
    """Dimensions of TF-IDF and truncated SVD over titles; 0 leaves the texts out."""
    transition_dimensions: int = Field(64, ge=0, le=4096)
    """Dimensions of PPMI and truncated SVD over train transitions; 0 leaves them out."""
