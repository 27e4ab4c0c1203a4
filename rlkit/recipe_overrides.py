"""``key=value`` on the command line: a dotted path into the recipe, and a value in YAML."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from rlkit.errors import RecipeError
from rlkit.recipe_yaml import Keys, YamlProblem, parse_value


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], dict[Keys, str]]:
    """Return the tree with every override put in, in their order, and which override set which path.

    A mapping that is missing on the way is made; in a list the key is an index, and the index after the last appends.

    Raises:
        RecipeError: an override that is not ``key=value``, whose value is not YAML, or whose path does not lead through
            mappings and lists.
    """
    changed = copy.deepcopy(tree)
    origins: dict[Keys, str] = {}
    problems: list[str] = []
    for override in overrides:
        try:
            path, value = _parse(override)
            _put(changed, path, value, origins, override)
        except ValueError as error:
            problems.append(f"{where(override)}: {error}")
    if problems:
        raise RecipeError(*problems)
    return changed, origins


def where(override: str) -> str:
    """Return how messages name an override."""
    return f"command line: {override!r}"


def _parse(override: str) -> tuple[list[str], Any]:
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals:
        raise ValueError("not an override; write key=value, such as seed=1")
    if not all(path):
        raise ValueError(f"not a dotted key, got {key!r}; write key=value, such as stages.sft.train.epochs=2")
    try:
        document = parse_value(text)
    except YamlProblem as problem:
        raise ValueError(f"the value: {problem.message}") from problem
    if document.problems:
        raise ValueError("; ".join(f"the value: {message}" for _, message in document.problems))
    return path, document.tree


def _put(tree: Any, path: Sequence[str], value: Any, origins: dict[Keys, str], override: str) -> None:
    here: Any = tree
    done: Keys = ()
    for part, following in zip(path, [*path[1:], None]):
        key = _key(here, part, done)
        done = (*done, key)
        missing = key not in here if isinstance(here, dict) else key == len(here)
        if missing or following is None:
            _set(here, key, value if following is None else [] if following.isdecimal() else {})
            origins[done] = override
        elif here[key] is None:
            here[key] = {}
        here = here[key]
    for longer in [keys for keys in origins if len(keys) > len(done) and keys[: len(done)] == done]:
        del origins[longer]


def _key(here: Any, part: str, done: Keys) -> str | int:
    if isinstance(here, dict):
        return part
    place = ".".join(str(key) for key in done)
    if not isinstance(here, list):
        raise ValueError(f"{place} is {here!r}, which has no {part!r} in it; override {place} as a whole")
    if not part.isdecimal() or int(part) > len(here):
        wrong = f"{place} is a list of {len(here)}, got {part!r}"
        raise ValueError(f"{wrong}; use an index from 0 to {len(here)} (which appends)")
    return int(part)


def _set(here: Any, key: Any, value: Any) -> None:
    if isinstance(here, list) and key == len(here):
        here.append(value)
    else:
        here[key] = value
