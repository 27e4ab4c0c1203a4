"""Write ``RESULTS.md`` from ``results/*.json``: every speed and size figure, its target, and the command that gives it.

python benchmarks/report.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
AT_MOST = ("startup", "trie")
"""Their figures are seconds, bytes and cost ratios: less is better. All others say how many times faster."""
HEADER = """# Measured

Made from `benchmarks/results/*.json` by `python benchmarks/report.py`. Ratios are medians of interleaved pairs, with
the smallest and largest pair; each is measured beside its peer in one run. Times of single commands move with the load
of the machine, ratios much less.
"""


def main() -> None:
    """Write the file."""
    (HERE / "RESULTS.md").write_text(results_text(HERE / "results"), encoding="utf-8")


def results_text(folder: Path) -> str:
    """Return the report of a folder of results: for each file where it was measured, and a table of its rows."""
    lines = [HEADER]
    for path in sorted(folder.glob("*.json")):
        rows = json.loads(path.read_text(encoding="utf-8"))
        lines += [
            f"\n## {path.stem}\n",
            _place(rows[0]),
            "",
            "| what | target | measured | spread | |",
            "| --- | --- | --- | --- | --- |",
        ]
        lines += [_row(row, "<=" if path.stem in AT_MOST else ">=") for row in rows]
    return "\n".join(lines) + "\n"


def _place(row: dict[str, Any]) -> str:
    hardware, versions = row["hardware"], row["versions"]
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"`{row['command']}` on {hardware['cpu']}, {hardware['threads']} thread(s); {software}."


def _row(row: dict[str, Any], sign: str) -> str:
    target, measured = row.get("target"), row["measured"]
    spread = row.get("spread") or []
    met = target is None or (measured <= target if sign == "<=" else measured >= target)
    verdict = "" if target is None else "met" if met else "**missed**"
    numbers = " to ".join(f"{value:.3g}" for value in spread)
    goal = "" if target is None else f"{sign} {target:.3g}"
    return f"| {row['name']} | {goal} | {measured:.3g} | {numbers} | {verdict} |"


if __name__ == "__main__":
    main()
