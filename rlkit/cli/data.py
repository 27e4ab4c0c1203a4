"""Verbs for data: ``data describe``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rlkit.component import Settings


def register(app: typer.Typer) -> None:
    """Add the verbs below ``data``."""
    group = typer.Typer(help="Look at data.", rich_markup_mode=None, no_args_is_help=True)
    group.command()(describe)
    group.callback()(_group)  # with one command only, Typer would swallow the name ``describe``
    app.add_typer(group, name="data")


def _group() -> None:
    pass


def describe(
    source: Annotated[Path, typer.Argument(metavar="RECIPE|DIR", help="A recipe, or a folder in MiniOneRec's format.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings of the recipe.")] = None,
) -> None:
    """Describe recommendation data.

    Rows per split, cold targets, repeats, ambiguous semantic IDs, history lengths.
    """
    from rlkit.plugins import load_plugins
    from rlkit.recsys.data.describe import describe as describe_data
    from rlkit.recsys.data.describe import description_rows

    settings: Any = _settings(source, overrides or [])
    data = load_plugins().get("data_format", settings.type).load()(settings)
    _print_table(data.name, description_rows(describe_data(data, data.semantic_ids)))


def _settings(source: Path, overrides: list[str]) -> Settings:
    from rlkit.errors import RecipeError
    from rlkit.recipe import load_recipe, recipe_from_tree

    if source.is_dir():
        tree = {"name": "describe", "domain": {"type": "recommendation", "data": {"path": str(source)}}}
        stages = {"semantic_ids": {"type": "semantic_ids"}}
        loaded = recipe_from_tree({**tree, "stages": stages}, overrides, source=str(source))
    else:
        loaded = load_recipe(source, overrides)
    data = getattr(loaded.recipe.domain, "data", None)
    if data is None:
        name = getattr(loaded.recipe.domain, "type", "")
        raise RecipeError(
            f"{source}: domain: only recommendation data can be described, got {name!r}; name another recipe"
        )
    return data


def _print_table(title: str, rows: list[tuple[str, ...]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    header, *body = rows
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, heading in enumerate(header):
        table.add_column(heading, justify="right" if index else "left", no_wrap=True)
    for row in body:
        table.add_row(*row)
    Console(width=None if Console().is_terminal else 200).print(table)
