"""What is checked of a component without running it: its settings, its declarations, and what a typing error gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_args

from rlkit import records
from rlkit.component import Settings
from rlkit.errors import PluginError, RecipeError
from rlkit.plugin_kit.smoke import recipe_for
from rlkit.plugins import Registry, load_plugins
from rlkit.recipe import recipe_from_tree
from rlkit.recipe_yaml import Keys

UNKNOWN = "no_such_setting"


def check_settings(settings: type[Settings]) -> None:
    """Look for what makes settings of the house: frozen, closed, and explained.

    Raises:
        PluginError: every shortcoming.
    """
    problems = []
    for part in _with_inner(settings):
        name = part.__name__
        if not part.model_config.get("frozen") or part.model_config.get("extra") != "forbid":
            problems.append(f"{name}: must stay frozen and forbid unknown keys; leave model_config as it is")
        if "__doc__" not in vars(part) or not part.__doc__:
            problems.append(f"{name}: no docstring; say what it is in a line")
        problems += [
            f"{name}.{field}: no docstring; put one below the field"
            for field, info in part.model_fields.items()
            if field != "type" and not info.description
        ]
    if problems:
        raise PluginError(*problems)


def _with_inner(settings: type[Settings]) -> Iterator[type[Settings]]:
    """Yield settings and the settings inside them, each once."""
    open_, done = [settings], set()
    while open_:
        part = open_.pop()
        if part not in done:
            done.add(part)
            yield part
            open_ += [inner for field in part.model_fields.values() for inner in _inner(field.annotation)]


def _inner(annotation: Any) -> list[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation] if annotation is not Settings else []
    return [inner for argument in get_args(annotation) for inner in _inner(argument)]


def check_schema(settings: type[Settings]) -> None:
    """Make the JSON Schema that editors use, and look at its field ``type``.

    Raises:
        PluginError: there is none.
    """
    try:
        schema = settings.model_json_schema()
        json.dumps(schema)
    except Exception as error:  # pydantic raises whatever a third party's annotation does
        raise PluginError(f"no JSON Schema: {type(error).__name__}: {error}; simplify the annotation") from error
    assert schema["properties"]["type"].get("const") == settings.model_fields["type"].default


def check_unknown_key(kind: str, settings: type[Settings]) -> None:
    """Misspell a setting, and look for one line about it that names the place.

    Raises:
        PluginError: there is none, or more than one.
    """
    tree, keys = recipe_for(kind, settings)
    _place(tree, keys)[UNKNOWN] = 1
    try:
        recipe_from_tree(tree, source="check")
    except RecipeError as error:
        lines = [line for line in error.problems if UNKNOWN in line]
    else:
        raise PluginError(f"{UNKNOWN}: accepted; leave model_config as it is, which forbids unknown keys")
    wanted = f"check: {'.'.join(map(str, keys))}.{UNKNOWN}: no such setting"
    if len(lines) != 1 or not lines[0].startswith(wanted):
        raise PluginError(f"{UNKNOWN}: expected one line that begins with {wanted!r}, got {lines!r}")


def _place(tree: Any, keys: Keys) -> dict[str, Any]:
    for key in keys:
        tree = tree[key]
    return tree


def check_declarations(kind: str, settings: type[Settings]) -> None:
    """Look at what an algorithm or a domain declares.

    Raises:
        PluginError: something is missing, or nobody knows it.
    """
    problems = []
    registry = load_plugins()
    if kind == "algorithm":
        problems += _unknown("produces", settings.produces, {"policy", "reward_model", "process_reward_model"})
        problems += _unknown("consumes", settings.consumes, _records() | _artefacts(registry))
    if kind == "domain":
        problems += _unknown("produces", settings.produces, _records())
        measured = (*getattr(settings, "valid_metrics", ()), "reward")
        if getattr(settings, "best_by", "reward") not in measured:
            problems.append(f"best_by: must be one of {', '.join(measured)}, got {settings.best_by!r}")  # type: ignore[attr-defined]
    known = set(registry.components("domain"))
    problems += [
        f"domains: none is called {name!r}; choose of {sorted(known)}" for name in settings.domains if name not in known
    ]
    if problems:
        raise PluginError(*problems)


def _unknown(name: str, declared: tuple[str, ...], known: set[str]) -> list[str]:
    if not declared:
        return [f"{name}: declares nothing; choose of {', '.join(sorted(known))}"]
    strange = [entry for entry in declared if entry not in known]
    return [f"{name}: nobody knows {', '.join(strange)}; choose of {', '.join(sorted(known))}"] if strange else []


def _records() -> set[str]:
    classes = {name for name, value in vars(records).items() if isinstance(value, type)}
    return {name for name in classes if getattr(records, name).__module__ == records.__name__} - {"Source"}


def _artefacts(registry: Registry) -> set[str]:
    made = {
        name
        for kind in ("stage", "algorithm")
        for part in registry.components(kind).values()
        for name in part.settings.produces
    }
    return made
