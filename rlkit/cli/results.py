"""Verbs for finished runs: ``evaluate`` and ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (evaluate, compare):
        app.command()(verb)


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, such as runs/minionerec_grpo.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings of its evaluate stage, such as num_beams=100."),
    ] = None,
) -> None:
    """Evaluate a finished run again."""
    from rlkit.run import evaluate_run

    folder = evaluate_run(run, overrides or ())
    typer.echo(f"written to {folder}")


def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="A run directory with an evaluation.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another one, on the same rows.")],
) -> None:
    """Compare two runs by a paired test.

    Both must have been evaluated on the same rows; differences are RUN_B minus RUN_A.
    """
    from rlkit.report.compare import compare_runs
    from rlkit.report.tables import comparison_table, show

    show(comparison_table(compare_runs(run_a, run_b)))
