"""Verbs of the reward lab: ``rewards try`` and ``rewards replay``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rlkit.reward_lab.trial import Trial

SHOWN = 3
"""Completions shown of the best of each kind."""


def try_recipe(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe with rewards.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings of the recipe.")] = None,
    count: Annotated[int, typer.Option("-n", min=1, help="Prompts.")] = 64,
    stage: Annotated[str | None, typer.Option(help="Whose rewards.", show_default="the first with any")] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Where its trained models lie.", show_default="runs/NAME", exists=True, file_okay=False),
    ] = None,
) -> None:
    """Try a recipe's rewards before a run: on reference answers, on samples of the model, on hostile answers.

    Shows what each part gives to each kind of completion, what it costs, and warns where a hostile answer beats the
    honest ones. Samples need a model: --run names a run whose earlier stages are finished, else the recipe's own model.
    """
    from rlkit.models.load import quiet
    from rlkit.recipe import load_recipe
    from rlkit.reward_lab.trial import try_rewards
    from rlkit.run_directory import RunDirectory

    loaded = load_recipe(recipe, overrides or ())
    folder = run or Path("runs") / loaded.recipe.name
    quiet()
    _show(try_rewards(loaded.recipe, RunDirectory(folder), count, stage))


def _show(trial: Trial) -> None:
    from rlkit.reward_lab.tables import distributions, examples

    for part in trial.skipped:
        typer.echo(f"skipped: {part.name} {part.reason}")
    typer.echo(f"stage {trial.stage}; samples by: {trial.sampled_by}")
    _print(distributions(trial))
    _print(examples(trial, SHOWN))
    if trial.zero_variance is not None:
        share = f"{trial.zero_variance:.0%} of groups of {trial.group_size} have no difference in reward"
        typer.echo(f"expected zero-variance groups: {share}")
    for warning in trial.warnings:
        typer.echo(f"warning: {warning}")
    if not trial.warnings:
        typer.echo("no hostile answer beats the honest ones")


def replay(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run with a quarantine.jsonl.")],
    line: Annotated[int | None, typer.Option(min=1, help="One line of it.", show_default="all")] = None,
) -> None:
    """Score quarantined completions again, one after the other, with the settings that they failed under."""
    from rlkit.reward_lab.replay import again, read

    rows = list(read(run / "quarantine.jsonl", line))
    for (number, row), said in zip(rows, again(row for _, row in rows)):
        typer.echo(f"{number}: {row['reward']}: {said} (was: {row['error']})")


def _print(table: Any) -> None:
    from rich.console import Console

    Console(width=None if Console().is_terminal else 160).print(table)
