"""Score quarantined completions again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlkit.errors import DataError
from rlkit.plugins import load_plugins
from rlkit.policy.supervised import SupervisedReward, close_rewards, judge
from rlkit.policy.text_rewards import Sample


def read(file: Path, line: int | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield rows of quarantine.jsonl with their numbers.

    Args:
        file: the file.
        line: the one that is wanted; None: all.

    Raises:
        DataError: there is none, or it was cut short.
    """
    if not file.is_file():
        raise DataError(f"{file}: there is none: every completion of this run had a score, or it is no run")
    lines = file.read_text(encoding="utf-8").rstrip("\n").split("\n")
    if line is not None and line > len(lines):
        raise DataError(f"--line: {file} has {len(lines)} lines, got {line}; name one of them")
    for number, text in enumerate(lines, 1):
        if line in (None, number):
            try:
                row = json.loads(text)
            except ValueError as error:
                raise DataError(f"{file}:{number}: not valid JSON: {error}; it was cut short: delete it") from error
            yield number, row


def again(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield what rewards say about rows of quarantine.jsonl now; rewards of the same settings are loaded once.

    Raises:
        DataError: the settings of a row do not fit any more.
    """
    loaded: dict[str, tuple[Any, Any]] = {}
    try:
        for row in rows:
            key = json.dumps(row["settings"], sort_keys=True)
            if key not in loaded:
                loaded[key] = _load(row["settings"])
            settings, reward = loaded[key]
            sample = Sample(row["prompt"], row["completion"], row["answer"], row["truncated"], row["context"])
            outcome = judge(reward, settings.type, settings, [sample])[0]
            took = f"score {outcome.score:g} in {outcome.milliseconds:.0f} ms"
            yield f"no score: {outcome.error}" if outcome.error else took
    finally:
        close_rewards(reward for _, reward in loaded.values())


def _load(tree: dict[str, Any]) -> tuple[Any, Any]:
    component = load_plugins().get("reward", tree["type"])
    try:
        settings: Any = component.settings.model_validate(tree)
    except ValidationError as error:
        said = "; ".join(detail["msg"].removeprefix("Value error, ") for detail in error.errors(include_url=False))
        raise DataError(f"reward {component.name}: {said}; put back what the run was given") from error
    return settings, SupervisedReward(settings, None) if settings.supervised else component.load()(settings, None)
