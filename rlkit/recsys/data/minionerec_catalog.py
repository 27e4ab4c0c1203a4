"""Read a MiniOneRec catalog: item.json and index.json into items and semantic IDs, with info.txt as the cross-check."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkit.records import Source
from rlkit.recsys.data.catalog import Item
from rlkit.recsys.data.problems import Problems, shorten

MAX_LEVELS = 8

_TOKEN = re.compile(r"<[^<>\s]+>")


@dataclass(frozen=True)
class Catalog:
    """Items with their semantic IDs, and what a row of the CSV files is expected to say about them.

    Args:
        items: N items; item.json's order, or by number where all ids are numbers.
        semantic_ids: per item its tokens; empty where index.json has none or a broken one (noted).
        index_of: the files' id -> position in ``items``.
    """

    items: tuple[Item, ...]
    semantic_ids: tuple[tuple[str, ...], ...]
    index_of: Mapping[str, int]


def build_catalog(
    paths: Mapping[str, Path], item_json: dict[str, Any], index_json: dict[str, Any], problems: Problems
) -> Catalog:
    """Join item.json and index.json; an item that only one of them has is kept, so that rows do not report it again.

    Args:
        paths: where ``item`` and ``index`` were read.
        item_json: item id -> title, description, brand, categories.
        index_json: item id -> tokens.
        problems: receives what is wrong; what one file lacks is left to ``check_complete``, which knows the rows.
    """
    keys = list(dict.fromkeys([*item_json, *index_json]))
    if all(key.isascii() and key.isdecimal() and len(key) < 19 for key in keys):
        keys.sort(key=int)  # so that embedding files, whose row i is item i, keep their order
    index_of = {key: position for position, key in enumerate(keys)}
    items = tuple(_item(key, item_json.get(key, {"title": ""}), paths["item"], problems) for key in keys)
    tokens = tuple(
        _semantic_id(key, index_json[key], paths["index"], problems) if key in index_json else () for key in keys
    )
    return Catalog(items, tokens, index_of)


def _item(key: str, fields: Any, path: Path, problems: Problems) -> Item:
    title = fields.get("title") if isinstance(fields, dict) else None
    if not isinstance(title, str):
        problems.add(Source(str(path)), f'item {key!r} has no title, got {shorten(fields)}; write {{"title": "..."}}')
        return Item(key, "")
    texts = [plain_text(fields.get(name) or "") for name in ("description", "brand", "categories")]
    return Item(key, title, *texts)


def plain_text(value: Any) -> str:
    """Return text without the brackets, quotes and white space of a list that was saved as its Python literal.

    Upstream writes ``str(description)`` of a list; a few are no valid literals any more (an apostrophe that was
    unescaped after quoting), and lose their outer brackets and the quotes between their parts.
    """
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        parts = parse_literal(value)
        if isinstance(parts, ValueError):
            parts = re.split(r"""['"], ['"]""", value[1:-1].strip("'\"").replace("\\n", " "))
        value = parts
    parts = value if isinstance(value, list) else [value]
    return " ".join(word for part in parts for word in str(part).split())


def parse_literal(text: str) -> Any:
    """Return the value of a Python literal, or a ValueError that says why it is none (never code: ``ast`` only)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "5or 6" and unknown escapes warn before they fail
            return ast.literal_eval(text)
    except SyntaxError as error:
        return ValueError(error.msg)
    except (ValueError, TypeError, MemoryError, RecursionError):
        return ValueError("more than literals")


def _semantic_id(key: str, tokens: Any, path: Path, problems: Problems) -> tuple[str, ...]:
    if not isinstance(tokens, list) or not 1 <= len(tokens) <= MAX_LEVELS:
        problems.add(Source(str(path)), f"item {key!r} needs a list of 1 to {MAX_LEVELS} tokens, got {shorten(tokens)}")
        return ()
    for token in tokens:
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            problems.add(
                Source(str(path)), f"item {key!r} has a malformed token, got {shorten(token)}; write it like '<a_12>'"
            )
            return ()
    return tuple(tokens)


def check_complete(
    paths: Mapping[str, Path],
    item_json: dict[str, Any],
    index_json: dict[str, Any],
    uses: Mapping[str, Source],
    problems: Problems,
) -> None:
    """Note every item that item.json or index.json lacks, with the first row that needs it."""
    for role, there, other, what in (
        ("index", index_json, item_json, "semantic ID"),
        ("item", item_json, index_json, "title"),
    ):
        for key in other:
            if key not in there:
                other_name = paths["item" if role == "index" else "index"].name
                need = f" and {uses[key]} needs it" if key in uses else ""
                problems.add(
                    Source(str(paths[role])), f"item {key!r} has no {what}, but {other_name} has it{need}; add it"
                )


def check_info(path: Path, text: str, catalog: Catalog, problems: Problems) -> None:
    """Note, in one problem, where the info file disagrees with the catalog.

    Args:
        path: the info file.
        text: its lines, ``semantic ID <TAB> title <TAB> item id``.
        catalog: what index.json and item.json say.
        problems: receives at most one problem.
    """
    lines = [(number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    wrong = [(number, line) for number, line in lines if not _agrees(line, catalog)]
    if wrong:
        kind = (
            "this is the info file of another catalog" if 2 * len(wrong) > len(lines) else "not what the catalog says"
        )
        problems.add(
            Source(str(path), wrong[0][0]),
            f"{kind}: {len(wrong):,} of {len(lines):,} lines disagree with index.json and item.json, "
            f"got {shorten(wrong[0][1], 120)}; take the info file that was made with them",
        )
    elif len(lines) < len(catalog.items):
        listed = {line.rsplit("\t", 1)[-1].strip() for _, line in lines}
        lost = [item.key for item in catalog.items if item.key not in listed]
        problems.add(
            Source(str(path)),
            f"{len(lost):,} of {len(catalog.items):,} items are missing, first {lost[0]!r}; "
            "take the info file of this catalog",
        )


def _agrees(line: str, catalog: Catalog) -> bool:
    semantic_id, _, rest = line.partition("\t")
    title, _, key = rest.rpartition("\t")
    position = catalog.index_of.get(key.strip())
    if position is None:
        return False
    tokens, item = catalog.semantic_ids[position], catalog.items[position]
    # An item that is broken in one of the two files is reported there.
    return (not tokens or semantic_id.strip() == "".join(tokens)) and (
        not item.title or title.strip() == item.title.strip()
    )
