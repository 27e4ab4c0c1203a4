"""What the algorithms learn on arithmetic: held-out pass@1 before and after, and the curves on the way there.

Runs ``recipes/chat_math_grpo.yaml``: GRPO with three seeds, RLOO and PPO with one, which start from the SFT model of
the first GRPO run. Finished stages are not run again. Prints the tables of ``docs/chat.md`` and draws its figure.

    OMP_NUM_THREADS=1 python benchmarks/chat_math.py [--runs DIR] [--out FILE] [--figure FILE]
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common import argument_parser, conditions, figures, write_rows

from rlkit.report.charts import Series, line_chart
from rlkit.report.style import STYLE

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "chat_math_grpo.yaml"
PASS = 0.9
THREADS = 2
ALGORITHM = "stages.grpo.algorithm"
PPO = (
    f"{ALGORITHM}.type=ppo",
    f"{ALGORITHM}.zero_signal=keep",
    f"{ALGORITHM}.updates_epochs=1",
    f"{ALGORITHM}.value={{learning_rate: 1.0e-3, coef: 0.5}}",
)
LOOKS = 60
"""Steps between the columns of the table."""


class Trained(NamedTuple):
    """A run that is finished."""

    name: str
    before: str
    """pass@1 of SFT with its interval."""
    after: str
    score: float
    curve: list[tuple[float, float]]
    """(step, mean reward of samples on valid)."""
    minutes: float
    """Of all its stages."""


def main() -> None:
    parser = argument_parser(__file__, __doc__)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "chat_math")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "chat_math.svg")
    arguments = parser.parse_args()
    done = [trained(arguments.runs, f"GRPO, seed {seed}", seed, ()) for seed in range(3)]
    for name, overrides in (("RLOO, seed 0", (f"{ALGORITHM}.type=rloo",)), ("PPO, seed 0", PPO)):
        done.append(trained(arguments.runs, name, 0, overrides, sft_of=arguments.runs / folder("GRPO, seed 0")))
    print("\n".join(tables(done)))
    arguments.figure.write_text(drawn(done), encoding="utf-8")
    write_rows(
        arguments.out,
        [
            row("GRPO: held-out pass@1, three seeds", [one.score for one in done[:3]]),
            *(row(f"{one.name}: held-out pass@1", [one.score]) for one in done[3:]),
        ],
    )


def trained(runs: Path, name: str, seed: int, overrides: Sequence[str], sft_of: Path | None = None) -> Trained:
    """Run the recipe, or what is left of it, and read what it came to."""
    run = runs / folder(name)
    words = ["rlkit", "run", str(RECIPE), f"seed={seed}", f"engine.threads={THREADS}", *overrides, "--out", str(run)]
    if sft_of is not None and not run.exists():
        shutil.copytree(sft_of, run)
        words += ["--from", "grpo"]
    subprocess.run([sys.executable, "-m", *words], check=True)
    stages = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["stages"]
    minutes = sum(stage["seconds"] for stage in stages.values()) / 60
    found = json.loads((run / "evaluate" / "eval.json").read_text(encoding="utf-8"))
    (before, _), (after, score) = (pass_at_1(found, model) for model in ("sft", "grpo"))
    return Trained(name, before, after, score, curve(run), minutes)


def folder(name: str) -> str:
    return re.sub(r"\W+", "_", name.lower())


def pass_at_1(found: dict[str, Any], model: str) -> tuple[str, float]:
    """Return pass@1 of a model, as text with its interval, and as a number."""
    measured = next(entry for entry in found["rows"] if entry["name"] == model)
    value, (low, high) = measured["metrics"]["sampled/pass@1/math"], measured["ci95"]["sampled/pass@1/math"]
    return f"{value:.3f} [{low:.3f}, {high:.3f}]", value


def curve(run: Path) -> list[tuple[float, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found = {row["step"]: row["eval_reward"] for row in rows if row["stage"] == "grpo" and "eval_reward" in row}
    return sorted(found.items())


def tables(done: Sequence[Trained]) -> list[str]:
    """Return pass@1 before and after, and the curves at every few steps, as Markdown."""
    lines = ["| run | pass@1 of SFT | pass@1 after | minutes |", "| --- | --- | --- | --- |"]
    lines += [f"| {one.name} | {one.before} | {one.after} | {one.minutes:.1f} |" for one in done]
    steps = [step for step, _ in done[0].curve if step % LOOKS == 0]
    lines += ["", "| step | " + " | ".join(f"{step:.0f}" for step in steps) + " |", "| --- " * (len(steps) + 1) + "|"]
    for one in done:
        values = dict(one.curve)
        lines.append(f"| {one.name} | " + " | ".join(f"{values[step]:.2f}" for step in steps) + " |")
    return lines


def drawn(done: Sequence[Trained]) -> str:
    """Return the curves as an SVG of its own, with a legend."""
    chart = line_chart("reward of samples on valid tasks, by step", [Series(one.name, one.curve) for one in done])
    body = chart[chart.index("<svg ") : chart.index("</figure>")].replace(
        "<svg ", '<svg y="14" overflow="visible" width="320" height="150" ', 1
    )
    style = STYLE[: STYLE.index("* {")] + "\n".join(re.findall(r"^(?:polyline|\.grid).*$", STYLE, re.MULTILINE))
    legend = "".join(
        f'<rect x="{6 + 104 * (place % 3)}" y="{172 + 14 * (place // 3)}" width="9" height="3" fill="var(--c{place})"/>'
        f'<text class="tick" x="{18 + 104 * (place % 3)}" y="{176 + 14 * (place // 3)}">{one.name}</text>'
        for place, one in enumerate(done)
    )
    title = '<text class="tick" x="6" y="11">reward of samples on valid tasks, by step</text>'
    background = '<rect width="330" height="196" fill="var(--page)"/>'
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="660" height="392" viewBox="0 0 330 196" '
        'font-family="system-ui, sans-serif">'
        f"<style>{style}</style>{background}{title}{body}{legend}</svg>\n"
    )


def row(name: str, values: list[float]) -> dict[str, Any]:
    """Return a row of the results."""
    return figures(name, PASS, values) | conditions(("torch", "transformers", "trl"), THREADS)


if __name__ == "__main__":
    main()
