"""Tables of an evaluation and of a comparison, for a terminal and for everything else."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rlkit.report.compare import Comparison

KS = (5, 10, 50)
INTERVAL_K = 10
LEVELS = {"": "semantic-ID level", "item/": "item level"}
BOTH_LEVELS = "semantic-ID level and item level, which are equal"


def evaluation_table(
    rows: Sequence[Mapping[str, Any]], level: str = "", ks: Sequence[int] = KS, title: str | None = None
) -> Table:
    """Lay out models and baselines together: HR@K and NDCG@K, with 95 % intervals at 10.

    The best value of each column is bold; the ceiling of generated data is dim and takes no part in that.

    Args:
        rows: the ``rows`` of ``eval.json``.
        level: ``""`` for semantic IDs, ``"item/"`` for items.
        ks: the cut-offs shown; those that were not measured are left out.
        title: what stands above; none: the level.
    """
    metrics = [f"{level}{name}@{k}" for name in ("hit_rate", "ndcg") for k in ks]
    metrics = [metric for metric in metrics if metric in rows[0]["metrics"]]
    table = Table(
        title=title or LEVELS[level], title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False
    )
    table.add_column("", no_wrap=True)
    for metric in metrics:
        interval = len("[.123,.456]") if metric.endswith(f"@{INTERVAL_K}") else None
        table.add_column(_heading(metric.removeprefix(level)), justify="right", min_width=interval)
    best = {
        metric: max((row["metrics"][metric] for row in rows if row["kind"] != "ceiling"), default=None)
        for metric in metrics
    }
    for row in rows:
        cells = [_cell(row, metric, best[metric]) for metric in metrics]
        table.add_row(_name(row), *cells, style="dim" if row["kind"] == "ceiling" else None)
    return table


def evaluation_tables(report: Mapping[str, Any]) -> list[Table]:
    """Return the tables of an evaluation: one for every level that it measured, one in all where they are equal."""
    rows = report.get("rows") or [{"name": "model", "kind": "model", **report}]
    levels = [level for level in LEVELS if any(name.startswith(f"{level}hit_rate@") for name in rows[0]["metrics"])]
    if len(levels) == len(LEVELS) and all(_levels_are_equal(row[part]) for row in rows for part in ("metrics", "ci95")):
        return [evaluation_table(rows, title=BOTH_LEVELS)]
    return [evaluation_table(rows, level) for level in levels]


def _levels_are_equal(values: Mapping[str, Any]) -> bool:
    return all(values[name] == values.get(f"item/{name}") for name in values if not name.startswith("item/"))


def show(table: Table) -> None:
    """Print a table: as wide as the terminal, elsewhere as Markdown that is not wrapped."""
    console = Console()
    if console.is_terminal:
        console.print(table)
    else:
        print(plain_text(table), end="")


def comparison_table(comparison: Comparison) -> Table:
    """Lay out two runs metric by metric, with the paired difference, its 95 % interval and p."""
    a_name, b_name = escape(comparison.a), escape(comparison.b)
    title = f"{b_name} against {a_name}: {comparison.num_rows:,} rows, {comparison.num_users:,} users"
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, caption=comparison.test, caption_justify="left"
    )
    table.add_column("")
    for heading in (a_name, b_name, "difference", "95 %", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    for metric, (a, b, paired) in comparison.metrics.items():
        clear = paired.low > 0 or paired.high < 0
        interval = f"[{_signed(paired.low)},{_signed(paired.high)}]"
        cells = (_short(a, 4), _short(b, 4), _signed(paired.difference), interval, _short(paired.p, 4))
        table.add_row(_heading(metric), *cells, style="bold" if clear else None)
    return table


def plain_text(table: Table, width: int = 160) -> str:
    """Return a table as Markdown for logs and files, no wider than it needs."""
    plain = copy.copy(table)
    plain.box, plain.collapse_padding, plain.pad_edge = box.MARKDOWN, False, True
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as capture:
        console.print(plain)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _heading(metric: str) -> str:
    level, _, name = metric.rpartition("/")
    return f"{level} {name}".strip().replace("hit_rate", "HR").replace("ndcg", "NDCG")


def _name(row: Mapping[str, Any]) -> Text:
    return Text(row["name"], style="" if row["kind"] == "model" else "italic")


def _cell(row: Mapping[str, Any], metric: str, best: float | None) -> Text:
    value = row["metrics"][metric]
    is_best = value == best and row["kind"] != "ceiling"
    text = Text(_short(value, 4), style="bold" if is_best else "")
    if metric.endswith(f"@{INTERVAL_K}"):
        low, high = row["ci95"][metric]
        text.append(f" [{_short(low, 3)},{_short(high, 3)}]", style="not bold")  # breaks before the bracket only
    return text


def _short(value: float, digits: int) -> str:
    """Write a share without the zero before its point, as tables of this field do."""
    return f"{value:.{digits}f}".removeprefix("0")


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("0.", ".", 1)
