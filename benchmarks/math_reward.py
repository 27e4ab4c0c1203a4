"""How many completions the reward ``math`` scores a second, and how often it is right on GSM8K's reference solutions.

Each solution of the train split is scored against its own answer, and against the next row's where its value differs.
A second figure is of formulas, which go to math-verify in its process, each pair of them once. Seconds are wall time of
one process and, for formulas, its helper: two cores at most.

    OMP_NUM_THREADS=1 python benchmarks/math_reward.py [--data DIR] [--rounds N] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from common import argument_parser, conditions, figures, write_rows

from rlkit.chat.verifiers.math_reward import math
from rlkit.config.verifiers import MathSettings
from rlkit.policy.text_rewards import Sample, TextReward

PER_SECOND, RIGHT = 300.0, 0.999
FORMULAS = 100


def main() -> None:
    arguments = parse_arguments()
    reward = math(MathSettings(), None)
    own, moved = samples(arguments.data / "train.jsonl")
    reward.score([formula(0)])  # math-verify is imported
    rows = [
        row("GSM8K: reference solutions that score 1", RIGHT, [share(reward, own, 1.0)]),
        row("GSM8K: solutions that score 0 against the next row's answer", RIGHT, [share(reward, moved, 0.0)]),
        row("GSM8K: samples a second", PER_SECOND, rates(reward, own + moved, arguments.rounds)),
        row(
            "formulas compared by math-verify a second",
            None,
            [rate(reward, [formula(number) for number in part(turn)]) for turn in range(arguments.rounds)],
        ),
    ]
    for found in rows:
        low, high = found["spread"]
        goal = "" if found["target"] is None else f"; target >= {found['target']:.5g}"
        print(f"{found['name']}: {found['measured']:.5g} ({low:.5g} to {high:.5g}{goal})")
    write_rows(arguments.out, rows)


def parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__file__, __doc__)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent.parent.parent / "shared" / "data" / "gsm8k")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def samples(path: Path) -> tuple[list[Sample], list[Sample]]:
    """Return solutions with their own answers, and with those of the next row where the value differs."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    answers = [row["answer"].rpartition("####")[2].strip() for row in rows]
    values = [float(answer.replace(",", "")) for answer in answers]
    own = [Sample(row["question"], row["answer"], answer) for row, answer in zip(rows, answers)]
    moved = [
        Sample(row["question"], row["answer"], answers[(at + 1) % len(rows)])
        for at, row in enumerate(rows)
        if values[at] != values[(at + 1) % len(rows)]
    ]
    return own, moved


def part(turn: int) -> range:
    """Return the numbers of a round's formulas, all of them new."""
    return range(1 + turn * FORMULAS, 1 + (turn + 1) * FORMULAS)


def formula(number: int) -> Sample:
    """Return one of many pairs of equal formulas."""
    n = number + 2
    return Sample("", rf"So it is \boxed{{(x+{n})^2}}.", f"x^2+{2 * n}x+{n * n}")


def share(reward: TextReward, rows: list[Sample], wanted: float) -> float:
    scores = reward.score(rows)
    return sum(score == wanted for score in scores) / len(scores)


def rates(reward: TextReward, rows: list[Sample], rounds: int) -> list[float]:
    return [rate(reward, rows) for _ in range(rounds)]


def rate(reward: TextReward, rows: list[Sample]) -> float:
    """Return samples a second."""
    started = time.perf_counter()
    reward.score(rows)
    return len(rows) / (time.perf_counter() - started)


def row(name: str, target: float | None, values: list[float]) -> dict[str, Any]:
    """Return a row of the results."""
    return figures(name, target, values) | conditions(("math-verify", "sympy"), 2)


if __name__ == "__main__":
    main()
