"""The run report: one HTML file that needs nothing else, made from what lies in a run directory.

Whatever is missing is left out, so a report can be written at any time. It depends on the files alone: the same run
gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rlkit.report.charts import MAX_POINTS, bar_chart, number
from rlkit.report.curves import curves_html, phase_seconds
from rlkit.report.evaluation_section import evaluation_html
from rlkit.report.run_files import RunFiles, finite, is_number, read_run
from rlkit.report.style import STYLE, html_table
from rlkit.run_directory import write_atomically

REPORT_FILE = "report.html"
SAMPLES_PER_STAGE = 12
"""Half of them from the first step that has any, half from the last."""
ALARMS_SHOWN = 40
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
"""Control characters, which models do sample, as their pictures."""


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run directory and return its path."""
    page = report_html(read_run(run_dir))
    path = run_dir / REPORT_FILE
    write_atomically(path, page.encode("utf-8", "replace").decode("utf-8"))  # a sample may hold half a character
    return path


def report_html(run: RunFiles) -> str:
    """Return the page."""
    sections = [
        _head(run),
        _alarms(run),
        *(evaluation_html(folder, report) for folder, report in run.evaluations.items()),
        *(_training(stage, [row for row in run.metrics if row.get("stage") == stage]) for stage in run.stage_names),
        _time(run),
        _samples(run),
        _made_with(run),
        _recipe(run),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(run.name)} - rlkit</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def _head(run: RunFiles) -> str:
    facts = []
    for label, value in (
        ("domain", _path(run.recipe, "domain", "type")),
        ("data", _path(run.recipe, "domain", "data", "path") or _path(run.recipe, "domain", "data", "type")),
        ("model", _path(run.recipe, "model", "path") or _path(run.recipe, "model", "preset")),
        ("engine", _path(run.recipe, "engine", "type")),
        ("seed", run.recipe.get("seed")),
    ):
        if value is not None:
            facts.append(f"<span>{label} <b>{escape(str(value))}</b></span>")
    open_stages = [stage for stage in run.stage_names if run.stages and stage not in run.stages]
    note = f"<p>not finished: {escape(', '.join(open_stages))}</p>" if open_stages else ""
    return f'<header><h1>{escape(run.name)}</h1><p class="facts">{" ".join(facts)}</p>{note}</header>'


def _path(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


# ---- alarms, training, time, samples


def _alarms(run: RunFiles) -> str:
    rows = [
        f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in _alarm_cells(row))}</tr>"
        for row in run.alarms[:ALARMS_SHOWN]
    ]
    more = len(run.alarms) - len(rows)
    note = f'<p class="note">and {more} more in alarms.jsonl</p>' if more else ""
    titles = ["stage", "step", "since", "alarm", "symptom", "likely cause", "change", "done"]
    return f"<section><h2>alarms</h2>{html_table(titles, rows)}{note}</section>" if rows else ""


def _alarm_cells(row: Mapping[str, Any]) -> Iterable[str]:
    for key in ("stage", "step", "since", "alarm", "symptom", "cause", "change", "done"):
        value = row.get(key, "")
        yield ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _training(stage: str, rows: Sequence[Mapping[str, Any]]) -> str:
    curves = curves_html(rows)
    return f"<section><h2>{escape(stage)}</h2>{curves}</section>" if curves else ""


def _time(run: RunFiles) -> str:
    stages = [(name, entry["seconds"]) for name, entry in run.stages.items() if is_number(entry.get("seconds"))]
    charts = [bar_chart("seconds per stage", stages, "s")] if stages else []
    for stage in run.stage_names:
        phases = phase_seconds(row for row in run.metrics if row.get("stage") == stage)
        if phases:
            ordered = sorted(phases.items(), key=lambda pair: -pair[1])
            charts.append(bar_chart(f"{stage}: seconds per phase", ordered, "s"))
    return f'<section><h2>time</h2><div class="wide">{"".join(charts)}</div></section>' if charts else ""


def _samples(run: RunFiles) -> str:
    tables = []
    for stage in run.stage_names:
        rows = _first_and_last([row for row in run.samples if row.get("stage") == stage])
        if rows:
            body = [f"<tr>{''.join(_sample_cells(row))}</tr>" for row in rows]
            tables.append(html_table([f"{stage}, step", "prompt", "completion", "answer", "reward"], body, "samples"))
    return f"<section><h2>samples</h2>{''.join(tables)}</section>" if tables else ""


def _first_and_last(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    steps = [row.get("step") for row in rows]
    if not rows or steps[0] == steps[-1]:
        return list(rows[:SAMPLES_PER_STAGE])
    half = SAMPLES_PER_STAGE // 2
    first, last = ([row for row in rows if row.get("step") == step][:half] for step in (steps[0], steps[-1]))
    return [*first, *last]


def _sample_cells(row: Mapping[str, Any]) -> Iterable[str]:
    parts = finite(row.get("parts"))
    named = ", ".join(f"{escape(name)} {number(value)}" for name, value in parts.items())
    reward = number(row["reward"]) if is_number(row.get("reward")) else ""
    notes = {"completion": " <small>cut off</small>"} if row.get("truncated") is True else {}
    yield f"<td>{escape(str(row.get('step', '')))}</td>"
    for key in ("prompt", "completion", "answer"):
        text = str(row.get(key, "")).translate(_VISIBLE)
        yield f"<td><pre>{escape(text)}</pre>{notes.get(key, '')}</td>"
    yield f"<td>{reward} <small>{named}</small></td>"


# ---- what it was made with


def _made_with(run: RunFiles) -> str:
    tables = [table for table in (_finished_table(run), _versions_table(run)) if table]
    note = f'<p class="note">Curves of more than {MAX_POINTS} points show the means of neighbors.</p>'
    return f"<section><h2>made with</h2>{''.join(tables)}{note}</section>" if tables else ""


def _finished_table(run: RunFiles) -> str:
    rows = []
    for name, entry in run.stages.items():
        artefacts = entry.get("artefacts")
        policy = artefacts.get("policy") if isinstance(artefacts, dict) else None
        hashes = ", ".join(f"{key} {value}" for key, value in policy.items()) if isinstance(policy, dict) else ""
        cells = f"<td>{escape(str(entry.get('finished', '')))}</td><td>{escape(hashes)}</td>"
        rows.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    return html_table(["stage", "finished", "hashes of its model"], rows) if rows else ""


def _versions_table(run: RunFiles) -> str:
    facts = {key: run.environment[key] for key in ("python", "platform", "cpus") if key in run.environment}
    for key in ("versions", "plugins"):
        more = run.environment.get(key)
        facts |= more if isinstance(more, dict) else {}
    rows = [f"<tr><th>{escape(str(key))}</th><td>{escape(str(value))}</td></tr>" for key, value in facts.items()]
    return html_table(["", "version"], rows) if rows else ""


def _recipe(run: RunFiles) -> str:
    if not run.recipe_text:
        return ""
    return f"<section><details><summary>recipe</summary><pre>{escape(run.recipe_text)}</pre></details></section>"
