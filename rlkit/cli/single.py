"""Single verbs, ``sft`` and ``grpo``: one training stage and its evaluation, without a recipe file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from rlkit.cli.recipes import DryRun, Fresh, Out, Smoke, launch

Model = Annotated[str | None, typer.Option(metavar="DIR", help="A Hugging Face model.", show_default="the nano preset")]
Data = Annotated[
    Path | None,
    typer.Option(metavar="DIR|JSONL", help="MiniOneRec's format, or chat rows.", show_default="the generated demo"),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Settings of the stage (algorithm.group_size=8, train.learning_rate=1e-5) or of the recipe (seed=1).",
    ),
]
_OF_THE_STAGE = ("algorithm", "train", "start_from")
_ALGORITHMS: dict[tuple[str, str], dict[str, Any]] = {
    ("sft", "recommendation"): {"type": "sft"},
    ("sft", "chat"): {"type": "sft"},
    ("grpo", "recommendation"): {"type": "grpo", "rewards": [{"type": "item_match"}, {"type": "rank_discount"}]},
    ("grpo", "chat"): {
        "type": "grpo",
        "rollout": {"type": "sample"},
        "rewards": [{"type": "exact_match"}],
    },
}


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (sft, grpo):
        app.command()(verb)


def sft(
    overrides: Overrides = None,
    model: Model = None,
    data: Data = None,
    out: Out = None,
    dry_run: DryRun = False,
    smoke: Smoke = False,
    fresh: Fresh = False,
) -> None:
    """Fine-tune a model on demonstrations, then evaluate it.

    A folder as --data means recommendation, a .jsonl file with "prompt" and "answer" means chat. KEY=VALUE may begin
    with "algorithm." or "train." (of this stage), or be a dotted key of the whole recipe, which --dry-run shows.
    """
    _run(single_recipe("sft", model, data), overrides or [], out, dry_run=dry_run, smoke=smoke, fresh=fresh)


def grpo(
    overrides: Overrides = None,
    model: Model = None,
    data: Data = None,
    out: Out = None,
    dry_run: DryRun = False,
    smoke: Smoke = False,
    fresh: Fresh = False,
) -> None:
    """Train a model by rewards (GRPO), then evaluate it.

    A folder as --data means recommendation, a .jsonl file with "prompt" and "answer" means chat. KEY=VALUE may begin
    with "algorithm." or "train." (of this stage), or be a dotted key of the whole recipe, which --dry-run shows.
    """
    _run(single_recipe("grpo", model, data), overrides or [], out, dry_run=dry_run, smoke=smoke, fresh=fresh)


def single_recipe(verb: str, model: str | None, data: Path | None) -> dict[str, Any]:
    """Return the recipe that a single verb stands for.

    Raises:
        RecipeError: the data is neither a folder nor a JSONL file.
    """
    domain = _domain(data)
    first = {"semantic_ids": {"type": "semantic_ids"}} if domain["type"] == "recommendation" else {}
    stage = {"algorithm": _ALGORITHMS[verb, domain["type"]]}
    recipe: dict[str, Any] = {
        "name": verb,
        "domain": domain,
        "stages": {**first, verb: stage, "evaluate": {"type": "evaluate"}},
    }
    return {**recipe, "model": {"path": model}} if model else recipe


def stage_overrides(verb: str, overrides: Sequence[str]) -> list[str]:
    """Put the stage's path before the overrides that are relative to it."""
    return [
        f"stages.{verb}.{entry}" if entry.partition("=")[0].split(".")[0] in _OF_THE_STAGE else entry
        for entry in overrides
    ]


def _domain(data: Path | None) -> dict[str, Any]:
    from rlkit.errors import RecipeError

    if data is None:
        return {"type": "recommendation"}
    if data.is_dir():
        return {"type": "recommendation", "data": {"type": "minionerec", "path": str(data)}}
    if data.is_file() and data.suffix == ".jsonl":
        return {"type": "chat", "prompts": str(data)}
    wrong = "not a folder or a .jsonl file" if data.exists() else "does not exist"
    raise RecipeError(
        f"--data: {wrong}, got {str(data)!r}; name a folder in MiniOneRec's format, or a .jsonl file of chat rows"
    )


def _run(
    recipe: dict[str, Any], overrides: list[str], out: Path | None, *, dry_run: bool, smoke: bool, fresh: bool
) -> None:
    from rlkit.recipe import recipe_from_tree

    verb = recipe["name"]
    loaded = recipe_from_tree(recipe, stage_overrides(verb, overrides), source=f"rlkit {verb}")
    plain = loaded.tree
    if not plain["model"].get("path") and "preset" in plain["model"]:
        typer.echo(f"model: the {plain['model']['preset']} preset, untrained (choose one with --model)", err=True)
    if plain["domain"].get("data", {}).get("type") == "demo":
        typer.echo("data: the generated demo (choose yours with --data)", err=True)
    launch(loaded, out, dry_run=dry_run, smoke=smoke, fresh=fresh)
