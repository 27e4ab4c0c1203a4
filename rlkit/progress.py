"""Progress of a stage: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SHOWN = ("loss", "eval_loss", "reward", "eval_hit_rate@10", "eval_ndcg@10", "eval_reward", "kl", "zero_signal")
LABELS = {
    "eval_loss": "valid loss",
    "eval_hit_rate@10": "valid HR@10",
    "eval_ndcg@10": "valid NDCG@10",
    "eval_reward": "valid reward",
}
PLAIN_EVERY_SECONDS = 10.0


class StageProgress:
    """Shows how far a stage is.

    Args:
        stage: its name.
        total: steps in all.
        done: steps that an earlier call already did.
    """

    def __init__(self, stage: str, total: int, done: int = 0, unit: str = "step") -> None:
        self.stage, self.total, self.unit = stage, total, unit
        self.first = self.step = done
        self.started = self.printed = time.monotonic()
        self.latest: dict[str, float] = {}
        self.said = ""
        self.bar: Progress | None = None
        if 0 < done < total:
            print(f"{stage}: goes on after {unit} {done} of {total}", file=sys.stderr, flush=True)
        if sys.stderr.isatty():
            self.bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[metrics]}"),
                console=Console(stderr=True),
            )
            self.task = self.bar.add_task(stage, total=total, completed=done, metrics="")
            self.bar.start()

    def advance(self, step: int) -> None:
        """Move to a step."""
        self.step = step
        if self.bar:
            self.bar.update(self.task, completed=step)

    def show(self, step: int, metrics: dict[str, float]) -> None:
        """Show the latest metrics, the newest value of each."""
        self.latest |= {name: metrics[name] for name in SHOWN if isinstance(metrics.get(name), int | float)}
        self.latest = {name: value for name, value in self.latest.items() if not math.isnan(value)}  # none was measured
        self.step = step
        if self.bar:
            self.bar.update(self.task, completed=step, metrics=self._metrics())
        elif time.monotonic() - self.printed > PLAIN_EVERY_SECONDS:
            self.printed = time.monotonic()
            self._print()

    def close(self) -> None:
        """End the display; off a terminal with the last line, unless it stands there."""
        if self.bar:
            self.bar.stop()
            self.bar = None
        else:
            self._print()

    def _print(self) -> None:
        left = f", {self._left()} left" if self.first < self.step < self.total else ""  # unknown before the first
        line = f"{self.stage}: {self.unit} {self.step}/{self.total}{left}  {self._metrics()}".rstrip()
        if line != self.said:
            print(line, file=sys.stderr, flush=True)
        self.said = line

    def _metrics(self) -> str:
        return "  ".join(f"{LABELS.get(name, name)} {value:.4g}" for name, value in self.latest.items())

    def _left(self) -> str:
        seconds = (time.monotonic() - self.started) / (self.step - self.first) * (self.total - self.step)
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
