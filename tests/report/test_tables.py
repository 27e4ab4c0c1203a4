"""The table of an evaluation."""

import io
from typing import Any

import pytest
from rich.console import Console

from rlkit.report.tables import evaluation_table, evaluation_tables, plain_text, show


def row(name: str, kind: str, hit_rate: float, ndcg: float) -> dict[str, Any]:
    metrics = {"hit_rate@5": hit_rate, "hit_rate@10": hit_rate, "ndcg@10": ndcg, "item/hit_rate@10": hit_rate / 2}
    ci95 = {metric: [value - 0.01, value + 0.01] for metric, value in metrics.items()}
    return {"name": name, "kind": kind, "metrics": metrics, "ci95": ci95}


ROWS = [
    row("grpo [seed 1]", "model", 0.15, 0.11),
    row("item-kNN", "baseline", 0.16, 0.1),
    row("true distribution", "ceiling", 0.16, 0.3),
]


def shown(width: int, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="standard")
    with console.capture() as capture:
        console.print(evaluation_table(ROWS, **options))
    return capture.get()


def test_off_a_terminal_the_table_is_plain_markdown() -> None:
    assert plain_text(evaluation_table(ROWS)).splitlines() == [
        "semantic-ID level",
        "",
        "|                   |  HR@5 |             HR@10 |           NDCG@10 |",
        "|-------------------|-------|-------------------|-------------------|",
        "| grpo [seed 1]     | .1500 | .1500 [.140,.160] | .1100 [.100,.120] |",
        "| item-kNN          | .1600 | .1600 [.150,.170] | .1000 [.090,.110] |",
        "| true distribution | .1600 | .1600 [.150,.170] | .3000 [.290,.310] |",
        "",
    ]


def test_the_best_is_bold_and_the_ceiling_is_dim_and_not_the_best() -> None:
    model, baseline, ceiling = (line for line in shown(120).splitlines() if ",." in line)  # each has an interval
    assert "\x1b[1m.1100" in model
    assert "\x1b[1m.1500" not in model
    assert "\x1b[1m.1600" in baseline
    assert "\x1b[2m" in ceiling
    assert "\x1b[1" not in ceiling


def test_item_level_has_its_own_table() -> None:
    text = plain_text(evaluation_table(ROWS, level="item/"))
    assert text.startswith("item level")
    assert ".0750 [.065,.085]" in text
    assert "NDCG" not in text


def test_levels_that_differ_have_a_table_each_and_levels_that_are_equal_share_one() -> None:
    assert [table.title for table in evaluation_tables({"rows": ROWS})] == ["semantic-ID level", "item level"]
    rows = [{**one, "metrics": dict(one["metrics"]), "ci95": dict(one["ci95"])} for one in ROWS]
    for one in rows:
        for part in (one["metrics"], one["ci95"]):
            part |= {f"item/{name}": value for name, value in part.items() if not name.startswith("item/")}
    (table,) = evaluation_tables({"rows": rows})
    assert plain_text(table).startswith("semantic-ID level and item level, which are equal\n")
    assert plain_text(table).splitlines()[1:] == plain_text(evaluation_table(ROWS)).splitlines()[1:]
    rows[1]["ci95"]["item/ndcg@10"] = [0.0, 1.0]
    assert len(evaluation_tables({"rows": rows})) == 2


def test_off_a_terminal_no_row_is_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    show(
        evaluation_table(
            [row("a name that is longer than a terminal of eighty columns has room for", "model", 0.1, 0.2)]
        )
    )
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| a name")]
    assert line.endswith("| .2000 [.190,.210] |")


def test_a_narrow_terminal_breaks_cells_and_cuts_none() -> None:
    text = shown(52)
    assert "…" not in text
    assert "[.140,.160]" in text
