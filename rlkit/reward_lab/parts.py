"""The rewards of a recipe, stage by stage, as far as they can be loaded before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rlkit.config.models import CausalLMSettings
from rlkit.job import Job
from rlkit.models.load import tokenizer_of
from rlkit.policy.rewarder import WeightedReward, weighted
from rlkit.policy.supervised import close_rewards, judge, load_supervised
from rlkit.policy.text_rewards import Outcome, Sample, TextReward
from rlkit.recipe import Recipe
from rlkit.records import Prompt


@dataclass(frozen=True)
class Skipped:
    """A reward that cannot be tried yet.

    Args:
        name: of the part.
        reason: why.
    """

    name: str
    reason: str


def rewarded_stages(recipe: Recipe) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield the stages that learn from rewards, with the settings of these."""
    for name, stage in recipe.stages.items():
        rewards = getattr(getattr(stage, "algorithm", None), "rewards", None)
        if rewards:
            yield name, rewards


@contextmanager
def loaded_parts(job: Job, rewards: Sequence[Any]) -> Iterator[tuple[list[WeightedReward], list[Skipped]]]:
    """Load rewards, supervised where they are in a run; those whose model is not trained yet are named instead.

    Their processes end with the context.

    Args:
        job: the stage that they belong to.
        rewards: their settings.
    """
    skipped: list[Skipped] = []
    ready = []
    for settings in rewards:
        if reason := _not_ready(job, settings):
            skipped.append(Skipped(settings.type, reason))
        else:
            ready.append(settings)
    parts = weighted(ready, lambda settings: load_supervised(job, settings))
    try:
        yield parts, skipped
    finally:
        close_rewards(part.score for part in parts)


def _not_ready(job: Job, settings: Any) -> str:
    """Return why a reward that needs a model has none; empty where it has, or needs none."""
    kind = getattr(settings, "needs_artefact", None)
    if kind is None or getattr(settings, "path", None) or getattr(settings, "paths", ()):
        return ""
    stages = [settings.stage] if getattr(settings, "stage", None) else job.trained_stages(kind)
    if stages and (job.run.stage(stages[-1]) / "model").is_dir():
        return ""
    return f"needs the {kind} of {stages[-1] if stages else 'an earlier stage'}, which is not trained yet"


def reads_text(part: WeightedReward) -> bool:
    """Return whether a part scores text, and so more than rollouts."""
    return isinstance(part.score, TextReward)


def ask(part: WeightedReward, samples: Sequence[Sample]) -> list[Outcome]:
    """Score samples with a part that reads text, under its deadline."""
    assert isinstance(part.score, TextReward)
    return judge(part.score, part.name, part.settings, samples)


def reference(part: WeightedReward, prompt: Prompt) -> str:
    """Return what a part should find good: the prompt's answer, or what its ``reference`` says; empty: nothing."""
    find = getattr(part.score, "reference", None)
    return (prompt.answer if find is None else find(prompt)) or ""


def bind_tokenizer(job: Job) -> bool:
    """Bind the domain to the tokenizer of the recipe's model, none of which is loaded.

    Returns:
        Whether that can be done: not where a plugin makes the model, or an earlier stage the domain's own tokens.

    Raises:
        ModelError: there is no tokenizer.
    """
    waits_for_tokens = getattr(job.domain, "semantic_ids", "none") is None
    if type(job.model) is not CausalLMSettings or waits_for_tokens:
        return False
    job.domain.bind(tokenizer_of(job.model))
    return True
