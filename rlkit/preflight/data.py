"""Rows per source and split, and whether the stages find the records that they learn from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlkit.job import Job
from rlkit.preflight.line import Line

KINDS = {
    "Prompt": ("prompts", "interactions"),
    "Demonstration": ("demonstrations",),
    "Preference": ("preferences",),
    "Feedback": ("feedback",),
    "StepLabels": ("steps",),
}
"""The sources that hold what an algorithm consumes, as domains count them."""

Counts = Mapping[str, Mapping[str, int]]


def counts_of(domain: Any) -> Counts:
    """Return rows by source and split; empty where a domain does not count them."""
    return domain.counts() if hasattr(domain, "counts") else {}


def data_lines(jobs: Sequence[Job]) -> Iterator[Line]:
    """Yield a line for each source, and one for each that a stage needs and does not have."""
    found = counts_of(jobs[0].domain)
    for source, splits in found.items():
        if any(splits.values()):
            yield Line("ok", f"data, {source}", ", ".join(f"{rows:,} {split}" for split, rows in splits.items()))
    for job in jobs:
        wanted = source_of(job, found)
        for split in ("train", "valid"):
            if wanted and not found[wanted].get(split):
                yield Line(
                    "failed", f"data, {wanted}",
                    f"no {split} rows, and stage {job.stage!r} learns from them; name a file in domain.{wanted}",
                )  # fmt: skip


def source_of(job: Job, found: Counts) -> str | None:
    """Return the source that a stage learns from; None where the domain does not count it."""
    consumed = getattr(getattr(job.settings, "algorithm", None), "consumes", ())
    kinds = [kind for record in consumed for kind in KINDS.get(record, ()) if kind in found]
    return kinds[0] if kinds else None
