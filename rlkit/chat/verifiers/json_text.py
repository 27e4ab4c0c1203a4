"""JSON that a model wrote: read strictly, and held against a schema in bounded time, whatever it is."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from rlkit.chat.verifiers.patterns import found_in_time

MAX_JSON = 1_000_000
"""Characters of JSON that are read."""

_FENCE = re.compile(r"\A\s*```(?:json|JSON)?[ \t]*\n(.*)\n[ \t]*```\s*\Z", re.DOTALL)


def accepts(schema: dict[str, Any]) -> Callable[[str], bool]:
    """Return what tells whether a text is JSON, in a code fence or not, that a schema accepts."""
    from jsonschema.validators import validator_for
    from referencing.jsonschema import EMPTY_REGISTRY

    # the registry is given, since the default one would fetch what a $ref names from the network
    validator = _bounded(validator_for(schema))(schema, registry=EMPTY_REGISTRY)

    def judge(text: str) -> bool:
        fenced = _FENCE.match(text)
        text = fenced[1] if fenced else text
        if len(text) > MAX_JSON:
            return False
        try:
            return bool(validator.is_valid(read_json(text)))
        except (ValueError, RecursionError, TimeoutError):
            return False

    return judge


def read_json(text: str) -> Any:
    """Read JSON.

    Raises:
        ValueError: it is none; NaN, infinities, numbers beyond all floats and keys that stand twice are none either.
    """
    return json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_each_key_once)


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key stands twice")
    return made


# ---- keywords whose time jsonschema does not bound: its expressions have no limit, and items are compared in pairs


@cache
def _bounded(kind: Any) -> Any:
    from jsonschema.validators import extend

    bounded = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
        "uniqueItems": _unique_items,
    }
    return extend(kind, {name: check for name, check in bounded.items() if name in kind.VALIDATORS})


def _problem(message: str) -> Exception:
    from jsonschema.exceptions import ValidationError

    return ValidationError(message)


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Exception]:
    if validator.is_type(instance, "string") and not found_in_time(pattern, instance):
        yield _problem("does not match")


def _pattern_properties(validator: Any, patterns: Mapping[str, Any], instance: Any, schema: Any) -> Iterator[Exception]:
    if validator.is_type(instance, "object"):
        for pattern, inner in patterns.items():
            for key, value in instance.items():
                if found_in_time(pattern, key):
                    yield from validator.descend(value, inner, path=key, schema_path=pattern)


def _additional_properties(validator: Any, inner: Any, instance: Any, schema: Any) -> Iterator[Exception]:
    if not validator.is_type(instance, "object"):
        return
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for key, value in instance.items():
        if key not in known and not any(found_in_time(pattern, key) for pattern in patterns):
            yield from validator.descend(value, inner, path=key)


def _unique_items(validator: Any, wanted: bool, instance: Any, schema: Any) -> Iterator[Exception]:
    if wanted and validator.is_type(instance, "array") and len({_hashable(item) for item in instance}) < len(instance):
        yield _problem("an item stands twice")


def _hashable(value: Any) -> Any:
    """Return something that is equal where two JSON values are; true is not 1, and 1.0 is."""
    if isinstance(value, dict):
        return frozenset((key, _hashable(inner)) for key, inner in value.items())
    return tuple(map(_hashable, value)) if isinstance(value, list) else (isinstance(value, bool), value)
