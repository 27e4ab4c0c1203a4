"""Charts as inline SVG: curves, intervals and bars. No scripts; colors come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

MAX_POINTS = 300
"""Longer curves show the means of neighbors."""
COLORS = 6
"""Classes ``s0`` to ``s5`` of the style sheet."""

_WIDTH, _HEIGHT = 320, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 8, 22


class Series(NamedTuple):
    """One curve."""

    name: str
    points: Sequence[tuple[float, float]]
    """(step, value), in the order of the log."""
    sparse: bool = False
    """Looked at now and then, so each point gets a dot."""


class Interval(NamedTuple):
    """One row of an interval chart."""

    name: str
    value: float
    low: float
    high: float
    kind: str
    """A class of the style sheet: model, baseline or ceiling."""


def number(value: float) -> str:
    """Write a number with the digits that count: four, or three of a small one."""
    if value and abs(value) < 1e-3:
        digits, _, power = f"{value:.2e}".partition("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value + 0.0:.4g}"  # + 0.0: no minus before a zero


def tick_step(low: float, high: float, count: int) -> float:
    """Return 1, 2 or 5 times a power of ten, so that about ``count`` of it fit between two numbers."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about ``count`` round numbers between two others, which differ."""
    step = tick_step(low, high, count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{place * step:.12g}") for place in range(first, last + 1)]


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most ``MAX_POINTS`` points, each the mean of its neighbors."""
    size = math.ceil(len(points) / MAX_POINTS)
    parts = [points[start : start + size] for start in range(0, len(points), max(size, 1))]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def line_chart(title: str, series: Sequence[Series]) -> str:
    """Draw curves over steps as a figure with its title, the latest values and a legend.

    Args:
        title: what is shown; also the name for those who cannot see it.
        series: at least one, each with a point.
    """
    drawn = [Series(one.name, thin(one.points), one.sparse) for one in series]
    across = _Axis.of([x for one in drawn for x, _ in one.points])
    up = _Axis.rounded([y for one in drawn for _, y in one.points])
    body = [_grid(across, up), *(_curve(one, index, across, up) for index, one in enumerate(drawn))]
    svg = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(body)}</svg>'
    return f"<figure><figcaption>{escape(title)}{_legend(series)}</figcaption>{svg}</figure>"


class _Axis(NamedTuple):
    """The range of an axis."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> _Axis:
        """Return the range of values; around a single one, a range that it stands in the middle of."""
        low, high = min(values), max(values)
        pad = (abs(low) * 0.1 or 1.0) if high == low else 0.0
        return cls(low - pad, high + pad)

    @classmethod
    def rounded(cls, values: Sequence[float], count: int = 4) -> _Axis:
        """Return a range that ends at round numbers, and so wide that a change of a few percent looks small."""
        low, high = min(values), max(values)
        pad = max(0.1 * max(abs(low), abs(high)) - (high - low), 0.0) / 2
        low, high = max(low - pad, 0.0 if low >= 0 else -math.inf), high + pad or 1.0
        step = tick_step(low, high, count)
        return cls(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step)

    def x(self, value: float) -> float:
        """Return a place from left to right."""
        return round(_LEFT + (value - self.low) / (self.high - self.low) * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        """Return a place from the top down."""
        return round(_HEIGHT - _BOTTOM - (value - self.low) / (self.high - self.low) * (_HEIGHT - _TOP - _BOTTOM), 1)


def _grid(across: _Axis, up: _Axis) -> str:
    lines = []
    for value in ticks(*up):
        y = up.y(value)
        lines.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        lines.append(f'<text class="tick" x="{_LEFT - 5}" y="{y + 3}" text-anchor="end">{number(value)}</text>')
    for value in (value for value in ticks(*across) if value == int(value)):
        place = f'x="{across.x(value)}" y="{_HEIGHT - 7}"'
        lines.append(f'<text class="tick" {place} text-anchor="middle">{value:,.0f}</text>')
    return "".join(lines)


def _curve(one: Series, index: int, across: _Axis, up: _Axis) -> str:
    color = f"s{index % COLORS}"
    places = [(across.x(x), up.y(y)) for x, y in one.points]
    line = f'<polyline class="{color}" points="{" ".join(f"{x},{y}" for x, y in places)}"/>'
    if not one.sparse and len(places) > 1:
        return line
    dots = (
        f'<circle class="{color}" cx="{x}" cy="{y}" r="2.5"><title>step {step:,.0f}: {number(value)}</title></circle>'
        for (x, y), (step, value) in zip(places, one.points)
    )
    return line + "".join(dots)


def _legend(series: Sequence[Series]) -> str:
    """Return the latest value of each curve, with its color and name where there are several."""
    entries = []
    for index, one in enumerate(series):
        name = f"{escape(one.name)} " if len(series) > 1 else ""
        entries.append(f'<span class="key k{index % COLORS}">{name}<b>{number(one.points[-1][1])}</b></span>')
    return "".join(entries)


def interval_chart(title: str, rows: Sequence[Interval]) -> str:
    """Draw values with their intervals, one row each, on a common scale."""
    width, left, right, height = 640, 170, 24, 24
    axis = _Axis.rounded([bound for row in rows for bound in (row.low, row.high)], count=6)

    def x(value: float) -> float:
        return round(left + (value - axis.low) / (axis.high - axis.low) * (width - left - right), 1)

    bottom = height * len(rows) + 8
    parts = []
    for value in ticks(*axis, count=6):
        parts.append(f'<line class="grid" x1="{x(value)}" x2="{x(value)}" y1="4" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x(value)}" y="{bottom + 13}" text-anchor="middle">{number(value)}</text>')
    for index, row in enumerate(rows):
        y = height * index + height // 2 + 4
        shown = f"{number(row.value)} [{number(row.low)}, {number(row.high)}]"
        parts.append(
            f'<text class="label {row.kind}" x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(row.name)}</text>'
        )
        parts.append(f'<line class="whisker {row.kind}" x1="{x(row.low)}" x2="{x(row.high)}" y1="{y}" y2="{y}"/>')
        dot = f'<circle class="dot {row.kind}" cx="{x(row.value)}" cy="{y}" r="4.5">'
        parts.append(f"{dot}<title>{escape(row.name)}: {shown}</title></circle>")
    box = f'viewBox="0 0 {width} {bottom + 20}"'
    svg = f'<svg {box} role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>"


def bar_chart(title: str, bars: Sequence[tuple[str, float]], unit: str) -> str:
    """Draw horizontal bars from 0, with their values and shares."""
    width, left, right, height = 640, 170, 130, 22
    longest = max(value for _, value in bars) or 1.0
    total = sum(value for _, value in bars) or 1.0
    parts = []
    for index, (name, value) in enumerate(bars):
        y = height * index
        length = round(value / longest * (width - left - right), 1)
        parts.append(f'<text class="label" x="{left - 10}" y="{y + 15}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect class="bar" x="{left}" y="{y + 4}" width="{length}" height="{height - 8}" rx="2"/>')
        shown = f"{number(value)} {unit}, {value / total:.0%}"
        parts.append(f'<text class="tick" x="{left + length + 6}" y="{y + 15}">{escape(shown)}</text>')
    box = f'viewBox="0 0 {width} {height * len(bars) + 4}"'
    svg = f'<svg {box} role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>"
