"""Verbs below ``rewards``: list what is installed, and score a file of rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rlkit.cli import reward_lab

if TYPE_CHECKING:
    from rlkit.component import Settings

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings of the reward; model=DIR is path=DIR.")
]


def register(app: typer.Typer) -> None:
    """Add the verbs below ``rewards``."""
    group = typer.Typer(
        help="List, try and apply rewards.",
        rich_markup_mode=None,
        no_args_is_help=True,
    )
    group.command(name="list")(list_rewards)
    group.command()(score)
    group.command(name="try")(reward_lab.try_recipe)
    group.command()(reward_lab.replay)
    app.add_typer(group, name="rewards")


def list_rewards() -> None:
    """List the rewards that are installed: the domains they are made for, and what each one says."""
    from rlkit.plugins import load_plugins

    registry = load_plugins()
    rows = []
    for name, component in registry.components("reward").items():
        about = (component.settings.__doc__ or "").strip().splitlines()[0]
        package = registry.origin("reward", name).package
        rows.append((name, ", ".join(component.settings.domains) or "all", package, about))
    _print_table(("reward", "domains", "package", "what it is"), rows)


def score(
    reward: Annotated[str, typer.Argument(metavar="REWARD", help="A reward's name, such as model.")],
    data: Annotated[Path, typer.Option(metavar="FILE", help="JSONL rows.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the scored rows go.")],
    overrides: Overrides = None,
    rendered: Annotated[bool, typer.Option("--rendered", help="Prompts are rendered by a chat template.")] = False,
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="Where a model computes.")] = "auto",
) -> None:
    """Score completions with a reward, such as a trained model: ``rewards score model --data F --out F model=DIR``.

    A row {"prompt", "completion"} gains "score", "parts", "error" and "ms"; {"prompt", "chosen", "rejected"} gains
    "chosen_score" and "rejected_score". What cannot be scored says why in "error". A prompt is the text of a user, or
    a list of messages; the reward model's chat template renders it, unless --rendered says that it is rendered already.
    """
    settings = reward_settings(reward, overrides or [])
    _refuse(settings, data, out)
    from rlkit.policy.supervised import close_rewards
    from rlkit.reward_models.score_file import check_place, read_rows, score_rows, summary, write_rows

    rows = read_rows(data)
    check_place(out)
    scorer = _scorer(settings, len(rows), device)
    try:
        scored = score_rows(scorer, settings, rows, rendered)
    finally:
        close_rewards([scorer])
    write_rows(out, scored)
    typer.echo(f"{reward}: {summary(scored)}; {out}")


def reward_settings(name: str, overrides: Sequence[str]) -> Settings:
    """Return the settings of a reward out of ``key=value``.

    Raises:
        PluginError: no reward has this name.
        RecipeError: every setting that is wrong.
        DataError: what the settings name is missing or wrong.
    """
    from pydantic import ValidationError

    from rlkit.plugins import load_plugins
    from rlkit.recipe_errors import Text, booleans, translate
    from rlkit.recipe_overrides import apply_overrides
    from rlkit.recipe_schema import narrow
    from rlkit.recipe_yaml import Document

    registry = load_plugins()
    form = narrow(registry.get("reward", name).settings, registry)
    tree, origins = apply_overrides({"type": name}, [_path_for_model(form, entry) for entry in overrides])
    problems = booleans(form, tree)
    try:
        settings = form.model_validate(tree)
    except ValidationError as error:
        problems += translate(form, tree, error)
    if problems:
        raise Text(f"reward {name}", Document(), origins).error(problems)
    settings.check()
    return settings


def _path_for_model(form: type[Settings], entry: str) -> str:
    fields = form.model_fields
    if entry.startswith("model=") and "path" in fields and "model" not in fields:
        return f"path={entry.removeprefix('model=')}"
    return entry


def _refuse(settings: Any, data: Path, out: Path) -> None:
    """Refuse what cannot be scored before anything heavy is imported.

    Raises:
        RecipeError: the reward reads no text, or the result would replace the data.
    """
    from rlkit.errors import RecipeError

    if settings.domains and "chat" not in settings.domains:
        raise RecipeError(
            f"reward {settings.type}: made for the domain {' or '.join(settings.domains)}, it reads no rows of text; "
            "choose another (`rlkit rewards list`)"
        )
    if out.exists() and data.exists() and out.samefile(data):
        raise RecipeError(f"--out: would replace the data, got {str(out)!r}; name another file")


def _scorer(settings: Any, rows: int, device: str) -> Any:
    """Load a reward, move it to its device and let it show progress.

    Raises:
        PluginError: it scores rollouts only.
    """
    from rlkit.engines.local import resolve_device
    from rlkit.errors import PluginError
    from rlkit.models.load import quiet
    from rlkit.plugins import load_plugins
    from rlkit.policy.supervised import SupervisedReward

    if settings.supervised:
        return SupervisedReward(settings, None)
    quiet()
    found = load_plugins().get("reward", settings.type).load()(settings, None)
    if not callable(getattr(found, "judge", None)):
        raise PluginError(
            f"reward {settings.type}: scores rollouts, not rows; build it with rlkit.policy.text_rewards.TextReward"
        )
    if hasattr(found, "to"):
        found.to(resolve_device(device))
    if hasattr(found, "progress"):
        found.progress = _progress(settings.type, rows)
    return found


def _progress(name: str, rows: int) -> Any:
    """Return what a reward calls with the share that is done."""
    from rlkit.progress import StageProgress

    shown = StageProgress(name, rows, unit="row")

    def progress(share: float) -> None:
        shown.advance(round(share * rows))
        shown.show(round(share * rows), {})
        if share >= 1:
            shown.close()

    return progress


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in header:
        table.add_column(heading, no_wrap=heading != header[-1])
    for row in rows:
        table.add_row(*row)
    Console(width=None if Console().is_terminal else 200).print(table)
