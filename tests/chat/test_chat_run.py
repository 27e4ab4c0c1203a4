"""A chat run from rows to figures: SFT, then GRPO by exact match, then greedy evaluation."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from rlkit.recipe import recipe_from_tree
from rlkit.run import run


def recipe_tree(train: Path) -> dict:
    """Return a recipe that learns to repeat a letter: SFT gets the form and a part of it, GRPO the rest."""
    common = {"report_to": [], "schedule": "constant_with_warmup"}
    sft = {"learning_rate": 3e-3, "batch_size": 32, "max_steps": 24, "evaluate_every_steps": 12, **common}
    grpo = {"learning_rate": 3e-3, "batch_size": 16, "max_steps": 30, "log_every_steps": 5, **common}
    algorithm = {
        "type": "grpo",
        "group_size": 8,
        "rollout": {"type": "sample", "top_p": 0.98, "max_completion_tokens": 4},
        "rewards": [{"type": "exact_match"}],
        "validate_on": {"prompts": 40, "every_steps": 10},
        "kl_coef": 0.0,
    }
    return {
        "name": "letters",
        "model": {"hidden_size": 64, "intermediate_size": 128, "layers": 2},
        "domain": {
            "type": "chat",
            "prompts": {"path": str(train), "valid": str(train.with_name("valid.jsonl"))},
            "system": "Echo.",
            "max_completion_tokens": 4,
        },
        "stages": {
            "sft": {"algorithm": {"type": "sft"}, "train": sft},
            "grpo": {"algorithm": algorithm, "train": grpo},
            "evaluate": {"type": "evaluate"},
        },
        "engine": {"threads": 1},
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the recipe once."""
    folder = tmp_path_factory.mktemp("chat")
    letters = random.Random(0).choices("abcd", k=400)
    rows = [json.dumps({"prompt": letter, "answer": letter}) for letter in letters]
    (folder / "train.jsonl").write_text("\n".join(rows[:-40]))
    (folder / "valid.jsonl").write_text("\n".join(rows[-40:]))  # the same four prompts, so a file of its own
    return run(recipe_from_tree(recipe_tree(folder / "train.jsonl")), folder / "run")


def lines(path: Path) -> list[dict]:
    """Read JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_reward_rises_on_prompts_that_were_not_trained_on(finished: Path) -> None:
    rewards = [row["eval_reward"] for row in lines(finished / "metrics.jsonl") if "eval_reward" in row]
    assert len(rewards) == 4  # at the start and after 10, 20 and 30 steps
    assert rewards[-1] > rewards[0] + 0.3


def test_the_evaluation_counts_right_answers_beside_the_most_frequent_one(finished: Path) -> None:
    report = json.loads((finished / "evaluate" / "eval.json").read_text())
    answers = lines(finished / "evaluate" / "answers.jsonl")
    assert report["n"] == len(answers) == 40
    right = [row["completion"] == row["answer"] and not row["truncated"] for row in answers]
    assert report["metrics"]["exact_match"] == pytest.approx(sum(right) / 40)
    low, high = report["ci95"]["exact_match"]
    assert low <= report["metrics"]["exact_match"] <= high
    assert [row["name"] for row in report["rows"]] == ["sft", "grpo", "most frequent answer"]
    frequent = report["rows"][-1]
    wanted = [row["answer"] == frequent["settings"]["answer"] for row in answers]
    assert frequent["metrics"]["exact_match"] == pytest.approx(sum(wanted) / 40)
    assert report["metrics"]["exact_match"] > frequent["metrics"]["exact_match"]


def test_the_best_checkpoint_is_the_one_with_the_highest_reward_on_valid(finished: Path) -> None:
    states = [json.loads(path.read_text()) for path in finished.glob("grpo/checkpoints/*/trainer_state.json")]
    rewards = [row["eval_reward"] for row in lines(finished / "metrics.jsonl") if "eval_reward" in row]
    assert max(state["best_metric"] for state in states) == max(rewards[1:])  # the first is the starting model's


def test_samples_show_prompt_completion_and_reward(finished: Path) -> None:
    samples = lines(finished / "samples.jsonl")
    assert {row["stage"] for row in samples} == {"grpo"}
    assert all(row["prompt"].startswith("<|system|>Echo.") for row in samples)
    assert all(
        row["reward"] == float(row["completion"].strip() == row["answer"]) for row in samples if not row["truncated"]
    )


def test_a_second_call_has_nothing_to_do(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "evaluate" / "eval.json").read_bytes()
    run(recipe_from_tree(recipe_tree(finished.parent / "train.jsonl")), finished)
    said = capsys.readouterr().err
    assert [f"{stage}: finished before, skipped" in said for stage in ("sft", "grpo", "evaluate")] == [True] * 3
    assert (finished / "evaluate" / "eval.json").read_bytes() == before
