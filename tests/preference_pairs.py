"""Generated preferences, a domain that holds nothing else, and the job of a reward-model stage on them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from toys import tiny_model

from rlkit.component import Component, Settings
from rlkit.job import Job
from rlkit.models.head_files import NOTES_FILE
from rlkit.models.scalar_head import new_scalar_head
from rlkit.plugins import Origin, Registry, load_plugins
from rlkit.recipe import recipe_from_tree
from rlkit.records import Preference, Source
from rlkit.run_directory import RunDirectory

GOOD = ("thanks", "gladly", "sure", "welcome")
BAD = ("no", "never", "whatever", "nope")
FILLERS = ("well", "then", "it is", "so", "and", "perhaps", "now")


def generated_pairs(count: int, seed: int, margin: float | None = None) -> list[Preference]:
    """Return pairs of which the better one is polite; how long an answer is says nothing."""
    rng = random.Random(seed)

    def answer(words: tuple[str, ...]) -> str:
        text = [rng.choice(FILLERS) for _ in range(rng.randint(0, 5))]
        text.insert(rng.randint(0, len(text)), rng.choice(words))
        return " ".join(text)

    rows = []
    for index in range(count):
        prompt = f"<|user|>question {rng.randint(0, 99)}<|assistant|>"
        rows.append(Preference(prompt, answer(GOOD), answer(BAD), Source(f"pairs-{seed}", index + 1), margin))
    return rows


class PairsSettings(Settings):
    """A domain of generated preferences."""

    type: Literal["pairs"] = "pairs"
    produces: ClassVar[tuple[str, ...]] = ("Preference",)
    constrained: ClassVar[bool] = False

    train: int = 192
    """Pairs to train on."""
    held_out: int = 64
    """Pairs of valid, and of test."""
    margin: float | None = None
    """The margin of every pair."""


class PairsDomain:
    """Preferences whose prompts are rendered already."""

    new_tokens = ()
    tokenizer: Any

    def __init__(self, settings: Any, job: Any) -> None:
        self.settings = settings

    def preferences(self, split: str) -> list[Preference]:
        count = self.settings.train if split == "train" else self.settings.held_out
        return generated_pairs(count, ("train", "valid", "test").index(split), self.settings.margin)

    def prepare(self, model: Path | None = None) -> None:
        pass

    def bind(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def save(self, folder: Path) -> None:
        pass

    def fingerprint(self) -> dict[str, str]:
        return {}


def registry() -> Registry:
    """Return what is installed, and the domain ``pairs``."""
    entries = {
        (kind, name): (component, load_plugins().origin(kind, name))
        for kind in ("stage", "algorithm", "domain", "model", "reward", "loss_term", "engine", "rollout", "callback")
        for name, component in load_plugins().components(kind).items()
    }
    own = Component(PairsSettings, PairsDomain)
    return Registry({**entries, ("domain", "pairs"): (own, Origin("tests", "1"))})


def reward_job(folder: Path, domain: dict | None = None, train: dict | None = None, **algorithm: Any) -> Job:
    """Return the job of a stage that trains a reward model of two narrow layers."""
    tree = {
        "name": "pairs",
        "model": {"hidden_size": 32, "intermediate_size": 64, "layers": 2, **algorithm.pop("model", {})},
        "domain": {"type": "pairs", **(domain or {})},
        "stages": {
            "rm": {
                "algorithm": {"type": "reward_model", **algorithm},
                "train": {
                    "batch_size": 16,
                    "max_steps": 4,
                    "learning_rate": 3e-3,
                    "report_to": [],
                    "log_every_steps": 1,
                    "evaluate_every_steps": 2,
                    **(train or {}),
                },
            }
        },
        "engine": {"threads": 1},
    }
    loaded = recipe_from_tree(tree, registry=registry())
    directory = RunDirectory(folder)
    directory.open("", 0, {})
    job = Job(loaded.recipe, registry(), directory, "rm")
    job.engine.prepare()
    return job


def reward_folder(folder: Path, seed: int = 0, notes: dict | None = None) -> str:
    """Write a reward model with a head large enough to tell texts apart."""
    made = new_scalar_head(tiny_model(seed=seed), seed)
    with torch.no_grad():
        made.model.score.weight *= 20
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    if notes is not None:
        (folder / NOTES_FILE).write_text(json.dumps(notes))
    return str(folder)
