"""The published figures: every row says what was measured, where and how, and the report is made of the rows."""

import json
import runpy
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
RESULTS = sorted((BENCHMARKS / "results").glob("*.json"))


@pytest.fixture(scope="module")
def results_text():
    return runpy.run_path(str(BENCHMARKS / "report.py"))["results_text"]


def test_there_are_results():
    assert RESULTS


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_row_says_what_was_measured_where_and_how(path):
    assert (BENCHMARKS / f"{path.stem}.py").is_file()
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert rows
    for row in rows:
        assert row.keys() >= {"name", "target", "measured", "spread", "hardware", "versions", "command"}
        assert row["name"]
        low, high = row["spread"]
        assert low <= row["measured"] <= high
        assert row["hardware"].keys() == {"cpu", "threads"}
        assert row["versions"].keys() > {"python"}
        assert row["command"].startswith(f"OMP_NUM_THREADS=1 python benchmarks/{path.stem}.py")


def test_the_report_is_made_of_the_results(results_text):
    assert (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8") == results_text(BENCHMARKS / "results")


def test_a_figure_on_the_wrong_side_of_its_target_is_missed(results_text, tmp_path):
    place = {"hardware": {"cpu": "a", "threads": 1}, "versions": {"python": "3"}, "command": "c"}
    row = {"name": "x", "target": 2.0, "measured": 3.0, "spread": [3.0, 3.0], **place}
    for name in ("startup", "beam_tree"):  # seconds, of which less is better; times faster
        (tmp_path / f"{name}.json").write_text(json.dumps([row]))
    faster, seconds = (line for line in results_text(tmp_path).splitlines() if line.startswith("| x"))
    assert faster == "| x | >= 2 | 3 | 3 to 3 | met |"
    assert seconds == "| x | <= 2 | 3 | 3 to 3 | **missed** |"
