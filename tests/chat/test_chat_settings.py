"""Chat settings in a recipe: sources by a path or in full, and algorithms that need what is not given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rlkit.config.stages import ChatEvaluationSettings
from rlkit.errors import RecipeError
from rlkit.recipe import load_recipe, recipe_from_tree
from rlkit.recipe_smoke import smoke_recipe


def load(domain: dict[str, Any], algorithm: str = "sft") -> Any:
    """Check a recipe of one stage."""
    stages = {"a": {"algorithm": {"type": algorithm}}}
    return recipe_from_tree({"name": "x", "domain": {"type": "chat", **domain}, "stages": stages})


def test_a_text_is_the_path_of_files_with_all_their_defaults() -> None:
    short, long = (load({"prompts": one}) for one in ("a.jsonl", {"path": "a.jsonl", "type": "chat_files"}))
    assert short.tree == long.tree
    assert recipe_from_tree(short.tree).tree == short.tree
    assert short.recipe.domain.records() == ("Prompt", "Demonstration")


def test_without_data_every_source_is_the_demo_and_the_resolved_recipe_says_so() -> None:
    loaded = load({})
    names = ("demonstrations", "preferences", "feedback", "prompts")
    assert [loaded.tree["domain"][name]["type"] for name in names] == ["chat_demo"] * 4
    assert loaded.recipe.domain.records() == ("Prompt", "Demonstration", "Preference", "Feedback")
    small = smoke_recipe(loaded).tree["domain"]
    assert [small[name]["conversations"] for name in names] == [100] * 4


@pytest.mark.parametrize(
    ("domain", "algorithm", "problem"),
    [
        ({"prompts": "a.jsonl"}, "dpo", "'dpo' learns from Preference records, but the domain is given no such data"),
        ({"preferences": "a.jsonl"}, "sft", "'sft' learns from Demonstration records"),
        ({"prompts": {"type": "minionerec", "path": "a"}}, "sft", "'minionerec' is made for the domain recommendation"),
        ({"prompts": ""}, "sft", "domain.prompts: expected a mapping, got ''"),
        ({"prompts": {"path": "a", "format": "x"}}, "sft", "domain.prompts.format: must be 'auto', 'messages'"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_read(domain: Any, algorithm: str, problem: str) -> None:
    with pytest.raises(RecipeError) as error:
        load(domain, algorithm)
    assert len(error.value.problems) == 1
    assert problem in error.value.problems[0]


def test_pass_at_more_than_is_sampled_is_refused_and_smoke_asks_for_none() -> None:
    with pytest.raises(ValidationError, match="pass@8 needs 8 samples per prompt, got samples 4; raise samples"):
        ChatEvaluationSettings(samples=4, pass_at=(1, 8))
    written = ChatEvaluationSettings(samples=4).model_dump()
    assert ChatEvaluationSettings(**written).pass_at[-1] == 64, "a recipe with all defaults written out runs again"
    recipe = Path(__file__).parents[2] / "recipes" / "chat_math_grpo.yaml"
    loaded = smoke_recipe(load_recipe(recipe, ["stages.evaluate.chat.pass_at=[1,8]"]))
    assert loaded.recipe.stages["evaluate"].chat.samples == 1
