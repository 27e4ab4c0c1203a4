"""Two answers beside each other: on a terminal in two columns, elsewhere as Markdown, one below the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rlkit.report.compare_answers import Pair, Pairs
from rlkit.report.tables import answer_heading, decimals

_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
"""Control characters, which models do sample, as their pictures."""


def show_pairs(pairs: Pairs, chosen: Sequence[Pair]) -> None:
    """Print pairs of answers."""
    console = Console()
    for pair in chosen:
        if console.is_terminal:
            console.print(_table(pairs, pair))
        else:
            print("\n".join(_lines(pairs, pair)))


def _table(pairs: Pairs, pair: Pair) -> Table:
    table = Table(title=escape(_title(pair)), title_justify="left", box=box.SIMPLE_HEAD, expand=True, show_lines=True)
    table.caption, table.caption_justify = Text(numbers_text(pairs, pair)), "left"
    for name in (pairs.a, pairs.b):
        table.add_column(Text(name), ratio=1, overflow="fold")
    table.add_row(*(Text(visible(row["completion"])) for row in (pair.a, pair.b)))
    return table


def _lines(pairs: Pairs, pair: Pair) -> Iterator[str]:
    yield f"## {_title(pair)}"
    for name, row in ((pairs.a, pair.a), (pairs.b, pair.b)):
        yield f"\n### {name}\n"
        yield visible(row["completion"])
    yield f"\n{numbers_text(pairs, pair)}\n"


def _title(pair: Pair) -> str:
    return f"{pair.a['source']}: {visible(pair.a['prompt'])}"


def numbers_text(pairs: Pairs, pair: Pair) -> str:
    """Return the metrics that differ, the first model's value and the second's."""
    parts = [
        f"{answer_heading(name)} {decimals(value)} -> {decimals(pair.b['metrics'][name])}"
        for name, value in pair.a["metrics"].items()
        if pair.b["metrics"].get(name, value) != value and not name.startswith("win_rate/")
    ]
    return f"{pairs.a} -> {pairs.b}: {', '.join(parts) or 'equal in every metric'}"


def visible(text: str) -> str:
    """Return a text whose control characters can be seen."""
    return text.translate(_VISIBLE)
