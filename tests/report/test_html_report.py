"""The run report: everything that a run holds on one page, whatever is missing, and nothing from outside."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rlkit.report.charts import MAX_POINTS, Series, line_chart, number, thin, ticks
from rlkit.report.curves import curves_html, phase_seconds
from rlkit.report.html import write_report

SHAPES = {"line", "circle", "rect", "polyline"}


class Page(HTMLParser):
    """Checks that elements nest, and keeps what a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        self.open += [tag] if tag != "meta" else []

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        assert tag in SHAPES, f"<{tag}/> is an open <{tag}> in HTML"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] != "style":
            self.seen.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(self.seen)


def result(name: str, kind: str, value: float, **more: object) -> dict:
    """Return a row of an evaluation in which every item has its own semantic ID."""
    metrics = {f"{level}{metric}": value for level in ("", "item/") for metric in ("hit_rate@10", "ndcg@10")}
    intervals = {metric: [value - 0.02, value + 0.02] for metric in metrics}
    return {"name": name, "kind": kind, "metrics": metrics, "ci95": intervals, **more}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Return a run directory with a bit of everything."""
    (tmp_path / "recipe.yaml").write_text(
        "name: shop <i>\nseed: 3\ndomain:\n  type: recommendation\n  data:\n    type: demo\n"
        "stages:\n  sft: {}\n  grpo: {}\n  evaluate: {}\n"
    )
    environment = {"python": "3.11.7", "cpus": 2, "versions": {"torch": "2.13.0"}, "plugins": {"rlkit-short": "0.1"}}
    (tmp_path / "environment.json").write_text(json.dumps(environment))
    stages = {
        "sft": {"seconds": 30.0, "finished": "2026-11-20T10:00:00Z", "artefacts": {"policy": {"hash": "abc123"}}},
        "grpo": {"seconds": 90.0, "finished": "2026-11-20T10:02:00Z", "artefacts": {}},
    }
    (tmp_path / "manifest.json").write_text(json.dumps({"stages": stages}))
    rows: list[dict] = [{"stage": "sft", "step": step, "time": 1.0, "loss": 3 - step / 10} for step in (1, 2, 3)]
    rows.append({"stage": "sft", "step": 3, "time": 1.0, "eval_loss": 2.75, "eval_runtime": 9.87})
    parts = {"reward/item_match": 0.25, "reward/rank_discount": -0.125, "seconds/rollout": 1.5, 'my"><i>metric': 42.5}
    rows += [{"stage": "grpo", "step": step, "reward": 0.125 * step, **parts} for step in (1, 2)]
    rows.append({"stage": "evaluate", "step": 0, "model": "grpo", "users_per_second": 277.0})
    lines = [json.dumps(row) for row in rows] + ['{"stage": "grpo", "step": 3, "rew']  # cut short by a kill
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    sample = {"stage": "grpo", "prompt": "<script>alert(1)</script>", "answer": "5", "truncated": True, "reward": 0.5}
    samples = [{**sample, "step": step, "completion": f"at {step} \ud800\x01"} for step in (0, 10, 20)]
    (tmp_path / "samples.jsonl").write_text("\n".join(json.dumps(row) for row in samples))
    paired = {"ndcg@10": {"difference": 0.0125, "ci95": [-0.001, 0.026], "p": 0.0625}}
    listed = [
        result("sft", "model", 0.1),
        result("grpo", "model", 0.1125, paired_with="sft", paired=paired),
        result("item-kNN", "baseline", 0.1375),
        result("true distribution", "ceiling", 0.2),
    ]
    buckets = {"target cold": {"n": 7, "hit_rate@10": 0.0625, "ndcg@10": 0.03125}}
    report = {**listed[1], "n": 640, "users": 207, "invalid": 0, "rows": listed, "buckets": buckets}
    (tmp_path / "evaluate").mkdir()
    (tmp_path / "evaluate" / "eval.json").write_text(json.dumps(report))
    return tmp_path


def page_of(run_dir: Path) -> Page:
    """Write the report and read it."""
    return Page(write_report(run_dir).read_text(encoding="utf-8"))


def test_the_page_needs_nothing_from_outside_and_runs_no_script(run_dir: Path) -> None:
    page = page_of(run_dir)
    assert page.links == []
    assert not {"script", "i"} & set(page.tags)
    html = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "http" not in html
    assert "@import" not in html
    assert "prefers-color-scheme: dark" in html


def test_what_models_and_people_wrote_is_text_and_not_markup(run_dir: Path) -> None:
    page = page_of(run_dir)
    assert "<script>alert(1)</script>" in page.text
    assert "shop <i>" in page.text
    assert "at 20 ?\u2401" in page.text  # half a character, and a control character


def test_the_headline_table_holds_models_baselines_and_tests(run_dir: Path) -> None:
    text = page_of(run_dir).text
    assert "grpo 0.1125 [0.092, 0.133] 0.1125 [0.092, 0.133] +0.0125 [-0.0010, +0.0260], p 0.062" in text
    assert "item-kNN 0.1375" in text
    assert "640 rows, 207 users, 0 invalid" in text
    assert "target cold 7 0.0625 0.0312" in text
    assert "item level" not in text, "the levels are equal here"


def test_the_best_value_is_marked_and_the_ceiling_takes_no_part(run_dir: Path) -> None:
    write_report(run_dir)
    html = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "<b>0.1375</b>" in html
    assert "<b>0.2000</b>" not in html


def test_levels_that_differ_get_a_table_each(run_dir: Path) -> None:
    path = run_dir / "evaluate" / "eval.json"
    report = json.loads(path.read_text())
    report["rows"][0]["metrics"]["item/ndcg@10"] = 0.0875
    path.write_text(json.dumps(report))
    text = page_of(run_dir).text
    assert text.index("semantic-ID level") < text.index("item level") < text.index("0.0875")


def test_an_evaluation_without_rankings_shows_what_it_measured(run_dir: Path) -> None:
    report = {"metrics": {"exact_match": 0.625}, "ci95": {"exact_match": [0.5, 0.75]}, "n": 40}
    (run_dir / "evaluate" / "eval.json").write_text(json.dumps(report))
    text = page_of(run_dir).text
    assert "exact match" in text
    assert "0.625 [0.5, 0.75]" in text


def test_every_evaluation_of_a_run_is_shown(run_dir: Path) -> None:
    again = run_dir / "evaluate-num_beams_100"
    again.mkdir()
    (again / "eval.json").write_text((run_dir / "evaluate" / "eval.json").read_text())
    text = page_of(run_dir).text
    assert text.index(" evaluate ") < text.index("evaluate-num_beams_100")


def test_curves_have_train_and_valid_in_one_panel(run_dir: Path) -> None:
    text = page_of(run_dir).text
    assert "loss train 2.7 valid 2.75" in text
    assert "parts of the reward item match 0.25 rank discount -0.125" in text
    assert 'my"><i>metric 42.5' in text, "a plugin's metric gets a panel of its own"
    assert "9.87" not in text, "technical metrics are left out"
    assert "277" not in text, "a row about a model is no curve"


def test_time_is_shown_per_stage_and_per_phase(run_dir: Path) -> None:
    text = page_of(run_dir).text
    assert "sft 30 s, 25% grpo 90 s, 75%" in text
    assert "rollout 3 s, 100%" in text


def test_samples_are_those_of_the_first_and_the_last_step(run_dir: Path) -> None:
    text = page_of(run_dir).text
    assert "at 0 " in text
    assert "at 10 " not in text
    assert "cut off" in text


def test_what_it_was_made_with_and_what_is_open_is_said(run_dir: Path) -> None:
    text = page_of(run_dir).text
    for shown in ("torch 2.13.0", "rlkit-short 0.1", "hash abc123", "seed 3", "not finished: evaluate", "type: demo"):
        assert shown in text, shown


@pytest.mark.parametrize(
    "name", ["recipe.yaml", "environment.json", "manifest.json", "metrics.jsonl", "samples.jsonl", "evaluate/eval.json"]
)
@pytest.mark.parametrize(
    "damage", [None, b"", b"{[\xff", b"[1, 2]", b'{"stages": 3, "metrics": [1], "versions": 4, "step": null}']
)
def test_a_part_that_is_missing_or_damaged_is_left_out(run_dir: Path, name: str, damage: bytes | None) -> None:
    if damage is None:
        (run_dir / name).unlink()
    else:
        (run_dir / name).write_bytes(damage)
    assert "made with" in page_of(run_dir).text


def test_an_empty_folder_gives_an_empty_report(tmp_path: Path) -> None:
    assert page_of(tmp_path).seen == [f"{tmp_path.name} - rlkit", tmp_path.name]


def test_the_same_run_gives_the_same_bytes(run_dir: Path) -> None:
    first = write_report(run_dir).read_bytes()
    assert write_report(run_dir).read_bytes() == first


def test_a_report_needs_no_torch(run_dir: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from rlkit.report.html import write_report; "
        f"write_report(Path({str(run_dir)!r})); print(*sys.modules)"
    )
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert (run_dir / "report.html").is_file()
    assert {"torch", "numpy"}.isdisjoint(modules)


def test_ticks_are_round_numbers_within_the_range() -> None:
    assert ticks(0.0, 1.0) == [0.0, 0.5, 1.0]  # a quarter is .25; the next of 1, 2, 5 is .5
    assert ticks(0.31, 0.37) == [0.32, 0.34, 0.36]
    assert ticks(-3.0, 7.0) == [0.0, 5.0]
    assert ticks(0.0, 30_000.0) == [0.0, 10_000.0, 20_000.0, 30_000.0]


def test_numbers_have_the_digits_that_count() -> None:
    written = [number(value) for value in (0, -0.0, 0.5, 1234.5678, 123456.7, 0.0001, 0.000012345, -0.25)]
    assert written == ["0", "0", "0.5", "1235", "123,457", "1e-4", "1.23e-5", "-0.25"]


def test_long_curves_are_thinned_to_means_of_neighbors() -> None:
    points = [(float(step), float(step % 2)) for step in range(2 * MAX_POINTS)]
    thinned = thin(points)
    assert len(thinned) == MAX_POINTS
    assert thinned[1] == (2.5, 0.5)  # of (2, 0) and (3, 1)
    assert thin(points[:5]) == points[:5]


def test_a_curve_goes_up_where_the_value_does() -> None:
    html = line_chart("loss", [Series("train", [(0, 1.0), (10, 3.0), (20, 2.0)])])
    places = html.split('points="')[1].split('"')[0].split()
    x, y = zip(*(map(float, place.split(",")) for place in places))
    assert x[0] < x[1] < x[2]
    assert y[1] < y[2] < y[0]  # SVG counts from the top


def test_a_small_change_looks_small() -> None:
    html = line_chart("HR@10", [Series("valid", [(0, 0.346), (10, 0.35)], sparse=True)])
    y = [float(part.split('"')[0]) for part in html.split('cy="')[1:]]
    # 1 % of the value; the axis spans at least 10 % of it, so the curve fills at most a tenth of the 120 units
    assert 0 < y[0] - y[1] <= 12


@pytest.mark.parametrize("value", [0.0, 5.0, -1.5, 1e-12, 1e12])
def test_a_constant_curve_is_drawn(value: float) -> None:
    curve = line_chart("x", [Series("train", [(1, value), (2, value)])])
    (x, y), (other_x, other_y) = (place.split(",") for place in curve.split('points="')[1].split('"')[0].split())
    assert (x, other_x, other_y) == ("46.0", "312.0", y)  # level, over the whole width: 320 less the margins 46 and 8
    assert 8 <= float(y) <= 128  # between the margins of 8 above and 22 below, of 150
    dot = line_chart("x", [Series("train", [(7, value)])])
    assert f'cx="179.0" cy="{y}"' in dot  # in the middle of 46 to 312, at the same height
    for chart in (curve, dot):
        assert number(value) in Page(chart).seen


def test_values_that_are_no_numbers_make_no_curve() -> None:
    rows = [{"stage": "a", "step": 1, "loss": float("nan"), "name": "x", "done": True}, {"stage": "a", "loss": 1.0}]
    assert curves_html(rows) == ""
    assert phase_seconds([{"seconds/rollout": 1.0}, {"seconds/rollout": 2.0, "seconds/x": None}]) == {"rollout": 3.0}
