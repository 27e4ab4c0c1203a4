"""Tables of an evaluation and of a comparison, for a terminal and for everything else."""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rlkit.report.comparison import Comparison

SAMPLED = "sampled/"
_QUALITY = ("exact_match", "reward/", "win_rate/", "bleu", "rouge_1", "rouge_2", "rouge_l")
_WORDING = ("completion_length", "truncated", "distinct_1", "distinct_2", "forbidden", "refused")
GROUPS = {
    "greedy answers": _QUALITY,
    "wording of the greedy answers": _WORDING,
    "sampled answers": tuple(SAMPLED + name for name in _QUALITY + _WORDING),
    "the models": ("perplexity", "kl", "ability", "own_ability"),
}
"""Which metrics of answers stand in one table; a name with a slash at its end means all that begin like it."""
WITHOUT_INTERVAL = ("bleu", "rouge", "completion_length", "truncated", "distinct")
"""Metrics whose intervals are left to ``eval.json``."""
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
    if not any("hit_rate@" in name for row in rows for name in row["metrics"]):
        return answer_tables(rows, report.get("measured", {}))
    levels = [level for level in LEVELS if any(name.startswith(f"{level}hit_rate@") for name in rows[0]["metrics"])]
    if len(levels) == len(LEVELS) and all(_levels_are_equal(row[part]) for row in rows for part in ("metrics", "ci95")):
        return [evaluation_table(rows, title=BOTH_LEVELS)]
    return [evaluation_table(rows, level) for level in levels]


def metric_groups(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Sort the metrics of answers into tables, by title; what no table names comes last."""
    names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    groups = {
        title: [name for part in parts for name in names if name == part or (part[-1] == "/" and name.startswith(part))]
        for title, parts in GROUPS.items()
    }
    known = {name for group in groups.values() for name in group}
    groups["more"] = [name for name in names if name not in known]
    return {title: group for title, group in groups.items() if group}


def answer_tables(rows: Sequence[Mapping[str, Any]], measured: Mapping[str, Any] | None = None) -> list[Table]:
    """Lay out models of text: one table for the greedy answers, one for samples, one for the models themselves.

    Args:
        rows: the ``rows`` of ``eval.json``.
        measured: what the figures are of, for the captions.
    """
    tables = []
    for title, metrics in metric_groups(rows).items():
        shown = [row for row in rows if any(metric in row["metrics"] for metric in metrics)]
        caption = answer_caption(metrics, measured or {})
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
        table.caption, table.caption_justify = caption or None, "left"
        table.add_column("", no_wrap=True)
        for metric in metrics:
            table.add_column(answer_heading(metric), justify="right", min_width=_interval_width(shown, metric))
        for row in shown:
            table.add_row(_name(row), *(_answer_cell(row, metric) for metric in metrics))
        tables.append(table)
    return tables


def answer_heading(metric: str) -> str:
    """Return the heading of a metric of answers."""
    name = metric.removeprefix(SAMPLED).replace("_", " ").replace("/", " ")
    return {"bleu": "BLEU", "rouge 1": "R-1", "rouge 2": "R-2", "rouge l": "R-L"}.get(name, name)


def answer_caption(metrics: Sequence[str], measured: Mapping[str, Any]) -> str:
    """Return what a reader must know of these metrics: the reference, how many samples, what guessing gets."""
    reference, parts = measured.get("reference"), []
    if reference and any("win_rate/" in metric for metric in metrics):
        parts.append(f"win rate against {reference}, ties half")
    if reference and "kl" in metrics:
        parts.append(f"KL to {reference}, nats per token of the samples")
    if any(metric.startswith(SAMPLED) for metric in metrics):
        parts.append(f"{measured.get('samples')} per prompt at temperature {measured.get('temperature', 1):g}")
    chances = measured.get("chance") or {}
    parts += [f"{answer_heading(name)} by guessing: {decimals(chances[name])}" for name in metrics if name in chances]
    return "; ".join(parts)


def _answer_cell(row: Mapping[str, Any], metric: str) -> Text:
    value = row["metrics"].get(metric)
    text = Text("" if value is None else decimals(value))
    if interval := _interval(row, metric):
        text.append(f" {interval}")  # breaks before the bracket only
    return text


def _interval(row: Mapping[str, Any], metric: str) -> str:
    bounds = row["ci95"].get(metric)
    if not bounds or metric.removeprefix(SAMPLED).startswith(WITHOUT_INTERVAL):
        return ""
    return f"[{decimals(bounds[0])},{decimals(bounds[1])}]"


def _interval_width(rows: Sequence[Mapping[str, Any]], metric: str) -> int | None:
    return max(len(_interval(row, metric)) for row in rows) or None


def decimals(value: float) -> str:
    """Write a number with about three digits that mean something: shares to a thousandth, lengths to a tenth."""
    if abs(value) < 1:
        return f"{value:.3f}".replace("0.", ".", 1)
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:,.0f}"


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
    counted = f"{comparison.num_rows:,} rows, {comparison.num_users:,} users"
    if "prompt" in comparison.test:
        counted = f"{comparison.num_rows:,} prompts"
    title = f"{b_name} against {a_name}: {counted}"
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
        table.add_row(_compared_heading(metric), *cells, style="bold" if clear else None)
    for name, share in comparison.wins.items():
        interval = f"[{_short(share.low, 4)},{_short(share.high, 4)}]"
        cells = ("", _short(share.difference, 4), "", interval, _short(share.p, 4))
        table.add_row(f"wins by {answer_heading(name)}", *cells)
    return table


def _compared_heading(metric: str) -> str:
    if "@" in metric:
        return _heading(metric)
    return f"sampled {answer_heading(metric)}" if metric.startswith(SAMPLED) else answer_heading(metric)


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
    return re.sub(r"^([+-])0\.", r"\1.", f"{value:+.4f}")
