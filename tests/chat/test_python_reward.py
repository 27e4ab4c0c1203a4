"""The reward ``python``: a user's function, its signature checked before anything runs, its file loaded alone."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rlkit.chat.verifiers.python_function import python_function
from rlkit.config.verifiers import PythonSettings
from rlkit.errors import PluginError, RecipeError, TrainingError
from rlkit.policy.supervised import SupervisedReward
from rlkit.policy.text_rewards import Sample
from rlkit.recipe import load_recipe

SAMPLES = [Sample("2+3?", "5", "5", context={"level": 1}), Sample("2+4?", "5!!!", "6", truncated=True)]


def settings(folder: Path, code: str, **values: Any) -> PythonSettings:
    """Write a file and return the settings that name it."""
    path = folder / "mine.py"
    path.write_text(code, encoding="utf-8")
    return PythonSettings(file=str(path), **values)


def test_a_function_gets_the_keywords_that_it_takes(tmp_path: Path) -> None:
    code = (
        "def reward(completion, *, answer, context=None):\n"
        "    return (completion == answer) + (context or {}).get('level', 0)\n"
    )
    assert python_function(settings(tmp_path, code), None).score(SAMPLES) == [2.0, 0.0]


def test_a_function_with_keywords_of_any_name_gets_all_of_them(tmp_path: Path) -> None:
    code = "def reward(**fields):\n    return len(fields) + fields['truncated']\n"
    assert python_function(settings(tmp_path, code), None).score(SAMPLES) == [5.0, 6.0]


def test_per_batch_all_samples_come_at_once(tmp_path: Path) -> None:
    code = (
        "def ranks(completions, truncated):\n    return [len(text) - cut for text, cut in zip(completions, truncated)]"
    )
    reward = python_function(settings(tmp_path, code, function="ranks", per="batch"), None)
    assert reward.score(SAMPLES) == [1.0, 3.0]


def test_further_arguments_come_from_the_recipe(tmp_path: Path) -> None:
    code = "def reward(completion, word, bonus=1.0):\n    return bonus * (word in completion)\n"
    made = settings(tmp_path, code, arguments={"word": "!", "bonus": 2.5})
    assert python_function(made, None).score(SAMPLES) == [0.0, 2.5]


def test_a_sample_alone_may_be_killed_and_a_batch_stays_here(tmp_path: Path) -> None:
    code = "def reward(completion):\n    return 1\n\ndef many(completions):\n    return [1] * len(completions)\n"
    assert settings(tmp_path, code).supervised
    assert not settings(tmp_path, code, function="many", per="batch").supervised


def test_the_file_is_loaded_alone_and_dataclasses_work_in_it(tmp_path: Path) -> None:
    (tmp_path / "neighbor_of_mine.py").write_text("VALUE = 1\n")
    code = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n"
        "@dataclass\nclass Point:\n    x: int\n\n"
        "def reward(completion):\n    return Point(len(completion)).x\n"
    )
    before = list(sys.path)
    assert python_function(settings(tmp_path, code), None).score(SAMPLES) == [1.0, 4.0]
    assert sys.path == before
    with pytest.raises(PluginError, match=r"mine\.py:1: ModuleNotFoundError: No module named 'neighbor_of_mine'"):
        python_function(settings(tmp_path, "import neighbor_of_mine\ndef reward(completion):\n    return 1\n"), None)


GOOD = "def reward(completion):\n    return 1\n"


@pytest.mark.parametrize(
    ("code", "values", "problem"),
    [
        ("def reward(completion:\n", {}, "is not Python"),
        ("x = 1\n", {}, "defines no function 'reward'"),
        ("def rewards(completion): ...\n", {}, "did you mean 'rewards'"),
        ("class A:\n    def reward(self, completion): ...\n", {}, "defines no function 'reward'"),
        ("async def reward(completion): ...\n", {}, r"mine.py:1: reward is async"),
        ("\n\ndef reward(completion, /): ...\n", {}, r"mine.py:3: reward takes arguments by position only"),
        ("def reward(completion, anwser): ...\n", {}, "wants 'anwser', which is not given; did you mean 'answer'"),
        ("def reward(completion, *, other): ...\n", {}, "wants 'other'"),
        ("def reward(completions): ...\n", {}, "did you mean 'completion'"),
        ("def reward(prompt): ...\n", {}, "does not take 'completion'"),
        ("def reward(): ...\n", {}, "does not take 'completion'"),
        (GOOD, {"per": "batch"}, "wants 'completion', which is not given; did you mean 'completions'"),
        (GOOD, {"arguments": {"word": "x"}}, "does not take the argument 'word'"),
        (GOOD, {"per": "row"}, "per"),
        ("def reward(completion:\n    return 1\n", {}, r"mine.py:1: this is not Python: "),
    ],
)
def test_a_function_that_cannot_be_called_is_refused(
    tmp_path: Path, code: str, values: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValidationError, match=problem):
        settings(tmp_path, code, **values)


def test_checking_a_function_does_not_run_its_file(tmp_path: Path) -> None:
    settings(tmp_path, f"open({str(tmp_path / 'ran')!r}, 'w')\n{GOOD}")
    assert not (tmp_path / "ran").exists()


def test_a_recipe_that_names_a_missing_file_is_refused_at_its_place(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: x\ndomain: {type: chat}\nstages:\n  grpo:\n    algorithm:\n      type: grpo\n"
        "      rollout: {type: sample}\n      rewards:\n        - {type: python, file: nowhere.py}\n"
    )
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    (problem,) = error.value.problems
    assert problem.startswith(f"{path}:9:")
    assert "stages.grpo.algorithm.rewards.0" in problem
    where = f"(looked for in {Path.cwd()}, where rlkit runs)"
    assert f"file 'nowhere.py' cannot be read: no such file or directory {where}; name a Python file" in problem


@pytest.mark.parametrize("value", ["'5'", "None", "float('nan')", "float('inf')", "[1]", "10 ** 400", "10 ** 9999"])
def test_what_is_no_finite_number_is_an_error(tmp_path: Path, value: str) -> None:
    reward = python_function(settings(tmp_path, f"def reward(completion):\n    return {value}\n"), None)
    with pytest.raises(TrainingError, match=r"reward python: reward in .*mine\.py returned .*; return a finite number"):
        reward.score(SAMPLES)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("[1]", "returned 1 scores for 2 samples"),
        ("1", "returned 1; return a list"),
        ("'ab'", "return a list"),
        ("[1, None]", "returned for sample 1 None"),
    ],
)
def test_a_batch_needs_a_number_for_each_sample(tmp_path: Path, value: str, problem: str) -> None:
    code = f"def reward(completions):\n    return {value}\n"
    reward = python_function(settings(tmp_path, code, per="batch"), None)
    with pytest.raises(TrainingError, match=problem):
        reward.score(SAMPLES)


def test_numbers_of_tensors_and_arrays_are_numbers(tmp_path: Path) -> None:
    code = "import numpy, torch\n\ndef reward(completions):\n    return torch.tensor([1.5, 2.5])\n"
    assert python_function(settings(tmp_path, code, per="batch"), None).score(SAMPLES) == [1.5, 2.5]


def test_a_file_that_raises_says_where(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"mine\.py:4: ZeroDivisionError: division by zero; mend the file"):
        python_function(settings(tmp_path, GOOD + "\n1 / 0\n"), None)
    with pytest.raises(PluginError, match=r"mine\.py:4: SystemExit: 0; mend the file"):
        python_function(settings(tmp_path, GOOD + "\nraise SystemExit(0)\n"), None)


def test_under_supervision_a_function_that_raises_or_hangs_costs_its_sample_only(tmp_path: Path) -> None:
    code = (
        "import time\n\ndef reward(completion):\n"
        "    if completion == 'hang':\n        time.sleep(60)\n    return 1 / len(completion)\n"
    )
    reward = SupervisedReward(settings(tmp_path, code, timeout_seconds=5.0), None)
    try:
        outcomes = reward.judge([Sample("", text) for text in ("ab", "", "hang", "abcd")])
    finally:
        reward.close()
    assert [outcomes[0].score, outcomes[3].score] == [0.5, 0.25]
    assert math.isnan(outcomes[1].score)
    assert math.isnan(outcomes[2].score)
    assert outcomes[1].error.startswith("ZeroDivisionError")
    assert outcomes[2].error == "no answer within 5 seconds"


def test_what_the_reward_says_of_a_value_has_no_class_in_front_and_zero_no_sign(tmp_path: Path) -> None:
    code = "def reward(completion):\n    return None if completion == 'none' else -0.0\n"
    reward = SupervisedReward(settings(tmp_path, code), None)
    none, zero = reward.judge([Sample("p", "none", "", False, {}), Sample("p", "x", "", False, {})])
    reward.close()
    assert none.error.startswith("reward python: reward in ")
    assert str(zero.score) == "0.0"
