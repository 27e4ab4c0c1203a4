"""Read the rows of a MiniOneRec CSV file and check every cell of them against the catalog.

Nearly every cell is exactly what upstream's converter would write for the row's ids, so a row is compared with that
text first; only a row that differs is parsed cell by cell (``ast.literal_eval``), to accept it or to say what is wrong.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from rlkit.records import Source
from rlkit.recsys.data.catalog import Interaction
from rlkit.recsys.data.minionerec_catalog import Catalog, parse_literal
from rlkit.recsys.data.problems import Problems, shorten


class Cells(NamedTuple):
    """One row's cells; the fields are the columns that a file must have."""

    user_id: str
    history_item_title: str
    item_title: str
    history_item_id: str
    item_id: str
    history_item_sid: str
    item_sid: str


class RowReader:
    """Turns CSV text into interactions, for one catalog."""

    def __init__(self, catalog: Catalog, problems: Problems) -> None:
        self._catalog = catalog
        self._problems = problems
        self._semantic_ids = ["".join(tokens) for tokens in catalog.semantic_ids]
        self._title_literals = [repr(item.title) for item in catalog.items]
        self._id_literals = [repr(text) for text in self._semantic_ids]
        self._literal_index = {_literal(item.key): position for position, item in enumerate(catalog.items)}

    def read(self, path: Path, text: str) -> tuple[Interaction, ...]:
        """Return the rows of a file; what is wrong is noted with its line, and the row left out.

        Args:
            path: what problems and sources name.
            text: the file's content, header first.
        """
        records = _records(path, text, self._problems)
        _, header = next(records, (1, []))
        if not _check_header(path, header, self._problems):
            return ()
        pick = itemgetter(*(header.index(name) for name in Cells._fields))
        rows = []
        noted = self._problems.count
        for line, record in records:
            source = Source(str(path), line)
            if len(record) != len(header):
                text = f"{len(record)} cells, but the header has {len(header)}; quote cells that hold commas"
                self._problems.add(source, text)
            elif (row := self._row(source, Cells(*pick(record)))) is not None:
                rows.append(row)
        if not rows and self._problems.count == noted:
            self._problems.add(Source(str(path)), "the file has no rows; every split needs some")
        return tuple(rows)

    def _row(self, source: Source, cells: Cells) -> Interaction | None:
        index = self._literal_index
        ids = cells.history_item_id
        try:
            history = tuple([index[literal] for literal in ids[1:-1].split(", ")])
            target = self._catalog.index_of[cells.item_id]
        except KeyError:
            return self._row_by_cell(source, cells)
        usual = (
            cells.user_id
            and cells.item_sid == self._semantic_ids[target] != ""
            and ids[0] + ids[-1] == "[]"
            and cells.history_item_sid == f"[{', '.join([self._id_literals[item] for item in history])}]"
            and cells.history_item_title == f"[{', '.join([self._title_literals[item] for item in history])}]"
        )
        return Interaction(cells.user_id, history, target, source) if usual else self._row_by_cell(source, cells)

    def _row_by_cell(self, source: Source, cells: Cells) -> Interaction | None:
        noted = self._problems.count
        if not cells.user_id:
            self._problems.add(source, "the cell is empty; every row needs its user", "user_id")
        history = self._history(source, cells.history_item_id)
        # Titles are shown to people only and may be shortened, but their list must fit the history.
        self._texts(source, "history_item_title", cells.history_item_title, len(history))
        given = self._texts(source, "history_item_sid", cells.history_item_sid, len(history))
        for item, text in zip(history, given):
            self._check_semantic_id(source, "history_item_sid", item, text)
        target = self._item(source, "item_id", cells.item_id)
        self._check_semantic_id(source, "item_sid", target, cells.item_sid)
        if self._problems.count > noted or target is None:
            return None
        return Interaction(cells.user_id, tuple(item for item in history if item is not None), target, source)

    def _history(self, source: Source, cell: str) -> list[int | None]:
        column = "history_item_id"
        values = self._list(source, column, cell)
        if values == []:
            self._problems.add(source, "the history is empty; drop the row, nothing comes before its item", column)
        return [self._item(source, column, value) for value in values or ()]

    def _item(self, source: Source, column: str, value: object) -> int | None:
        key = str(value) if type(value) in (int, str) else None
        position = None if key is None else self._catalog.index_of.get(key)
        if position is None:
            self._problems.add(
                source, f"unknown item, got {shorten(value)}; item.json and index.json do not have it", column
            )
        return position

    def _texts(self, source: Source, column: str, cell: str, expected: int) -> list[str]:
        """Return the cell's texts, as many as the history has items; none (noted) where it has not."""
        values = self._list(source, column, cell)
        if values is None:
            return []
        if not all(isinstance(value, str) for value in values):
            self._problems.add(source, f"a list of texts is needed, got {shorten(cell)}", column)
        elif expected and len(values) != expected:
            self._problems.add(
                source, f"{len(values)} texts for a history of {expected} items; write one for each", column
            )
        else:
            return values
        return []

    def _list(self, source: Source, column: str, cell: str) -> list | None:
        value = parse_literal(cell.strip())
        if isinstance(value, list):
            return value
        reason = str(value) if isinstance(value, ValueError) else f"a {type(value).__name__}"
        self._problems.add(
            source, f"not a Python list ({reason}), got {shorten(cell)}; write it like ['a', 'b']", column
        )
        return None

    def _check_semantic_id(self, source: Source, column: str, item: int | None, given: str) -> None:
        expected = "" if item is None else self._semantic_ids[item]
        if item is not None and expected and given != expected:
            key = self._catalog.items[item].key
            self._problems.add(source, f"item {key!r} is {expected!r} in index.json, got {shorten(given)}", column)


def _literal(key: str) -> str:
    """Return how a list writes an item's id: as a number where it is one."""
    return key if key.isascii() and key.isdecimal() and (key == "0" or key[0] != "0") else repr(key)


def _records(path: Path, text: str, problems: Problems) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of every record with the line where it begins (a quoted cell may span lines)."""
    # newline="\n": lines are counted as editors count them; a lone carriage return inside a title is no line's end.
    reader = csv.reader(io.StringIO(text, newline="\n"), strict=True)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        problems.add(
            Source(str(path), line), f"broken CSV in the record that begins here: {error}; is a quote not closed?"
        )


def _check_header(path: Path, header: list[str], problems: Problems) -> bool:
    lost = [name for name in Cells._fields if name not in header]
    doubled = sorted({name for name in header if header.count(name) > 1})
    if lost:
        problems.add(
            Source(str(path), 1), f"no column {', '.join(lost)}; the header is {shorten(','.join(header), 200)}"
        )
    if doubled:
        problems.add(Source(str(path), 1), f"two columns are called {', '.join(map(repr, doubled))}; keep one")
    return not lost and not doubled
