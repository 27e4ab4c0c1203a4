"""A file of rows gains scores: every row is read and checked before anything is scored, and the result is whole."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlkit.errors import DataError, RlkitError, TrainingError
from rlkit.policy.supervised import judge
from rlkit.policy.text_rewards import Sample

SHOWN = 20
"""Problems shown of a file."""
SIDES = {"completion": "score", "chosen": "chosen_score", "rejected": "rejected_score"}
"""What is scored in a row, and the field that it gains."""


class Part(NamedTuple):
    """One completion to score: its row, from 0, the field that the score goes to, and what the reward reads."""

    row: int
    field: str
    sample: Sample


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file of ``{"prompt", "completion"}`` or ``{"prompt", "chosen", "rejected"}``.

    ``prompt`` is text or a list of messages; ``answer``, for rewards that compare with one, is text; ``truncated`` says
    whether the completion was cut off. Further fields stay, blank lines are left out.

    Raises:
        DataError: every problem, by file and line.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; name a JSONL file of rows")
    rows, problems = [], []
    for line, text in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text.decode("utf-8-sig" if line == 1 else "utf-8"))
        except ValueError as error:
            problems.append(f"{path}:{line}: not valid JSON: {error}; write one object per line")
            continue
        problems += [f"{path}:{line}: {problem}" for problem in _problems(row)]
        rows.append(row)
    if len(problems) > SHOWN:
        problems = [*problems[:SHOWN], f"{path}: {len(problems) - SHOWN} more problems; mend these first"]
    if not rows and not problems:
        problems = [f"{path}: no row; write one object per line"]
    if problems:
        raise DataError(*problems)
    return rows


def _problems(row: Any) -> Iterator[str]:
    if not isinstance(row, dict):
        yield f'expected an object, got {_short(row)}; write {{"prompt": "...", "completion": "..."}}'
        return
    prompt = row.get("prompt")
    if not (isinstance(prompt, str) and prompt) and not _is_conversation(prompt):
        yield f"prompt: expected text or a list of messages, got {_short(prompt)}; every row needs one"
    if not isinstance(row.get("truncated", False), bool):
        yield f"truncated: expected true or false, got {_short(row['truncated'])}; say whether it was cut off"
    sides = ["completion"] if "completion" in row else ["chosen", "rejected"]
    if not any(side in row for side in SIDES):
        yield "neither completion nor chosen and rejected; add what is to be scored"
        return
    for side in (*sides, *(["answer"] if "answer" in row else [])):
        if not isinstance(row.get(side), str):
            yield f"{side}: expected text, got {_short(row.get(side))}; put it in quotes"


def _is_conversation(prompt: Any) -> bool:
    return (
        isinstance(prompt, list)
        and bool(prompt)
        and all(
            isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
            for turn in prompt
        )
    )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def parts(rows: Sequence[dict[str, Any]], render: Callable[[list[dict[str, str]]], str] | None) -> list[Part]:
    """Return every completion of the rows.

    Args:
        rows: as read.
        render: turns a conversation into the text that an answer follows; None: prompts are taken as they are.
    """
    found = []
    for index, row in enumerate(rows):
        prompt = row["prompt"]
        if render is not None:
            prompt = render([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)
        elif not isinstance(prompt, str):
            prompt = "\n\n".join(turn["content"] for turn in prompt)
        sides = ["completion"] if "completion" in row else ["chosen", "rejected"]
        rest = (row.get("answer", ""), row.get("truncated", False), row)
        found += [Part(index, SIDES[side], Sample(str(prompt), row[side], *rest)) for side in sides]
    return found


def score_rows(
    reward: Any, settings: Any, rows: Sequence[dict[str, Any]], rendered: bool = False
) -> list[dict[str, Any]]:
    """Return the rows with their scores, under the deadline of the reward's settings as in a run.

    Args:
        reward: has ``judge(samples)``; where it has ``render(messages)`` too, that makes the prompts.
        settings: the reward's.
        rows: as read.
        rendered: prompts are rendered already.

    Raises:
        TrainingError: the reward gives another number of scores, or an infinite one, or does not end.
    """
    todo = parts(rows, None if rendered else getattr(reward, "render", None))
    outcomes = judge(reward, settings.type, settings, [part.sample for part in todo])
    if len(outcomes) != len(todo):
        raise TrainingError(f"reward: {len(outcomes)} scores for {len(todo)} completions; look at the reward's code")
    result = [dict(row) for row in rows]
    for part, outcome in zip(todo, outcomes):
        if math.isinf(outcome.score):
            raise TrainingError(f"reward: row {part.row + 1} has a score of {outcome.score}; look at the reward's code")
        result[part.row][part.field] = None if math.isnan(outcome.score) else outcome.score
        if part.field == "score":
            more = {"parts": dict(outcome.parts), "error": outcome.error, "ms": round(outcome.milliseconds, 3)}
            result[part.row] |= more
        elif outcome.error:
            result[part.row]["error"] = outcome.error
    return result


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write JSONL so that the file is there whole or not at all.

    Raises:
        RlkitError: the place cannot be written to.
    """
    try:
        with _partial(path).open("w", encoding="utf-8") as file:
            file.writelines(_line(row) + "\n" for row in rows)
        os.replace(_partial(path), path)
    except OSError as error:
        raise _unwritable(path, error) from error


def _line(row: dict[str, Any]) -> str:
    """Return a row as JSON; what UTF-8 cannot hold, such as half a surrogate pair, stays escaped."""
    text = json.dumps(row, ensure_ascii=False)
    return text if text.isascii() or text.encode("utf-8", "replace").decode("utf-8") == text else json.dumps(row)


def check_place(path: Path) -> None:
    """Make the folder of a file and see whether it can be written, before hours are spent on what goes there.

    Raises:
        RlkitError: it cannot.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        _partial(path).touch()
        _partial(path).unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _unwritable(path: Path, error: OSError) -> RlkitError:
    return RlkitError(f"{path}: cannot be written: {error.strerror}; choose another --out")


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Return a line about scored rows: how often the chosen one has more, or the mean."""
    pairs = [(row["chosen_score"], row["rejected_score"]) for row in rows if "completion" not in row]
    pairs = [pair for pair in pairs if None not in pair]
    singles = [row["score"] for row in rows if "completion" in row and row["score"] is not None]
    lost = sum(bool(row.get("error")) for row in rows)
    said = []
    if pairs:
        right = sum((chosen > rejected) + (chosen == rejected) / 2 for chosen, rejected in pairs)
        said.append(f"{len(pairs)} pairs, the chosen one has more in {right / len(pairs):.1%}")
    if singles:
        said.append(f"{len(singles)} completions, mean score {sum(singles) / len(singles):.4g}")
    if lost:
        said.append(f"{lost} without a score, which say why in error")
    return "; ".join(said)
