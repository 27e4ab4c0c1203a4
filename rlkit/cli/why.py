"""The verb ``why``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(why)


def why(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, such as runs/rlhf_pipeline.")],
) -> None:
    """Explain a run: what happened, why, what to change."""
    from rlkit.report.why import explain

    for line in explain(run):
        typer.echo(line)
