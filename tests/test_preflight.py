"""The list before the first stage: what it says, and each way in which it stops a run."""

import json
import re
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from toys import tiny_recipe
from typer.testing import CliRunner

from rlkit.errors import RunError
from rlkit.plugins import load_plugins
from rlkit.policy.text_rewards import TextReward
from rlkit.preflight.line import Line
from rlkit.preflight.listed import preflight
from rlkit.preflight.machine import model_size
from rlkit.recipe import recipe_from_tree
from rlkit.run import run
from rlkit.run_directory import RunDirectory


def chat_tree(rewards: list[dict], **changes: object) -> dict:
    """Return the tree of a small chat recipe: SFT, then GRPO."""
    train = {"batch_size": 4, "max_steps": 2, "report_to": []}
    return {
        "name": "tiny",
        "model": {"hidden_size": 32, "intermediate_size": 64, "layers": 1},
        "domain": {"type": "chat", "prompts": {"type": "arithmetic", "rows": 40, "held_out": 8}},
        "stages": {
            "sft": {"algorithm": {"type": "sft"}, "train": train},
            "grpo": {
                "algorithm": {
                    "type": "grpo",
                    "group_size": 4,
                    "rollout": {"type": "sample", "max_completion_tokens": 4},
                    "rewards": rewards,
                    "validate_on": {"prompts": 4},
                },
                "train": train,
            },
        },
        "engine": {"threads": 1, "device": "cpu"},
    } | changes


def lines(tree: dict, folder: Path, stages: list[str] | None = None) -> dict[str, Line]:
    """Return the list by subject; where a subject stands twice, its last line."""
    recipe = recipe_from_tree(tree).recipe
    found = preflight(recipe, load_plugins(), RunDirectory(folder / "run"), stages or list(recipe.stages))
    return {line.subject: line for line in found}


def rows(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def stopped(tree: dict, folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Run, and return the failed lines; nothing was written."""
    with pytest.raises(RunError) as error:
        run(recipe_from_tree(tree), folder / "run")
    assert not (folder / "run").exists()
    assert error.value.exit_code == 2
    said = capsys.readouterr().err
    assert said.startswith("pre-flight\n")
    assert "  failed " in said
    return list(error.value.problems)


def sandboxes() -> set[str]:
    """Return the processes that run a sandbox for this one."""
    children = {pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}
    return {pid for pid in children if b"sandbox.zygote" in Path(f"/proc/{pid}/cmdline").read_bytes()}


# ---- what is said


def test_a_healthy_recipe_has_a_line_for_each_thing(tmp_path: Path) -> None:
    found = lines(chat_tree([{"type": "math"}]), tmp_path)
    assert {line.mark for line in found.values()} == {"ok"}
    assert found["data, prompts"].found == "40 train, 3 valid, 8 test"
    assert found["reward math"].found == "40 of 40 reference answers get the best score, 1"
    # 2 steps of one update each; a rollout is a batch of 4 prompts, each with 4 completions
    assert found["stage grpo"].found == (
        "2 steps = 2 rollouts x 1 update, a rollout is 4 prompts x 4 = 16 completions; 1 x 4 per forward"
    )
    assert found["device"].found == "cpu, fp32"
    assert found["monitor"].found == "on, alarms warn"


def test_steps_follow_from_epochs_and_rows(tmp_path: Path) -> None:
    tree = chat_tree([{"type": "math"}])
    for stage in tree["stages"].values():
        stage["train"] = {"batch_size": 8, "epochs": 3, "report_to": []}
    tree["stages"]["grpo"]["algorithm"] |= {"rollout_batch_size": 16, "updates_epochs": 2}
    found = lines(tree, tmp_path)
    assert found["stage sft"].found.startswith("15 steps of 8;")  # 40 rows are 5 batches, three times
    # 3 x 40 prompts are 7.5 rollouts of 16, rounded to even: 8; each serves 2 passes over 2 batches
    assert found["stage grpo"].found.startswith("32 steps = 8 rollouts x 4 updates, a rollout is 16 prompts x 4 = 64 c")


def test_the_steps_that_are_said_are_those_that_are_taken(tmp_path: Path) -> None:
    tree = chat_tree([{"type": "math"}], monitor=None)
    del tree["stages"]["sft"]
    tree["stages"]["grpo"]["train"] = {"batch_size": 8, "epochs": 1, "report_to": []}
    assert lines(tree, tmp_path)["stage grpo"].found.startswith("5 steps = 5 rollouts")
    run(recipe_from_tree(tree), tmp_path / "run")
    states = (tmp_path / "run" / "grpo" / "checkpoints").glob("checkpoint-*/trainer_state.json")
    assert {json.loads(path.read_text())["max_steps"] for path in states} == {5}


def test_learned_rewards_are_tried_later_and_said_to_be(tmp_path: Path) -> None:
    tree = chat_tree([{"type": "model", "stage": "scorer"}, {"type": "math"}])
    tree["domain"] = {"type": "chat"}
    scorer = {"algorithm": {"type": "reward_model"}, "train": tree["stages"]["sft"]["train"]}
    tree["stages"] = {"sft": tree["stages"]["sft"], "scorer": scorer, "grpo": tree["stages"]["grpo"]}
    line = lines(tree | {"monitor": None}, tmp_path)["reward 0 model"]
    assert (line.mark, line.found) == ("later", "needs the reward_model of scorer")


def test_a_switched_off_monitor_is_noted(tmp_path: Path) -> None:
    assert lines(chat_tree([{"type": "math"}], monitor=None), tmp_path)["monitor"].mark == "note"


def test_rules_on_form_are_shown_and_stop_nothing(tmp_path: Path) -> None:
    line = lines(chat_tree([{"type": "math"}, {"type": "format", "tags": ["answer"]}]), tmp_path)["reward 1 format"]
    assert (line.mark, line.found) == ("ok", "0 on average of 40 reference answers, 0 to 0")


def test_a_gate_that_lets_no_reference_answer_through_is_noted(tmp_path: Path) -> None:
    rewards = [{"type": "math"}, {"type": "format", "tags": ["answer"], "gate": True}]
    line = lines(chat_tree(rewards), tmp_path)["reward 1 format"]
    assert line.mark == "note"
    assert "0 for all of 40 reference answers; a gate, so that answers of this kind earn nothing" in line.found


def test_a_reward_that_wants_its_answers_marked_still_fits(tmp_path: Path) -> None:
    assert lines(chat_tree([{"type": "math", "marked_only": True}]), tmp_path)["reward math"].mark == "ok"


def test_what_runs_code_says_how_it_is_isolated(tmp_path: Path) -> None:
    tree = chat_tree([{"type": "code"}])
    tree["domain"] = {"type": "chat", "prompts": {"type": "python_tasks", "rows": 4, "held_out": 4}}
    before = sandboxes()
    found = lines(tree, tmp_path)
    assert sandboxes() == before
    assert found["sandbox"].found.startswith("isolation ")
    assert found["reward code"].mark == "ok"


@pytest.mark.parametrize("answer", ["assert f(1) == 1", '{"tests": ["assert f(1) == 1"]}'])
def test_tests_in_the_answers_are_no_reference_answers_and_stop_nothing(answer: str, tmp_path: Path) -> None:
    path = rows(tmp_path / "rows.jsonl", *({"prompt": f"f {number}?", "answer": answer} for number in range(20)))
    found = lines(chat_tree([{"type": "code"}], domain={"type": "chat", "prompts": path}), tmp_path, ["grpo"])
    assert found["reward code"].mark == "note"
    assert "rows hold checks, and no answer that passes them" in found["reward code"].found


def test_rows_without_tests_stop_a_code_run(tmp_path: Path) -> None:
    path = rows(tmp_path / "rows.jsonl", *({"prompt": f"f {number}?", "answer": "f = 1"} for number in range(20)))
    found = lines(chat_tree([{"type": "code"}], domain={"type": "chat", "prompts": path}), tmp_path, ["grpo"])
    assert found["reward code"].mark == "failed"
    assert "the row carries no tests" in found["reward code"].found


def test_a_recommendation_recipe_has_the_lines_that_apply(tmp_path: Path) -> None:
    found = lines(tiny_recipe(), tmp_path)
    assert found["data, catalog"].found == "60 items"
    assert found["reward 0 item_match"].mark == "later"
    assert found["stage grpo"].mark == found["disk"].mark == found["device"].mark == "ok"


@pytest.mark.parametrize(("value", "mark"), [("Coffee", "later"), ("Nowhere", "failed")])
def test_a_reward_for_an_attribute_is_looked_at_before_there_are_semantic_ids(
    value: str, mark: str, tmp_path: Path
) -> None:
    tree = tiny_recipe()
    tree["stages"]["grpo"]["algorithm"]["rewards"] = [{"type": "attribute_match", "value": value}]
    found = lines(tree, tmp_path)["reward attribute_match"]
    assert found.mark == mark
    assert ("no item has category 'Nowhere'" in found.found) == (mark == "failed")


def test_a_reward_that_reads_text_waits_where_items_have_no_names_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlkit.recsys.rewards.item_match", lambda settings, domain: TextReward(len, domain))
    found = lines(tiny_recipe(), tmp_path)["reward 0 item_match"]
    assert (found.mark, found.found[:9]) == ("note", "not tried")


def test_nothing_is_said_where_nothing_trains(tmp_path: Path) -> None:
    assert lines(tiny_recipe(), tmp_path, ["semantic_ids", "evaluate"]) == {}


def test_a_finished_run_is_not_looked_at_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = chat_tree([{"type": "math"}])
    del tree["stages"]["grpo"]
    run(recipe_from_tree(tree), tmp_path / "run")
    assert "pre-flight" in capsys.readouterr().err
    assert "ok     data, prompts: 40 train" in (tmp_path / "run" / "logs" / "rlkit.log").read_text()
    run(recipe_from_tree(tree), tmp_path / "run")
    assert "pre-flight" not in capsys.readouterr().err


# ---- failed lines


def test_answers_that_the_reward_cannot_find_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {"entry_point": "f", "test": "assert f(1) == 2", "canonical_solution": "return a"}
    file = rows(tmp_path / "a.jsonl", *({"prompt": f"# {n}\ndef f(a): ", **wrong} for n in range(5)))
    tree = chat_tree([{"type": "code"}], domain={"type": "chat", "prompts": {"path": file, "format": "humaneval"}})
    (problem,) = stopped(tree, tmp_path, capsys)
    assert problem.startswith("pre-flight: reward code: 4 of 4 reference answers get 0, such as ")
    assert f"{file}:1: 0 for '# 0\\ndef f(a): return a'; mend the answers or the reward" in problem


def test_a_reward_that_raises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text("def reward(completion):\n    return completion.missing\n")
    tree = chat_tree([{"type": "python", "file": str(tmp_path / "mine.py")}])
    (problem,) = stopped(tree, tmp_path, capsys)
    said = r"(\d+) of \1 reference answers get no score, such as arithmetic/prompts/train:1: "  # as many as time allows
    assert re.search(said, problem)
    assert "has no attribute 'missing'" in problem


def test_a_golden_case_with_another_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = chat_tree([{"type": "math", "cases": [{"completion": "8", "answer": "7", "score": 1}]}])
    (problem,) = stopped(tree, tmp_path, capsys)
    assert "stages.grpo.algorithm.rewards.0.cases.0: math gives 0, not 1, for '8'" in problem


def test_prompts_without_the_answers_that_a_stage_imitates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = rows(tmp_path / "a.jsonl", *({"prompt": f"{n}?"} for n in range(20)))
    problems = stopped(
        chat_tree([{"type": "math"}], domain={"type": "chat", "prompts": {"path": file}}), tmp_path, capsys
    )
    assert problems[0] == (
        "pre-flight: data, demonstrations: no train rows, and stage 'sft' learns from them; "
        "name a file in domain.demonstrations"
    )


def test_a_server_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (problem,) = stopped(chat_tree([{"type": "http", "url": "http://127.0.0.1:9/score"}]), tmp_path, capsys)
    assert problem.startswith("pre-flight: reward http: ")
    assert "127.0.0.1:9" in problem


def test_a_disk_that_is_too_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9 - 10**6, 10**6))
    (problem,) = stopped(chat_tree([{"type": "math"}]), tmp_path, capsys)
    assert "1 MB free" in problem
    assert "lower train.keep_checkpoints" in problem


def test_a_weaker_sandbox_than_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rlkit.chat.verifiers.sandbox import isolation

    weak = isolation.Host(frozenset(), {"box": "not permitted"})
    monkeypatch.setattr(isolation, "detect", lambda: weak)
    tree = chat_tree([{"type": "code", "isolation": "namespaces"}])
    tree["domain"] = {"type": "chat", "prompts": {"type": "python_tasks", "rows": 20, "held_out": 8}}
    (problem,) = stopped(tree, tmp_path, capsys)
    assert "isolation 'namespaces' is asked for, got 'rlimits'" in problem


def test_the_terminal_shows_the_list_and_ends_with_2(tmp_path: Path) -> None:
    from rlkit.cli.main import app
    from rlkit.recipe_yaml import dump

    (tmp_path / "r.yaml").write_text(
        dump(chat_tree([{"type": "math", "cases": [{"completion": "8", "answer": "7", "score": 1}]}]))
    )
    command = ["run", str(tmp_path / "r.yaml"), "--smoke", "--out", str(tmp_path / "run")]
    ended = CliRunner().invoke(app, command)
    assert isinstance(ended.exception, RunError)
    assert ended.exception.exit_code == 2
    assert "  failed golden case: " in ended.stderr
    assert not (tmp_path / "run").exists()
    assert CliRunner().invoke(app, [*command, "--no-preflight", "--until", "sft"]).exit_code == 0


# ---- the estimate


def test_a_models_size_is_that_of_the_model() -> None:
    from rlkit.config.models import AdapterSettings, CausalLMSettings
    from rlkit.models.load import load_causal_lm

    settings = CausalLMSettings(hidden_size=32, intermediate_size=64, layers=2)
    real = sum(weight.numel() for weight in load_causal_lm(settings).model.parameters())
    assert model_size(settings) == (real, real)
    whole, trained = model_size(settings.model_copy(update={"adapter": AdapterSettings(rank=4)}))
    # a layer: four of 32 x 32 and three of 32 x 64, each rank x (in + out); the head 32 x 262
    assert whole == real
    assert trained == 4 * (2 * (4 * 64 + 3 * 96) + 32 + 262)
