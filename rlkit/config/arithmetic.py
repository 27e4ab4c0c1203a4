"""Settings of generated arithmetic: tasks with answers that a reward can check."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from rlkit.component import Settings


class LevelSettings(Settings):
    """One kind of task."""

    digits: int = Field(1, ge=1, le=9)
    """The digits of every number; one digit is 0 to 9, two are 10 to 99."""
    operations: tuple[Literal["+", "-", "*", "/"], ...] = Field(("+",), min_length=1)
    """What is drawn between numbers; times and divided by go first, and divisions leave no rest."""
    terms: int = Field(2, ge=2, le=8)
    """Numbers of a task."""
    weight: float = Field(1.0, gt=0)
    """How many of the tasks are of this level, beside the others."""

    @property
    def name(self) -> str:
        """Return what the level is called in logs, such as ``2 digits, 3 terms, + -``."""
        digits = "1 digit" if self.digits == 1 else f"{self.digits} digits"
        return f"{digits}, {self.terms} terms, {' '.join(self.operations)}"

    @field_validator("operations")
    @classmethod
    def _each_once(cls, operations: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(operations)) < len(operations):
            raise ValueError(f"an operation stands twice, got {list(operations)}; write each one once")
        return operations

    @model_validator(mode="after")
    def _divisions_are_short(self) -> LevelSettings:
        if "/" in self.operations and self.terms > 3:
            raise ValueError(f"divisions of {self.terms} numbers hardly ever leave no rest; take at most 3 terms")
        return self


class ArithmeticSettings(Settings):
    """Generated arithmetic, such as ``17 + 5 = ?``: as prompts, demonstrations, preferences, feedback or steps.

    A task is train, valid or test by its own hash, whatever the seed, the source and the sizes, so train never holds
    a held-out task; 3 + 4 and 4 + 3 are the same one, and so are 9 - 2 + 3 and 3 + 9 - 2. A share of the
    demonstrations is wrong by a little, each in its own way: a model that imitates them samples a right answer as
    often as they are right (pass@1), and has room to rise.
    """

    type: Literal["arithmetic"] = "arithmetic"
    domains: ClassVar[tuple[str, ...]] = ("chat",)

    levels: tuple[LevelSettings, ...] = Field((LevelSettings(),), min_length=1)
    """The kinds of tasks; an entry of ``{digits: 2}`` is addition of two numbers of two digits."""
    rows: int = Field(2_000, ge=1, le=1_000_000)
    """Tasks of the train split, drawn with repetition."""
    held_out: int = Field(200, ge=1, le=100_000)
    """Different tasks of valid, and of test; fewer where the levels have no more."""
    wrong: float = Field(0.0, ge=0, lt=1)
    """The share of demonstrations with a wrong answer, and of preferences and feedback that is the wrong way round;
    of steps the share that is wrong."""
    prompt: str = "{expression} = ?"
    """What is asked; {expression} stands for the task."""
    completion: str = "{answer}"
    """What a demonstration says; {answer} stands for the number, {expression} for the task, {steps} for the sums that
    lead to the answer, one to a line, of which a wrong demonstration gets the last one wrong."""
    negative: bool = False
    """Whether answers may lie below 0."""
    seed: int = Field(0, ge=0)
    """The same seed gives the same rows on every machine."""

    @field_validator("prompt")
    @classmethod
    def _asks_for_it(cls, prompt: str) -> str:
        if "{expression}" not in prompt:
            raise ValueError(f"does not ask for the task, got {prompt!r}; write {{expression}} somewhere")
        return prompt

    @field_validator("completion")
    @classmethod
    def _answers(cls, completion: str) -> str:
        if "{answer}" not in completion and "{steps}" not in completion:
            raise ValueError(f"does not say the answer, got {completion!r}; write {{answer}} somewhere, or {{steps}}")
        return completion

    @field_validator("levels")
    @classmethod
    def _each_level_once(cls, levels: tuple[LevelSettings, ...]) -> tuple[LevelSettings, ...]:
        names = [level.name for level in levels]
        if len(set(names)) < len(names):
            raise ValueError(f"a level stands twice, got {names}; give it one weight")
        return levels

    @model_validator(mode="after")
    def _steps_are_sums(self) -> ArithmeticSettings:
        if "{steps}" in self.completion and any({"*", "/"} & set(level.operations) for level in self.levels):
            raise ValueError("completion: steps are made of sums only; take the operations + and -, or {answer} alone")
        return self
