"""A whole recipe, end to end: skipped, continued, interrupted, redone."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toys import tiny_recipe

from rlkit.errors import DataError, RunError
from rlkit.plugins import load_plugins
from rlkit.recipe import recipe_from_tree
from rlkit.recipe_yaml import dump
from rlkit.run import evaluate_run, run, stage_inputs
from rlkit.run_directory import RunDirectory


def recipe(**grpo):
    """A recipe of eight GRPO steps in rollouts that serve two updates each."""
    tree = copy.deepcopy(tiny_recipe())
    tree["stages"]["grpo"]["train"]["max_steps"] = 8
    tree["stages"]["grpo"]["algorithm"].update({"rollout_batch_size": 16, **grpo})
    tree["stages"]["grpo"]["algorithm"]["validate_on"]["select_by"] = "last"
    return tree


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run."""
    return run(recipe_from_tree(recipe()), tmp_path_factory.mktemp("runs") / "one")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def forget(out: Path, stages: tuple[str, ...]) -> None:
    """Make a copy of a run look as if it had been killed after each stage's last but one checkpoint."""
    directory = RunDirectory(out)
    manifest = directory.manifest()
    for stage in stages:
        manifest["stages"].pop(stage)
        shutil.rmtree(out / stage / "model", ignore_errors=True)
        checkpoints = sorted(
            (out / stage / "checkpoints").glob("checkpoint-*"), key=lambda path: path.stat().st_mtime_ns
        )
        if checkpoints:
            shutil.rmtree(checkpoints[-1])
    directory.manifest_path.write_text(json.dumps(manifest))


def test_a_run_leaves_everything_that_the_architecture_promises(finished: Path) -> None:
    for name in (
        "recipe.yaml",
        "environment.json",
        "manifest.json",
        "metrics.jsonl",
        "samples.jsonl",
        "logs/rlkit.log",
        "report.html",
    ):
        assert (finished / name).stat().st_size > 0, name
    for name in ("config.json", "model.safetensors", "tokenizer.json", "semantic_ids.json"):
        assert (finished / "grpo" / "model" / name).is_file(), name
    report = json.loads((finished / "evaluate" / "eval.json").read_text())
    assert report["invalid"] == 0
    assert {"hit_rate@10", "ndcg@10", "item/hit_rate@10"} <= set(report["metrics"])
    assert [row["name"] for row in report["rows"]][:2] == ["sft", "grpo"]
    assert len((finished / "evaluate" / "ranked.jsonl").read_text().splitlines()) == report["n"] == 64


def test_no_file_of_a_run_is_a_pickle_but_the_trainer_state(finished: Path) -> None:
    names = {path.name for path in finished.rglob("*") if path.suffix in (".bin", ".pkl", ".pt", ".pth")}
    assert names <= {"optimizer.pt", "scheduler.pt", "rng_state.pth"}


def test_the_log_names_rewards_kl_entropy_clip_and_seconds_per_phase(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    row = next(row for row in rows if row["stage"] == "grpo" and "loss" in row and "reward" in row)
    expected = {
        "reward/item_match", "reward/prefix_match", "reward_std", "zero_signal", "kl", "entropy", "clip_fraction",
        "completion_length", "diversity/candidates", "diversity/tokens", "seconds/rollout", "seconds/reward",
        "seconds/forward_backward", "seconds/update",
    }  # fmt: skip
    assert expected <= set(row)
    assert any("eval_ndcg@10" in row and "eval_hit_rate@10" in row for row in rows if row["stage"] == "grpo")


def test_a_second_call_skips_finished_stages(finished: Path, capsys: pytest.CaptureFixture) -> None:
    before = (finished / "manifest.json").read_bytes()
    run(recipe_from_tree(recipe()), finished)
    assert capsys.readouterr().err.count("finished before, skipped") == 4
    assert (finished / "manifest.json").read_bytes() == before


def test_another_recipe_in_the_same_directory_is_refused_by_the_name_of_the_stage(finished: Path) -> None:
    with pytest.raises(RunError, match=r"stage 'grpo' was made with other settings.*--from grpo"):
        run(recipe_from_tree(recipe(kl_coef=0.5)), finished)


def test_a_file_that_a_stage_names_is_among_its_inputs(tmp_path: Path) -> None:
    phrases = tmp_path / "phrases.txt"
    tree = {
        "name": "files", "domain": {"type": "chat"},
        "stages": {"sft": {"algorithm": {"type": "sft"}}, "evaluate": {"type": "evaluate"}},
    }  # fmt: skip
    tree["stages"]["evaluate"]["chat"] = {"forbidden_file": str(phrases)}
    found = []
    for text in ("no\n", "never\n"):
        phrases.write_text(text)
        recipe = recipe_from_tree(tree).recipe
        found.append(stage_inputs(recipe, load_plugins(), RunDirectory(tmp_path / "run")))
    assert found[0]["sft"] == found[1]["sft"]
    assert found[0]["evaluate"] != found[1]["evaluate"]


def test_a_wrong_span_or_data_that_cannot_be_read_deletes_nothing(tmp_path: Path) -> None:
    (tmp_path / "run" / "sft").mkdir(parents=True)
    (tmp_path / "run" / "manifest.json").write_text('{"stages": {}}')
    with pytest.raises(RunError, match="--until: must not come before --from grpo, got 'sft'"):
        run(recipe_from_tree(recipe()), tmp_path / "run", from_stage="grpo", until_stage="sft", fresh=True)
    lost = recipe_from_tree(recipe(), [f'domain.data={{type: minionerec, path: "{tmp_path / "none"}"}}'])
    for options in ({"fresh": True}, {"from_stage": "sft"}):
        with pytest.raises(DataError):
            run(lost, tmp_path / "run", **options)
        assert (tmp_path / "run" / "sft").is_dir()


def test_a_refused_call_deletes_nothing(finished: Path) -> None:
    with pytest.raises(RunError, match="stage 'grpo' was made with other settings"):
        run(recipe_from_tree(recipe(kl_coef=0.5)), finished, from_stage="evaluate")
    assert (finished / "evaluate/eval.json").is_file()


def test_callbacks_live_as_long_as_the_run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = tmp_path / "again"
    shutil.copytree(finished, again)
    monkeypatch.setattr("rlkit.events.event_manager", None)  # the run's own are there: a stage makes no others
    run(recipe_from_tree(recipe()), again, from_stage="grpo", until_stage="grpo")
    first, second = weights(finished / "grpo"), weights(again / "grpo")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_interrupted_stage_continues_bit_for_bit(finished: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(finished, again)
    forget(again, ("sft", "grpo", "evaluate"))
    run(recipe_from_tree(recipe()), again)
    for stage in ("sft", "grpo"):
        first, second = weights(finished / stage), weights(again / stage)
        assert all(torch.equal(first[name], second[name]) for name in first), stage
    assert (finished / "evaluate/eval.json").read_bytes() == (again / "evaluate/eval.json").read_bytes()


def test_a_checkpoint_that_was_cut_short_does_not_count(finished: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(finished, again)
    forget(again, ("grpo", "evaluate"))
    last = max((again / "grpo/checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    broken = last.with_name("checkpoint-7")
    shutil.copytree(last, broken)
    (broken / "complete.json").unlink()
    (broken / "model.safetensors").write_bytes(b"cut")
    run(recipe_from_tree(recipe()), again)
    assert (finished / "evaluate/eval.json").read_bytes() == (again / "evaluate/eval.json").read_bytes()


def test_a_stage_can_be_redone_and_the_result_is_the_same(finished: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(finished, again)
    run(recipe_from_tree(recipe()), again, from_stage="grpo")
    assert (finished / "evaluate/eval.json").read_bytes() == (again / "evaluate/eval.json").read_bytes()
    with pytest.raises(RunError, match="no stage is called 'grop'; did you mean 'grpo'"):
        run(recipe_from_tree(recipe()), again, until_stage="grop")


def test_a_finished_run_can_be_evaluated_with_other_beams(finished: Path) -> None:
    folder = evaluate_run(finished, ["num_beams=5", "baselines=false"])
    report = json.loads((folder / "eval.json").read_text())
    assert folder != finished / "evaluate"
    assert folder.name in (finished / "report.html").read_text()
    assert set(report["metrics"]) == {
        f"{p}{m}@{k}" for p in ("", "item/") for m in ("hit_rate", "ndcg") for k in (1, 5)
    }


@pytest.mark.slow
def test_kill_9_in_the_middle_of_grpo_and_a_second_call_give_the_same_evaluation(
    finished: Path, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(recipe()))
    command = [str(Path(sys.executable).with_name("rlkit")), "run", str(path), "--out", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    while not (tmp_path / "run/grpo/checkpoints/checkpoint-2/complete.json").is_file():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "run/grpo/model").exists()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    first, second = ((out / "evaluate/eval.json").read_bytes() for out in (finished, tmp_path / "run"))
    assert first == second
