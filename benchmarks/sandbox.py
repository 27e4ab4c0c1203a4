"""How many honest solutions the sandbox judges per second: HumanEval's shape, on two workers.

The five tasks of the public sample are judged over and over, each by calls that cross from the process of the tests to
that of the code and back. A second row has programs that read standard input and print.

    OMP_NUM_THREADS=1 python benchmarks/sandbox.py [--rounds N] [--data FILE] [--level LEVEL] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from common import argument_parser, conditions, figures, write_rows

from rlkit.chat.verifiers.sandbox import isolation
from rlkit.chat.verifiers.sandbox.job import Case, Checks
from rlkit.chat.verifiers.sandbox.pool import Sandbox

SAMPLES, WORKERS, TARGET = 40, 2, 20.0
DATA = Path(__file__).parent.parent.parent / "shared" / "data" / "humaneval_sample" / "HumanEval_first5.jsonl"
PROGRAM = ("a, b = map(int, input().split())\nprint(a + b)", Checks(cases=(Case("2 3\n", "5\n"),)))


def main() -> None:
    arguments = parse_arguments()
    sandbox = Sandbox(WORKERS, timeout_seconds=60, level=arguments.level)
    jobs = {"HumanEval solutions per second": solutions(arguments.data), "programs per second": [PROGRAM]}
    rows = [row(f"{name}, {sandbox.level}", sandbox, work, arguments.rounds) for name, work in jobs.items()]
    sandbox.close()
    for found in rows:
        low, high = found["spread"]
        print(f"{found['name']}: {found['measured']:.1f} ({low:.1f} to {high:.1f}; target >= {found['target']})")
    write_rows(arguments.out, rows)


def parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__file__, __doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--data", type=Path, default=DATA, help="JSONL rows of HumanEval")
    parser.add_argument("--level", choices=isolation.LEVELS, help="default: the strongest of this host")
    return parser.parse_args()


def solutions(path: Path) -> list[tuple[str, Checks]]:
    """Return the reference solutions with their tests."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        (row["prompt"] + row["canonical_solution"], Checks((row["test"],), (row["prompt"],), row["entry_point"]))
        for row in rows
    ]


def row(name: str, sandbox: Sandbox, work: list[tuple[str, Checks]], rounds: int) -> dict[str, Any]:
    jobs = (work * SAMPLES)[:SAMPLES]
    sandbox.run(work)
    rates = [rate(sandbox, jobs) for _ in range(rounds)]
    return {
        **figures(name, TARGET, rates),
        "unit": "per second",
        "samples": SAMPLES,
        "layers": list(sandbox.layers),
        **conditions(("rlkit",), threads=WORKERS),
    }


def rate(sandbox: Sandbox, jobs: list[tuple[str, Checks]]) -> float:
    start = time.perf_counter()
    results = sandbox.run(jobs)
    took = time.perf_counter() - start
    assert all(result.kind == "passed" for result in results), results
    return len(jobs) / took


if __name__ == "__main__":
    main()
