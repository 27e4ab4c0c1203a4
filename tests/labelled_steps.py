"""Generated answers in labelled steps, a domain of nothing else, and the job of a process reward model on them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, ClassVar, Literal

from rlkit.component import Component, Settings
from rlkit.job import Job
from rlkit.plugins import Origin, Registry, load_plugins
from rlkit.recipe import recipe_from_tree
from rlkit.records import Source, StepLabels
from rlkit.run_directory import RunDirectory


def generated_steps(count: int, seed: int) -> list[StepLabels]:
    """Return answers of one to four additions of one to a small number, about half of them wrong."""
    rng = random.Random(seed)
    rows = []
    for index in range(count):
        steps, labels = [], []
        for _ in range(rng.randint(1, 4)):
            number, right = rng.randint(0, 2), rng.random() < 0.5
            said = number + 1 if right else rng.choice([n for n in range(1, 4) if n != number + 1])
            steps.append(f"{number}+1={said}")
            labels.append(float(right))
        source = Source(f"steps-{seed}", index + 1)
        rows.append(StepLabels(f"<|user|>add {rng.randint(0, 99)}<|assistant|>", tuple(steps), tuple(labels), source))
    return rows


class StepsSettings(Settings):
    """A domain of generated steps."""

    type: Literal["labelled_steps"] = "labelled_steps"
    produces: ClassVar[tuple[str, ...]] = ("StepLabels",)
    constrained: ClassVar[bool] = False

    train: int = 1_000
    """Answers to train on."""
    held_out: int = 64
    """Answers of valid, and of test."""


class StepsDomain:
    """Answers whose prompts are rendered already."""

    new_tokens = ()
    tokenizer: Any

    def __init__(self, settings: StepsSettings, job: Any) -> None:
        self.settings = settings

    def step_labels(self, split: str) -> list[StepLabels]:
        count = self.settings.train if split == "train" else self.settings.held_out
        return generated_steps(count, seed=("train", "valid", "test").index(split))

    def prepare(self, model: Path | None = None) -> None:
        pass

    def bind(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def save(self, folder: Path) -> None:
        pass

    def fingerprint(self) -> dict[str, str]:
        return {}


def registry() -> Registry:
    """Return what is installed, and the domain ``labelled_steps``."""
    entries = {
        (kind, name): (component, load_plugins().origin(kind, name))
        for kind in ("stage", "algorithm", "domain", "model", "reward", "loss_term", "engine", "rollout", "callback")
        for name, component in load_plugins().components(kind).items()
    }
    own = Component(StepsSettings, StepsDomain)
    return Registry({**entries, ("domain", "labelled_steps"): (own, Origin("tests", "1"))})


def process_job(folder: Path, domain: dict | None = None, train: dict | None = None, **algorithm: Any) -> Job:
    """Return the job of a stage that trains a process reward model of two narrow layers."""
    tree = {
        "name": "steps",
        "model": {"hidden_size": 32, "intermediate_size": 64, "layers": 2, **algorithm.pop("model", {})},
        "domain": {"type": "labelled_steps", **(domain or {})},
        "stages": {
            "prm": {
                "algorithm": {"type": "process_reward_model", **algorithm},
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
    job = Job(loaded.recipe, registry(), directory, "prm")
    job.engine.prepare()
    return job
