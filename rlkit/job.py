"""What a stage gets: its settings, the run directory, and the ways to its domain, model and trainer arguments."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkit.errors import RecipeError, RunError
from rlkit.plugins import Registry
from rlkit.recipe import Recipe
from rlkit.run_directory import RunDirectory

if TYPE_CHECKING:
    from rlkit.models.load import LoadedModel


@dataclass
class Job:
    """One stage of one run, on one rank.

    Args:
        recipe: the whole recipe.
        registry: what is installed.
        run: the run directory.
        stage: the stage's name.
        output: the stage's folder in the run directory; none: its name.
    """

    recipe: Recipe
    registry: Registry
    run: RunDirectory
    stage: str
    output: str | None = None

    @property
    def settings(self) -> Any:
        """Return the stage's settings."""
        return self.recipe.stages[self.stage]

    @property
    def model(self) -> Any:
        """Return the settings of the recipe's model."""
        return self.recipe.model

    @property
    def folder(self) -> Path:
        """Return the stage's folder."""
        return self.run.stage(self.output or self.stage)

    @property
    def seed(self) -> int:
        """Return the seed of everything random in the stage."""
        return self.recipe.seed

    @property
    def rank(self) -> int:
        """Return this process's rank."""
        return int(os.environ.get("RANK", "0"))

    @property
    def processes(self) -> int:
        """Return the number of ranks."""
        return int(os.environ.get("WORLD_SIZE", "1"))

    @cached_property
    def engine(self) -> Any:
        """Return the engine, on the device that the stage asks for."""
        settings: Any = self.recipe.engine
        device = getattr(self.settings, "device", None)
        return self.load("engine", settings.model_copy(update={"device": device}) if device else settings)

    @cached_property
    def events(self) -> Any:
        """Return the callbacks that the recipe lists, as a pluggy manager."""
        from rlkit.events import event_manager

        return event_manager(self.recipe, self.registry)

    @cached_property
    def domain(self) -> Any:
        """Return the domain, not yet bound to a tokenizer."""
        settings: Any = self.recipe.domain
        return self.registry.get("domain", settings.type).load()(settings, self)

    def load(self, kind: str, settings: Any, *args: Any) -> Any:
        """Import a component and call it with its settings and further arguments."""
        return self.registry.get(kind, settings.type).load()(settings, *args)

    def load_reward(self, settings: Any) -> Any:
        """Import a reward and call it with its settings and the domain; a model's ``stage`` becomes its ``path``."""
        wanted = getattr(settings, "needs_artefact", None)
        if wanted and not (settings.path or getattr(settings, "paths", ())):
            name = settings.stage or next(iter(reversed(self.trained_stages(wanted))), None)
            if name is None:
                raise RecipeError(
                    f"stages.{self.stage}: the reward {settings.type!r} needs a {wanted}, which no stage before makes; "
                    "add one, or give the reward a path"
                )
            settings = settings.model_copy(update={"path": str(self.model_of(name)), "stage": None})
        return self.load("reward", settings, self.domain)

    # ---- models

    def trained_stages(self, kind: str = "policy") -> list[str]:
        """Return the stages before this one that train a model of a kind (policy, reward_model ...), in order."""
        names = list(self.recipe.stages)
        before = names[: names.index(self.stage)]
        return [name for name in before if kind in self.recipe.stages[name].makes]

    def start_model(self) -> Path | None:
        """Return the model of the stage that this one starts from; None: the recipe's model.

        Raises:
            RunError: that stage has no model yet.
        """
        name = getattr(self.settings, "start_from", None) or next(iter(reversed(self.trained_stages())), None)
        return self.model_of(name) if name else None

    def model_of(self, stage: str) -> Path:
        """Return a finished stage's model.

        Raises:
            RunError: there is none.
        """
        path = self.run.stage(stage) / "model"
        if not path.is_dir():
            raise RunError(
                f"{self.stage}: stage {stage!r} has no model in {self.run.path}; run it first (--from {stage})"
            )
        return path

    def load_model(self, path: Path | None = None) -> LoadedModel:
        """Load a model with the domain's tokens, and bind the domain to its tokenizer.

        Args:
            path: a stage's model; None: the one that this stage starts from.
        """
        return self.load_model_at(path or self.start_model())

    def load_model_at(self, path: Path | None) -> LoadedModel:
        """Do what ``load_model`` does, at a path; None: the recipe's model, whatever stages have trained."""
        self.domain.prepare(path)
        target = self.registry.get("model", self.model.type).load()
        loaded = target(self.model, path=path, new_tokens=self.domain.new_tokens, seed=self.seed)
        self.domain.bind(loaded.tokenizer)
        return loaded

    # ---- training

    @property
    def checkpoints(self) -> Path:
        """Return the folder of the stage's checkpoints."""
        return self.folder / "checkpoints"

    def training_arguments(self, steps: int) -> dict[str, Any]:
        """Return keyword arguments for ``TrainingArguments``; ``steps``: optimizer steps in all."""
        from rlkit.training import training_arguments

        return training_arguments(
            self.settings.train,
            self.checkpoints,
            steps=steps,
            processes=self.processes,
            engine=self.engine.arguments(),
            seed=self.seed,
        )

    def callbacks(self) -> list[Any]:
        """Return what every trainer reports to: the run's log, its progress, and the recipe's callbacks."""
        from rlkit.callbacks import EventsCallback, RunCallback

        return [RunCallback(self), *([EventsCallback(self.events)] if self.recipe.callbacks else [])]

    def log_sample(self, row: dict[str, Any]) -> None:
        """Add a sample to samples.jsonl, on rank 0."""
        if self.rank == 0:
            self.run.append("samples.jsonl", {"stage": self.stage, **row})

    def quarantine(self, row: dict[str, Any]) -> None:
        """Add a completion that a reward could not score to quarantine.jsonl, with the command that tries it again."""
        row = {"stage": self.stage, **row, "again": f"rlkit rewards replay {self.run.path}"}
        self.run.append("quarantine.jsonl", row)
