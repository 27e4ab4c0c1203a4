"""The evaluation in a run report: models and baselines in one table, their intervals, and buckets of rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rlkit.report.charts import Interval, interval_chart, number
from rlkit.report.run_files import finite, is_number
from rlkit.report.style import html_table
from rlkit.report.tables import KS, LEVELS, answer_caption, answer_heading, metric_groups


def evaluation_html(folder: str, report: Mapping[str, Any]) -> str:
    """Return the section of one evaluation; empty where it holds no numbers.

    Args:
        folder: where it lies in the run.
        report: its ``eval.json``.
    """
    rows = _evaluated(report)
    if not rows:
        return ""
    levels = [level for level in LEVELS if f"{level}hit_rate@10" in rows[0]["metrics"]]
    if len(levels) == 2 and all(_same_levels(row["metrics"]) for row in rows):
        levels = [""]  # every item has its own semantic ID
    others = _by_use(rows)
    tables = [_ranking_table(rows, level, len(levels) > 1) for level in levels] or _answer_tables(rows, report)
    headline = f"{levels[0]}ndcg@10" if levels else others[0]
    counts = ", ".join(f"{report[key]:,} {key}" for key in ("n", "users", "invalid") if is_number(report.get(key)))
    note = f'<p class="note">{escape(counts.replace(" n", " rows", 1))}; 95 % intervals in brackets.</p>'
    parts = [f"<h2>{escape(folder)}</h2>", *tables, note, _intervals(rows, headline), _buckets(report, headline)]
    return f"<section>{''.join(parts)}</section>"


def _evaluated(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the report's rows with their numbers; without rows, the result alone."""
    listed = report.get("rows") if isinstance(report.get("rows"), list) else None
    rows = listed or [{"name": "model", "kind": "model", **report}]
    return [
        {**row, "metrics": numbers, "ci95": _mapping(row, "ci95"), "paired": _mapping(row, "paired")}
        for row in rows
        if isinstance(row, dict) and (numbers := finite(row.get("metrics")))
    ]


def _mapping(row: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = row.get(key)
    return value if isinstance(value, dict) else {}


def _same_levels(metrics: Mapping[str, float]) -> bool:
    return all(metrics.get(f"item/{name}") == value for name, value in metrics.items() if not name.startswith("item/"))


def _ranking_table(rows: Sequence[Mapping[str, Any]], level: str, titled: bool) -> str:
    wanted = [f"{level}{name}@{k}" for name in ("hit_rate", "ndcg") for k in KS]
    metrics = [metric for metric in wanted if metric in rows[0]["metrics"]]
    title = f"<h3>{LEVELS[level]}</h3>" if titled else ""
    return title + _metric_table(rows, metrics, [_heading(metric.removeprefix(level)) for metric in metrics])


def _by_use(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the metrics, first those that most rows have: what baselines are measured by is what counts."""
    counts = Counter(metric for row in rows for metric in row["metrics"])
    return [metric for metric, _ in counts.most_common()]


def _answer_tables(rows: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> list[str]:
    tables = []
    for title, metrics in metric_groups(rows).items():
        shown = [row for row in rows if not row["metrics"].keys().isdisjoint(metrics)]
        caption = answer_caption(metrics, _mapping(report, "measured"))
        note = f'<p class="note">{escape(caption)}</p>' if caption else ""
        headings = [answer_heading(metric) for metric in metrics]
        tables.append(f"<h3>{escape(title)}</h3>{_metric_table(shown, metrics, headings)}{note}")
    return tables


def _metric_table(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str], headings: Sequence[str]) -> str:
    compared = next((row["paired_with"] for row in rows if row.get("paired_with")), None)
    tested = [metric for metric in metrics if any(metric in row["paired"] for row in rows)][-1:]
    tests = [f"{_heading(metric)} against {compared}" for metric in tested]
    best = {metric: _best(rows, metric) for metric in metrics}
    body = []
    for row in rows:
        cells = [_cell(row, metric, best[metric]) for metric in metrics]
        cells += [_paired(row["paired"].get(metric)) for metric in tested]
        kind = escape(str(row.get("kind", "model")))
        body.append(f'<tr class="{kind}"><th>{escape(str(row.get("name", "")))}</th>{"".join(cells)}</tr>')
    return html_table(["", *headings, *tests], body)


def _best(rows: Sequence[Mapping[str, Any]], metric: str) -> float | None:
    """Return the highest value of a metric; the ceiling of generated data takes no part."""
    values = [row["metrics"].get(metric) for row in rows if row.get("kind") != "ceiling"]
    return max((value for value in values if value is not None), default=None)


def _cell(row: Mapping[str, Any], metric: str, best: float | None) -> str:
    value = row["metrics"].get(metric)
    if value is None:
        return "<td></td>"
    bounds = _bounds(row, metric)
    interval = f" <small>[{number(bounds[0])}, {number(bounds[1])}]</small>" if bounds and "@" not in metric else ""
    if bounds and metric.endswith("@10"):
        interval = f" <small>[{bounds[0]:.3f}, {bounds[1]:.3f}]</small>"
    shown = f"{value:.4f}" if "@" in metric else number(value)
    marked = f"<b>{shown}</b>" if "@" in metric and value == best and row.get("kind") != "ceiling" else shown
    return f"<td>{marked}{interval}</td>"


def _bounds(row: Mapping[str, Any], metric: str) -> tuple[float, float] | None:
    pair = row["ci95"].get(metric)
    return (pair[0], pair[1]) if isinstance(pair, list) and len(pair) == 2 and all(map(is_number, pair)) else None


def _paired(test: Any) -> str:
    if not isinstance(test, dict) or not is_number(test.get("difference")):
        return "<td></td>"
    low, high = test.get("ci95") or (None, None)
    interval = f"[{low:+.4f}, {high:+.4f}]" if is_number(low) and is_number(high) else ""
    p: Any = test.get("p")
    chance = "" if not is_number(p) else f", p {p:.3f}" if p >= 0.001 else ", p &lt; 0.001"
    return f"<td>{test['difference']:+.4f} <small>{interval}{chance}</small></td>"


def _intervals(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    shown = [
        Interval(str(row.get("name", "")), row["metrics"][metric], *bounds, _kind(row))
        for row in rows
        if metric in row["metrics"] and (bounds := _bounds(row, metric))
    ]
    title = f"{_heading(metric)} with 95 % intervals"
    return f'<div class="wide">{interval_chart(title, shown)}</div>' if len(shown) > 1 else ""


def _kind(row: Mapping[str, Any]) -> str:
    return row["kind"] if row.get("kind") in ("model", "baseline", "ceiling") else "model"


def _buckets(report: Mapping[str, Any], headline: str) -> str:
    buckets = report.get("buckets")
    metrics = [metric for metric in ("hit_rate@10", "ndcg@10") if headline.endswith("@10")]
    rows = []
    for name, values in buckets.items() if isinstance(buckets, dict) and metrics else ():
        numbers = finite(values)
        cells = [f"<td>{numbers.get('n', 0):,.0f}</td>", *(f"<td>{numbers.get(m, 0.0):.4f}</td>" for m in metrics)]
        rows.append(f"<tr><th>{escape(str(name))}</th>{''.join(cells)}</tr>")
    if not rows:
        return ""
    table = html_table(["rows of the result", "n", *map(_heading, metrics)], rows)
    return f"<details><summary>by bucket</summary>{table}</details>"


def _heading(metric: str) -> str:
    return metric.replace("hit_rate", "HR").replace("ndcg", "NDCG").replace("_", " ").replace("item/", "item ")
