"""Verbs for data: ``data describe`` for recommendation, ``data preview`` for chat."""

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
    group.command()(preview)
    app.add_typer(group, name="data")


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


def preview(
    source: Annotated[
        Path, typer.Argument(metavar="FILE|DIR|RECIPE", help="Chat data, or a recipe of the domain chat.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings of the recipe.")] = None,
    rows: Annotated[int, typer.Option("--rows", "-n", min=0, help="How many rows of each source are shown.")] = 3,
    model: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Whose chat template and tokens.", show_default="the built-in ones"),
    ] = None,
) -> None:
    """Preview chat data: what it was taken for and why, bad rows, lengths, and what of a row is trained on.

    A recipe is a .yaml file; anything else is data. Without a terminal, marks stand for colors.
    """
    domain = _chat_settings(source, overrides or [], model)
    from rich.console import Console

    from rlkit.chat.preview import Shown, show
    from rlkit.chat.render import Renderer
    from rlkit.config.models import CausalLMSettings
    from rlkit.models.load import tokenizer_of

    sources = {kind: Shown(*found) for kind, found in _sources(domain).items()}
    tokenizer = tokenizer_of(CausalLMSettings(path=model))
    console = Console(soft_wrap=True) if Console().is_terminal else Console(width=200, soft_wrap=True)
    show(console, sources, Renderer(tokenizer, domain.system), rows)


def _chat_settings(source: Path, overrides: list[str], model: str | None) -> Any:
    """Return the chat domain of a recipe, or one whose only source is a file, as what its first rows are."""
    from rlkit.config.chat import ChatFilesSettings, ChatSettings
    from rlkit.errors import RecipeError
    from rlkit.recipe import load_recipe

    if source.suffix in (".yaml", ".yml"):
        domain = load_recipe(source, overrides).recipe.domain
        if not isinstance(domain, ChatSettings):
            name = getattr(domain, "type", "")
            raise RecipeError(f"{source}: domain: only chat data can be previewed, got {name!r}; see data describe")
        return domain
    if overrides:
        raise RecipeError(
            f"command line: {overrides[0]!r}: a data file has no settings; name a recipe, or leave it out"
        )
    from rlkit.chat.data.read import kind_of

    return ChatSettings(**{kind_of(source): ChatFilesSettings(path=str(source))})


def _sources(domain: Any) -> dict[str, tuple[Any, Any]]:
    """Return the rows and the file reports of every source."""
    from rlkit.chat.data.read import read_rows
    from rlkit.config.chat import ChatFilesSettings
    from rlkit.plugins import load_plugins

    found: dict[str, tuple[Any, Any]] = {}
    for kind, settings in domain.sources().items():
        if isinstance(settings, ChatFilesSettings):
            found[kind] = read_rows(settings, kind)
        else:
            data = load_plugins().get("data_format", settings.type).load()(settings, kind)
            found[kind] = (data.splits, data.reports)
    return found


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
