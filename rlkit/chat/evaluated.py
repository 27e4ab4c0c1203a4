"""Which models an evaluation measures, and which of them is the reference."""

from __future__ import annotations

from dataclasses import dataclass

from rlkit.config.stages import ChatEvaluationSettings, EvaluateStageSettings
from rlkit.errors import RecipeError
from rlkit.job import Job

STARTING_MODEL = "starting model"
"""The recipe's model as it was before any stage."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The models of an evaluation.

    Args:
        names: stages, and perhaps ``STARTING_MODEL``, in the order of the table.
        result: the one whose figures are the result.
        reference: the one that others are compared with; None where there is only one.
    """

    names: tuple[str, ...]
    result: str
    reference: str | None


def evaluated_models(job: Job) -> Evaluated:
    """Return the models that a stage evaluates.

    Raises:
        RecipeError: the recipe trains no model.
    """
    settings: EvaluateStageSettings = job.settings
    chat: ChatEvaluationSettings = settings.chat
    wanted = list(settings.models) or job.trained_stages()
    if not wanted:
        raise RecipeError(f"stages.{job.stage}: the recipe trains no model; add a train stage before it")
    starting = chat.starting_model if chat.starting_model is not None else bool(getattr(job.model, "path", None))
    reference = chat.reference or _start_of_policy(job, wanted)
    first = [STARTING_MODEL] if starting or reference == STARTING_MODEL else []
    names = tuple(dict.fromkeys([*first, *([reference] if reference else []), *wanted]))
    return Evaluated(names, wanted[-1], reference or (names[0] if len(names) > 1 else None))


def _start_of_policy(job: Job, wanted: list[str]) -> str | None:
    """Return what the first evaluated policy that has a reference started from."""
    stages, trained = job.recipe.stages, job.trained_stages()
    for name in wanted:
        algorithm = getattr(stages[name], "algorithm", None)
        if "reference" in getattr(algorithm, "roles", ()):
            before = trained[: trained.index(name)]
            return getattr(stages[name], "start_from", None) or (before[-1] if before else STARTING_MODEL)
    return None
