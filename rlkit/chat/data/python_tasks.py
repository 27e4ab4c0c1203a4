"""Generate Python tasks: one-line functions of two numbers with asserts, right or, where asked, a little wrong.

The prompt is a comment and the head of a function, and the answer is the expression that it returns, so that models
which read bytes can learn it in minutes. The context of a prompt holds what the reward ``code`` reads: ``prompt``,
``entry_point`` and ``tests``.
"""

from __future__ import annotations

import hashlib
import operator
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations, product
from string import ascii_lowercase

from rlkit.chat.data.rows import SPLITS, Dialogue, Question, Row, assistant, user
from rlkit.chat.data.splits import SourceData
from rlkit.config.python_tasks import PythonTasksSettings
from rlkit.errors import DataError
from rlkit.records import Source

HELD_SHARE = 0.1
"""The share of kinds of tasks that is valid, and of those that are test."""
NAME = "f"
"""What every function is called."""
NUMBERS = (-5, -3, -2, 0, 1, 2, 3, 4, 5, 7)
"""What functions are tested with."""


@dataclass(frozen=True)
class Step:
    """What is done to one operand: in words, as code, and as arithmetic."""

    words: str
    code: str
    do: Callable[[int], int]


@dataclass(frozen=True)
class Join:
    """What is done to two operands; ``closed``: the second one stands in parentheses where it is more than a name."""

    words: str
    code: str
    do: Callable[[int, int], int | bool]
    closed: bool = False


STEPS = (
    Step("{}", "{}", lambda x: x),
    Step("twice {}", "2 * {}", lambda x: 2 * x),
    Step("{} squared", "{} ** 2", lambda x: x * x),
    Step("half {}", "{} // 2", lambda x: x // 2),
    Step("{} and one", "({} + 1)", lambda x: x + 1),
)
JOINS = (
    Join("{} plus {}", "{} + {}", operator.add),
    Join("{} minus {}", "{} - {}", operator.sub),
    Join("{} times {}", "{} * {}", operator.mul, closed=True),
    Join("larger of {}, {}", "max({}, {})", max),
    Join("smaller of {}, {}", "min({}, {})", min),
    Join("is {} over {}", "{} > {}", operator.gt),
    Join("is {} under {}", "{} < {}", operator.lt),
)


@dataclass(frozen=True)
class Task:
    """A function of two arguments: what is done to each, and then to both."""

    join: Join
    first: Step
    second: Step
    names: tuple[str, str]

    @property
    def key(self) -> str:
        """Return what tasks of one kind have in common, whatever their arguments are called."""
        return f"{self.join.words} | {self.first.words} | {self.second.words}"

    @property
    def asked(self) -> str:
        """Return the task in words."""
        x, y = self.names
        return self.join.words.format(self.first.words.format(x), self.second.words.format(y))

    @property
    def program(self) -> str:
        """Return the expression that does it."""
        x, y = self.first.code.format(self.names[0]), self.second.code.format(self.names[1])
        y = f"({y})" if self.join.closed and " " in y and not y.startswith("(") else y
        return self.join.code.format(x, y)


def generate_python_tasks(settings: PythonTasksSettings, kind: str) -> SourceData:
    """Generate one source.

    Args:
        settings: sizes, share of wrong programs, seed.
        kind: demonstrations or prompts.

    Raises:
        DataError: another kind is asked for.
    """
    makers = {"demonstrations": _demonstration, "prompts": _prompt}
    if kind not in makers:
        raise DataError(f"python_tasks: holds no {kind}, only demonstrations and prompts; name a file")
    splits = {}
    for split in SPLITS:
        rng = random.Random(f"python_tasks {settings.seed} {kind} {split}")
        source = f"python_tasks/{kind}/{split}"
        splits[split] = tuple(
            makers[kind](task, settings, rng, Source(source, at))
            for at, task in enumerate(_drawn(settings, split, rng), 1)
        )
    return SourceData(splits)


def _drawn(settings: PythonTasksSettings, split: str, rng: random.Random) -> list[Task]:
    """Return the tasks of a split: of train with repetition, of valid and test each one once."""
    all_of_it = list(tasks(split, settings.letters))
    if split == "train":
        return rng.choices(all_of_it, k=settings.rows)
    return rng.sample(all_of_it, min(settings.held_out, len(all_of_it)))


def tasks(split: str, letters: int) -> Iterator[Task]:
    """Yield all tasks of a split, whose arguments are named by two of the first so many letters."""
    names = list(permutations(ascii_lowercase[:letters], 2))
    for join, first, second in product(JOINS, STEPS, STEPS):
        kind = Task(join, first, second, names[0])
        if split_of(kind.key) == split:
            yield from (replace(kind, names=pair) for pair in names)


@cache
def split_of(key: str) -> str:
    """Return the split of a kind of task."""
    digest = hashlib.sha256(f"python_tasks {key}".encode()).digest()
    rank = int.from_bytes(digest[:8], "big") / 2**64
    return "valid" if rank < HELD_SHARE else "test" if rank < 2 * HELD_SHARE else "train"


def mistakes(task: Task) -> list[Task]:
    """Return the tasks that differ in one place (the join, a step, the order of arguments) and in what they return."""
    others = [replace(task, join=join) for join in JOINS]
    others += [replace(task, first=step) for step in STEPS]
    others += [replace(task, second=step) for step in STEPS]
    others += [replace(task, names=(task.names[1], task.names[0]))]
    right = _results(task, task.names)
    return [other for other in others if _results(other, task.names) != right]


def _results(task: Task, arguments: tuple[str, str]) -> tuple[int | bool, ...]:
    """Return what a function of these arguments, in this order, returns for all pairs of numbers."""
    table = _table(task.join, task.first, task.second)
    return table if task.names == arguments else tuple(table[_PAIRS.index((y, x))] for x, y in _PAIRS)


@cache
def _table(join: Join, first: Step, second: Step) -> tuple[int | bool, ...]:
    return tuple(join.do(first.do(x), second.do(y)) for x, y in _PAIRS)


_PAIRS = list(product(NUMBERS, repeat=2))


@cache
def tests_of(task: Task, count: int) -> tuple[str, ...]:
    """Return asserts; each next one is chosen to tell the task from the mistakes that the ones before let pass."""
    right, left = _results(task, task.names), [_results(other, task.names) for other in mistakes(task)]
    spots = random.Random(task.key).sample(range(len(_PAIRS)), len(_PAIRS))
    asserts = []
    for _ in range(min(count, len(spots))):
        best = max(spots, key=lambda spot: sum(other[spot] != right[spot] for other in left))
        spots.remove(best)
        left = [other for other in left if other[best] == right[best]]
        x, y = _PAIRS[best]
        asserts.append(f"assert {NAME}({x}, {y}) == {right[best]}")
    return tuple(asserts)


# ---- rows


def _asked(task: Task) -> str:
    x, y = task.names
    return f"# {task.asked}\ndef {NAME}({x}, {y}): return "


def _demonstration(task: Task, settings: PythonTasksSettings, rng: random.Random, source: Source) -> Row:
    shown = rng.choice(mistakes(task)) if rng.random() < settings.wrong else task
    return Dialogue((user(_asked(task)), assistant(shown.program)), source)


def _prompt(task: Task, settings: PythonTasksSettings, rng: random.Random, source: Source) -> Row:
    context = {"prompt": _asked(task), "entry_point": NAME, "tests": list(tests_of(task, settings.tests))}
    return Question((user(_asked(task)),), task.program, source, context)
