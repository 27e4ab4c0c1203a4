"""``--smoke``: the same recipe made tiny, so that every stage is tried in seconds before it is run for hours."""

from __future__ import annotations

import copy
from typing import Any

from rlkit.recipe import LoadedRecipe, recipe_from_tree

STEPS = 4


def smoke_recipe(loaded: LoadedRecipe) -> LoadedRecipe:
    """Return the tiny version of a recipe that passed every check."""
    return recipe_from_tree(smoke(loaded.tree), source=f"{loaded.source} --smoke")


def smoke(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a tiny version of a recipe: every stage, a few steps, small models and data; smaller values stay.

    Args:
        tree: a valid recipe as plain data, all defaults written out.
    """
    tree = copy.deepcopy(tree)
    tree["name"] = f"{tree['name'].removesuffix('-smoke')[:90]}-smoke"
    _shrink_model(tree["model"])
    _shrink_domain(tree["domain"])
    for stage in tree["stages"].values():
        if isinstance(stage.get("train"), dict):
            _shrink_training(stage, tree["engine"].get("processes", 1))
        for key, limit in (("max_rows", 64), ("num_beams", max(10, min(stage.get("k") or [1]))), ("batch_size", 16)):
            _at_most(stage, key, limit)
        _at_most(stage.get("chat"), "samples", 1)
        (stage.get("chat") or {}).pop("pass_at", None)  # of so few samples there is none
    return tree


def _at_most(settings: Any, key: str, limit: int) -> None:
    if isinstance(settings, dict) and key in settings:
        settings[key] = limit if settings[key] is None else min(settings[key], limit)


def _shrink_model(model: dict[str, Any]) -> None:
    if "preset" in model and not model.get("path"):
        for key, limit in (("hidden_size", 32), ("intermediate_size", 64), ("layers", 1)):
            _at_most(model, key, limit)


def _shrink_domain(domain: dict[str, Any]) -> None:
    for key, limit in (("users", 400), ("items", 96)):
        _at_most(domain.get("data"), key, limit)
    for source in ("demonstrations", "preferences", "feedback", "steps", "prompts"):
        for key, limit in (("max_rows", 400), ("rows", 200), ("conversations", 100), ("pairs", 100), ("prompts", 100)):
            _at_most(domain.get(source), key, limit)
    _at_most(domain.get("semantic_ids"), "codebook_size", 16)
    _at_most(domain.get("augment"), "walks", 16)
    _at_most(domain, "max_completion_tokens", 8)


def _shrink_training(stage: dict[str, Any], processes: int) -> None:
    train, algorithm = stage["train"], stage["algorithm"]
    _at_most(train, "max_steps", STEPS)
    for key, limit in (("evaluate_every_steps", 2), ("save_every_steps", 2), ("log_every_steps", 1)):
        _at_most(train, key, limit)
    _shrink_batches(train, algorithm, processes)
    for key, limit in (("group_size", 4), ("updates_epochs", 2), ("samples_per_log", 2)):
        _at_most(algorithm, key, limit)
    validate = algorithm.get("validate_on")
    for key, limit in (("every_steps", 2), ("prompts", 16), ("num_beams", 10)):
        _at_most(validate, key, limit)
    _at_most(algorithm.get("rollout"), "max_completion_tokens", 8)
    _at_most(algorithm.get("reference_sync"), "every_steps", 2)


def _shrink_batches(train: dict[str, Any], algorithm: dict[str, Any], processes: int) -> None:
    """Cut the batch to about four, still in several micro-batches and several updates per rollout where it was."""
    old = train["batch_size"]
    new = train["batch_size"] = min(old, processes * max(1, 4 // processes))
    if train.get("micro_batch_size") and new < old:
        train["micro_batch_size"] = max(1, new // processes // 2)
    if algorithm.get("rollout_batch_size"):
        algorithm["rollout_batch_size"] = new * min(2, algorithm["rollout_batch_size"] // old)
