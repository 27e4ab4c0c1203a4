"""Collect the problems of data files, so that one error can show them all without a flood."""

from __future__ import annotations

from collections import Counter

from rlkit.errors import DataError
from rlkit.records import Source

PER_PLACE = 3
"""Problems shown of one column of one file; a file made for other data has one in every row."""
IN_ALL = 20
"""Problems shown altogether."""


class Problems:
    """A list of problems that shows the first of each place and counts the rest; ``count`` is of all of them."""

    def __init__(self) -> None:
        self._shown: list[tuple[str, str]] = []  # place, line
        self._by_place: Counter[str] = Counter()
        self.count = 0

    def add(self, source: Source, text: str, column: str = "") -> None:
        """Note ``file:line: column: text``."""
        place = f"{source.path}, column {column}" if column else source.path
        self.count += 1
        self._by_place[place] += 1
        if self._by_place[place] <= PER_PLACE and len(self._shown) < IN_ALL:
            self._shown.append((place, f"{source}: {column}: {text}" if column else f"{source}: {text}"))

    def check(self) -> None:
        """Raise what was collected; return where nothing was.

        Raises:
            DataError: at least one problem was noted.
        """
        if not self.count:
            return
        hidden = self._by_place - Counter(place for place, _ in self._shown)
        places = "; ".join(f"{count:,} in {place}" for place, count in hidden.items())
        rest = [f"and {hidden.total():,} more problems: {places}"] if hidden else []
        raise DataError(*(line for _, line in self._shown), *rest)


def shorten(value: object, limit: int = 60) -> str:
    """Return the repr of a value, cut to what fits an error line."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
