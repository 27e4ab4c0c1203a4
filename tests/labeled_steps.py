"""Generated answers in labeled steps, a domain of nothing else, and the job of a process reward model on them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, ClassVar, Literal

from tiny_stage import RenderedDomain, registry_with, stage_job

from rlkit.component import Component, Settings
from rlkit.job import Job
from rlkit.plugins import Registry
from rlkit.records import Source, StepLabels


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

    type: Literal["labeled_steps"] = "labeled_steps"
    produces: ClassVar[tuple[str, ...]] = ("StepLabels",)
    constrained: ClassVar[bool] = False

    train: int = 1_000
    """Answers to train on."""
    held_out: int = 64
    """Answers of valid, and of test."""


class StepsDomain(RenderedDomain):
    """Answers whose prompts are rendered already."""

    def step_labels(self, split: str) -> list[StepLabels]:
        return generated_steps(*self.count_and_seed(split))


def registry() -> Registry:
    """Return what is installed, and the domain ``labeled_steps``."""
    return registry_with({("domain", "labeled_steps"): Component(StepsSettings, StepsDomain)})


def process_job(folder: Path, domain: dict | None = None, train: dict | None = None, **algorithm: Any) -> Job:
    """Return the job of a stage that trains a process reward model of two narrow layers."""
    algorithm = {"type": "process_reward_model", **algorithm}
    return stage_job(folder, "prm", registry(), {"type": "labeled_steps", **(domain or {})}, train, algorithm)
