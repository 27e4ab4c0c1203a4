"""Explain a run in a few lines: what happened, since when, the likely cause, and what to change.

It reads what the run left: its log, alarms, metrics, quarantine and blackbox. Where no monitor looked, the same rules
are applied to the metrics, a row per log.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkit.config.monitor import MonitorSettings
from rlkit.errors import RunError
from rlkit.monitor.alarms import Watch
from rlkit.monitor.history import History
from rlkit.report.run_files import RunFiles, is_number, read_run, rows_of

_EVENT = re.compile(r"^\S+ \S+ [A-Z]+ (?P<stage>[\w-]+): (?P<what>starts$|finished in |ended by )(?P<more>.*)$")
SHOWN = 6
"""Kinds of alarms of a stage."""


def explain(path: Path) -> list[str]:
    """Return the lines.

    Raises:
        RunError: the folder holds no run.
    """
    if not (path / "recipe.yaml").is_file() and not (path / "manifest.json").is_file():
        raise RunError(f"{path}: no run here; name a run directory such as runs/minionerec_grpo")
    run = read_run(path)
    if not run.stage_names:
        raise RunError(f"{path}: recipe.yaml names no stages, and nothing has run; name a run directory")
    lines = [f"{path}: {_ending(run, path)}"]
    found = {stage: _alarms(run, stage) for stage in run.stage_names}
    for stage, alarms in found.items():
        lines += _told(stage, alarms)
    lines += [f"  {line}" for line in (*_not_finite(run), *_quarantine(path), *_blackbox(run, path))]
    if not any(found.values()):
        lines += [f"  {line}" for line in _course(run)] or ["  no metrics"]
    return lines


# ---- how it ended


def _ending(run: RunFiles, path: Path) -> str:
    open_stages = [stage for stage in run.stage_names if stage not in run.stages]
    last = _last_event(path)
    if not open_stages:
        if not _watched(run):
            return "finished; nobody watched (monitor: null)"
        count = len(run.alarms)
        return "finished" + (", no alarm" if not count else f", {count} alarm{'s' if count > 1 else ''} on the way")
    if last is None:
        return f"not finished: {', '.join(open_stages)}; its log says nothing"
    stage, what, more = last
    step = _last_step(run, stage)
    at = f" after step {step}" if step else ""
    if what == "finished in ":
        return f"finished up to {stage}; not run yet: {', '.join(open_stages)}"
    again = "goes on from its checkpoint" if _has_checkpoint(path / stage) else "starts it again"
    if what == "starts":
        return f"not finished: {stage} is still running, or was killed{at}; the same command {again}"
    kind, _, said = more.partition(": ")
    if kind in ("KeyboardInterrupt", "SystemExit"):
        return f"interrupted in {stage}{at}; the same command {again}"
    return f"not finished: {stage} ended{at} by {kind}: {said}"


def _has_checkpoint(stage: Path) -> bool:
    return any(stage.glob("checkpoints/checkpoint-*/complete.json"))


def _watched(run: RunFiles) -> bool:
    return run.recipe.get("monitor", {}) is not None


def _last_event(path: Path) -> tuple[str, str, str] | None:
    """Return the last stage that the log names, and what became of it."""
    log = path / "logs" / "rlkit.log"
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    found = next((match for line in reversed(lines) if (match := _EVENT.match(line))), None)
    return (found["stage"], found["what"], found["more"]) if found else None


def _last_step(run: RunFiles, stage: str) -> int:
    return max(
        (row["step"] for row in run.metrics if row.get("stage") == stage and is_number(row.get("step"))), default=0
    )


# ---- alarms


def _alarms(run: RunFiles, stage: str) -> list[dict[str, Any]]:
    said = [row for row in run.alarms if row.get("stage") == stage]
    return said or ([] if _watched(run) else _seen_afterwards(run, stage))


def _seen_afterwards(run: RunFiles, stage: str) -> list[dict[str, Any]]:
    """Return what the rules find in the metrics of a stage that nobody watched.

    No gap: metrics do not hold how much chance there is in a look at the valid split.
    """
    watch = Watch(MonitorSettings(), stage, History(held_out=()))
    found: list[dict[str, Any]] = []
    for row in run.metrics:
        if row.get("stage") != stage or not is_number(row.get("step")):
            continue
        if "reward" in row:
            watch.history.take({name: value for name, value in row.items() if is_number(value)})
            found += [alarm.row() for alarm in watch.lasting() if watch.news(alarm.name)]
    return found


def _told(stage: str, alarms: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the alarms of a stage, each kind once, those that began first before the others."""
    kinds = Counter(str(row.get("alarm")) for row in alarms)
    ordered = sorted(kinds, key=lambda kind: min(_step(row) for row in alarms if row.get("alarm") == kind))
    for kind in ordered[:SHOWN]:
        rows = [row for row in alarms if row.get("alarm") == kind]
        last, count = rows[-1], kinds[kind]
        times = f", {count} times up to step {last.get('step')}" if count > 1 else ""
        yield f"  {stage}: {kind} since step {_step(rows[0])}{times}: {last.get('symptom')}"
        yield f"    likely {last.get('cause')}"
        change = last.get("change")
        yield f"    change {', '.join(map(str, change)) if isinstance(change, list) else change}"
        done = [str(row["done"]) for row in rows if row.get("done")]
        if done:
            yield f"    done: {done[-1]}"
    if len(ordered) > SHOWN:
        yield f"  {stage}: and {', '.join(ordered[SHOWN:])}; see alarms.jsonl"


def _step(row: Mapping[str, Any]) -> int:
    return int(row["since"]) if is_number(row.get("since")) else 0


# ---- what else it left


def _not_finite(run: RunFiles) -> Iterator[str]:
    """Yield since when the loss of a stage is infinite or NaN; the monitor skips such steps, other stages take them."""
    for stage in run.stage_names:
        rows = [row for row in run.metrics if row.get("stage") == stage and is_number(row.get("step"))]
        lost = [row["step"] for row in rows if any(_lost(row.get(name)) for name in ("loss", "eval_loss"))]
        if lost:
            keys = ", ".join(f"stages.{stage}.train.{key}" for key in ("learning_rate", "max_grad_norm", "precision"))
            yield f"{stage}: the loss is infinite or NaN since step {lost[0]}"
            yield f"  likely too large a learning rate, or too low a precision; change {keys}"


def _lost(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _quarantine(path: Path) -> Iterator[str]:
    rows = rows_of(path / "quarantine.jsonl")
    if rows:
        error, count = Counter(str(row.get("error")) for row in rows).most_common(1)[0]
        said = f"{len(rows)} completions could not be scored, {count} of them: {error}"
        yield f"quarantine: {said}; `rlkit rewards replay {path}` tries them again"


def _blackbox(run: RunFiles, path: Path) -> Iterator[str]:
    """Yield the bundles that alarms name; others are of stages that were redone since."""
    for folder in sorted((path / "blackbox").glob("*/about.json")):
        if any(str(row.get("done", "")).endswith(f"blackbox/{folder.parent.name}") for row in run.alarms):
            yield f"blackbox: {folder.parent} holds the batch, the rollout, its log-probs and the last metrics"


def _course(run: RunFiles) -> Iterator[str]:
    """Yield how the loss or the reward of each stage went."""
    for stage in run.stage_names:
        rows = [row for row in run.metrics if row.get("stage") == stage and "model" not in row]
        for name in ("reward", "eval_reward", "loss", "eval_loss"):
            values = [row[name] for row in rows if is_number(row.get(name))]
            if len(values) > 1 and not any(_lost(row.get(name)) for row in rows):
                yield f"{stage}: {name} from {values[0]:.4g} to {values[-1]:.4g} in {_last_step(run, stage)} steps"
                break
