"""Generated preferences, a domain that holds nothing else, and the job of a reward-model stage on them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from tiny_stage import RenderedDomain, registry_with, stage_job
from toys import tiny_model

from rlkit.component import Component, Settings
from rlkit.job import Job
from rlkit.models.head_files import NOTES_FILE
from rlkit.models.scalar_head import new_scalar_head
from rlkit.plugins import Registry
from rlkit.records import Preference, Source

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


class PairsDomain(RenderedDomain):
    """Preferences whose prompts are rendered already."""

    def preferences(self, split: str) -> list[Preference]:
        return generated_pairs(*self.count_and_seed(split), self.settings.margin)


def registry() -> Registry:
    """Return what is installed, and the domain ``pairs``."""
    return registry_with({("domain", "pairs"): Component(PairsSettings, PairsDomain)})


def reward_job(folder: Path, domain: dict | None = None, train: dict | None = None, **algorithm: Any) -> Job:
    """Return the job of a stage that trains a reward model of two narrow layers."""
    algorithm = {"type": "reward_model", **algorithm}
    return stage_job(folder, "rm", registry(), {"type": "pairs", **(domain or {})}, train, algorithm)


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
