"""The batch arithmetic of a stage, in one line."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rlkit.job import Job
from rlkit.preflight.data import counts_of, source_of
from rlkit.preflight.line import Line, count
from rlkit.recipe_batches import Batches, batches


def batch_lines(job: Job) -> Iterator[Line]:
    """Yield what a stage's steps are made of; nothing for a stage without batches."""
    sizes = batches(job.settings, job.recipe.engine)
    if sizes is None:
        return
    found = counts_of(job.domain)
    source = source_of(job, found)
    rows = found[source].get("train", 0) if source else 0
    text = ", ".join(_rollouts(job, sizes, rows) if sizes.rollout_batch_size else _steps(job, sizes, rows))
    ranks = f" on {sizes.processes} ranks" if sizes.processes > 1 else ""
    text += f"; {sizes.accumulation} x {sizes.micro} per forward{ranks}"
    needed = sizes.rollout_batch_size or sizes.batch_size
    if rows and rows < needed:
        yield Line("note", f"stage {job.stage}", f"{text}; {count(rows, 'rows')} fill no batch of {needed} once")
    else:
        yield Line("ok", f"stage {job.stage}", text)


def _steps(job: Job, sizes: Batches, rows: int) -> Iterator[str]:
    train = job.settings.train
    steps = train.max_steps or (math.ceil(train.epochs * (rows // sizes.batch_size)) if rows else 0)
    yield f"{count(max(steps, 1), 'steps')} of {sizes.batch_size}" if steps or rows else f"{train.epochs:g} epochs"


def _rollouts(job: Job, sizes: Batches, rows: int) -> Iterator[str]:
    train, size = job.settings.train, sizes.rollout_batch_size or sizes.batch_size
    updates = max(sizes.updates_per_rollout, 1)
    if train.max_steps or rows:
        rollouts = (
            math.ceil(train.max_steps / updates) if train.max_steps else max(1, round(train.epochs * rows / size))
        )
        yield f"{count(rollouts * updates, 'steps')} = {count(rollouts, 'rollouts')} x {count(updates, 'updates')}"
    else:
        yield f"{train.epochs:g} epochs"
    completions = size * sizes.group_size
    yield f"a rollout is {count(size, 'prompts')} x {sizes.group_size} = {count(completions, 'completions')}"
