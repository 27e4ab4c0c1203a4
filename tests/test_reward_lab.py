"""The reward lab: golden cases, hostile answers, samples, and what failed is tried again."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from pydantic import ValidationError
from toys import language_model_folder, tiny_recipe
from typer.testing import CliRunner

from rlkit.cli.main import app
from rlkit.config.models import CausalLMSettings
from rlkit.config.rewards import RewardCase
from rlkit.errors import DataError, RecipeError, TrainingError
from rlkit.job import Job
from rlkit.plugins import load_plugins
from rlkit.policy.rewarder import WeightedReward
from rlkit.recipe import recipe_from_tree
from rlkit.recipe_yaml import dump
from rlkit.records import Prompt, Source
from rlkit.reward_lab import trial as trial_module
from rlkit.reward_lab.cases import check_cases
from rlkit.reward_lab.hostile import hostile_answers
from rlkit.reward_lab.tables import _shown
from rlkit.reward_lab.trial import Trial, try_rewards
from rlkit.run import run
from rlkit.run_directory import RunDirectory

LONGER_IS_BETTER = "def reward(completion):\n    return min(len(completion), 10_000) / 10_000\n"
PICKY = """
def reward(completion, answer):
    if not completion.strip():
        raise ValueError("nothing to read")
    return float(completion == answer)
"""


def tree(folder: Path, *rewards: dict, **changes) -> dict:
    """GRPO on three prompts with numbers for answers."""
    rows = [{"prompt": f"{n} + {n}?", "answer": str(2 * n)} for n in range(1, 25)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    algorithm = {"type": "grpo", "rollout": {"type": "sample", "max_completion_tokens": 6}, "group_size": 4}
    return {
        "name": "lab",
        "domain": {"type": "chat", "prompts": str(folder / "rows.jsonl")},
        "stages": {"grpo": {"algorithm": {**algorithm, "rewards": list(rewards)}}},
        **changes,
    }


def python(folder: Path, code: str, **settings) -> dict:
    (folder / "mine.py").write_text(code)
    return {"type": "python", "file": str(folder / "mine.py"), **settings}


def tried(folder: Path, *rewards: dict, **changes) -> Trial:
    recipe = recipe_from_tree(tree(folder, *rewards, **changes)).recipe
    return try_rewards(recipe, RunDirectory(folder / "run"), 6)


def test_a_reward_that_length_can_hack_is_warned_of(tmp_path: Path) -> None:
    trial = tried(tmp_path, python(tmp_path, LONGER_IS_BETTER))
    assert [
        warning for warning in trial.warnings if warning.startswith("very long: beats every honest answer on 6 of 6")
    ]


def test_a_reward_that_checks_the_answer_is_not(tmp_path: Path) -> None:
    trial = tried(tmp_path, {"type": "math"})
    assert trial.warnings == []
    by_kind = {row.kind: row.total for row in trial.judged}
    assert by_kind["reference"] == 1.0
    assert by_kind["gold among others"] == by_kind["answer of another prompt"] == by_kind["empty"] == 0.0


def test_a_gate_that_nothing_passes_is_warned_of(tmp_path: Path) -> None:
    trial = tried(tmp_path, {"type": "math"}, {"type": "format", "tags": ["answer"], "gate": True})
    constant, warning = trial.warnings
    assert "hostile ones as well as references; the reward tells nothing apart" in constant
    assert warning.startswith("format: this gate is 0 for all of 6 reference answers, so that they earn nothing")


def test_a_reward_that_pays_everything_alike_is_warned_of(tmp_path: Path) -> None:
    (warning,) = tried(tmp_path, python(tmp_path, "def reward(completion):\n    return 1\n")).warnings
    assert "completions earn 1, hostile ones as well as references" in warning


def test_a_run_that_is_named_and_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(dump(tree(tmp_path, {"type": "math"})))
    done = command("rewards", "try", path, "--run", tmp_path / "nothing")
    assert done.exit_code == 2
    assert "does not exist" in done.output


def test_no_score_is_shown_as_minus_zero() -> None:
    assert [_shown(-0.0), _shown(-0.0004), _shown(-0.25)] == ["0.000", "0.000", "-0.250"]


def test_a_reward_that_does_not_start_is_named_with_its_place_beside_the_wrong_cases(tmp_path: Path) -> None:
    cases = [{"completion": "8", "answer": "7", "score": 1}]
    broken = python(tmp_path, "import no_such_module\ndef reward(completion):\n    return 1.0\n", cases=cases)
    report = check_cases(
        recipe_from_tree(tree(tmp_path, broken, {"type": "math", "cases": cases})).recipe,
        RunDirectory(tmp_path / "run"),
    )
    assert [problem.keys[4:] for problem in report.problems] == [(0,), (1, "cases", 0)]
    assert report.problems[0].message.count("reward python: ") == 1
    assert "mine.py:1: ModuleNotFoundError" in report.problems[0].message


def test_a_recipe_without_golden_cases_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(dump(tree(tmp_path, {"type": "math"})))
    assert "cases: the recipe has none" in command("validate", path, "--cases").output


def test_a_reward_that_fails_says_on_which_rows_and_why(tmp_path: Path) -> None:
    trial = tried(tmp_path, python(tmp_path, PICKY))
    warning = next(warning for warning in trial.warnings if warning.startswith("python: no score for 12 of "))
    assert "(empty): ValueError: nothing to read" in warning
    assert "rows.jsonl:" in warning


def test_samples_of_a_model_tell_how_many_groups_teach_nothing(tmp_path: Path) -> None:
    model = {"path": str(language_model_folder(tmp_path / "lm"))}
    trial = tried(tmp_path, {"type": "math"}, model=model)
    samples = [row for row in trial.judged if row.kind == "sample"]
    assert len(samples) == 6 * 4
    assert trial.zero_variance == 1.0, "a random model is never right"
    assert any("100% of groups have no difference" in warning for warning in trial.warnings)


NOT_TWELVE = "def reward(completion, answer):\n    assert answer != '12', 'not this'\n    return float(answer)\n"


def test_samples_keep_their_scores_beside_some_without_one(tmp_path: Path) -> None:
    model = {"path": str(language_model_folder(tmp_path / "lm"))}
    trial = tried(tmp_path, python(tmp_path, NOT_TWELVE), {"type": "exact_match"}, model=model)
    samples = [row for row in trial.judged if row.kind == "sample"]
    wanted = [row.completion for row in trial.judged if row.kind == "reference"]
    assert [row.prompt.answer for row in samples] == [answer for answer in wanted for _ in range(4)]
    assert "12" in wanted[:-1], "others come after it"
    for row in samples:
        lost = row.prompt.answer == "12"
        assert (row.outcomes["python"].error.startswith("AssertionError: not this (")) == lost
        # a random model is never exactly right, so that the other part adds nothing
        assert math.isnan(row.total) if lost else row.total == float(row.prompt.answer)
    assert trial.zero_variance == 1.0


def test_samples_of_which_none_has_a_score_say_why(tmp_path: Path) -> None:
    model = {"path": str(language_model_folder(tmp_path / "lm"))}
    trial = tried(tmp_path, python(tmp_path, "def reward(completion):\n    raise ValueError('no')\n"), model=model)
    samples = [row for row in trial.judged if row.kind == "sample"]
    assert {row.outcomes["python"].error for row in samples} == {"ValueError: no (mine.py:2)"}
    assert all(math.isnan(row.total) for row in samples)
    assert trial.zero_variance is None
    (warning,) = trial.warnings
    assert f"python: no score for {len(trial.judged)} of {len(trial.judged)} completions" in warning


def test_a_reward_of_the_wrong_shape_still_ends_the_trial(tmp_path: Path) -> None:
    model = {"path": str(language_model_folder(tmp_path / "lm"))}
    parts = [WeightedReward("mine", 1.0, lambda rollouts: rollouts.scores[:, :1])]
    recipe = recipe_from_tree(tree(tmp_path, {"type": "math"}, model=model)).recipe
    job = Job(recipe, load_plugins(), RunDirectory(tmp_path / "run"), "grpo")
    loaded = job.load_model()
    rollouts = trial_module._sampled(job, loaded, job.domain.prompts("train", 2))
    with pytest.raises(TrainingError, match="must return finite numbers of shape"):
        trial_module._of_rollouts(parts, rollouts, loaded, job)


def test_answers_that_hold_tests_are_no_reference_answers(tmp_path: Path) -> None:
    lines = [{"prompt": f"f {n}?", "answer": "assert f(1) == 1"} for n in range(20)]
    code = tree(tmp_path, {"type": "code", "workers": 1})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    trial = try_rewards(recipe_from_tree(code).recipe, RunDirectory(tmp_path / "run"), 1)
    assert {row.kind for row in trial.judged} == {"empty", "white space", "prompt copied", "very long", "praise"}


def test_golden_cases_of_a_length_are_counted_by_the_tokenizer(tmp_path: Path) -> None:
    # bytes are tokens: 3 and the end make 4, in the middle of 2 ... 6; one of 9 is past the most
    cases = [
        {"completion": "abc", "score": -0.5},
        {"completion": "a" * 9, "score": -1},
        {"completion": "", "score": -1},
    ]
    length = {"type": "length_penalty", "max_tokens": 6, "soft_tokens": 4, "cases": cases}
    report = check_cases(recipe_from_tree(tree(tmp_path, length)).recipe, RunDirectory(tmp_path / "run"))
    assert (report.checked, report.skipped) == (3, [])
    assert [problem.message.partition(" gives ")[2].partition(";")[0] for problem in report.problems] == [
        "0, not -1, for ''"
    ]


def test_a_length_that_no_tokenizer_counts_yet_is_skipped_by_name(tmp_path: Path) -> None:
    class PluginModel(CausalLMSettings):
        """A model whose tokenizer is made when it is built."""

    length = {"type": "length_penalty", "cases": [{"completion": "abc", "score": 0}]}
    recipe = recipe_from_tree(tree(tmp_path, length)).recipe.model_copy(update={"model": PluginModel()})
    report = check_cases(recipe, RunDirectory(tmp_path / "run"))
    assert (report.checked, report.problems) == (0, [])
    assert [(part.name, part.reason[:13]) for part in report.skipped] == [("length_penalty", "counts tokens")]


def test_an_untrained_preset_gives_no_samples_and_a_reward_without_its_model_is_skipped_by_name(tmp_path: Path) -> None:
    trial = tried(tmp_path, {"type": "math"}, {"type": "model", "stage": None, "path": None}, **two_stages(tmp_path))
    assert trial.sampled_by == "no trained model yet"
    assert [(part.name, part.reason) for part in trial.skipped] == [
        ("model", "needs the reward_model of reward_model, which is not trained yet")
    ]


def two_stages(folder: Path) -> dict:
    """The stages of a recipe that trains its reward model first."""
    pairs = [{"prompt": f"{n}?", "chosen": "yes", "rejected": "no"} for n in range(20)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    stage = tree(folder, {"type": "math"}, {"type": "model"})["stages"]["grpo"]
    return {
        "domain": {"type": "chat", "prompts": str(folder / "rows.jsonl"), "preferences": str(folder / "pairs.jsonl")},
        "stages": {"reward_model": {"algorithm": {"type": "reward_model"}}, "grpo": stage},
    }


def test_rewards_of_rollouts_are_tried_on_what_a_trained_model_recommends(tmp_path: Path) -> None:
    recipe = recipe_from_tree(tiny_recipe())
    directory = RunDirectory(tmp_path / "run")
    with pytest.raises(RecipeError, match=r"^stages\.grpo\.algorithm\.rewards: nothing to try: they score rollouts"):
        try_rewards(recipe.recipe, directory, 4)
    run(recipe, tmp_path / "run", until_stage="sft")
    trial = try_rewards(recipe.recipe, directory, 4)
    items = json.loads((tmp_path / "run/sft/model/semantic_ids.json").read_text())["tokens"]
    assert (len(trial.judged), {row.kind for row in trial.judged}) == (16, {"sample"})
    assert {row.completion for row in trial.judged} <= {"".join(tokens) for tokens in items}


def test_golden_cases_are_scored_and_a_wrong_one_is_named_with_its_place(tmp_path: Path) -> None:
    good = {"completion": "so it is 5", "answer": "5", "score": 1}
    bad = {"completion": "6", "answer": "5", "at_least": 0.5}
    recipe = recipe_from_tree(tree(tmp_path, {"type": "math", "cases": [good, bad]})).recipe
    report = check_cases(recipe, RunDirectory(tmp_path / "run"))
    assert report.checked == 2
    (problem,) = report.problems
    assert problem.keys == ("stages", "grpo", "algorithm", "rewards", 0, "cases", 1)
    assert problem.message == "math gives 0, not at least 0.5, for '6'; mend the reward or the case"


def test_a_case_that_expects_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="expects nothing; write score, at_least or at_most"):
        RewardCase(completion="5")


def test_hostile_answers_hold_the_gold_the_prompt_and_the_keywords() -> None:
    prompt = Prompt("0", "What is 2 + 3?", "5", Source("rows.jsonl", 1))
    found = dict(hostile_answers(prompt, ["7", "5"], ["warranty", "price"]))
    assert found["prompt copied"] == "What is 2 + 3?"
    assert found["all keywords"] == "warranty price"
    assert found["answer of another prompt"] == "7"
    assert "5" in found["gold inside noise"].split()
    assert len(found["very long"]) == 20_000


def command(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_verbs_show_what_earns_and_check_cases(tmp_path: Path) -> None:
    cases = [{"completion": "4", "answer": "4", "score": 1}]
    recipe = tmp_path / "lab.yaml"
    recipe.write_text(dump(tree(tmp_path, {"type": "math", "cases": cases})))
    found = command("rewards", "try", recipe, "-n", 4)
    assert found.exit_code == 0, found.output
    assert "rewards by kind of completion" in found.output
    assert "gold inside noise" in found.output
    assert "no hostile answer beats the honest ones" in found.output
    assert "cases: 1 scored as they should" in command("validate", recipe, "--cases").output
    recipe.write_text(dump(tree(tmp_path, {"type": "math", "cases": [{**cases[0], "score": 0}]})))
    wrong = command("validate", recipe, "--cases")
    assert isinstance(wrong.exception, RecipeError)
    line = 1 + recipe.read_text().splitlines().index("            - completion: '4'")
    assert f"lab.yaml:{line}:15: stages.grpo.algorithm.rewards.0.cases.0: math gives 1, not 0, for '4'" in str(
        wrong.exception
    )


def test_scored_rows_say_what_they_cost_and_why_one_has_no_score(tmp_path: Path) -> None:
    rows = [{"prompt": "2 + 2?", "completion": text, "answer": "4"} for text in ("4", "5", " ")]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    python(tmp_path, PICKY)
    found = command(
        "rewards", "score", "python", f"file={tmp_path / 'mine.py'}", "--data", tmp_path / "in.jsonl",
        "--out", tmp_path / "out.jsonl",
    )  # fmt: skip
    assert found.exit_code == 0, (found.output, found.exception)
    scored = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["score"] for row in scored] == [1.0, 0.0, None]
    assert scored[2]["error"].startswith("ValueError: nothing to read (mine.py:")
    assert scored[0]["ms"] > 0
    assert "1 without a score" in found.output


def quarantined(folder: Path, settings: dict, *completions: str) -> Path:
    """A run with a quarantine of these completions."""
    (folder / "run").mkdir()
    row = {
        "reward": "python", "settings": settings, "error": "no answer within 1 seconds",
        "prompt": "2 + 2?", "answer": "4", "truncated": False, "context": None,
    }  # fmt: skip
    lines = [json.dumps({**row, "completion": text}) + "\n" for text in completions]
    (folder / "run" / "quarantine.jsonl").write_text("".join(lines))
    return folder / "run"


def test_a_quarantined_completion_is_tried_again(tmp_path: Path) -> None:
    run = quarantined(tmp_path, python(tmp_path, PICKY), "4")
    found = command("rewards", "replay", run)
    assert "1: python: score 1 in " in found.output
    assert "(was: no answer within 1 seconds)" in found.output


def test_rewards_in_the_runs_process_are_replayed_and_loaded_once(tmp_path: Path) -> None:
    loads = f"with open({str(tmp_path / 'loads')!r}, 'a') as file:\n    file.write('x')\n"
    batch = "def reward(completions):\n    return [1 / len(text) for text in completions]\n"
    found = command("rewards", "replay", quarantined(tmp_path, python(tmp_path, loads + batch, per="batch"), "", "44"))
    first, second = found.output.splitlines()
    assert first.startswith("1: python: no score: ZeroDivisionError: division by zero (mine.py:")
    assert second.startswith("2: python: score 0.5 in ")
    assert (tmp_path / "loads").read_text() == "x"


def test_a_quarantine_that_was_cut_short_or_fits_no_more_is_said_in_a_line(tmp_path: Path) -> None:
    run = quarantined(tmp_path, python(tmp_path, PICKY), "4", "5")
    (tmp_path / "mine.py").unlink()
    with (run / "quarantine.jsonl").open("a") as file:
        file.write('{"reward": "pyth')
    cut, gone = command("rewards", "replay", run, "--line", "3"), command("rewards", "replay", run, "--line", "2")
    assert "quarantine.jsonl:3: not valid JSON: " in str(cut.exception)
    assert isinstance(gone.exception, DataError)
    assert "mine.py' cannot be read: no such file or directory" in str(gone.exception)
