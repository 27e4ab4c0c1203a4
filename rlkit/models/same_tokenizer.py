"""Do the models that a recipe names share a tokenizer? Asked before anything trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rlkit.config.models import CausalLMSettings
from rlkit.errors import ModelError
from rlkit.models.load import tokenizer_of
from rlkit.models.tokenizer import fingerprint
from rlkit.recipe import Recipe


def check_tokenizers(recipe: Recipe, stages: list[str]) -> None:
    """Compare the recipe's model with the reward and value models that its stages name by folder.

    A recipe whose domain adds tokens, or whose model comes from a plugin, is checked where the models meet.

    Raises:
        ModelError: every folder with another tokenizer; sampled tokens would mean something else to its model.
    """
    named = [found for stage in stages for found in _named(stage, getattr(recipe.stages[stage], "algorithm", None))]
    model: Any = recipe.model
    if not named or type(model) is not CausalLMSettings or getattr(recipe.domain, "constrained", True):
        return
    policy = fingerprint(tokenizer_of(model))
    problems = [
        f"{where}: the tokenizer of {folder!r} is not that of the recipe's model, so the sampled tokens would mean "
        "something else to it; name a model that started from the same one"
        for where, folder in named
        if fingerprint(tokenizer_of(CausalLMSettings(path=folder))) != policy
    ]
    if problems:
        raise ModelError(*problems)


def _named(stage: str, algorithm: Any) -> Iterator[tuple[str, str]]:
    for index, reward in enumerate(getattr(algorithm, "rewards", ())):
        for folder in getattr(reward, "folders", ()):
            yield f"stages.{stage}.algorithm.rewards.{index}", folder
    if path := getattr(getattr(algorithm, "value", None), "path", None):
        yield f"stages.{stage}.algorithm.value.path", path
