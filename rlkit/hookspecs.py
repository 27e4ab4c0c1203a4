"""Everything that a plugin may implement, on one page.

A plugin is a module or an object named by an entry point of the group ``rlkit``. It marks functions with
``rlkit.hookspecs.hookimpl``; every ``register_*`` function returns an iterable of ``rlkit.component.Component``.
Installing a plugin changes no run that does not name one of its components.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from pathlib import Path

    from rlkit.component import Component

hookspec = pluggy.HookspecMarker("rlkit")
hookimpl = pluggy.HookimplMarker("rlkit")


class Registration:
    """Asked once, when plugins load."""

    @hookspec
    def register_stages(self) -> Iterable[Component]:
        """Return stages: artefacts in, artefacts out; the target is called with a ``rlkit.job.Job``."""

    @hookspec
    def register_algorithms(self) -> Iterable[Component]:
        """Return algorithms; the target is called with a ``rlkit.job.Job`` and returns a ``transformers.Trainer``.

        Its settings declare in ``produces`` what it makes: ``policy``, ``reward_model`` or ``process_reward_model``.
        Where the trainer has a method ``save_beside(folder) -> dict``, it is called on rank 0 when the finished model
        is written: it writes what else belongs to the model, and returns facts for the manifest.
        """

    @hookspec
    def register_domains(self) -> Iterable[Component]:
        """Return domains; the target is called with its settings and the job, and turns files into records."""

    @hookspec
    def register_models(self) -> Iterable[Component]:
        """Return models; the target is called with its settings and returns a causal LM and its tokenizer."""

    @hookspec
    def register_rewards(self) -> Iterable[Component]:
        """Return rewards; the target is called with its settings and a domain: ``reward(rollouts) -> (B, G)``."""

    @hookspec
    def register_loss_terms(self) -> Iterable[Component]:
        """Return further terms of a reward model's loss; the target is called with its settings.

        It returns ``term(chosen_rewards, rejected_rewards, margin) -> scalar``: from rewards and margins of shape (B,)
        a mean over the pairs, which carries gradients.
        """

    @hookspec
    def register_data_formats(self) -> Iterable[Component]:
        """Return readers; the target is called with its settings and returns what its domain takes."""

    @hookspec
    def register_quantizers(self) -> Iterable[Component]:
        """Return semantic-ID makers; the target is called with the data, its settings and the seed."""

    @hookspec
    def register_rollouts(self) -> Iterable[Component]:
        """Return ways to complete prompts; the target is called with its settings and returns ``rollout(request)``.

        A rollout has ``temperature``, and ``max_completion_tokens`` (None: a constraint ends its completions).
        """

    @hookspec
    def register_engines(self) -> Iterable[Component]:
        """Return engines; the target is called with its settings and runs a stage in one or more processes."""

    @hookspec
    def register_callbacks(self) -> Iterable[Component]:
        """Return callbacks; the target is called with its settings and returns any subset of ``RunEvents``."""


class RunEvents:
    """Fired on every rank, to the callbacks that a recipe lists."""

    @hookspec
    def on_run_start(self, recipe: Any, run_dir: Path) -> None:
        """A run begins, or goes on."""

    @hookspec
    def on_rollouts(self, step: int, rollouts: Any) -> None:
        """Rollouts were made and rewarded; ``step`` counts optimizer steps."""

    @hookspec
    def on_step_end(self, step: int, metrics: dict[str, float]) -> None:
        """An optimizer step was logged."""

    @hookspec(firstresult=True)
    def should_stop(self, step: int, metrics: dict[str, float]) -> bool | None:
        """Return True to end the stage after this step; the same answer on every rank."""

    @hookspec
    def on_checkpoint(self, step: int, path: Path) -> None:
        """A checkpoint is complete."""

    @hookspec
    def on_run_end(self, run_dir: Path, error: BaseException | None) -> None:
        """The run ended, well or not; always fired."""
