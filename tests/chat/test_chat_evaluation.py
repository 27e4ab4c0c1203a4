"""The evaluation of chat models from a run: which models, which figures, and that they are those of the answers."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlkit.chat.answer_numbers import answer_numbers, check_rewards, overlap_numbers, pass_numbers
from rlkit.chat.evaluated import evaluated_models
from rlkit.chat.measure import Measured
from rlkit.chat.metrics import wins
from rlkit.config.rewards import ExactMatchSettings, RewardSettings
from rlkit.errors import DataError, RecipeError, TrainingError
from rlkit.job import Job
from rlkit.plugins import load_plugins
from rlkit.policy.rewarder import WeightedReward
from rlkit.policy.text_rewards import Answer, TextReward
from rlkit.recipe import check_data, recipe_from_tree
from rlkit.records import Prompt, Source
from rlkit.report.compare import compare_runs
from rlkit.run import evaluate_run, run
from rlkit.run_directory import RunDirectory


def recipe_tree(train: Path) -> dict:
    """Return a recipe whose SFT learns the form of an answer, and whose GRPO does a little more."""
    common = {"report_to": [], "schedule": "constant_with_warmup", "learning_rate": 1e-2}
    grpo = {
        "type": "grpo",
        "group_size": 4,
        "rollout": {"type": "sample", "max_completion_tokens": 4},
        "rewards": [{"type": "exact_match"}],
        "validate_on": {"prompts": 8, "every_steps": 4, "select_by": "last"},
    }
    return {
        "name": "letters",
        "model": {"hidden_size": 32, "intermediate_size": 64, "layers": 1},
        "domain": {
            "type": "chat",
            "prompts": {"path": str(train), "valid": str(train.with_name("valid.jsonl"))},
            "max_completion_tokens": 4,
        },
        "stages": {
            "sft": {"algorithm": {"type": "sft"}, "train": {"batch_size": 16, "max_steps": 24, **common}},
            "grpo": {"algorithm": grpo, "train": {"batch_size": 8, "max_steps": 4, **common}},
            "evaluate": {
                "type": "evaluate",
                "chat": {"rewards": [{"type": "exact_match"}], "samples": 3, "forbidden": ["a"], "refusals": True},
            },
        },
        "engine": {"threads": 1},
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the recipe once."""
    folder = tmp_path_factory.mktemp("chat")
    letters = random.Random(0).choices("abcd", k=240)
    rows = [json.dumps({"prompt": letter, "answer": letter}) for letter in letters]
    (folder / "train.jsonl").write_text("\n".join(rows[:-24]))
    (folder / "valid.jsonl").write_text("\n".join(rows[-24:]))
    return run(recipe_from_tree(recipe_tree(folder / "train.jsonl")), folder / "run")


@pytest.fixture(scope="module")
def report(finished: Path) -> dict:
    """Return the run's evaluation."""
    return json.loads((finished / "evaluate" / "eval.json").read_text())


def answers(finished: Path, name: str = "answers.jsonl") -> list[dict]:
    """Read what a model said."""
    return [json.loads(line) for line in (finished / "evaluate" / name).read_text().splitlines()]


def by_name(report: dict) -> dict[str, dict]:
    """Return the metrics of each row."""
    return {row["name"]: row["metrics"] for row in report["rows"]}


def test_every_model_has_every_figure_with_an_interval_around_it(report: dict) -> None:
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == ["sft", "grpo", "most frequent answer"]
    common = {
        "exact_match", "truncated", "completion_length", "bleu", "rouge_1", "rouge_2", "rouge_l", "distinct_1",
        "forbidden", "refused", "reward/exact_match", "perplexity", "ability", "sampled/exact_match",
        "sampled/truncated", "sampled/completion_length", "sampled/distinct_1", "sampled/forbidden",
        "sampled/refused", "sampled/reward/exact_match", "sampled/pass@1", "sampled/pass@2",
        "sampled/pass@1/exact_match", "sampled/pass@2/exact_match",
    }  # fmt: skip
    against = {"win_rate/exact_match", "sampled/win_rate/exact_match", "kl"}
    two_words = {"distinct_2", "sampled/distinct_2"}  # of answers with two words, if there are any
    assert rows["sft"]["metrics"].keys() - two_words == common
    assert rows["grpo"]["metrics"].keys() - two_words == common | against
    for row in rows.values():
        assert row["ci95"].keys() == row["metrics"].keys()
        for name, (low, high) in row["ci95"].items():
            assert low <= row["metrics"][name] <= high, name
    assert report["metrics"] == rows["grpo"]["metrics"]
    assert report["measured"] == {
        "reference": "sft",
        "samples": 3,
        "temperature": 1.0,
        "top_p": 1.0,
        "demonstrations": 24,
        "bleu_tokenizer": "13a",
        "chance": {"ability": 0.25},
    }


def test_figures_are_those_of_the_answers(finished: Path, report: dict) -> None:
    first, last = answers(finished, "answers-sft.jsonl"), answers(finished)
    figures = by_name(report)["grpo"]
    reward = [float(row["completion"].strip() == row["answer"] and not row["truncated"]) for row in last]
    assert figures["reward/exact_match"] == pytest.approx(np.mean(reward), abs=1e-6)
    assert figures["forbidden"] == pytest.approx(np.mean([row["completion"] == "a" for row in last]), abs=0.1)
    theirs = [float(row["completion"].strip() == row["answer"] and not row["truncated"]) for row in first]
    by_hand = np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(reward, theirs)])
    assert figures["win_rate/exact_match"] == pytest.approx(by_hand, abs=1e-6)
    sampled = [[sample["metrics"]["reward/exact_match"] for sample in row["samples"]] for row in last]
    assert np.array(sampled).shape == (24, 3)
    assert figures["sampled/reward/exact_match"] == pytest.approx(np.mean(sampled), abs=1e-6)
    assert figures["sampled/pass@1/exact_match"] == figures["sampled/reward/exact_match"]
    right = [sum(group) for group in sampled]  # of 3: two draws miss with (3 - c) (2 - c) / 6
    by_hand = np.mean([1 - max(3 - c, 0) * max(2 - c, 0) / 6 for c in right])
    assert figures["sampled/pass@2/exact_match"] == pytest.approx(by_hand, abs=1e-6)
    other = [[sample["metrics"]["reward/exact_match"] for sample in row["samples"]] for row in first]
    pairs = zip(np.ravel(sampled), np.ravel(other))
    assert figures["sampled/win_rate/exact_match"] == pytest.approx(
        np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]), abs=1e-6
    )


def test_perplexity_falls_with_training_and_kl_grows(finished: Path) -> None:
    folder = evaluate_run(finished, ["chat.starting_model=true", "chat.reference=sft"])
    report = json.loads((folder / "eval.json").read_text())
    figures = by_name(report)
    assert list(figures)[:3] == ["starting model", "sft", "grpo"]
    # 262 rows of a fresh model, all about as likely; letters have 4 values, and their end is certain
    assert figures["starting model"]["perplexity"] > 200
    assert figures["sft"]["perplexity"] < 6
    assert figures["starting model"]["kl"] > figures["grpo"]["kl"] > 0
    assert "kl" not in figures["sft"]


def test_an_evaluation_gives_the_same_bytes_twice(finished: Path) -> None:
    folders = [evaluate_run(finished, ["max_rows=7"], name=name) for name in ("once", "again")]
    for file in ("eval.json", "answers.jsonl", "answers-sft.jsonl"):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()
    assert str(finished) not in (folders[0] / "eval.json").read_text()


def test_what_cannot_be_measured_is_left_out(finished: Path) -> None:
    overrides = ["models=[grpo]", "chat.samples=0", "chat.ability=false", "chat.rewards=[]", "baselines=false"]
    overrides += ["chat.forbidden=[]", "chat.refusals=false"]
    report = json.loads((evaluate_run(finished, overrides, name="less") / "eval.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["sft", "grpo"]  # sft is what grpo started from
    found = report["metrics"].keys() - {"distinct_2"}
    assert found == {
        "exact_match", "truncated", "completion_length", "bleu", "rouge_1", "rouge_2", "rouge_l", "distinct_1",
        "perplexity",
    }  # fmt: skip
    assert "samples" not in json.loads((finished / "less" / "answers.jsonl").read_text().splitlines()[0])
    assert report["measured"].keys() == {"reference", "demonstrations", "bleu_tokenizer"}


def test_models_of_a_run_are_compared_by_what_they_said(finished: Path, report: dict) -> None:
    compared = compare_runs(finished / "evaluate" / "answers-sft.jsonl", finished)
    rows = by_name(report)
    for name in ("exact_match", "sampled/reward/exact_match", "rouge_1"):
        assert compared.metrics[name][:2] == pytest.approx((rows["sft"][name], rows["grpo"][name]), abs=1e-6)
    assert compared.wins["exact_match"].difference == pytest.approx(rows["grpo"]["win_rate/exact_match"], abs=1e-6)


def test_tables_show_models_as_rows(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_run(finished, ["max_rows=5"], name="shown")
    out = capsys.readouterr().out
    text = " ".join(out.split())
    titles = ["greedy answers", "wording of the greedy answers", "sampled answers", "the models"]
    assert [line for line in out.splitlines() if line in titles] == titles
    assert "KL to sft, nats per token of the samples; ability by guessing: .250" in text
    assert "win rate against sft, ties half; 3 per prompt at temperature 1" in text


def test_the_report_page_has_the_same_tables(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "<h3>wording of the greedy answers</h3>" in page
    assert "KL to sft, nats per token of the samples" in page


# ---- which models


def plan(
    tmp_path: Path, change: dict | None = None, model: dict | None = None, stages: list[str] | None = None
) -> tuple:
    """Return the names, the result and the reference of a recipe that is not run."""
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "answer": "b"}\n' * 4)
    tree = copy.deepcopy(recipe_tree(tmp_path / "train.jsonl"))
    tree["stages"]["evaluate"].setdefault("chat", {}).update(change or {})
    tree["model"] |= model or {}
    for name in set(tree["stages"]) - {*(stages or tree["stages"]), "evaluate"}:
        del tree["stages"][name]
    job = Job(recipe_from_tree(tree).recipe, load_plugins(), RunDirectory(tmp_path / "run"), "evaluate")
    found = evaluated_models(job)
    return found.names, found.result, found.reference


def test_the_reference_is_what_the_policy_started_from(tmp_path: Path) -> None:
    assert plan(tmp_path) == (("sft", "grpo"), "grpo", "sft")
    # a policy on top of the recipe's own model is measured against that, preset or not
    assert plan(tmp_path, stages=["grpo"]) == (("starting model", "grpo"), "grpo", "starting model")
    assert plan(tmp_path, stages=["sft"]) == (("sft",), "sft", None)


def test_a_model_from_a_folder_is_evaluated_as_it_was(tmp_path: Path) -> None:
    folder = {"path": str(tmp_path)}
    assert plan(tmp_path, model=folder) == (("starting model", "sft", "grpo"), "grpo", "sft")
    assert plan(tmp_path, model=folder, stages=["sft"]) == (("starting model", "sft"), "sft", "starting model")
    assert plan(tmp_path, {"starting_model": False}, folder, ["sft"]) == (("sft",), "sft", None)


def test_a_reference_can_be_named_and_must_be_an_earlier_stage(tmp_path: Path) -> None:
    assert plan(tmp_path, {"reference": "grpo"}) == (("grpo", "sft"), "grpo", "grpo")
    with pytest.raises(
        RecipeError, match=r"stages.evaluate.chat.reference: no stage is called 'sfd'; did you mean 'sft'"
    ):
        plan(tmp_path, {"reference": "sfd"})


def test_chat_settings_are_refused_in_another_domain(tmp_path: Path) -> None:
    tree = recipe_tree(tmp_path / "x") | {"domain": {"type": "recommendation"}}
    tree["stages"] = {
        "semantic_ids": {"type": "semantic_ids"},
        "sft": {"algorithm": {"type": "sft"}},
        "evaluate": {"type": "evaluate", "chat": {"samples": 2}},
    }
    with pytest.raises(RecipeError) as error:
        recipe_from_tree(tree)
    wrong = "is for the domain chat and does nothing in 'recommendation'; leave it out"
    assert error.value.problems == (f"recipe: stages.evaluate.chat.samples: {wrong}",)
    tree["stages"]["evaluate"]["chat"] = {"samples": 1}  # the default, as a resolved recipe writes it
    recipe_from_tree(tree)


def test_files_of_the_evaluation_are_read_when_a_recipe_is_validated(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "answer": "b"}\n' * 4)
    tree = recipe_tree(tmp_path / "train.jsonl")
    tree["stages"]["evaluate"]["chat"] |= {"forbidden_file": str(tmp_path / "none.txt")}
    with pytest.raises(DataError, match=r"none.txt: cannot be read"):
        check_data(recipe_from_tree(tree).recipe)


# ---- numbers of single answers


def prompts(*wanted: str) -> list[Prompt]:
    """Return prompts with these answers."""
    return [Prompt(str(index), f"q{index}", answer, Source("f", index + 1)) for index, answer in enumerate(wanted)]


def weighted_score(score: object) -> WeightedReward:
    """Return a reward out of a score of samples."""
    return WeightedReward("mine", 1.0, TextReward(score, None))  # type: ignore[arg-type]


def test_prompts_without_an_answer_have_no_exact_match() -> None:
    said = [[Answer("x", False, 2)], [Answer("y", False, 2)]]
    found = answer_numbers(prompts("x", ""), said, [], {})
    np.testing.assert_array_equal(found["exact_match"], [[1], [np.nan]])
    assert "exact_match" not in answer_numbers(prompts("", ""), said, [], {})
    np.testing.assert_array_equal(overlap_numbers(prompts("x", ""), [a[0] for a in said])["rouge_1"], [[1], [np.nan]])
    assert overlap_numbers(prompts("", ""), [a[0] for a in said]) == {}


def test_a_reward_sees_prompt_answer_and_truncation_in_order() -> None:
    seen = []

    def score(samples):
        seen.extend(samples)
        return range(len(samples))

    said = [[Answer("x", False, 2), Answer("y", True, 4)], [Answer("z", False, 1), Answer("", False, 1)]]
    found = answer_numbers(prompts("x", "w"), said, [weighted_score(score)], {})
    assert found["reward/mine"].tolist() == [[0, 1], [2, 3]]
    assert [(one.prompt, one.completion, one.answer, one.truncated) for one in seen] == [
        ("q0", "x", "x", False),
        ("q0", "y", "x", True),
        ("q1", "z", "w", False),
        ("q1", "", "w", False),
    ]
    assert found["completion_length"].tolist() == [[2, 4], [1, 1]]


def test_a_reward_that_is_infinite_or_needs_rollouts_is_named() -> None:
    said = [[Answer("x", False, 2)]]
    with pytest.raises(TrainingError, match="reward mine: must return 1 finite numbers, got 1, 1 of them infinite"):
        answer_numbers(prompts("x"), said, [weighted_score(lambda samples: [float("inf")])], {})
    with pytest.raises(RecipeError, match=r"stages.evaluate.chat.rewards: cannot score texts alone, got mine"):
        check_rewards([WeightedReward("mine", 1.0, lambda rollouts: rollouts.scores)], "evaluate")


@pytest.mark.parametrize(
    ("settings", "second", "mean", "passed"),
    [
        # the second prompt has one right answer of two: half of them, pass@1 1/2; the first all, the third none
        (ExactMatchSettings(), 0.0, (1 + 1 / 2 + 0) / 3, (1 + 1 / 2 + 0) / 3),
        # its other answer is unknown, and so is pass@1; of the third nothing is known
        (RewardSettings(), np.nan, (1 + 1) / 2, 1.0),
    ],
)
def test_an_answer_without_a_score_is_wrong_where_a_reward_verifies_and_else_left_out(
    settings: RewardSettings, second: float, mean: float, passed: float, caplog: pytest.LogCaptureFixture
) -> None:
    reward = weighted_score(lambda samples: [1, 1, 1, np.nan, np.nan, np.nan])
    said = [[Answer("x", False, 2)] * 2] * 3
    found = answer_numbers(prompts("x", "y", "z"), said, [replace(reward, settings=settings)], {})
    np.testing.assert_array_equal(found["reward/mine"], [[1, 1], [1, second], [second, second]])
    assert found["unscored/mine"].tolist() == [[0, 0], [0, 1], [1, 1]]
    assert "reward mine: 3 of 6 answers have no score and" in caplog.text
    assert "such as one to f:2: the reward gave no score" in caplog.text
    figures = Measured("m", [], [], [], {}, found, passed=pass_numbers(found, [1])).summary(0)
    assert figures["sampled/reward/mine"].value == pytest.approx(mean)
    assert figures["sampled/pass@1/mine"].value == pytest.approx(passed)
    assert figures["sampled/unscored/mine"].value == 0.5


def test_nothing_is_said_of_a_reward_that_scored_no_answer() -> None:
    numbers = answer_numbers(prompts("x"), [[Answer("x", False, 2)]], [weighted_score(lambda samples: [np.nan])], {})
    figures = Measured("m", [], [], [], numbers, {}).summary(0)
    assert "reward/mine" not in figures
    assert figures["unscored/mine"].value == 1.0


def test_a_win_over_an_answer_without_a_score_is_none() -> None:
    assert np.isnan(wins(np.array([1.0, np.nan]), np.array([np.nan, 0.0]))).all()


def workers() -> set[str]:
    """Return the processes that score samples for this one."""
    children = {pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}
    return {pid for pid in children if b"reward_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()}


def test_a_reward_that_fails_on_some_answers_costs_these_and_not_the_evaluation(finished: Path, tmp_path: Path) -> None:
    code = "def reward(completion, answer):\n    assert answer != 'a', 'not this one'\n    return 1.0\n"
    (tmp_path / "mine.py").write_text(code)
    before = workers()
    overrides = [f"chat.rewards=[{{type: python, file: '{tmp_path / 'mine.py'}'}}]", "chat.ability=false"]
    folder = evaluate_run(finished, overrides, name="fails")
    assert workers() == before
    rows = answers(finished, "../fails/answers.jsonl")
    share = np.mean([row["answer"] == "a" for row in rows])
    figures = json.loads((folder / "eval.json").read_text())["metrics"]
    assert 0 < share < 1
    assert figures["reward/python"] == figures["sampled/reward/python"] == 1.0
    assert figures["unscored/python"] == figures["sampled/unscored/python"] == pytest.approx(share, abs=1e-6)
    assert compare_runs(folder / "answers-sft.jsonl", folder / "answers.jsonl").metrics["unscored/python"][1] == share
