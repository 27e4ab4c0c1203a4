"""A look at chat data: what each file was taken for, how long its rows are, and what of them is trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlkit.chat.data.report import FileReport, check
from rlkit.chat.render import Renderer

MEASURED = 2_000
"""Rows whose lengths are counted."""
STYLES = {"context": "", "trained": "green", "rejected": "red", "answer": "cyan"}
MARKS = {"context": ("", ""), "trained": ("{+", "+}"), "rejected": ("[-", "-]"), "answer": ("{=", "=}")}
"""What stands around a text where there are no colors."""
MEANING = {
    "demonstrations": {"trained": "trained on"},
    "preferences": {"trained": "chosen", "rejected": "rejected"},
    "feedback": {"trained": "liked", "rejected": "disliked"},
    "steps": {"trained": "right", "rejected": "wrong"},
    "prompts": {"answer": "the answer that counts as right, not shown to the model"},
}


@dataclass(frozen=True)
class Shown:
    """One source: its rows by split, and its files."""

    rows: Mapping[str, Sequence[Any]]
    reports: Sequence[FileReport]


Pieces = list[tuple[str, str]]


def show(console: Console, sources: Mapping[str, Shown], renderer: Renderer, samples: int) -> None:
    """Print every source: its files, their bad rows, lengths in tokens, and some rows as a model reads them.

    Raises:
        DataError: a file cannot be read, or its format is not known.
    """
    check([report for one in sources.values() for report in one.reports if report.failed])
    for kind, one in sources.items():
        console.print(Text(kind, style="bold"))
        if one.reports:
            console.print(_files(one.reports))
        for line in (line for report in one.reports if report.bad for line in report.problems()):
            console.print(Text(f"  {line}", style="red"))
        rows = one.rows["train"]
        console.print(_lengths([pieces(kind, row, renderer) for row in rows[:MEASURED]], renderer, len(rows)))
        console.print(_legend(kind, console.is_terminal))
        for row in rows[:samples]:
            console.print(Text(str(row.source), style="bold"))
            console.print(as_text(pieces(kind, row, renderer), console.is_terminal))
            console.print()


def pieces(kind: str, row: Any, renderer: Renderer) -> Pieces:
    """Return a row as (role of the text, text), in the order in which it is shown."""
    end = renderer.end
    if kind == "demonstrations":
        record = renderer.demonstration(row)
        turns = [*record.earlier, (record.prompt, record.completion + end)]
        return [piece for told, said in turns for piece in (("context", told), ("trained", said))]
    if kind == "preferences":
        pair = renderer.preference(row)
        sides = [("trained", pair.chosen + end), ("context", "\n"), ("rejected", pair.rejected + end)]
        return [("context", pair.prompt), *sides]
    if kind == "feedback":
        rated = renderer.feedback(row)
        role = "trained" if rated.desirable else "rejected"
        return [("context", rated.prompt), (role, rated.completion + end)]
    if kind == "steps":
        roles = ["trained" if label >= 0.5 else "rejected" for label in row.labels]
        steps = [piece for role, step in zip(roles, row.steps) for piece in (("context", "\n"), (role, step))]
        return [("context", renderer.step_labels(row).prompt), *steps[1:]]
    prompt = renderer.prompt(row, "")
    return [("context", prompt.text), *([("answer", prompt.answer)] if prompt.answer else [])]


def as_text(found: Pieces, colors: bool) -> Text:
    """Return pieces in colors, or in marks where there are none."""
    text = Text()
    for role, piece in found:
        before, after = ("", "") if colors else MARKS[role]
        text.append(f"{before}{piece}{after}", style=STYLES[role])
    return text


def _files(reports: Sequence[FileReport]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("file", "read as", "format", "because of", "rows", "blank", "bad"):
        right = heading in ("rows", "blank", "bad")
        table.add_column(heading, justify="right" if right else "left", no_wrap=right)
    for one in reports:
        counts = (f"{one.rows:,}", f"{one.blank:,}", f"{one.bad_rows:,}")
        table.add_row(*map(Text, (one.path, one.split, one.format, one.reason, *counts)))
    return table


def _lengths(rows: Sequence[Pieces], renderer: Renderer, count: int) -> str:
    """Return how many tokens prompts and answers have: the median, the 95th percentile, the longest."""
    said = [f"{count:,} train rows"]
    for name, wanted in (("prompt", ("context",)), ("answer", ("trained", "rejected", "answer"))):
        texts = ["".join(_of(row, wanted)) for row in rows]
        sizes = (
            sorted(len(ids) for ids in renderer.tokenizer(texts, add_special_tokens=False).input_ids) if rows else []
        )
        if sizes and sizes[-1]:
            at = [sizes[min(len(sizes) * share // 100, len(sizes) - 1)] for share in (50, 95, 100)]
            said.append("{} tokens: median {:,}, 95 % {:,}, longest {:,}".format(name, *at))
    return "; ".join(said)


def _of(row: Pieces, roles: Sequence[str]) -> Iterator[str]:
    return (text for role, text in row if role in roles)


def _legend(kind: str, colors: bool) -> Text:
    text = Text()
    for role, meaning in MEANING[kind].items():
        before, after = ("", "") if colors else MARKS[role]
        text.append(f"{before}{meaning}{after}  ", style=STYLES[role])
    return text
