"""How long the light commands take, from the shell's point of view, beside TRL's.

Every round starts each command once, in turn; the figure is the median of the rounds. ``trl`` runs where its console
script lies beside the interpreter.

    OMP_NUM_THREADS=1 python benchmarks/startup.py [--rounds N] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(rows, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "startup.json")
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
        "name": name,
        "unit": "seconds",
        "target": COMMANDS[name][1],
        "measured": statistics.median(own),
        "spread": [min(own), max(own)],
        "rounds": len(own),
        **({"peer": shlex.join(["trl", *COMMANDS[name][2]]), "peer_measured": statistics.median(peer)} if peer else {}),
        "hardware": {"cpu": cpu_model(), "threads": 1},
        "versions": versions("rlkit", "typer", "pydantic", "trl", "transformers"),
        "command": shlex.join(["OMP_NUM_THREADS=1", "python", *sys.argv]),
    }


def versions(*packages: str) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
