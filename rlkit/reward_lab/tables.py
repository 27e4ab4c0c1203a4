"""What a trial of rewards found, as tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from rich import box
from rich.table import Table

from rlkit.reward_lab.trial import Judged, Trial


def distributions(trial: Trial) -> Table:
    """Return what each part gives to each kind of completion: mean, least, most, errors, and what it takes."""
    table = Table(title="rewards by kind of completion", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("completion", "reward", "n", "mean", "least", "median", "most", "no score", "ms each"):
        table.add_column(heading, justify="left" if heading in ("completion", "reward") else "right", no_wrap=True)
    for kind in dict.fromkeys(row.kind for row in trial.judged):
        rows = [row for row in trial.judged if row.kind == kind]
        names = list(dict.fromkeys(name for row in rows for name in row.outcomes))
        for name in names:
            outcomes = [row.outcomes[name] for row in rows if name in row.outcomes]
            took = sum(outcome.milliseconds for outcome in outcomes) / len(outcomes)
            table.add_row(kind, name, *_numbers([outcome.score for outcome in outcomes]), f"{took:.2f}")
            for part in dict.fromkeys(part for outcome in outcomes for part in outcome.parts):
                scores = [outcome.parts[part] for outcome in outcomes if part in outcome.parts]
                table.add_row("", f"  {part}", *_numbers(scores), "")
        if len(names) > 1:
            table.add_row("", "together", *_numbers([row.total for row in rows]), "")
    return table


def _numbers(scores: Sequence[float]) -> list[str]:
    known = [score for score in scores if not math.isnan(score)]
    if not known:
        return [str(len(scores)), "", "", "", "", str(len(scores))]
    shown = (np.mean(known), min(known), np.median(known), max(known))
    lost = len(scores) - len(known)
    return [str(len(scores)), *(_shown(float(value)) for value in shown), str(lost) if lost else ""]


def _shown(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}"  # + 0.0: no -0.000


def examples(trial: Trial, count: int) -> Table:
    """Return the completions of each kind that earn most, with the row that their prompt came from."""
    table = Table(title="what earns most", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("completion", "reward", "row", "text"):
        table.add_column(heading, justify="right" if heading == "reward" else "left", no_wrap=heading != "text")
    for kind in dict.fromkeys(row.kind for row in trial.judged):
        rows = [row for row in trial.judged if row.kind == kind and not math.isnan(row.total)]
        for row in sorted(rows, key=_total, reverse=True)[: count if kind == "sample" else 1]:
            text = row.completion if len(row.completion) <= 80 else f"{row.completion[:77]}..."
            table.add_row(kind, _shown(row.total), str(row.prompt.source), repr(text))
    return table


def _total(row: Judged) -> float:
    return row.total
