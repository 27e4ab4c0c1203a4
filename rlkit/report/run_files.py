"""Read whatever a run directory holds so far: missing or damaged parts are left out, never an error."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkit.recipe_yaml import YamlProblem, parse_document


@dataclass(frozen=True)
class RunFiles:
    """The parts of a run.

    Args:
        name: the recipe's name, else the folder's.
        recipe: recipe.yaml as plain data.
        recipe_text: the same as text.
        environment: environment.json.
        stages: the finished stages of manifest.json, in their order.
        metrics: rows of metrics.jsonl.
        samples: rows of samples.jsonl.
        alarms: rows of alarms.jsonl.
        evaluations: ``eval.json`` of every folder that holds one, by folder.
    """

    name: str
    recipe: Mapping[str, Any]
    recipe_text: str
    environment: Mapping[str, Any]
    stages: Mapping[str, Mapping[str, Any]]
    metrics: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    alarms: list[dict[str, Any]]
    evaluations: Mapping[str, Mapping[str, Any]]

    @property
    def stage_names(self) -> list[str]:
        """Return all stages, in the recipe's order; without a recipe those that left a trace."""
        planned = self.recipe.get("stages")
        traces = [*self.stages, *(str(row["stage"]) for row in self.metrics if "stage" in row)]
        return list(dict.fromkeys([*(planned if isinstance(planned, dict) else ()), *traces]))


def read_run(path: Path) -> RunFiles:
    """Read a run directory."""
    text = _text(path / "recipe.yaml")
    recipe = _recipe(text)
    manifest = _object(path / "manifest.json").get("stages")
    stages = manifest if isinstance(manifest, dict) else {}
    folders = sorted(path.glob("*/eval.json"), key=lambda file: (file.parent.name != "evaluate", file.parent.name))
    evaluations = {file.parent.name: report for file in folders if (report := _object(file)).get("metrics")}
    return RunFiles(
        name=str(recipe.get("name") or path.resolve().name),
        recipe=recipe,
        recipe_text=text,
        environment=_object(path / "environment.json"),
        stages={name: entry for name, entry in stages.items() if isinstance(entry, dict)},
        metrics=rows_of(path / "metrics.jsonl"),
        samples=rows_of(path / "samples.jsonl"),
        alarms=rows_of(path / "alarms.jsonl"),
        evaluations=evaluations,
    )


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def finite(values: Any) -> dict[str, float]:
    """Return the finite numbers of a mapping; nothing of anything else."""
    return {name: value for name, value in values.items() if is_number(value)} if isinstance(values, dict) else {}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _recipe(text: str) -> Mapping[str, Any]:
    try:
        return parse_document(text).tree if text.strip() else {}
    except YamlProblem:
        return {}


def _object(path: Path) -> dict[str, Any]:
    return _parsed(_text(path)) or {}


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file; a line that a kill cut short is no row."""
    return [row for line in _text(path).split("\n") if (row := _parsed(line))]


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
