"""Small recipes in which a component is tried on a CPU, with generated data."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlkit.component import KINDS, Settings
from rlkit.config.algorithms import PolicySettings
from rlkit.errors import TrainingError
from rlkit.job import Job
from rlkit.plugin_kit.packages import Package, find_package
from rlkit.plugin_kit.scaffold import write_package
from rlkit.plugins import load_plugins
from rlkit.recipe import recipe_from_tree
from rlkit.recipe_yaml import Keys
from rlkit.run import run
from rlkit.run_directory import RunDirectory

DOMAIN, REWARD = "plugin_check_domain", "plugin_check_reward"
"""A domain and a reward that are installed while a plugin is checked: what ``rlkit plugins new`` writes of each."""
MODEL = {"hidden_size": 32, "intermediate_size": 64, "layers": 1}
TRAIN = {
    "batch_size": 4,
    "max_steps": 2,
    "learning_rate": 1e-3,
    "evaluate_every_steps": 2,
    "log_every_steps": 1,
    "report_to": [],
}
ENGINE = {"type": "local", "device": "cpu", "threads": 1}
SHOP = {"type": "recommendation", "template": "compact", "data": {"type": "demo", "users": 60, "items": 48}}
SAYINGS = {"type": "chat_demo", "conversations": 20, "pairs": 20, "prompts": 20}
CHAT = {"type": "chat", **dict.fromkeys(("demonstrations", "preferences", "feedback", "prompts"), SAYINGS)}
SFT = {"algorithm": {"type": "sft"}, "train": TRAIN}


class CannotTry(Exception):
    """Nothing generated fits the component; says what is missing."""


def helpers(folder: Path) -> list[Package]:
    """Write the packages of the domain and the reward that checks use."""
    return [
        find_package(write_package(name, kind, folder / name))
        for name, kind in ((DOMAIN, "domain"), (REWARD, "reward"))
    ]


def recipe_for(kind: str, settings: type[Settings]) -> tuple[dict[str, Any], Keys]:
    """Return a recipe that uses a component, and where in it the component stands.

    Args:
        kind: the component's.
        settings: its settings.

    Raises:
        CannotTry: no recipe can be made.
    """
    domain = _domain(settings)
    tree, keys = _RECIPES[kind](filled(settings), settings, domain is SHOP)
    return {"name": "check", "model": MODEL, "domain": domain, "engine": ENGINE, **tree}, keys


def _domain(settings: type[Settings]) -> dict[str, Any]:
    """Return the domain, with generated data, that a component is tried on."""
    if "recommendation" in settings.domains or getattr(settings, "needs_constraint", False):
        return SHOP
    if settings.domains and "chat" not in settings.domains:
        made_for = " or ".join(settings.domains)
        raise CannotTry(f"it is made for the domain {made_for}, of which there is no generated data")
    return CHAT if settings.domains else {"type": DOMAIN}


def filled(settings: type[Settings]) -> dict[str, Any]:
    """Return the least that a recipe must say of a component: its type, and examples of what is required.

    Raises:
        CannotTry: a required field has no example.
    """
    part: dict[str, Any] = {"type": settings.model_fields["type"].default}
    missing = []
    for name, field in settings.model_fields.items():
        if field.is_required() and field.examples:
            part[name] = field.examples[0]
        elif field.is_required() and not (name == "rewards" and issubclass(settings, PolicySettings)):
            missing.append(name)
    if missing:
        raise CannotTry(f"{' and '.join(missing)} must be given; name a value with Field(examples=[...])")
    return part


def _trained(algorithm: dict[str, Any]) -> dict[str, Any]:
    return {"algorithm": algorithm, "train": TRAIN}


def _online(shop: bool, **other: Any) -> dict[str, Any]:
    """Return what every online algorithm needs, on a shop or on additions."""
    rollout = {"type": "beam"} if shop else {"type": "sample", "max_completion_tokens": 8}
    look = {"prompts": 4, "num_beams": 8, "select_by": "reward"}
    return {"rewards": [{"type": "item_match" if shop else REWARD}], "rollout": rollout, "validate_on": look, **other}


def _of_algorithm(part: dict[str, Any], settings: type[Settings], shop: bool) -> tuple[dict[str, Any], Keys]:
    algorithm = _online(shop, **part) if issubclass(settings, PolicySettings) else part
    return {"stages": {"tried": _trained(algorithm)}}, ("stages", "tried", "algorithm")


def _of_domain(part: dict[str, Any], settings: type[Settings], shop: bool) -> tuple[dict[str, Any], Keys]:
    """Return a stage for each kind of record that the domain makes, and an evaluation."""
    online = _online(shop, type="grpo", group_size=4)
    if getattr(settings, "constrained", True):
        online["rollout"] = {"type": "beam"}
    stages = {
        "Demonstration": ("sft", SFT),
        "Preference": ("dpo", _trained({"type": "dpo"})),
        "Prompt": ("grpo", _trained(online)),
    }
    found = {name: stage for record, (name, stage) in stages.items() if record in settings.produces}
    if not found:
        raise CannotTry(f"no built-in algorithm learns from {' or '.join(settings.produces) or 'nothing'}")
    evaluate = {"type": "evaluate", "max_rows": 4, "num_beams": 8, "k": [1, 5]}
    return {"domain": part, "stages": {**found, "evaluate": evaluate}}, ("domain",)


def _of_reward(part: dict[str, Any], settings: type[Settings], shop: bool) -> tuple[dict[str, Any], Keys]:
    algorithm = _online(shop, type="grpo", group_size=4, rewards=[part])
    return {"stages": {"tried": _trained(algorithm)}}, ("stages", "tried", "algorithm", "rewards", 0)


def _of_rollout(part: dict[str, Any], settings: type[Settings], shop: bool) -> tuple[dict[str, Any], Keys]:
    algorithm = _online(shop, type="grpo", group_size=4, rollout=part)
    return {"stages": {"tried": _trained(algorithm)}}, ("stages", "tried", "algorithm", "rollout")


def _of_loss_term(part: dict[str, Any], settings: type[Settings], shop: bool) -> tuple[dict[str, Any], Keys]:
    stage = _trained({"type": "reward_model", "loss_terms": [part]})
    return {"stages": {"tried": stage}}, ("stages", "tried", "algorithm", "loss_terms", 0)


def _of_quantizer(part: dict[str, Any], settings: type[Settings], shop: bool) -> tuple[dict[str, Any], Keys]:
    stages = {"semantic_ids": {"type": "semantic_ids"}, "sft": SFT}
    return {"domain": {**SHOP, "semantic_ids": part}, "stages": stages}, ("domain", "semantic_ids")


def _of_data_format(part: dict[str, Any], settings: type[Settings], shop: bool) -> tuple[dict[str, Any], Keys]:
    chat = not shop and bool(settings.domains)
    domain = {**CHAT, "demonstrations": part} if chat else {**SHOP, "data": part}
    return {"domain": domain, "stages": {"sft": SFT}}, ("domain", "demonstrations" if chat else "data")


_RECIPES: dict[str, Callable[[dict[str, Any], type[Settings], bool], tuple[dict[str, Any], Keys]]] = {
    "stage": lambda part, *_: ({"stages": {"sft": SFT, "tried": part}}, ("stages", "tried")),
    "algorithm": _of_algorithm,
    "domain": _of_domain,
    "model": lambda part, *_: ({"model": part, "stages": {"sft": SFT}}, ("model",)),
    "reward": _of_reward,
    "loss_term": _of_loss_term,
    "data_format": _of_data_format,
    "quantizer": _of_quantizer,
    "rollout": _of_rollout,
    "engine": lambda part, *_: ({"engine": part, "stages": {"sft": SFT}}, ("engine",)),
    "callback": lambda part, *_: ({"callbacks": [part], "stages": {"sft": SFT}}, ("callbacks", 0)),
}
assert set(_RECIPES) == set(KINDS)


def run_quietly(tree: dict[str, Any], folder: Path) -> Path:
    """Run a recipe, and look at what it logged.

    Raises:
        TrainingError: a metric is not a finite number, or a training stage saved no model.
    """
    with _quiet():
        out = run(recipe_from_tree(tree, source="check"), folder)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    wrong = [f"{name} {value} at step {row['step']}" for row in rows for name, value in row.items() if _broken(value)]
    wrong += [
        f"stage {name} saved no model" for name in tree["stages"] if _lacks_model(tree["stages"][name], out / name)
    ]
    if wrong:
        raise TrainingError("; ".join(wrong))
    return out


def _broken(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _lacks_model(stage: dict[str, Any], folder: Path) -> bool:
    return "algorithm" in stage and not any((folder / "model").glob("*.safetensors"))


def trainer_of(tree: dict[str, Any], folder: Path, stage: str = "tried") -> Any:
    """Return the trainer of a stage, untrained."""
    with _quiet():
        directory = RunDirectory(folder)
        directory.open("", 0, {})
        job = Job(recipe_from_tree(tree, source="check").recipe, load_plugins(), directory, stage)
        job.engine.prepare()
        return job.registry.get("algorithm", job.settings.algorithm.type).load()(job)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what runs print to themselves, and let go of their log files."""
    logger = logging.getLogger("rlkit")
    before = [*logger.handlers]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for handler in [handler for handler in logger.handlers if handler not in before]:
            logger.removeHandler(handler)
            handler.close()
