"""Formats of tasks whose answers can be checked: GSM8K's word problems and HumanEval's functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlkit.chat.data.messages import full_text_of, text_of
from rlkit.chat.data.report import BadRow, short
from rlkit.chat.data.rows import Question, Row, user
from rlkit.records import Source

MARK = "####"
"""What stands before the answer at the end of GSM8K's solutions."""


def is_gsm8k(objects: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether rows are questions whose answers all end in ``#### number``."""
    return all(isinstance(row.get("question"), str) and MARK in str(row.get("answer", "")) for row in objects)


def parse_gsm8k(row: Mapping[str, Any], source: Source) -> list[Row]:
    """Read ``question`` and ``answer``: what follows the mark is the answer, the whole text its demonstration.

    Raises:
        BadRow: a key is missing, or nothing follows the mark.
    """
    question, solution = full_text_of(row, "question"), text_of(row, "answer")
    answer = solution.rpartition(MARK)[2].strip()
    if MARK not in solution or not answer:
        raise BadRow(f"answer: does not end in '{MARK} number', got {short(solution[-60:])}; add it, or delete the row")
    context = {key: value for key, value in row.items() if key not in ("question", "answer")}
    return [Question((user(question),), answer, source, context, solution=solution)]


def parse_humaneval(row: Mapping[str, Any], source: Source) -> list[Row]:
    """Read ``prompt``, ``entry_point`` and ``test``, which the reward ``code`` finds in the context.

    The right answer is the whole program, where the row holds a ``canonical_solution``.

    Raises:
        BadRow: a key is missing.
    """
    prompt = full_text_of(row, "prompt")
    context = {**row, "entry_point": full_text_of(row, "entry_point"), "test": full_text_of(row, "test")}
    solution = text_of(row, "canonical_solution") if row.get("canonical_solution") else ""
    context.pop("canonical_solution", None)
    return [Question((user(prompt),), prompt + solution if solution else "", source, context)]
