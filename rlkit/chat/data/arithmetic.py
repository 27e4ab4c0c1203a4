"""Generate arithmetic: tasks of several levels with their answers, right or, where asked, a little wrong.

Whether a task is held out is decided by a hash of the task alone, so that no source, seed or size can bring it into
train.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

from rlkit.chat.data.rows import SPLITS, Dialogue, Pair, Question, Rated, Row, assistant, user
from rlkit.chat.data.splits import SourceData
from rlkit.chat.data.stepwise import stepwise, sum_steps
from rlkit.config.arithmetic import ArithmeticSettings, LevelSettings
from rlkit.errors import DataError
from rlkit.records import Source

HELD_SHARE = 0.1
"""The share of all tasks that is valid, and of those that are test."""
TRIES = 2_000
"""How often a task is drawn anew before its level counts as having none."""


class Task(NamedTuple):
    """One task: what is asked, its answer, and the level it is of."""

    expression: str
    answer: int
    level: LevelSettings


def generate_arithmetic(settings: ArithmeticSettings, kind: str) -> SourceData:
    """Generate one source.

    Args:
        settings: levels, sizes, share of wrong answers, seed.
        kind: demonstrations, preferences, feedback, steps or prompts.

    Raises:
        DataError: a level has no task of some split, or steps of products are asked for.
    """
    if kind == "steps" and any({"*", "/"} & set(level.operations) for level in settings.levels):
        raise DataError("arithmetic: levels: steps are made of sums only; take the operations + and -")
    make, splits = _MAKERS[kind], {}
    for split in SPLITS:
        rng = random.Random(f"arithmetic {settings.seed} {kind} {split}")
        source = f"arithmetic/{kind}/{split}"
        found = tasks(settings, split, rng)
        splits[split] = tuple(make(task, settings, rng, Source(source, at)) for at, task in enumerate(found, 1))
    return SourceData(splits)


def tasks(settings: ArithmeticSettings, split: str, rng: random.Random) -> list[Task]:
    """Draw the tasks of a split: of train with repetition, of valid and test each one once.

    Raises:
        DataError: a level has no task of the split.
    """
    weights = [level.weight for level in settings.levels]
    if split == "train":
        chosen = rng.choices(settings.levels, weights, k=settings.rows)
        return [_required(draw(level, split, settings.negative, rng), level, split) for level in chosen]
    found: dict[str, Task] = {}
    for level in settings.levels:
        wanted = max(1, round(settings.held_out * level.weight / sum(weights)))
        found |= _different(level, split, wanted, settings.negative, rng)
    mixed = list(found.values())
    rng.shuffle(mixed)
    return mixed


def _different(level: LevelSettings, split: str, wanted: int, negative: bool, rng: random.Random) -> dict[str, Task]:
    """Return up to so many different tasks, by their keys; fewer where hardly any new one is drawn any more."""
    found: dict[str, Task] = {}
    misses = 0
    while len(found) < wanted and misses < 200:
        task = _required(draw(level, split, negative, rng), level, split)
        known = len(found)
        found.setdefault(key(task.expression), task)
        misses = misses + 1 if len(found) == known else 0
    return found


def _required(task: Task | None, level: LevelSettings, split: str) -> Task:
    if task is None:
        raise DataError(
            f"arithmetic: levels: {level.name!r} has hardly a task for {split}; add digits, terms or operations"
        )
    return task


def draw(level: LevelSettings, split: str, negative: bool, rng: random.Random) -> Task | None:
    """Draw a task of a level and a split; None where none turns up."""
    low = 0 if level.digits == 1 else 10 ** (level.digits - 1)
    for _ in range(TRIES):
        numbers = [rng.randrange(low, 10**level.digits) for _ in range(level.terms)]
        operations = [rng.choice(level.operations) for _ in numbers[1:]]
        answer = work_out(numbers, operations)
        if answer is None or (answer < 0 and not negative):
            continue
        text = " ".join([str(numbers[0]), *(f"{sign} {number}" for sign, number in zip(operations, numbers[1:]))])
        if split_of(text) == split:
            return Task(text, answer, level)
    return None


def work_out(numbers: Sequence[int], operations: Sequence[str]) -> int | None:
    """Return what a chain of operations comes to, products and quotients first; None where that is no whole number."""
    sums, product = Fraction(0), Fraction(numbers[0])
    for operation, number in zip(operations, numbers[1:]):
        if operation == "*":
            product *= number
        elif operation == "/":
            if number == 0 or (product / number).denominator > 1:
                return None
            product /= number
        else:
            sums, product = sums + product, Fraction(number if operation == "+" else -number)
    return int(sums + product)


def key(expression: str) -> str:
    """Return what tasks have in common that are the same one: sums and products in any order of their numbers.

    What is taken away is a number with its sign; within a product that is divided, the order counts.
    """
    parts = expression.split()
    signs = set(parts[1::2])
    if signs in ({"+"}, {"*"}):
        return " ".join([*sorted(parts[::2]), *signs])
    terms: list[tuple[str, list[str]]] = [("+", [parts[0]])]
    for sign, number in zip(parts[1::2], parts[2::2]):
        if sign in "+-":
            terms.append((sign, [number]))
        else:
            terms[-1][1].extend((sign, number))
    products = [(sign, " * ".join(sorted(term[::2])) if "/" not in term else " ".join(term)) for sign, term in terms]
    return " ".join(f"{sign} {term}" for sign, term in sorted(products))


def split_of(expression: str) -> str:
    """Return the split of a task."""
    digest = hashlib.sha256(f"arithmetic {key(expression)}".encode()).digest()
    rank = int.from_bytes(digest[:8], "big") / 2**64
    return "valid" if rank < HELD_SHARE else "test" if rank < 2 * HELD_SHARE else "train"


def near(answer: int, negative: bool, rng: random.Random) -> int:
    """Return a wrong answer: off by one, two or ten, or with two digits exchanged."""
    text = str(abs(answer))
    swapped = int(text[:-2] + text[-1] + text[-2]) * (-1 if answer < 0 else 1) if len(text) > 1 else answer
    wrong = {answer - 10, answer - 2, answer - 1, answer + 1, answer + 2, answer + 10, swapped} - {answer}
    return rng.choice(sorted(value for value in wrong if negative or value >= 0))


# ---- rows


def _say(task: Task, settings: ArithmeticSettings, answer: int) -> str:
    said = settings.completion.replace("{expression}", task.expression).replace("{answer}", str(answer))
    return said.replace("{steps}", _worked_out(task, answer)) if "{steps}" in said else said


def _worked_out(task: Task, answer: int) -> str:
    """Return the sums of a task, one to a line; the last one says this answer."""
    *before, (last, _) = _sums(task, 0.0, random.Random(0))
    return "\n".join([*(step for step, _ in before), f"{last.rpartition('=')[0]}= {answer}"])


def _sums(task: Task, wrong: float, rng: random.Random) -> Sequence[tuple[str, bool]]:
    words = task.expression.split()
    return sum_steps([int(word) for word in words[::2]], words[1::2], wrong, rng)


def _ask(task: Task, settings: ArithmeticSettings) -> str:
    return settings.prompt.replace("{expression}", task.expression)


def _demonstration(task: Task, settings: ArithmeticSettings, rng: random.Random, source: Source) -> Row:
    wrong = rng.random() < settings.wrong
    answer = near(task.answer, settings.negative, rng) if wrong else task.answer
    return Dialogue((user(_ask(task, settings)), assistant(_say(task, settings, answer))), source)


def _prompt(task: Task, settings: ArithmeticSettings, rng: random.Random, source: Source) -> Row:
    context = {"expression": task.expression, "level": task.level.name}
    return Question((user(_ask(task, settings)),), str(task.answer), source, context)


def _pair(task: Task, settings: ArithmeticSettings, rng: random.Random, source: Source) -> Row:
    right, wrong = (
        (assistant(_say(task, settings, answer)),)
        for answer in (task.answer, near(task.answer, settings.negative, rng))
    )
    chosen, rejected = (wrong, right) if rng.random() < settings.wrong else (right, wrong)
    return Pair((user(_ask(task, settings)),), chosen, rejected, source)


def _rated(task: Task, settings: ArithmeticSettings, rng: random.Random, source: Source) -> Row:
    good = rng.random() < 0.5
    answer = task.answer if good else near(task.answer, settings.negative, rng)
    said = (assistant(_say(task, settings, answer)),)
    return Rated((user(_ask(task, settings)),), said, good != (rng.random() < settings.wrong), source)


def _steps(task: Task, settings: ArithmeticSettings, rng: random.Random, source: Source) -> Row:
    return stepwise(_ask(task, settings), _sums(task, settings.wrong, rng), source)


_MAKERS: dict[str, Callable[[Task, ArithmeticSettings, random.Random, Source], Row]] = {
    "demonstrations": _demonstration,
    "preferences": _pair,
    "feedback": _rated,
    "steps": _steps,
    "prompts": _prompt,
}
