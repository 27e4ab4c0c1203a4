"""Comparing two runs, from the files that an evaluation writes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlkit.errors import RunError
from rlkit.records import Source
from rlkit.recsys.data.catalog import Interaction
from rlkit.recsys.evaluation import EvaluationRows, evaluate_ranked
from rlkit.recsys.evaluation_files import eval_report, write_ranked, write_report
from rlkit.report.compare import compare_runs
from rlkit.report.tables import comparison_table, plain_text

N = 12
SID_OF_ITEM = np.arange(N) // 2  # two items share every SID
ROWS = [
    Interaction(f"u{index // 3}", (index % N,), (index * 5) % N, Source(f"/data/{index // 150}/test.csv", index + 2))
    for index in range(300)
]


def rank(hit_every: int, seed: int = 0) -> np.ndarray:
    """Rank four SIDs a row; every ``hit_every``-th row has the target first, the others do not list it."""
    rng = np.random.default_rng(seed)
    ranked = []
    for index, row in enumerate(ROWS):
        target = SID_OF_ITEM[row.target]
        others = rng.permutation([sid for sid in range(N // 2) if sid != target])
        ranked.append([target, *others[:3]] if index % hit_every == 0 else others[:4])
    return np.array(ranked)


def write_run(folder: Path, ranked: np.ndarray, ks: tuple[int, ...] = (1, 4), prefix: str = "s") -> Path:
    evaluate = folder / "evaluate"
    evaluate.mkdir(parents=True)
    rows = EvaluationRows(ROWS, SID_OF_ITEM, ROWS, ks)
    write_report(evaluate / "eval.json", eval_report(rows, [evaluate_ranked(rows, "sft", ranked)]))
    names = ([f"k{item}" for item in range(N)], [f"{prefix}{sid}" for sid in range(N // 2)])
    write_ranked(evaluate / "ranked.jsonl", rows, names, ranked)
    return folder


def test_a_real_difference_is_found_with_its_size(tmp_path: Path) -> None:
    # 75 of 300 rows against 100: HR +25 / 300. At item level half of a hit at k = 1, all of it at k = 4.
    a, b = write_run(tmp_path / "a", rank(4)), write_run(tmp_path / "b", rank(3))
    compared = compare_runs(a, b)
    assert (compared.a, compared.b, compared.num_rows, compared.num_users) == ("a", "b", 300, 100)
    value_a, value_b, paired = compared.metrics["hit_rate@4"]
    assert (value_a, value_b) == (75 / 300, 100 / 300)
    assert paired.difference == pytest.approx(25 / 300)
    assert compared.metrics["item/hit_rate@1"][2].difference == pytest.approx(12.5 / 300)
    assert compared.metrics["item/hit_rate@4"][2].difference == pytest.approx(25 / 300)


def test_swapping_the_runs_turns_the_difference_round(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", rank(4)), write_run(tmp_path / "b", rank(3))
    there, back = (compare_runs(*runs).metrics["ndcg@4"][2] for runs in ((a, b), (b, a)))
    assert there.difference == -back.difference
    assert there.p == back.p


def test_a_run_does_not_differ_from_itself(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", rank(4)), write_run(tmp_path / "b", rank(4))
    for _, _, paired in compare_runs(a, b).metrics.values():
        assert (paired.difference, paired.p) == (0, 1)


def test_an_evaluation_is_found_by_its_own_folder_and_under_the_name_of_its_stage(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", rank(4)), write_run(tmp_path / "b", rank(3))
    expected = compare_runs(a, b).metrics
    final = (b / "evaluate").rename(b / "final")
    assert compare_runs(a, b).metrics == compare_runs(a, final).metrics == expected


def test_only_cut_offs_that_both_runs_have_are_compared(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", rank(4), (1, 2, 4)), write_run(tmp_path / "b", rank(3), (2, 3))
    assert {name.partition("@")[2] for name in compare_runs(a, b).metrics} == {"2"}


def test_other_semantic_ids_leave_item_level_only(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", rank(4)), write_run(tmp_path / "b", rank(3), prefix="other")
    compared = compare_runs(a, b)
    assert not compared.same_semantic_ids
    assert all(name.startswith("item/") for name in compared.metrics)


def edit_line(run: Path, number: int, change: Callable[[dict[str, Any]], Any]) -> None:
    path = run / "evaluate/ranked.jsonl"
    lines = path.read_text().splitlines()
    entry = json.loads(lines[number - 1])
    change(entry)
    lines[number - 1] = json.dumps(entry)
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("key", ["source", "user", "target"])
def test_the_first_row_that_differs_is_named(tmp_path: Path, key: str) -> None:
    a, b = write_run(tmp_path / "a", rank(4)), write_run(tmp_path / "b", rank(3))
    for number in (17, 40):
        edit_line(b, number, lambda entry: entry.update({key: "something else"}))
    with pytest.raises(RunError, match=rf"ranked\.jsonl:17: {key} is 'something else'"):
        compare_runs(a, b)


def test_a_run_with_fewer_rows_is_refused(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", rank(4)), write_run(tmp_path / "b", np.tile(np.arange(4), (300, 1)))
    path = b / "evaluate/ranked.jsonl"
    # Targets repeat every 12 rows, so the first 288 have the metrics of all 300 and the count alone is wrong.
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:288]))
    report = json.loads((b / "evaluate/eval.json").read_text())
    assert report["metrics"]["hit_rate@4"] == pytest.approx(2 / 3, abs=0.01)
    with pytest.raises(RunError, match="has 288 rows"):
        compare_runs(a, b)


def test_ranked_lists_of_another_evaluation_are_refused(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", rank(4)), write_run(tmp_path / "b", rank(3))
    (b / "evaluate/ranked.jsonl").write_text((a / "evaluate/ranked.jsonl").read_text())
    with pytest.raises(RunError, match=r"hit_rate@1 of its rows is 0\.25"):
        compare_runs(a, b)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", rank(4))
    with pytest.raises(RunError, match=r"nowhere/evaluate/eval\.json: does not exist"):
        compare_runs(a, tmp_path / "nowhere")
    b = write_run(tmp_path / "b", rank(3))
    edit_line(b, 5, lambda entry: entry.pop("rank"))
    with pytest.raises(RunError, match=r"ranked\.jsonl:5: lacks \['rank'\]"):
        compare_runs(a, b)
    with (b / "evaluate/ranked.jsonl").open("a") as file:
        file.write('{"cut off')
    with pytest.raises(RunError, match=r"ranked\.jsonl:301: not valid JSON"):
        compare_runs(a, b)


def test_the_table_shows_every_metric_with_its_test(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", rank(4)), write_run(tmp_path / "b[red]", rank(3))
    text = plain_text(comparison_table(compare_runs(a, b)))
    assert "b[red] against a: 300 rows, 100 users" in text
    assert "sign-flip permutation by user" in text
    (line,) = (line for line in text.splitlines() if line.startswith("| HR@4 "))
    assert [cell.strip() for cell in line.split("|")][2:5] == [".2500", ".3333", "+.0833"]
