"""The recommendation recipe on a Hugging Face folder: text prompts, TRL's SFT, GRPO; with LoRA, and under DeepSpeed."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from toys import language_model_folder, tiny_recipe
from transformers import AutoModelForCausalLM

from rlkit.recipe import recipe_from_tree
from rlkit.run import run


def recipe(model: Path, engine: dict | None = None, **settings) -> dict:
    """The tiny recipe on a folder."""
    tree = copy.deepcopy(tiny_recipe(engine={"threads": 1, **(engine or {})}))
    tree["model"] = {"path": str(model), **settings}
    tree["stages"]["evaluate"]["max_rows"] = 16
    for stage in ("sft", "grpo"):
        tree["stages"][stage]["train"] |= {"max_steps": 3, "evaluate_every_steps": 3, "log_every_steps": 1}
    tree["stages"]["grpo"]["algorithm"]["validate_on"] = {"prompts": 8, "num_beams": 5}
    return tree


def report(out: Path) -> dict:
    return json.loads((out / "evaluate" / "eval.json").read_text())


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")  # PEFT says what is wanted: new rows are saved
@pytest.mark.parametrize(
    "settings", [{}, {"adapter": {"rank": 4}}, {"freeze_backbone": True}], ids=["full", "lora", "frozen"]
)
def test_a_language_model_goes_through_every_stage(settings: dict, tmp_path: Path) -> None:
    model = language_model_folder(tmp_path / "model", tied="adapter" not in settings)
    out = run(recipe_from_tree(recipe(model, **settings)), tmp_path / "run")
    assert report(out)["invalid"] == 0
    prompt = json.loads((out / "grpo/model/prompt.json").read_text())
    assert prompt["template"] == "instruct"
    trained = AutoModelForCausalLM.from_pretrained(out / "grpo/model")
    base = AutoModelForCausalLM.from_pretrained(model).get_input_embeddings().weight.shape[0]
    assert trained.get_input_embeddings().weight.shape[0] > base, "semantic-ID tokens have rows"
    assert not (out / "grpo/model/adapter_config.json").exists(), "an adapter is merged when its stage ends"


@pytest.mark.slow
@pytest.mark.parametrize("zero", [2, 3])
def test_a_language_model_goes_through_every_stage_under_deepspeed(zero: int, tmp_path: Path) -> None:
    model = language_model_folder(tmp_path / "model")
    engine = {"type": "deepspeed", "zero": zero, "processes": 2, "min_shard_elements": 0}
    out = run(recipe_from_tree(recipe(model, engine)), tmp_path / "run")
    assert report(out)["invalid"] == 0


def test_a_trained_model_starts_another_run_with_its_own_semantic_ids_and_template(tmp_path: Path) -> None:
    first = run(recipe_from_tree(tiny_recipe()), tmp_path / "first")
    tree = copy.deepcopy(tiny_recipe())
    tree["model"] = {"path": str(first / "sft/model")}
    del tree["stages"]["sft"]
    second = run(recipe_from_tree(tree), tmp_path / "second")
    for name in ("semantic_ids.json", "prompt.json"):
        assert (first / "sft/model" / name).read_bytes() == (second / "grpo/model" / name).read_bytes()
    # The same start, the same prompts, the same seed: the same result as in one run.
    assert report(first)["metrics"] == report(second)["metrics"]
