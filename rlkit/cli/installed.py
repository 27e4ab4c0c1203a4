"""The verb ``plugins``: what is installed, and where it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(plugins)


def plugins(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """List what is installed.

    Every component that a recipe can name: its kind, its name, and the package and version that provide it.
    """
    from rlkit.component import KINDS
    from rlkit.plugins import load_plugins

    registry = load_plugins()
    rows = [(kind, name, *registry.origin(kind, name)) for kind in KINDS for name in registry.components(kind)]
    if as_json:
        import json

        typer.echo(json.dumps([dict(zip(("kind", "name", "package", "version"), row)) for row in rows], indent=2))
    else:
        _print_table(rows)


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("kind", "name", "package", "version"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=None if Console().is_terminal else 200).print(table)
