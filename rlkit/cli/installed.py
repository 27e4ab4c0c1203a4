"""The verbs ``plugins``: what is installed and where it comes from, a new package, and the conformance suite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

KINDS = "stage, algorithm, domain, model, reward, loss_term, data_format, quantizer, rollout, engine, callback"
"""As in ``rlkit.component``, which would load pydantic before ``--help`` is shown."""

Name = Annotated[str, typer.Argument(metavar="NAME", help="What recipes will call it, such as short-answers.")]
Kind = Annotated[str, typer.Option(metavar="KIND", help=f"One of: {KINDS}.")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Where the package goes.", show_default="rlkit-NAME")]
Wanted = Annotated[str, typer.Argument(metavar="PKG", help="A folder with a pyproject.toml, a package, or a module.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(rich_markup_mode=None)
    group.callback(invoke_without_command=True)(plugins)
    group.command("new")(new)
    group.command("check")(check)
    app.add_typer(group, name="plugins")


def plugins(context: typer.Context, as_json: AsJson = False) -> None:
    """List, write and try plugins.

    Without a command it lists what is installed: every component that a recipe can name, with its kind, and the package
    and version that provide it.
    """
    if context.invoked_subcommand is not None:
        return
    from rlkit import component
    from rlkit.plugins import load_plugins

    registry = load_plugins()
    kinds = component.KINDS
    rows = [(kind, name, *registry.origin(kind, name)) for kind in kinds for name in registry.components(kind)]
    _show(("kind", "name", "package", "version"), rows, as_json)


def new(name: Name, kind: Kind, out: Out = None) -> None:
    """Write the package of a new plugin.

    A module with settings and code that work, a pyproject.toml with its entry point, a README and a test that passes.
    """
    from rlkit.plugin_kit.scaffold import template_names, write_package

    folder = write_package(name, kind, out)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        typer.echo(path)
    typer.echo(f"next: edit {folder / template_names(name)['module']}.py, then pip install -e {folder}", err=True)


def check(package: Wanted, as_json: AsJson = False) -> None:
    """Try a plugin: the conformance suite.

    Loading, names, settings, error messages, a run on a CPU with generated data, and whether the order of a group's
    completions matters. Exit code 2 where something fails.
    """
    from rlkit.plugin_kit.check import check_plugin, failures

    checks = check_plugin(package)
    _show(("part", "check", "outcome", "reason"), checks, as_json)
    if failures(checks):
        raise typer.Exit(2)


def _show(headings: Sequence[str], rows: Sequence[tuple[str, ...]], as_json: bool) -> None:
    if as_json:
        import json

        typer.echo(json.dumps([dict(zip(headings, row)) for row in rows], indent=2))
    else:
        _print_table(headings, rows)


def _print_table(headings: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=heading != "reason")
    for row in rows:
        table.add_row(*map(escape, row))
    Console(width=None if Console().is_terminal else 200).print(table)
