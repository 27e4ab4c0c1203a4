"""What tests of one stage on generated records share: a domain of rendered records, and the job of the stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlkit.component import Component
from rlkit.job import Job
from rlkit.plugins import Origin, Registry, load_plugins
from rlkit.recipe import recipe_from_tree
from rlkit.run_directory import RunDirectory

KINDS = ("stage", "algorithm", "domain", "model", "reward", "loss_term", "engine", "rollout", "callback")


class RenderedDomain:
    """A domain whose records are rendered already; what it is derived from makes them."""

    new_tokens = ()
    tokenizer: Any

    def __init__(self, settings: Any, job: Any) -> None:
        self.settings = settings

    def count_and_seed(self, split: str) -> tuple[int, int]:
        """Return how many records of a split are made, and from which seed."""
        count = self.settings.train if split == "train" else self.settings.held_out
        return count, ("train", "valid", "test").index(split)

    def prepare(self, model: Path | None = None) -> None:
        pass

    def bind(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def save(self, folder: Path) -> None:
        pass

    def fingerprint(self) -> dict[str, str]:
        return {}


def registry_with(more: dict[tuple[str, str], Component]) -> Registry:
    """Return what is installed, and further components by their kind and name."""
    entries = {
        (kind, name): (component, load_plugins().origin(kind, name))
        for kind in KINDS
        for name, component in load_plugins().components(kind).items()
    }
    return Registry({**entries, **{key: (component, Origin("tests", "1")) for key, component in more.items()}})


def stage_job(
    folder: Path, stage: str, registry: Registry, domain: dict, train: dict | None, algorithm: dict[str, Any]
) -> Job:
    """Return the job of a stage that trains a model of two narrow layers; ``algorithm`` may hold ``model`` settings."""
    tree = {
        "name": "tiny",
        "model": {"hidden_size": 32, "intermediate_size": 64, "layers": 2, **algorithm.pop("model", {})},
        "domain": domain,
        "stages": {
            stage: {
                "algorithm": algorithm,
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
    loaded = recipe_from_tree(tree, registry=registry)
    directory = RunDirectory(folder)
    directory.open("", 0, {})
    job = Job(loaded.recipe, registry, directory, stage)
    job.engine.prepare()
    return job
