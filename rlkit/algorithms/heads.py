"""What reward models of both kinds start from: a backbone with its own head, or with a fresh one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlkit.errors import RecipeError
from rlkit.job import Job
from rlkit.models.head_files import headless
from rlkit.models.load import LoadedModel, add_dropout

Load = Callable[[Any, Any], LoadedModel]
New = Callable[[LoadedModel, int], LoadedModel]


def model_with_head(job: Job, kind: str, load: Load, new: New) -> tuple[LoadedModel, dict[str, Any]]:
    """Return the model to train, with its own head where it has one, and what it was made of.

    Args:
        job: the stage.
        kind: of reward model, one of those of ``head_files``.
        load: takes the recipe's model settings and the folder of a model that has a head.
        new: takes a language model and the seed of a head.

    Raises:
        RecipeError: the recipe's model is frozen, which means rows of new tokens.
    """
    if job.model.freeze_backbone:
        raise RecipeError(
            f"stages.{job.stage}: model.freeze_backbone is about the rows of new tokens, which a reward model has none "
            "of; set it to false, and the algorithm's freeze_backbone to true to train the head alone"
        )
    path = job.start_model()
    source = path or job.model.path
    if source and headless(source, kind) is None:
        loaded = load(job.model, source)
        job.domain.prepare(Path(source))
        job.domain.bind(loaded.tokenizer)
        said = {"head": "loaded", "backbone": str(source)}
    else:
        causal = job.load_model(path)
        add_dropout(causal.model, job.model.dropout)
        loaded = new(causal, job.seed)
        said = {"head": "new", "backbone": str(source or f"the {job.model.preset} preset")}
    if job.rank == 0:
        print(f"{job.stage}: a {said['head']} reward head on {said['backbone']}")
    return loaded, said
