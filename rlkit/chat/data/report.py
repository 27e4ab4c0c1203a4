"""What is said of a file: what it holds, what was skipped, and every bad row by its line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rlkit.errors import DataError
from rlkit.records import Source

SHOWN_PER_FILE = 20
"""Problems shown of one file; a file made for something else has one in every row."""


class BadRow(ValueError):
    """A row that cannot be used.

    Args:
        problems: ``what is wrong, got ...; what to do``, one line each.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass
class FileReport:
    """One file as it was read.

    Args:
        path: the file.
        split: what it was read as.
        format: the format, and ``reason`` why it was taken for it.
        rows: rows that can be used.
        blank: blank lines, which are skipped.
        bad: (source, problem) of every row that cannot be used.
        failed: why the file as a whole cannot be used; empty where it can.
    """

    path: str
    split: str = "train"
    format: str = ""
    reason: str = ""
    rows: int = 0
    blank: int = 0
    bad: list[tuple[Source, str]] = field(default_factory=list)
    failed: str = ""

    @property
    def bad_rows(self) -> int:
        """Return how many rows have at least one problem."""
        return len({source for source, _ in self.bad})

    def problems(self) -> list[str]:
        """Return the lines of an error, few enough to read.

        A problem that every row has is one line; of others the first ``SHOWN_PER_FILE`` are shown.
        """
        if self.failed:
            return [f"{self.path}: {self.failed}"]
        if self.bad_rows > 1 and not self.rows and (found := self._in_every_row()):
            return found
        lines = [f"{source}: {text}" for source, text in self.bad]
        if len(lines) > SHOWN_PER_FILE:
            lines[SHOWN_PER_FILE:] = [f"{self.path}: and {len(lines) - SHOWN_PER_FILE:,} more problems"]
        return lines

    def _in_every_row(self) -> list[str]:
        counts = Counter(text for _, text in self.bad)
        if any(count < self.bad_rows for count in counts.values()):
            return []
        first = self.bad[0][0]
        return [f"{first}: {text} (so in all {self.bad_rows:,} rows)" for text in counts]


def check(reports: Sequence[FileReport]) -> None:
    """Raise the problems of all files together.

    Raises:
        DataError: at least one file has a problem.
    """
    problems = [line for report in reports for line in report.problems()]
    if problems:
        raise DataError(*problems)


def short(value: object, limit: int = 60) -> str:
    """Return the repr of a value, cut to what fits an error line."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
