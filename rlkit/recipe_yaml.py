"""YAML for recipes: plain data only, every value with its line and column, and no surprises.

Read with PyYAML's safe loader, minus what a recipe has no use for (tags, anchors, several documents) and minus YAML
1.1's traps: ``no`` and ``on`` are text, ``1e-6`` is a number, ``2024-01-01`` is text, ``010`` is ten.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import yaml

from rlkit.errors import RecipeError

MAX_BYTES = 1_000_000
MAX_DEPTH = 32

Keys = tuple[str | int, ...]


class Mark(NamedTuple):
    """A line and a column, both counted from 1."""

    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.line}:{self.column}"


@dataclass
class Document:
    """What a YAML text says, and where.

    Args:
        tree: mappings, lists and scalars.
        keys: where the key of each entry of a mapping stands, by its path.
        values: where each value begins, by its path.
        problems: (place, message) of what is wrong without hiding the rest.
    """

    tree: Any = None
    keys: dict[Keys, Mark] = field(default_factory=dict)
    values: dict[Keys, Mark] = field(default_factory=dict)
    problems: list[tuple[Mark, str]] = field(default_factory=list)


class YamlProblem(Exception):
    """The text cannot be read at all."""

    def __init__(self, mark: Mark, message: str) -> None:
        super().__init__(message)
        self.mark = mark
        self.message = message


_FIRST_CHARACTERS = {
    "null": ["~", "n", "N", ""],
    "bool": [*"tTfF"],
    "int": [*"-+0123456789"],
    "float": [*"-+.0123456789"],
}
_PLAIN = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}


class _Loader(yaml.SafeLoader):
    """The safe loader that refuses tags, anchors and deep nesting before it builds anything."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]  # the stubs call it an instance's
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        mark = _mark(event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            raise YamlProblem(
                mark, f"aliases are not used here, got '*{event.anchor}'; write the value out, or in quotes"
            )
        if event.anchor is not None:
            raise YamlProblem(mark, f"anchors are not used here, got '&{event.anchor}'; leave it out, or use quotes")
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise YamlProblem(mark, f"tags are not used here, got {tag!r}; write plain values, or use quotes")
        if self.depth >= MAX_DEPTH:
            raise YamlProblem(mark, f"nested deeper than {MAX_DEPTH} levels; flatten it")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """The safe dumper that quotes whatever this loader, or another tool's YAML 1.1, would not read as text."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)  # lists stand indented under their key

    def ignore_aliases(self, data: Any) -> bool:
        return True  # a list that stands twice in the data is written twice: the loader knows no anchors


for _name, _pattern in _PLAIN.items():
    for _class in (_Loader, _Dumper):
        _regex = re.compile(rf"^(?:{_pattern})$")
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _regex, _FIRST_CHARACTERS[_name])


def _short_lists_in_one_line(dumper: yaml.SafeDumper, entries: list[Any]) -> yaml.Node:
    flow = not any(isinstance(entry, list | dict) for entry in entries)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", entries, flow_style=flow)


_Dumper.add_representer(list, _short_lists_in_one_line)


def read_text(path: Path) -> str:
    """Read a recipe file.

    Raises:
        RecipeError: it is not there, is too large, or is not UTF-8 text.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {_reason(error, path)}") from error
    if len(data) > MAX_BYTES:
        raise RecipeError(f"{path}: larger than {MAX_BYTES:,} bytes; a recipe is a short YAML file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        wrong = f"not UTF-8 text, got byte {data[error.start]:#04x}"
        raise RecipeError(f"{path}:{line}:{column}: {wrong}; save it as UTF-8") from error


def _reason(error: OSError, path: Path) -> str:
    if isinstance(error, FileNotFoundError):
        near = [other.name for other in sorted(path.parent.glob("*.y*ml"))] if path.parent.is_dir() else []
        advice = f"there is {', '.join(near)}" if near else "`rlkit init` writes a starter recipe"
        return f"no such file; {advice}"
    if isinstance(error, IsADirectoryError):
        return "it is a folder; name a YAML file"
    return (error.strerror or str(error)).lower()


def parse_document(text: str) -> Document:
    """Parse the text of a recipe.

    Raises:
        YamlProblem: the text is not one plain YAML mapping.
    """
    node = _compose(text)
    if node is None:
        raise YamlProblem(Mark(1, 1), "empty; `rlkit init` writes a starter recipe")
    if not isinstance(node, yaml.MappingNode):
        raise YamlProblem(_mark(node.start_mark), f"a recipe is a mapping like 'name: my_run', got a {_kind(node)}")
    return _build(node)


def parse_value(text: str) -> Document:
    """Parse the value of an override: a scalar, or a list or mapping in one line.

    Raises:
        YamlProblem: it is not such a value.
    """
    node = _compose(text)
    if node is None:
        return Document()
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        advice = "put text in quotes, lists in [..] and mappings in {..}"
        raise YamlProblem(_mark(node.start_mark), f"not one plain value; {advice}")
    return _build(node)


def dump(tree: Any) -> str:
    """Write plain data as YAML that ``parse_document`` reads back as the same data."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _compose(text: str) -> yaml.Node | None:
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        mark = Mark(text.count("\n", 0, error.position) + 1, error.position - text.rfind("\n", 0, error.position))
        raise YamlProblem(mark, f"not allowed in YAML, got {chr(error.character)!r}; delete it") from error
    except yaml.MarkedYAMLError as error:
        place = error.problem_mark or error.context_mark
        assert place is not None
        raise YamlProblem(_mark(place), _explain(error)) from error


def _explain(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "cannot be read"
    if r"'\t'" in problem or (error.problem_mark and _at(error.problem_mark) == "\t"):
        return "a tab; indent with spaces"
    if error.context == "expected a single document in the stream":
        return "a second document, got '---'; a recipe is one document"
    if "expected '<document start>'" in problem:
        return "not part of the mapping above it; check the indentation"
    if "mapping values are not allowed" in problem:
        return "a ':' where no key can stand; check the indentation, or put text that holds ': ' in quotes"
    if error.context and error.context_mark:
        problem = f"{problem} ({error.context} begun in line {error.context_mark.line + 1})"
    return f"not YAML: {problem}; check indentation, brackets and quotes"


def _at(mark: yaml.Mark) -> str:
    return mark.buffer[mark.pointer] if mark.buffer and mark.pointer < len(mark.buffer) else ""


def _build(node: yaml.Node) -> Document:
    document = Document()
    document.tree = _value(node, (), document)
    return document


def _value(node: yaml.Node, path: Keys, document: Document) -> Any:
    document.values[path] = _mark(node.start_mark)
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, document)
    if isinstance(node, yaml.SequenceNode):
        return [_value(entry, (*path, index), document) for index, entry in enumerate(node.value)]
    return _scalar(node, document)


def _mapping(node: yaml.MappingNode, path: Keys, document: Document) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key_node, value_node in node.value:
        mark = _mark(key_node.start_mark)
        if key_node.tag != "tag:yaml.org,2002:str":
            document.problems.append((mark, f"a key must be text, got {_written(key_node)}; put it in quotes"))
            continue
        key = key_node.value
        if key in tree:
            first = document.keys[*path, key].line
            document.problems.append((mark, f"{_dotted(path, key)}: set twice, first in line {first}; delete one"))
            continue
        document.keys[*path, key] = mark
        tree[key] = _value(value_node, (*path, key), document)
    return tree


def _scalar(node: yaml.Node, document: Document) -> Any:
    tag = node.tag.rpartition(":")[2]
    if tag == "null":
        return None
    if tag == "bool":
        return node.value.lower() == "true"
    if tag == "int":
        return int(node.value)
    if tag == "float":
        number = float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))
        if not math.isfinite(number):
            document.problems.append((_mark(node.start_mark), f"not a finite number, got {node.value!r}; write one"))
        return number
    return node.value


def _written(node: yaml.Node) -> str:
    return repr(node.value) if isinstance(node, yaml.ScalarNode) else f"a {_kind(node)}"


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return f"single value {node.value!r}"
    return "list" if isinstance(node, yaml.SequenceNode) else "mapping"


def _dotted(path: Keys, key: str) -> str:
    return ".".join(str(part) for part in (*path, key))


def _mark(mark: yaml.Mark) -> Mark:
    return Mark(mark.line + 1, mark.column + 1)
