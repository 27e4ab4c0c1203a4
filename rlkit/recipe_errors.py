"""One line per problem: where it stands in the file or on the command line, what is wrong, what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from rlkit.component import Settings
from rlkit.errors import RecipeError, did_you_mean
from rlkit.recipe_overrides import where
from rlkit.recipe_schema import TAG, Installed, Place, follow, owners, places
from rlkit.recipe_yaml import Document, Keys, Mark

_BOUNDS = {
    "greater_than_equal": ("ge", ">="),
    "greater_than": ("gt", ">"),
    "less_than_equal": ("le", "<="),
    "less_than": ("lt", "<"),
}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
    "dict": "a mapping",
    "model": "a mapping",
}


@dataclass(frozen=True)
class Problem:
    """Something wrong with a recipe.

    Args:
        keys: the path of what is wrong.
        message: what is wrong, got what; what to do.
        at_key: the place is where the key stands, not where its value begins.
    """

    keys: Keys
    message: str
    at_key: bool = False


@dataclass(frozen=True)
class Text:
    """Where the parts of a recipe stand.

    Args:
        name: the file, or what else the recipe comes from.
        document: the marks of the file's YAML; empty where the recipe is not from a file.
        origins: the overrides, by the path that they set.
    """

    name: str
    document: Document
    origins: Mapping[Keys, str]

    def error(self, problems: Iterable[Problem]) -> RecipeError:
        """Return all problems as one error, in the order of the file, those of overrides last."""
        lines = [(False, mark, f"{self.name}:{mark}: {message}") for mark, message in self.document.problems]
        lines += [self._line(problem) for problem in problems]
        return RecipeError(*dict.fromkeys(line for *_, line in sorted(lines, key=lambda line: line[:2])))

    def line(self, problem: Problem) -> str:
        """Return a problem with its place, its key and its message."""
        return self._line(problem)[-1]

    def _line(self, problem: Problem) -> tuple[bool, Mark, str]:
        override = self._override(problem.keys)
        mark = self._mark(problem.keys, problem.at_key)
        place = where(override) if override else f"{self.name}:{mark}" if self.document.values else self.name
        key = ".".join(str(part) for part in problem.keys)
        return override is not None, mark, ": ".join(part for part in (place, key, problem.message) if part)

    def _override(self, keys: Keys) -> str | None:
        return next((self.origins[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in self.origins), None)

    def _mark(self, keys: Keys, at_key: bool) -> Mark:
        """Return where a value begins, or its key where it begins in a line below; else the nearest thing around it."""
        documents = self.document
        while keys and keys not in documents.values:
            keys = keys[:-1]
        value = documents.values.get(keys, Mark(1, 1))
        key = documents.keys.get(keys, value)
        return key if at_key or key.line < value.line else value


def translate(model: type[Settings], tree: Any, error: ValidationError) -> list[Problem]:
    """Return pydantic's errors in a recipe's words; the branches of a plain union become one problem."""
    branches: dict[Keys, list[str]] = {}
    problems: list[Problem] = []
    for detail in error.errors(include_url=False):
        if detail["type"] == "too_short" and len(detail["input"]) >= detail["ctx"]["min_length"]:
            continue  # pydantic does not count entries that have errors of their own
        place = follow(model, detail["loc"])
        unknown = detail["type"] == "extra_forbidden"
        hint = _forgotten_type(model, detail)
        message = _message(place, detail) + (hint or (_suggestion(place, model, tree) if unknown else ""))
        if place.branch:
            branches.setdefault(place.keys, []).append(message)
        else:
            at_key = unknown or "[key]" in detail["loc"]
            names_type = detail["type"].startswith("union_tag") and isinstance(detail["input"], dict)
            keys = (*place.keys, "type") if names_type else place.keys
            problems.append(Problem(keys, message, at_key))
    return problems + [Problem(keys, " or ".join(dict.fromkeys(messages))) for keys, messages in branches.items()]


def booleans(model: type[Settings], tree: Any) -> list[Problem]:
    """Return where ``true`` or ``false`` stands for a number, which pydantic would take for 1 or 0."""
    return [
        Problem(place.keys, f"expected {_KINDS[place.form.__name__]}, got {_short(value)}")
        for place, value in places(model, tree)
        if isinstance(value, bool) and place.form in (int, float)
    ]


def _message(place: Place, detail: Any) -> str:
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    first, _, rest = kind.partition("_")
    if kind == "extra_forbidden":
        return "no such setting"
    if kind == "missing":
        return _missing(place)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        assert place.installed is not None
        return _not_installed(place.installed, value)
    if kind in _BOUNDS:
        name, sign = _BOUNDS[kind]
        bound = int(context[name]) if context[name] == int(context[name]) else context[name]
        return f"must be {sign} {bound}, got {_short(value)}"
    if kind in ("too_short", "string_too_short"):
        unit = "characters" if isinstance(value, str) else "entries"
        return f"needs at least {context['min_length']} {unit}, got {_short(value)}"
    if kind == "literal_error":
        return f"must be {context['expected']}, got {_short(value)}"
    if kind in ("value_error", "assertion_error"):
        return _own_words(str(context["error"]), value)
    if first in _KINDS and rest in ("type", "parsing", "parsing_size", "from_float"):
        quotes = "; put it in quotes" if first == "string" and isinstance(value, bool | int | float) else ""
        return f"expected {_KINDS[first]}, got {_short(value)}{quotes}"
    text = detail["msg"].replace("Input should", "must")
    return f"{text[:1].lower()}{text[1:]}, got {_short(value)}"


def _own_words(message: str, value: Any) -> str:
    """Add the value to the message of a validator that does not name it."""
    if "got " in message or isinstance(value, dict | list | tuple | Settings):
        return message
    wrong, semicolon, advice = message.partition(";")
    return f"{wrong}, got {_short(value)}{semicolon}{advice}"


def _suggestion(place: Place, model: type[Settings], tree: Any) -> str:
    """Suggest a setting of this very place, else the places of the recipe that have a setting of this name."""
    key, fields = str(place.keys[-1]), place.owner.model_fields
    here = did_you_mean(key, fields)
    found = [".".join(map(str, (*keys, key))) for keys, owner in owners(model, tree) if key in owner.model_fields]
    if "did you mean" in here or not found or key == "type":
        return here
    around = ".".join(map(str, place.keys[:-1]))
    below = [path for path in found if path.startswith(f"{around}.")]
    return f" here; did you mean {' or '.join(repr(path) for path in (below or found)[:3])}?"


def _missing(place: Place) -> str:
    if place.installed:
        return f"required, not set; give it a type: {', '.join(place.installed.members)}"
    description = place.owner.model_fields[str(place.keys[-1])].description
    return "required, not set; add it" + (f" ({description.splitlines()[0].rstrip('.')})" if description else "")


def _not_installed(installed: Installed, value: Any) -> str:
    kind, known = installed.slot.kind, installed.members
    if not isinstance(value, dict):
        advice = f"write {{type: {value}}}" if value in list(known) else f"its type is one of: {', '.join(known)}"
        return f"expected a mapping, got {_short(value)}; {advice}"
    if "type" not in value:
        return f"required, not set; say which {kind}: {', '.join(known)}"
    name = str(value["type"])
    if not known:
        return f"no {kind} is called {name!r}; none is installed (`rlkit plugins` lists what is)"
    return f"no {kind} is called {name!r}{did_you_mean(name, known)}"


def _forgotten_type(model: type[Settings], detail: Any) -> str:
    """Return a hint where a mapping named like a component was read as the slot's default type."""
    location = detail["loc"]
    for index in range(1, len(location)):
        name, tag = str(location[index - 1]), str(location[index])
        installed = follow(model, location[:index]).installed if tag.startswith(TAG) else None
        if installed and name in installed.members and tag == f"{TAG}{installed.slot.default}" != f"{TAG}{name}":
            return f"; did you forget 'type: {name}'?"
    return ""


def _short(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
