"""Settings of generated Python tasks: one-line functions with the tests that they must pass."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rlkit.component import Settings


class PythonTasksSettings(Settings):
    """Generated one-line functions, such as ``twice a plus b``, as prompts with tests, or as demonstrations.

    The kind of a task (what is done to which operand) is train, valid or test by its own hash, whatever the seed and
    the sizes: held-out tasks combine what train never combined. A share of the demonstrations is wrong by a little,
    each in its own way: a model that imitates them samples a right program as often as they are right (pass@1), and
    has room to rise.
    """

    type: Literal["python_tasks"] = "python_tasks"
    domains: ClassVar[tuple[str, ...]] = ("chat",)

    rows: int = Field(2_000, ge=1, le=1_000_000)
    """Tasks of the train split, drawn with repetition."""
    held_out: int = Field(200, ge=1, le=100_000)
    """Different tasks of valid, and of test; fewer where there are no more."""
    wrong: float = Field(0.0, ge=0, lt=1)
    """The share of demonstrations with a wrong program."""
    tests: int = Field(4, ge=1, le=50)
    """Asserts of a task; together they tell its program from every wrong one that demonstrations show."""
    letters: int = Field(4, ge=2, le=26)
    """Arguments are named by two of the first letters of the alphabet."""
    seed: int = Field(0, ge=0)
    """The same seed gives the same rows on every machine."""
