"""What a run would do: the resolved recipe, its stages, and the batch arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlkit.recipe import LoadedRecipe, Recipe, resolved_yaml
from rlkit.recipe_batches import Batches, batches


def dry_run_text(loaded: LoadedRecipe) -> str:
    """Return the resolved recipe as YAML, and the rest as comments below it, so that the text is itself a recipe."""
    lines = [
        "",
        "stages: consumes -> produces",
        *_table(_stages(loaded.recipe)),
        "",
        "batches",
        *_batches(loaded.recipe),
    ]
    notes = [f"# {line}".rstrip() for line in lines]
    return "\n".join([f"# {loaded.source}, resolved", resolved_yaml(loaded.recipe).rstrip("\n"), *notes])


def _stages(recipe: Recipe) -> Iterator[tuple[str, ...]]:
    trained: list[str] = []
    for number, (name, stage) in enumerate(recipe.stages.items(), 1):
        algorithm: Any = getattr(stage, "algorithm", None)
        kind = f"{stage.type}: {algorithm.type}" if algorithm else stage.type  # type: ignore[attr-defined]
        consumes = (*stage.consumes, *getattr(algorithm, "consumes", ()))
        arrow = " ".join((", ".join(consumes), "->", ", ".join(stage.makes))).strip()
        yield f"{number}", name, kind, arrow, _start(stage, trained)
        if "policy" in stage.makes:
            trained.append(name)


def _start(stage: Any, trained: list[str]) -> str:
    if hasattr(stage, "start_from"):
        return f"starts from {stage.start_from or (trained[-1] if trained else 'the model')}"
    if hasattr(stage, "models"):
        return f"ranks with {', '.join(stage.models or trained)}"
    return ""


def _batches(recipe: Recipe) -> Iterator[str]:
    for name, stage in recipe.stages.items():
        found = batches(stage, recipe.engine)
        if found:
            yield f"  {name}: {'; '.join(_arithmetic(found))}"


def _arithmetic(sizes: Batches) -> Iterator[str]:
    unit = "sequences"
    if sizes.rollout_batch_size:
        unit = "prompts"
        completions = sizes.rollout_batch_size * sizes.group_size
        prompts = _count(sizes.rollout_batch_size, unit)
        yield f"{prompts} per rollout x {sizes.group_size} = {_count(completions, 'completions')}"
        yield f"{_count(sizes.updates_per_rollout, 'updates')} of {_count(sizes.batch_size, unit)} per rollout"
    else:
        yield f"{_count(sizes.batch_size, unit)} per update"
    rank = f"on each of {sizes.processes} ranks {_count(sizes.share, unit)} = " if sizes.processes > 1 else ""
    yield f"{rank}{sizes.accumulation} accumulated x {sizes.micro} per forward"


def _count(number: int, plural: str) -> str:
    return f"{number:,} {plural.removesuffix('s') if number == 1 else plural}"


def _table(rows: Iterator[tuple[str, ...]]) -> list[str]:
    cells = list(rows)
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]
