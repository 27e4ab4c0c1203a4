"""What is asked of the sandbox, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["passed", "failed", "error", "timeout", "unsupported"]


@dataclass(frozen=True, slots=True)
class Case:
    """What a program reads from standard input, and what it must print."""

    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Checks:
    """The tests of one task; of ``tests`` and ``cases`` one is given.

    Args:
        tests: Python sources that raise where the code is wrong: asserts, or a function ``check(candidate)``.
        setup: Python sources that run before the tests, in their process: imports and helpers, trusted.
        entry_point: the function under test; empty: every function that the tests name and do not define.
        cases: what a whole program reads and must print.
    """

    tests: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    entry_point: str = ""
    cases: tuple[Case, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """How code did.

    Args:
        kind: passed (all of it); failed (a test, or a case); error (it did not run, died, or broke the protocol);
            timeout; unsupported (something in the tests or in a result does not cross as plain data: no verdict).
        reason: in a few words; empty where all passed. Written partly by the code: show it, never act on it.
        passed: tests or cases that passed.
        total: how many there are.
        seconds: from its start to its end.
    """

    kind: Kind
    reason: str
    passed: int
    total: int
    seconds: float
