"""Comparing two chat evaluations: paired tests by prompt, answers side by side, and what people say of them."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from rlkit.cli.main import main
from rlkit.errors import RunError
from rlkit.report.compare import compare_runs
from rlkit.report.compare_answers import most_different, read_pairs
from rlkit.report.ratings import key_path, ratings_text, read_ratings, write_sheet
from rlkit.report.side_by_side import show_pairs
from rlkit.report.tables import comparison_table, plain_text

N = 40


def write_run(folder: Path, rewards: list[float], texts: list[str], wanted: list[str] | None = None) -> Path:
    """Write an evaluation as ``rlkit evaluate`` does: answers with these rewards and texts."""
    evaluate = folder / "evaluate"
    evaluate.mkdir(parents=True)
    wanted = wanted or ["yes"] * len(texts)
    rows = []
    for index, (reward, text, answer) in enumerate(zip(rewards, texts, wanted)):
        metrics = {"completion_length": float(len(text)), "reward/model": reward, "win_rate/model": 0.5}
        metrics |= {"exact_match": float(text == answer)} if answer else {}
        row = {"source": f"test.jsonl:{index + 1}", "prompt": f"question {index}", "answer": answer, "completion": text}
        rows.append(row | {"exact_match": text == answer, "truncated": False, "metrics": metrics})
    names = {name for row in rows for name in row["metrics"]}
    means = {name: np.mean([row["metrics"][name] for row in rows if name in row["metrics"]]) for name in names}
    (evaluate / "eval.json").write_text(json.dumps({"metrics": means, "rows": [{"name": "sft", "metrics": means}]}))
    (evaluate / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Return two runs: the second has a higher reward on 30 of 40 prompts, a lower one on 4, the same on 6."""
    texts = [f"answer {index}" for index in range(N)]
    a = write_run(tmp_path / "a", [0.0] * N, texts)
    rewards = [1.0] * 30 + [-1.0] * 4 + [0.0] * 6
    b = write_run(tmp_path / "b", rewards, [f"{text} too" for text in texts[:34]] + texts[34:])
    return a, b


def test_every_metric_is_compared_by_prompt_and_wins_are_counted(runs: tuple[Path, Path]) -> None:
    compared = compare_runs(*runs)
    assert (compared.a, compared.b, compared.num_rows) == ("a", "b", N)
    assert compared.metrics.keys() == {"completion_length", "reward/model", "exact_match"}  # no win rates
    a, b, paired = compared.metrics["reward/model"]
    assert (a, b) == (0, 26 / 40)
    assert paired.difference == pytest.approx(26 / 40)
    assert 0 < paired.low < 26 / 40 < paired.high
    assert paired.p < 0.001
    share = compared.wins["model"]
    assert share.difference == pytest.approx(33 / 40)  # 30 wins and 6 halves
    assert 0.6 < share.low < share.difference < share.high < 0.95
    assert share.p < 0.001
    back = compare_runs(*reversed(runs))
    assert back.wins["model"].difference == pytest.approx(7 / 40)


def test_the_table_shows_prompts_and_wins(runs: tuple[Path, Path]) -> None:
    text = plain_text(comparison_table(compare_runs(*runs)))
    assert text.startswith("b against a: 40 prompts")
    assert re.search(r"\| wins by model +\| +\| +\.8250 \| +\| +\[\.\d{4},\.\d{4}\]", text)
    assert "sign-flip permutation by prompt" in text
    # 34 answers of 40 grew by four letters
    assert re.search(r"\| completion length +\|.*\| +\+3\.4000 \|", text)


def test_a_difference_of_ten_keeps_its_zero(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", [0.0] * 4, ["x"] * 4)
    b = write_run(tmp_path / "b", [0.0] * 4, ["x" * 11] * 4)
    assert "+10.0000" in plain_text(comparison_table(compare_runs(a, b)))


def test_prompts_without_an_answer_take_no_part_in_exact_match(tmp_path: Path) -> None:
    wanted = ["yes", "", "yes", ""]
    a = write_run(tmp_path / "a", [0.0] * 4, ["yes", "x", "no", "x"], wanted)
    b = write_run(tmp_path / "b", [0.0] * 4, ["yes", "y", "yes", "y"], wanted)
    assert compare_runs(a, b).metrics["exact_match"][:2] == (0.5, 1.0)


def test_other_prompts_are_refused_by_line(tmp_path: Path, runs: tuple[Path, Path]) -> None:
    other = write_run(tmp_path / "c", [0.0] * N, ["x"] * N, ["yes"] * 9 + ["no"] * (N - 9))
    with pytest.raises(RunError, match=r"answers.jsonl:10: answer is 'no', but 'yes' in"):
        compare_runs(runs[0], other)
    short = write_run(tmp_path / "d", [0.0] * 3, ["x"] * 3)
    with pytest.raises(RunError, match="has 3 rows, but"):
        compare_runs(runs[0], short)
    paths = [write_run(tmp_path / name, [0.0] * 3, ["x"] * 3, [""] * 3) for name in ("e", "f")]
    file = paths[1] / "evaluate" / "answers.jsonl"
    file.write_text(file.read_text().replace("question 1", "another"))
    with pytest.raises(RunError, match=r"answers.jsonl:2: another prompt than in"):
        compare_runs(*paths)


def test_of_two_runs_the_one_without_an_evaluation_is_named(runs: tuple[Path, Path], tmp_path: Path) -> None:
    for pair in ((runs[0], tmp_path / "bare"), (tmp_path / "bare", runs[0])):
        with pytest.raises(
            RunError, match=r"bare/evaluate/\w+\.jsonl?: does not exist; name a run whose evaluate stage"
        ):
            compare_runs(*pair)


def test_answers_that_are_not_the_reports_are_refused(runs: tuple[Path, Path]) -> None:
    file = runs[1] / "evaluate" / "answers.jsonl"
    file.write_text(file.read_text().replace('"reward/model": 1.0', '"reward/model": 2.0', 1))
    with pytest.raises(RunError, match=r"reward/model of its rows is 0.675000, but eval.json says 0.65"):
        compare_runs(*runs)
    file.write_text(re.sub(r'"metrics": \{[^}]*\}', '"old": 1', file.read_text()))
    with pytest.raises(RunError, match=r"answers.jsonl:1: lacks \['metrics'\]; evaluate the run again"):
        compare_runs(*runs)


def test_models_of_one_run_are_compared_by_their_files(runs: tuple[Path, Path]) -> None:
    folder = runs[0] / "evaluate"
    (folder / "answers-sft.jsonl").write_text((folder / "answers.jsonl").read_text())
    compared = compare_runs(folder / "answers-sft.jsonl", runs[0])
    assert (compared.a, compared.b) == ("evaluate/answers-sft", "a")
    assert compared.metrics["reward/model"][2].difference == 0


# ---- side by side


def test_the_most_different_come_first_and_equal_answers_never(runs: tuple[Path, Path]) -> None:
    pairs = read_pairs(*runs)
    chosen = most_different(pairs, 100)
    assert len(chosen) == 34
    assert not any(pair.same for pair in chosen)
    gaps = [abs(pair.b["metrics"]["reward/model"] - pair.a["metrics"]["reward/model"]) for pair in chosen]
    assert gaps == sorted(gaps, reverse=True)
    assert [pair.number for pair in most_different(pairs, 3)] == [1, 2, 3]


def test_of_equal_rewards_those_with_other_words_come_first(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", [0.0] * 3, ["one two", "one two", "one two"])
    b = write_run(tmp_path / "b", [0.0] * 3, ["one two three", "four five", "one two"])
    assert [pair.number for pair in most_different(read_pairs(a, b), 3)] == [2, 1]


def test_pairs_are_shown_with_what_differs(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    pairs = read_pairs(*runs)
    show_pairs(pairs, most_different(pairs, 1))
    assert capsys.readouterr().out.split("\n") == [
        "## test.jsonl:1: question 0", "", "### a", "", "answer 0", "", "### b", "", "answer 0 too", "",
        "a -> b: completion length 8.000 -> 12.0, reward model .000 -> 1.000", "", "",
    ]  # fmt: skip


# ---- rating sheets


def fill(sheet: Path, rate: dict[str, str] | None = None) -> list[dict[str, str]]:
    """Rate a sheet as a person would who prefers answers with "too", or as told by row."""
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["rating"] = (rate or {}).get(row["row"], "1" if row["first"].endswith("too") else "2")
    with sheet.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return rows


def test_a_filled_sheet_gives_the_win_rate_whatever_the_order(runs: tuple[Path, Path], tmp_path: Path) -> None:
    pairs, sheet = read_pairs(*runs), tmp_path / "sheet.csv"
    assert write_sheet(pairs, sheet, seed=1) == key_path(sheet) == tmp_path / "sheet.csv.key.json"
    rows = fill(sheet, {"3": "tie", "4": ""})
    first = [row["first"].endswith("too") for row in rows]
    assert 8 < sum(first) < 26, "the order is shuffled"
    found = read_ratings(pairs, sheet)
    assert (found.wins_a, found.wins_b, found.ties, found.same, found.open) == (0, 32, 1, 6, 1)
    # 32 wins, a tie and 6 equal pairs, of 39
    assert found.share.difference == pytest.approx((32 + 3.5) / 39)
    assert found.share.low < found.share.difference < found.share.high < 1
    assert found.share.p < 0.001
    # rows 31 to 34 have a lower reward, and people liked them as well
    assert found.agreement == {"model": pytest.approx(28 / 32)}
    assert "win rate of b, ties and equal pairs half: 0.910 [" in ratings_text(found)
    back = read_ratings(pairs, sheet, tmp_path / "sheet.csv.key.json")
    assert back == found


def test_a_sheet_says_nothing_of_who_is_who(runs: tuple[Path, Path], tmp_path: Path) -> None:
    pairs = read_pairs(*runs)
    write_sheet(pairs, tmp_path / "one.csv", seed=1)
    write_sheet(pairs, tmp_path / "two.csv", seed=2)
    write_sheet(pairs, tmp_path / "same.csv", seed=1)
    one, two, same = ((tmp_path / f"{name}.csv").read_text() for name in ("one", "two", "same"))
    assert one == same != two
    assert one.splitlines()[0] == "\ufeffrow,prompt,first,second,rating"
    assert "reward" not in one
    write_sheet(pairs, tmp_path / "page.html", seed=1)
    page = (tmp_path / "page.html").read_text()
    assert page.count('type="radio"') == 3 * 34
    assert "swapped" not in page


def test_a_number_of_pairs_is_drawn_at_random(runs: tuple[Path, Path], tmp_path: Path) -> None:
    pairs = read_pairs(*runs)
    numbers = []
    for seed in (1, 2):
        key = write_sheet(pairs, tmp_path / f"{seed}.csv", seed=seed, count=10)
        found = json.loads(key.read_text())
        numbers.append([row["pair"] for row in found["rows"]])
        assert len(numbers[-1]) + found["same"] == 10
    assert numbers[0] != numbers[1]


def test_ratings_that_a_page_saved_find_its_key(runs: tuple[Path, Path], tmp_path: Path) -> None:
    pairs = read_pairs(*runs)
    key = json.loads(write_sheet(pairs, tmp_path / "page.html").read_text())
    assert '"page.html-ratings.csv"' in (tmp_path / "page.html").read_text()
    lines = [f"{row['row']},{'1' if row['swapped'] else '2'}" for row in key["rows"]]  # always the second model
    saved = tmp_path / "page.html-ratings.csv"
    saved.write_text("\n".join(["row,rating", *lines]))
    assert read_ratings(pairs, saved).wins_b == 34
    saved.write_text("\n".join(["row;rating", *lines]).replace(",", ";"))  # as some spreadsheets write it
    assert read_ratings(pairs, saved).wins_b == 34


def test_a_text_is_never_a_formula(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", [0.0], ["=1+1"])
    b = write_run(tmp_path / "b", [0.0], ["-2"])
    write_sheet(read_pairs(a, b), tmp_path / "sheet.csv")
    with (tmp_path / "sheet.csv").open(encoding="utf-8-sig") as file:
        (row,) = csv.DictReader(file)
    assert {row["first"], row["second"]} == {" =1+1", " -2"}


def test_wrong_ratings_are_all_named(runs: tuple[Path, Path], tmp_path: Path) -> None:
    pairs, sheet = read_pairs(*runs), tmp_path / "sheet.csv"
    write_sheet(pairs, sheet)
    blank = sheet.read_text()
    with pytest.raises(RunError, match="holds no rating; rate each row 1"):
        read_ratings(pairs, sheet)
    sheet.write_text("row,rating\n1,3\n99,1\n2,1\n2,2\n")
    with pytest.raises(RunError) as error:
        read_ratings(pairs, sheet)
    assert [problem.partition(".csv: ")[2].partition(";")[0] for problem in error.value.problems] == [
        "row '1': rating: must be 1, 2 or tie, got '3'",
        "row '99': is none of the key's rows",
        "row '2': is rated twice",
    ]
    sheet.write_text("a,b\n")
    with pytest.raises(RunError, match="needs the columns row and rating"):
        read_ratings(pairs, sheet)
    sheet.write_text(blank)
    with pytest.raises(RunError, match="was written for other answers"):
        read_ratings(read_pairs(*reversed(runs)), sheet)
    with pytest.raises(RunError, match="there is no key"):
        read_ratings(pairs, sheet, tmp_path / "none.json")


def test_a_sheet_that_is_there_is_never_overwritten(runs: tuple[Path, Path], tmp_path: Path) -> None:
    pairs = read_pairs(*runs)
    write_sheet(pairs, tmp_path / "sheet.csv")
    with pytest.raises(RunError, match="is there already; choose another name"):
        write_sheet(pairs, tmp_path / "sheet.csv")
    with pytest.raises(RunError, match=r"must end in .csv or .html, got .*sheet.txt"):
        write_sheet(pairs, tmp_path / "sheet.txt")
    with pytest.raises(RunError, match="all 40 pairs of answers are the same"):
        write_sheet(read_pairs(runs[0], runs[0]), tmp_path / "none.csv")


# ---- the verb


def test_the_verb_shows_writes_and_reads(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def rlkit(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rlkit", "compare", *map(str, (*runs, *arguments))])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    code, out, _ = rlkit()
    assert (code, "wins by model" in out, "##" in out) == (0, True, False)
    code, out, _ = rlkit("--samples", 2)
    assert (code, "wins by model" in out, out.count("## test.jsonl")) == (0, True, 2)
    sheet = tmp_path / "sheet.csv"
    code, out, _ = rlkit("--blind", sheet)
    assert (code, out) == (0, f"{sheet}: written; keep {sheet}.key.json from whoever rates it\n")
    fill(sheet)
    code, out, _ = rlkit("--ratings", sheet)
    assert (code, "wins of b: 34, of a: 0, ties: 0" in out) == (0, True)
    code, _, err = rlkit("--blind", sheet)
    assert (code, err.startswith("error: --blind: ")) == (2, True)
