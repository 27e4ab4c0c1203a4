"""Settings of rewards that check a completion: mathematics."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rlkit.config.rewards import RewardSettings


class MathSettings(RewardSettings):
    r"""1 where the final answer equals the prompt's answer in value, else 0.

    The final answer is what stands in ``\boxed{...}``, after ``####``, after "the answer is", else the last number. A
    completion that was cut off, or that gives two different answers, gets 0.
    """

    type: Literal["math"] = "math"
    domains: ClassVar[tuple[str, ...]] = ("chat",)

    strict: bool = True
    """Every answer that is boxed or marked must be right; false: the last one counts."""
    marked_only: bool = False
    """An answer must be boxed, marked by ``####``, announced or in <answer> tags; the last number does not count."""
    worked_out: bool = True
    """Where a number is wanted, sums, products, powers and divisions left to do (3 + 4 for 7) are wrong."""
    tolerance: float = Field(1e-6, ge=0, lt=0.1)
    """How far an answer with a decimal point may be off: relative to answers below 1, absolute above."""
    formula_seconds: float = Field(1.0, gt=0, le=60)
    """Processor time that math-verify may take for two formulas, in its own process; then the answer is wrong."""
    max_characters: int = Field(150_000, ge=1)
    """Longer completions are wrong."""
