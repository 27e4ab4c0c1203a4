"""What the benchmarks do alike: the option ``--out``, the layout of a row, and the file that holds the rows."""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def argument_parser(script: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser with ``--out``; each benchmark adds how often it measures.

    Args:
        script: path of the benchmark, whose name is that of its results.
        description: its docstring.
    """
    path = Path(script)
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=path.parent / "results" / f"{path.stem}.json")
    return parser


def figures(name: str, target: float | None, values: Sequence[float]) -> dict[str, Any]:
    """Return the part of a row that says what was measured: the median, between the smallest and largest value."""
    return {
        "name": name,
        "target": target,
        "measured": statistics.median(values),
        "spread": [min(values), max(values)],
    }


def speedup(name: str, target: float | None, pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return figures of how many times faster the subject is than its peer.

    Args:
        name: what was measured.
        target: the ratio wanted, if any.
        pairs: seconds of the peer and of the subject, measured in turn.
    """
    return {
        **figures(name, target, [peer / subject for peer, subject in pairs]),
        "pairs": len(pairs),
        "seconds": [statistics.median(column) for column in zip(*pairs)],
    }


def conditions(packages: Sequence[str], threads: int) -> dict[str, Any]:
    """Return the part of a row that says where it was measured, with what, and by which command."""
    return {
        "hardware": {"cpu": cpu_model(), "threads": threads},
        "versions": {"python": platform.python_version(), **{package: installed(package) for package in packages}},
        "command": shlex.join(["OMP_NUM_THREADS=1", "python", *sys.argv]),
    }


def cpu_model() -> str:
    """Return the processor's name, or the kind of machine where the system does not tell."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def installed(package: str) -> str:
    """Return a package's version; a peer may be missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a benchmark's rows, in place of those of an earlier run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=2) + "\n")
