"""The list: what is looked at, in which order, and how a failed line stops the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlkit.errors import RecipeError, RlkitError, RunError
from rlkit.job import Job
from rlkit.plugins import Registry
from rlkit.preflight.batches import batch_lines
from rlkit.preflight.data import data_lines
from rlkit.preflight.line import Line
from rlkit.preflight.machine import device_lines, disk_line, monitor_lines
from rlkit.preflight.rewards import case_lines, reward_lines
from rlkit.recipe import Recipe
from rlkit.run_directory import RunDirectory


def preflight(recipe: Recipe, registry: Registry, directory: RunDirectory, stages: Sequence[str]) -> list[Line]:
    """Look at what the stages that will train need.

    Args:
        recipe: the recipe.
        registry: what is installed.
        directory: the run's; nothing is written there.
        stages: those that are wanted and not finished, in order.

    Returns:
        The list; empty where nothing will train.
    """
    train = [name for name in stages if trains(recipe.stages[name])]
    if not train:
        return []
    jobs = [Job(recipe, registry, directory, name) for name in train]
    for job in jobs[1:]:
        job.domain = jobs[0].domain  # one reading of the data serves all
    try:
        return list(_lines(jobs))
    except RlkitError as error:
        if isinstance(error, RecipeError | RunError):
            raise
        return [Line("failed", "pre-flight", problem) for problem in error.problems]


def _lines(jobs: Sequence[Job]) -> Iterator[Line]:
    yield from data_lines(jobs)
    for job in jobs:
        yield from reward_lines(job)
    yield from case_lines(jobs[0])
    for job in jobs:
        yield from batch_lines(job)
    yield disk_line(jobs)
    yield from device_lines(jobs)
    yield from monitor_lines(jobs)


def trains(stage: object) -> bool:
    """Return whether a stage's settings make a model."""
    return not {"policy", "reward_model", "process_reward_model"}.isdisjoint(stage.makes)  # type: ignore[attr-defined]


def refuse(lines: Sequence[Line]) -> None:
    """Stop where a line failed.

    Raises:
        RunError: every failed line.
    """
    failed = [f"pre-flight: {line.subject}: {line.found}" for line in lines if line.mark == "failed"]
    if failed:
        raise RunError(*failed)
