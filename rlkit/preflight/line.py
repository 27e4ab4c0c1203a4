"""A line of the list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mark = Literal["ok", "note", "later", "failed"]
"""``note``: worth a look; ``later``: cannot be tried before something is trained; ``failed``: stops the run."""


@dataclass(frozen=True)
class Line:
    """One thing that was looked at.

    Args:
        mark: how it did.
        subject: what was looked at.
        found: what was found; of a failed line also what to do.
    """

    mark: Mark
    subject: str
    found: str

    def __str__(self) -> str:
        return f"  {self.mark:<7}{self.subject}: {self.found}"


def count(number: int, plural: str) -> str:
    """Return a number with its unit."""
    return f"{number:,} {plural.removesuffix('s') if number == 1 else plural}"
