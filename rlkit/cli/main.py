"""The console script: the verbs, and how errors reach the terminal."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from rlkit.cli import chat, data, doctor, installed, recipes, results, rewards, single, why
from rlkit.errors import RlkitError

CONTINUED = ("run", *single.VERBS)  # verbs whose work goes on when the same command is given again

app = typer.Typer(
    name="rlkit",
    help="A unified RLHF toolkit: recipes in, run directories out.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from rlkit import __version__

        typer.echo(f"rlkit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


for _module in (recipes, single, results, why, chat, data, rewards, installed, doctor):
    _module.register(app)


def main() -> None:
    """Run the command line; errors that the user can mend are printed without a traceback."""
    try:
        app()
    except RlkitError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code == 130 and sys.argv[1:2] and sys.argv[1] in CONTINUED:
            command = "the same command without --fresh" if "--fresh" in sys.argv else "the same command"
            print(f"interrupted; {command} goes on from the last checkpoint", file=sys.stderr)
        raise
