"""How long the light commands take, from the shell's point of view, beside TRL's.

Every round starts each command once, in turn; the figure is the median of the rounds. ``trl`` runs where its console
script lies beside the interpreter.

    OMP_NUM_THREADS=1 python benchmarks/startup.py [--rounds N] [--out FILE]
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import argument_parser, conditions, figures, write_rows

# name -> (arguments of rlkit, seconds allowed, arguments of trl that are the same)
COMMANDS: dict[str, tuple[list[str], float, list[str]]] = {
    "rlkit --help": (["--help"], 0.3, ["--help"]),
    "rlkit grpo --help": (["grpo", "--help"], 0.5, ["grpo", "--help"]),
    "rlkit validate of a config": (["validate", "recipe.yaml", "--no-data"], 1.0, []),
}
RECIPE = """\
name: startup
domain: {type: recommendation}
stages:
  semantic_ids: {type: semantic_ids}
  sft: {algorithm: {type: sft}, train: {extra: {adam_epsilon: 1e-9}}}
  grpo: {algorithm: {type: grpo, rewards: [{type: item_match}, {type: rank_discount}]}}
  evaluate: {type: evaluate}
"""


def main() -> None:
    arguments = parse_arguments()
    rows = measure(arguments.rounds)
    for row in rows:
        low, high = row["spread"]
        peer = f"; trl: {row['peer_measured']:.2f} s" if "peer_measured" in row else ""
        spread = f"{low:.2f} to {high:.2f}; target <= {row['target']} s"
        print(f"{row['name']}: {row['measured']:.3f} s ({spread}{peer})")
    write_rows(arguments.out, rows)


def parse_arguments() -> argparse.Namespace:
    parser = argument_parser(__file__, __doc__)
    parser.add_argument("--rounds", type=int, default=11)
    return parser.parse_args()


def measure(rounds: int) -> list[dict[str, Any]]:
    """Return a row for every command; a first round, which fills the caches of the file system, is not counted."""
    scripts = Path(sys.executable).parent
    times: dict[str, list[tuple[float, float | None]]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "recipe.yaml").write_text(RECIPE)
        for _ in range(rounds + 1):
            for name, (own, _, peers) in COMMANDS.items():
                peer = seconds([str(scripts / "trl"), *peers], folder) if peers and (scripts / "trl").exists() else None
                times[name].append((seconds([str(scripts / "rlkit"), *own], folder), peer))
    return [row(name, times[name][1:]) for name in COMMANDS]


def seconds(command: list[str], folder: str) -> float:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    subprocess.run(
        command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return time.perf_counter() - start


def row(name: str, pairs: list[tuple[float, float | None]]) -> dict[str, Any]:
    own = [pair[0] for pair in pairs]
    peer = [pair[1] for pair in pairs if pair[1] is not None]
    return {
        **figures(name, COMMANDS[name][1], own),
        "unit": "seconds",
        "rounds": len(own),
        **({"peer": shlex.join(["trl", *COMMANDS[name][2]]), "peer_measured": statistics.median(peer)} if peer else {}),
        **conditions(("rlkit", "typer", "pydantic", "trl", "transformers"), threads=1),
    }


if __name__ == "__main__":
    main()
