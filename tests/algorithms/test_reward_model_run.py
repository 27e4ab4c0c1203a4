"""Reward models in runs: chat data, recipes that do not fit, two processes, a policy rewarded by a trained model."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from preference_pairs import generated_pairs
from toys import language_model_folder

from rlkit.errors import DataError, RecipeError
from rlkit.recipe import check_data, recipe_from_tree
from rlkit.run import run


def recipe(folder: Path, **engine) -> dict:
    """Return a recipe of a reward model, and of GRPO against it, on generated pairs in files."""
    for split, seed, count in (("train", 0, 90), ("valid", 1, 31)):
        rows = (
            {"prompt": row.prompt[8:-13], "chosen": row.chosen, "rejected": row.rejected, "margin": 0.1}
            for row in generated_pairs(count, seed)
        )
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = {"batch_size": 16, "report_to": [], "log_every_steps": 1, "evaluate_every_steps": 4}
    files = {"path": str(folder / "train.jsonl"), "valid": str(folder / "valid.jsonl")}
    grpo = {
        "type": "grpo",
        "group_size": 2,
        "rollout": {"type": "sample", "max_completion_tokens": 8},
        "rewards": [{"type": "model"}],
        "validate_on": {"prompts": 4},
    }
    return {
        "name": "pairs",
        "model": {"hidden_size": 32, "intermediate_size": 64, "layers": 2},
        "domain": {"type": "chat", "preferences": files},
        "stages": {
            "rm": {
                "algorithm": {"type": "reward_model", "loss_terms": [{"type": "reward_norm"}], "label_smoothing": 0.1},
                "train": {**train, "max_steps": 8, "learning_rate": 3e-3, "micro_batch_size": 8},
            },
            "grpo": {"algorithm": grpo, "train": {**train, "batch_size": 4, "max_steps": 1}},
        },
        "engine": {"threads": 1, **engine},
    }


def figures(out: Path) -> dict[tuple[int, str], float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    names = ("loss", "eval_loss", "eval_accuracy", "held_out_accuracy", "held_out_calibration_error")
    return {(row["step"], name): row[name] for row in rows if row["stage"] == "rm" for name in names if name in row}


def test_a_policy_is_rewarded_by_the_reward_model_of_its_run(tmp_path: Path) -> None:
    out = run(recipe_from_tree(recipe(tmp_path)), tmp_path / "run")
    manifest = json.loads((out / "manifest.json").read_text())["stages"]
    facts = manifest["rm"]["artefacts"]["reward_model"]
    assert facts["head"] == "new"
    assert facts["tokenizer"] == manifest["grpo"]["artefacts"]["policy"]["tokenizer"]
    notes = json.loads((out / "rm" / "model" / "reward_model.json").read_text())
    assert notes["split"] == "valid"  # there is no test file
    assert notes["pairs"] == 31
    logged = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    rewards = [row["parts"]["model"] for row in logged]
    assert len(set(rewards)) > 1  # that they are the model's is shown in test_scorer, by tokens
    assert all(row["reward"] == row["parts"]["model"] for row in logged)


def test_a_reward_without_a_reward_model_and_a_headless_folder_are_refused_before_training(tmp_path: Path) -> None:
    tree = recipe(tmp_path)
    lm = language_model_folder(tmp_path / "lm")
    named = copy.deepcopy(tree)
    named["stages"]["grpo"]["algorithm"]["rewards"] = [{"type": "model", "path": str(lm)}]
    with pytest.raises(DataError, match="its weights hold no reward head"):
        check_data(recipe_from_tree(named).recipe)
    wrong = copy.deepcopy(tree)
    wrong["stages"]["grpo"]["algorithm"]["rewards"] = [{"type": "model", "stage": "rn"}]
    with pytest.raises(RecipeError, match="rn"):
        recipe_from_tree(wrong)


@pytest.mark.slow
def test_reward_models_have_the_same_figures_on_two_processes(tmp_path: Path) -> None:
    found = []
    for index, engine in enumerate(({}, {"processes": 2})):
        tree = recipe(tmp_path, **engine)
        del tree["stages"]["grpo"]
        found.append(figures(run(recipe_from_tree(tree), tmp_path / str(index))))
    one, two = found
    assert len(one) == 8 + 2 * 2 + 2
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert two[name] == pytest.approx(value, abs=1e-4), name
