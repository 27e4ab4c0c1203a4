"""Verbs for recipes: ``run``, ``validate``, ``schema`` and ``init``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rlkit.recipe import LoadedRecipe

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, such as recipes/minionerec_grpo.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings that replace the recipe's, such as stages.sft.train.epochs=2."),
]
Out = Annotated[Path | None, typer.Option(help="The run directory.", show_default="runs/NAME", file_okay=False)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the resolved recipe and its arithmetic; run nothing.")]
Smoke = Annotated[bool, typer.Option("--smoke", help="Run every stage tiny: a few steps of a small model.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Delete what an earlier call made, and start over.")]
Domain = Annotated[str, typer.Option(help="What the starter recipe is about: recommendation or chat.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (run, validate, schema, init):
        app.command()(verb)


def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    out: Out = None,
    dry_run: DryRun = False,
    from_stage: Annotated[str | None, typer.Option("--from", metavar="STAGE", help="Redo from this stage on.")] = None,
    until_stage: Annotated[str | None, typer.Option("--until", metavar="STAGE", help="Stop after this stage.")] = None,
    smoke: Smoke = False,
    fresh: Fresh = False,
    preflight: Annotated[bool, typer.Option(help="Look at data, rewards and disk before a stage trains.")] = True,
) -> None:
    """Run a recipe, or go on with it.

    Finished stages are skipped; an interrupted one is continued from its last checkpoint.
    """
    from rlkit.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    launch(
        loaded,
        out,
        dry_run=dry_run,
        smoke=smoke,
        fresh=fresh,
        from_stage=from_stage,
        until_stage=until_stage,
        checks=preflight,
    )


def launch(
    loaded: LoadedRecipe,
    out: Path | None,
    *,
    dry_run: bool,
    smoke: bool,
    fresh: bool,
    from_stage: str | None = None,
    until_stage: str | None = None,
    checks: bool = True,
) -> None:
    """Run a recipe that is loaded, or show what a run would do."""
    if smoke:
        from rlkit.recipe_smoke import smoke_recipe

        loaded = smoke_recipe(loaded)
    if dry_run:
        from rlkit.cli.dry_run import dry_run_text

        typer.echo(dry_run_text(loaded))
        return
    from rlkit.run import run as run_recipe

    folder = out or Path("runs") / loaded.recipe.name
    run_recipe(loaded, folder, from_stage=from_stage, until_stage=until_stage, fresh=fresh, checks=checks)


def validate(
    recipe: RecipeFile,
    overrides: Overrides = None,
    no_data: Annotated[bool, typer.Option("--no-data", help="Do not read the data files.")] = False,
    cases: Annotated[bool, typer.Option("--cases", help="Score the golden cases of rewards, too.")] = False,
    online: Annotated[bool, typer.Option("--online", help="Connect to the servers that rewards name, too.")] = False,
) -> None:
    """Check a recipe and its data files.

    Every problem is listed with file, line and column; the exit code is 2 if there is any. Imports no torch, except
    for --cases.
    """
    from rlkit.recipe import check_data, check_online, data_read, load_recipe

    loaded = load_recipe(recipe, overrides or ())
    stages = ", ".join(loaded.recipe.stages)
    typer.echo(f"{recipe}: the recipe is valid: settings, names, references and batch sizes fit (stages: {stages})")
    if no_data:
        typer.echo("data: not read (--no-data)")
    else:
        check_data(loaded.recipe, loaded.written)
        read = ", ".join(data_read(loaded.recipe))
        typer.echo(f"data: read without a problem: {read}" if read else "data: the recipe names no files to read")
    if online:
        check_online(loaded.recipe, loaded.written)
        typer.echo("servers: those that the recipe names answer")
    if cases:
        _check_cases(loaded)


def _check_cases(loaded: LoadedRecipe) -> None:
    """Score golden cases, and say which rewards had to be left out.

    Raises:
        RecipeError: every case with another score than it should have.
    """
    from rlkit.errors import RecipeError
    from rlkit.models.load import quiet
    from rlkit.reward_lab.cases import check_cases
    from rlkit.run_directory import RunDirectory

    quiet()
    report = check_cases(loaded.recipe, RunDirectory(Path("runs") / loaded.recipe.name))
    for part in report.skipped:
        typer.echo(f"cases: skipped {part.name}: {part.reason}")
    if report.problems:
        raise RecipeError(*(loaded.written.line(problem) for problem in report.problems))
    if report.checked:
        typer.echo(f"cases: {report.checked} scored as they should")
    elif not report.skipped:
        typer.echo("cases: the recipe has none; they stand beside a reward (rewards[].cases)")


def schema() -> None:
    """Print the JSON Schema of recipes, for editors.

    It covers what is installed, plugins included. With the YAML extension of VS Code, save it as schema.json and open
    a recipe with the line "# yaml-language-server: $schema=schema.json".
    """
    import json

    from rlkit.plugins import load_plugins
    from rlkit.recipe import json_schema

    typer.echo(json.dumps(json_schema(load_plugins()), indent=2))


def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.", dir_okay=False)] = Path(
        "recipe.yaml"
    ),
    domain: Domain = "recommendation",
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it is there.")] = False,
) -> None:
    """Write a commented starter recipe."""
    from rlkit.cli.starter import write_starter

    write_starter(file, domain, force)
    typer.echo(f"{file}: written; next: rlkit run {file} --smoke")
