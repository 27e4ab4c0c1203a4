"""Values as plain data: what may cross between the tests and the model's code.

JSON with a tag where JSON lacks a type: ``{"tuple": [...]}``. Only these forms exist, so nothing that crosses can bring
behavior along: no class, no ``__eq__``, no code. A subclass crosses as its base (a Counter as a dict).
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 100
MAX_NODES = 1_000_000
PLAIN_INT_BITS = 1024
"""Larger integers cross in hexadecimal, which is read in linear time."""

Tree = Any
"""What ``json`` reads and writes."""


class NotPlain(Exception):
    """A value that cannot cross; the text says what it is."""


def encode(value: object, depth: int = 0) -> Tree:
    """Return a value as a tree.

    Raises:
        NotPlain: it, or something inside it, has no plain form.
    """
    if depth > MAX_DEPTH:
        raise NotPlain("a value nested too deeply")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        number = int(value)
        return number if number.bit_length() <= PLAIN_INT_BITS else {"int": hex(number)}
    for kind, form in _SCALARS.items():
        if isinstance(value, kind):
            return form(value)
    for kind, tag in _SEQUENCES.items():
        if isinstance(value, kind):
            inner = [encode(part, depth + 1) for part in value]
            return {tag: inner} if tag else inner
    if isinstance(value, dict):
        return {"dict": [[encode(key, depth + 1), encode(part, depth + 1)] for key, part in value.items()]}
    raise NotPlain(f"a value of type {type(value).__name__}")


_SCALARS: dict[type, Callable[[Any], Tree]] = {
    float: float,
    str: str.__str__,  # str() of a text that is a member of an enum would be the member's name
    complex: lambda value: {"complex": [value.real, value.imag]},
    bytes: lambda value: {"bytes": base64.b64encode(value).decode()},
    bytearray: lambda value: {"bytearray": base64.b64encode(value).decode()},
}
_SEQUENCES = {list: "", tuple: "tuple", set: "set", frozenset: "frozenset"}


def decode(tree: Tree) -> Any:
    """Return the value that a checked tree stands for."""
    if isinstance(tree, list):
        return [decode(part) for part in tree]
    if not isinstance(tree, dict):
        return tree
    ((tag, inner),) = tree.items()
    return _DECODERS[tag](inner)


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "complex": lambda parts: complex(*parts),
    "bytes": base64.b64decode,
    "bytearray": lambda text: bytearray(base64.b64decode(text)),
    "tuple": lambda parts: tuple(decode(part) for part in parts),
    "set": lambda parts: {decode(part) for part in parts},
    "frozenset": lambda parts: frozenset(decode(part) for part in parts),
    "dict": lambda pairs: {decode(key): decode(part) for key, part in pairs},
}


def is_plain(tree: Tree) -> bool:
    """Tell whether a tree from an untrusted process is one that ``encode`` could have made.

    Nothing is built from it: sets and dicts of keys that collide on purpose would take hours, here in the trainer.
    """
    stack, seen = [([tree], 0)], 0
    while stack:
        nodes, depth = stack.pop()
        seen += len(nodes)
        if depth > 2 * MAX_DEPTH or seen > MAX_NODES:
            return False
        for node in nodes:
            if isinstance(node, list | dict):  # json reads nothing else but null, true, false, numbers and texts
                inner = _inside(node)
                if inner is None:
                    return False
                stack.append((inner, depth + 1))
    return True


def _inside(node: list[Tree] | dict[str, Tree]) -> list[Tree] | None:
    """Return the parts of a node, or None where its form is wrong."""
    if isinstance(node, list):
        return node
    if len(node) != 1:
        return None
    ((tag, inner),) = node.items()
    if tag in ("int", "bytes", "bytearray"):
        return [] if isinstance(inner, str) and _is_written(tag, inner) else None
    if tag == "complex":
        return [] if isinstance(inner, list) and [type(part) for part in inner] == [float, float] else None
    if tag == "dict":
        pairs = isinstance(inner, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in inner)
        return [part for pair in inner for part in pair] if pairs else None
    return inner if tag in ("tuple", "set", "frozenset") and isinstance(inner, list) else None


def _is_written(tag: str, text: str) -> bool:
    if tag == "int":
        return text.removeprefix("-").startswith("0x") and all(letter in "-x0123456789abcdef" for letter in text)
    return text.isascii()
