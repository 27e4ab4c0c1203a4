"""``recipes/rlhf_pipeline.yaml``: it runs, goes on where it stopped, and refuses what does not fit."""

import json
import statistics
from pathlib import Path

import pytest
from toys import ROOT, language_model_folder

from rlkit.errors import DataError, ModelError, RecipeError
from rlkit.recipe import LoadedRecipe, check_data, load_recipe
from rlkit.recipe_smoke import smoke_recipe
from rlkit.run import run

RECIPE = ROOT / "recipes" / "rlhf_pipeline.yaml"
STAGES = ["sft", "reward_model", "ppo", "dpo", "evaluate"]


def tiny(*overrides: str) -> LoadedRecipe:
    """Return the recipe as ``--smoke`` runs it, on one thread."""
    return smoke_recipe(load_recipe(RECIPE, ["engine.threads=1", *overrides]))


def finished(out: Path) -> list[str]:
    return list(json.loads((out / "manifest.json").read_text())["stages"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe's smoke run: cut off after the reward model, then called again."""
    out = tmp_path_factory.mktemp("runs") / "rlhf"
    run(tiny(), out, until_stage="reward_model")
    assert finished(out) == STAGES[:2]
    run(tiny(), out)
    return out


def test_a_source_of_ones_own_says_what_else_is_needed(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'sft' learns from Demonstration records, but the domain is given no such"):
        load_recipe(RECIPE, [f"domain.preferences={rows(tmp_path / 'pairs.jsonl', PAIR)}"])


def test_a_second_call_goes_on_at_the_next_stage(whole: Path) -> None:
    assert finished(whole) == STAGES
    log = (whole / "logs" / "rlkit.log").read_text()
    assert [log.count(f"INFO {stage}: starts") for stage in STAGES] == [1] * 5
    assert log.count("sft: finished before, skipped") == 1


@pytest.mark.slow
def test_every_stage_runs_under_zero_3_with_all_parameters_sharded(tmp_path: Path) -> None:
    zero_3 = ("engine.type=deepspeed", "engine.processes=2", "engine.zero=3", "engine.min_shard_elements=0")
    run(tiny(*zero_3), tmp_path / "run")
    assert finished(tmp_path / "run") == STAGES


def test_stages_hand_over_what_the_next_ones_need(whole: Path) -> None:
    stages = json.loads((whole / "manifest.json").read_text())["stages"]
    assert [next(iter(stages[name]["artefacts"])) for name in STAGES] == [
        "policy", "reward_model", "policy", "policy", "evaluation",
    ]  # fmt: skip
    made = {next(iter(stages[name]["artefacts"].values()))["tokenizer"] for name in STAGES[:4]}
    assert len(made) == 1
    evaluated = json.loads((whole / "evaluate" / "eval.json").read_text())
    assert [row["name"] for row in evaluated["rows"]][:3] == ["sft", "dpo", "ppo"]


# ---- refused before the first stage trains


def refused(tmp_path: Path, *overrides: str) -> str:
    """Run, and return the one line that it ends with; nothing has been written."""
    out = tmp_path / "run"
    with pytest.raises((DataError, ModelError, RecipeError)) as error:
        run(load_recipe(RECIPE, ["engine.threads=1", *overrides]), out)
    assert not out.exists()
    (line,) = error.value.problems
    return line


def rows(path: Path, *lines: dict) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
DEMO = [f"domain.{source}={{type: chat_demo}}" for source in ("demonstrations", "preferences", "prompts")]
REWARD = "stages.ppo.algorithm.rewards.0={type: model, path: %s}"


def test_a_reward_without_a_head_also_at_validation(whole: Path, tmp_path: Path) -> None:
    policy = whole / "sft" / "model"
    assert "its weights hold no reward head" in refused(tmp_path, REWARD % policy)
    with pytest.raises(DataError, match="its weights hold no reward head"):
        check_data(load_recipe(RECIPE, [REWARD % policy]).recipe)


def test_a_reward_model_over_other_tokens(whole: Path, tmp_path: Path) -> None:
    scorer, policy = whole / "reward_model" / "model", language_model_folder(tmp_path / "lm")
    line = refused(tmp_path, REWARD % scorer, f"model.path={policy}")
    assert line.startswith(f"stages.ppo.algorithm.rewards.0: the tokenizer of '{scorer}' is not that of the recipe's")


def test_a_value_model_over_other_tokens(whole: Path, tmp_path: Path) -> None:
    scorer, policy = whole / "reward_model" / "model", language_model_folder(tmp_path / "lm")
    value = f"stages.ppo.algorithm.value={{backbone: separate, path: {scorer}}}"
    assert "stages.ppo.algorithm.value.path: the tokenizer of" in refused(tmp_path, value, f"model.path={policy}")


def test_a_reward_model_over_the_same_tokens_is_welcome(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(tiny(REWARD % (whole / "reward_model" / "model")), out, until_stage="sft")
    assert finished(out) == ["sft"]


def test_preferences_without_rejected(tmp_path: Path) -> None:
    file = rows(tmp_path / "pairs.jsonl", PAIR, {"prompt": "a", "chosen": "b"})
    line = refused(tmp_path, *DEMO, f"domain.preferences={file}")
    assert line.startswith(f"{file}:2: rejected: missing")


def test_a_pair_of_two_same_answers(tmp_path: Path) -> None:
    file = rows(tmp_path / "pairs.jsonl", PAIR, PAIR, PAIR | {"rejected": "b"})
    assert refused(tmp_path, *DEMO, f"domain.preferences={file}").startswith(
        f"{file}:3: chosen and rejected are the same"
    )


def test_an_empty_prompt(tmp_path: Path) -> None:
    file = rows(tmp_path / "prompts.jsonl", {"prompt": "a"}, {"prompt": "  "})
    assert refused(tmp_path, *DEMO, f"domain.prompts={file}").startswith(f"{file}:2: prompt: empty")


# ---- learning is real


def sampled(out: Path, stage: str) -> list[float]:
    """Return the learned reward of every sampled answer of the evaluation."""
    name = "answers.jsonl" if stage == "ppo" else f"answers-{stage}.jsonl"
    rows = [json.loads(line) for line in (out / "evaluate" / name).read_text().splitlines()]
    return [sample["metrics"]["reward/model"] for row in rows for sample in row["samples"]]


@pytest.mark.slow
def test_the_whole_recipe_learns(tmp_path: Path) -> None:
    out = run(load_recipe(RECIPE), tmp_path / "run")
    notes = json.loads((out / "reward_model" / "model" / "reward_model.json").read_text())
    assert notes["accuracy"]["value"] >= 0.9
    sft, ppo, dpo = (sampled(out, stage) for stage in ("sft", "ppo", "dpo"))
    assert statistics.mean(ppo) >= statistics.mean(sft) + statistics.stdev(sft)
    assert statistics.mean(dpo) > statistics.mean(sft)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    kl = [row["kl"] for row in rows if row["stage"] == "ppo" and "kl" in row]
    assert statistics.mean(kl[-len(kl) // 5 :]) <= 1.5 * 0.1, "the controller's target is .1"
    margins = [row["eval_rewards/margins"] for row in rows if "eval_rewards/margins" in row]
    assert margins[-1] > margins[0] + 1
