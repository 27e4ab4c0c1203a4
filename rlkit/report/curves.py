"""Which logged metrics belong into which panel, and how they are called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlkit.report.charts import Series, line_chart
from rlkit.report.run_files import is_number

Panel = tuple[str, tuple[str, ...]]

PANELS: tuple[Panel, ...] = (
    ("loss", ("loss", "eval_loss")),
    ("reward", ("reward", "eval_reward")),
    ("parts of the reward", ("reward/",)),
    ("HR@10 on valid", ("eval_hit_rate@10",)),
    ("NDCG@10 on valid", ("eval_ndcg@10",)),
    ("exact match on valid", ("eval_exact_match",)),
    ("KL to the reference", ("kl",)),
    ("entropy", ("entropy", "eval_entropy")),
    ("groups without a signal", ("zero_signal",)),
    ("spread of rewards in a group", ("reward_std",)),
    ("clipped tokens", ("clip_fraction",)),
    ("diversity in a group", ("diversity/",)),
    ("completion length", ("completion_length",)),
    ("truncated completions", ("truncated",)),
    ("token accuracy", ("mean_token_accuracy", "eval_mean_token_accuracy")),
    ("gradient norm", ("grad_norm",)),
    ("learning rate", ("learning_rate",)),
)
"""A title and its metrics, in order; a name that ends in a slash stands for all that begin with it."""

PHASES = {"constants": "reference log-probs", "forward_backward": "forward and backward"}

_NOT_SHOWN = ("seconds/", "train_", "policy_objective")  # times have a chart of their own; sums over a whole run
_NOT_SHOWN_ENDS = ("_runtime", "_per_second", "num_tokens")
_WHERE = ("stage", "step", "time")


def curves_html(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw what a stage logged, a panel per subject; metrics that are not known here come last, each in its own.

    Args:
        rows: the stage's rows of metrics.jsonl.
    """
    found = _series(rows)
    charts = []
    for title, names in PANELS:
        members = [name for wanted in names for name in found if name == wanted or _belongs(name, wanted)]
        if title == "parts of the reward" and len(members) == 1:
            del found[members[0]]  # the reward itself
        elif members:
            charts.append(line_chart(title, [_named(name, names, found.pop(name)) for name in members]))
    charts += [line_chart(name, [Series(name, points, name.startswith("eval_"))]) for name, points in found.items()]
    return f'<div class="panels">{"".join(charts)}</div>' if charts else ""


def phase_seconds(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the seconds of each phase, added up over a stage's rows."""
    totals: dict[str, float] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith("seconds/") and is_number(value):
                phase = name.removeprefix("seconds/")
                phase = PHASES.get(phase, phase.replace("_", " "))
                totals[phase] = totals.get(phase, 0.0) + value
    return totals


def _series(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Return (step, value) of every metric, from rows of training (others name a model and no curve)."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if not is_number(row.get("step")) or "model" in row:
            continue
        for name, value in row.items():
            technical = name in _WHERE or name.startswith(_NOT_SHOWN) or name.endswith(_NOT_SHOWN_ENDS)
            if is_number(value) and not technical:
                found.setdefault(name, []).append((row["step"], value))
    return found


def _belongs(name: str, wanted: str) -> bool:
    return wanted.endswith("/") and name.startswith(wanted)


def _named(name: str, panel: Sequence[str], points: Sequence[tuple[float, float]]) -> Series:
    prefix = next((wanted for wanted in panel if _belongs(name, wanted)), "")
    label = name.removeprefix(prefix) if prefix else "valid" if name.startswith("eval_") else "train"
    return Series(label.replace("_", " "), points, name.startswith("eval_"))
