"""Rollout settings: how a prompt's group of completions is made."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rlkit.component import Settings


class BeamSettings(Settings):
    """The G best completions under the constraint, best first: distinct by construction."""

    type: Literal["beam"] = "beam"
    needs_constraint: ClassVar[bool] = True
    temperature: float = Field(1.0, gt=0)
    """Divides the logits before log-probs are taken, here and in the loss."""


class SampleSettings(Settings):
    """G sampled completions: under the domain's constraint where it has one, else over the vocabulary."""

    type: Literal["sample"] = "sample"
    temperature: float = Field(1.0, gt=0)
    """Divides the logits before log-probs are taken, here and in the loss."""
    distinct: bool = True
    """Under a constraint: sample without replacement (stochastic beam search, Kool et al. 2019, arXiv 1903.06059)."""
    top_k: int | None = Field(None, ge=1)
    """Without a constraint: keep the k likeliest tokens."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Without a constraint: keep the smallest set of tokens with this probability."""
    max_completion_tokens: int = Field(64, ge=1)
    """Without a constraint: where a completion is cut off."""
