"""Recipes: a YAML file and overrides become a typed ``Recipe``, or every problem at once with its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, WithJsonSchema

from rlkit.component import Settings, Slot
from rlkit.config.engines import LocalSettings
from rlkit.config.models import CausalLMSettings
from rlkit.config.monitor import MonitorSettings
from rlkit.errors import DataError, RecipeError
from rlkit.plugins import Registry, load_plugins
from rlkit.recipe_checks import cross_checks
from rlkit.recipe_errors import Problem, Text, booleans, translate
from rlkit.recipe_overrides import apply_overrides
from rlkit.recipe_schema import narrow
from rlkit.recipe_yaml import Document, Keys, YamlProblem, dump, parse_document, read_text

_RUN_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_STAGE_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}"
_TAKEN = ("logs",)  # folders that every run directory has


def _run_name(name: str) -> str:
    if not re.fullmatch(_RUN_NAME, name) or name.endswith("."):
        raise ValueError("not a name for a folder; use letters, digits, '_', '-' and '.', a letter or a digit first")
    return name


def _stage_name(name: str) -> str:
    if not re.fullmatch(_STAGE_NAME, name):
        raise ValueError("not a name for a stage; use letters, digits, '_' and '-', a letter or a digit first")
    if name.lower() in _TAKEN:
        raise ValueError("the name of another folder in the run directory; choose another")
    return name


RunName = Annotated[str, AfterValidator(_run_name), WithJsonSchema({"type": "string", "pattern": f"^{_RUN_NAME}$"})]
StageName = Annotated[str, AfterValidator(_stage_name)]


class Recipe(Settings):
    """What a run does: a domain, a model, and stages in their order."""

    name: RunName
    """The run's name, and that of its folder under ``runs/``."""
    seed: int = Field(0, ge=0, lt=2**32)
    """The seed of everything random."""
    model: Annotated[Settings, Slot("model", "causal_lm")] = CausalLMSettings()
    """The model that the first training stage starts from."""
    domain: Annotated[Settings, Slot("domain")]
    """What is learned: which data, as which prompts and answers."""
    stages: dict[StageName, Annotated[Settings, Slot("stage", "train")]] = Field(min_length=1)
    """The stages by name, run in this order; each has a folder in the run directory."""
    engine: Annotated[Settings, Slot("engine", "local")] = LocalSettings()
    """Where training runs."""
    callbacks: tuple[Annotated[Settings, Slot("callback")], ...] = ()
    """What is told of rollouts, steps and checkpoints."""
    monitor: MonitorSettings | None = MonitorSettings()
    """What counts as sick while a policy trains, and what is done about it; null: nobody looks."""


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe that passed every check.

    Args:
        recipe: the recipe, its slots filled by installed settings.
        source: the file, or what else it comes from.
        text: the file as it was read; empty where there is none.
        tree: the recipe as plain data, all defaults written out.
        written: where its parts stand.
    """

    recipe: Recipe
    source: str
    text: str
    tree: dict[str, Any]
    written: Text


@cache
def recipe_model(registry: Registry) -> type[Recipe]:
    """Return the recipe type whose slots are unions over what is installed.

    Raises:
        PluginError: settings contain themselves through their slots.
    """
    narrowed = narrow(Recipe, registry)
    assert issubclass(narrowed, Recipe)
    return narrowed


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe file, put the overrides in, and check everything but the data that it names.

    Args:
        path: a YAML file.
        overrides: ``dotted.key=value``, the value in YAML.

    Raises:
        RecipeError: every problem that was found, as ``path:line:column: dotted.key: what is wrong; what to do``.
        PluginError: a plugin does not load.
    """
    text = read_text(Path(path))
    try:
        document = parse_document(text)
    except YamlProblem as problem:
        raise RecipeError(f"{path}:{problem.mark}: {problem.message}") from problem
    tree, origins = apply_overrides(document.tree, overrides)
    written = Text(str(path), document, origins)
    recipe = _checked(recipe_model(load_plugins()), tree, written)
    return LoadedRecipe(recipe, str(path), text, plain_tree(recipe), written)


def recipe_from_tree(
    tree: Mapping[str, Any], overrides: Sequence[str] = (), *, source: str = "recipe", registry: Registry | None = None
) -> LoadedRecipe:
    """Check a recipe that comes as plain data; problems are named by ``source`` and dotted key.

    Args:
        tree: the recipe; settings objects are welcome wherever a mapping is.
        overrides: ``dotted.key=value``, the value in YAML.
        source: what messages call it.
        registry: what is installed; none: what ``load_plugins`` finds.

    Raises:
        RecipeError: every problem that was found.
        PluginError: a plugin does not load.
    """
    tree, origins = apply_overrides(dict(tree), overrides)
    written = Text(source, Document(), origins)
    recipe = _checked(recipe_model(registry or load_plugins()), tree, written)
    return LoadedRecipe(recipe, source, "", plain_tree(recipe), written)


def _checked(model: type[Recipe], tree: dict[str, Any], text: Text) -> Recipe:
    recipe, problems = _validate(model, tree)
    if recipe is None or text.document.problems:
        raise text.error(problems)
    return recipe


def _validate(model: type[Recipe], tree: dict[str, Any]) -> tuple[Recipe | None, list[Problem]]:
    problems = [*booleans(model, tree), *cross_checks(model, tree)]
    try:
        recipe = model.model_validate(tree)
    except ValidationError as error:
        return None, problems + translate(model, tree, error)
    return (None if problems else recipe), problems


def plain_tree(settings: Settings) -> dict[str, Any]:
    """Return settings as plain data, every default written out, ``type`` first in each mapping."""
    tree = _type_first(settings.model_dump(mode="json"))
    assert isinstance(tree, dict)
    return tree


def _type_first(value: Any) -> Any:
    if isinstance(value, list):
        return [_type_first(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    keys = [key for key in ("type",) if key in value] + [key for key in value if key != "type"]
    return {key: _type_first(value[key]) for key in keys}


def resolved_yaml(recipe: Recipe) -> str:
    """Return the whole recipe, all defaults written out, as YAML that loads to an equal recipe."""
    return dump(plain_tree(recipe))


def check_data(recipe: Recipe | Mapping[str, Any], written: Text | None = None) -> None:
    """Read the data files that a recipe, or some parts of one, names, as ``Settings.check`` of each part does.

    Args:
        recipe: the recipe; of parts of one, as it would nest them: ``{"stages": {"sft": ...}}``.
        written: where its parts stand; none: they are named by dotted key alone.

    Raises:
        DataError: every problem found, by the file and line of data, or else of the recipe.
    """
    _all_checks(((keys, settings.check) for keys, settings in placed_settings(recipe)), written)


def check_online(recipe: Recipe, written: Text | None = None) -> None:
    """Connect to the servers that a recipe names, as ``Settings.check_online`` of each part does.

    Args:
        recipe: the recipe.
        written: where its parts stand.

    Raises:
        DataError: every server that cannot be reached, by its place in the recipe.
    """
    _all_checks(((keys, settings.check_online) for keys, settings in placed_settings(recipe)), written)


def _all_checks(checks: Iterable[tuple[Keys, Callable[[], None]]], written: Text | None) -> None:
    problems: dict[str, str] = {}  # what two parts say alike is said once, where it stands first
    for keys, check in checks:
        try:
            check()
        except DataError as error:
            for problem in error.problems:
                problems.setdefault(problem, _placed(keys, problem, written))
    if problems:
        raise DataError(*problems.values())


def _placed(keys: Keys, problem: str, written: Text | None) -> str:
    """Return a problem with the place of the part that has it, unless it begins with the line of a file of data."""
    begins = problem.partition(": ")[0]
    if not keys or re.search(r":\d+$", begins):
        return problem
    key = ".".join(map(str, keys))
    message = problem.removeprefix(f"{key}: ")
    named = begins.startswith(f"{key}.")  # it tells the field by itself
    if written is None:
        return problem if named else f"{key}: {message}"
    if not named:
        return written.line(Problem(keys, message))
    field = (int(part) if part.isdigit() else part for part in begins.removeprefix(f"{key}.").split("."))
    return written.line(Problem((*keys, *field), problem.partition(": ")[2]))


def data_read(recipe: Recipe) -> list[str]:
    """Return the types of the parts that ``check_data`` reads files for."""
    return [str(getattr(part, "type", "")) for part in all_settings(recipe) if _reads(part)]


def _reads(part: Settings) -> bool:
    return type(part).check is not Settings.check and hasattr(part, "type")


def json_schema(registry: Registry) -> dict[str, Any]:
    """Return the JSON Schema of recipes under what is installed."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **recipe_model(registry).model_json_schema()}


def all_settings(value: Any) -> Iterator[Settings]:
    """Yield settings and all settings inside them."""
    return (settings for _, settings in placed_settings(value))


def placed_settings(value: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Settings]]:
    """Yield settings and all settings inside them, each with the path of keys that leads to it.

    Args:
        value: settings, or a mapping or list of some.
        keys: the path to it.
    """
    entries: Iterable[tuple[str | int, Any]] = ()
    if isinstance(value, Settings):
        yield keys, value
        entries = [(name, getattr(value, name)) for name in type(value).model_fields]
    elif isinstance(value, dict):
        entries = value.items()
    elif isinstance(value, list | tuple):
        entries = enumerate(value)
    for key, entry in entries:
        yield from placed_settings(entry, (*keys, key))
