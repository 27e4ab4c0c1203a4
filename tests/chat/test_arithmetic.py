"""Data with answers that can be checked: generated arithmetic, GSM8K and HumanEval."""

from __future__ import annotations

import ast
import json
import operator
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from toys import data_folder

from rlkit.chat.data.arithmetic import generate_arithmetic, key, near, split_of, work_out
from rlkit.chat.data.formats import detect
from rlkit.chat.data.read import read_chat
from rlkit.chat.data.rows import Dialogue, Pair, Question, Rated
from rlkit.chat.verifiers.math_reward import math
from rlkit.config.arithmetic import ArithmeticSettings
from rlkit.config.chat import ChatFilesSettings, ChatSettings
from rlkit.config.verifiers import MathSettings
from rlkit.errors import DataError
from rlkit.policy.text_rewards import Sample
from rlkit.recipe import recipe_from_tree

LEVELS: Any = (
    {"digits": 1, "operations": ("+", "-")},
    {"digits": 2, "operations": ("+", "-", "*"), "terms": 3, "weight": 2},
    {"digits": 2, "operations": ("*", "/")},
)
SIGNS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def by_python(expression: str) -> float:
    """Return what Python's own grammar says an expression comes to."""

    def value(node: ast.expr) -> float:
        if isinstance(node, ast.BinOp):
            return SIGNS[type(node.op)](value(node.left), value(node.right))
        assert isinstance(node, ast.Constant)
        assert isinstance(node.value, int)
        return node.value

    return value(ast.parse(expression, mode="eval").body)


def questions(**settings: Any) -> dict[str, list[Question]]:
    """Return generated prompts by split."""
    found = generate_arithmetic(ArithmeticSettings(**settings), "prompts").splits
    return {split: [row for row in rows if isinstance(row, Question)] for split, rows in found.items()}


def test_answers_are_right_whole_and_not_negative() -> None:
    found = questions(levels=LEVELS, rows=400)
    assert len(found["train"]) == 400
    for row in (row for rows in found.values() for row in rows):
        expression = row.context["expression"]
        assert row.prompt[0].content == f"{expression} = ?"
        assert float(row.answer) == by_python(expression) >= 0
        assert row.answer.isdigit()


def test_negative_answers_come_where_they_are_allowed() -> None:
    rows = questions(levels=({"operations": ("-",)},), negative=True, rows=200)["train"]
    assert any(row.answer.startswith("-") for row in rows)
    assert all(float(row.answer) == by_python(row.context["expression"]) for row in rows)


def test_levels_have_their_digits_terms_operations_and_shares() -> None:
    rows = questions(levels=LEVELS, rows=2_000)["train"]
    counts = Counter(row.context["level"] for row in rows)
    wanted = {"1 digit, 2 terms, + -": 500, "2 digits, 3 terms, + - *": 1_000, "2 digits, 2 terms, * /": 500}
    assert counts.keys() == wanted.keys()
    assert all(abs(counts[name] - count) < 5 * count**0.5 for name, count in wanted.items())
    for row in rows:
        parts = row.context["expression"].split()
        digits, terms, signs = row.context["level"].split(", ")
        assert len(parts[::2]) == int(terms[0])
        assert {len(number) for number in parts[::2]} == {int(digits[0])}
        assert set(parts[1::2]) <= set(signs.split())


def test_no_task_stands_in_two_splits_whatever_the_seed_and_the_source() -> None:
    held: dict[str, set[str]] = {"train": set(), "valid": set(), "test": set()}
    for seed in range(3):
        for split, rows in questions(levels=LEVELS, rows=1_000, seed=seed).items():
            held[split] |= {key(row.context["expression"]) for row in rows}
    settings = ArithmeticSettings(levels=LEVELS, rows=1_000, seed=9, prompt="{expression}")
    shown = generate_arithmetic(settings, "demonstrations").splits["train"]
    held["train"] |= {key(row.messages[0].content) for row in shown if isinstance(row, Dialogue)}
    assert all(len(tasks) > 100 for tasks in held.values())
    assert held["train"].isdisjoint(held["valid"] | held["test"])
    assert held["valid"].isdisjoint(held["test"])


def test_the_same_sum_the_other_way_round_is_the_same_task() -> None:
    assert key("3 + 4") == key("4 + 3") != key("3 * 4")
    assert key("2 + 10 + 3") == key("10 + 3 + 2")
    assert key("3 - 4") != key("4 - 3")
    assert key("9 - 2 + 3") == key("3 + 9 - 2") == key("9 + 3 - 2") != key("9 + 2 - 3")
    assert key("9 - 2 - 3") == key("9 - 3 - 2") != key("3 - 2 - 9")
    assert key("2 + 3 * 4") == key("4 * 3 + 2") != key("3 + 2 * 4")
    assert key("8 / 4 * 2") != key("8 / 2 * 4")
    assert key("1 + 8 / 4") == key("8 / 4 + 1") != key("1 + 4 / 8")
    assert all(split_of(f"{a} + {b}") == split_of(f"{b} + {a}") for a in range(20) for b in range(20))
    shares = Counter(split_of(f"{a} + {b}") for a in range(100, 200) for b in range(a, 200))
    assert shares["valid"] / shares.total() == pytest.approx(0.1, abs=0.02)
    assert shares["test"] / shares.total() == pytest.approx(0.1, abs=0.02)


def test_held_out_tasks_are_different_ones_as_many_as_there_are() -> None:
    few = questions()  # 55 sums of two digits from 0 to 9
    tasks = [key(f"{a} + {b}") for a in range(10) for b in range(a, 10)]
    splits = [split_of(f"{a} + {b}") for a in range(10) for b in range(a, 10)]
    assert {key(row.context["expression"]) for row in few["valid"]} == {
        task for task, split in zip(tasks, splits) if split == "valid"
    }
    many = questions(levels=({"digits": 3},), held_out=150)["test"]
    assert len({key(row.context["expression"]) for row in many}) == len(many) == 150


def test_the_same_seed_gives_the_same_rows_and_another_one_others() -> None:
    settings = {"levels": LEVELS, "rows": 50, "wrong": 0.5}
    one, same, other = (
        generate_arithmetic(ArithmeticSettings(**settings, seed=seed), "demonstrations") for seed in (1, 1, 2)
    )
    assert one == same
    assert one.splits["train"] != other.splits["train"]


def test_a_share_of_demonstrations_is_wrong_and_near() -> None:
    settings = ArithmeticSettings(
        levels=({"digits": 2},), rows=3_000, wrong=0.4, completion="so {expression} = {answer}"
    )
    rows = generate_arithmetic(settings, "demonstrations").splits["train"]
    errors = []
    for row in rows:
        assert isinstance(row, Dialogue)
        expression, _, said = row.messages[1].content.removeprefix("so ").rpartition(" = ")
        assert row.messages[0].content == f"{expression} = ?"
        errors.append(int(said) - int(by_python(expression)))
    assert sum(error != 0 for error in errors) / len(errors) == pytest.approx(0.4, abs=0.03)
    # so that sampling finds the right answer more often than any wrong one
    assert Counter(errors).most_common(2)[0][0] == 0
    assert Counter(errors).most_common(2)[1][1] < 0.15 * len(errors)


def test_a_demonstration_may_work_its_answer_out_in_steps() -> None:
    levels: Any = ({"terms": 3},)
    settings = ArithmeticSettings(levels=levels, rows=600, wrong=0.3, completion="{steps}")
    wrong = 0
    for row in generate_arithmetic(settings, "demonstrations").splits["train"]:
        assert isinstance(row, Dialogue)
        steps = [step.split(" = ") for step in row.messages[1].content.split("\n")]
        numbers = row.messages[0].content.removesuffix(" = ?").split()
        assert [task for task, _ in steps] == [" ".join(numbers[:3]), " ".join([steps[0][1], *numbers[3:]])]
        assert by_python(steps[0][0]) == int(steps[0][1])  # only the answer may be wrong
        wrong += by_python(steps[1][0]) != int(steps[1][1])
    assert 140 < wrong < 220


def test_wrong_answers_differ_and_keep_their_sign() -> None:
    rng = random.Random(0)
    assert all(near(answer, False, rng) not in (answer, -1) for answer in range(30) for _ in range(20))
    assert min(near(answer, False, rng) for answer in range(12) for _ in range(50)) >= 0
    assert min(near(0, True, rng) for _ in range(50)) < 0
    assert 21 in {near(12, False, rng) for _ in range(100)}, "digits exchanged"


def test_preferences_and_feedback_tell_right_from_wrong() -> None:
    for row in generate_arithmetic(ArithmeticSettings(rows=100), "preferences").splits["train"]:
        assert isinstance(row, Pair)
        right = str(int(by_python(row.prompt[0].content.removesuffix(" = ?"))))
        assert row.chosen[0].content == right != row.rejected[0].content
    rated = generate_arithmetic(ArithmeticSettings(rows=100), "feedback").splits["train"]
    liked = 0
    for row in rated:
        assert isinstance(row, Rated)
        right = str(int(by_python(row.prompt[0].content.removesuffix(" = ?"))))
        assert row.desirable == (row.completion[0].content == right)
        liked += row.desirable
    assert 20 < liked < 80


def test_products_go_first_and_divisions_must_come_out() -> None:
    assert work_out([2, 3, 4], ["+", "*"]) == 14
    assert work_out([20, 3, 4], ["-", "*"]) == 8
    assert work_out([8, 4, 2], ["/", "/"]) == 1
    assert work_out([7, 2], ["/"]) is None
    assert work_out([7, 0], ["/"]) is None


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"prompt": "what?"}, "write {expression} somewhere"),
        ({"completion": "five"}, "write {answer} somewhere"),
        ({"completion": "{steps}", "levels": ({"operations": ("*",)},)}, "steps are made of sums only"),
        ({"levels": ()}, "levels"),
        ({"levels": ({}, {})}, "a level stands twice"),
        ({"levels": ({"operations": ("+", "+")},)}, "an operation stands twice"),
        ({"levels": ({"operations": ("%",)},)}, "operations"),
        ({"levels": ({"operations": ("/",), "terms": 4},)}, "at most 3 terms"),
        ({"wrong": 1.0}, "wrong"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        ArithmeticSettings(**settings)


def test_a_level_without_a_task_for_a_split_is_an_error() -> None:
    # three-digit numbers hardly ever divide each other twice
    with pytest.raises(DataError, match="has hardly a task for"):
        questions(levels=({"digits": 3, "operations": ("/",), "terms": 3},))


def test_a_recipe_names_it_like_any_source() -> None:
    domain = {
        "type": "chat",
        "demonstrations": {"type": "arithmetic", "rows": 30, "wrong": 0.5},
        "prompts": {"type": "arithmetic", "rows": 20, "levels": [{"digits": 2, "operations": ["+", "-"]}]},
    }
    sft = {"algorithm": {"type": "sft"}, "train": {"learning_rate": 1e-3, "batch_size": 4, "max_steps": 1}}
    settings: Any = recipe_from_tree({"name": "x", "domain": domain, "stages": {"sft": sft}}).recipe.domain
    data = read_chat(settings)
    assert [len(data.rows[kind]["train"]) for kind in ("demonstrations", "prompts")] == [30, 20]
    assert all(row.answer for row in data.splits["valid"])


# ---- GSM8K and HumanEval


def write(path: Path, *rows: dict[str, Any]) -> str:
    """Write rows and return the file's name."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


SOLVED = {"question": "How many?", "answer": "He has 2 <<1+1=2>>2.\nThen 3.\n#### 1,003", "id": 7}


def test_gsm8k_gives_the_answer_to_prompts_and_the_solution_to_demonstrations(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", SOLVED, {**SOLVED, "question": "And now?"})
    data = read_chat(ChatSettings(prompts=ChatFilesSettings(path=path, valid=path)))
    (row, _) = data.rows["prompts"]["train"]
    assert (row.prompt[0].content, row.answer, row.context) == ("How many?", "1,003", {"id": 7})
    (shown, _) = data.rows["demonstrations"]["train"]
    assert shown.messages[1].content == SOLVED["answer"]
    assert [report.format for report in data.reports] == ["gsm8k", "gsm8k"]
    straight = read_chat(ChatSettings(demonstrations=ChatFilesSettings(path=path, valid=path)))
    assert straight.rows["demonstrations"]["train"] == data.rows["demonstrations"]["train"]


def test_questions_whose_answers_carry_no_mark_stay_prompts() -> None:
    found = detect([SOLVED, {"question": "Why?", "answer": "Because."}])
    assert found is not None
    assert found.format == "prompts"


def test_a_gsm8k_row_without_its_mark_is_bad_by_line(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", SOLVED, {"question": "Why?", "answer": "5"}, {"question": "Q", "answer": "5 ####"}
    )
    with pytest.raises(DataError) as error:
        read_chat(ChatSettings(prompts=ChatFilesSettings(path=path, valid=path, format="gsm8k")))
    starts = {problem.partition(", got")[0] for problem in error.value.problems}
    assert starts == {f"{path}:{line}: answer: does not end in '#### number'" for line in (2, 3)}


def test_gsm8k_itself_loads_and_its_solutions_are_right() -> None:
    path = str(data_folder("gsm8k") / "train.jsonl")
    data = read_chat(ChatSettings(prompts=ChatFilesSettings(path=path)))
    prompts, shown = data.rows["prompts"], data.rows["demonstrations"]
    assert sum(len(prompts[split]) for split in ("train", "valid")) == 7_473
    pairs = list(zip(shown["valid"], prompts["valid"]))
    samples = [Sample(one.messages[0].content, one.messages[1].content, two.answer) for one, two in pairs]
    assert sum(math(MathSettings(), None).score(samples)) >= 0.999 * len(samples)


TASK = {
    "task_id": "Made/0",
    "prompt": "def one():\n    'Return 1.'\n",
    "entry_point": "one",
    "canonical_solution": "    return 1\n",
    "test": "def check(candidate):\n    assert candidate() == 1\n",
}


def test_humaneval_rows_carry_their_tests_and_the_whole_program_as_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", TASK)
    rows = read_chat(ChatSettings(prompts=ChatFilesSettings(path=path, valid=path))).splits["train"]
    assert rows[0].prompt[0].content == TASK["prompt"]
    assert rows[0].answer == TASK["prompt"] + TASK["canonical_solution"]
    assert rows[0].context == {name: TASK[name] for name in ("task_id", "prompt", "entry_point", "test")}


def test_humaneval_itself_loads() -> None:
    path = str(data_folder("humaneval_sample") / "HumanEval_first5.jsonl")
    data = read_chat(ChatSettings(prompts=ChatFilesSettings(path=path)))
    rows = [row for split in ("train", "valid") for row in data.splits[split]]
    assert sorted(row.context["task_id"] for row in rows) == [f"HumanEval/{n}" for n in range(5)]
    for row in rows:
        assert "def check(candidate)" in row.context["test"]
        assert f"def {row.context['entry_point']}(" in row.answer
        ast.parse(row.answer)
    assert data.reports[0].format == "humaneval"
