"""Read chat rows: JSONL files of ``{"prompt": ..., "answer": ...}``. Light: no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlkit.config.domains import ChatSettings
from rlkit.errors import DataError
from rlkit.records import Source

SHOWN_PER_FILE = 20
"""Problems shown of one file; a file made for something else has one in every row."""
VALID_SHARE = 0.1
"""The share of the train rows, the last ones, that is valid where no file is named for it."""


@dataclass(frozen=True, slots=True)
class ChatRow:
    """One turn: what is asked, and the answer that counts as right."""

    prompt: str
    answer: str
    source: Source


@dataclass(frozen=True, slots=True)
class ChatData:
    """The rows of each split.

    Args:
        splits: train, valid and test rows, in file order.
        files: what was read.
    """

    splits: dict[str, tuple[ChatRow, ...]]
    files: tuple[str, ...]


def read_chat(settings: ChatSettings) -> ChatData:
    """Read the files that the settings name, each one once.

    Raises:
        DataError: every bad row of every file, by file and line.
    """
    paths = list(dict.fromkeys(path for path in (settings.train, settings.valid, settings.test) if path))
    problems: list[str] = []
    rows = {path: _read(Path(path).expanduser(), problems) for path in paths}
    if problems:
        raise DataError(*problems)
    train = rows[settings.train]
    if settings.valid:
        valid = rows[settings.valid]
    else:
        train, valid = _cut(train, settings.train)
    return ChatData(
        {"train": train, "valid": valid, "test": rows[settings.test] if settings.test else valid}, (*paths,)
    )


def _cut(rows: Sequence[ChatRow], path: str) -> tuple[tuple[ChatRow, ...], tuple[ChatRow, ...]]:
    count = math.ceil(VALID_SHARE * len(rows))
    if len(rows) <= count:
        raise DataError(f"{path}: one row cannot be both train and valid; add rows, or name another file as valid")
    return tuple(rows[:-count]), tuple(rows[-count:])


def _read(path: Path, problems: list[str]) -> tuple[ChatRow, ...]:
    text = _text(path, problems)
    if text is None:
        return ()
    rows: list[ChatRow] = []
    found: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines(): JSON strings may hold U+2028
        if line.strip():
            row = _row(line, Source(str(path), number), found)
            rows += [row] if row else []
    if not rows and not found:
        found.append(f'{path}: holds no row; write lines like {{"prompt": "2 + 3?", "answer": "5"}}')
    if len(found) > SHOWN_PER_FILE:
        found[SHOWN_PER_FILE:] = [f"{path}: and {len(found) - SHOWN_PER_FILE:,} more problems"]
    problems += found
    return tuple(rows)


def _text(path: Path, problems: list[str]) -> str | None:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        problems.append(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8")
    except OSError as error:
        problems.append(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}; name a JSONL file")
    return None


def _row(line: str, source: Source, problems: list[str]) -> ChatRow | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        problems.append(f"{source}: not valid JSON: {str(error).lower()}; write one object per line")
        return None
    if not isinstance(value, dict):
        problems.append(f'{source}: not an object, got {_short(value)}; write {{"prompt": ..., "answer": ...}}')
        return None
    wrong = [f"{source}: {problem}" for key in ("prompt", "answer") if (problem := _wrong(value, key))]
    problems += wrong
    return None if wrong else ChatRow(value["prompt"], value["answer"], source)


def _wrong(row: dict[str, object], key: str) -> str:
    if key not in row:
        return f"{key}: missing, got the keys {_short(sorted(row))}; add it, or rename the key that holds it"
    text = row[key]
    if not isinstance(text, str):
        return f"{key}: not a text, got {_short(text)}; put it in quotes"
    return (
        f"{key}: empty, got {_short(text)}; write it, or delete the row" if key == "prompt" and not text.strip() else ""
    )


def _short(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
