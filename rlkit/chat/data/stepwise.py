"""Answers in steps, each with its label: the rows of TRL's stepwise supervision, and generated ones of arithmetic."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from rlkit.chat.data.messages import from_json, parse_prompt
from rlkit.chat.data.report import BadRow, short
from rlkit.chat.data.rows import Row, Stepwise, user
from rlkit.records import Source


def parse_stepwise(row: Mapping[str, Any], source: Source) -> list[Row]:
    """Read ``prompt``, ``completions`` (the steps of one answer) and ``labels`` (whether each step is right).

    Raises:
        BadRow: a key is missing, a step is blank, a label is none, or there are not as many of both.
    """
    problems: list[str] = []
    steps = _list(row, "completions", 'write the steps of one answer as ["...", "..."]', problems)
    labels = _list(row, "labels", "write true or false for each step, or a probability", problems)
    for at, step in enumerate(steps):
        if not isinstance(step, str) or not step.strip():
            wrong = "empty" if isinstance(step, str) else "not a text"
            problems.append(f"completions[{at}]: {wrong}, got {short(step)}; write what the step says")
    found = [_label(label, at, problems) for at, label in enumerate(labels)]
    if steps and labels and len(steps) != len(labels):
        counts = f"{len(labels)} for {len(steps)} completions"
        problems.append(f"labels: one for each step is needed, got {counts}; write true or false for each step")
    try:
        prompt = parse_prompt(row.get("prompt"), "prompt") if "prompt" in row else ()
        problems += [] if prompt else [f"prompt: missing, got the keys {short(sorted(row))}; add it, or rename the key"]
    except BadRow as bad:
        problems += bad.problems
    if problems:
        raise BadRow(*problems)
    return [Stepwise(prompt, tuple(steps), tuple(found), source)]


def _list(row: Mapping[str, Any], key: str, advice: str, problems: list[str]) -> list[Any]:
    value = from_json(row.get(key))
    if key not in row:
        problems.append(f"{key}: missing, got the keys {short(sorted(map(str, row)))}; {advice}")
    elif not isinstance(value, list) or not value:
        problems.append(f"{key}: not a list, got {short(value)}; {advice}")
    return value if isinstance(value, list) else []


def _label(value: Any, at: int, problems: list[str]) -> float:
    """Return the probability that a step is right; notes a label that says none."""
    known = {"true": 1.0, "false": 0.0}
    value = known.get(value.strip().lower(), value) if isinstance(value, str) else value
    if isinstance(value, bool | int | float) and 0 <= value <= 1:
        return float(value)
    more = ", and PRM800K's -1, 0, 1 as 0, 1, 1" if value == -1 else ""
    problems.append(
        f"labels[{at}]: neither true, false nor a number from 0 to 1, got {short(value)}; write a wrong step as false, "
        f"a right one as true{more}"
    )
    return 0.0


def sum_steps(numbers: Sequence[int], operations: Sequence[str], wrong: float, rng: random.Random) -> Sequence[Any]:
    """Work out a chain of sums step by step, with a share of wrong steps, and go on from what each step says.

    Args:
        numbers: of the task.
        operations: + or - between them.
        wrong: the share of wrong steps.
        rng: chooses these.

    Returns:
        (step, whether it is right) pairs; a step that goes on rightly from a wrong number is right itself.
    """
    total, steps = numbers[0], []
    for sign, number in zip(operations, numbers[1:]):
        right = total + number if sign == "+" else total - number
        is_right = rng.random() >= wrong
        said = right if is_right else right + rng.choice((-10, -2, -1, 1, 2, 10))
        steps.append((f"{total} {sign} {number} = {said}", is_right))
        total = said
    return steps


def stepwise(prompt: str, steps: Sequence[tuple[str, bool]], source: Source) -> Stepwise:
    """Return a row out of a prompt's text and its labeled steps."""
    texts, labels = zip(*steps)
    return Stepwise((user(prompt),), texts, tuple(map(float, labels)), source)
