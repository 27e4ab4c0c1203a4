"""`rlkit why` explains runs that are healthy, sick, crashed, interrupted, or were never watched."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlkit.cli.main import app
from rlkit.errors import RunError
from rlkit.report.html import write_report
from rlkit.report.why import explain

ALARM = {
    "stage": "grpo", "alarm": "kl_high", "step": 8, "since": 6, "symptom": "KL <0.7> per token",
    "cause": "a weak penalty",
    "change": ["stages.grpo.algorithm.kl_coef", "monitor.kl_high"], "action": "warn", "done": "",
}  # fmt: skip


def a_run(
    folder: Path,
    log: str = "",
    alarms: list | None = None,
    finished: tuple = (),
    metrics: list | None = None,
    extra: str = "",
) -> Path:
    """Write what a run of sft and grpo leaves."""
    (folder / "logs").mkdir(parents=True)
    (folder / "recipe.yaml").write_text("name: toy\nstages: {sft: {type: train}, grpo: {type: train}}\n" + extra)
    (folder / "manifest.json").write_text(json.dumps({"stages": {name: {"seconds": 1} for name in finished}}))
    lines = (f"2026-01-01 00:00:0{index},000 INFO {line}\n" for index, line in enumerate(log.splitlines()))
    (folder / "logs" / "rlkit.log").write_text("".join(lines))
    for name, rows in (("alarms", alarms), ("metrics", metrics)):
        if rows:
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def rewards(*values: float, **more: float) -> list[dict]:
    return [{"stage": "grpo", "step": step, "reward": value, **more} for step, value in enumerate(values, 1)]


def test_a_healthy_run_is_said_to_be_one_and_how_it_went(tmp_path: Path) -> None:
    run = a_run(
        tmp_path / "run", "sft: starts\nsft: finished in 0:01", finished=("sft", "grpo"), metrics=rewards(0.1, 0.4)
    )
    assert explain(run) == [f"{run}: finished, no alarm", "  grpo: reward from 0.1 to 0.4 in 2 steps"]


def test_a_sick_run_says_what_since_when_why_and_what_to_change(tmp_path: Path) -> None:
    later = {**ALARM, "step": 28, "symptom": "KL <0.9> per token", "done": "kl_coef is now 0.2"}
    first = {**ALARM, "alarm": "no_signal", "since": 2}
    run = a_run(tmp_path / "run", alarms=[ALARM, later, first], finished=("sft", "grpo"))
    assert explain(run) == [
        f"{run}: finished, 3 alarms on the way",
        "  grpo: no_signal since step 2: KL <0.7> per token",
        "    likely a weak penalty",
        "    change stages.grpo.algorithm.kl_coef, monitor.kl_high",
        "  grpo: kl_high since step 6, 2 times up to step 28: KL <0.9> per token",
        "    likely a weak penalty",
        "    change stages.grpo.algorithm.kl_coef, monitor.kl_high",
        "    done: kl_coef is now 0.2",
    ]


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (
            "grpo: starts\ngrpo: ended by TrainingError: reward x: no",
            "not finished: grpo ended after step 2 by TrainingError: reward x: no",
        ),
        ("grpo: starts\ngrpo: ended by KeyboardInterrupt: ", "interrupted in grpo after step 2; the same command"),
        ("grpo: starts", "not finished: grpo is still running, or was killed after step 2; the same command starts it"),
        ("sft: finished in 0:01", "finished up to sft; not run yet: grpo"),
        ("", "not finished: grpo; its log says nothing"),
    ],
)  # fmt: skip
def test_a_run_that_is_not_finished_says_how_it_ended(log: str, said: str, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", f"sft: starts\n{log}" if log else "", finished=("sft",), metrics=rewards(0.1, 0.4))
    assert explain(run)[0].startswith(f"{run}: {said}")


def test_what_a_run_left_to_be_looked_at_is_named(tmp_path: Path) -> None:
    ended = {**ALARM, "alarm": "non_finite", "done": "the run ends; see blackbox/grpo-5"}
    run = a_run(tmp_path / "run", alarms=[ended], finished=("sft",))
    errors = ("ValueError: bad day", "ValueError: bad day", "no answer within 1 seconds")
    (run / "quarantine.jsonl").write_text("".join(json.dumps({"error": error}) + "\n" for error in errors))
    for name in ("grpo-5", "grpo-9"):  # the second one is of a stage that was redone
        (run / "blackbox" / name).mkdir(parents=True)
        (run / "blackbox" / name / "about.json").write_text("{}")
    said = explain(run)[4:]
    assert len(said) == 3
    assert (
        f"  quarantine: 3 completions could not be scored, 2 of them: ValueError: bad day; `rlkit rewards replay {run}`"
        in said[1]
    )
    assert said[2].startswith(f"  blackbox: {run}/blackbox/grpo-5 holds")


def test_a_run_that_nobody_watched_is_looked_at_afterwards(tmp_path: Path) -> None:
    constant = rewards(*[0.5] * 8, zero_signal=1.0, reward_spread=0.0)
    run = a_run(tmp_path / "run", metrics=constant, finished=("sft", "grpo"), extra="monitor: null\n")
    assert explain(run)[:2] == [
        f"{run}: finished; nobody watched (monitor: null)",
        "  grpo: no_signal since step 1: all rewards of 5 rollouts are 0.5",
    ]


def test_damaged_metrics_of_a_run_that_nobody_watched_are_left_out(tmp_path: Path) -> None:
    rows = rewards(*[0.5] * 8, zero_signal="?", reward_spread=None, kl="x", truncated=True)
    run = a_run(tmp_path / "run", metrics=rows, finished=("sft", "grpo"), extra="monitor: null\n")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "grpo", "step": 9, "rew')
    assert explain(run)[1:] == ["  grpo: reward from 0.5 to 0.5 in 8 steps"]


def test_a_loss_that_was_lost_is_said_of_stages_that_no_monitor_watches(tmp_path: Path) -> None:
    rows = [{"stage": "sft", "step": step, "loss": loss} for step, loss in ((1, 2.0), (2, math.nan), (3, math.nan))]
    said = explain(a_run(tmp_path / "run", metrics=rows, finished=("sft", "grpo")))
    assert said[1] == "  sft: the loss is infinite or NaN since step 2"
    assert "change stages.sft.train.learning_rate" in said[2]


def test_a_killed_stage_goes_on_only_where_it_left_a_checkpoint(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", "sft: starts\ngrpo: starts", finished=("sft",))
    assert explain(run)[0].endswith("the same command starts it again")
    (run / "grpo" / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    assert explain(run)[0].endswith("the same command starts it again"), "it was cut short"
    (run / "grpo" / "checkpoints" / "checkpoint-4" / "complete.json").write_text("{}")
    assert explain(run)[0].endswith("the same command goes on from its checkpoint")


def test_the_verb_prints_the_lines_and_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", alarms=[ALARM], finished=("sft", "grpo"))
    assert CliRunner().invoke(app, ["why", str(run)]).output.splitlines() == explain(run)
    with pytest.raises(RunError, match="no run here; name a run directory"):
        explain(tmp_path)
    for text in ("", "a: ["):
        (tmp_path / "recipe.yaml").write_text(text)
        with pytest.raises(RunError, match="names no stages, and nothing has run"):
            explain(tmp_path)


def test_the_report_shows_alarms(tmp_path: Path) -> None:
    page = write_report(a_run(tmp_path / "run", alarms=[ALARM] * 50)).read_text()
    assert "<h2>alarms</h2>" in page
    assert "KL &lt;0.7&gt; per token" in page
    assert "and 10 more in alarms.jsonl" in page
